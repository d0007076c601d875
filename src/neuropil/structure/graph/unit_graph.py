"""The unit graph of a network: its groups of units, what is frozen and why, and what would be left of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx import Node

from neuropil.structure.graph.labels import Axis, Solution
from neuropil.structure.graph.reading import Unknown
from neuropil.structure.graph.recording import Recording
from neuropil.structure.graph.units import Aggregate, Norm, UnitGroup, described, undescribed, unit_scores

__all__ = ["Axes", "Count", "Keep", "Reading", "UnitGraph"]

Keep = Mapping[str, Tensor]  # by group, which units stay: bool, (units,)
# One axis: its size, and pairs (position, unit), each saying that the position goes if the unit goes.
Axes = tuple[int, np.ndarray, np.ndarray]
Count = tuple[
    str, int, tuple[Axes, ...]
]  # what is counted, a constant factor, and the axes whose survivors multiply it


@dataclass
class Reading:
    """The recorded network behind a graph, and the labels of everything in it."""

    recording: Recording
    values: Mapping[Node, Any]
    fits: Mapping[int, tuple[Axis, ...]]  # axes that a constant met, by the identity of its value
    solution: Solution
    numbers: np.ndarray  # of every class of labels: its unit's running number, or -1
    example: Any


class UnitGraph:
    """Groups of coupled units of a network, as `trace_units` found them.

    Args:
        groups: all groups, frozen ones too.
        unknown: operations that froze what entered them.
        sizes: parameters and their axes, for counting.
        products: where the network multiplies and accumulates.
        names: other names of the same tensor, by the name that members use.

    Attributes:
        products: where the network multiplies and accumulates.
        reading: the recorded network, which surgery proves itself against; None for groups read from a specification.
    """

    def __init__(
        self,
        groups: Sequence[UnitGroup],
        unknown: Sequence[Unknown] = (),
        sizes: Sequence[Count] = (),
        products: Sequence[Count] = (),
        names: Mapping[str, tuple[str, ...]] | None = None,
    ):
        self._groups = {group.name: group for group in groups}
        self.unknown = tuple(unknown)
        self.names = dict(names or {})
        self.reading: Reading | None = None
        self._sizes, self.products = tuple(sizes), tuple(products)
        ends = np.cumsum([0, *(group.size for group in groups)])
        self._offsets = dict(zip(self._groups, ends[:-1], strict=True))
        self._total = int(ends[-1])

    def __getitem__(self, name: str) -> UnitGroup:
        if name not in self._groups:
            raise KeyError(f"There is no group {name!r}; there are {', '.join(self._groups)}.")
        return self._groups[name]

    def __iter__(self) -> Iterator[UnitGroup]:
        return iter(self._groups.values())

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        prunable = self.prunable(inexact=True)
        units = sum(group.size for group in prunable)
        return (
            f"UnitGraph({len(self)} groups, {len(prunable)} prunable with {units} units, {len(self.unknown)} unknown)"
        )

    def groups(self) -> list[UnitGroup]:
        """Give all groups, in the order of the parameters; frozen ones are among them."""
        return list(self)

    def prunable(self, *, inexact: bool = False) -> list[UnitGroup]:
        """Give the groups whose units may be removed; with `inexact`, also those where that differs from masking."""
        return [group for group in self if group.prunable and (group.exact or inexact)]

    def of(self, module: str) -> list[UnitGroup]:
        """Give the groups that touch parameters of a module, by its qualified name."""
        prefix = f"{module}." if module else ""
        return [
            group
            for group in self
            if any(
                name.startswith(prefix) or name == module
                for member in group.members
                for name in (member.parameter, *self.names.get(member.parameter, ()))
            )
        ]

    def frozen(self) -> pd.DataFrame:
        """List what may not be removed: columns what, reason, where (the line of the user's code, if known)."""
        rows = [(one.what, one.reason, one.where) for one in self.unknown]
        rows += [(group.name, group.reason or "", "") for group in self if not group.prunable]
        return pd.DataFrame(rows, columns=["what", "reason", "where"])

    def table(self) -> pd.DataFrame:
        """List the groups: columns group, units, prunable, exact, permutable, members, reason."""
        return pd.DataFrame(
            [(g.name, g.size, g.prunable, g.exact, g.permutable, ", ".join(_listed(g)), g.reason or "") for g in self],
            columns=["group", "units", "prunable", "exact", "permutable", "members", "reason"],
        )

    def reduce(
        self, scores: Mapping[str, Tensor], agg: Aggregate = "sum", norm: Norm = "mean"
    ) -> dict[str, Float[Tensor, " units"]]:
        """Turn scores of weights into scores of units, for every prunable group that has any (see `unit_scores`)."""
        reduced = {group.name: unit_scores(group, scores, agg, norm) for group in self.prunable(inexact=True)}
        return {name: score for name, score in reduced.items() if score is not None}

    def spec(self) -> dict:
        """Write the groups as plain lists and numbers, for JSON; `from_spec` reads them."""
        return {"format": "neuropil.units/1", "groups": described(self.groups())}

    @classmethod
    def from_spec(cls, spec: Mapping) -> UnitGraph:
        """Read groups back. What is counted (parameters, multiply-accumulates) is not part of it.

        Raises:
            ValueError: if it is no such specification.
        """
        if spec.get("format") != "neuropil.units/1":
            raise ValueError(f"This is no specification of units: its format is {spec.get('format')!r}.")
        return cls(undescribed(spec["groups"]))

    def parameters(self, keep: Keep | None = None) -> int:
        """Count the parameters, after the removal of units if `keep` says which stay."""
        return self._count(self._sizes, keep)

    def macs(self, keep: Keep | None = None) -> int:
        """Count the multiply-accumulates of the example's forward, after the removal of units (see `parameters`)."""
        return self._count(self.products, keep)

    def modules(self) -> dict[str, int]:
        """Count multiply-accumulates by the module that does them."""
        counted: dict[str, int] = {}
        for name, constant, axes in self.products:
            counted[name] = counted.get(name, 0) + constant * math.prod(size for size, _, _ in axes)
        return counted

    def check(self, keep: Keep) -> None:
        """Check a choice of units.

        Raises:
            KeyError: if there is no such group.
            ValueError: if a group is frozen, nothing of it is kept, or the mask is not of its size.
        """
        for name, kept in keep.items():
            group = self[name]
            if kept.dtype != torch.bool or kept.shape != (group.size,):
                raise ValueError(
                    f"Group {name} has {group.size} units: its mask must be bool of that size, "
                    f"got {kept.dtype} of shape {tuple(kept.shape)}."
                )
            if not group.prunable and not bool(kept.all()):
                raise ValueError(f"Group {name} is frozen ({group.reason}): none of its units can be removed.")
            if not bool(kept.any()):
                raise ValueError(f"Group {name} would be left without units: a layer cannot be cut to nothing.")

    def gone(self, keep: Keep) -> np.ndarray:
        """Tell, over the running numbers of all units, which go."""
        gone = np.zeros(self._total, dtype=bool)
        for name, kept in keep.items():
            start = self._offsets[name]
            gone[start : start + self[name].size] = ~kept.cpu().numpy()
        return gone

    def _count(self, counts: Sequence[Count], keep: Keep | None) -> int:
        gone = self.gone(keep or {})
        total = 0
        known: dict[int, int] = {}
        for _, constant, axes in counts:
            alive = constant
            for size, positions, units in axes:
                if id(positions) not in known:
                    known[id(positions)] = len(np.unique(positions[gone[units]])) if len(units) else 0
                alive *= size - known[id(positions)]
            total += alive
        return total


def _listed(group: UnitGroup) -> list[str]:
    return [f"{m.parameter}[{m.axis}]{'*' if m.role == 'in' else ''}" for m in group.members]
