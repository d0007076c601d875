"""Leaky integration in discrete time.

    v[t] = a v[t-1] + k x[t]

a is what a step leaves of the past: exp(-dt/tau), the exact solution of tau dv/dt = -v over a step, or 1 - dt/tau, that
of forward Euler. k is 1 - a, so that a constant input is approached, or 1, so that inputs are summed.
"""

import math
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from neuropil.neurons.circuits.base import Circuit
from neuropil.neurons.ranges import Number, require, require_finite, require_positive

__all__ = ["Decay", "Integration", "LeakyIntegrator", "LeakyState", "decay_factor", "decay_of"]

Integration = Literal["exact", "euler"]


@overload
def decay_factor(tau: float, dt: float = 1.0, integration: Integration = "exact") -> float: ...
@overload
def decay_factor(tau: Tensor, dt: float = 1.0, integration: Integration = "exact") -> Tensor: ...
def decay_factor(tau: Number, dt: float = 1.0, integration: Integration = "exact") -> Number:
    """What a step leaves of a variable that decays with a time constant.

    Args:
        tau: time constant in the unit of dt, positive; a number or a tensor.
        dt: the step, positive.
        integration: "exact", exp(-dt/tau), or "euler", 1 - dt/tau, which needs tau >= dt.

    Returns:
        A number, or a tensor of tau's shape through which gradients flow.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if integration not in ("exact", "euler"):
        raise ValueError(f"integration must be 'exact' or 'euler', got {integration!r}.")
    require_positive(dt=dt, tau=tau)
    if integration == "euler":
        require("tau with integration='euler'", tau, dt, math.inf, ends=(True, False))
    return decay_of(tau, dt, integration)


def decay_of(tau: Number, dt: float, integration: Integration) -> Number:
    """As `decay_factor`, of numbers that were checked before: for use in every step."""
    if integration == "euler":
        return 1.0 - dt / tau
    return torch.exp(-dt / tau) if isinstance(tau, Tensor) else math.exp(-dt / tau)


class Decay(nn.Module):
    """A decay factor as a module: called with what is to decay, it returns a.

    Args:
        features: number of neurons, which a tensor must broadcast to.
        tau: time constant in the unit of dt, positive; a number or a tensor.
        decay: a itself, in [0, 1], instead of tau.
        dt: the step.
        integration: how tau gives a, see `decay_factor`.
        learnable: whether a is trained: as the sigmoid of a parameter, which keeps it in (0, 1), one for all neurons or
            one each as tau or decay are given. They must be such that a lies in (0, 1).

    Raises:
        ValueError: if not exactly one of tau and decay is given, or a number is out of its range.

    Source: the parametrisation is that of Fang et al., ICCV 2021 (parametric LIF).
    """

    fixed: Tensor | None

    def __init__(
        self,
        features: int,
        *,
        tau: Number | None = None,
        decay: Number | None = None,
        dt: float = 1.0,
        integration: Integration = "exact",
        learnable: bool = False,
    ):
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}.")
        if tau is not None and decay is None:
            given, a = tau, decay_factor(tau, dt, integration)
        elif decay is not None and tau is None:
            given, a = decay, decay
            require("decay", decay, 0.0, 1.0)
        else:
            raise ValueError("Give either tau or decay, one of the two.")
        if isinstance(given, Tensor) and (given.ndim > 1 or given.shape not in ((), (1,), (features,))):
            raise ValueError(f"tau or decay must be a number or have {features} elements, got {tuple(given.shape)}.")
        self.number: float | None = None
        self.logit = None
        if learnable:
            require("decay", a, 0.0, 1.0, ends=(False, False))
            start = torch.as_tensor(a).detach().to(a.dtype if isinstance(a, Tensor) else torch.get_default_dtype())
            self.logit = nn.Parameter(torch.logit(start).clone())
        elif not isinstance(a, Tensor):
            self.number = a
        self.register_buffer("fixed", a.detach().clone() if isinstance(a, Tensor) and not learnable else None)

    def forward(self, like: Tensor) -> Number:
        """The factor a, a number or a tensor of the type of `like`."""
        if self.logit is not None:
            return torch.sigmoid(self.logit).to(like)
        if self.fixed is not None:
            return self.fixed.to(like)
        assert self.number is not None
        return self.number


class LeakyState(NamedTuple):
    """Integrated values, (batch, neurons)."""

    v: Tensor


class LeakyIntegrator(Circuit):
    """Neurons that integrate with a leak, v = a v + k x, and put v out.

    Args:
        features: number of neurons.
        tau: time constant in the unit of dt, positive; a number or one a neuron.
        decay: a itself, in [0, 1], instead of tau.
        gain: k, a number or one a neuron, trained where it is a parameter; None is 1 - a where tau is given, 1 where
            decay is.
        dt: the step.
        integration: how tau gives a, see `decay_factor`.
        learnable: whether a is trained, see `Decay`.

    Raises:
        ValueError: as `Decay`, or if gain is not finite.
    """

    gain: Tensor | float | None

    def __init__(
        self,
        features: int,
        *,
        tau: Number | None = None,
        decay: Number | None = None,
        gain: Number | None = None,
        dt: float = 1.0,
        integration: Integration = "exact",
        learnable: bool = False,
    ):
        super().__init__()
        self.features = features
        self.decay = Decay(features, tau=tau, decay=decay, dt=dt, integration=integration, learnable=learnable)
        self.approaches = gain is None and tau is not None
        if gain is not None:
            require_finite(gain=gain)
        if isinstance(gain, Tensor) and not isinstance(gain, nn.Parameter):
            self.register_buffer("gain", gain.detach().clone())
        else:
            self.gain = gain

    def init_state(self, batch: int, *, generator: torch.Generator | None = None) -> LeakyState:
        """Integrated values of 0."""
        return LeakyState(torch.zeros(batch, self.features))

    def step(self, x: Tensor, state: LeakyState) -> tuple[Tensor, LeakyState]:
        """Advance by one step; the output is v after it."""
        a = self.decay(state.v)
        past = a * state.v
        if self.gain is not None:
            v = past + (self.gain.to(x) if isinstance(self.gain, Tensor) else self.gain) * x
        else:
            v = past + (1.0 - a) * x if self.approaches else past + x
        return v, LeakyState(v)

    def extra_repr(self) -> str:
        """What print shows."""
        return f"features={self.features}"
