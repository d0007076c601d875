"""Which training samples a network agrees with, and how to weigh their classes.

confident:  argmax_c  mean over views of softmax(net(view(x_i)))_c  =  y_i
weight_c =  mean count / count_c  over the confident samples; the mean is over the classes that have any, and a class
            that has none gets 0
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = ["Confident", "confident_subset"]


class Confident(NamedTuple):
    """Samples whose label the network predicts.

    Attributes:
        indices: of the samples, ascending; there may be none.
        class_weights: for the loss, e.g. `cross_entropy(weight=...)`.
    """

    indices: Int64[Tensor, " confident"]
    class_weights: Float[Tensor, " classes"]


@torch.no_grad()
def confident_subset(
    net: nn.Module,
    data: Float[Tensor, " samples *shape"],
    labels: Int64[Tensor, " _"],
    *,
    views: Sequence[Callable[[Tensor], Tensor]] = (),
    batch_size: int = 1000,
) -> Confident:
    """Find the samples whose given label is the network's own prediction.

    The network predicts in evaluation mode, and every module is left in the mode it was in.

    Args:
        net: classifier, (batch, ...) to logits (batch, classes).
        data: training samples.
        labels: their given labels.
        views: random augmentations of a batch, whose predictions are averaged (two in the paper's code); none takes the
            samples as they are.
        batch_size: samples a forward pass.

    Raises:
        ValueError: if there are no samples, lengths differ, the batch size is less than 1, the net's output is not
            (batch, classes), or a label is none of its classes.

    Source: Bai et al. 2021 (PES), kept by Huang et al. 2023.
    """
    if not len(data) or len(data) != len(labels):
        raise ValueError(f"data and labels must be as many, at least one; got {len(data)} and {len(labels)}.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    agreed, classes = [], 0
    with _evaluating(net):
        for x, y in zip(data.split(batch_size), labels.split(batch_size), strict=True):
            seen = [net(view(x)) for view in views] or [net(x)]
            if seen[0].dim() != 2:
                raise ValueError(f"The net must return (batch, classes), got shape {tuple(seen[0].shape)}.")
            classes = seen[0].shape[1]
            mean = torch.stack([torch.softmax(logits, 1) for logits in seen]).mean(0)
            agreed.append(mean.argmax(1) == y)
    if not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(f"Labels must be 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}.")
    indices = torch.cat(agreed).nonzero().squeeze(1)
    counts = torch.bincount(labels[indices], minlength=classes).to(data.dtype)
    mean = counts.sum() / (counts > 0).sum().clamp(min=1)
    return Confident(indices, torch.where(counts > 0, mean / counts, 0.0))


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
