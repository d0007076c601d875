"""Units and groups of units: which rows of which parameters live and die together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["Member", "Role", "UnitGroup", "unit_scores"]

Role = Literal["out", "in"]
Aggregate = Literal["sum", "mean", "max", "prod"]
Norm = Literal["mean", "sum", "max", "none"]


@dataclass(frozen=True)
class Member:
    """Rows of one parameter or buffer, along one axis, that belong to the units of a group.

    Attributes:
        parameter: qualified name.
        axis: which axis the rows lie on.
        index: rows of every unit, (units, rows of a unit), in the units' order.
        role: "out" where the rows produce the unit, "in" where they read it.
    """

    parameter: str
    axis: int
    index: Int[Tensor, "units rows"] = field(repr=False)
    role: Role


@dataclass(frozen=True)
class UnitGroup:
    """Units that are interchangeable: the same rows of the same parameters belong to each.

    Attributes:
        name: module that produces the units; with several groups there, units x rows of a unit follow.
        size: number of units.
        members: all rows that belong to them.
        prunable: whether units may be removed.
        exact: whether the network without a unit computes what it computes with the unit masked.
        permutable: whether the order of the units may change.
        reason: why it is not prunable, or not exact; None if it is both.
        contracted: whether the units meet one another in a sum of products (queries with keys) before they are read.
    """

    name: str
    size: int
    members: tuple[Member, ...] = field(repr=False)
    prunable: bool
    exact: bool
    permutable: bool
    reason: str | None
    contracted: bool = False

    def producing(self) -> tuple[Member, ...]:
        """Give the members that produce the units."""
        return tuple(member for member in self.members if member.role == "out")

    def reading(self) -> tuple[Member, ...]:
        """Give the members that read the units."""
        return tuple(member for member in self.members if member.role == "in")


def unit_scores(
    group: UnitGroup, scores: Mapping[str, Tensor], aggregate: Aggregate = "sum", norm: Norm = "mean"
) -> Float[Tensor, "units"] | None:
    """Reduce scores of weights to scores of a group's units.

    A member counts by the sum of its rows over all other axes; members are aggregated, then the group is normalised.

    Args:
        group: whose units.
        scores: by parameter, a tensor of its shape; parameters that are missing do not count.
        aggregate: over members.
        norm: what a unit's score is divided by: the group's mean, sum or maximum.

    Returns:
        A score a unit, float64; None if no member has scores.

    Source: Wang et al. 2024, arXiv 2403.18955, group importance.
    """
    parts = []
    for member in group.members:
        if member.parameter in scores:
            rows = row_sums(scores[member.parameter].detach(), member.axis)
            parts.append(rows[member.index.to(rows.device)].sum(dim=1))
    if not parts:
        return None
    stacked = torch.stack(parts)
    total = {"sum": stacked.sum, "mean": stacked.mean, "prod": stacked.prod, "max": stacked.amax}[aggregate](dim=0)
    scale = {"mean": total.mean, "sum": total.sum, "max": total.amax, "none": lambda: torch.ones(())}[norm]()
    return total / scale if bool(scale != 0) else total


def row_sums(scores: Tensor, axis: int) -> Tensor:
    """Sum scores over all axes but one; float64. The axes before it go first, all at once: that is how memory lies."""
    scores = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    scores = scores.flatten(0, axis - 1).sum(dim=0) if axis > 0 else scores
    return (scores.flatten(1).sum(dim=1) if scores.ndim > 1 else scores).double()


def described(groups: Sequence[UnitGroup]) -> list[dict]:
    """Write groups as plain lists and numbers, for JSON."""
    return [
        {
            "name": group.name,
            "size": group.size,
            "prunable": group.prunable,
            "exact": group.exact,
            "permutable": group.permutable,
            "reason": group.reason,
            "contracted": group.contracted,
            "members": [
                {"parameter": m.parameter, "axis": m.axis, "role": m.role, "index": m.index.tolist()}
                for m in group.members
            ],
        }
        for group in groups
    ]


def undescribed(specification: Sequence[Mapping]) -> list[UnitGroup]:
    """Read groups from what `described` wrote."""
    return [
        UnitGroup(
            **{key: value for key, value in group.items() if key != "members"},
            members=tuple(
                Member(m["parameter"], m["axis"], torch.tensor(m["index"], dtype=torch.long), m["role"])
                for m in group["members"]
            ),
        )
        for group in specification
    ]
