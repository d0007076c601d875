"""Predictive coding: relax the activities of a net between its input and its target, then learn from what is left.

Every stage l predicts p_l from the activity below; with e_l = h_l - p_l, the free energy of a sample is

    F = sum_{l<N} ||e_l||^2 / 2  +  nudge * L(p_N, y)

Inference lowers F over the hidden activities (see `relaxation`); then the weights of each stage get the gradient of F
at the relaxed activities, divided by the nudge:

    grad theta_l = -(1/nudge) mean_batch (dp_l/dtheta_l)^T e_l

As the nudge goes to 0 and inference to its end this is backpropagation (Whittington & Bogacz 2017).
"""

from collections.abc import Iterator, Sequence
from warnings import warn

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.learning.energy.chain import read_chain
from neuropil.learning.energy.circuit import Circuit, CutCircuit
from neuropil.learning.energy.energies import Clamp, clamp
from neuropil.learning.energy.relaxation import Evaluate, Inference, Relaxed, energies, relax
from neuropil.learning.rule import LearningRule, Loss, Packet
from neuropil.learning.stages import Inputs, Stages, undisturbed

__all__ = ["PredictiveCoding"]


class PredictiveCoding(LearningRule):
    """Relax the activities at the cuts, then give each stage the gradient of its own error.

    Chains of Linear layers and activations are relaxed in closed form, anything else that `Stages` cuts by autograd.
    Running statistics move once a batch, and dropout masks stay the same through inference.

    Args:
        net: any module that `Stages` can cut.
        loss_fn: mean-reduced loss of (output, target): the energy of the output. `squared_energy` takes class indices.
        points: where to cut, as `Stages` has it.
        cut: for a Sequential: "activation" predicts f(W h) (the default), "preactivation" W f(h).
        steps: of inference.
        rate_own: how fast an activity follows its own error.
        rate_above: how fast it follows what the stage above sends; equal rates are gradient descent on F.
        decay: fraction by which activities shrink a step.
        nudge: weight of the loss in F, not 0; the gradient is divided by it. Negative values push away from the target.
        init: "forward" starts from the feed-forward pass, "random" from standard normal activities.
        tol: stop inference when no activity moves by more than tol * (1 + |h|); None takes all steps.
        guard: take back steps that raise the energy, and halve the rates for the rest of the batch. It needs both
            rates above 0 and a positive nudge; otherwise, or without it, divergence is an error.
        generator: source of random activities; None is one of the rule's own, seeded with 0.

    Attributes:
        stages: the cuts.
        last: `Relaxed` of the last batch, None before the first.

    Raises:
        ValueError: if an argument is out of range, there is no loss or no target, or the net cannot be cut.
        FloatingPointError: if inference diverges, with the step and the stage.

    Source: Rao & Ballard, Nat. Neurosci. 2 (1999); Whittington & Bogacz, Neural Comput. 29 (2017), eqs. 2.17-2.19;
    the two rates: Alonso, Millidge, Krichmar & Neftci, NeurIPS 2022.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        points: Sequence[str] | str | None = None,
        cut: str = "activation",
        steps: int = 25,
        rate_own: float = 0.015,
        rate_above: float = 0.02,
        decay: float = 0.0,
        nudge: float = 1.0,
        init: str = "forward",
        tol: float | None = None,
        guard: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn)
        if nudge == 0 or not abs(nudge) < float("inf"):
            raise ValueError(f"nudge must be finite and not 0, got {nudge}.")
        if init not in ("forward", "random"):
            raise ValueError(f'init must be "forward" or "random", got {init!r}.')
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}.")
        watched = guard and rate_own > 0 and rate_above > 0 and nudge > 0
        self.inference = Inference(steps, rate_own, rate_above, decay, tol, watched)
        self.stages = Stages(net, points, cut)
        self.nudge, self.init = nudge, init
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.last: Relaxed | None = None
        self._warned = False

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: the parameters themselves with their gradients; the loss is that of the feed-forward pass."""
        with self._circuit(x) as circuit:
            self.last, loss = self._relaxed(circuit, x, y)
            parameters, gradients = circuit.gradients(self.last.errors)
            gradients = self._finished(circuit, parameters, gradients)
        yield Packet(parameters, gradients, loss)

    def learn(self, x: Inputs, y: Tensor | None, optimizer: Optimizer) -> Tensor:
        """Step the optimizer after every packet, as every rule does; gradients are put where they belong at once.

        Returns:
            The loss of the feed-forward pass.
        """
        loss: Tensor | None = None
        for packet in self.packets(x, y):
            optimizer.zero_grad()
            for parameter, gradient in zip(packet.outputs, packet.teaching, strict=True):
                if parameter.requires_grad:
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            optimizer.step()
            loss = packet.loss if loss is None else loss
        assert loss is not None
        return loss

    def relax(self, x: Inputs, y: Tensor) -> Relaxed:
        """Inference alone: nothing is learned, running statistics and the random state stay as they are.

        Args:
            x: inputs, (batch, ...).
            y: targets, (batch, ...).

        Returns:
            The relaxed activities, the errors there, and the energy of every stage along the way.

        Raises:
            ValueError, FloatingPointError: as the class says.
        """
        with undisturbed(self.net), self._circuit(x) as circuit:
            return self._relaxed(circuit, x, y)[0]

    def _circuit(self, x: Inputs) -> Circuit:
        chain = read_chain(self.stages, x)
        return CutCircuit(self.stages) if chain is None else chain

    def _relaxed(self, circuit: Circuit, x: Inputs, y: Tensor | None) -> tuple[Relaxed, Tensor]:
        predictions = circuit.start(x)
        self._expect(len(predictions) - 1)
        at = clamp(self, predictions[-1], y)
        loss, _ = at(predictions[-1])
        activities = predictions[:-1]
        if self.init == "random":
            activities = [self._random(h) for h in activities]
            predictions = circuit.predict(activities)
        return relax(circuit, activities, predictions, self._evaluate(circuit, at), self.inference), loss

    def _evaluate(self, circuit: Circuit, at: Clamp) -> Evaluate:
        def evaluate(activities: list[Tensor], predictions: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            loss, error = at(predictions[-1])
            if self.nudge != 1:
                loss, error = self.nudge * loss, self.nudge * error
            errors = [h - p for h, p in zip(activities, predictions[:-1], strict=True)]
            errors.append(error)
            return errors, energies(errors, loss)

        return evaluate

    def _finished(self, circuit: Circuit, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        return gradients if self.nudge == 1 else [gradient / self.nudge for gradient in gradients]

    def _random(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype, device=self.generator.device).to(
            like.device
        )

    def _expect(self, needed: int) -> None:
        """Say so when the error cannot reach the first stage: it climbs down one stage a step."""
        if not self._warned and self.init == "forward" and self.inference.steps < needed:
            self._warned = True
            warn(
                f"{type(self).__name__}: {self.inference.steps} steps of inference do not carry the error to the first "
                f"of {len(self.stages)} stages, which learns nothing: take at least {needed}.",
                stacklevel=6,
            )
