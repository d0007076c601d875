"""What a network with dynamic channels costs: promised before anything is trained, and spent afterwards.

Multiply-accumulates are those of the unit graph, counted sample by sample with the channels that are on: a layer that
reads and gives dynamic channels costs the product of the two numbers, and the mean of products is not the product of
means, because samples that need many channels need them in all layers. Heads cost what they cost.

Source: Elkerdawy et al. 2022, arXiv 2110.08232, the estimate of the saving before training.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuropil.structure.criterion import Batches, as_batches
from neuropil.structure.dynamic.channels import DynamicChannels, MaskPredictor, dynamic_layers, using
from neuropil.structure.dynamic.heads import gathered
from neuropil.structure.dynamic.mass import check_mass, mass_topk
from neuropil.structure.dynamic.wrapping import make_dynamic
from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.graph.unit_graph import Axes

__all__ = ["SampleMacs", "estimate_macs", "used_macs"]


class SampleMacs:
    """Multiply-accumulates of samples, each with its own units.

    Args:
        graph: the units of the network before its channels were made dynamic, traced on one sample.
    """

    def __init__(self, graph: UnitGraph):
        self._graph = graph

    def __call__(self, masks: Mapping[str, Bool[Tensor, "samples units"]]) -> dict[str, Float[Tensor, " samples"]]:
        """Count.

        Args:
            masks: by group, the units that are computed; other groups are whole.

        Returns:
            By module, the number of every sample, float64.

        Raises:
            KeyError: if there is no such group.
            ValueError: if a mask is not of its group's size, or there are none.
        """
        if not masks:
            raise ValueError("masks is empty: there are no samples to count for.")
        for name, mask in masks.items():
            if mask.shape[1] != self._graph[name].size:
                raise ValueError(
                    f"Group {name} has {self._graph[name].size} units, its mask has shape {(*mask.shape,)}."
                )
        samples = len(next(iter(masks.values())))
        off = torch.cat(
            [
                ~masks[g.name].cpu() if g.name in masks else torch.zeros(samples, g.size, dtype=torch.bool)
                for g in self._graph
            ],
            dim=1,
        )
        known: dict[int, Tensor] = {}
        counted: dict[str, Tensor] = {}
        for name, constant, axes in self._graph.products:
            count = torch.full((samples,), float(constant), dtype=torch.float64)
            for axis in axes:
                if id(axis) not in known:
                    known[id(axis)] = _left(axis, off)
                count = count * known[id(axis)]
            counted[name] = counted.get(name, 0.0) + count
        return counted


def _left(axis: Axes, off: Bool[Tensor, "samples units"]) -> Float[Tensor, " samples"]:
    """Count the positions of an axis none of whose units is off."""
    size, positions, units = axis
    changing = off.any(dim=0)[torch.from_numpy(units)] if len(units) else torch.zeros(0, dtype=torch.bool)
    places, numbers = torch.from_numpy(positions)[changing], torch.from_numpy(units)[changing]
    gone = torch.zeros(len(off), size, dtype=torch.int32).index_add_(1, places, off[:, numbers].int())
    return size - (gone > 0).sum(dim=1).double()


def estimate_macs(
    net: nn.Module,
    batches: Batches,
    masses: Sequence[float],
    *,
    graph: UnitGraph | None = None,
    hidden: int | None = None,
) -> pd.DataFrame:
    """Say what masks of some masses would cost, from one run of the trained network, before any head is trained.

    Args:
        net: the network, or what `make_dynamic` made of it.
        batches: of (x, y); y is not looked at.
        masses: each above 0 and at most 1.
        graph: units of the network as it was, on one sample; None: traced here, if the network is not dynamic yet.
        hidden: width of a hidden layer in the heads of a network that has none yet.

    Returns:
        A row a mass and layer, heads included: mass, layer, density (of its output channels), macs (mean over samples),
        whole (macs with all channels; 0 for heads). Sum `macs` over the rows of a mass for the total.

    Raises:
        ValueError: if there are no batches or masses, a mass is out of range, or the units of a dynamic network are not
            given.
    """
    given = list(as_batches(batches))
    if not given or not len(masses):
        raise ValueError("estimate_macs needs batches of (x, y) and masses: one of them is empty.")
    for mass in masses:
        check_mass(mass)
    dynamic = net
    if not any(isinstance(module, DynamicChannels) for module in net.modules()):
        graph = trace_units(net, given[0][0][:1]) if graph is None else graph
        dynamic = make_dynamic(net, given[0][0][:1], 1.0, hidden=hidden, graph=graph)
    elif graph is None:
        raise ValueError("graph is needed: the units of a network that is dynamic already cannot be traced.")
    with using(dynamic, "record"):
        responses = gathered(dynamic, given, lambda seen: seen.response, "estimate_macs")
    tables = []
    for mass in masses:
        masks = {name: mass_topk(response, mass)[0] for name, response in responses.items()}
        table = _table(dynamic, graph, masks)
        table.insert(0, "mass", mass)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def used_macs(net: nn.Module, graph: UnitGraph, batches: Batches) -> pd.DataFrame:
    """Count what a dynamic network spends, with the masks it has now (see `set_mode` and `using`).

    Args:
        net: with dynamic layers, in the mode "train" or "infer".
        graph: units of the network as it was, on one sample.
        batches: of (x, y); y is not looked at.

    Returns:
        A row a layer, heads included: layer, density, macs, whole, as in `estimate_macs`.

    Raises:
        ValueError: if there are no batches, or nothing is masked.
    """
    given = list(as_batches(batches))
    if all(layer.mode == "record" for layer in dynamic_layers(net).values()):
        raise ValueError("All dynamic layers are in the mode 'record': nothing is masked, so nothing is saved.")
    masks = gathered(net, given, lambda seen: seen.mask, "used_macs")
    return _table(net, graph, masks)


def _table(net: nn.Module, graph: UnitGraph, masks: Mapping[str, Tensor]) -> pd.DataFrame:
    layers = dynamic_layers(net)
    counted = SampleMacs(graph)({layers[name].group: mask for name, mask in masks.items()})
    whole = graph.modules()
    rows = [
        (name, float(masks[name].double().mean()) if name in masks else 1.0, float(count.mean()), whole[name])
        for name, count in counted.items()
    ]
    for name in masks:
        head = layers[name].predictor
        cost = head.macs if isinstance(head, MaskPredictor) else sum(p.numel() for p in head.parameters() if p.ndim > 1)
        rows.append((f"{name}.predictor", 1.0, float(cost), 0))
    return pd.DataFrame(rows, columns=["layer", "density", "macs", "whole"])
