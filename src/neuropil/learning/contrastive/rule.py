"""Rules that contrast phases: one method says what a phase teaches, a schedule says which phases come.

Every contrastive rule gives, for a state s that its network reached in a phase, pairs of outputs and teaching signals
whose gradient is g(s), the descent direction of the positive phase. The base class weighs them by the schedule:

    standard       .grad += (+1) g(s+) + (-1) g(s-)      one packet: s+ is stored until the negative phase is over
    random phases  .grad += weight g(s)                  one packet a phase: nothing is stored
    every step     .grad += weight share g(s_k)          one packet a step of the dynamics; with `learn` the weights
                                                         move while the network does

where `share` is 1/steps for clocked phases and the constant probability of switching for geometric ones.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor, nn

from neuropil.learning.contrastive.phases import Alternating, Phase, PhaseSchedule
from neuropil.learning.rule import LearningRule, Loss, Packet

__all__ = ["ContrastiveRule", "Signals"]


class Signals(NamedTuple):
    """What one phase teaches, before its weight.

    Attributes:
        outputs: stage outputs with a graph, as in a `Packet`.
        teaching: as many signals of the same shapes, signed as the positive phase wants them.
        loss: a scalar to watch.
    """

    outputs: list[Tensor]
    teaching: list[Tensor]
    loss: Tensor


class ContrastiveRule(LearningRule):
    """A rule that learns from phases of a schedule.

    Args:
        net: the network to train.
        loss_fn: mean-reduced loss of (output, target), for rules that need one.
        schedule: which phases come; None is Alternating, one whole contrast a call. With Bernoulli or Geometric a call
            is ONE phase, unbiased by itself, and moves the weights as far on average as a whole contrast.
        steps: of the dynamics in phases to which the schedule gives no length.
        update: "end" teaches once, by the state at the end of a phase; "every_step" teaches at every step.

    Raises:
        TypeError: if the schedule is none.
        ValueError: if steps is less than 1, or update unknown.

    Source: Williams, Bredenberg & Lajoie, Flexible phase dynamics for bio-plausible contrastive learning, ICML 2023.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        schedule: PhaseSchedule | None = None,
        steps: int = 1,
        update: str = "end",
    ):
        super().__init__(net, loss_fn)
        schedule = Alternating() if schedule is None else schedule
        if not isinstance(schedule, PhaseSchedule):
            raise TypeError(f"schedule must be a PhaseSchedule, got {type(schedule).__name__}.")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}.")
        if update not in ("end", "every_step"):
            raise ValueError(f'update must be "end" or "every_step", got {update!r}.')
        self.schedule = schedule
        self.steps = steps
        self.update = update

    @abstractmethod
    def signals(self, x: Tensor, y: Tensor | None, phase: Phase) -> Signals:
        """Run a phase from the state in which the network is, and say what its end teaches.

        Args:
            x: inputs, (batch, ...).
            y: targets, (batch, ...).
            phase: which one; its steps are always given here.
        """

    def length(self, phase: Phase) -> int:
        """Steps of a phase: the schedule's, or the rule's own."""
        return self.steps if phase.steps is None else phase.steps

    def packets(self, x: Tensor, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet a contrast or phase, or one a step.

        Args:
            x: inputs, (batch, ...).
            y: targets, (batch, ...).
        """
        phases = self.schedule.next()
        if self.update == "every_step":
            yield from self._at_every_step(x, y, phases)
            return
        stored = [(phase.weight, self.signals(x, y, self._timed(phase))) for phase in phases]
        yield weighted(stored)

    def _timed(self, phase: Phase) -> Phase:
        return phase._replace(steps=self.length(phase))

    def _at_every_step(self, x: Tensor, y: Tensor | None, phases: tuple[Phase, ...]) -> Iterator[Packet]:
        for phase in phases:
            steps = self.length(phase)
            weight = phase.weight * self.schedule.share(steps)
            for _ in range(steps):
                yield Packet(*self.signals(x, y, phase._replace(steps=1)), weight)


def weighted(stored: list[tuple[float, Signals]]) -> Packet:
    """One packet of what several phases teach, each by its weight.

    Args:
        stored: weight and signals of each phase.
    """
    if len(stored) == 1:
        weight, signals = stored[0]
        return Packet(*signals, weight)
    outputs = [output for _, signals in stored for output in signals.outputs]
    teaching = [weight * signal for weight, signals in stored for signal in signals.teaching]
    losses = [weight * signals.loss for weight, signals in stored]
    return Packet(outputs, teaching, sum(losses[1:], losses[0]))
