"""Hodgkin-Huxley neurons with the rates of Traub & Miles; mV, ms, pA, nS and pF.

I is the current at zero potential that a step is given, g the conductance: the synaptic current is I - g v. With
V = v - V_T and f(x) = x / (exp(x) - 1) (Brette et al. 2007, benchmark 3):

    C dv/dt = g_L (E_L - v) + g_Na m^3 h (E_Na - v) + g_K n^4 (E_K - v) + I - g v
    dm/dt = alpha_m (1 - m) - beta_m m, and so h and n
    alpha_m = 1.28 f((13 - V)/4)       alpha_h = 0.128 exp((17 - V)/18)         alpha_n = 0.16 f((15 - V)/5)
    beta_m  = 1.4 f((V - 40)/5)        beta_h  = 4 / (1 + exp((40 - V)/5))      beta_n  = 0.5 exp((10 - V)/40)

The gates go first, exactly for the potential before the step (Rush & Larsen 1978), then v by exponential Euler with the
new gates. So gates stand half a step ahead of potentials, which makes the scheme one of second order. Jumps are added
after that. All exponentials are those of `exponential`, so that the compiled kernels give the same bits.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from neuropil.neurons.ranges import Number, require
from neuropil.spiking.exponential import exp
from neuropil.spiking.membranes import counters, require_numbers, rounded, spread_over, wide
from neuropil.spiking.neurons import NeuronModel, Step
from neuropil.spiking.surrogate import Surrogate, as_surrogate

__all__ = ["HodgkinHuxleyConstants", "HodgkinHuxleyNeuron", "HodgkinHuxleyState"]

REST = 200
"""Iterations towards the potential at rest; each at least halves the distance where the membrane is stable."""
SERIES = (-0.5, 1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)
"""x / (exp(x) - 1) = 1 - x/2 + x^2/12 - x^4/720 + ..., the Bernoulli numbers over factorials."""
NEAR = 0.25
"""|x| below which the series is used: exp(x) - 1 would lose digits there."""


class HodgkinHuxleyState(NamedTuple):
    """Potentials, steps in which no second spike is counted (None without), and the gates."""

    v: Tensor
    refractory: Tensor | None
    m: Tensor
    h: Tensor
    n: Tensor


class HodgkinHuxleyConstants(NamedTuple):
    """Numbers of a step of `HodgkinHuxleyNeuron`: rate is -dt/C; leak, sodium and potassium are products g E."""

    rate: Number
    step: Number
    g_leak: Number
    leak: Number
    g_sodium: Number
    sodium: Number
    g_potassium: Number
    potassium: Number
    v_traub: Number
    v_threshold: Number


@dataclass(frozen=True, eq=False)
class HodgkinHuxleyNeuron(NeuronModel):
    """Hodgkin-Huxley neuron with the rates of Traub and Miles; equations in the module's docstring.

    A spike is an upward crossing of v_threshold; the potential goes on undisturbed. Numbers may be tensors that
    broadcast to the neurons.

    Args:
        capacitance: C in pF, positive.
        g_leak: g_L in nS, positive.
        e_leak: E_L in mV.
        g_sodium: g_Na in nS, at least 0.
        e_sodium: E_Na in mV.
        g_potassium: g_K in nS, at least 0.
        e_potassium: E_K in mV.
        v_traub: V_T in mV, which shifts the rates.
        v_threshold: in mV, whose upward crossing is a spike.
        refractory: time in ms after the step of a spike in which no second one is counted.
        surrogate: derivative of the spike with respect to v - v_threshold in mV, by name or as an object.
        dt: the step in ms.

    Raises:
        ValueError: if a number is out of its range.

    Source: Brette et al., Journal of Computational Neuroscience 23 (2007), appendix B, benchmark 3 (COBAHH); rates of
    Traub & Miles, Neuronal Networks of the Hippocampus (1991).
    """

    capacitance: Number = 200.0
    g_leak: Number = 10.0
    e_leak: Number = -65.0
    g_sodium: Number = 20_000.0
    e_sodium: Number = 50.0
    g_potassium: Number = 6_000.0
    e_potassium: Number = -90.0
    v_traub: Number = -63.0
    v_threshold: Number = -20.0
    refractory: float = 3.0
    surrogate: str | Surrogate = "atan"
    dt: float = 0.1
    spike: Surrogate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spike", as_surrogate(self.surrogate))
        potentials = ("e_leak", "e_sodium", "e_potassium", "v_traub", "v_threshold")
        require_numbers(self, ("capacitance", "g_leak"), potentials)
        for name in ("g_sodium", "g_potassium"):
            require(name, getattr(self, name), 0.0, math.inf, ends=(True, False))

    @property
    def held_steps(self) -> int:
        """Steps after that of a spike in which no second one is counted."""
        return round(self.refractory / self.dt)

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> HodgkinHuxleyState:
        """The state at rest without input, where currents balance: v = v_inf(v), by iteration from E_L."""
        c = self.constants(torch.zeros((), dtype=torch.float64, device=like.device))
        v = torch.as_tensor(wide(self.e_leak), dtype=torch.float64, device=like.device)
        for _ in range(REST):
            g, drive = _channels(c, *_steady(v - c.v_traub))
            v = 0.5 * (v + drive / g)
        rest = spread_over(v, shape, like)
        gates = (spread_over(x, shape, like) for x in _steady(v - c.v_traub))
        return HodgkinHuxleyState(rest, counters(rest, self.held_steps), *gates)

    def constants(self, like: Tensor) -> HodgkinHuxleyConstants:
        """Numbers of a step, computed in float64; tensors are then rounded to the type of `like`."""
        pairs = (
            (self.g_leak, self.e_leak),
            (self.g_sodium, self.e_sodium),
            (self.g_potassium, self.e_potassium),
        )
        products = [p for g, e in pairs for p in (g, wide(g) * wide(e))]
        numbers = (-self.dt / wide(self.capacitance), -self.dt, *products, self.v_traub, self.v_threshold)
        return HodgkinHuxleyConstants(*(rounded(p, like) for p in numbers))

    def step(
        self,
        current: Tensor,
        state: HodgkinHuxleyState,
        *,
        conductance: Tensor | None = None,
        jump: Tensor | None = None,
    ) -> Step:
        """Advance by one step; see `NeuronModel.step`: current and jump in pA and mV, conductance in nS."""
        v, held, *gates = state
        c = self.constants(v)
        m, h, n = (
            _relax(gate, alpha, beta, c.step) for gate, (alpha, beta) in zip(gates, _rates(v - c.v_traub), strict=True)
        )
        total, drive = _channels(c, m, h, n)
        total = total if conductance is None else total + conductance
        target = (drive + current) / total
        after = target + (v - target) * exp(c.rate * total)
        after = after if jump is None else after + jump
        counted = v < c.v_threshold if held is None else (v < c.v_threshold) & (held == 0)
        spikes = torch.where(counted, self.spike(after - c.v_threshold), 0.0)
        if held is not None:
            held = torch.where(spikes.detach() > 0, self.held_steps, (held - 1).clamp(min=0)).to(held.dtype)
        return Step(spikes, HodgkinHuxleyState(after, held, m, h, n), after)


def _ratio(x: Tensor) -> Tensor:
    """The function f of the rates, x / (exp(x) - 1), which is 1 at x = 0."""
    near = (x < NEAR) & (x > -NEAR)
    y = x * x
    first, *others = reversed(SERIES[1:])
    series = first
    for c in others:
        series = series * y + c
    # Where the series is used the quotient's gradient would be 0/0: it is taken elsewhere.
    away = torch.where(near, 1.0, x)
    return torch.where(near, (SERIES[0] * x + 1.0) + series * y, away / (exp(away) - 1.0))


def _rates(v: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Rates alpha and beta of m, h and n in 1/ms at v - V_T."""
    return (
        (1.28 * _ratio((13.0 - v) * 0.25), 1.4 * _ratio((v - 40.0) * 0.2)),
        (0.128 * exp((17.0 - v) * (1 / 18)), 4.0 / (1.0 + exp((40.0 - v) * 0.2))),
        (0.16 * _ratio((15.0 - v) * 0.2), 0.5 * exp((10.0 - v) * 0.025)),
    )


def _relax(gate: Tensor, alpha: Tensor, beta: Tensor, step: Number) -> Tensor:
    """A gate after a step of constant rates; step is -dt."""
    total = alpha + beta
    target = alpha / total
    return target + (gate - target) * exp(step * total)


def _steady(v: Tensor) -> tuple[Tensor, ...]:
    """Gates m, h, n at rest at v - V_T."""
    return tuple(alpha / (alpha + beta) for alpha, beta in _rates(v))


def _channels(c: HodgkinHuxleyConstants, m: Tensor, h: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Conductance of leak and channels, and their current at zero potential."""
    sodium, potassium = m * m * m * h, n * n * (n * n)
    g = (c.g_leak + c.g_sodium * sodium) + c.g_potassium * potassium
    return g, (c.leak + c.sodium * sodium) + c.potassium * potassium
