"""One gate a unit, on any network: how much of it passes, and what the passing costs.

A gate lambda in [0, 1] scales a unit where it is read: every row of a parameter that reads the unit is multiplied by
it. So no module needs a place to put it, lambda = 0 is the unit removed (for exact groups), and coupled producers share
one gate. Units that meet one another in a sum of products before any parameter reads them (queries with keys) are
scaled where they are produced too.

Expected multiply-accumulates are those of the unit graph with every count replaced by the sum of its gates,

    Phi(lambda) = sum over products  constant x prod over axes  sum over positions  prod of the gates at the position

so Phi of gates that are 0 or 1 is the count of the network without the units whose gates are 0, exactly.

Source: Castells & Yeom 2021, arXiv 2111.09635 (gates after the units, their count by formulas a layer).
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from neuropil.neurons.ranges import require
from neuropil.structure.criterion import Batches, LossFunction, as_batches, samples, undisturbed
from neuropil.structure.graph import UnitGraph
from neuropil.structure.graph.tracing import arguments
from neuropil.structure.graph.unit_graph import Axes
from neuropil.structure.graph.units import UnitGroup

__all__ = ["ExpectedMacs", "UnitGates", "expected_macs", "gate_sensitivity"]

Lambdas = Mapping[str, Tensor]  # by group, (units,)
CLOSED = 1 - 1e-6


class UnitGates(nn.Module):
    """Gates lambda = sigmoid(alpha) on the units of a network; the network itself is not touched.

    Args:
        net: any module; its parameters stay what they are and get no gradient here.
        graph: its units.
        init: lambda at the start, the same for every unit.
        groups: which groups get gates; None: every exact group.

    Raises:
        ValueError: if `init` is not above 0 and below 1 - 1e-6 (a gate that starts at 1 has no gradient), a group is
            frozen, or there is none.
    """

    def __init__(self, net: nn.Module, graph: UnitGraph, init: float = 0.9, groups: Iterable[str] | None = None):
        super().__init__()
        require("init", init, 0.0, CLOSED, ends=(False, False))
        chosen = graph.prunable() if groups is None else [graph[name] for name in groups]
        if not chosen:
            raise ValueError("There are no groups to put gates on.")
        for group in chosen:
            if not group.prunable:
                raise ValueError(f"Group {group.name} is frozen ({group.reason}): it gets no gates.")
        self._net = [net]  # in a list: not a child, so that only the gates are parameters
        self.groups = tuple(chosen)
        like = next(net.parameters())
        start = math.log(init / (1 - init))
        self.alphas = nn.ParameterList(
            nn.Parameter(torch.full((group.size,), start, dtype=like.dtype, device=like.device)) for group in chosen
        )

    def lambdas(self) -> dict[str, Float[Tensor, " units"]]:
        """Give the gates by group, differentiable."""
        return {group.name: torch.sigmoid(alpha) for group, alpha in zip(self.groups, self.alphas, strict=True)}

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """Run the network with its units gated."""
        return gated(self._net[0], self.groups, self.lambdas(), args, keywords)


def gated(
    net: nn.Module, groups: Iterable[UnitGroup], lambdas: Lambdas, args: tuple[Any, ...], keywords: Mapping[str, Any]
) -> Any:
    """Run a network with gates on its units, differentiable in the gates; gradients of its parameters pass too."""
    parameters = dict(net.named_parameters())
    scaled: dict[str, Tensor] = {}
    for group in groups:
        for member in group.members if group.contracted else group.reading() or group.producing():
            if member.parameter not in parameters:
                continue
            weight = scaled.get(member.parameter, parameters[member.parameter])
            scale = torch.ones(weight.shape[member.axis], dtype=weight.dtype, device=weight.device)
            values = lambdas[group.name].to(weight)[:, None].expand_as(member.index)
            scale = scale.index_put((member.index.flatten().to(weight.device),), values.flatten())
            scaled[member.parameter] = weight * scale.reshape(
                [-1 if k == member.axis else 1 for k in range(weight.ndim)]
            )
    return functional_call(net, scaled, args, dict(keywords))


class ExpectedMacs:
    """Multiply-accumulates of a network as a differentiable function of its gates.

    Args:
        graph: the network's units.
    """

    def __init__(self, graph: UnitGraph):
        self._graph = graph
        self._places = {
            number: (group.name, k)
            for number, (group, k) in enumerate((group, k) for group in graph for k in range(group.size))
        }
        self._layers: dict[int, list[tuple[Tensor, list[tuple[str, Tensor, Tensor]]]]] = {}

    def __call__(self, lambdas: Lambdas) -> Float[Tensor, ""]:
        """Count.

        Args:
            lambdas: by group, a gate a unit; groups that are missing are whole.

        Returns:
            The expected number, float64.

        Raises:
            KeyError: if there is no such group.
            ValueError: if gates have another shape than the group's units.
        """
        for name, values in lambdas.items():
            if values.shape != (self._graph[name].size,):
                raise ValueError(
                    f"Group {name} has {self._graph[name].size} units, its gates have shape {(*values.shape,)}."
                )
        known: dict[int, Tensor] = {}
        total = torch.zeros((), dtype=torch.float64)
        for _, constant, axes in self._graph.products:
            count = torch.tensor(float(constant), dtype=torch.float64)
            for axis in axes:
                if id(axis) not in known:
                    known[id(axis)] = self._survivors(axis, lambdas)
                count = count * known[id(axis)]
            total = total + count
        return total

    def _survivors(self, axis: Axes, lambdas: Lambdas) -> Tensor:
        """Sum over the positions of an axis of the product of the gates there."""
        size = axis[0]
        alive = torch.ones(size, dtype=torch.float64)
        for positions, parts in self._layer(axis):
            values = torch.ones(len(positions), dtype=torch.float64)
            for name, places, units in parts:
                if name in lambdas:
                    values = values.index_put((places,), lambdas[name].double().cpu()[units])
            factor = torch.ones(size, dtype=torch.float64).index_put((positions,), values)
            alive = alive * factor
        return alive.sum()

    def _layer(self, axis: Axes) -> list[tuple[Tensor, list[tuple[str, Tensor, Tensor]]]]:
        """Sort the units of an axis so that no layer has a position twice: a position may hold several units."""
        if id(axis) not in self._layers:
            _, positions, units = axis
            order = np.argsort(positions, kind="stable")
            positions, units = positions[order], units[order]
            starts = np.r_[0, np.flatnonzero(np.diff(positions)) + 1] if len(positions) else np.empty(0, dtype=int)
            rank = np.arange(len(positions)) - np.repeat(starts, np.diff(np.r_[starts, len(positions)]))
            layers = []
            for k in range(int(rank.max()) + 1 if len(rank) else 0):
                here, these = positions[rank == k], units[rank == k]
                names: dict[str, tuple[list[int], list[int]]] = {}
                for place, number in enumerate(these.tolist()):
                    name, unit = self._places[number]
                    names.setdefault(name, ([], []))[0].append(place)
                    names[name][1].append(unit)
                parts = [(name, torch.tensor(p), torch.tensor(u)) for name, (p, u) in names.items()]
                layers.append((torch.from_numpy(here.astype(np.int64)), parts))
            self._layers[id(axis)] = layers
        return self._layers[id(axis)]


def expected_macs(graph: UnitGraph, lambdas: Lambdas) -> Float[Tensor, ""]:
    """Count the multiply-accumulates of a gated network, once (see `ExpectedMacs`)."""
    return ExpectedMacs(graph)(lambdas)


def gate_sensitivity(
    net: nn.Module,
    graph: UnitGraph,
    batches: Batches,
    loss_fn: LossFunction,
    groups: Iterable[str] | None = None,
) -> dict[str, Float[Tensor, " units"]]:
    """Score units by the square of the loss's derivative by their gates, mean over batches: a Taylor score of units.

    Args:
        net: any module, looked at in eval mode.
        graph: its units.
        batches: of (x, y).
        loss_fn: mean-reduced loss of (output, y).
        groups: which groups; None: every exact one.

    Raises:
        ValueError: if there are no batches.

    Source: Molchanov et al. 2019, arXiv 1906.10771, eq. 8 and 9 on gates.
    """
    chosen = graph.prunable() if groups is None else [graph[name] for name in groups]
    like = next(net.parameters())
    lambdas = {
        group.name: torch.ones(group.size, dtype=like.dtype, device=like.device, requires_grad=True) for group in chosen
    }
    sums = {name: torch.zeros(len(value), dtype=torch.float64) for name, value in lambdas.items()}
    seen = 0
    with undisturbed(net, evaluate=True), torch.enable_grad():
        for x, y in as_batches(batches):
            args, keywords = arguments(x)
            loss = loss_fn(gated(net, chosen, lambdas, args, keywords), y)
            gradients = torch.autograd.grad(loss, list(lambdas.values()), allow_unused=True)
            count = samples(y, x)
            seen += count
            for name, gradient in zip(sums, gradients, strict=True):
                if gradient is not None:
                    sums[name] += count * gradient.detach().double().cpu().square()
    if not seen:
        raise ValueError("gate_sensitivity needs batches of (x, y): there were none.")
    return {name: total / seen for name, total in sums.items()}
