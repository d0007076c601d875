"""One loop for everything that relaxes: circuits, energy models, fixed points.

    s_{k+1} = s_k + damping * (step(s_k) - s_k),      until   max |step(s) - s| / (1 + |s|) < tol   for each sample

Samples never interact: each has its own residual and its own damping, which is halved whenever its steps grow, so
that one stiff sample neither stops the others nor diverges.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["NotSettledError", "Settled", "settle"]

State = tuple[Tensor, ...]
GROWTH = 1.05  # a residual that wobbles at the level of rounding is not growth
SMALLEST_DAMPING = 2.0**-12


class Settled(NamedTuple):
    """A relaxed state.

    Attributes:
        state: as given, relaxed.
        residual: largest scaled change of the last step.
        settled: which samples are below the tolerance.
        steps: number of steps taken.
    """

    state: State
    residual: Float[Tensor, " batch"]
    settled: Bool[Tensor, " batch"]
    steps: int


class NotSettledError(ValueError):
    """More than half of a batch did not reach a fixed point; the message names the worst entry and its residual.

    Attributes:
        result: how far it came; None where there is nothing to show.
    """

    def __init__(self, message: str, result: Settled | None = None):
        super().__init__(message)
        self.result = result


def settle(
    step: Callable[[State], State],
    state: State,
    *,
    steps: int = 100,
    tol: float = 1e-5,
    damping: float | Sequence[float] = 1.0,
    names: Sequence[str] | None = None,
) -> Settled:
    """Iterate a map to its fixed point, sample by sample.

    Args:
        step: the map; takes and returns the tuple of tensors, each (batch, ...). It may overwrite nothing it is given.
        state: where to start.
        steps: the most steps to take, at least 1.
        tol: scaled residual below which a sample counts as settled.
        damping: fraction of each step that is taken, in (0, 1], for all entries or one an entry. An entry at exactly 1
            is taken whole always (a Newton step, or a quantity that follows from the others); any other is halved for a
            sample whose steps grow.
        names: of the entries, for the message.

    Returns:
        The state with its residuals. Samples that have not settled are marked, not hidden.

    Raises:
        NotSettledError: if more than half of the samples have not settled.
        ValueError: if an argument is out of range.
    """
    factors = _check(state, steps, tol, damping)
    adaptive = [factor < 1 for factor in factors]
    relax = torch.ones(len(state[0]), dtype=state[0].dtype, device=state[0].device)
    previous = torch.full_like(relax, torch.inf)
    residuals: list[Tensor] = []
    residual = previous
    taken = 0
    for taken in range(1, steps + 1):  # noqa: B007 - the count is returned
        proposal = step(state)
        changes = [new - old for new, old in zip(proposal, state, strict=True)]
        sizes = [change.abs() for change in changes]
        length = _largest([size.flatten(1).amax(1) for size in sizes]) if any(adaptive) else previous
        residuals = [_residual(size, old) for size, old in zip(sizes, state, strict=True)]
        residual = _largest(residuals)
        worst = float(residual.max()) if residual.numel() else 0.0
        if worst < tol:
            state = proposal
            break
        if not math.isfinite(worst):  # stay where the map still had a value
            proposal = tuple(
                torch.where(torch.isfinite(new), new, old) for new, old in zip(proposal, state, strict=True)
            )
            changes = [new - old for new, old in zip(proposal, state, strict=True)]
        if any(adaptive):
            # By its length: scaled by the state, a step that runs away with it looks steady. NaN grows.
            growing = ~(length <= GROWTH * previous)
            if bool(growing.any()):
                relax = torch.where(growing, (relax / 2).clamp(min=SMALLEST_DAMPING), relax)
        state = tuple(
            old + (_like(relax, change) * factor) * change if halved else old + factor * change if factor < 1 else new
            for new, old, change, factor, halved in zip(proposal, state, changes, factors, adaptive, strict=True)
        )
        previous = length
    result = Settled(state, residual, residual < tol, taken)
    if 2 * int(result.settled.sum()) < len(residual):
        raise NotSettledError(_complaint(residuals, result.settled, taken, tol, names), result)
    return result


def _check(state: State, steps: int, tol: float, damping: float | Sequence[float]) -> list[float]:
    if not state:
        raise ValueError("state is empty: there is nothing to settle.")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if not tol > 0:
        raise ValueError(f"tol must be positive, got {tol}.")
    factors = [damping] * len(state) if isinstance(damping, (int, float)) else list(damping)
    if len(factors) != len(state):
        raise ValueError(f"damping has {len(factors)} entries, the state {len(state)}.")
    if not all(0 < factor <= 1 for factor in factors):
        raise ValueError(f"damping must lie in (0, 1], got {damping}.")
    return [float(factor) for factor in factors]


def _largest(values: list[Tensor]) -> Float[Tensor, " batch"]:
    return values[0] if len(values) == 1 else torch.stack(values).amax(0)


def _residual(size: Tensor, old: Tensor) -> Float[Tensor, " batch"]:
    return size.div_(old.abs().add_(1)).flatten(1).amax(1)


def _like(values: Float[Tensor, " batch"], other: Tensor) -> Tensor:
    return values.view(-1, *[1] * (other.dim() - 1))


def _complaint(residuals: list[Tensor], settled: Tensor, steps: int, tol: float, names: Sequence[str] | None) -> str:
    worst = torch.stack([values.nan_to_num(nan=torch.inf).max() for values in residuals])
    entry = int(worst.argmax())
    name = names[entry] if names else f"entry {entry}"
    return (
        f"{int((~settled).sum())} of {len(settled)} samples have not settled after {steps} steps: "
        f"{name} still moves by {float(worst[entry]):.3g} (tol {tol:.3g})."
    )
