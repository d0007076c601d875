"""Exponential traces: how much something, spikes mostly, has happened of late.

    dense       x[t] = a x[t-1] + A s[t]                      accumulate "add": every event counts
                x[t] = a x[t-1] (1 - s[t]) + A s[t]           accumulate "replace": the last one does
    difference  x[t] = A c (f[t] - r[t])                      f falls with tau_fall, r with the shorter tau_rise
    lazy        x(t) = x(t_last) exp(-(t - t_last) dt/tau)    an event costs as much as the neurons that take part

The lazy form keeps values as of the step of a neuron's last event and lets them decay when they are read. Steps are
whole numbers: times in single precision would go wrong after a few hours.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.neurons.circuits.base import Circuit
from neuropil.neurons.integrators import Decay, Integration
from neuropil.neurons.ranges import Number, require_finite, require_positive

__all__ = [
    "Accumulate",
    "DoubleExponentialState",
    "DoubleExponentialTrace",
    "LazyTrace",
    "LazyTraceState",
    "Trace",
    "TraceState",
]

Accumulate = Literal["add", "replace"]


class TraceState(NamedTuple):
    """Traces, (batch, neurons)."""

    x: Tensor


class Trace(Circuit):
    """Exponential traces that take a step whether or not something happens.

    Args:
        features: number of neurons.
        tau: time constant in the unit of dt, positive; a number or one a neuron.
        decay: a itself, in [0, 1], instead of tau.
        amplitude: A, of an event.
        accumulate: "add" for all events, "replace" for the last one (pairing of nearest neighbours).
        dt: the step.
        integration: how tau gives a, see `decay_factor`.
        learnable: whether a is trained, see `Decay`.

    Raises:
        ValueError: if not exactly one of tau and decay is given, or an argument is out of its range.

    Source: Morrison, Diesmann & Gerstner, Biological Cybernetics 98 (2008), section 4.
    """

    def __init__(
        self,
        features: int,
        *,
        tau: Number | None = None,
        decay: Number | None = None,
        amplitude: float = 1.0,
        accumulate: Accumulate = "add",
        dt: float = 1.0,
        integration: Integration = "exact",
        learnable: bool = False,
    ):
        super().__init__()
        _check(amplitude, accumulate)
        self.features, self.amplitude, self.accumulate = features, amplitude, accumulate
        self.decay = Decay(features, tau=tau, decay=decay, dt=dt, integration=integration, learnable=learnable)

    def init_state(self, batch: int, *, generator: torch.Generator | None = None) -> TraceState:
        """Traces of 0."""
        return TraceState(torch.zeros(batch, self.features))

    def step(self, x: Tensor, state: TraceState) -> tuple[Tensor, TraceState]:
        """Advance by one step; x are the events (batch, neurons), 0 and 1 or graded, the output the traces after it."""
        past = self.decay(state.x) * state.x
        trace = (past if self.accumulate == "add" else past * (1 - x)) + self.amplitude * x
        return trace, TraceState(trace)

    def extra_repr(self) -> str:
        """What print shows."""
        return f"features={self.features}, amplitude={self.amplitude:g}, accumulate={self.accumulate!r}"


class DoubleExponentialState(NamedTuple):
    """The falling and the rising exponential, (batch, neurons) each, of which the trace is the difference."""

    fall: Tensor
    rise: Tensor


class DoubleExponentialTrace(Circuit):
    """Traces that rise before they fall: an event adds A c (exp(-t/tau_fall) - exp(-t/tau_rise)), t from its step on.

    c makes A the peak, which lies at log(tau_fall/tau_rise) tau_fall tau_rise / (tau_fall - tau_rise).

    Args:
        features: number of neurons.
        tau_rise: in the unit of dt, positive and below tau_fall; a number or one a neuron.
        tau_fall: likewise.
        amplitude: A.
        dt: the step.

    Raises:
        ValueError: if an argument is out of its range.
    """

    scale: Tensor

    def __init__(self, features: int, *, tau_rise: Number, tau_fall: Number, amplitude: float = 1.0, dt: float = 1.0):
        super().__init__()
        _check(amplitude, "add")
        self.features = features
        self.rise, self.fall = Decay(features, tau=tau_rise, dt=dt), Decay(features, tau=tau_fall, dt=dt)
        rise, fall = (torch.as_tensor(tau, dtype=torch.float64).detach() for tau in (tau_rise, tau_fall))
        if not bool((rise < fall).all()):
            raise ValueError(f"tau_rise must be below tau_fall, got {tau_rise} and {tau_fall}.")
        peak = torch.log(fall / rise) * fall * rise / (fall - rise)
        scale = amplitude / (torch.exp(-peak / fall) - torch.exp(-peak / rise))
        self.register_buffer("scale", scale, persistent=False)

    def init_state(self, batch: int, *, generator: torch.Generator | None = None) -> DoubleExponentialState:
        """Traces of 0."""
        return DoubleExponentialState(torch.zeros(batch, self.features), torch.zeros(batch, self.features))

    def step(self, x: Tensor, state: DoubleExponentialState) -> tuple[Tensor, DoubleExponentialState]:
        """Advance by one step; x are the events (batch, neurons), the output the traces after it."""
        fall, rise = self.fall(state.fall) * state.fall + x, self.rise(state.rise) * state.rise + x
        return self.scale.to(fall) * (fall - rise), DoubleExponentialState(fall, rise)

    def extra_repr(self) -> str:
        """What print shows."""
        return f"features={self.features}"


class LazyTraceState(NamedTuple):
    """Traces as they were at the step of each neuron's last event, and these steps."""

    x: Tensor
    last: Tensor


@dataclass(frozen=True, eq=False)
class LazyTrace:
    """Exponential traces whose neurons are touched by their own events alone.

    `read` before `add_event_` of the same step gives traces as they are before its events, after it with them: the
    latter is what `Trace` puts out.

    Args:
        tau: time constant in the unit of dt, positive; a number or one a neuron.
        amplitude: A, of an event.
        accumulate: "add" for all events, "replace" for the last one.
        dt: the step.

    Raises:
        ValueError: if an argument is out of its range.
    """

    tau: Number
    amplitude: float = 1.0
    accumulate: Accumulate = "add"
    dt: float = 1.0

    def __post_init__(self) -> None:
        require_positive(tau=self.tau, dt=self.dt)
        _check(self.amplitude, self.accumulate)

    def init_state(self, neurons: int, like: Tensor) -> LazyTraceState:
        """Traces of 0 at step 0.

        Args:
            neurons: how many.
            like: a tensor of the wanted type and device.
        """
        x = like.new_zeros(neurons)
        return LazyTraceState(x, torch.zeros_like(x, dtype=torch.int64))

    def read(
        self, state: LazyTraceState, step: int, neurons: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, " some"]:
        """Traces at a step.

        Args:
            state: which is left as it is.
            step: not before the last event of the neurons.
            neurons: whose traces; None are all.

        Raises:
            ValueError: if the step lies before an event.
        """
        x, last = (state.x, state.last) if neurons is None else (state.x[neurons], state.last[neurons])
        gap = step - last
        if bool((gap < 0).any()):
            raise ValueError(f"step must not lie before the last event, at {int(last.max())}, got {step}.")
        tau = torch.as_tensor(self.tau, dtype=torch.float64).to(x)
        tau = tau if tau.ndim == 0 or neurons is None else tau.expand(state.x.shape)[neurons]
        return x * torch.exp(gap.to(x) * (-self.dt / tau))

    def add_event_(self, state: LazyTraceState, step: int, neurons: Int[Tensor, " some"]) -> LazyTraceState:
        """Let neurons have an event, in place: only their traces are touched.

        Args:
            state: which is changed.
            step: of the event, not before their last.
            neurons: which; one that stands there twice has two events.

        Returns:
            The state itself.

        Raises:
            ValueError: if the step lies before an event.
        """
        past = self.read(state, step, neurons)
        if self.accumulate == "add":
            state.x[neurons] = past
            state.x.index_add_(0, neurons, torch.full_like(past, self.amplitude))
        else:
            state.x[neurons] = self.amplitude
        state.last[neurons] = step
        return state


def _check(amplitude: float, accumulate: str) -> None:
    require_finite(amplitude=amplitude)
    if accumulate not in ("add", "replace"):
        raise ValueError(f"accumulate must be 'add' or 'replace', got {accumulate!r}.")
