"""The control of every rule that claims to train hidden layers: only the last stage learns.

    h_i   output of stage i, never taught;      t_N = e     teaches the last stage on these random features

A rule that does not beat this baseline does not train the net.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from neuropil.learning.rule import LearningRule, Loss, Packet
from neuropil.learning.stages import Inputs, Stages

__all__ = ["Shallow"]


class Shallow(LearningRule):
    """Train the last stage by the true error and leave all others as they were drawn.

    Stages are cut as for `DirectFeedbackAlignment`, so that the two differ in the hidden signals alone. Weights that
    the last stage shares with an earlier one (a tied embedding) move.

    Args:
        net: any module that `Stages` can cut.
        loss_fn: mean-reduced loss of (output, target).
        points: as in `Stages`; the last of them is where learning begins.

    Raises:
        ValueError: if the net cannot be cut there.
    """

    def __init__(self, net: nn.Module, loss_fn: Loss | None = None, points: Sequence[str] | str | None = None):
        super().__init__(net, loss_fn)
        self.stages = Stages(net, points)

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet with one pair.

        Args:
            x: inputs, (batch, ...), or several arguments of the net as a tuple or mapping.
            y: targets, as the loss wants them.
        """
        output = self.stages(x)[-1]
        loss, error = self.output_error(output, y)
        yield Packet([output], [error], loss)
