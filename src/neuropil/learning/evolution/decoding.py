"""Cross-temporal decoding: is what is known at one time written in the same code at another (Meyers et al. 2008)?

A decoder is trained on the population's activity at every time and tested at every time, on unseen samples. The
diagonal says when something is known; a square off it says that its code stands still, a bare diagonal that it moves.
The decoder is the plainest: the class whose mean pattern correlates best, every neuron standardised at its own time.
"""

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.model_selection import StratifiedKFold

__all__ = ["cross_temporal_decoding"]


def cross_temporal_decoding(
    activity: Float[np.ndarray, "samples time neurons"], labels: ArrayLike, *, folds: int = 5
) -> Float[np.ndarray, "time time"]:
    """Fraction of samples decoded correctly, by the time of training and of testing.

    Args:
        activity: rates; samples in an order that has nothing to do with their labels.
        labels: class of each sample.
        folds: of the cross-validation, stratified.

    Returns:
        (training time, testing time). Chance is the share of the largest class where the patterns tell nothing.

    Raises:
        ValueError: if there are fewer than two classes, or a class has fewer samples than folds, or shapes do not fit.

    Source: Miconi, ICML 2023 (arXiv 2112.08588), Fig. 4; Meyers et al., J. Neurophysiol. 100 (2008).
    """
    classes, codes = np.unique(np.asarray(labels), return_inverse=True)
    if codes.shape != activity.shape[:1]:
        raise ValueError(f"labels has shape {codes.shape} for {len(activity)} samples.")
    if len(classes) < 2:
        raise ValueError(f"Decoding needs two classes, the labels have {len(classes)}.")
    if folds < 2 or np.bincount(codes).min() < folds:
        raise ValueError(
            f"folds must be at least 2 and every class have as many samples, got {folds} folds and "
            f"{np.bincount(codes).tolist()} samples."
        )
    if not np.isfinite(activity).all():
        raise ValueError("activity holds numbers that are not finite.")
    right = np.zeros((activity.shape[1],) * 2)
    for train, test in StratifiedKFold(folds).split(activity, codes):
        shown, unseen = _standardised(activity[train]), _standardised(activity[test])
        means = np.stack([shown[codes[train] == code].mean(axis=0) for code in range(len(classes))])
        # Standardised across neurons, dot products of patterns are their correlations.
        scores = np.einsum("ctn,sun->tusc", _patterns(means), _patterns(unseen))
        right += (scores.argmax(axis=3) == codes[test]).sum(axis=2)
    return right / len(activity)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Mean 0 and deviation 1 over samples, for every neuron at every time; a silent neuron stays at 0."""
    return (values - values.mean(axis=0)) / (values.std(axis=0) + 1e-8)


def _patterns(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=-1, keepdims=True)
    return centred / (np.linalg.norm(centred, axis=-1, keepdims=True) + 1e-12)
