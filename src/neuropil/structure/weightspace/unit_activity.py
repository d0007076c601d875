"""Where a network shows the activity of its units: what the layers that read them are given, or what makers give.

A member of a group is an axis of a layer's weight; the layer's input (where it reads the units) or output (where it
makes them) has that axis among its own: the last one of linear layers, embeddings and layer norms, the second one of
convolutions and batch norms. Layers that are never called (of fused attention), grouped convolutions that read, and
weights outside layers show nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils.hooks import RemovableHandle

from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.graph.units import Member
from neuropil.structure.weightspace.ascent import movable
from neuropil.structure.weightspace.states import named_tensors

__all__ = ["Place", "places", "watched"]

Seen = tuple[Literal["in", "out"], int]  # an end of a layer, and the axis of the units there


@dataclass(frozen=True, eq=False)
class Place:
    """Units at one end of a layer.

    Attributes:
        module: name of the layer.
        io: its input or its output.
        dim: axis of the units there.
        size: of that axis.
        features: positions on it that belong to units.
        groups: by group, the rows of its units among the features; several groups if they share positions (heads, and
            the positions in each).
    """

    module: str
    io: Literal["in", "out"]
    dim: int
    size: int
    features: Int[Tensor, "features"]
    groups: dict[str, Tensor]

    @property
    def alone(self) -> bool:
        """Whether only one group lies here, so that a unit's rows are samples of one variable."""
        return len(self.groups) == 1

    def rows(self, activity: Tensor) -> Float[Tensor, "samples variables"]:
        """Lay out what passes here: units as columns where one group is alone, else all features."""
        laid = activity.detach().movedim(self.dim, -1)
        laid = laid[..., self.features.to(laid.device)].reshape(-1, len(self.features))
        if not self.alone:
            return laid
        (index,) = self.groups.values()
        return laid[:, index.to(laid.device)].movedim(-1, 0).flatten(0, 1)

    def index(self, group: str) -> Int[Tensor, "units rows"]:
        """Give the columns of `rows` that belong to each unit of a group."""
        return torch.arange(len(self.groups[group]))[:, None] if self.alone else self.groups[group]


def places(net: nn.Module, graph: UnitGraph) -> list[Place]:
    """Find where units may be seen, readers first."""
    shapes = {name: tensor.shape for name, tensor in named_tensors(net).items()}
    found: dict[tuple[str, Seen, int], dict[str, Tensor]] = {}
    for group in movable(graph):
        for member in group.members:
            for name in (member.parameter, *graph.names.get(member.parameter, ())):
                path, _, last = name.rpartition(".")
                layer = net.get_submodule(path)
                seen = _seen(layer, member) if last == "weight" else None
                if seen is not None:
                    size = shapes[member.parameter][member.axis]
                    found.setdefault((path, seen, size), {})[group.name] = member.index
    return [
        _place(path, *seen, size, part)
        for (path, seen, size), groups in sorted(found.items(), key=lambda item: item[0][1])  # "in" before "out"
        for part in _sharing(groups)
    ]


def _seen(layer: nn.Module, member: Member) -> Seen | None:
    """Tell at which end of a layer, and on which axis there, the rows of its weight lie.

    Of known layers the weight's axis decides, not the role: a tied weight may read elsewhere what it makes here.
    """
    weight = layer.weight
    if not isinstance(weight, Tensor) or member.axis >= weight.ndim:
        return None
    if isinstance(layer, _ConvNd):
        reads = member.axis == (0 if layer.transposed else 1)
        whole = layer.groups == 1 or not (reads or layer.transposed)
        return ("in" if reads else "out", 1) if member.axis < 2 and whole else None
    if isinstance(layer, nn.Linear):
        return ("in" if member.axis else "out", -1)
    if isinstance(layer, nn.Embedding):
        return ("out", -1) if member.axis else None
    if weight.ndim == 1:
        return "out", 1 if isinstance(layer, (_NormBase, nn.GroupNorm)) else -1
    return (member.role, -1) if weight.ndim == 2 else None


def _sharing(groups: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Divide the groups of an axis into those that share positions."""
    rest = dict(groups)
    while rest:
        name, index = rest.popitem()
        part, covered = {name: index}, set(index.flatten().tolist())
        while True:
            touching = [other for other, its in rest.items() if covered & set(its.flatten().tolist())]
            if not touching:
                break
            for other in touching:
                part[other] = rest.pop(other)
                covered |= set(part[other].flatten().tolist())
        yield part


def _place(path: str, io: Literal["in", "out"], dim: int, size: int, groups: dict[str, Tensor]) -> Place:
    features = torch.cat([index.flatten() for index in groups.values()]).unique()
    inside = {name: torch.searchsorted(features, index) for name, index in groups.items()}
    return Place(path, io, dim, size, features, inside)


@contextmanager
def watched(net: nn.Module, sites: Sequence[Place]) -> Iterator[dict[Place, list[Tensor]]]:
    """Gather the activity at some places while the block runs, one entry a call of the layer; clear it at will."""
    gathered: dict[Place, list[Tensor]] = {}

    def take(place: Place, given: Any) -> None:
        if isinstance(given, (tuple, list)):
            given = given[0] if given else None
        # Copied now: the next layer may overwrite what it is given.
        if isinstance(given, Tensor) and given.is_floating_point() and _fits(given, place):
            gathered.setdefault(place, []).append(place.rows(given))

    hooks = [_hooked(net.get_submodule(place.module), place, take) for place in sites]
    try:
        yield gathered
    finally:
        for hook in hooks:
            hook.remove()


def _hooked(layer: nn.Module, place: Place, take: Callable[[Place, Any], None]) -> RemovableHandle:
    def entering(_: nn.Module, args: Any) -> None:
        take(place, args)

    def leaving(_: nn.Module, args: Any, output: Any) -> None:
        take(place, output)

    return layer.register_forward_pre_hook(entering) if place.io == "in" else layer.register_forward_hook(leaving)


def _fits(activity: Tensor, place: Place) -> bool:
    return activity.ndim >= 2 and activity.shape[place.dim] == place.size
