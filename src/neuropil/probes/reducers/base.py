"""What every reducer does: lay tensors out as rows of units, leave out what is masked, check, and hand on by chunks.

A tensor (samples, positions..., units) is read as samples * positions rows of units. Chunks bound what is converted to
float64 at a time, whatever the size of a batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

__all__ = ["CHUNK", "Reducer", "RowNumbers"]

CHUNK = 2**20
"""Entries that are worked on at a time."""
Grid = tuple[int, int]


class RowNumbers(NamedTuple):
    """Which rows of a batch a chunk holds.

    Attributes:
        row: number in the batch, samples first.
        positions: how many rows a sample has.
    """

    row: Int[Tensor, " rows"]
    positions: int

    @property
    def sample(self) -> Int[Tensor, " rows"]:
        """Number of the sample in the batch."""
        return self.row // self.positions

    @property
    def position(self) -> Int[Tensor, " rows"]:
        """Number of the row in its sample."""
        return self.row % self.positions


def _laid_out(batch: Tensor, dim: int, grid: Grid | None) -> Tensor:
    """(samples, positions, units): a view wherever there is one."""
    if batch.ndim < 2 or not -batch.ndim <= dim < batch.ndim or dim % batch.ndim == 0:
        raise ValueError(f"A batch is (samples, ..., units), units along dim={dim}; got shape {tuple(batch.shape)}.")
    units = batch.movedim(dim, -1)
    if grid is not None and units.ndim == 2 and len(units) == grid[0] * grid[1]:
        return units.unflatten(0, grid)  # some models flatten (batch, tokens) before their linear layers
    return units.reshape(len(units), math.prod(units.shape[1:-1]), units.shape[-1])


def _kept(mask: Tensor | None, samples: int, positions: int) -> Tensor | None:
    """One truth value a row."""
    if mask is None:
        return None
    if mask.numel() == samples * positions:
        return mask.reshape(-1)
    if mask.shape == (samples,):
        return mask.repeat_interleave(positions)
    raise ValueError(f"mask of shape {tuple(mask.shape)} does not go with {samples} samples of {positions} positions.")


class Reducer(ABC):
    """A statistic of a stream, held in bounded memory.

    `update` takes the batches one by one, `merge` takes in what another has seen as if it had come after, `result`
    gives a frozen dataclass, `state_dict` a flat mapping to tensors, which safetensors can save.

    Args:
        dim: the axis of the units, -1 in transformers, 1 in convolutional nets; never 0, the samples. All others count
            as positions.

    Attributes:
        samples: entries of axis 0 seen so far.
        count: rows seen so far, without what was masked.
    """

    arity: ClassVar[int] = 1
    """How many tensors an update takes."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Attributes that two reducers must share to be merged."""
    state: ClassVar[tuple[str, ...]] = ()
    """Names of the tensors that are accumulated; they are None before the first update."""

    def __init__(self, dim: int = -1):
        self.dim = dim
        self.samples = 0
        self.count = 0
        self.units: tuple[int, ...] = ()

    def update(
        self, *batch: Tensor, mask: Bool[Tensor, "..."] | None = None, grid: Grid | None = None, **context: Any
    ) -> None:
        """Take in a batch.

        Args:
            *batch: (samples, ..., units), as many tensors as the reducer takes; boolean or numbers.
            mask: true for the rows that count: one entry a sample, or one a row; None counts all.
            grid: (batch, tokens) where a tensor (batch * tokens, units) is to be read as (batch, tokens, units).
            **context: what some reducers ask for and others ignore.

        Raises:
            ValueError: if shapes do not go together, or units are more or fewer than before.
            FloatingPointError: if a value that counts is not finite.
        """
        if len(batch) != self.arity:
            raise ValueError(f"{type(self).__name__} takes {self.arity} tensors at a time, got {len(batch)}.")
        laid = [_laid_out(each.detach(), self.dim, grid) for each in batch]
        samples, positions, _ = laid[0].shape
        if any(each.shape[:2] != laid[0].shape[:2] for each in laid):
            raise ValueError(f"Tensors differ in samples or positions: {[tuple(each.shape) for each in batch]}.")
        units = tuple(each.shape[-1] for each in laid)
        if self.units and units != self.units:
            raise ValueError(f"{type(self).__name__} has seen {self.units} units, now there are {units}.")
        keep = _kept(mask, samples, positions)
        if not self.units:
            self.units = units
            self._allocate(laid[0].device, laid[0].dtype)
        flat = [each.reshape(samples * positions, each.shape[-1]) for each in laid]
        size = max(1, CHUNK // max(1, sum(units)))
        for start in range(0, samples * positions, size):
            index = torch.arange(start, min(start + size, samples * positions), device=flat[0].device)
            rows = [each[start : start + size] for each in flat]
            if keep is not None:
                chosen = keep[start : start + size].to(index.device)
                index, rows = index[chosen], [each[chosen] for each in rows]
            if len(index):
                self._check_finite(rows)
                self._absorb(rows, RowNumbers(index, max(positions, 1)), context)
                self.count += len(index)
        self.samples += samples

    def merge(self, other: "Reducer") -> None:
        """Take in what another reducer has seen, as if its stream had come after this one's.

        Raises:
            ValueError: if it is of another kind, has other settings, or has seen another number of units.
        """
        if type(other) is not type(self) or other is self:
            raise ValueError(f"A {type(self).__name__} merges with another {type(self).__name__}, not {other!r}.")
        for name in ("dim", *self.settings):
            mine, its = getattr(self, name), getattr(other, name)
            if not (torch.equal(mine.cpu(), its.cpu()) if isinstance(mine, Tensor) else mine == its):
                raise ValueError(f"{type(self).__name__}s differ in {name}: {mine} and {its}.")
        if not other.units:
            return
        if not self.units:
            self.load_state_dict(other.state_dict())
            return
        if other.units != self.units:
            raise ValueError(f"{type(self).__name__}s have seen {self.units} and {other.units} units.")
        self._join(other)
        self.count += other.count
        self.samples += other.samples

    def state_dict(self) -> dict[str, Tensor]:
        """Give all that was accumulated, as copies."""
        numbers = {
            "samples": torch.tensor(self.samples),
            "count": torch.tensor(self.count),
            "units": torch.tensor(self.units, dtype=torch.long),
        }
        tensors = {name: getattr(self, name) for name in self.state if self.units}
        return numbers | {name: value.clone() for name, value in tensors.items() if value is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, in a reducer of the same settings.

        Raises:
            ValueError: if entries are missing.
        """
        units = tuple(state["units"].tolist()) if "units" in state else ()
        missing = {"samples", "count", "units", *(self.state if units else ())} - set(state) - self._optional()
        if missing:
            raise ValueError(f"The state of a {type(self).__name__} lacks {sorted(missing)}.")
        self.samples, self.count, self.units = int(state["samples"]), int(state["count"]), units
        for name in self.state:
            setattr(self, name, state[name].clone() if name in state else None)

    @abstractmethod
    def result(self) -> Any:
        """Give what was found, a frozen dataclass.

        Raises:
            ValueError: if nothing was seen.
        """

    @abstractmethod
    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make room, once `units` are known."""

    @abstractmethod
    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        """Take in some rows, (rows, units) of each tensor; `count` does not have them yet."""

    @abstractmethod
    def _join(self, other: Any) -> None:
        """Merge with another of the same kind that has as many units."""

    def _optional(self) -> set[str]:
        """Names in `state` that may be None."""
        return set()

    def _check_finite(self, rows: list[Tensor]) -> None:
        for each in rows:
            if each.is_floating_point() and not bool(torch.isfinite(each).all()):
                raise FloatingPointError(
                    f"{type(self).__name__}: values are not finite after {self.count} rows; mask them or look upstream."
                )

    def _require_rows(self) -> None:
        if not self.count:
            raise ValueError(f"{type(self).__name__} has seen no rows yet.")
