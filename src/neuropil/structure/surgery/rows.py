"""Rows of parameters: what stays of every axis when units go, and new tensors in the place of old ones everywhere."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.structure.graph.unit_graph import Keep, UnitGraph
from neuropil.structure.optimizers import replace_parameter

__all__ = ["Rows", "owner", "replace", "select", "surviving"]

# For every parameter or buffer, for every axis that changes: which of the old rows the new axis holds, in order.
Rows = dict[str, dict[int, Int[Tensor, "rows"]]]


def surviving(graph: UnitGraph, keep: Keep, shapes: Mapping[str, torch.Size]) -> Rows:
    """Find the rows that stay, by the first name of every parameter."""
    gone: dict[tuple[str, int], Tensor] = {}
    for name, kept in keep.items():
        if bool(kept.all()):
            continue
        for member in graph[name].members:
            place = member.parameter, member.axis
            if place not in gone:
                gone[place] = torch.zeros(shapes[member.parameter][member.axis], dtype=torch.bool)
            gone[place][member.index[~kept.cpu()].flatten()] = True
    rows: Rows = {}
    for (name, axis), out in gone.items():
        rows.setdefault(name, {})[axis] = (~out).nonzero().flatten()
    return rows


def select(tensor: Tensor, rows: Mapping[int, Tensor]) -> Tensor:
    """Take rows along several axes."""
    for axis, index in sorted(rows.items()):  # the first axis first: its rows are stretches of memory
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def owner(net: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Give the module that holds a parameter or buffer, and its name there."""
    path, _, last = name.rpartition(".")
    return net.get_submodule(path), last


def replace(
    net: nn.Module,
    graph: UnitGraph,
    names: Mapping[str, object],
    change: Callable[[str, Tensor], Tensor],
    optimizer: Optimizer | None = None,
    change_state: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Put changed tensors in the place of parameters and buffers: under all their names, with gradient and state.

    Args:
        net: changed in place.
        graph: knows other names of the same tensor.
        names: first names of what changes.
        change: makes the new tensor, from the name and the old one.
        optimizer: goes on with the new parameters.
        change_state: makes the optimizer's new tensors of the parameter's shape; None: as `change`.
    """
    for name in names:
        module, last = owner(net, name)
        old = getattr(module, last)
        with torch.no_grad():
            new = change(name, old.detach()).contiguous()
            if isinstance(old, nn.Parameter):
                new = nn.Parameter(new, requires_grad=old.requires_grad)
                if old.grad is not None:
                    new.grad = (change_state or change)(name, old.grad).contiguous()
                if optimizer is not None:
                    made = change_state or change
                    replace_parameter(
                        optimizer, old, new, lambda state, name=name, made=made: made(name, state).contiguous()
                    )
        for other in (name, *graph.names.get(name, ())):
            holder, its = owner(net, other)
            if isinstance(new, nn.Parameter):
                setattr(holder, its, new)
            else:
                holder._buffers[its] = new
