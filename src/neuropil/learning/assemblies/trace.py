"""What is seen of an area over the steps of an operation."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.learning.assemblies.cap import overlap

__all__ = ["Association", "ProjectionTrace", "trace_of"]


class ProjectionTrace(NamedTuple):
    """An area over T steps.

    Attributes:
        winners: that fire after each step, ascending.
        new_winners: how many of them had not fired since the operation began.
        support: how many neurons have fired since it began.
        overlap: with the winners of the step before, as a fraction of k; NaN where there are none.
    """

    winners: Int[Tensor, "steps k"]
    new_winners: Int[Tensor, " steps"]
    support: Int[Tensor, " steps"]
    overlap: Float[Tensor, " steps"]

    def steps_to_convergence(self, quiet: int = 5) -> int:
        """The first step that is followed by `quiet` steps without a new winner, counted from 1; T if there is none.

        Args:
            quiet: number of steps, at least 1.

        Raises:
            ValueError: if quiet is below 1.
        """
        if quiet < 1:
            raise ValueError(f"quiet must be at least 1 step, got {quiet}.")
        new = self.new_winners.tolist()
        for step in range(1, len(new) - quiet + 1):
            if not any(new[step : step + quiet]):
                return step
        return len(new)

    def converged(self, quiet: int = 5) -> bool:
        """Whether there is a step that is followed by `quiet` steps without a new winner."""
        return self.steps_to_convergence(quiet) < len(self.new_winners)


class Association(NamedTuple):
    """Two assemblies before and after they fired together.

    Attributes:
        before: overlap of the assemblies that both sources lead to, before.
        after: the same, after.
        trace: of the area, while both sources fired.
    """

    before: float
    after: float
    trace: ProjectionTrace


def trace_of(winners: list[Tensor], earlier: Tensor | None) -> ProjectionTrace:
    """The trace of an area from its winners at every step, and those before the first."""
    seen: set[int] = set()
    new, support = [], []
    for fired in winners:
        ids = set(fired.tolist())
        new.append(len(ids - seen))
        seen |= ids
        support.append(len(seen))
    pairs = zip([earlier, *winners[:-1]], winners, strict=True)
    shared = [float("nan") if last is None else overlap(last, now) for last, now in pairs]
    return ProjectionTrace(
        torch.stack(winners), torch.tensor(new), torch.tensor(support), torch.tensor(shared, dtype=torch.float64)
    )
