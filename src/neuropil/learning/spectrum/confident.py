"""Samples whose label the net itself would give, and class weights that make up for what is missing.

S   = {i : argmax_c p(c | x_i) = label_i}        p: probabilities of the net, mean over augmented views
w_c = mean_c' n_c' / n_c                         n_c: samples of class c in S;  w_c = 0 where n_c = 0
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Confident", "confident_subset"]


class Confident(NamedTuple):
    """What the net believes.

    Attributes:
        indices: of the samples, ascending; none where the net agrees with no label.
        class_weights: for the loss, 0 for a class without samples.
    """

    indices: Int[Tensor, " chosen"]
    class_weights: Float[Tensor, " classes"]


@torch.no_grad()
def confident_subset(
    net: nn.Module,
    data: Float[Tensor, "samples *shape"],
    labels: Int[Tensor, " labels"],
    *,
    augment: Callable[[Tensor], Tensor] | None = None,
    views: int = 2,
    batch_size: int = 1000,
) -> Confident:
    """Find the samples whose given label is the net's prediction.

    The net is evaluated in eval mode and left in the mode in which it came.

    Args:
        net: returns logits, (batch, classes).
        data: samples.
        labels: as given, some perhaps wrong.
        augment: makes a random view of a batch; then the probabilities of several views are averaged. None looks at the
            samples as they are.
        views: how many views, where there are such.
        batch_size: samples at a time.

    Raises:
        ValueError: if there are not as many samples as labels or none at all, a number is less than 1, or a label is
            outside the net's classes.
        FloatingPointError: if the net's probabilities are not finite.

    Source: Bai et al., NeurIPS 2021 (confident samples, class weights).
    """
    if len(data) != len(labels) or not len(data):
        raise ValueError(f"{len(data)} samples but {len(labels)} labels: wanted as many, and at least one.")
    if views < 1 or batch_size < 1:
        raise ValueError(f"views and batch_size must be at least 1, got {views} and {batch_size}.")
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        parts = [_probabilities(net, part, augment, views) for part in data.split(batch_size)]
    finally:
        for module, mode in modes:
            module.training = mode
    probabilities = torch.cat(parts)
    if not bool(torch.isfinite(probabilities).all()):
        raise FloatingPointError(f"{type(net).__name__} gives probabilities that are not finite: it has diverged.")
    classes = probabilities.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels run from {int(labels.min())} to {int(labels.max())}, the net has {classes} classes.")
    indices = (probabilities.argmax(1) == labels).nonzero().squeeze(1)
    counts = torch.bincount(labels[indices], minlength=classes).to(probabilities)
    return Confident(indices, torch.where(counts > 0, counts.mean() / counts.clamp(min=1), 0.0))


def _probabilities(net: nn.Module, x: Tensor, augment: Callable[[Tensor], Tensor] | None, views: int) -> Tensor:
    if augment is None:
        return net(x).softmax(1)
    return torch.stack([net(augment(x)).softmax(1) for _ in range(views)]).mean(0)
