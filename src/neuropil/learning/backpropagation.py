"""Backpropagation in the dress of a learning rule: the baseline of the chapter."""

from collections.abc import Iterator

import torch
from torch import Tensor

from neuropil.learning.rule import LearningRule, Packet
from neuropil.learning.stages import Inputs, feed

__all__ = ["Backpropagation"]


class Backpropagation(LearningRule):
    """Exact gradient of the loss, equal to `loss_fn(net(x), y).backward()` to the last bit.

    Args:
        net: any module.
        loss_fn: mean-reduced loss of (output, target).

    Raises:
        ValueError: if there is no loss function, or no target.

    Source: Rumelhart, Hinton & Williams, Nature 323 (1986).
    """

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: the loss itself, with the graph of the whole net."""
        loss = self.required_loss()(feed(self.net, x), self.required_target(y))
        yield Packet([loss], [torch.ones_like(loss)], loss.detach())
