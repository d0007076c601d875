"""Match the units of two networks by what they do on the same data.

    argmax_P  sum_places <C, P>,        C_ij = mean over samples of z^A_i z^B_j       (or their correlation)

z the activity of the units at every place where the network shows it, after the nonlinearity where a layer reads them.
Groups are independent of each other, so that each is one linear assignment and no search; groups that share positions
(heads, and the positions in each head) are improved in turn. C is gathered batch by batch in bounded memory.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.learning.stages import feed
from neuropil.probes.reducers.correlation import CrossCorrelation
from neuropil.structure.graph.tracing import evaluating
from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.graph.units import Member, UnitGroup
from neuropil.structure.weightspace.ascent import Ascent, movable
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.structure.weightspace.unit_activity import Place, places, watched
from neuropil.structure.weightspace.unit_values import match_values

__all__ = ["match_activations"]

SWEEPS = 100
KINDS = ("dot", "correlation")


def match_activations(
    a: nn.Module,
    b: nn.Module,
    batches: Iterable[Any],
    graph: UnitGraph,
    *,
    kind: Literal["dot", "correlation"] = "dot",
    inputs: Callable[[Any], Any] | None = None,
) -> Permutation:
    """Find the order of b's units whose activity goes best with that of a's.

    Args:
        a: a network, run in evaluation mode; neither it nor b is changed.
        b: a network of the same architecture.
        batches: gone through once.
        graph: their units, from `trace_units` of either network.
        kind: "dot" compares by products of activities, as in the paper, "correlation" by their correlation, so that a
            unit's mean and scale do not count; a unit that never changes correlates with none.
        inputs: makes of a batch what a network is called with: a tensor, a tuple of arguments or a mapping of named
            ones. None takes a tensor or a mapping as it is, and the first entry of a sequence, as of (x, y).

    Returns:
        `P` such that `P.apply(b)` is the matched network. Groups whose units no layer shows (see `unit_activity`) are
        matched by their weights, with the others held.

    Raises:
        ValueError: if the kind is unknown, there are no batches, names or shapes differ, a weight is not finite, or no
            group can be permuted.
        TypeError: if a or b is no network.
        FloatingPointError: if an activity is not finite.

    Source: Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836), section 3.1; "correlation" is Li et al.'s (2015).
    """
    if kind not in KINDS:
        raise ValueError(f'kind must be "dot" or "correlation", got {kind!r}.')
    for name, net in (("a", a), ("b", b)):
        if not isinstance(net, nn.Module):
            raise TypeError(f"{name} must be a network that can be run, got {type(net).__name__}.")
    weights = Ascent(a, b, graph)  # checks that a and b are alike
    seen = _gathered(a, b, batches, places(a, graph), inputs or _first)
    tables = {place: _table(moments, kind) for place, moments in seen.items()}
    shown = {name for place in tables for name in place.groups}
    shared = {name for place in tables if not place.alone for name in place.groups}
    # Of groups that share positions each hides the other's order, until one is known: their weights give a start.
    start = match_values(weights.a, weights.b, graph) if shared or len(shown) < len(weights.groups) else {}
    found = {name: start[name] for name in shared}
    if shown:
        found = dict(_by_tables(tables, graph, found))
    hidden = [name for name in weights.groups if name not in shown]
    if not hidden:
        return Permutation(found, graph)
    rest = Ascent(a, b, graph, {name: start[name] for name in hidden} | found, hidden)
    rest.climb(SWEEPS)
    return rest.order


def _by_tables(
    tables: Mapping[Place, Float[Tensor, "variables variables"]], graph: UnitGraph, start: Mapping[str, Tensor]
) -> Permutation:
    """Maximise the sum of <C, P>: as a weight matching of C, whose columns are B's units, to the identity."""
    named = {f"{k}": place for k, place in enumerate(tables)}
    groups = []
    for group in movable(graph):
        members = tuple(
            Member(name, 1, place.index(group.name), "in")
            for name, place in named.items()
            if group.name in place.groups
        )
        if members:
            groups.append(UnitGroup(group.name, group.size, members, True, True, True, None))
    a = {name: torch.eye(len(tables[place]), dtype=torch.float64) for name, place in named.items()}
    b = {name: tables[place].cpu() for name, place in named.items()}
    ascent = Ascent(a, b, UnitGraph(groups), start)
    ascent.climb(SWEEPS)
    return Permutation(ascent.order, graph)


def _gathered(
    a: nn.Module, b: nn.Module, batches: Iterable[Any], candidates: list[Place], inputs: Callable[[Any], Any]
) -> dict[Place, CrossCorrelation]:
    moments: dict[Place, CrossCorrelation] | None = None
    with evaluating(a), evaluating(b), torch.no_grad():
        for batch in batches:
            given = inputs(batch)
            sites = candidates if moments is None else list(moments)
            seen = [_run(net, given, sites) for net in (a, b)]
            if moments is None:
                moments = {place: CrossCorrelation("full") for place in _chosen(*seen)}
            for place, one in moments.items():
                first, second = (side.get(place, []) for side in seen)
                if len(first) != len(second):
                    raise ValueError(f"{place.module} is called {len(first)} times in a and {len(second)} times in b.")
                for x, y in zip(first, second, strict=True):
                    one.update(x, y.to(x.device))
    if moments is None:
        raise ValueError("batches is empty: activities need data.")
    return moments


def _run(net: nn.Module, given: Any, sites: list[Place]) -> dict[Place, list[Tensor]]:
    with watched(net, sites) as seen:
        feed(net, given)
    return seen


def _chosen(first: Mapping[Place, list[Tensor]], second: Mapping[Place, list[Tensor]]) -> list[Place]:
    """Of the places that showed something, readers' inputs; makers' outputs of groups that no reader shows."""
    met = [place for place in first if place in second]
    read = {name for place in met if place.io == "in" for name in place.groups}
    chosen: list[Place] = []
    for place in met:
        if place.io == "out" and read & place.groups.keys():
            continue
        # Several layers read one tensor (query, key and value): it counts once.
        rivals = [other for other in chosen if other.groups.keys() == place.groups.keys()]
        if not any(_same(first[place], first[other]) for other in rivals):
            chosen.append(place)
    return chosen


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def _table(moments: CrossCorrelation, kind: str) -> Float[Tensor, "variables variables"]:
    if kind == "correlation":
        matrix = moments.result().matrix
        assert matrix is not None
        return matrix.nan_to_num(nan=0.0)
    return moments.products / moments.count + torch.outer(moments.mean_x, moments.mean_y)


def _first(batch: Any) -> Any:
    return batch if isinstance(batch, (Tensor, Mapping)) else batch[0]
