"""Inference: activities move until they agree with what each stage predicts from below and needs from above.

    e_l = h_l - p_l                                   l = 1..N-1 hidden, p_l the prediction of stage l at h_{l-1}
    h_l <- h_l - own * e_l + above * (dp_{l+1}/dh_l)^T e_{l+1} - decay * h_l         all l at once, e_N at the output

With own = above this is gradient descent on the free energy  F = sum_l ||e_l||^2/2 + E_N  of every sample. With other
rates it is descent, preconditioned, on

    G = sum_l c^l (||e_l||^2/2 + decay/(2 own) ||h_l||^2) + c^N E_N,      c = above/own

which is what the guard watches: a step that would raise G is taken back, and the rates are halved.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.learning.energy.circuit import Circuit

__all__ = ["Evaluate", "Inference", "Relaxed", "advance", "energies", "relax", "require_finite"]

SLACK = 1e-6  # relative: what rounding may add to an energy
Evaluate = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], Tensor]]
"""(activities, predictions) -> (errors e_1..e_N, energy of every stage, mean over samples)."""


class Relaxed(NamedTuple):
    """Where inference ended.

    Attributes:
        activities: h_1..h_{N-1}.
        errors: e_1..e_N there.
        energy: mean over samples of every stage's energy, before the first step and after each.
    """

    activities: list[Tensor]
    errors: list[Tensor]
    energy: Float[Tensor, "steps stages"]


@dataclass(frozen=True)
class Inference:
    """How activities move.

    Attributes:
        steps: of inference, at least 1.
        own: rate on a stage's own error; a number, or one a replica.
        above: rate on what the stage above sends.
        decay: of the activities, per step.
        tol: stop when no activity moves by more than tol * (1 + |h|); None takes all steps.
        guard: whether a step that raises G is taken back.
    """

    steps: int
    own: float | Tensor
    above: float | Tensor
    decay: float = 0.0
    tol: float | None = None
    guard: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")
        for name in ("own", "above", "decay"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value < math.inf:
                raise ValueError(f"the rate {name!r} must be a finite number of at least 0, got {value}.")
        if self.tol is not None and not self.tol > 0:
            raise ValueError(f"tol must be positive, got {self.tol}.")


def energies(errors: Sequence[Tensor], output: Tensor) -> Tensor:
    """Energy of every stage, mean over samples: half the squared errors, and the output's own."""
    flat = [error.reshape(-1) for error in errors[:-1]]
    size = 2 * len(errors[-1])
    return torch.stack([*(torch.dot(e, e).div_(size).to(output.dtype) for e in flat), output])


def advance(
    activities: Sequence[Tensor],
    errors: Sequence[Tensor],
    pulled: Sequence[Tensor],
    own: Tensor,
    above: Tensor,
    decay: float | Tensor = 0.0,
) -> list[Tensor]:
    """One synchronous step of all activities."""
    moved = []
    for h, e, sent in zip(activities, errors, pulled, strict=False):
        new = torch.addcmul(h, e, own, value=-1).addcmul_(sent, above)
        moved.append(
            new.addcmul_(h, torch.as_tensor(decay).to(h), value=-1) if isinstance(decay, Tensor) or decay else new
        )
    return moved


def relax(
    circuit: Circuit,
    activities: list[Tensor],
    predictions: list[Tensor],
    evaluate: Evaluate,
    inference: Inference,
) -> Relaxed:
    """Take the steps of inference; afterwards the circuit stands at the relaxed activities.

    Args:
        circuit: of the net, which has made the predictions.
        activities: where to start.
        predictions: there.
        evaluate: makes errors and energies.
        inference: how to move.

    Raises:
        FloatingPointError: if an energy is no longer finite, with the step and the stage.
    """
    errors, energy = evaluate(activities, predictions)
    trace = [energy]
    own, above, decay = (_like(rate, predictions[-1]) for rate in (inference.own, inference.above, inference.decay))
    height = _height(inference, activities, energy) if inference.guard else 0.0
    pulled: list[Tensor] | None = None
    here = True  # whether the circuit stands at the activities
    for _ in range(inference.steps if activities else 0):
        pulled = circuit.pull(errors) if pulled is None else pulled
        proposal = advance(activities, errors, pulled, own, above, decay if inference.decay else 0.0)
        found = evaluate(proposal, circuit.predict(proposal))
        if inference.guard:
            new = _height(inference, proposal, found[1])
            if not new <= height + SLACK * abs(height):
                require_finite(trace[0], 0, inference)
                own, above, decay, here = own / 2, above / 2, decay / 2, False
                trace.append(energy)
                continue
            height = new
        settled = inference.tol is not None and _still(proposal, activities, inference.tol)
        (errors, energy), activities, pulled, here = found, proposal, None, True
        trace.append(energy)
        if settled:
            break
    if not here:
        circuit.predict(activities)
    table = torch.stack(trace)
    require_finite(table, 0, inference)
    return Relaxed(activities, errors, table)


def require_finite(trace: Tensor, step: int, inference: Inference, names: Sequence[str] | None = None) -> None:
    """Raise where a number of a trace is not finite.

    Args:
        trace: energies, (steps, stages) or (stages,).
        step: of the first row.
        inference: for the message.
        names: of the stages.

    Raises:
        FloatingPointError: naming step, stage and rates.
    """
    table = trace.reshape(-1, trace.shape[-1])
    bad = ~torch.isfinite(table)
    if not bool(bad.any()):
        return
    row = int(bad.any(1).nonzero()[0])
    stage = int(bad[row].nonzero()[0])
    where = names[stage] if names else f"stage {stage + 1} of {table.shape[-1]}"
    if row + step == 0:
        raise FloatingPointError(f"The energy of {where} is {float(table[row, stage])} before inference has begun.")
    raise FloatingPointError(
        f"Inference diverged: at step {row + step} the energy of {where} is {float(table[row, stage])}, "
        f"at rates {_shown(inference.own)} (own error) and {_shown(inference.above)} (from above). Lower them."
    )


def _shown(rate: float | Tensor) -> str:
    return f"up to {float(rate.max()):g}" if isinstance(rate, Tensor) else f"{rate:g}"


def _like(rate: float | Tensor, other: Tensor) -> Tensor:
    return torch.as_tensor(rate, dtype=other.dtype, device=other.device)


def _height(inference: Inference, activities: Sequence[Tensor], energy: Tensor) -> float:
    """G, mean over samples."""
    own, above = float(inference.own), float(inference.above)
    ratio = above / own
    values = energy.tolist()
    total = sum(ratio**power * value for power, value in enumerate(values, start=1))
    if inference.decay:
        sizes = [float(h.square().sum()) / len(h) for h in activities]
        factor = inference.decay / (2 * own)
        total += sum(factor * ratio**power * size for power, size in enumerate(sizes, start=1))
    return total


def _still(new: Sequence[Tensor], old: Sequence[Tensor], tol: float) -> bool:
    return all(bool(((a - b).abs() <= tol * (1 + b.abs())).all()) for a, b in zip(new, old, strict=True))
