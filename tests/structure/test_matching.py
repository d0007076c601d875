"""Matching: reordered copies are found again exactly, the objective never falls, and orders compose."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.surgery.permuting import permute
from neuropil.structure.weightspace.ascent import Ascent, assigned
from neuropil.structure.weightspace.interpolation import interpolate, loss_barrier
from neuropil.structure.weightspace.matching import alignment, match_weights
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.structure.weightspace.unit_values import match_values
from tests.structure.zoo import ZOO, Case, case
from tests.structure.zoo.odd import Cell, rows

EXPORTED = [one for one in ZOO if one.exports]


def same(net: nn.Module, other: nn.Module) -> bool:
    """Every parameter and buffer is the same, to the last bit."""
    return all(torch.equal(x, y) for x, y in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def pair(*sizes: int, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, UnitGraph]:
    """Two networks of one architecture, drawn apart, and their units."""
    a, b = (mlp(*sizes, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (1, 2))
    return a, b, trace_units(a, torch.zeros(2, sizes[0], dtype=dtype))


@pytest.mark.parametrize("one", EXPORTED, ids=str)
def test_a_reordered_copy_is_found_again(one: Case):
    """All units of all groups are drawn anew, and every weight and statistic comes back to its place."""
    net = one.make()
    graph = trace_units(net, one.inputs())
    for seed in range(2):
        order = Permutation.random(graph, torch.Generator().manual_seed(seed))
        b = order.apply(net)
        assert order.moved() > 0
        assert not same(b, net)
        found = match_weights(net, b, graph)
        assert same(found.apply(b), net)
        assert found == order.inverse()
        # No two units have the same weights: their sorted values are enough, without any search.
        ascent = Ascent(net, b, graph)
        assert Permutation(match_values(ascent.a, ascent.b, graph), graph) == order.inverse()


def found_again(net: nn.Module, x: torch.Tensor, **options: Any) -> int:
    """In how many of ten random orders a network is found again to the bit."""
    graph = trace_units(net, x)
    copies = [Permutation.random(graph, torch.Generator().manual_seed(seed)).apply(net) for seed in range(10)]
    return sum(same(match_weights(net, b, graph, **options).apply(b), net) for b in copies)


def test_narrow_deep_nets_are_found_again_where_the_identity_gets_stuck():
    """Nothing but the first and the last of twelve layers has a fixed axis."""
    net = mlp(2, *[6] * 12, 2, generator=torch.Generator().manual_seed(0)).double()
    x = torch.zeros(2, 2, dtype=torch.float64)
    assert found_again(net, x) == 10
    assert found_again(net, x, init={}) < 8  # the paper's beginning


def test_a_recurrent_cell_is_found_again_where_the_identity_gets_stuck():
    """All that matters is the recurrent weight, on whose two axes the same units lie."""
    cell, generator = Cell(48).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in cell.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(drawn if name == "recurrent.weight" else 0.1 * drawn)
    x = torch.zeros(2, 3, 4, dtype=torch.float64)
    assert found_again(cell, x) == 10
    assert found_again(cell, x, init={}) < 8
    graph = trace_units(cell, x)
    order = Permutation.random(graph, generator)
    moved = order.apply(cell.state_dict())["recurrent.weight"]
    assert torch.equal(moved, cell.recurrent.weight[order["read"]][:, order["read"]])


def test_state_dicts_nets_float32_and_noncontiguous_weights_are_all_the_same(generator: torch.Generator):
    a, b, graph = pair(6, 16, 16, 3, dtype=torch.float32)
    wanted = match_weights(a, b, graph)
    assert match_weights(a.state_dict(), b.state_dict(), graph) == wanted
    assert match_weights(a.double(), copy.deepcopy(b).double(), graph) == wanted
    loose = {name: torch.stack([t, t], -1)[..., 0] for name, t in b.state_dict().items()}
    assert not loose["0.weight"].is_contiguous()
    assert match_weights(a.state_dict(), loose, graph) == wanted
    moved = wanted.apply(b.state_dict())
    assert all(torch.equal(moved[name], t) for name, t in wanted.apply(b).state_dict().items())


def test_a_graph_from_its_specification_matches_too():
    one = case("mlp")
    net = one.make()
    graph = UnitGraph.from_spec(trace_units(net, one.inputs()).spec())
    order = Permutation.random(graph, torch.Generator().manual_seed(0))
    state = order.apply(net.state_dict())
    assert match_weights(net.state_dict(), state, graph) == order.inverse()


@pytest.mark.parametrize("name", ["residual", "grouped", "mlp", "cell", "reused", "tied-embedding", "outer", "einsum"])
def test_the_objective_never_falls(name: str):
    """Every visit of every group, between unrelated networks, from random beginnings."""
    one = case(name)
    a, b = one.make(1), one.make(2)
    graph = trace_units(a, one.inputs())
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        ascent = Ascent(a, b, graph, Permutation.random(graph, generator))
        before, first, moved = ascent.objective, ascent.objective, True
        for _ in range(10):
            moved = False
            for group in ascent.groups:
                went = ascent.visit(group, 1e-12 * ascent.bound)
                assert ascent.objective >= before - 1e-12 * ascent.bound
                assert went == (ascent.objective > before + 1e-13 * ascent.bound)
                before, moved = ascent.objective, moved or went
            if not moved:
                break
        assert not moved
        assert ascent.objective > first
        assert ascent.objective <= ascent.bound
        assert ascent.objective == pytest.approx(alignment(a, ascent.order.apply(b), graph))


def test_one_layer_is_matched_as_well_as_any_order_can():
    """With one hidden layer the matching is a linear assignment: all 120 orders are tried."""
    a, b, graph = pair(4, 5, 3)
    (group,) = (group.name for group in graph if group.permutable)
    best = max(
        alignment(a, Permutation({group: torch.tensor(order)}, graph).apply(b), graph)
        for order in itertools.permutations(range(5))
    )
    assert alignment(a, match_weights(a, b, graph).apply(b), graph) == pytest.approx(best, rel=1e-12)


def test_alignment_is_half_of_what_the_distance_lacks():
    a, b, graph = pair(6, 9, 9, 3)
    names = Ascent(a, b, graph).a
    other = dict(b.named_parameters())
    square = sum(float((p - other[n]).detach().square().sum()) for n, p in a.named_parameters() if n in names)
    ascent = Ascent(a, b, graph)
    assert square == pytest.approx(2 * (ascent.bound - ascent.objective))
    assert Ascent(a, a, graph).met()


@pytest.mark.parametrize("name", ["cell", "reused"])
def test_exchanges_in_a_recurrent_weight_gain_what_is_said(name: str):
    """W -> P W P^T is quadratic in P: the exchange that is made is the best of all pairs."""
    one = case(name)
    a, b = one.make(1), one.make(2)
    graph = trace_units(a, one.inputs())
    (group,) = (group for group in graph if group.permutable)
    ascent = Ascent(a, b, graph)
    start = ascent.objective
    gains = {}
    for i, j in itertools.combinations(range(group.size), 2):
        swap = torch.arange(group.size)
        swap[[i, j]] = swap[[j, i]]
        gains[i, j] = alignment(a, Permutation({group.name: swap}, graph).apply(b), graph) - start
    folded = [(m, o) for m, o in itertools.combinations(group.members, 2) if m.parameter == o.parameter]
    assert len(folded) == 1
    limited = copy.copy(ascent)
    limited.groups = ascent.groups
    moved = limited._exchange(group, folded, 1e-12)
    assert moved == (max(gains.values()) > 0)
    assert limited.objective >= start + max(*gains.values(), 0.0) - 1e-9
    # At the end no exchange of two units helps any more.
    for i, j in itertools.combinations(range(group.size), 2):
        swap = torch.arange(group.size)
        swap[[i, j]] = swap[[j, i]]
        after = alignment(a, (Permutation({group.name: swap}, graph) @ limited.order).apply(b), graph)
        assert after <= limited.objective + 1e-9


def test_noise_hides_no_unit():
    """A reordered copy with noise of a tenth of the weights is found again, if not to the bit."""
    a, _, graph = pair(20, 40, 40, 5)
    order = Permutation.random(graph, torch.Generator().manual_seed(1))
    b = order.apply(a)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in b.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise, alpha=0.1 * float(parameter.std()))
    assert match_weights(a, b, graph) == order.inverse()


def test_units_that_are_alike_can_be_in_either_order():
    """Twins have no order to be found; all weights come back all the same."""
    a, _, graph = pair(5, 8, 3)
    with torch.no_grad():
        a[0].weight[3], a[0].bias[3], a[2].weight[:, 3] = a[0].weight[1], a[0].bias[1], a[2].weight[:, 1]
    b = Permutation.random(graph, torch.Generator().manual_seed(0)).apply(a)
    assert same(match_weights(a, b, graph).apply(b), a)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_zeros_and_extremes(scale: float):
    a, b, graph = pair(4, 6, 6, 2)
    with torch.no_grad():
        for net in (a, b):
            for parameter in net.parameters():
                parameter.mul_(scale)
    order = Permutation.random(graph, torch.Generator().manual_seed(0))
    assert same(match_weights(a, order.apply(a), graph).apply(order.apply(a)), a)
    assert math.isfinite(alignment(a, match_weights(a, b, graph).apply(b), graph))


def test_a_matched_pair_has_a_lower_barrier_where_order_is_all_that_differs():
    net = mlp(6, 24, 24, 3, generator=torch.Generator().manual_seed(0))
    x = rows(6, 100)
    y = net(x).detach()
    graph = trace_units(net, x)
    b = Permutation.random(graph, torch.Generator().manual_seed(1)).apply(net)

    def loss(one: nn.Module) -> float:
        return float(mse_loss(one(x), y))

    assert loss_barrier(net, b, loss, points=5).barrier > 0.01
    assert loss_barrier(net, match_weights(net, b, graph).apply(b), loss, points=5).barrier == 0.0


def test_batch_norm_statistics_move_but_do_not_count():
    a, b = (small_conv((1, 8, 8), 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    graph = trace_units(a, torch.zeros(2, 1, 8, 8))
    before = match_weights(a, b, graph)
    norm: Any = next(m for m in b.modules() if isinstance(m, nn.BatchNorm2d))
    running = torch.arange(len(norm.weight), dtype=torch.float32)
    norm.running_mean.copy_(100 * running)
    assert match_weights(a, b, graph) == before
    assert match_weights(a.state_dict(), b.state_dict(), graph) == before
    moved: Any = next(m for m in before.apply(b).modules() if isinstance(m, nn.BatchNorm2d))
    assert not torch.equal(moved.running_mean, norm.running_mean)
    assert torch.equal(moved.running_mean.sort().values, norm.running_mean.sort().values)


def test_beginnings_and_sweeps():
    a, b, graph = pair(6, 20, 20, 3)
    start = Permutation.random(graph, torch.Generator().manual_seed(5))
    assert match_weights(a, b, graph, init=start, max_iter=0) == start
    assert match_weights(a, b, graph, init={}, max_iter=0).moved() == 0
    heights = [alignment(a, match_weights(a, b, graph, init={}, max_iter=n).apply(b), graph) for n in range(6)]
    assert heights == sorted(heights)
    assert heights[1] > heights[0]
    best = alignment(a, match_weights(a, b, graph).apply(b), graph)
    assert best >= heights[-1] - 1e-12
    drawn = [match_weights(a, b, graph, generator=torch.Generator().manual_seed(7)) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_neither_network_is_touched():
    a, b, graph = pair(6, 10, 3)
    before = [copy.deepcopy(net.state_dict()) for net in (a, b)]
    state = torch.random.get_rng_state()
    found = match_weights(a, b, graph)
    found.apply(b)
    assert torch.equal(torch.random.get_rng_state(), state)
    for net, old in zip((a, b), before, strict=True):
        assert all(torch.equal(t, old[name]) for name, t in net.state_dict().items())


def test_bad_input_is_named():
    a, b, graph = pair(6, 10, 3)
    with pytest.raises(ValueError, match="other shapes"):
        match_weights(a, mlp(6, 11, 3).double(), graph)
    with pytest.raises(ValueError, match="max_iter must be at least 0"):
        match_weights(a, b, graph, max_iter=-1)
    with pytest.raises(KeyError, match="nowhere"):
        match_weights(a, b, graph, init={"nowhere": torch.arange(3)})
    with pytest.raises(ValueError, match="permutation of its 10 units"):
        match_weights(a, b, graph, init={"0": torch.zeros(10, dtype=torch.long)})
    other = pair(6, 10, 10, 3)[2]
    with pytest.raises(ValueError, match="graph is of another network"):
        match_weights(a, b, other)
    single = nn.Linear(4, 2)
    with pytest.raises(ValueError, match="nothing to match"):
        match_weights(single, single, trace_units(single, torch.zeros(2, 4)))
    with torch.no_grad():
        b[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"b is not finite at 1 entries: 0\.weight"):
        match_weights(a, b, graph)


def test_permutations_compose_and_invert(generator: torch.Generator):
    one = case("einsum")
    net = one.make()
    graph = trace_units(net, one.inputs())
    p, q = (Permutation.random(graph, generator) for _ in range(2))
    assert same((p @ q).apply(net), p.apply(q.apply(net)))
    assert (p @ p.inverse()).moved() == (p.inverse() @ p).moved() == 0
    assert p @ p.inverse() == Permutation({}, graph) == Permutation.identity(graph)
    assert hash(p @ p.inverse()) == hash(Permutation({}, graph))
    assert p != q
    assert p != "p"
    name = next(iter(p))
    part = Permutation({name: p[name]}, graph)
    assert (part @ q)[name].equal(q[name][p[name]])
    assert all((part @ q)[other].equal(q[other]) for other in q if other != name)
    assert "groups" in repr(p)
    assert set(p) == {group.name for group in graph if group.permutable}


def test_a_permutation_is_a_mapping_that_surgery_takes(generator: torch.Generator):
    a, _, graph = pair(6, 10, 3)
    a(torch.ones(2, 6, dtype=torch.float64)).sum().backward()
    p = Permutation.random(graph, generator)
    moved: Any = p.apply(a)
    inplace = permute(copy.deepcopy(a), p, graph)
    assert same(moved, inplace)
    assert torch.equal(moved[0].weight.grad, a[0].weight.grad[p["0"]])
    with pytest.raises(ValueError, match="permutation of its 10 units"):
        Permutation({"0": torch.arange(9)}, graph)
    with pytest.raises(TypeError):
        _ = p @ {"0": torch.arange(10)}  # pyright: ignore[reportOperatorIssue]


def test_assignments_are_the_best(generator: torch.Generator):
    table = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    found = assigned(table)
    best = max(sum(float(table[i, j]) for i, j in enumerate(o)) for o in itertools.permutations(range(5)))
    assert float(table.gather(1, found[:, None]).sum()) == pytest.approx(best)


def test_trained_twins_are_closer_once_matched():
    """Two nets of one task: matching shortens the way between them and lowers the loss halfway."""
    x = rows(4, 200)
    y = (x[:, 0] * x[:, 1] > 0).long()
    nets = []
    for seed in range(2):
        net = mlp(4, 32, 2, generator=torch.Generator().manual_seed(seed))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        nets.append(net)
    a, b = nets
    graph = trace_units(a, x)
    moved = match_weights(a, b, graph).apply(b)
    assert alignment(a, moved, graph) > alignment(a, b, graph)
    halfway = [float(cross_entropy(interpolate(a, one, 0.5)(x), y).detach()) for one in (b, moved)]
    assert halfway[1] < halfway[0]
