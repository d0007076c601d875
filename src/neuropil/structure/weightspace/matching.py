"""Match the units of one network to those of another by their weights alone.

    argmax_P  sum_w <A_w, P(B)_w>   =   argmin_P  |A - P(B)|^2          P an order of every group of hidden units

Nothing but the groups of `trace_units` is needed, so that any network that can be traced can be matched. The problem is
a sum of bilinear assignments, and hard; `Ascent` climbs it group by group. What is climbed to depends on where one
begins, so two beginnings are tried: the units as they stand, and `match_values`, which is exact for a reordered copy.

Only orders are matched: units of opposite sign (tanh) or of another scale (ReLU) are not recognised.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Int
from torch import Tensor

from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.weightspace.ascent import Ascent
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.structure.weightspace.states import Weights
from neuropil.structure.weightspace.unit_values import match_values

__all__ = ["alignment", "match_weights"]


def match_weights(
    a: Weights,
    b: Weights,
    graph: UnitGraph,
    *,
    init: Mapping[str, Int[Tensor, "units"]] | None = None,
    max_iter: int = 100,
    generator: torch.Generator | None = None,
) -> Permutation:
    """Find the order of b's units that brings its weights closest to a's.

    Args:
        a: a network or its state dict; neither it nor b is changed.
        b: weights of the same architecture.
        graph: their units, from `trace_units` of either network.
        init: orders to begin with; groups that it does not name begin as they are, so that {} begins at the identity
            alone, as in the paper. None: the better of two, from the identity and from `match_values`.
        max_iter: sweeps over all groups at most, from each beginning.
        generator: of the order in which a sweep visits the groups; None: the graph's order.

    Returns:
        `P` such that `P.apply(b)` is the matched network.

    Raises:
        ValueError: if names or shapes differ, a weight is not finite, no group can be permuted, or `max_iter` is
            negative.
        KeyError: if `init` names no group.

    Source: Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836), section 3.2 and algorithm 1.
    """
    if max_iter < 0:
        raise ValueError(f"max_iter must be at least 0, got {max_iter}.")
    ascent = Ascent(a, b, graph, init)
    start = match_values(ascent.a, ascent.b, graph) if init is None else None
    ascent.climb(max_iter, generator)
    if start is None or ascent.met():
        return ascent.order
    other = Ascent(a, b, graph, start)
    other.climb(max_iter, generator)
    return max(ascent, other, key=lambda one: one.objective).order


def alignment(a: Weights, b: Weights, graph: UnitGraph) -> float:
    """Give what weight matching maximises: the inner product of two networks over the parameters that groups touch.

    Raises:
        ValueError: if names or shapes differ, a weight is not finite, or no group can be permuted.
    """
    return Ascent(a, b, graph).objective
