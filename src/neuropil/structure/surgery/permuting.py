"""Reorder units: the same function, other weights."""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.optimizers import state_like

__all__ = ["check_permutation", "permute", "permuted"]

Order = Mapping[str, Int[Tensor, "units"]]


def permute(net: nn.Module, order: Order, graph: UnitGraph, *, optimizer: Optimizer | None = None) -> nn.Module:
    """Reorder the units of groups in place: unit k becomes what unit order[k] was. The network's function is unchanged.

    Args:
        net: parameters, buffers and gradients are reordered in place.
        order: by group, a permutation of its units.
        graph: the network's units.
        optimizer: its state of the parameters' shapes is reordered too.

    Returns:
        The same network.

    Raises:
        KeyError: if there is no such group.
        ValueError: if a group cannot be permuted, or an order is no permutation of its units.
    """
    check_permutation(graph, order)
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    with torch.no_grad():
        for name in order:
            for parameter in {member.parameter for member in graph[name].members}:
                tensor = tensors[parameter]
                tensor.copy_(_reordered(parameter, tensor.detach(), name, order, graph))
                if tensor.grad is not None:
                    tensor.grad.copy_(_reordered(parameter, tensor.grad, name, order, graph))
                if optimizer is not None:
                    for state in state_like(optimizer, tensor).values():
                        state.copy_(_reordered(parameter, state, name, order, graph))
    return net


def permuted(tensors: Mapping[str, Tensor], order: Order, graph: UnitGraph) -> dict[str, Tensor]:
    """Reorder units in a state: as `permute`, on tensors by name, which are left as they are.

    Args:
        tensors: for instance a state_dict; other names of a shared tensor are reordered too.
        order: by group, a permutation of its units.
        graph: the network's units.

    Raises:
        KeyError, ValueError: as `permute`.
    """
    check_permutation(graph, order)
    made = dict(tensors)
    for name in order:
        for parameter in {member.parameter for member in graph[name].members}:
            for one in (parameter, *graph.names.get(parameter, ())):
                if one in made:
                    made[one] = _reordered(parameter, made[one], name, order, graph)
    return made


def check_permutation(graph: UnitGraph, order: Order) -> None:
    """Check orders of units.

    Raises:
        KeyError: if there is no such group.
        ValueError: if a group cannot be permuted, or an order is no permutation of its units.
    """
    for name, index in order.items():
        group = graph[name]
        if not group.permutable:
            raise ValueError(f"Group {name} cannot be permuted: {group.reason}.")
        if index.shape != (group.size,) or not torch.equal(index.sort().values.cpu(), torch.arange(group.size)):
            raise ValueError(f"The order of group {name} must be a permutation of its {group.size} units.")


def _reordered(parameter: str, tensor: Tensor, name: str, order: Order, graph: UnitGraph) -> Tensor:
    for member in graph[name].members:
        if member.parameter == parameter:
            index = torch.arange(tensor.shape[member.axis])
            index[member.index.flatten()] = member.index[order[name].cpu()].flatten()
            tensor = tensor.index_select(member.axis, index.to(tensor.device))
    return tensor
