"""How often the values of every unit fall between fixed edges."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.neurons.ranges import require_finite
from neuropil.probes.reducers.base import Reducer, RowNumbers

__all__ = ["Counts", "Histogram"]


@dataclass(frozen=True, eq=False)
class Counts:
    """A histogram of every unit.

    Attributes:
        count: rows, those below and above included.
        edges: ascending.
        counts: rows in [edges[i], edges[i + 1]); the last bin has its upper edge too.
        below: rows under the first edge.
        above: rows over the last.
    """

    count: int
    edges: Float[Tensor, " edges"]
    counts: Int[Tensor, "units bins"]
    below: Int[Tensor, " units"]
    above: Int[Tensor, " units"]

    @property
    def density(self) -> Float[Tensor, "units bins"]:
        """Share of all rows in a bin, divided by its width."""
        return self.counts / (self.count * self.edges.diff())


class Histogram(Reducer):
    """A histogram of every unit.

    Args:
        edges: ascending; or None with the next three.
        low: first of equally spaced edges.
        high: the last.
        bins: how many bins between them.
        dim: the axis of the units; all others are samples.

    Raises:
        ValueError: if edges do not ascend, or are fewer than 2, or bins fewer than 1.
    """

    settings = ("edges",)
    state = ("table",)

    def __init__(
        self,
        edges: Float[Tensor, " edges"] | Sequence[float] | None = None,
        *,
        low: float = -10.0,
        high: float = 15.0,
        bins: int = 256,
        dim: int = -1,
    ):
        super().__init__(dim)
        require_finite(low=low, high=high)
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}.")
        if edges is None:
            edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)
        self.edges = torch.as_tensor(edges, dtype=torch.float64).detach().clone()
        require_finite(edges=self.edges)
        if self.edges.ndim != 1 or len(self.edges) < 2 or bool((self.edges.diff() <= 0).any()):
            raise ValueError(f"edges must ascend and be at least 2, got {self.edges.tolist()}.")

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        self.edges = self.edges.to(device)
        self.table = torch.zeros(self.units[0], len(self.edges) + 1, dtype=torch.long, device=device)

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        x = rows[0].double()
        places = torch.bucketize(x, self.edges, right=True)
        # The last edge belongs to the last bin.
        places[x == self.edges[-1]] = len(self.edges) - 1
        width = self.table.shape[1]
        places += torch.arange(self.units[0], device=x.device) * width
        self.table += torch.bincount(places.flatten(), minlength=self.table.numel()).view_as(self.table)

    def _join(self, other: "Histogram") -> None:
        self.table += other.table.to(self.table.device)

    def result(self) -> Counts:
        """Give the counts.

        Raises:
            ValueError: if nothing was seen.
        """
        self._require_rows()
        table = self.table.clone()
        return Counts(self.count, self.edges.clone(), table[:, 1:-1], table[:, 0], table[:, -1])
