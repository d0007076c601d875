"""Sparse, class-specific activity: how concentrated it is, and which units form a class's ensemble.

Hoyer sparseness    S(a) = (sqrt(n) - ||a||_1 / ||a||_2) / (sqrt(n) - 1)      1: one unit, 0: all alike
class mean          m_c(u) = mean activity of unit u over the samples of class c
ensemble of c       "deviations"  m_c(u) > mean_u m_c + threshold sd_u m_c
                    "reliable"    active in more than half of c's samples, and m_c(u) > threshold max m
overlap             J(c, d) = |E_c and E_d| / |E_c or E_d|
share               sum of m_c over E_c / sum of m_c over all units
"""

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import validate_data
from torch import Tensor

__all__ = ["ClassEnsembles", "hoyer_sparseness"]

DEFAULTS = {"deviations": 2.0, "reliable": 0.25}


def hoyer_sparseness(a: Tensor, dim: int = -1) -> Tensor:
    """How concentrated activity is, whatever its scale.

    Args:
        a: activity, at least 2 units along `dim`; signs do not count.
        dim: the axis of the units.

    Returns:
        The shape of `a` without `dim`, between 0 (all units alike) and 1 (one unit); NaN where all are silent.

    Raises:
        ValueError: if there are fewer than 2 units.

    Source: Hoyer, J. Mach. Learn. Res. 5 (2004).
    """
    units = a.shape[dim]
    if units < 2:
        raise ValueError(f"Sparseness needs at least 2 units along dim {dim}, got shape {tuple(a.shape)}.")
    a = a.abs() if a.is_floating_point() else a.abs().to(torch.get_default_dtype())
    a = a / a.amax(dim, keepdim=True)  # squares of huge and tiny activities stay finite
    root = units**0.5
    return ((root - a.sum(dim) / a.square().sum(dim).sqrt()) / (root - 1)).clamp(0, 1)


class ClassEnsembles(BaseEstimator):
    """Which units belong to which class.

    Args:
        threshold: standard deviations for "deviations" (2 by default), fraction of the largest class mean for
            "reliable" (0.25 by default); None is that default.
        criterion: "deviations" compares a unit with the others under the same class, "reliable" asks that it respond to
            most samples of the class, and strongly.

    Attributes:
        classes_: labels, sorted, (classes,).
        means_: class means, (classes, units).
        members_: whether a unit is in a class's ensemble, (classes, units), bool.
        size_: fraction of the units in each ensemble, (classes,).
        overlap_: Jaccard index of every two ensembles, (classes, classes); two empty ones share nothing, 0.
        share_: fraction of a class's activity that its ensemble carries, (classes,); 0 for a silent class.

    Raises:
        ValueError: from `fit`, if the criterion is unknown or the threshold negative.

    Source: after Tosato et al., TMLR 2025, whose own criterion is not known to us.
    """

    # Not annotated: scikit-learn wants any value taken here, and complaints in `fit` only.
    def __init__(self, threshold=None, criterion="deviations"):
        self.threshold = threshold
        self.criterion = criterion

    def fit(self, X: Any, y: Any) -> "ClassEnsembles":
        """Find the ensembles.

        Args:
            X: activity, array or tensor, (samples, units), not negative where shares are to be read.
            y: class of each sample, array or tensor, (samples,).

        Returns:
            Itself.
        """
        if self.criterion not in DEFAULTS:
            raise ValueError(f"criterion must be one of {list(DEFAULTS)}, got {self.criterion!r}.")
        threshold = DEFAULTS[self.criterion] if self.threshold is None else self.threshold
        if threshold < 0:
            raise ValueError(f"threshold must not be negative, got {threshold}.")
        activity: Any
        activity, labels = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(labels)
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        groups = [activity[numbers == index] for index in range(len(self.classes_))]
        means = np.stack([group.mean(axis=0) for group in groups])
        if self.criterion == "deviations":
            self.members_ = means > means.mean(axis=1, keepdims=True) + threshold * means.std(axis=1, keepdims=True)
        else:
            often = np.stack([(group > 0).mean(axis=0) > 0.5 for group in groups])
            self.members_ = often & (means > threshold * means.max())
        self.means_ = means
        self.size_ = self.members_.mean(axis=1)
        inside = self.members_.astype(np.int64)
        both = inside @ inside.T
        either = inside.sum(axis=1)[:, None] + inside.sum(axis=1)[None, :] - both
        self.overlap_ = both / np.maximum(either, 1)
        total = means.sum(axis=1)
        carried = (means * self.members_).sum(axis=1)
        self.share_ = np.divide(carried, total, out=np.zeros_like(total), where=total != 0)
        return self
