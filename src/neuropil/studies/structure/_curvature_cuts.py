"""The arms of the study of pruning by Kronecker-factored curvature: how units are chosen, at equal widths for all."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from neuropil.data import Dataset
from neuropil.learning.networks import mlp, small_conv
from neuropil.probes.curvature.inputs import Batches
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.structure.compensation import compensated_cut
from neuropil.structure.curvature import KroneckerNeuron, producers
from neuropil.structure.curvature_pruner import CurvaturePruner
from neuropil.structure.flatness import FlatnessPenalty
from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.graph.units import UnitGroup
from neuropil.studies.structure._images import accuracy

__all__ = [
    "ARMS",
    "BOTH",
    "COMPENSATED",
    "CUT",
    "DIAGONAL",
    "MAGNITUDE",
    "RANDOM",
    "RETRAINED",
    "TRAINED",
    "accuracy",
    "factors_on",
    "hidden_groups",
    "make_net",
    "row_norms",
    "train",
]

COMPENSATED, DIAGONAL = "K-FAC, compensated", "K-FAC diagonal, first order"
MAGNITUDE, BOTH, RANDOM = "magnitude of the row", "row x column magnitude", "random"
TRAINED, CUT, RETRAINED = "trained", "cut", "retrained"
SHUFFLING, SAMPLING = 0x5EED, 0xFAC7

Keep = dict[str, Tensor]
Choice = Callable[[nn.Module, UnitGraph, Mapping[str, int], Batches, torch.Generator], Keep]


def make_net(data: Dataset, hidden: Sequence[int], convolution: bool, generator: torch.Generator) -> nn.Module:
    """A multi-layer perceptron of these hidden sizes, or a convolution net of these channels."""
    if convolution:
        shape = (1, *data.shape)[-3:]  # grey images may come without an axis of channels
        return small_conv(shape, data.classes, hidden, generator=generator).to(data.x_train)
    return mlp(data.features, *hidden, data.classes, generator=generator).to(data.x_train)


def train(
    net: nn.Module,
    optimizer: SGD,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    penalty: FlatnessPenalty | None = None,
    pruner: CurvaturePruner | None = None,
) -> None:
    """Pass over the training set so many times, in an order of the seed's own."""
    order = torch.Generator().manual_seed(seed ^ SHUFFLING)
    net.train()
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(data.y_train), generator=order).split(batch_size):
            x, y = data.x_train[chosen], data.y_train[chosen]
            with penalty or nullcontext():
                logits = net(x)
            loss = cross_entropy(logits, y)
            total += float(loss.detach()) * len(y)
            if penalty is not None:
                loss = loss + penalty(logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if pruner is not None:
                pruner.step(x)
        if not math.isfinite(total):
            raise FloatingPointError(f"The loss of an epoch is {total} at seed {seed}.")
        if pruner is not None:
            pruner.epoch(total / len(data.y_train))
    net.eval()


def factors_on(net: nn.Module, batches: Batches, seed: int) -> KroneckerFactors:
    """Kronecker factors of some batches, all examples alike, one target drawn for each."""
    factors = KroneckerFactors(net, decay=None, generator=torch.Generator().manual_seed(seed ^ SAMPLING))
    for x, _ in batches:
        with factors:
            output = net(x)
        factors.update(output)
    return factors


def hidden_groups(graph: UnitGraph, factors: KroneckerFactors) -> list[UnitGroup]:
    """Groups that linear layers or convolutions produce, in the order of the network."""
    return [group for group in graph.prunable(inexact=True) if producers(group, factors.layers)]


def row_norms(net: nn.Module, group: UnitGroup) -> Tensor:
    """Norm of what produces each unit, weights and biases together."""
    parameters = dict(net.named_parameters())
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.producing():
        if member.parameter in parameters:
            squares = parameters[member.parameter].detach().double().square().movedim(member.axis, 0)
            total += squares.reshape(len(squares), -1).sum(1).cpu()[member.index].sum(1)
    return total.sqrt()


def _column_norms(net: nn.Module, group: UnitGroup) -> Tensor:
    parameters = dict(net.named_parameters())
    total = torch.zeros(group.size, dtype=torch.float64)
    for member in group.reading():
        squares = parameters[member.parameter].detach().double().square().movedim(member.axis, 0)
        total += squares.reshape(len(squares), -1).sum(1).cpu()[member.index].sum(1)
    return total.sqrt()


def _best(scores: Tensor, width: int) -> Tensor:
    keep = torch.zeros(len(scores), dtype=torch.bool)
    keep[scores.argsort(descending=True)[:width].cpu()] = True
    return keep


def _compensated(
    net: nn.Module, graph: UnitGraph, widths: Mapping[str, int], batches: Batches, generator: torch.Generator
) -> Keep:
    factors = factors_on(net, batches, generator.initial_seed())
    return compensated_cut(factors, {name: graph[name] for name in widths}, widths)


def _diagonal(
    net: nn.Module, graph: UnitGraph, widths: Mapping[str, int], batches: Batches, generator: torch.Generator
) -> Keep:
    criterion = KroneckerNeuron(factors_on(net, batches, generator.initial_seed()), compensate=False)
    scores = criterion.unit_scores(net, batches, cross_entropy, graph)
    return {name: _best(scores[name], width) for name, width in widths.items()}


def _by(scores: Callable[[nn.Module, UnitGroup, torch.Generator], Tensor]) -> Choice:
    def choose(
        net: nn.Module, graph: UnitGraph, widths: Mapping[str, int], batches: Batches, generator: torch.Generator
    ) -> Keep:
        return {name: _best(scores(net, graph[name], generator), width) for name, width in widths.items()}

    return choose


ARMS: dict[str, Choice] = {
    COMPENSATED: _compensated,
    DIAGONAL: _diagonal,
    MAGNITUDE: _by(lambda net, group, _: row_norms(net, group)),
    BOTH: _by(lambda net, group, _: row_norms(net, group) * _column_norms(net, group)),
    RANDOM: _by(lambda _, group, generator: torch.rand(group.size, generator=generator)),
}
