"""Quantiles of every unit of a stream, from a sketch of bounded size.

A sketch is levels of values; one of level h stands for 2^h rows. Level 0 takes the rows in. When all levels together
are full, the lowest that has its share is sorted and every second value, from the first or from the second as a coin
of that unit falls, moves one level up: the rank of any number is right on average, and most of the room is at the top,
where a coin weighs most. All units have seen as many rows, so they are compacted together, and a sketch is a few
tensors (values, units).

    capacity of level h of H = max(8, k (2/3)^(H - 1 - h)):    about 3 k values a unit, however long the stream

Source: Karnin, Lang & Liberty, FOCS 2016.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.neurons.ranges import require
from neuropil.probes.reducers.base import Reducer, RowNumbers

__all__ = ["Quantile", "Quantiles"]


@dataclass(frozen=True, eq=False)
class Quantiles:
    """Quantiles of every unit.

    Attributes:
        count: rows.
        q: which quantiles.
        values: least value with a share of q rows at or below it; values of the stream, not interpolated.
        exact: whether no row had been dropped yet.
    """

    count: int
    q: tuple[float, ...]
    values: Float[Tensor, "quantiles units"]
    exact: bool


class Quantile(Reducer):
    """Quantiles of every unit, exact up to k rows; 0 and 1, the extremes, always are.

    Beyond, the share of rows at or below the value differs from q by about 1/k, hardly ever by more than 2.3 / k^0.9.

    Args:
        q: which quantiles, in [0, 1].
        k: size of the sketch: about 3 k values a unit are held.
        seed: of the coins.
        dim: the axis of the units; all others are samples.

    Raises:
        ValueError: if a quantile is outside [0, 1], there is none, or k is less than 8.
    """

    settings = ("q", "k")
    state = ("minimum", "maximum")

    def __init__(self, q: float | Sequence[float], *, k: int = 256, seed: int = 0, dim: int = -1):
        super().__init__(dim)
        self.q = tuple(map(float, q)) if isinstance(q, Sequence) else (float(q),)
        if not self.q:
            raise ValueError("q must name at least one quantile.")
        for each in self.q:
            require("q", each, 0.0, 1.0)
        if k < 8:
            raise ValueError(f"k must be at least 8, got {k}.")
        self.k = k
        self.generator = torch.Generator().manual_seed(seed)
        self.levels: list[Tensor] = []

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        dtype = torch.promote_types(dtype, torch.float32)
        self.levels = [torch.empty(0, self.units[0], dtype=dtype, device=device)]
        self.minimum = torch.full((self.units[0],), torch.inf, dtype=dtype, device=device)
        self.maximum = -self.minimum

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        x = rows[0].to(self.minimum.dtype)
        low, high = torch.aminmax(x, dim=0)
        self.minimum, self.maximum = torch.minimum(self.minimum, low), torch.maximum(self.maximum, high)
        self.levels[0] = torch.cat([self.levels[0], x])
        self._compress()

    def _capacity(self, level: int) -> int:
        return max(8, math.ceil(self.k * (2 / 3) ** (len(self.levels) - 1 - level)))

    def _compress(self) -> None:
        while sum(map(len, self.levels)) > sum(self._capacity(level) for level in range(len(self.levels))):
            level = next(h for h, values in enumerate(self.levels) if len(values) >= self._capacity(h))
            if level + 1 == len(self.levels):
                self.levels.append(self.minimum.new_empty(0, self.units[0]))
            values = self.levels[level].sort(0).values
            paired = len(values) // 2 * 2
            coin = torch.randint(2, (1, values.shape[1]), generator=self.generator).to(values.device)
            chosen = torch.where(coin.bool(), values[1:paired:2], values[:paired:2])
            self.levels[level] = values[paired:].clone()
            self.levels[level + 1] = torch.cat([self.levels[level + 1], chosen])

    def _join(self, other: "Quantile") -> None:
        device = self.minimum.device
        self.minimum = torch.minimum(self.minimum, other.minimum.to(device))
        self.maximum = torch.maximum(self.maximum, other.maximum.to(device))
        while len(self.levels) < len(other.levels):
            self.levels.append(self.minimum.new_empty(0, self.units[0]))
        for level, values in enumerate(other.levels):
            self.levels[level] = torch.cat([self.levels[level], values.to(self.levels[level])])
        self._compress()

    def state_dict(self) -> dict[str, Tensor]:
        """Give the sketch, as copies."""
        state = super().state_dict() | {"generator": self.generator.get_state()}
        if self.units:
            sizes = torch.tensor([len(values) for values in self.levels])
            state |= {"items": torch.cat(self.levels), "sizes": sizes}
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, coins included.

        Raises:
            ValueError: if entries are missing.
        """
        wanted = {"generator"} | ({"items", "sizes"} if len(state.get("units", ())) else set())
        if missing := wanted - set(state):
            raise ValueError(f"The state of a Quantile lacks {sorted(missing)}.")
        super().load_state_dict(state)
        self.generator.set_state(state["generator"])
        self.levels = list(state["items"].clone().split(state["sizes"].tolist())) if self.units else []

    def result(self) -> Quantiles:
        """Give the quantiles.

        Raises:
            ValueError: if nothing was seen.
        """
        self._require_rows()
        items = torch.cat(self.levels)
        values, order = items.sort(0)
        weights = torch.cat([torch.full((len(v),), 2**h) for h, v in enumerate(self.levels)]).to(items.device)
        ranks = weights[order].cumsum(0)
        found = []
        for q in self.q:
            target = max(1, math.ceil(q * self.count - 1e-9))  # 0.9 of 10 rows is the ninth, whatever 0.9 * 10 is
            place = (ranks < target).sum(0, keepdim=True).clamp_(max=len(items) - 1)
            found.append(values.gather(0, place).squeeze(0))
            if target == 1:
                found[-1] = self.minimum.clone()
            elif target == self.count:
                found[-1] = self.maximum.clone()
        return Quantiles(self.count, self.q, torch.stack(found), len(items) == self.count)
