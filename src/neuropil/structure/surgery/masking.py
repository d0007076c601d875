"""Units masked instead of removed: their rows are zero, in what produces them and in what reads them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from neuropil.structure.graph.unit_graph import Keep, UnitGraph
from neuropil.structure.masks import Masks

__all__ = ["mask_units", "silence_"]


def mask_units(net: nn.Module, keep: Keep, graph: UnitGraph) -> Masks:
    """Give masks that silence units.

    Both sides are masked: whatever the activation of a unit without input is (the shift of a norm, sigmoid(0)), nobody
    reads it. So the masked network computes what the shrunk one does, for every exact group.

    Args:
        net: whose parameters are masked; it is not touched: `masks.apply_(net)` does that.
        keep: by group, which units stay.
        graph: the network's units.

    Raises:
        KeyError, ValueError: as `UnitGraph.check`.
    """
    graph.check(keep)
    parameters = dict(net.named_parameters())
    masks: dict[str, torch.Tensor] = {}
    for name, kept in keep.items():
        for member in graph[name].members:
            if member.parameter not in parameters:
                continue  # running statistics: nothing reads them once the rows of scale and shift are zero
            parameter = parameters[member.parameter]
            if member.parameter not in masks:
                masks[member.parameter] = torch.ones_like(parameter, dtype=torch.bool)
            gone = member.index[~kept.cpu()].flatten().to(parameter.device)
            masks[member.parameter].index_fill_(member.axis, gone, False)
    return Masks(masks)


def silence_(tensors: Mapping[str, Tensor], keep: Keep, graph: UnitGraph) -> None:
    """Put zeros, in place, where `mask_units` masks parameters; into the statistics of these units too.

    Args:
        tensors: parameters and buffers by the first of their names; none may share memory with another.
        keep: which units stay.
        graph: the network's units.
    """
    for name, kept in keep.items():
        for member in graph[name].members:
            tensor = tensors[member.parameter]
            tensor.index_fill_(member.axis, member.index[~kept.cpu()].flatten().to(tensor.device), 0)
