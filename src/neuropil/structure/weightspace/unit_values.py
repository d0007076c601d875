"""What of a unit's weights no reordering of units can change: where a matching may begin.

Reordering other groups only shuffles the entries of a unit's rows along the axes that those groups lie on. Sorted along
these axes they are invariant, and by the rearrangement inequality

    <sort(u), sort(v)>  =  max over shufflings of <u, v>

so that a linear assignment of sorted rows maximises an upper bound of the weight matching of the group: that in which
every pair of units could have its own best order of everything else. Where B is a reordered A, and no two units of a
group have the same sorted rows, the orders that come out are exact, in however deep a network. (An addition of ours to
Ainsworth et al. 2022, who begin at the identity.)
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.graph.units import Member, UnitGroup
from neuropil.structure.weightspace.ascent import assigned, movable, rows_first

__all__ = ["match_values", "unit_values"]

Place = tuple[str, int]  # a parameter and an axis of it


def match_values(a: Mapping[str, Tensor], b: Mapping[str, Tensor], graph: UnitGraph) -> dict[str, Tensor]:
    """Match the units of two networks by the sorted values of their weights.

    Args:
        a: parameters to be met; members that are missing do not count.
        b: parameters whose units are reordered, in the same precision and on the same device.
        graph: their units.

    Returns:
        An order of every group that can be permuted.
    """
    groups = movable(graph)
    placed: dict[Place, set[str]] = {}
    for group in groups:
        for member in group.members:
            placed.setdefault((member.parameter, member.axis), set()).add(group.name)
    found = {}
    for group in groups:
        one, other = (unit_values(group, side, placed) for side in (a, b))
        found[group.name] = assigned(one @ other.T)
    return found


def unit_values(
    group: UnitGroup, tensors: Mapping[str, Tensor], placed: Mapping[Place, set[str]]
) -> Float[Tensor, "units values"]:
    """Give the sorted weights of every unit of a group.

    Args:
        group: whose units.
        tensors: parameters by name.
        placed: which groups lie on an axis of a parameter.
    """
    parts = [_sorted(tensors[m.parameter], m, placed) for m in group.members if m.parameter in tensors]
    return torch.cat(parts, dim=1)


def _sorted(tensor: Tensor, member: Member, placed: Mapping[Place, set[str]]) -> Float[Tensor, "units values"]:
    rows = rows_first(tensor, member)
    others = [axis for axis in range(tensor.ndim) if axis != member.axis]
    # The rows of a unit are shuffled if another group lies on the same axis: heads, and the positions in each.
    shuffled = [1] if len(placed[member.parameter, member.axis]) > 1 else []
    shuffled += [k + 2 for k, axis in enumerate(others) if (member.parameter, axis) in placed]
    kept = [k for k in range(1, rows.ndim) if k not in shuffled]
    rows = rows.permute(0, *kept, *shuffled).flatten(1 + len(kept)) if shuffled else rows
    return (rows.sort(dim=-1).values if shuffled else rows).flatten(1)
