"""Merge several networks: bring all into one order of units, then average.

    repeat until no unit moves, for i in a random order:
        P_i = weight matching of theta_i to mean_{j != i} P_j(theta_j)
    theta = mean_i P_i(theta_i)

Every step raises sum_{i<j} <P_i(theta_i), P_j(theta_j)> or leaves it. (Ainsworth et al. 2022, algorithm 3.) To begin,
all are matched to the first one, since the mean of networks in unlike orders tells little: an addition of ours.
"""

from collections.abc import Mapping, Sequence
from typing import overload

import torch
from torch import Tensor, nn

from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.weightspace.ascent import Ascent
from neuropil.structure.weightspace.matching import match_weights
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.structure.weightspace.states import Bench, Weights, copied_mode, named_tensors, wide

__all__ = ["match_many", "merge_many"]


def match_many(
    nets: Sequence[Weights], graph: UnitGraph, *, max_iter: int = 100, generator: torch.Generator | None = None
) -> list[Permutation]:
    """Find an order of the units of every network that brings all close to each other.

    Args:
        nets: two or more networks of one architecture, or their state dicts.
        graph: their units.
        max_iter: rounds over the networks at most, and sweeps of every matching.
        generator: of the order in which a round visits the networks, and a sweep the groups; None: as they stand.

    Returns:
        An order a network; the first round may move the first one too.

    Raises:
        ValueError: if there are fewer than two networks, names or shapes differ, a weight is not finite, or no group
            can be permuted.
    """
    if len(nets) < 2:
        raise ValueError(f"Merging needs at least two networks, got {len(nets)}.")
    orders = [Permutation.identity(graph)]
    orders += [match_weights(nets[0], net, graph, max_iter=max_iter, generator=generator) for net in nets[1:]]
    ascents = [Ascent(net, net, graph, order) for net, order in zip(nets, orders, strict=True)]
    for _ in range(max_iter):
        turn = torch.arange(len(nets))
        if generator is not None:
            turn = torch.randperm(len(nets), generator=generator, device=generator.device)
        moved = False
        for i in turn.tolist():
            others = [ascent.b for j, ascent in enumerate(ascents) if j != i]
            ascents[i].aim({name: _mean([one[name] for one in others]) for name in others[0]})
            before = ascents[i].order
            ascents[i].climb(max_iter, generator)
            moved |= ascents[i].order != before
        if not moved:
            break
    return [ascent.order for ascent in ascents]


@overload
def merge_many(
    nets: Sequence[nn.Module], graph: UnitGraph, *, max_iter: int = 100, generator: torch.Generator | None = None
) -> nn.Module: ...
@overload
def merge_many(
    nets: Sequence[Mapping[str, Tensor]],
    graph: UnitGraph,
    *,
    max_iter: int = 100,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]: ...
def merge_many(
    nets: Sequence[Weights], graph: UnitGraph, *, max_iter: int = 100, generator: torch.Generator | None = None
) -> nn.Module | dict[str, Tensor]:
    """Give the mean of several networks, each in the order of units that `match_many` finds.

    Args:
        nets: two or more networks of one architecture, or their state dicts; none is changed.
        graph: their units.
        max_iter: as in `match_many`.
        generator: as in `match_many`.

    Returns:
        A new network in the mode of the first, or a new dict, with dtypes and devices of the first. Running statistics
        are averaged like weights (see `reset_norm_`), whole numbers are the first one's.

    Raises:
        ValueError: as `match_many`.

    Source: Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836), algorithm 3, MergeMany.
    """
    orders = match_many(nets, graph, max_iter=max_iter, generator=generator)
    states = [order.apply(named_tensors(net)) for net, order in zip(nets, orders, strict=True)]
    bench = Bench(nets[0])
    means = (
        (name, _mean([wide(state[name]) for state in states]) if value.is_floating_point() else value)
        for name, value in states[0].items()
    )
    return copied_mode(bench.set(means), nets[0])


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([tensor.to(tensors[0]) for tensor in tensors]).mean(0)
