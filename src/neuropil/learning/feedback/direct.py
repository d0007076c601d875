"""Direct feedback alignment: the output error, projected at random, straight to every stage.

    L      loss,  z output,  e = dL/dz
    h_i    output of stage i, computed from h_{i-1} without its graph,   i = 1..N;   h_N = z

    backpropagation      dL/dh_i = J_{i -> z}^T e          (J: Jacobian of all stages above)
    here                 t_i     = e B_i                   B_i random, fixed;   t_N = e

Only the signal between stages is replaced. Inside a stage, from h_{i-1} to h_i, the derivative is exact, and no stage
waits for another: there is no weight transport and no backward pass through the net.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from neuropil.learning.feedback.projections import FixedProjections
from neuropil.learning.rule import LearningRule, Loss, Packet
from neuropil.learning.stages import Inputs, Stages

__all__ = ["DirectFeedbackAlignment"]


class DirectFeedbackAlignment(LearningRule):
    """Teach every stage by a fixed random projection of the output error.

    Adaptive optimizers and rates want tuning of their own: these gradients have another scale and other statistics
    than those of backpropagation.

    Args:
        net: any module that `Stages` can cut.
        loss_fn: mean-reduced loss of (output, target).
        points: names of the modules after whose output a stage ends; "blocks" for the entries of the net's ModuleLists
            (a Transformer's blocks, with the exact derivative inside them); None for a Sequential.
        shared: one feedback matrix for all stages, see `FixedProjections`.
        init: distribution of its entries, "uniform" or "gaussian".
        normalise: whether it is scaled by the widths of stages and output.
        batch_dims: axes that count examples: (0, 1) where every token has an error of its own.
        hidden_reduction: "mean" sends hidden stages the error as the loss has it; "sum" the error of a sum over
            examples, rows of the output times larger, while the last stage keeps the mean.
        generator: source of the feedback; None is a generator with seed 0, never the global state.

    Attributes:
        stages: how the net is cut.
        projections: the feedback.

    Raises:
        ValueError: if an argument is out of range, if the net cannot be cut there (see `Stages`), or if the widths of
            its stages change from batch to batch.

    Source: Nokland, NeurIPS 2016, eq. 5; Launay, Poli, Boniface & Krzakala, NeurIPS 2020, eq. 3.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        points: Sequence[str] | str | None = None,
        *,
        shared: bool = True,
        init: str = "uniform",
        normalise: bool = True,
        batch_dims: Sequence[int] = (0,),
        hidden_reduction: str = "mean",
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn)
        if hidden_reduction not in ("mean", "sum"):
            raise ValueError(f'hidden_reduction must be "mean" or "sum", got {hidden_reduction!r}.')
        self.stages = Stages(net, points)
        self.hidden_reduction = hidden_reduction
        self.projections = FixedProjections(
            shared=shared, init=init, normalise=normalise, batch_dims=batch_dims, generator=generator
        )

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: every hidden stage with its projection, the last with the error itself.

        Args:
            x: inputs, (batch, ...), or several arguments of the net as a tuple or mapping.
            y: targets, as the loss wants them.
        """
        *hidden, output = self.stages(x)
        loss, error = self.output_error(output, y)
        sent = error * self.projections.rows(error) if self.hidden_reduction == "sum" else error
        teaching = self.projections(sent, dict(zip(self.stages.names, hidden, strict=True)))
        yield Packet([*hidden, output], [*teaching, error], loss)
