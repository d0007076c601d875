"""The reducer that keeps everything, up to a limit."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from neuropil.probes.recording import Budget
from neuropil.probes.reducers.base import Reducer, RowNumbers

__all__ = ["Record", "Recorded"]


@dataclass(frozen=True, eq=False)
class Recorded:
    """What was kept.

    Attributes:
        batches: as they came.
    """

    batches: tuple[Tensor, ...]

    @property
    def values(self) -> Shaped[Tensor, "samples ..."]:
        """All batches along axis 0, a copy; their other axes must be alike."""
        return torch.cat(self.batches)


class Record(Reducer):
    """Keeps copies of all batches; with a mask, of the rows that count.

    Args:
        max_bytes: how much may be kept; None is without limit. More raises MemoryError before it is copied.
        device: where it is kept; None is where it arises.
        dim: the axis of the units.

    Raises:
        ValueError: if `max_bytes` is negative.
    """

    def __init__(self, max_bytes: int | None = None, *, device: torch.device | str | None = None, dim: int = -1):
        super().__init__(dim)
        self.budget = Budget(max_bytes)
        self.device = device
        self.batches: list[Tensor] = []

    def update(
        self,
        *batch: Tensor,
        mask: Bool[Tensor, "..."] | None = None,
        grid: tuple[int, int] | None = None,
        **context: Any,
    ) -> None:
        """Keep a batch.

        Args:
            *batch: one tensor of any shape with samples first.
            mask: of the batch's leading axes: rows that are kept, along one axis.
            grid: ignored, as all else: the batch is kept as it comes.
            **context: ignored.

        Raises:
            MemoryError: before it is copied, if that would exceed `max_bytes`.
            ValueError: if the mask's shape is not that of leading axes.
        """
        if len(batch) != 1:
            raise ValueError(f"Record takes 1 tensor at a time, got {len(batch)}.")
        (tensor,) = batch
        tensor = tensor.detach()
        if mask is not None:
            if mask.shape != tensor.shape[: mask.ndim]:
                raise ValueError(f"mask of shape {tuple(mask.shape)} does not go with {tuple(tensor.shape)}.")
            self.budget.spend(tensor[:1].expand(int(mask.sum()), *tensor.shape[1:]), "a batch")
            tensor = tensor[mask.to(tensor.device)]
        else:
            self.budget.spend(tensor, "a batch")
            tensor = tensor.clone() if self.device is None else tensor
        self.batches.append(tensor if self.device is None else tensor.to(self.device, copy=True))
        self.samples += len(batch[0])
        self.count += len(tensor)

    def merge(self, other: Reducer) -> None:
        """Take in what another has kept.

        Raises:
            ValueError: if it is no other Record.
            MemoryError: if both together exceed `max_bytes`.
        """
        if not isinstance(other, Record) or other is self:
            raise ValueError(f"A Record merges with another Record, not {other!r}.")
        for tensor in other.batches:
            self.budget.spend(tensor, "another's batch")
            self.batches.append(tensor)
        self.samples += other.samples
        self.count += other.count

    def state_dict(self) -> dict[str, Tensor]:
        """Give the batches by number; they are not copied again."""
        return super().state_dict() | {f"batch{number}": tensor for number, tensor in enumerate(self.batches)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave.

        Raises:
            ValueError: if entries are missing.
            MemoryError: if it exceeds `max_bytes`.
        """
        super().load_state_dict(state)
        self.batches, self.budget = [], Budget(self.budget.max_bytes)
        while (name := f"batch{len(self.batches)}") in state:
            self.budget.spend(state[name], "a saved batch")
            self.batches.append(state[name])

    def result(self) -> Recorded:
        """Give what was kept.

        Raises:
            ValueError: if nothing was.
        """
        if not self.batches:
            raise ValueError("Record has seen no rows yet.")
        return Recorded(tuple(self.batches))

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None: ...

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None: ...

    def _join(self, other: Any) -> None: ...
