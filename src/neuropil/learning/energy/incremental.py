"""Incremental predictive coding: activities and weights move together at every step, with no phases between.

    (dF/dh, dF/dtheta) at (h, theta)        one evaluation
    h_l <- h_l - rate * dF/dh_l,      theta <- optimizer(theta, dF/dtheta / batch)        both from it;   steps times

where predictive coding would move theta once, after the last h. Each half is a partial step of expectation or
maximisation on the same free energy (Neal & Hinton 1998). With momentum m the activities follow  v <- m v + dF/dh.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from neuropil.learning.energy.energies import clamp
from neuropil.learning.energy.predictive import PredictiveCoding
from neuropil.learning.energy.relaxation import Relaxed, advance, require_finite
from neuropil.learning.rule import Loss, Packet
from neuropil.learning.stages import Inputs

__all__ = ["IncrementalPredictiveCoding"]


class IncrementalPredictiveCoding(PredictiveCoding):
    """Predictive coding whose weights move at every step of inference.

    `learn` is the algorithm: it steps the optimizer `steps` times a batch. `backward` is its first-order approximation
    for any other training loop: the weights stay, and `.grad` gets the mean of the gradients along the way. To drive
    the steps yourself, loop over `packets(x, y)`: what you do to the weights between two packets, the next one sees.

    The optimizer's state lives through all steps and batches; activities and their momentum start anew with each batch.
    With the forward start the first gradients of early stages are exactly 0, and Adam answers the first that are not
    with steps of full size: `steps` should be at least the number of stages.

    Args:
        net: any module that `Stages` can cut.
        loss_fn: mean-reduced loss of (output, target): the energy of the output. `squared_energy` takes class indices.
        points: where to cut, as `Stages` has it.
        cut: for a Sequential: "activation" predicts f(W h) (the default), "preactivation" W f(h).
        steps: of activities and weights, a batch.
        rate: of the activities.
        momentum: of the activities, in [0, 1).
        nudge: weight of the loss in F, not 0; gradients are divided by it.

    Raises:
        ValueError: if an argument is out of range, there is no loss or no target, or the net cannot be cut.
        FloatingPointError: if inference diverges, with the step and the stage, before the weights see it.

    Source: Salvatori, Song, Yordanov, Millidge, Xu, Sha, Emde, Bogacz & Lukasiewicz, ICLR 2024, algorithm 1.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        points: Sequence[str] | str | None = None,
        cut: str = "activation",
        steps: int = 8,
        rate: float = 0.5,
        momentum: float = 0.0,
        nudge: float = 1.0,
    ):
        super().__init__(
            net, loss_fn, points=points, cut=cut, steps=steps, rate_own=rate, rate_above=rate, nudge=nudge, guard=False
        )
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}.")
        self.momentum = momentum

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet a step; the first has the loss of the feed-forward pass, the others 0."""
        with self._circuit(x) as circuit:
            predictions = circuit.start(x)
            self._expect(len(predictions))
            activities = predictions[:-1]
            evaluate = self._evaluate(circuit, clamp(self, predictions[-1], y))
            rate = torch.as_tensor(self.inference.own).to(predictions[-1])
            velocity: list[Tensor] | None = None
            errors, trace = [], []
            try:
                for step in range(self.inference.steps):
                    if step:
                        predictions = circuit.predict(activities, moved=True)
                    errors, energy = evaluate(activities, predictions)
                    if not math.isfinite(float(energy.sum())):
                        require_finite(energy, step, self.inference)
                    trace.append(energy)
                    pulled, (parameters, gradients) = circuit.pull_and_gradients(errors)
                    loss = energy[-1] / self.nudge if step == 0 else torch.zeros_like(energy[-1])
                    yield Packet(parameters, self._finished(circuit, parameters, gradients), loss)
                    if step == self.inference.steps - 1:
                        break
                    if self.momentum:
                        velocity = self._velocity(velocity, errors, pulled)
                        activities = [h - rate * v for h, v in zip(activities, velocity, strict=True)]
                    else:
                        activities = advance(activities, errors, pulled, rate, rate)
            finally:
                self.last = Relaxed(activities, errors, torch.stack(trace)) if trace else None

    def _velocity(self, velocity: list[Tensor] | None, errors: list[Tensor], pulled: list[Tensor]) -> list[Tensor]:
        slopes = [e - sent for e, sent in zip(errors, pulled, strict=False)]
        if velocity is None:
            return slopes
        return [self.momentum * v + slope for v, slope in zip(velocity, slopes, strict=True)]

    def backward(self, x: Inputs, y: Tensor | None = None, *, scale: float = 1.0) -> Tensor:
        """Add the mean of the gradients along inference at fixed weights to `.grad`.

        Args:
            x: inputs, (batch, ...).
            y: targets, (batch, ...).
            scale: factor on every gradient.

        Returns:
            The loss of the feed-forward pass.
        """
        return super().backward(x, y, scale=scale / self.inference.steps)
