"""Schedules of phases: when a contrastive rule listens to the data, when to itself, and for how long.

A contrastive gradient is a difference of two expectations of one local quantity g(s), over states s reached with the
data held (positive phase) and without (negative phase):

    dL = E+[g(s)] - E-[g(s)]

    Alternating      +, -, +, - ...            weights +1, -1;   the standard, which stores s+ until s- is there
    Bernoulli(b)     P(positive) = b           weights +1/b, -1/(1 - b);   each phase alone is unbiased:
                                               b E+[g]/b - (1 - b) E-[g]/(1 - b) = dL
    Geometric(p, b)  as Bernoulli, and every step ends the phase with probability p: lengths of mean 1/p, no clock

A random schedule's variance, summed over the entries of g, is

    Var = E+||g||^2 / b + E-||g||^2 / (1 - b) - ||dL||^2

least at b = 1 / (1 + sqrt(E-||g||^2 / E+||g||^2)). Equal footing: one random phase moves the weights on average as far
as one whole pair of Alternating, so that at equal rates and equal numbers of positive phases the random schedule has
drifted 1/b times as far: compare it at b times the rate.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import torch

__all__ = ["Alternating", "Bernoulli", "Geometric", "Phase", "PhaseSchedule", "PhaseTable"]

POSITIVE, NEGATIVE = 1, -1

Lengths = TypeVar("Lengths", float, np.ndarray)


class Phase(NamedTuple):
    """One phase.

    Attributes:
        sign: +1 with the data held (clamped, nudged, real), -1 without (free, dreamt, wrong).
        weight: factor on g, sign included.
        steps: of the network's dynamics; None is as many as the rule takes by itself.
    """

    sign: int
    weight: float
    steps: int | None = None

    @property
    def positive(self) -> bool:
        """Whether the data are held."""
        return self.sign > 0


class PhaseTable(NamedTuple):
    """Many phases as arrays, for compiled loops.

    Attributes:
        signs: +1 or -1, int8.
        weights: factors on g, sign included, float64.
        steps: int64; 0 is as many as the rule takes by itself.
    """

    signs: np.ndarray
    weights: np.ndarray
    steps: np.ndarray


class PhaseSchedule(ABC):
    """An endless sequence of phases.

    Attributes:
        contrast: phases that one call of a rule goes through: 2 where pairs belong together, 1 where every phase
            teaches by itself.
    """

    contrast: int = 1

    @abstractmethod
    def draw(self, count: int) -> PhaseTable:
        """The next `count` phases."""

    @abstractmethod
    def share(self, steps: Lengths) -> Lengths:
        """What each step gets of its phase's weight where weights move at every step.

        Args:
            steps: of one phase, or of many in an array.
        """

    def next(self) -> tuple[Phase, ...]:
        """The phases of one call of a rule."""
        signs, weights, steps = self.draw(self.contrast)
        return tuple(
            Phase(sign, weight, length or None)
            for sign, weight, length in zip(signs.tolist(), weights.tolist(), steps.tolist(), strict=True)
        )

    def __iter__(self) -> Iterator[Phase]:
        while True:
            yield from self.next()


class Alternating(PhaseSchedule):
    """Positive and negative phase in turn, the same length, weights +1 and -1: the standard.

    Args:
        steps: of each phase; None is as many as the rule takes by itself.

    Raises:
        ValueError: if steps is less than 1.
    """

    contrast = 2

    def __init__(self, steps: int | None = None):
        self.steps = _checked_steps(steps)

    def __repr__(self) -> str:
        return f"Alternating(steps={self.steps})"

    def draw(self, count: int) -> PhaseTable:
        """The next `count` phases, positive first; an even number keeps pairs whole.

        Raises:
            ValueError: if count is odd or less than 2.
        """
        if count < 2 or count % 2:
            raise ValueError(f"count must be an even number of phases, got {count}: Alternating goes by pairs.")
        signs = np.tile(np.array([POSITIVE, NEGATIVE], np.int8), count // 2)
        return PhaseTable(signs, signs.astype(np.float64), np.full(count, self.steps or 0, np.int64))

    def share(self, steps: Lengths) -> Lengths:
        """One over the length: a pair moves the weights by as much as without steps."""
        return 1 / steps


class Bernoulli(PhaseSchedule):
    """Every phase drawn by itself, weighted by its inverse probability: importance-sampled discrete phases.

    Args:
        b: probability of the positive phase, between 0 and 1.
        steps: of each phase; None is as many as the rule takes by itself.
        generator: source of the draws (on the CPU); None is one of the schedule's own, seeded with 0.

    Raises:
        ValueError: if b is not inside (0, 1), or steps is less than 1.

    Source: Williams, Bredenberg & Lajoie, Flexible phase dynamics for bio-plausible contrastive learning, ICML 2023.
    """

    def __init__(self, b: float = 0.5, *, steps: int | None = None, generator: torch.Generator | None = None):
        if not 0 < b < 1:
            raise ValueError(f"b, the probability of the positive phase, must lie inside (0, 1), got {b}.")
        self.b = b
        self.steps = _checked_steps(steps)
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def __repr__(self) -> str:
        return f"{type(self).__name__}(b={self.b:g}, steps={self.steps})"

    def _table(self, positive: np.ndarray, steps: np.ndarray) -> PhaseTable:
        signs = np.where(positive, POSITIVE, NEGATIVE).astype(np.int8)
        return PhaseTable(signs, np.where(positive, 1 / self.b, -1 / (1 - self.b)), steps)

    def draw(self, count: int) -> PhaseTable:
        """The next `count` phases: the same in one draw as in many."""
        positive = torch.rand(count, generator=self.generator, dtype=torch.float64).numpy() < self.b
        return self._table(positive, np.full(count, self.steps or 0, np.int64))

    def share(self, steps: Lengths) -> Lengths:
        """One over the length, which is fixed."""
        return 1 / steps


class Geometric(Bernoulli):
    """Phases of random sign and random length: at every step the phase ends with probability `p_switch`.

    The phase that follows is drawn anew, so it may have the same sign. Where weights move at every step they do so at a
    constant rate, `p_switch` of the phase's weight: long phases count for more, and nobody needs to know how long.

    Args:
        p_switch: probability of ending at each step, in (0, 1]; the mean length is its inverse.
        b: probability of the positive phase, between 0 and 1.
        generator: source of the draws (on the CPU); None is one of the schedule's own, seeded with 0.

    Raises:
        ValueError: if p_switch is not in (0, 1], or b not inside (0, 1).

    Source: Williams, Bredenberg & Lajoie, Flexible phase dynamics for bio-plausible contrastive learning, ICML 2023.
    """

    def __init__(self, p_switch: float, b: float = 0.5, *, generator: torch.Generator | None = None):
        super().__init__(b, generator=generator)
        if not 0 < p_switch <= 1:
            raise ValueError(f"p_switch must lie in (0, 1], got {p_switch}.")
        self.p_switch = p_switch

    def __repr__(self) -> str:
        return f"Geometric(p_switch={self.p_switch:g}, b={self.b:g})"

    def draw(self, count: int) -> PhaseTable:
        """The next `count` phases: the same in one draw as in many."""
        uniform = torch.rand((count, 2), generator=self.generator, dtype=torch.float64).numpy()
        if self.p_switch == 1:
            steps = np.ones(count, np.int64)
        else:  # P(steps > k) = (1 - p)^k
            steps = 1 + np.floor(np.log1p(-uniform[:, 1]) / math.log1p(-self.p_switch)).astype(np.int64)
        return self._table(uniform[:, 0] < self.b, steps)

    def share(self, steps: Lengths) -> Lengths:
        """The probability of ending, whatever the length turns out to be."""
        return 0 * steps + self.p_switch


def _checked_steps(steps: int | None) -> int | None:
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    return steps
