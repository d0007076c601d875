"""The largest values of every unit, and where they were: a unit's exemplars."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int, Num
from torch import Tensor

from neuropil.probes.reducers.base import Reducer, RowNumbers

__all__ = ["Exemplars", "TopK"]


@dataclass(frozen=True, eq=False)
class Exemplars:
    """The largest values of every unit, in descending order; where two are equal the earlier comes first.

    Attributes:
        values: in the dtype of the stream.
        samples: number of the sample in the stream.
        positions: number of the position in the sample: of a map (height, width), row * width + column.
    """

    values: Num[Tensor, "units k"]
    samples: Int[Tensor, "units k"]
    positions: Int[Tensor, "units k"]


class TopK(Reducer):
    """The k largest values of every unit.

    Args:
        k: how many; if there are fewer rows, the result has fewer.
        one_per_sample: whether a sample counts once, with its largest value, so that exemplars are distinct samples.
        dim: the axis of the units; axis 0 is the samples, the others positions.

    Raises:
        ValueError: if k is less than 1.
    """

    settings = ("k", "one_per_sample")
    state = ("values", "at_sample", "at_position")

    def __init__(self, k: int = 15, *, one_per_sample: bool = False, dim: int = -1):
        super().__init__(dim)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}.")
        self.k = k
        self.one_per_sample = one_per_sample

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        dtype = torch.uint8 if dtype == torch.bool else dtype
        self.values = torch.empty(0, self.units[0], dtype=dtype, device=device)
        self.at_sample = torch.empty(0, self.units[0], dtype=torch.long, device=device)
        self.at_position = self.at_sample.clone()

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        values = rows[0].to(self.values.dtype)
        sample, position = numbers.sample + self.samples, numbers.position
        if self.one_per_sample:
            values, sample, position = _best_of_samples(values, sample, position)
        else:
            sample, position = sample[:, None].expand_as(values), position[:, None].expand_as(values)
        self._rank(values, sample, position)

    def _rank(self, values: Tensor, sample: Tensor, position: Tensor) -> None:
        """Compete with what is kept, for the units alone where something new is larger than the least kept."""
        if len(self.values) < self.k or self.one_per_sample:
            units = torch.arange(self.units[0], device=values.device)
        else:
            units = (values.amax(0) > self.values[-1]).nonzero().flatten()
        if not len(units):
            return
        all_values = torch.cat([self.values[:, units], values[:, units]])
        all_samples = torch.cat([self.at_sample[:, units], sample[:, units]])
        all_positions = torch.cat([self.at_position[:, units], position[:, units]])
        order = all_values.sort(stable=True, dim=0, descending=True).indices
        if self.one_per_sample:
            order = _without_repeats(order, all_samples)
        order = order[: self.k]
        kept = [tensor.gather(0, order) for tensor in (all_values, all_samples, all_positions)]
        if len(units) == self.units[0]:
            self.values, self.at_sample, self.at_position = kept
        else:
            for mine, new in zip((self.values, self.at_sample, self.at_position), kept, strict=True):
                mine[:, units] = new

    def _join(self, other: "TopK") -> None:
        here = self.values.device
        self._rank(other.values.to(here), other.at_sample.to(here) + self.samples, other.at_position.to(here))

    def result(self) -> Exemplars:
        """Give the exemplars.

        Raises:
            ValueError: if nothing was seen.
        """
        self._require_rows()
        return Exemplars(*(tensor.T.contiguous() for tensor in (self.values, self.at_sample, self.at_position)))


def _best_of_samples(values: Tensor, sample: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The largest value of each sample in a chunk, for every unit: (samples of the chunk, units)."""
    distinct, group = torch.unique_consecutive(sample, return_inverse=True)
    # Rows by value, largest first, then stably by sample: the first row of each sample is its best.
    order = values.sort(stable=True, dim=0, descending=True).indices
    order = order.gather(0, group[order].sort(stable=True, dim=0).indices)
    counts = torch.bincount(group, minlength=len(distinct))
    best = order[counts.cumsum(0) - counts]
    return values.gather(0, best), distinct[:, None].expand_as(best), position[best]


def _without_repeats(order: Tensor, samples: Tensor) -> Tensor:
    """Drop the second of two rows of one sample, which a sample has that is split between chunks; order is kept.

    Every unit has the same samples among its candidates or fewer, so columns differ in length: what is dropped goes
    to the end, and all columns are cut to the shortest.
    """
    ranked = samples.gather(0, order)
    by_sample = ranked.sort(stable=True, dim=0)
    repeat = torch.zeros_like(ranked, dtype=torch.bool)
    repeat[1:] = by_sample.values[1:] == by_sample.values[:-1]
    dropped = torch.zeros_like(repeat).scatter(0, by_sample.indices, repeat)
    last = dropped.long().sort(stable=True, dim=0).indices
    return order.gather(0, last)[: int((~dropped).sum(0).min())]
