"""Neuron models in discrete time, each written once as a pure step.

    spikes, state, potential = neuron.step(current, state)

One step of the leaky integrate-and-fire neuron, v the potential that the last step left, x the current of this one:

    h = a v + k x + (1 - a) v_rest                          leak and integrate; `potential` is h, before the reset
    s = 1[h >= threshold]                                   fire; backward, the surrogate's derivative
    v = h (1 - s) + v_reset s        reset "hard"
    v = h - amount s                 reset "soft"; amount = threshold unless given
    v = h                            reset "none"

with a = exp(-dt/tau) ("exact") or 1 - dt/tau ("euler"). The products are rounded as they stand here, with a, k and
(1 - a) v_rest rounded once from float64 where they are numbers; the compiled kernels do the same and so give the same
bits. A synaptic filter before (`CubaLIFNeuron`) or an adaptive threshold (`ALIFNeuron`) add a line each.

Slots for what others put between potential and spike: `rectifier` f and `normalizer` n fire where f(n(h)) >= threshold
while the state keeps h; `polarity` p (+1 or -1) fires where p h >= p threshold.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.neurons.integrators import Integration, decay_of
from neuropil.neurons.ranges import Number, require, require_finite, require_positive

from .exponential import exp
from .surrogate import Surrogate, as_surrogate

__all__ = [
    "ALIFNeuron",
    "ALIFState",
    "CubaLIFNeuron",
    "CubaLIFState",
    "IFNeuron",
    "LIFNeuron",
    "LIFState",
    "NeuronModel",
    "Reset",
    "Step",
]

Reset = Literal["hard", "soft", "none"]
State = Any
"""A named tuple of tensors."""


class Step(NamedTuple):
    """What a step of a neuron returns: spikes and potential before the reset, both (*shape), and the next state."""

    spikes: Tensor
    state: Any
    potential: Tensor


class NeuronModel(ABC):
    """A neuron: parameters, and one pure step. Subclasses are frozen dataclasses."""

    dt: float

    @abstractmethod
    def init_state(self, shape: tuple[int, ...], like: Tensor) -> State:
        """The state at rest.

        Args:
            shape: of the potentials.
            like: a tensor of the wanted type and device.
        """

    @abstractmethod
    def step(
        self, current: Tensor, state: State, *, conductance: Tensor | None = None, jump: Tensor | None = None
    ) -> Step:
        """Advance by one step.

        Args:
            current: the input, (*shape).
            state: what the last step returned, or `init_state`.
            conductance: total synaptic conductance, (*shape), whose drive towards the reversal potentials is part of
                the current; None is zero.
            jump: added to the potential after the leak, (*shape): arrivals at delta synapses, and the exact
                contributions of current-based ones.
        """


class LIFState(NamedTuple):
    """Potentials after the reset, and for neurons with a refractory time the steps that are left of it."""

    v: Tensor
    refractory: Tensor | None = None


@dataclass(frozen=True, eq=False)
class LIFNeuron(NeuronModel):
    """Leaky integrate-and-fire neuron; equations in the module's docstring.

    Args:
        tau: membrane time constant in the unit of dt, positive; a number or a tensor that broadcasts to the neurons.
        decay: a itself, in [0, 1], instead of tau.
        gain: k; by default 1 - a where tau is given, 1 where decay is.
        v_threshold: a number or a tensor that broadcasts to the neurons.
        v_rest: what the potential decays to.
        v_reset: what a hard reset sets; by default v_rest.
        reset: "hard", "soft" or "none".
        reset_amount: what a soft reset subtracts; by default the threshold.
        refractory: time after the step of a spike for which the potential is held at v_reset, in the unit of dt.
        surrogate: derivative of the spike, by name or as an object.
        detach_reset: whether gradients leave out the path through the reset.
        rectifier: elementwise map of the potential before firing, for training; it must leave the threshold in place.
        normalizer: map of the potential before firing, as a batch normalisation.
        polarity: +1 where neurons fire above the threshold, -1 where below; broadcasts to the neurons.
        integration: "exact" or "euler", how tau gives a.
        dt: the step.

    Raises:
        ValueError: if not exactly one of tau and decay is given, or a number is out of its range.
    """

    tau: Number | None = None
    decay: Number | None = None
    gain: Number | None = None
    v_threshold: Number = 1.0
    v_rest: float = 0.0
    v_reset: float | None = None
    reset: Reset = "hard"
    reset_amount: float | None = None
    refractory: float = 0.0
    surrogate: str | Surrogate = "atan"
    detach_reset: bool = False
    rectifier: Callable[[Tensor], Tensor] | None = None
    normalizer: Callable[[Tensor], Tensor] | None = None
    polarity: Tensor | None = None
    integration: Integration = "exact"
    dt: float = 1.0
    spike: Surrogate = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "spike", as_surrogate(self.surrogate))
        require_positive(dt=self.dt)
        _check_decay("tau", self.tau, "decay", self.decay, self.dt, self.integration)
        others = {name: getattr(self, name) for name in ("gain", "v_rest", "v_reset", "reset_amount")}
        require_finite(**{name: value for name, value in others.items() if value is not None})
        # A neuron with an infinite threshold never fires.
        require("v_threshold", self.v_threshold, -math.inf, math.inf)
        require("refractory", self.refractory, 0.0, math.inf, ends=(True, False))
        if self.reset not in ("hard", "soft", "none"):
            raise ValueError(f"reset must be 'hard', 'soft' or 'none', got {self.reset!r}.")
        if self.integration not in ("exact", "euler"):
            raise ValueError(f"integration must be 'exact' or 'euler', got {self.integration!r}.")
        if (
            self.reset == "soft"
            and self.reset_amount is None
            and not bool(torch.as_tensor(self.v_threshold).isfinite().all())
        ):
            raise ValueError("An infinite v_threshold cannot be subtracted: give reset_amount, or another reset.")
        if self.polarity is not None and not bool((self.polarity.abs() == 1).all()):
            raise ValueError("polarity must hold +1 and -1 only.")

    @property
    def a(self) -> Number:
        """What is left of the potential after a step."""
        return _decay(self.tau, self.decay, self.dt, self.integration)

    @property
    def k(self) -> Number:
        """What the current is multiplied by."""
        if self.gain is not None:
            return self.gain
        return 1.0 if self.tau is None else 1.0 - self.a

    @property
    def floor(self) -> float:
        """What a hard reset and refractoriness set the potential to."""
        return self.v_rest if self.v_reset is None else self.v_reset

    @property
    def held_steps(self) -> int:
        """Steps after that of a spike during which the neuron is held."""
        return round(self.refractory / self.dt)

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> LIFState:
        """At rest, without currents and adaptation."""
        v = like.new_full(shape, self.v_rest)
        return LIFState(v, v.new_zeros(shape, dtype=torch.int32) if self.held_steps else None)

    def leak(self, v: Tensor, current: Tensor) -> Tensor:
        """Potential before firing, a v + k x + (1 - a) v_rest."""
        a = self.a
        h = a * v + self.k * current
        return h if self.v_rest == 0 else h + (1.0 - a) * self.v_rest

    def driven(self, v: Tensor, current: Tensor, conductance: Tensor) -> Tensor:
        """Potential before firing under synaptic conductances g, in units of the leak's, by exponential Euler.

        v_inf = (v_rest + current) / (1 + g),  h = v_inf + (v - v_inf) exp(-dt/tau (1 + g)).
        """
        if self.tau is None or self.gain is not None:
            raise ValueError("Conductances need a neuron with tau, and no gain of its own.")
        total = 1.0 + conductance
        v_inf = (self.v_rest + current) / total
        return v_inf + (v - v_inf) * exp(-(self.dt / self.tau) * total)

    def fire(self, h: Float[Tensor, "*shape"], threshold: Number) -> Float[Tensor, "*shape"]:
        """Spikes of the potentials h: through the normaliser and the rectifier, against the threshold."""
        z = h if self.normalizer is None else self.normalizer(h)
        z = z if self.rectifier is None else self.rectifier(z)
        return self.spike(z - threshold if self.polarity is None else self.polarity * z - self.polarity * threshold)

    def after_reset(self, h: Tensor, spikes: Tensor, threshold: Number) -> Tensor:
        """Potential after the reset of the neurons that fired."""
        if self.reset == "none":
            return h
        s = spikes.detach() if self.detach_reset else spikes
        if self.reset == "hard":
            return h * (1 - s) + self.floor * s
        return h - (threshold if self.reset_amount is None else self.reset_amount) * s

    def step(
        self, current: Tensor, state: LIFState, *, conductance: Tensor | None = None, jump: Tensor | None = None
    ) -> Step:
        """One step; see `NeuronModel.step`."""
        return self._step(current, state, self.v_threshold, conductance, jump)

    def _step(
        self, current: Tensor, state: LIFState, threshold: Number, conductance: Tensor | None, jump: Tensor | None
    ) -> Step:
        """A step against a threshold of its own."""
        v, held = state
        h = self.leak(v, current) if conductance is None else self.driven(v, current, conductance)
        h = h if jump is None else h + jump
        if held is not None:
            h = torch.where(held > 0, self.floor, h)
        spikes = self.fire(h, threshold)
        if held is not None:
            spikes = torch.where(held > 0, 0.0, spikes)
            held = torch.where(spikes.detach() > 0, self.held_steps, (held - 1).clamp(min=0)).to(held.dtype)
        return Step(spikes, LIFState(self.after_reset(h, spikes, threshold), held), h)


class CubaLIFState(NamedTuple):
    """Potentials after the reset, refractory steps that are left (None without), and synaptic currents."""

    v: Tensor
    refractory: Tensor | None
    current: Tensor


@dataclass(frozen=True, eq=False)
class CubaLIFNeuron(LIFNeuron):
    """Leaky integrate-and-fire neuron whose input passes a first-order synaptic filter: i = b i + x, then x := i.

    Args:
        tau_synapse: time constant of the filter in the unit of dt, positive; b = exp(-dt/tau_synapse), or
            1 - dt/tau_synapse with integration="euler".
        decay_synapse: b itself, in [0, 1], instead of tau_synapse.

    Raises:
        ValueError: as `LIFNeuron`, and if not exactly one of tau_synapse and decay_synapse is given.
    """

    tau_synapse: Number | None = None
    decay_synapse: Number | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_decay("tau_synapse", self.tau_synapse, "decay_synapse", self.decay_synapse, self.dt, self.integration)

    @property
    def b(self) -> Number:
        """What is left of the synaptic current after a step."""
        return _decay(self.tau_synapse, self.decay_synapse, self.dt, self.integration)

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> CubaLIFState:  # pyright: ignore[reportIncompatibleMethodOverride]
        """At rest, without currents and adaptation."""
        v, held = super().init_state(shape, like)
        return CubaLIFState(v, held, torch.zeros_like(v))

    def step(
        self, current: Tensor, state: Any, *, conductance: Tensor | None = None, jump: Tensor | None = None
    ) -> Step:
        """One step; see `NeuronModel.step`."""
        filtered = self.b * state.current + current
        inner = LIFState(state.v, state.refractory)
        spikes, (v, held), h = super().step(filtered, inner, conductance=conductance, jump=jump)
        return Step(spikes, CubaLIFState(v, held, filtered), h)


class ALIFState(NamedTuple):
    """Potentials after the reset, refractory steps that are left (None without), and adaptation variables."""

    v: Tensor
    refractory: Tensor | None
    adaptation: Tensor


@dataclass(frozen=True, eq=False)
class ALIFNeuron(LIFNeuron):
    """Leaky integrate-and-fire neuron whose threshold rises with its spikes.

        fires at v_threshold + strength b;    b = rho b + (1 - rho) s after each step

    Args:
        tau_adaptation: time constant of b in the unit of dt, positive; rho = exp(-dt/tau_adaptation), or
            1 - dt/tau_adaptation with integration="euler".
        decay_adaptation: rho itself, in [0, 1], instead of tau_adaptation.
        strength: how much an adaptation variable of 1 raises the threshold, finite.

    Raises:
        ValueError: as `LIFNeuron`, and if not exactly one of tau_adaptation and decay_adaptation is given.

    Source: Bellec et al., NeurIPS 2018, eq. 2 (long short-term memory in networks of spiking neurons).
    """

    tau_adaptation: Number | None = None
    decay_adaptation: Number | None = None
    strength: Number = 1.8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_decay(
            "tau_adaptation", self.tau_adaptation, "decay_adaptation", self.decay_adaptation, self.dt, self.integration
        )
        require_finite(strength=self.strength)

    @property
    def rho(self) -> Number:
        """What is left of the adaptation after a step."""
        return _decay(self.tau_adaptation, self.decay_adaptation, self.dt, self.integration)

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> ALIFState:  # pyright: ignore[reportIncompatibleMethodOverride]
        """At rest, without currents and adaptation."""
        v, held = super().init_state(shape, like)
        return ALIFState(v, held, torch.zeros_like(v))

    def step(
        self, current: Tensor, state: Any, *, conductance: Tensor | None = None, jump: Tensor | None = None
    ) -> Step:
        """One step; see `NeuronModel.step`."""
        threshold = self.v_threshold + self.strength * state.adaptation
        inner = LIFState(state.v, state.refractory)
        spikes, (v, held), h = self._step(current, inner, threshold, conductance, jump)
        rho = self.rho
        return Step(spikes, ALIFState(v, held, rho * state.adaptation + (1.0 - rho) * spikes), h)


def IFNeuron(**parameters: Any) -> LIFNeuron:  # noqa: N802 - called as the classes beside it
    """Integrate-and-fire neuron without a leak: a `LIFNeuron` of decay 1 and gain 1.

    Args:
        parameters: of `LIFNeuron`, but for tau, decay and gain.
    """
    return LIFNeuron(decay=1.0, gain=1.0, **parameters)


def _check_decay(name: str, tau: Number | None, other: str, decay: Number | None, dt: float, integration: str) -> None:
    """Refuse a decay that is given twice, not at all, or out of range."""
    if (tau is None) == (decay is None):
        raise ValueError(f"Give either {name} or {other}, one of the two.")
    if decay is not None:
        require(other, decay, 0.0, 1.0)
    elif tau is not None:
        require_positive(**{name: tau})
        if integration == "euler":
            require(f"{name} with integration='euler'", tau, dt, math.inf, ends=(True, False))


def _decay(tau: Number | None, decay: Number | None, dt: float, integration: Integration) -> Number:
    """The decay that is given, or that of the time constant."""
    if decay is not None:
        return decay
    assert tau is not None
    return decay_of(tau, dt, integration)
