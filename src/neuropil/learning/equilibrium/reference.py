"""The true error vector of a network at rest, and how far another one is from it.

    delta = (I - D W^T)^-1 D g,     iterated as   delta <- delta + step (D W^T delta + D g - delta)

from zero. It is recurrent backpropagation (Almeida 1987; Pineda 1987), and the same as backpropagation through time
over so many steps taken at the free point.
"""

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from neuropil.learning.equilibrium.activations import slope
from neuropil.learning.equilibrium.forces import output_force
from neuropil.learning.equilibrium.learner import FixedPointRule
from neuropil.learning.equilibrium.relaxation import Groups, Rest
from neuropil.learning.rule import Loss

__all__ = ["RecurrentBackprop", "error_cosine"]


class RecurrentBackprop(FixedPointRule):
    """Trains a FixedPointNetwork by the gradient of its loss at rest.

    Args:
        net: the network.
        loss_fn: mean-reduced loss of (logits, target).
        free_steps: the most steps to the free point.
        nudge_steps: the most steps of the adjoint system.
        step: fraction of the field that a step takes, in (0, 1].
        tol: residual at which a relaxation may end early.

    Attributes:
        last: record of the last batch.

    Raises:
        TypeError: if `net` is no FixedPointNetwork.
        ValueError: if a number is out of range; on a batch of which more than half does not settle (NotSettledError).

    Source: Pineda, Phys. Rev. Lett. 59 (1987); Laborieux & Zenke 2024 (arXiv 2309.02214), section 3.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss,
        free_steps: int = 150,
        nudge_steps: int = 20,
        step: float = 0.5,
        tol: float = 1e-6,
    ):
        super().__init__(net, loss_fn, free_steps, nudge_steps, step, tol)

    def answer(self, rest: Rest, external: Groups, y: Tensor) -> tuple[Groups, Bool[Tensor, " batch"]]:
        """Solve the adjoint system."""
        with torch.no_grad():
            force = output_force(self.net.readout, self.required_loss(), rest.activity["out"], y)
            gradient = {group: torch.zeros_like(u) for group, u in rest.potentials.items()}
            gradient["out"] = force * slope(self.net.activation, rest.potentials["out"])
        return self.net.adjoint(rest, gradient, steps=self.nudge_steps, tol=self.tol, step=self.step)


def error_cosine(
    rule: FixedPointRule, x: Tensor, y: Tensor, *, reference: FixedPointRule | None = None, hidden: bool = True
) -> float:
    """Mean over samples of the cosine between two rules' error vectors.

    Args:
        rule: the rule to judge.
        x: inputs, (batch, ...).
        y: targets.
        reference: rule on the same network; None for RecurrentBackprop with the rule's own steps.
        hidden: leave out the last group, where the two agree best.

    Returns:
        The cosine over the samples that settled under both rules and have an error; NaN if there are none.

    Raises:
        ValueError: if the reference trains another network, or there is no hidden group.
    """
    if reference is None:
        reference = RecurrentBackprop(
            rule.net, rule.required_loss(), rule.free_steps, rule.nudge_steps, rule.step, rule.tol
        )
    if reference.net is not rule.net:
        raise ValueError("The reference trains another network: make both rules on the same one.")
    chosen = [group for group in rule.net.groups if not (hidden and group == "out")]
    if not chosen:
        raise ValueError("The network has no hidden group: pass hidden=False.")
    ours, theirs = (
        torch.cat([error[group].flatten(1) for group in chosen], 1).double()
        for error in (rule.error_vector(x, y), reference.error_vector(x, y))
    )
    norms = ours.norm(dim=1) * theirs.norm(dim=1)
    both = rule.record.settled & reference.record.settled & (norms > 0)
    return float(((ours * theirs).sum(1)[both] / norms[both]).mean())
