"""When how much is kept: densities as functions of the number of optimizer steps.

    Cubic       d(t) = d_f + (d_i - d_f) (1 - p)^3,  p = (t - t_0) / (t_f - t_0) between t_0 and t_f
    Constant    d
    OneShot     1 before a step, d from it on
    Iterative   (1 - f)^k at the k-th event: a fraction f of what is left goes each time

Events fall on multiples of `every`. At the first event at or after t_f the cubic schedule is at d_f exactly: the
official code of GraNet ends one event short of it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from neuropil.neurons.ranges import require

__all__ = ["Constant", "CosineDecay", "Cubic", "Iterative", "OneShot", "Schedule"]


class Schedule(ABC):
    """A density for every step. Write your own by `density`, and `initial` where it starts below 1.

    Attributes:
        initial: density before the first step.
    """

    initial: float = 1.0

    @abstractmethod
    def density(self, step: int) -> float | None:
        """The density that an event at a step prunes to; None prunes nothing."""

    def is_event(self, step: int, every: int) -> bool:
        """Whether anything is pruned or regrown at a step, counted from 1."""
        return step % every == 0


@dataclass(frozen=True)
class Cubic(Schedule):
    """Gradual pruning: fast while much can go, slow at the end.

    Attributes:
        start: first step of the schedule; there are no events before.
        end: from here on the density is `final`.
        initial: density at the start, in (0, 1].
        final: density at the end, in (0, initial].

    Raises:
        ValueError: if a density is out of range, initial < final, or not 0 <= start < end.

    Source: Zhu & Gupta 2017, eq. 1.
    """

    start: int
    end: int
    initial: float = 1.0
    final: float = 0.1

    def __post_init__(self) -> None:
        _check_density(initial=self.initial, final=self.final)
        if self.initial < self.final:
            raise ValueError(f"initial must be at least final, got {self.initial} and {self.final}.")
        if not 0 <= self.start < self.end:
            raise ValueError(f"Pruning needs 0 <= start < end, got {self.start} and {self.end}.")

    def density(self, step: int) -> float | None:
        """See the module."""
        if step < self.start:
            return None
        if step >= self.end:
            return self.final
        left = 1 - (step - self.start) / (self.end - self.start)
        return self.final + (self.initial - self.final) * left**3

    def is_event(self, step: int, every: int) -> bool:
        """Multiples of `every` from the start on."""
        return step >= self.start and step % every == 0


class Constant(Schedule):
    """One density throughout: what is pruned is regrown (SET, RigL), or nothing changes (static masks)."""

    def __init__(self, density: float):
        _check_density(density=density)
        self.initial = density

    def density(self, step: int) -> float | None:
        """The same at every step."""
        return self.initial


class OneShot(Schedule):
    """Everything at one step, whether or not it is a multiple of `every`.

    Args:
        step: from 1.
        density: from that step on, in (0, 1].

    Raises:
        ValueError: if the density is out of range, or step is less than 1.
    """

    def __init__(self, step: int, density: float):
        _check_density(density=density)
        if step < 1:
            raise ValueError(f"step must be at least 1, got {step}: masks before training are allocated.")
        self.step, self.final = step, density

    def density(self, step: int) -> float | None:
        """None before the step."""
        return self.final if step >= self.step else None

    def is_event(self, step: int, every: int) -> bool:
        """The step itself, and multiples of `every` after it."""
        return step == self.step or (step > self.step and step % every == 0)


@dataclass(frozen=True)
class Iterative(Schedule):
    """A fraction of what is left goes at every event, down to `final`.

    Attributes:
        fraction: in (0, 1).
        every: steps between events; it goes before the sparsifier's own.
        final: density at which it stops.
    """

    fraction: float
    every: int
    final: float = 0.0

    def __post_init__(self) -> None:
        require("fraction", self.fraction, 0.0, 1.0, ends=(False, False))
        require("final", self.final, 0.0, 1.0)
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}.")

    def density(self, step: int) -> float | None:
        """(1 - fraction)^k after k events, not below `final`."""
        return max((1 - self.fraction) ** (step // self.every), self.final)

    def is_event(self, step: int, every: int) -> bool:
        """Multiples of its own `every`."""
        return step % self.every == 0


@dataclass(frozen=True)
class CosineDecay:
    """A fraction that falls from `start` to `end` along half a cosine in `total` steps, and stays there.

    Raises:
        ValueError: if a fraction lies outside [0, 1), or total is less than 1.
    """

    start: float
    end: float
    total: int

    def __post_init__(self) -> None:
        require("start", self.start, 0.0, 1.0, ends=(True, False))
        require("end", self.end, 0.0, 1.0, ends=(True, False))
        if self.total < 1:
            raise ValueError(f"total must be at least 1, got {self.total}.")

    def __call__(self, step: int) -> float:
        """The fraction at a step."""
        share = min(max(step / self.total, 0.0), 1.0)
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * share)) / 2


def _check_density(**densities: float) -> None:
    for name, density in densities.items():
        require(name, density, 0.0, 1.0, ends=(False, True))
