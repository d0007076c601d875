"""Reward-modulated Hebbian learning within a life, by node perturbation (Miconi 2017, 2023).

At every step each neuron i is hit with probability p by delta_i ~ scale U(-1, 1), and every connection remembers

    E_ij <- (1 - dt/tau_trace) (E_ij + delta_i y_j)            y_j: rate of the step before

Once a trial, when its loss m is known (k: type of the trial, of which a running mean of the loss is kept),

    dP = - clip( eta E mbar_k (m - mbar_k), +-clip ),    P <- P + dP,    then    mbar_k <- c mbar_k + (1 - c) m

A perturbation that raised the loss above what is usual for such trials is undone, one that lowered it is kept. The
factor mbar_k turns learning down where the loss is low, and off for a type that was never seen.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["LifetimePlasticity", "LifetimeState"]


class LifetimeState(NamedTuple):
    """What the rule remembers of a life.

    Attributes:
        trace: E, eligibility of every connection, (batch, neurons, neurons), row = target.
        baseline: mbar, running mean of the loss for each type of trial, (batch, kinds).
    """

    trace: Float[Tensor, "batch neurons neurons"]
    baseline: Float[Tensor, "batch kinds"]


@dataclass(frozen=True)
class LifetimePlasticity:
    """The rule by which a net learns within its life; `PlasticRNN` is the net.

    Args:
        prob: probability that a neuron is perturbed in a step.
        scale: largest perturbation of x.
        tau_trace: time constant of the eligibility, ms.
        eta: learning rate.
        clip: largest change of a plastic weight in a trial.
        baseline_decay: c, weight of the past in the running mean of the loss.
        burn_in: trials at the start of a life without learning (the running mean forms).
        quiet: trials at the end of a life without perturbations.

    Raises:
        ValueError: if a number is out of range.

    Source: Miconi, ICML 2023 (arXiv 2112.08588), section 2; Miconi, eLife 6 (2017).
    """

    prob: float = 0.1
    scale: float = 0.5
    tau_trace: float = 1000.0
    eta: float = 0.03
    clip: float = 0.01
    baseline_decay: float = 0.9
    burn_in: int = 31
    quiet: int = 20

    def __post_init__(self):
        if not 0 <= self.prob <= 1:
            raise ValueError(f"prob must lie in [0, 1], got {self.prob}.")
        if not 0 <= self.baseline_decay <= 1:
            raise ValueError(f"baseline_decay must lie in [0, 1], got {self.baseline_decay}.")
        if not self.tau_trace > 0:
            raise ValueError(f"tau_trace must be positive, got {self.tau_trace}.")
        for name in ("scale", "eta", "clip", "burn_in", "quiet"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")

    def initial_state(self, batch: int, neurons: int, kinds: int, *, like: Tensor) -> LifetimeState:
        """Nothing is eligible yet, no loss was met; dtype and device of `like`."""
        return LifetimeState(like.new_zeros(batch, neurons, neurons), like.new_zeros(batch, kinds))

    def perturbations(
        self, *shape: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Draw perturbations: scale U(-1, 1) with probability prob, else 0."""
        device = None if generator is None else generator.device
        hit = torch.rand(shape, generator=generator, device=device) < self.prob
        size = 2 * torch.rand(shape, generator=generator, device=device, dtype=dtype) - 1
        return self.scale * hit * size

    def keep(self, dt: float) -> float:
        """Fraction of the eligibility that is left after a step of dt, ms.

        Raises:
            ValueError: if dt is longer than the trace's time constant.
        """
        if not 0 < dt <= self.tau_trace:
            raise ValueError(f"dt must lie in (0, tau_trace], got dt={dt} and tau_trace={self.tau_trace}.")
        return 1 - dt / self.tau_trace

    def accumulate(
        self,
        state: LifetimeState,
        perturbation: Float[Tensor, "time #batch neurons"],
        presynaptic: Float[Tensor, "time batch neurons"],
        dt: float,
    ) -> LifetimeState:
        """Eligibility after a stretch of time, in one sum: step s of T enters with keep^(T - s + 1).

        Args:
            state: before the stretch.
            perturbation: delta.
            presynaptic: y of the step before each, so the rates shifted by one.
            dt: step, ms.
        """
        steps, keep = len(presynaptic), self.keep(dt)
        powers = keep ** torch.arange(steps, 0, -1, dtype=presynaptic.dtype, device=presynaptic.device)
        deltas = (powers[:, None, None] * perturbation).expand(presynaptic.shape)
        fresh = torch.einsum("tbi,tbj->bij", deltas, presynaptic)
        return state._replace(trace=keep**steps * state.trace + fresh)

    def update(
        self,
        p: Float[Tensor, "batch neurons neurons"],
        state: LifetimeState,
        loss: Float[Tensor, " batch"],
        kind: Int[Tensor, " batch"],
        *,
        learn: bool = True,
    ) -> tuple[Tensor, LifetimeState]:
        """Reward: move P, then the running mean of the loss.

        Args:
            p: plastic weights.
            state: with the trace of the trial.
            loss: m of the trial.
            kind: type of the trial, index into the running means.
            learn: whether P moves; the running mean does in any case.

        Returns:
            The new P and state; the trace is left as it is.
        """
        rows = torch.arange(len(kind), device=kind.device)
        usual = state.baseline[rows, kind]
        if learn:
            surprise = usual * (loss - usual)
            p = p - (self.eta * surprise[:, None, None] * state.trace).clamp(-self.clip, self.clip)
        baseline = state.baseline.clone()
        baseline[rows, kind] = self.baseline_decay * usual + (1 - self.baseline_decay) * loss
        return p, state._replace(baseline=baseline)
