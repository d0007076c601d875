"""How often every unit is active: at all, at each position, and on each token.

Source: Voita, Ferrando & Nalmpantis, Findings of ACL 2024 (dead, n-gram and positional neurons).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.neurons.ranges import require_finite
from neuropil.probes.reducers.base import Reducer, RowNumbers

__all__ = ["Activity", "ActivityCounter"]


@dataclass(frozen=True, eq=False)
class Activity:
    """Counts of activity.

    Attributes:
        count: rows.
        threshold: above which a unit was called active.
        active: rows in which a unit was.
        position_rows: rows at a position, or None; so are the next where they were not counted.
        position_active: of these, rows in which a unit was active.
        token_rows: rows with a token.
        token_active: of these, rows in which a unit was active.
    """

    count: int
    threshold: float
    active: Int[Tensor, " units"]
    position_rows: Int[Tensor, " positions"] | None
    position_active: Int[Tensor, "positions units"] | None
    token_rows: Int[Tensor, " tokens"] | None
    token_active: Int[Tensor, "tokens units"] | None

    @property
    def frequency(self) -> Float[Tensor, " units"]:
        """Share of the rows in which a unit was active."""
        return self.active.double() / self.count

    @property
    def dead(self) -> Bool[Tensor, " units"]:
        """Units that were never active."""
        return self.active == 0

    @property
    def dead_bound(self) -> float:
        """Upper 95% bound on the frequency of a unit that was never active in so many rows, about 3 / count."""
        return 1 - 0.05 ** (1 / self.count)

    @property
    def position_frequency(self) -> Float[Tensor, "positions units"] | None:
        """Share of the rows at a position in which a unit was active; NaN at positions without rows."""
        if self.position_active is None or self.position_rows is None:
            return None
        return self.position_active.double() / self.position_rows[:, None]

    @property
    def token_frequency(self) -> Float[Tensor, "tokens units"] | None:
        """Share of the rows with a token in which a unit was active; NaN for tokens without rows."""
        if self.token_active is None or self.token_rows is None:
            return None
        return self.token_active.double() / self.token_rows[:, None]


class ActivityCounter(Reducer):
    """Counts rows in which a unit is active: true, or above a threshold.

    Args:
        threshold: a unit is active above it, not at it; what that means for units that are not rectified is for the
            caller to say.
        positions: how many positions to count apart, or None.
        tokens: how many tokens there are, to count them apart, or None; takes 8 bytes a token and unit.
        dim: the axis of the units.

    Raises:
        ValueError: if the threshold is not finite, or there are to be less than 1 position or token.
    """

    settings = ("threshold", "positions", "tokens")
    state = ("active", "position_rows", "position_active", "token_rows", "token_active")

    def __init__(
        self, threshold: float = 0.0, *, positions: int | None = None, tokens: int | None = None, dim: int = -1
    ):
        super().__init__(dim)
        require_finite(threshold=threshold)
        for name, number in (("positions", positions), ("tokens", tokens)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self.threshold, self.positions, self.tokens = float(threshold), positions, tokens

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.long, device=device)

        self.active = zeros(self.units[0])
        self.position_rows = self.position_active = self.token_rows = self.token_active = None
        if self.positions is not None:
            self.position_rows, self.position_active = zeros(self.positions), zeros(self.positions, self.units[0])
        if self.tokens is not None:
            self.token_rows, self.token_active = zeros(self.tokens), zeros(self.tokens, self.units[0])

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        """`context` may hold tokens, one a row, and positions, one a row or one a position of the sample."""
        x = rows[0]
        active = (x if x.dtype == torch.bool else x > self.threshold).long()
        self.active += active.sum(0)
        if self.position_rows is not None and self.position_active is not None:
            given = context.get("positions")
            where = numbers.position if given is None else self._labels("positions", given, numbers)
            _count(self.position_rows, self.position_active, where, active, "position")
        if self.token_rows is not None and self.token_active is not None:
            if context.get("tokens") is None:
                raise ValueError("ActivityCounter(tokens=...) needs the tokens of every batch: update(x, tokens=...).")
            _count(
                self.token_rows, self.token_active, self._labels("tokens", context["tokens"], numbers), active, "token"
            )

    def _labels(self, name: str, labels: Tensor, numbers: RowNumbers) -> Tensor:
        flat = labels.reshape(-1).to(numbers.row.device)
        if name == "positions" and len(flat) == numbers.positions:
            return flat[numbers.position]
        if int(numbers.row.max()) >= len(flat):
            raise ValueError(f"{name} of shape {tuple(labels.shape)} are fewer than the rows of the batch.")
        return flat[numbers.row]

    def _join(self, other: "ActivityCounter") -> None:
        for name in self.state:
            if getattr(self, name) is not None:
                getattr(self, name).add_(getattr(other, name).to(self.active.device))

    def _optional(self) -> set[str]:
        names = set()
        if self.positions is None:
            names |= {"position_rows", "position_active"}
        return names | ({"token_rows", "token_active"} if self.tokens is None else set())

    def result(self) -> Activity:
        """Give the counts.

        Raises:
            ValueError: if nothing was seen.
        """
        self._require_rows()
        position_rows, position_active, token_rows, token_active = (
            None if each is None else each.clone()
            for each in (self.position_rows, self.position_active, self.token_rows, self.token_active)
        )
        active = self.active.clone()
        return Activity(self.count, self.threshold, active, position_rows, position_active, token_rows, token_active)


def _count(rows: Tensor, active: Tensor, where: Tensor, now: Tensor, what: str) -> None:
    if int(where.min()) < 0 or int(where.max()) >= len(rows):
        raise ValueError(f"There are {what}s {int(where.min())} to {int(where.max())}, room for {len(rows)}.")
    rows += torch.bincount(where, minlength=len(rows))
    active.index_add_(0, where, now)
