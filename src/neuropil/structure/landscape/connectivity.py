"""Linear mode connectivity: whether the straight line between two nets leaves the low loss of its ends.

    gamma(t) = (1 - t) theta + t theta',    mean = (E(theta) + E(theta')) / 2
    LMC      = mean - E(gamma(t*)),         t* = argmax |mean - E(gamma(t))| over the points between the ends

Below 0 there is a barrier, near 0 the two are well connected, above 0 the middle is better than the ends. (Yang et al.
2021, eq. 1; Zhou et al. 2023, section 3.) The ends are left out of the maximum: there the difference is half that of
the two errors, with a sign that only their order decides.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from neuropil.structure.masks import Masks
from neuropil.structure.weightspace.interpolation import Barrier, Batches, loss_barrier
from neuropil.structure.weightspace.states import Weights, named_tensors

__all__ = ["Connectivity", "mode_connectivity"]


@dataclass(frozen=True)
class Connectivity:
    """Errors on the line between two nets.

    Attributes:
        ts: places, from 0 to 1.
        errors: one a place, in the unit of what was evaluated.
    """

    ts: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def deviations(self) -> Float[np.ndarray, " points"]:
        """Mean error of the ends minus the error at each place: below 0 where the line is worse."""
        errors = np.asarray(self.errors)
        return (errors[0] + errors[-1]) / 2 - errors

    @property
    def value(self) -> float:
        """The deviation of largest size between the ends, with its sign; of several the one nearest the middle."""
        inner = self.deviations[1:-1]
        largest = np.flatnonzero(np.abs(inner) == np.abs(inner).max())
        places = np.asarray(self.ts)[1:-1][largest]
        # A barrier counts before a valley of equal size and place: the order of the two nets does not matter.
        best = min(range(len(largest)), key=lambda k: (round(abs(places[k] - 0.5), 9), inner[largest[k]]))
        return float(inner[largest[best]])

    @property
    def barrier(self) -> float:
        """The rise above the mean of the ends, at least 0 up to their own difference (see `loss_barrier`)."""
        return Barrier(self.ts, self.errors).barrier


def mode_connectivity(
    a: Weights,
    b: Weights,
    evaluate: Callable[[Any], float],
    points: int = 11,
    renorm: Batches | None = None,
    masks: Masks | None = None,
) -> Connectivity:
    """Measure the error on the line between two nets of one architecture.

    Args:
        a: a net or its state dict.
        b: weights of the same architecture.
        evaluate: error or loss of a net in evaluation mode, on training data in the paper; see `loss_barrier`.
        points: on the line, both ends included.
        renorm: batches with which statistics of batch norm are recomputed at every point; without, all nets with batch
            norm look badly connected.
        masks: of both ends, where they are pruned: the line between nets of different masks is denser than its ends.

    Raises:
        ValueError: if an end has weights outside the masks, there are fewer than 3 points, or as `loss_barrier`.

    Source: Yang et al., NeurIPS 2021 (arXiv 2107.11228); Zhou et al. 2023 (arXiv 2305.18383).
    """
    if points < 3:
        raise ValueError(f"points must be at least 3, two ends and one between, got {points}.")
    if masks is not None:
        for label, end in (("a", a), ("b", b)):
            _check_masked(named_tensors(end), masks, label)
    line = loss_barrier(a, b, evaluate, points, reset_norm=renorm)
    return Connectivity(line.lams, line.losses)


def _check_masked(tensors: dict[str, Tensor], masks: Masks, label: str) -> None:
    for name, mask in masks.items():
        if name not in tensors or tensors[name].shape != mask.shape:
            raise ValueError(f"{label} has no parameter {name!r} of shape {tuple(mask.shape)}.")
        hidden, fill = ~mask.to(tensors[name].device), masks.fill
        held = tensors[name][hidden]
        wanted = fill[name].to(held)[hidden] if isinstance(fill, dict) else 0.0
        stray = int((held != wanted).sum())
        if stray:
            raise ValueError(f"{label} has {stray} weights outside its mask in {name!r}: both ends need the same mask.")
