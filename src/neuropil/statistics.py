"""Paired comparisons over seeds: means, intervals and tests.

Every claim of the house is decided on differences between two arms that share a seed (the same split, the same initial
draw where the arms allow it), never on two separate averages: the spread between seeds is then no longer noise.

    d_s = a_s - b_s,   s = 1..S;      mean d,   interval at a confidence,   p of the sign test

The t interval is exact for normal differences and the right choice for the 3 to 10 seeds of a study; the bootstrap
interval (percentile, resampling seeds) needs no distribution, but is too narrow below about 8 seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

__all__ = [
    "Comparison",
    "above",
    "below",
    "bootstrap_interval",
    "compare_paired",
    "paired",
    "sign_test",
    "t_interval",
    "within",
]

Interval = tuple[float, float]


def _sample(values: ArrayLike, name: str = "values") -> np.ndarray:
    array = np.asarray(values, dtype=float).ravel()
    if array.size == 0:
        raise ValueError(f"{name} is empty: an interval needs at least one number.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds {int((~np.isfinite(array)).sum())} numbers that are not finite.")
    return array


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")


def t_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean of a small normal sample.

    Args:
        values: the sample, any shape, taken as one list.
        confidence: probability of covering the mean, between 0 and 1.

    Returns:
        (low, high). A sample of one tells nothing of its spread: (-inf, inf).

    Raises:
        ValueError: if the sample is empty or not finite, or the confidence is outside (0, 1).
    """
    array = _sample(values)
    _check_confidence(confidence)
    if array.size == 1:
        return (-np.inf, np.inf)
    half = stats.t.ppf(0.5 + confidence / 2, array.size - 1) * array.std(ddof=1) / np.sqrt(array.size)
    return (float(array.mean() - half), float(array.mean() + half))


def bootstrap_interval(
    values: ArrayLike, confidence: float = 0.95, *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval for the mean (Efron 1979).

    Args:
        values: the sample, any shape, taken as one list.
        confidence: probability of covering the mean, between 0 and 1.
        resamples: number of samples drawn with replacement.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        (low, high). A sample of one tells nothing of its spread: (-inf, inf).

    Raises:
        ValueError: if the sample is empty or not finite, or an argument is out of range.
    """
    array = _sample(values)
    _check_confidence(confidence)
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    if array.size == 1:
        return (-np.inf, np.inf)
    drawn = np.random.default_rng(seed).integers(array.size, size=(resamples, array.size))
    low, high = np.quantile(array[drawn].mean(axis=1), [0.5 - confidence / 2, 0.5 + confidence / 2])
    return (float(low), float(high))


def sign_test(differences: ArrayLike) -> float:
    """Two-sided sign test: the probability of so many equal signs if both arms were alike. Ties are left out.

    Returns:
        p, 1.0 if every difference is zero.

    Raises:
        ValueError: if there are no differences, or one is not finite.
    """
    array = _sample(differences, "differences")
    signs = np.sign(array[array != 0])
    return 1.0 if signs.size == 0 else float(stats.binomtest(int((signs > 0).sum()), signs.size).pvalue)


def above(interval: Interval, threshold: float) -> bool | None:
    """True if the whole interval lies above the threshold, False if below, None (undecided) if it covers it."""
    low, high = interval
    return True if low > threshold else False if high < threshold else None


def below(interval: Interval, threshold: float) -> bool | None:
    """True if the whole interval lies below the threshold, False if above, None (undecided) if it covers it."""
    low, high = interval
    return True if high < threshold else False if low > threshold else None


def within(interval: Interval, bounds: Interval) -> bool | None:
    """True if the whole interval lies between two bounds, False if outside, None (undecided) if it covers one."""
    verdicts = above(interval, bounds[0]), below(interval, bounds[1])
    return False if False in verdicts else None if None in verdicts else True


@dataclass(frozen=True)
class Comparison:
    """Differences between two arms over shared seeds, and what they decide.

    Attributes:
        differences: one number a seed, first arm minus second.
        interval: for the mean difference.
        p: of the two-sided sign test.
    """

    differences: tuple[float, ...]
    interval: Interval
    p: float

    @property
    def mean(self) -> float:
        """Mean difference."""
        return float(np.mean(self.differences))

    def above(self, threshold: float) -> bool | None:
        """Whether the whole interval lies above the threshold; None if it covers it."""
        return above(self.interval, threshold)

    def below(self, threshold: float) -> bool | None:
        """Whether the whole interval lies below the threshold; None if it covers it."""
        return below(self.interval, threshold)

    def seed_by_seed(self, decimals: int = 1) -> str:
        """The differences behind the interval, as a sentence."""
        return f"Seed by seed: {', '.join(f'{difference:.{decimals}f}' for difference in self.differences)}."


def compare_paired(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = 0.95,
    interval: Literal["t", "bootstrap"] = "t",
    scale: float = 1.0,
) -> Comparison:
    """Compare two arms measured on the same seeds.

    Args:
        first: one number a seed.
        second: one number a seed, in the same order.
        confidence: of the interval, between 0 and 1.
        interval: "t" for few seeds, "bootstrap" for many.
        scale: factor on the differences, e.g. 100 to turn fractions into points.

    Raises:
        ValueError: if the arms differ in length, are empty or hold a number that is not finite; if `interval` is
            unknown.
    """
    a, b = _sample(first, "first"), _sample(second, "second")
    if a.size != b.size:
        raise ValueError(f"Paired arms need as many numbers: first has {a.size}, second {b.size}.")
    if interval not in ("t", "bootstrap"):
        raise ValueError(f'interval must be "t" or "bootstrap", got {interval!r}.')
    difference = scale * (a - b)
    estimate = t_interval if interval == "t" else bootstrap_interval
    return Comparison(tuple(difference.tolist()), estimate(difference, confidence), sign_test(difference))


def paired(
    table: pd.DataFrame, first: str, second: str, *, value: str = "accuracy", arm: str = "rule", **options
) -> Comparison:
    """Compare two arms of a long table with the columns `arm`, "seed" and `value`.

    Where the table has an "epoch" column, each run's last epoch counts.

    Args:
        table: one row a measurement.
        first: name of the arm to compare.
        second: name of the arm that is subtracted.
        value: column that is compared.
        arm: column that names the arms.
        options: as in `compare_paired`.

    Raises:
        ValueError: if an arm is missing or the two arms were not run on the same seeds.
    """
    if "epoch" in table.columns:
        table = table.sort_values("epoch").groupby([arm, "seed"], as_index=False).last()
    columns: Sequence[pd.Series] = [_arm(table, name, value, arm) for name in (first, second)]
    if not columns[0].index.equals(columns[1].index):
        seeds = [list(column.index) for column in columns]
        raise ValueError(f"{first!r} ran on seeds {seeds[0]}, {second!r} on {seeds[1]}: nothing to pair.")
    return compare_paired(columns[0].to_numpy(), columns[1].to_numpy(), **options)


def _arm(table: pd.DataFrame, name: str, value: str, arm: str) -> pd.Series:
    rows = table[table[arm] == name]
    if rows.empty:
        raise ValueError(f"No {arm} named {name!r}; the table has {sorted(table[arm].unique())}.")
    return pd.Series(list(rows[value]), index=pd.Index(list(rows["seed"]))).sort_index()
