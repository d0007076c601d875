"""Neurons given by differential equations, in discrete time; mV, ms, pA, nS and pF.

I is the current at zero potential that a step is given, g the conductance: the synaptic current is I - g v.

Adaptive exponential integrate-and-fire (Brette & Gerstner 2005):

    C dv/dt = g_L (E_L - v) + g_L D exp((v - V_T)/D) - w + I - g v
    tau_w dw/dt = a (v - E_L) - w                            v >= v_peak:  v = v_reset, w = w + b

    One step is an exponential Euler step, v -> v_inf + (v - v_inf) exp(-dt (g_L + g)/C) with the exponential term and w
    in v_inf, and a second one with the means of both over the first: stable at any conductance, of second order.

Izhikevich (2003), dimensionless but for ms and mV:

    dv/dt = 0.04 v^2 + 5 v + 140 - u + I - g v
    du/dt = a (b v - u)                                      v >= v_peak:  v = c, u = u + d

    Forward Euler, the conductance implicit: v -> (v + dt (0.04 v^2 + 5 v + 140 - u + I)) / (1 + dt g).

Jumps are added after that. All exponentials are those of `exponential`, products and sums are rounded as they stand, so
that the compiled `kernels.membranes` give the same bits.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from neuropil.neurons.ranges import Number, require, require_finite, require_positive
from neuropil.spiking.exponential import exp
from neuropil.spiking.neurons import NeuronModel, Step
from neuropil.spiking.surrogate import Surrogate, as_surrogate

__all__ = [
    "IZHIKEVICH",
    "AdExConstants",
    "AdExNeuron",
    "AdExState",
    "IzhikevichConstants",
    "IzhikevichNeuron",
    "IzhikevichState",
]

STEEPEST = 20.0
"""Where (v - V_T)/D is cut in the exponential: from there the next step is beyond any peak."""


class AdExState(NamedTuple):
    """Potentials after the reset, refractory steps that are left (None without), and adaptation currents."""

    v: Tensor
    refractory: Tensor | None
    w: Tensor


class IzhikevichState(NamedTuple):
    """Potentials after the reset, refractory steps that are left (None without), and recovery variables."""

    v: Tensor
    refractory: Tensor | None
    u: Tensor


class AdExConstants(NamedTuple):
    """Numbers of a step of `AdExNeuron`: rate is -dt/(substeps C), keep is exp(-dt/(substeps tau_w))."""

    rate: Number
    g_leak: Number
    leak: Number
    upstroke: Number
    v_threshold: Number
    steepness: Number
    e_leak: Number
    a: Number
    keep: Number
    b: Number
    v_peak: Number
    v_reset: Number


class IzhikevichConstants(NamedTuple):
    """Numbers of a step of `IzhikevichNeuron`: rise is the step of v, half of dt or dt, and recovery is a dt."""

    rise: Number
    recovery: Number
    b: Number
    v_reset: Number
    d: Number
    v_peak: Number


@dataclass(frozen=True, eq=False)
class AdExNeuron(NeuronModel):
    """Adaptive exponential integrate-and-fire neuron; equations in the module's docstring.

    Numbers may be tensors that broadcast to the neurons.

    Args:
        capacitance: C in pF, positive.
        g_leak: g_L in nS, positive.
        e_leak: E_L in mV.
        v_threshold: V_T in mV, where the exponential's slope balances the leak's.
        slope: D in mV, positive: how gradual the upstroke begins.
        a: subthreshold adaptation in nS, of either sign.
        tau_w: of the adaptation in ms, positive.
        b: adaptation of a spike in pA.
        v_peak: potential in mV from which a neuron counts as having fired.
        v_reset: potential in mV after a spike, below v_peak.
        refractory: time in ms after the step of a spike for which the potential is held at v_reset.
        surrogate: derivative of the spike with respect to v - v_peak in mV, by name or as an object.
        detach_reset: whether gradients leave out the path through the reset, of v and w.
        substeps: into how many a step is divided for v and w; with one of 0.1 ms intervals between spikes are those of
            the equations to within a step.
        dt: the step in ms.

    Raises:
        ValueError: if a number is out of its range.

    Source: Brette & Gerstner, Journal of Neurophysiology 94 (2005), eqs. 1-3 and Table 1; v_peak is a convention.
    """

    capacitance: Number = 281.0
    g_leak: Number = 30.0
    e_leak: Number = -70.6
    v_threshold: Number = -50.4
    slope: Number = 2.0
    a: Number = 4.0
    tau_w: Number = 144.0
    b: Number = 80.5
    v_peak: Number = 0.0
    v_reset: Number = -70.6
    refractory: float = 0.0
    surrogate: str | Surrogate = "atan"
    detach_reset: bool = False
    substeps: int = 1
    dt: float = 0.1
    spike: Surrogate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spike", as_surrogate(self.surrogate))
        require_numbers(self, ("capacitance", "g_leak", "slope", "tau_w"), ("e_leak", "v_threshold", "a", "b"))
        _require_below_peak("v_reset", self.v_reset, self.v_peak)
        if self.substeps < 1:
            raise ValueError(f"substeps must be at least 1, got {self.substeps}.")

    @property
    def held_steps(self) -> int:
        """Steps after that of a spike during which the neuron is held."""
        return round(self.refractory / self.dt)

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> AdExState:
        """The state v = E_L, w = 0, which is that at rest but for the exponential's tail."""
        v = spread_over(self.e_leak, shape, like)
        return AdExState(v, counters(v, self.held_steps), torch.zeros_like(v))

    def constants(self, like: Tensor) -> AdExConstants:
        """Numbers of a step, computed in float64; tensors are then rounded to the type of `like`."""
        g, e, part = wide(self.g_leak), wide(self.e_leak), self.dt / self.substeps
        slope, keep = wide(self.slope), _exponential(-part / wide(self.tau_w))
        numbers = (-part / wide(self.capacitance), g, g * e, g * slope, self.v_threshold, 1.0 / slope, e, self.a, keep)
        return AdExConstants(*(rounded(p, like) for p in (*numbers, self.b, self.v_peak, self.v_reset)))

    def step(
        self, current: Tensor, state: AdExState, *, conductance: Tensor | None = None, jump: Tensor | None = None
    ) -> Step:
        """Advance by one step; see `NeuronModel.step`: current and jump in pA and mV, conductance in nS."""
        v, held, w = state
        c = self.constants(v)
        total = c.g_leak + (torch.zeros_like(v) if conductance is None else conductance)
        decay, drive = exp(c.rate * total), c.leak + current
        for _ in range(self.substeps):
            bounded = torch.where(v < c.v_peak, v, c.v_peak)
            rise = c.upstroke * _steep((bounded - c.v_threshold) * c.steepness)
            target = ((drive + rise) - w) / total
            first = target + (v - target) * decay
            goal = c.a * (bounded - c.e_leak)
            late = goal + (w - goal) * c.keep
            ahead = torch.where(first < c.v_peak, first, c.v_peak)
            rise = 0.5 * (rise + c.upstroke * _steep((ahead - c.v_threshold) * c.steepness))
            target = ((drive + rise) - 0.5 * (w + late)) / total
            v = target + (v - target) * decay
            goal = c.a * (0.5 * (bounded + ahead) - c.e_leak)
            w = goal + (w - goal) * c.keep
        h = v if jump is None else v + jump
        h, spikes, held = _fire(self, h, held, c.v_peak, c.v_reset)
        s = spikes.detach() if self.detach_reset else spikes
        return Step(spikes, AdExState(h * (1 - s) + c.v_reset * s, held, w + c.b * s), h)


IZHIKEVICH: dict[str, dict[str, float]] = {
    "regular_spiking": {"a": 0.02, "b": 0.2, "c": -65.0, "d": 8.0},
    "intrinsically_bursting": {"a": 0.02, "b": 0.2, "c": -55.0, "d": 4.0},
    "chattering": {"a": 0.02, "b": 0.2, "c": -50.0, "d": 2.0},
    "fast_spiking": {"a": 0.1, "b": 0.2, "c": -65.0, "d": 2.0},
    "low_threshold_spiking": {"a": 0.02, "b": 0.25, "c": -65.0, "d": 2.0},
    "thalamo_cortical": {"a": 0.02, "b": 0.25, "c": -65.0, "d": 0.05},
    "resonator": {"a": 0.1, "b": 0.26, "c": -65.0, "d": 2.0},
}
"""Parameters of the cortical and thalamic types of Izhikevich (2003), figure 2."""


@dataclass(frozen=True, eq=False)
class IzhikevichNeuron(NeuronModel):
    """Izhikevich's neuron; equations in the module's docstring, types of neurons in `IZHIKEVICH`.

    Numbers may be tensors that broadcast to the neurons.

    Args:
        a: rate of the recovery in 1/ms, positive.
        b: what the recovery follows of the potential.
        c: potential in mV after a spike, below v_peak.
        d: recovery of a spike.
        v_peak: potential in mV from which a neuron counts as having fired.
        refractory: time in ms after the step of a spike for which the potential is held at c.
        half_steps: whether v takes two steps of dt/2 and u then follows the new v, as in the paper's program (dt = 1);
            by default both take one step from the old values.
        surrogate: derivative of the spike with respect to v - v_peak in mV, by name or as an object.
        detach_reset: whether gradients leave out the path through the reset, of v and u.
        dt: the step in ms.

    Raises:
        ValueError: if a number is out of its range.

    Source: Izhikevich, IEEE Transactions on Neural Networks 14 (2003), eqs. 1-3. The implicit conductance is that of
    Izhikevich, Philosophical Transactions of the Royal Society A 368 (2010).
    """

    a: Number = 0.02
    b: Number = 0.2
    c: Number = -65.0
    d: Number = 8.0
    v_peak: Number = 30.0
    refractory: float = 0.0
    half_steps: bool = False
    surrogate: str | Surrogate = "atan"
    detach_reset: bool = False
    dt: float = 0.1
    spike: Surrogate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spike", as_surrogate(self.surrogate))
        require_numbers(self, ("a",), ("b", "d"))
        _require_below_peak("c", self.c, self.v_peak)

    @classmethod
    def preset(cls, name: str, **parameters: Any) -> "IzhikevichNeuron":
        """A neuron of a type that `IZHIKEVICH` lists.

        Args:
            name: of the type.
            parameters: others of the neuron's, or in place of the type's.

        Raises:
            ValueError: if no type has the name.
        """
        if name not in IZHIKEVICH:
            raise ValueError(f"No type of neuron is named {name!r}; there are {', '.join(IZHIKEVICH)}.")
        return cls(**{**IZHIKEVICH[name], **parameters})

    @property
    def held_steps(self) -> int:
        """Steps after that of a spike during which the neuron is held."""
        return round(self.refractory / self.dt)

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> IzhikevichState:
        """The state at rest without input; of a neuron that has no rest, where v is slowest."""
        b = torch.as_tensor(self.b, dtype=torch.float64)
        v = ((b - 5.0) - ((b - 5.0) ** 2 - 4 * 0.04 * 140.0).clamp(min=0).sqrt()) / (2 * 0.04)
        rest = spread_over(v, shape, like)
        return IzhikevichState(rest, counters(rest, self.held_steps), spread_over(b * v, shape, like))

    def constants(self, like: Tensor) -> IzhikevichConstants:
        """Numbers of a step, computed in float64; tensors are then rounded to the type of `like`."""
        rise = self.dt / 2 if self.half_steps else self.dt
        numbers = (rise, wide(self.a) * self.dt, self.b, self.c, self.d, self.v_peak)
        return IzhikevichConstants(*(rounded(p, like) for p in numbers))

    def step(
        self, current: Tensor, state: IzhikevichState, *, conductance: Tensor | None = None, jump: Tensor | None = None
    ) -> Step:
        """Advance by one step; see `NeuronModel.step`."""
        v, held, u = state
        k = self.constants(v)
        h = v
        for _ in range(2 if self.half_steps else 1):
            h = h + k.rise * ((((0.04 * h + 5.0) * h + 140.0) - u) + current)
            h = h if conductance is None else h / (1.0 + k.rise * conductance)
        u = u + k.recovery * (k.b * (h if self.half_steps else v) - u)
        h = h if jump is None else h + jump
        h, spikes, held = _fire(self, h, held, k.v_peak, k.v_reset)
        s = spikes.detach() if self.detach_reset else spikes
        return Step(spikes, IzhikevichState(h * (1 - s) + k.v_reset * s, held, u + k.d * s), h)


def require_numbers(neuron: Any, positive: tuple[str, ...], finite: tuple[str, ...]) -> None:
    """Refuse parameters of a neuron that are not positive, or not finite."""
    require_positive(**{name: getattr(neuron, name) for name in ("dt", *positive)})
    require_finite(**{name: getattr(neuron, name) for name in finite})
    require("refractory", neuron.refractory, 0.0, math.inf, ends=(True, False))


def _require_below_peak(name: str, number: Number, peak: Number) -> None:
    require_finite(**{name: number, "v_peak": peak})
    low, high = (torch.as_tensor(x, dtype=torch.float64) for x in (number, peak))
    if not bool((low < high).all()):
        raise ValueError(f"{name} must lie below v_peak, got {number} and v_peak {peak}.")


def spread_over(number: Number, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """A number for every neuron, each with a place of its own."""
    return (
        torch.as_tensor(number, dtype=torch.float64)
        .detach()
        .to(like)
        .expand(shape)
        .clone(memory_format=torch.contiguous_format)
    )


def counters(v: Tensor, steps: int) -> Tensor | None:
    """Refractory counters at zero, where there is a refractory time."""
    return torch.zeros_like(v, dtype=torch.int32) if steps else None


def wide(number: Number) -> Number:
    """A number in float64."""
    return number.double() if isinstance(number, Tensor) else float(number)


def _exponential(x: Number) -> Number:
    return torch.exp(x) if isinstance(x, Tensor) else math.exp(x)


def rounded(number: Number, like: Tensor) -> Number:
    """A number in the type of a tensor."""
    return number.to(like) if isinstance(number, Tensor) else float(number)


def _fire(
    neuron: AdExNeuron | IzhikevichNeuron, h: Tensor, held: Tensor | None, v_peak: Number, v_reset: Number
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Potentials before the reset, spikes, and refractory steps that are left."""
    if held is None:
        return h, neuron.spike(h - v_peak), None
    h = torch.where(held > 0, v_reset, h)
    spikes = torch.where(held > 0, 0.0, neuron.spike(h - v_peak))
    left = torch.where(spikes.detach() > 0, neuron.held_steps, (held - 1).clamp(min=0))
    return h, spikes, left.to(held.dtype)


def _steep(x: Tensor) -> Tensor:
    """exp(x), cut where it is steepest."""
    return exp(torch.where(x < STEEPEST, x, STEEPEST))
