"""Rank correlation with an interval, and whether one predictor ranks better than another.

    Kendall's tau-b    (concordant - discordant) / sqrt((pairs - ties of x) (pairs - ties of y))
    Spearman's rho     Pearson's correlation of the ranks, ties sharing theirs

Intervals are percentiles over resampled architectures. A pair of copies of one architecture is a tie of both, and so
out of tau. Two predictors are compared on the same resamples.

Source: Kendall 1945; Efron 1979; White et al. 2023 (arXiv 2301.08727), section 5.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, rankdata

__all__ = ["RankCorrelation", "rank_correlation", "rank_table"]

FEW = 300  # up to here all pairs at once are quicker than a sort


class RankCorrelation(NamedTuple):
    """A rank correlation.

    Attributes:
        value: from -1 to 1; 0 where one of the two is constant and so ranks nothing.
        interval: 95%, from resampled architectures.
        samples: one value a resample.
    """

    value: float
    interval: tuple[float, float]
    samples: np.ndarray


def rank_correlation(
    scores: ArrayLike, values: ArrayLike, *, kind: str = "kendall", resamples: int = 2000, seed: int = 0
) -> RankCorrelation:
    """How alike two quantities rank the same architectures.

    Args:
        scores: one number an architecture.
        values: the same.
        kind: "kendall" or "spearman".
        resamples: for the interval.
        seed: of the resampling; the same seed and number of architectures give the same resamples.

    Raises:
        ValueError: if the lengths differ, there are fewer than three, a number is not finite, or the kind is unknown.
    """
    x, y = np.asarray(scores, dtype=float), np.asarray(values, dtype=float)
    if x.ndim != 1 or x.shape != y.shape or len(x) < 3:
        raise ValueError(f"Two lists of three numbers or more wanted, got shapes {x.shape} and {y.shape}.")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("scores and values must be finite.")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    if kind not in ("kendall", "spearman"):
        raise ValueError(f'kind must be "kendall" or "spearman", got {kind!r}.')
    measure = kendall_tau if kind == "kendall" else _spearman
    drawn = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    samples = np.array([measure(x[row], y[row]) for row in drawn])
    low, high = np.quantile(samples, [0.025, 0.975])
    return RankCorrelation(measure(x, y), (float(low), float(high)), samples)


def rank_table(
    scores: Mapping[str, ArrayLike],
    values: ArrayLike,
    *,
    baseline: str | None = None,
    kind: str = "kendall",
    resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank correlations of several predictors with the same values.

    Args:
        scores: by predictor, one number an architecture.
        values: one number an architecture.
        baseline: predictor that the others are compared with, on the same resamples; None for no comparison.
        kind: "kendall" or "spearman".
        resamples: for the intervals.
        seed: of the resampling.

    Returns:
        One row a predictor: "predictor", "correlation", "low", "high"; with a baseline "lead" (its correlation minus
        the baseline's), "lead low", "lead high".

    Raises:
        ValueError: as `rank_correlation`; or if the baseline is none of the predictors.
    """
    if baseline is not None and baseline not in scores:
        raise ValueError(f"baseline must be one of {list(scores)}, got {baseline!r}.")
    found = {
        name: rank_correlation(score, values, kind=kind, resamples=resamples, seed=seed)
        for name, score in scores.items()
    }
    rows = []
    for name, result in found.items():
        row = {"predictor": name, "correlation": result.value, "low": result.interval[0], "high": result.interval[1]}
        if baseline is not None:
            low, high = np.quantile(result.samples - found[baseline].samples, [0.025, 0.975])
            row |= {"lead": result.value - found[baseline].value, "lead low": low, "lead high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def kendall_tau(x: np.ndarray, y: np.ndarray) -> float:
    """Tau-b 0 where one of the two is constant. Each pair is there twice, which divides out."""
    if len(x) > FEW:
        tau = float(np.asarray(kendalltau(x, y))[0])  # statistic and p
        return 0.0 if np.isnan(tau) else tau
    a, b = np.sign(x[:, None] - x), np.sign(y[:, None] - y)
    scale = np.sqrt(np.abs(a).sum() * np.abs(b).sum())
    return float((a * b).sum() / scale) if scale else 0.0


def _spearman(x: np.ndarray, y: np.ndarray) -> float:
    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (x, y))
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float((a * b).sum() / scale) if scale else 0.0
