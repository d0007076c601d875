"""Synapses: what an arriving spike does in time (dynamics), and what that does to the neuron (output).

Dynamics of a receptor class, w the weight of an arriving spike:

    Delta               the potential jumps by w
    Exponential         dg/dt = -g/tau,                                 g += w
    Alpha               dg/dt = -g/tau + e x/tau,  dx/dt = -x/tau,      x += w; peak w after tau
    DualExponential     dg/dt = -g/tau_decay + c x,  dx/dt = -x/tau_rise,  x += w; peak w
    NMDA                dg/dt = -g/tau_decay + alpha x (1 - g),  dx/dt = -x/tau_rise,  x += 1 (per presynaptic neuron)

The first four are linear, so all synapses of a class onto a neuron share one g, whatever their number. NMDA saturates:
it keeps one g per presynaptic neuron, and the neuron receives sum_i w_i g_i.

Outputs, in the unit of the neuron's potential (LIF) or current:

    CUBA                I = g
    COBA                I = g (E - v)
    MagnesiumBlock      I = g B(v) (E - v),   B = 1 / (1 + [Mg]/3.57 exp(-0.062 v))
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from neuropil.neurons.ranges import require, require_finite, require_positive

__all__ = [
    "COBA",
    "CUBA",
    "NMDA",
    "Alpha",
    "Delta",
    "DualExponential",
    "Exponential",
    "LinearSynapse",
    "MagnesiumBlock",
    "Output",
    "Propagator",
    "Synapse",
]


class Propagator(NamedTuple):
    """One step of a linear synapse under a membrane that leaks to a fraction a of its potential.

    g <- decay g + inflow x;  x <- decay_x x  (x None in synapses of one variable);
    the potential gains gain g + gain_x x, with g and x before the step, exactly.
    """

    decay: float
    inflow: float
    decay_x: float
    gain: float
    gain_x: float


@dataclass(frozen=True)
class Synapse:
    """Dynamics of a receptor class."""


@dataclass(frozen=True)
class LinearSynapse(Synapse, ABC):
    """Synapse whose variables all synapses onto a neuron share."""

    @property
    def variables(self) -> int:
        """1: g; 2: g and x."""
        return 1

    @abstractmethod
    def propagator(self, dt: float, tau_membrane: float | None = None) -> Propagator:
        """Exact step of dt ms, and what it adds to a membrane of time constant tau (ms), tau dv/dt = -v + g."""


@dataclass(frozen=True)
class _Kinetic(LinearSynapse):
    """Synapse whose variables decay in time."""

    @property
    @abstractmethod
    def rates(self) -> tuple[float, float, float]:
        """(1/tau of g, flow from x to g, 1/tau of x), per ms."""

    def propagator(self, dt: float, tau_membrane: float | None = None) -> Propagator:
        """See `LinearSynapse.propagator`."""
        decay_rate, flow, decay_rate_x = self.rates
        decay, decay_x = math.exp(-dt * decay_rate), math.exp(-dt * decay_rate_x) if self.variables == 2 else 0.0
        inflow = flow * _pair(decay_rate, decay_rate_x, dt) if self.variables == 2 else 0.0
        if tau_membrane is None:
            return Propagator(decay, inflow, decay_x, 0.0, 0.0)
        leak = 1.0 / tau_membrane
        gain = leak * _pair(leak, decay_rate, dt)
        gain_x = leak * flow * _triple(leak, decay_rate, decay_rate_x, dt) if self.variables == 2 else 0.0
        return Propagator(decay, inflow, decay_x, gain, gain_x)


@dataclass(frozen=True)
class Delta(LinearSynapse):
    """A jump of the potential by the weight in the step of the arrival; lost on a refractory neuron."""

    def propagator(self, dt: float, tau_membrane: float | None = None) -> Propagator:
        """The whole weight goes into the potential at once."""
        return Propagator(0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Exponential(_Kinetic):
    """A jump that decays exponentially.

    Args:
        tau: time constant, ms, positive.

    Raises:
        ValueError: if tau is not positive and finite.
    """

    tau: float

    def __post_init__(self) -> None:
        require_positive(tau=self.tau)

    @property
    def rates(self) -> tuple[float, float, float]:
        """See `_Kinetic.rates`."""
        return 1.0 / self.tau, 0.0, 0.0


@dataclass(frozen=True)
class Alpha(_Kinetic):
    """An alpha function, w t/tau exp(1 - t/tau).

    Args:
        tau: time to the peak, ms, positive.

    Raises:
        ValueError: if tau is not positive and finite.
    """

    tau: float

    def __post_init__(self) -> None:
        require_positive(tau=self.tau)

    @property
    def variables(self) -> int:
        """Both g and x."""
        return 2

    @property
    def rates(self) -> tuple[float, float, float]:
        """See `_Kinetic.rates`."""
        return 1.0 / self.tau, math.e / self.tau, 1.0 / self.tau


@dataclass(frozen=True)
class DualExponential(_Kinetic):
    """A rise and a decay, scaled so that the peak is the weight.

    Args:
        tau_rise: ms, positive.
        tau_decay: ms, longer than tau_rise.

    Raises:
        ValueError: if the times are not positive and in this order.
    """

    tau_rise: float
    tau_decay: float

    def __post_init__(self) -> None:
        require_positive(tau_rise=self.tau_rise, tau_decay=self.tau_decay)
        if not self.tau_rise < self.tau_decay:
            raise ValueError(f"tau_rise must be below tau_decay, got {self.tau_rise} and {self.tau_decay}; see Alpha.")

    @property
    def variables(self) -> int:
        """Both g and x."""
        return 2

    @property
    def rates(self) -> tuple[float, float, float]:
        """See `_Kinetic.rates`; the inflow makes the peak 1."""
        rise, decay = 1.0 / self.tau_rise, 1.0 / self.tau_decay
        peak = math.log(rise / decay) / (rise - decay)
        height = (math.exp(-decay * peak) - math.exp(-rise * peak)) / (rise - decay)
        return decay, 1.0 / height, rise


@dataclass(frozen=True)
class NMDA(Synapse):
    """Saturating kinetics with one gating variable per presynaptic neuron.

    Args:
        tau_decay: ms, positive.
        tau_rise: ms, positive.
        alpha: 1/ms, positive.

    Raises:
        ValueError: if a constant is not positive and finite.

    Source: Wang, Journal of Neuroscience 19 (1999); Wang, Neuron 36 (2002).
    """

    tau_decay: float = 100.0
    tau_rise: float = 2.0
    alpha: float = 0.5

    def __post_init__(self) -> None:
        require_positive(tau_decay=self.tau_decay, tau_rise=self.tau_rise, alpha=self.alpha)


@dataclass(frozen=True)
class Output:
    """What a receptor's g does to the neuron."""


@dataclass(frozen=True)
class CUBA(Output):
    """Current-based: g is a current (a drive in mV for LIF neurons)."""


@dataclass(frozen=True)
class COBA(Output):
    """Conductance-based.

    Args:
        reversal: E, mV, finite. For LIF neurons g is in units of the leak conductance.
    """

    reversal: float

    def __post_init__(self) -> None:
        require_finite(reversal=self.reversal)


@dataclass(frozen=True)
class MagnesiumBlock(COBA):
    """Conductance-based with the voltage-dependent block of NMDA receptors.

    Args:
        reversal: E, mV, finite.
        magnesium: concentration, mM, not negative.

    Source: Jahr & Stevens, Journal of Neuroscience 10 (1990).
    """

    reversal: float = 0.0
    magnesium: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("magnesium", self.magnesium, 0.0, math.inf, ends=(True, False))


def _pair(p: float, q: float, t: float) -> float:
    """Convolution of exp(-p t) and exp(-q t) at t."""
    if abs(p - q) * t < 1e-6:
        mean, half = 0.5 * (p + q), 0.5 * (p - q) * t
        return t * math.exp(-mean * t) * (1.0 + half * half / 6.0)
    return math.exp(-q * t) * -math.expm1(-(p - q) * t) / (p - q)


def _triple(p: float, q: float, r: float, t: float) -> float:
    """Convolution of exp(-p t), exp(-q t) and exp(-r t) at t, a divided difference: by a matrix exponential."""
    import numpy as np  # noqa: PLC0415 - scipy loads slowly
    from scipy.linalg import expm  # noqa: PLC0415

    return float(expm(t * np.array([[-p, 1.0, 0.0], [0.0, -q, 1.0], [0.0, 0.0, -r]]))[0, 2])
