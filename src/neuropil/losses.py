"""Losses that several chapters share.

Mean-reduced callables of (output, target), as `torch.nn.functional` has them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["half_squared_error", "soften"]


def half_squared_error(
    output: Float[Tensor, "batch *units"], target: Float[Tensor, "batch *units"]
) -> Float[Tensor, ""]:
    """Half the squared distance, summed over units, averaged over the batch: its output gradient is (o - y) / batch.

    Raises:
        ValueError: if the shapes differ (nothing is broadcast).
    """
    if output.shape != target.shape:
        raise ValueError(f"target has shape {tuple(target.shape)}, the output {tuple(output.shape)}.")
    return 0.5 * (output - target).square().sum() / len(output)


def soften(
    labels: Int[Tensor, " batch"], classes: int, top: float = 0.99, *, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch {classes}"]:
    """Turn class indices into probabilities: `top` on the class, the rest spread evenly over the others.

    Args:
        labels: class indices.
        classes: number of classes, at least 2.
        top: probability of the labelled class, in (0, 1]; 1 gives one-hot targets.
        dtype: of the probabilities.

    Raises:
        ValueError: if a label is outside 0..classes-1, or `top` outside (0, 1], or there are fewer than 2 classes.
    """
    if classes < 2:
        raise ValueError(f"classes must be at least 2, got {classes}.")
    if not 0 < top <= 1:
        raise ValueError(f"top must lie in (0, 1], got {top}.")
    if labels.numel() and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        wrong = labels[(labels < 0) | (labels >= classes)][0]
        raise ValueError(f"class {int(wrong)} among the labels, but there are {classes} classes (0 to {classes - 1}).")
    targets = torch.full((len(labels), classes), (1 - top) / (classes - 1), dtype=dtype, device=labels.device)
    return targets.scatter_(1, labels.long()[:, None], top)
