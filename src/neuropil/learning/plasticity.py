"""Local plasticity: the new weight of a synapse from its own two neurons, and from nothing else.

w_ij leads from neuron i to neuron j. One call sees x_i(t), the presynaptic activity, and y_j(t+1), the postsynaptic
activity one step later. Activities are 0 or 1 for neurons that fire or not, or rates.

    HebbMultiplicative   w <- (1 + beta x y) w
    Hebb                 w <- w + eta x y
    Oja                  w <- w + eta y (x - y w)
    BCM                  w <- w + eta x y (y - theta_j),         theta_j <- theta_j + (y^2 - theta_j) / tau
    STDP                 w <- w + a_plus X_i y - a_minus Y_j x,  then clipped to [0, w_max]

X_i and Y_j are traces of the spikes of i up to t and of the spikes of j before t. A pair of spikes changes the weight
by a_plus exp(-d / tau_plus) if j fires d > 0 steps after i, by -a_minus exp(-d / tau_minus) if d steps before i, and
not at all if both fire at once. "nearest" pairs every spike with the last one of the partner, "all" with all earlier
ones:

    X <- e^(-1/tau) (x + (1 - x) X)    nearest                   X <- e^(-1/tau) (x + X)    all

The spike of i that completes a pair with an earlier one of j is presented as `pre` of the next call: that pair counts
there.

Every rule leaves a synapse alone whose postsynaptic neuron has never fired, and whatever lies outside the mask. States
begin at zero, so the state of a neuron that never fired is zero too: networks may create neurons late.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["BCM", "STDP", "Hebb", "HebbMultiplicative", "Oja", "PlasticityRule", "Traces"]


class Traces(NamedTuple):
    """What a rule remembers of the neurons at both ends.

    Attributes:
        pre: X_i, like the presynaptic activity.
        post: Y_j, or BCM's threshold theta_j, like the postsynaptic activity.
        last: postsynaptic activity of the call before.
    """

    pre: Tensor
    post: Tensor
    last: Tensor


class PlasticityRule(ABC):
    """One step of change, for weights with any leading shape.

    `update` is the rule of single synapses: all its arguments only have to broadcast against each other, so that it
    serves a matrix, a batch of matrices or a list of synapses. `advance` is the rule of single neurons. A call does
    both for matrices.
    """

    def __call__(
        self,
        w: Float[Tensor, "*batch pre post"],
        pre: Float[Tensor, "*batch pre"],
        post: Float[Tensor, "*batch post"],
        traces: Traces | None = None,
        *,
        mask: Bool[Tensor, "*#batch pre post"] | None = None,
    ) -> tuple[Float[Tensor, "*batch pre post"], Traces]:
        """Change the weights once.

        Args:
            w: weights from rows to columns.
            pre: activity x(t) of the rows.
            post: activity y(t+1) of the columns.
            traces: what the call before returned; None at the beginning.
            mask: which synapses exist; the others keep their weight. None: all.

        Returns:
            The new weights (the old ones are left as they are), and the traces for the next call.
        """
        traces = self.start(pre, post) if traces is None else traces
        seen = Traces(traces.pre[..., :, None], traces.post[..., None, :], traces.last[..., None, :])
        changed = self.update(w, pre[..., :, None], post[..., None, :], seen)
        return changed if mask is None else torch.where(mask, changed, w), self.advance(traces, pre, post)

    def start(self, pre: Float[Tensor, "*pre"], post: Float[Tensor, "*post"]) -> Traces:
        """Traces of neurons that have not fired yet."""
        return Traces(torch.zeros_like(pre), torch.zeros_like(post), torch.zeros_like(post))

    @abstractmethod
    def update(self, w: Tensor, pre: Tensor, post: Tensor, traces: Traces) -> Tensor:
        """New weights of synapses, from the activity and the traces at their two ends; all shapes broadcast."""

    def advance(self, traces: Traces, pre: Tensor, post: Tensor) -> Traces:
        """Traces after the step; rules without memory keep theirs."""
        return traces

    def rest(self, traces: Traces) -> Traces:
        """Traces after a pause so long that spikes from before and after it are no pairs."""
        return traces


@dataclass(frozen=True)
class HebbMultiplicative(PlasticityRule):
    """Growth in proportion to the weight, as the Assembly Calculus has it; unbounded.

    Args:
        beta: relative growth at each joint firing, at least 0.

    Raises:
        ValueError: if beta is negative or not finite.

    Source: Papadimitriou, Vempala, Mitropolsky, Collins & Maass, PNAS 117 (2020), "The model".
    """

    beta: float = 0.05

    def __post_init__(self):
        _not_negative(beta=self.beta)

    def update(self, w: Tensor, pre: Tensor, post: Tensor, traces: Traces) -> Tensor:
        """(1 + beta x y) w."""
        return w * (1 + self.beta * pre * post)


@dataclass(frozen=True)
class Hebb(PlasticityRule):
    """Growth by the product of the activities; unbounded.

    Args:
        eta: growth at each joint firing, at least 0.

    Raises:
        ValueError: if eta is negative or not finite.

    Source: Hebb, The Organization of Behavior (1949).
    """

    eta: float = 0.05

    def __post_init__(self):
        _not_negative(eta=self.eta)

    def update(self, w: Tensor, pre: Tensor, post: Tensor, traces: Traces) -> Tensor:
        """W + eta x y."""
        return w + self.eta * pre * post


@dataclass(frozen=True)
class Oja(PlasticityRule):
    """Hebbian growth with a decay that bounds the weights.

    With activities of 0 and 1 the weight tends to the probability that i fires given that j does: it stays within
    [0, 1], or falls from a larger first weight. With rates and a linear neuron it tends to the first principal
    component, of norm 1.

    Args:
        eta: rate, between 0 and 1.

    Raises:
        ValueError: if eta lies outside [0, 1].

    Source: Oja, J. Math. Biol. 15 (1982), eq. 3.
    """

    eta: float = 0.05

    def __post_init__(self):
        _not_negative(eta=self.eta)
        if self.eta > 1:
            raise ValueError(f"eta must be at most 1, got {self.eta}: the decay would overshoot zero.")

    def update(self, w: Tensor, pre: Tensor, post: Tensor, traces: Traces) -> Tensor:
        """W + eta y (x - y w)."""
        return w + self.eta * post * (pre - post * w)


@dataclass(frozen=True)
class BCM(PlasticityRule):
    """Depression below and potentiation above a threshold that slides with the neuron's own activity.

    Args:
        eta: rate, at least 0.
        tau: steps over which the threshold follows the squared activity, at least 1.

    Raises:
        ValueError: if eta is negative or tau below 1.

    Source: Bienenstock, Cooper & Munro, J. Neurosci. 2 (1982); threshold as in Intrator & Cooper, Neural Networks 5
        (1992).
    """

    eta: float = 0.05
    tau: float = 10.0

    def __post_init__(self):
        _not_negative(eta=self.eta)
        if not (math.isfinite(self.tau) and self.tau >= 1):
            raise ValueError(f"tau must be at least 1 step, got {self.tau}.")

    def update(self, w: Tensor, pre: Tensor, post: Tensor, traces: Traces) -> Tensor:
        """W + eta x y (y - theta)."""
        return w + self.eta * pre * post * (post - traces.post)

    def advance(self, traces: Traces, pre: Tensor, post: Tensor) -> Traces:
        """Theta + (y^2 - theta) / tau."""
        return traces._replace(post=traces.post + (post**2 - traces.post) / self.tau)


@dataclass(frozen=True)
class STDP(PlasticityRule):
    """Spike-timing-dependent plasticity in discrete time: which of the two fires first decides the sign.

    Args:
        a_plus: potentiation of a synapse whose neuron i fires before j, at zero distance; at least 0.
        a_minus: depression if i fires after j, at least 0.
        tau_plus: steps over which potentiation fades with the distance, above 0.
        tau_minus: the same for depression.
        w_max: largest weight that a change can reach, above 0.
        pairing: "nearest" spikes or "all".

    Raises:
        ValueError: if an argument is out of range.

    Source: Song, Miller & Abbott, Nat. Neurosci. 3 (2000), eq. 1; pairings as in Morrison, Diesmann & Gerstner, Biol.
        Cybern. 98 (2008), section 4.1.
    """

    a_plus: float = 0.05
    a_minus: float = 0.02
    tau_plus: float = 1.0
    tau_minus: float = 1.0
    w_max: float = math.inf
    pairing: Literal["nearest", "all"] = "nearest"

    def __post_init__(self):
        _not_negative(a_plus=self.a_plus, a_minus=self.a_minus)
        for name, value in (("tau_plus", self.tau_plus), ("tau_minus", self.tau_minus), ("w_max", self.w_max)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}.")
        if self.pairing not in ("nearest", "all"):
            raise ValueError(f'pairing must be "nearest" or "all", got {self.pairing!r}.')

    def update(self, w: Tensor, pre: Tensor, post: Tensor, traces: Traces) -> Tensor:
        """W + a_plus X y - a_minus Y x, clipped where it changes."""
        causal = self._trace(traces.pre, pre, self.tau_plus)
        change = self.a_plus * causal * post - self.a_minus * traces.post * pre
        return torch.where(change == 0, w, (w + change).clamp(0, self.w_max))

    def advance(self, traces: Traces, pre: Tensor, post: Tensor) -> Traces:
        """X takes up the spikes of this call, Y those of the call before."""
        return Traces(
            pre=self._trace(traces.pre, pre, self.tau_plus),
            post=self._trace(traces.post, traces.last, self.tau_minus),
            last=post,
        )

    def rest(self, traces: Traces) -> Traces:
        """Nothing remembered."""
        return Traces(*(torch.zeros_like(trace) for trace in traces))

    def _trace(self, trace: Tensor, spikes: Tensor, tau: float) -> Tensor:
        kept = (1 - spikes) * trace if self.pairing == "nearest" else trace
        return math.exp(-1 / tau) * (spikes + kept)


def _not_negative(**rates: float) -> None:
    for name, value in rates.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and at least 0, got {value}.")
