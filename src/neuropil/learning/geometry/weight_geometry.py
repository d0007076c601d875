"""Which geometry moved these weights? Read it off the same synapses before and after learning.

In the potential that learning took its steps in, the change of the dual variables

    Delta = grad phi(w_after) - grad phi(w_before)

is a sum of as many weakly dependent terms as there were samples, and so nearly Gaussian where weights are many more
than samples, and the samples are learnt; in any other potential it is not. Of every candidate, Delta is standardised
and compared with the normal distribution function Phi,

    distance = integral over [-5, 5] of |F(x) - Phi(x)| dx,      F the empirical distribution function

and the candidate of the smallest distance is the verdict. It means something only for the SAME synapses: two unrelated
Gaussian states differ by an exactly Gaussian vector, and the 2-norm wins without any learning. The relative change
|Delta| / |grad phi(w_before)| shows that; learning in a large network leaves it well below 1.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats
from sklearn.base import BaseEstimator
from torch import Tensor

from neuropil.learning.geometry.potentials import EUCLIDEAN, NegativeEntropy, PNorm, Potential

__all__ = ["WeightGeometry", "cdf_distance"]

CANDIDATES: tuple[Potential, ...] = (EUCLIDEAN, PNorm(3.0), NegativeEntropy())
GRID = np.linspace(-5, 5, 1000)
NORMAL = stats.norm.cdf(GRID)


def cdf_distance(x: ArrayLike | Tensor, *, centred: bool = True) -> float:
    """Distance of a sample from normal: the area between its distribution function and the standard normal one.

    It is the Wasserstein-1 distance, cut off at 5 standard deviations: 0 for a normal sample, and about
    0.7 / sqrt(size) for a finite one.

    Args:
        x: the sample, any shape; it is divided by its standard deviation.
        centred: whether its mean is subtracted first.

    Raises:
        ValueError: if the sample has fewer than two numbers, is constant or not finite.

    Source: Pogodin et al. 2024.
    """
    sample = _flat(x, "x")
    if sample.size < 2 or not np.isfinite(sample).all():
        raise ValueError(f"x must be at least two finite numbers, got {sample.size} with {_bad(sample)} not finite.")
    standard = np.sort(_standard(sample, centred))
    empirical = np.searchsorted(standard, GRID, side="right") / standard.size
    return float(np.trapezoid(np.abs(empirical - NORMAL), GRID))


class WeightGeometry(BaseEstimator):
    """Finds the potential in which a change of weights looks like learning.

    Args:
        potentials: candidates; None takes the 2-norm, the 3-norm and the negative entropy.

    Attributes:
        distance_: one row a weight tensor and candidate: tensor, potential, cdf_distance (of the centred change),
            cdf_distance_uncentred, relative_change, ks_p (Kolmogorov-Smirnov test of the standardised change; its
            moments are the sample's own, so it is too large, and with many synapses it is 0 for all), impossible
            (synapses whose change the candidate cannot make: a change of sign under negative entropy).
            NaN where synapses appeared or vanished, which is infinitely far under negative entropy.
        best_: the candidate of the smallest cdf_distance, mean over the tensors by their number of synapses.
        synapses_: number of synapses compared.
        absent_: number left out because they are 0 both before and after.

    Source: Pogodin et al. 2024.
    """

    def __init__(self, potentials: Sequence[Potential] | None = None):
        self.potentials = potentials

    def fit(self, w_before: Any, w_after: Any) -> "WeightGeometry":
        """Compare the change of the weights with normal under every candidate.

        Args:
            w_before: weights before learning: an array or tensor of any shape, or a mapping of names to them, such as
                a `state_dict`, of which the floating-point tensors of two or more axes count (not biases, gains and
                running statistics).
            w_after: the same synapses after learning.

        Returns:
            The estimator.

        Raises:
            ValueError: if shapes or names differ, weights are not finite or did not change, or no candidate is left.
            TypeError: if a candidate is no potential, or one of the two states is a mapping and the other is not.

        Warns:
            UserWarning: if the relative change under the best candidate is above 1: more than learning in a large
                network would do; or where a candidate is ruled out by synapses that appeared or vanished.
        """
        candidates = CANDIDATES if self.potentials is None else tuple(self.potentials)
        wrong = [candidate for candidate in candidates if not isinstance(candidate, Potential)]
        if wrong or not candidates:
            raise TypeError(f"potentials must be at least one Potential, such as PNorm(2), got {wrong or candidates}.")
        rows, synapses, absent = [], [], 0
        for name, before, after in _pairs(w_before, w_after):
            present = (before != 0) | (after != 0)
            absent += int((~present).sum())
            rows += [_row(name, candidate, before[present], after[present]) for candidate in candidates]
            synapses.append(int(present.sum()))
        table = pd.DataFrame(rows)
        weight = np.repeat(np.asarray(synapses, dtype=float), len(candidates)) / sum(synapses)
        means = np.reshape(weight * table["cdf_distance"].to_numpy(), (-1, len(candidates))).sum(axis=0)
        if np.isnan(means).all():
            raise ValueError("Synapses appeared or vanished, which no candidate allows: add a p-norm to `potentials`.")
        best = int(np.nanargmin(means))
        self.distance_ = table
        self.best_ = candidates[best]
        self.synapses_ = sum(synapses)
        self.absent_ = absent
        self._warn(candidates, means, table["relative_change"].to_numpy()[best :: len(candidates)])
        return self

    def _warn(self, candidates: Sequence[Potential], means: np.ndarray, changes: np.ndarray) -> None:
        out = [candidate.name for candidate, mean in zip(candidates, means, strict=True) if np.isnan(mean)]
        if out:
            warnings.warn(f"Synapses appeared or vanished: {', '.join(out)} is ruled out.", UserWarning, stacklevel=3)
        if changes.max() > 1:
            warnings.warn(
                f"Under the best candidate, {self.best_.name}, the dual variables changed by {changes.max():.2g} times "
                "their size. Where the two states are not the same synapses, the verdict means nothing.",
                UserWarning,
                stacklevel=3,
            )


def _row(name: str, potential: Potential, before: Float[Tensor, " n"], after: Float[Tensor, " n"]) -> dict[str, Any]:
    row = {"tensor": name, "potential": potential.name}
    impossible = 0 if potential.crosses_zero else int((before.sign() != after.sign()).sum())
    if not potential.crosses_zero and bool(((before == 0) | (after == 0)).any()):
        keys = ("cdf_distance", "cdf_distance_uncentred", "relative_change", "ks_p")
        return {**row, **dict.fromkeys(keys, np.nan), "impossible": impossible}
    dual = potential.grad(before)
    change = (potential.grad(after) - dual).numpy()
    if not np.isfinite(change).all():
        raise ValueError(f"Dual variables of {name} overflow under the {potential.name}: rescale both states alike.")
    size = float(np.abs(change).max())  # so that squares neither overflow nor vanish
    before_size = float(np.linalg.norm(dual.numpy() / size))
    return {
        **row,
        "cdf_distance": cdf_distance(change),
        "cdf_distance_uncentred": cdf_distance(change, centred=False),
        "relative_change": float(np.linalg.norm(change / size)) / before_size if before_size > 0 else np.inf,
        "ks_p": float(stats.kstest(_standard(change), "norm", method="asymp").pvalue),
        "impossible": impossible,
    }


def _standard(sample: np.ndarray, centred: bool = True) -> np.ndarray:
    sample = sample / (np.abs(sample).max() or 1.0)  # so that squares neither overflow nor vanish
    spread = sample.std()
    if spread <= 1e-12:
        raise ValueError("x is constant: its distance from normal is not defined.")
    return (sample - sample.mean() if centred else sample) / spread


def _pairs(before: Any, after: Any) -> list[tuple[str, Tensor, Tensor]]:
    """Weights of both states, as flat vectors in float64, checked."""
    if isinstance(before, Mapping) != isinstance(after, Mapping):
        raise TypeError(f"Two mappings or two arrays, got {type(before).__name__} and {type(after).__name__}.")
    if not isinstance(before, Mapping):
        return [_pair("weights", before, after)]
    names = [[name for name, value in state.items() if _is_weight(value)] for state in (before, after)]
    if set(names[0]) != set(names[1]):
        raise ValueError(f"Only one of the two states has the weights {sorted(set(names[0]) ^ set(names[1]))}.")
    if not names[0]:
        raise ValueError("The states hold no floating-point tensor of two or more axes.")
    return [_pair(name, before[name], after[name]) for name in names[0]]


def _is_weight(value: Any) -> bool:
    floating = value.is_floating_point() if isinstance(value, Tensor) else np.asarray(value).dtype.kind == "f"
    return floating and value.ndim > 1


def _pair(name: str, before: Any, after: Any) -> tuple[str, Tensor, Tensor]:
    shapes = [tuple(np.shape(state)) for state in (before, after)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name} has shape {shapes[0]} before and {shapes[1]} after: they are not the same synapses.")
    states = [_flat(state, name) for state in (before, after)]
    for when, state in zip(("before", "after"), states, strict=True):
        if not np.isfinite(state).all():
            raise ValueError(f"{name} has {_bad(state)} weights that are not finite {when} learning.")
    if states[0].size < 2 or not np.ptp(states[1] - states[0]):
        raise ValueError(f"{name} did not change, or all {states[0].size} synapses by the same: nothing to compare.")
    return name, torch.from_numpy(states[0]), torch.from_numpy(states[1])


def _flat(x: ArrayLike | Tensor, name: str) -> np.ndarray:
    values = x.detach().to("cpu", torch.float64).numpy() if isinstance(x, Tensor) else x
    try:
        return np.array(values, dtype=np.float64).ravel()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in a regular array, got {type(x).__name__}.") from error


def _bad(sample: np.ndarray) -> int:
    return int((~np.isfinite(sample)).sum())
