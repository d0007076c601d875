"""What learning rules for a network at rest share: the free point, and how an error vector becomes gradients.

    grad theta = (dG/d theta at rho*)^T delta / batch        and for the readout its ordinary gradient at the free point

so each connection learns from the sender's activity and the receiver's entry of delta alone.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from neuropil.learning.equilibrium.forces import check_targets
from neuropil.learning.equilibrium.network import FixedPointNetwork
from neuropil.learning.equilibrium.relaxation import Groups, Rest, masked
from neuropil.learning.rule import LearningRule, Loss, Packet
from neuropil.learning.settle import NotSettledError

__all__ = ["FixedPointRecord", "FixedPointRule"]


class FixedPointRecord(NamedTuple):
    """What the last batch did.

    Attributes:
        rest: the free point.
        error: delta by group, each (batch, *units); zero for samples that were not settled.
        settled: which samples were at rest, and had answered every nudge; the others taught nothing.
        asymmetry: the homeostatic loss; None where it plays no part.
    """

    rest: Rest
    error: Groups
    settled: Bool[Tensor, " batch"]
    asymmetry: Tensor | None = None

    @property
    def unsettled(self) -> int:
        """Number of samples that taught nothing."""
        return int((~self.settled).sum())


class FixedPointRule(LearningRule):
    """Trains a FixedPointNetwork by an error vector for its potentials.

    Args:
        net: the network.
        loss_fn: mean-reduced loss of (logits, target).
        free_steps: the most steps to the free point.
        nudge_steps: the most steps to every answer of the network.
        step: fraction of the field that a step takes, in (0, 1].
        tol: residual at which a relaxation may end early.

    Attributes:
        last: record of the last batch.

    Raises:
        TypeError: if `net` is no FixedPointNetwork.
        ValueError: if a number is out of range.
    """

    net: FixedPointNetwork  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and checked
    last: FixedPointRecord | None

    def __init__(self, net: nn.Module, loss_fn: Loss, free_steps: int, nudge_steps: int, step: float, tol: float):
        super().__init__(net, loss_fn)
        if not isinstance(net, FixedPointNetwork):
            raise TypeError(
                f"{type(self).__name__} trains a FixedPointNetwork, which comes to rest under a nudge; got "
                f"{type(net).__name__}. Build FixedPointNetwork((inputs, ..., classes)) or "
                "FixedPointNetwork.convolutional(...), or train a feed-forward net by another rule."
            )
        for name, count in {"free_steps": free_steps, "nudge_steps": nudge_steps}.items():
            if count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}.")
        if not 0 < step <= 1:
            raise ValueError(f"step must lie in (0, 1], got {step}.")
        if not tol > 0:
            raise ValueError(f"tol must be positive, got {tol}.")
        self.free_steps, self.nudge_steps, self.step, self.tol = free_steps, nudge_steps, step, tol
        self.last = None

    @abstractmethod
    def answer(self, rest: Rest, external: Groups, y: Tensor) -> tuple[Groups, Bool[Tensor, " batch"]]:
        """The error vector of each sample at the free point, and which samples have one."""

    def packets(self, x: Tensor, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: what drives every group with its error vector, and the readout with its gradient."""
        y = check_targets(self.required_target(y), len(x), self.net.readout.out_features)
        external = self.net.external(x)
        still = {group: sent.detach() for group, sent in external.items()}
        rest = self.rest(still)
        yield self.packet(rest, external, y, *self.answer(rest, still, y))

    @torch.no_grad()
    def error_vector(self, x: Tensor, y: Tensor) -> Groups:
        """Delta by group, (batch, *units): what a unit force on each potential would add to the sample's loss.

        Samples that have not settled have zeros; `last.settled` says which.

        Args:
            x: inputs.
            y: targets.

        Raises:
            NotSettledError: if more than half of the batch has not settled.
        """
        for _ in self.packets(x, y):
            pass  # the record of the last packet
        return self.record.error

    @property
    def record(self) -> FixedPointRecord:
        """The record of the last batch.

        Raises:
            ValueError: if there was none.
        """
        if self.last is None:
            raise ValueError(f"{type(self).__name__} has not seen a batch yet.")
        return self.last

    def predict(self, x: Tensor) -> Tensor:
        """Logits at the free point."""
        return self.net(x, steps=self.free_steps, tol=self.tol, step=self.step)

    def rest(self, external: Groups) -> Rest:
        """The free point, from what the input sends."""
        return self.net.rest(external, steps=self.free_steps, tol=self.tol, step=self.step)

    def packet(
        self,
        rest: Rest,
        external: Groups,
        y: Tensor,
        error: Groups,
        answered: Bool[Tensor, " batch"],
        weight: float = 1.0,
    ) -> Packet:
        """Pairs of what drives each group and its error vector; keeps the record."""
        settled = rest.settled & answered
        if 2 * int(settled.sum()) < len(settled):
            raise NotSettledError(
                f"{int((~settled).sum())} of {len(settled)} samples have not settled under the nudge, or were not at "
                f"rest before it (residual at rest {float(rest.residual.median()):.3g} in the median). Take more "
                "nudge_steps or free_steps, a smaller step, a smaller beta, or smaller kernels between the groups."
            )
        error = masked(error, settled)
        self.last = FixedPointRecord(rest, error, settled)
        drives = self.net.drives(rest.activity, external)
        logits = self.net.logits(rest.activity)
        loss, gradient = self.output_error(logits, y)
        outputs = [*drives.values(), logits]
        teaching = [
            *(error[group] / len(y) for group in drives),
            masked({"readout": gradient}, settled)["readout"],
        ]
        return Packet(outputs, teaching, loss, weight)
