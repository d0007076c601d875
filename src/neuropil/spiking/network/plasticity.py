"""Spike-timing-dependent plasticity of a projection.

Traces r1, r2 of the arrivals of a source and o1, o2 of the spikes of a target decay and grow by 1 at each event. In one
step, with the traces as they were before its spikes:

    arrival:  w <- w - o1 (A2- + A3- r2)          spike of the target:  w <- w + r1 (A2+ + A3+ o2)

each clipped to [low, high] at once; then the traces take the spikes in. Pair rules have A3 = 0 and no r2, o2. So pairs
in the same step count nothing, and it does not matter which of the two comes first. "Nearest" pairing sets a trace to 1
instead of raising it. With an eligibility time the changes go into a trace e of the synapse, de/dt = -e/tau, and
`Network.reward` adds R e to the weights.
"""

import math
from dataclasses import dataclass

from neuropil.neurons.ranges import require_finite, require_positive

__all__ = ["PairSTDP", "Plasticity", "RewardSTDP", "TripletSTDP"]


@dataclass(frozen=True)
class Plasticity:
    """What the engine needs of a rule; see `PairSTDP`, `TripletSTDP` and `RewardSTDP`."""

    low: float = 0.0
    high: float = math.inf
    nearest: bool = False

    def __post_init__(self) -> None:
        if math.isnan(self.low) or math.isnan(self.high) or not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low} and {self.high}.")
        require_positive(**{name: getattr(self, name) for name in self.times})
        require_finite(potentiation=self.potentiation, depression=self.depression)

    potentiation: float = 0.01
    depression: float = 0.0105
    tau_plus: float = 20.0
    tau_minus: float = 20.0

    @property
    def times(self) -> tuple[str, ...]:
        """Names of the time constants."""
        return ("tau_plus", "tau_minus")

    @property
    def triplet(self) -> tuple[float, float, float, float] | None:
        """(A3+, A3-, tau of r2, tau of o2), or None for pair rules."""
        return None

    @property
    def tau_eligibility(self) -> float | None:
        """Time constant of eligibility traces in ms, or None where weights change at once."""
        return None


@dataclass(frozen=True)
class PairSTDP(Plasticity):
    """Pairs of an arrival and a spike of the target.

    Args:
        low: smallest weight.
        high: largest weight.
        nearest: whether only the nearest spikes pair; otherwise all do.
        potentiation: A+, change per pair with the arrival first, times exp(-t/tau_plus).
        depression: A-, change per pair with the spike of the target first, times -exp(-t/tau_minus).
        tau_plus: ms.
        tau_minus: ms.

    Source: Song, Miller & Abbott, Nature Neuroscience 3 (2000); Morrison, Diesmann & Gerstner, Biol. Cybern. 98 (2008).
    """


@dataclass(frozen=True)
class TripletSTDP(Plasticity):
    """Pairs and triplets of spikes.

    Args:
        low: smallest weight.
        high: largest weight.
        nearest: whether only the nearest spikes count.
        potentiation: A2+.
        depression: A2-.
        tau_plus: ms, of r1.
        tau_minus: ms, of o1.
        potentiation3: A3+.
        depression3: A3-.
        tau_x: ms, of r2.
        tau_y: ms, of o2.

    Source: Pfister & Gerstner, Journal of Neuroscience 26 (2006), eqs. 2-4; defaults: their table 4, the minimal
    all-to-all model of visual cortex (A2+ = 0, A3- = 0).
    """

    potentiation: float = 0.0
    depression: float = 7.1e-3
    tau_plus: float = 16.8
    tau_minus: float = 33.7
    potentiation3: float = 6.5e-3
    depression3: float = 0.0
    tau_x: float = 101.0
    tau_y: float = 114.0

    @property
    def times(self) -> tuple[str, ...]:
        """Names of the time constants."""
        return ("tau_plus", "tau_minus", "tau_x", "tau_y")

    @property
    def triplet(self) -> tuple[float, float, float, float] | None:
        """(A3+, A3-, tau_x, tau_y)."""
        return self.potentiation3, self.depression3, self.tau_x, self.tau_y


@dataclass(frozen=True)
class RewardSTDP(Plasticity):
    """Pairs of spikes write an eligibility trace, and a reward turns it into weight.

    Args:
        low: smallest weight.
        high: largest weight.
        nearest: whether only the nearest spikes pair.
        potentiation: A+.
        depression: A-.
        tau_plus: ms.
        tau_minus: ms.
        eligibility: time constant of the eligibility trace, ms.

    Source: Izhikevich, Cerebral Cortex 17 (2007); Florian, Neural Computation 19 (2007).
    """

    eligibility: float = 1000.0

    @property
    def times(self) -> tuple[str, ...]:
        """Names of the time constants."""
        return ("tau_plus", "tau_minus", "eligibility")

    @property
    def tau_eligibility(self) -> float | None:
        """The eligibility time, ms."""
        return self.eligibility
