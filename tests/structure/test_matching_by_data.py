"""Matching by activities and by gradients, and merging several networks."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils import _pytree as pytree

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.weightspace import straight_through
from neuropil.structure.weightspace.activation_matching import match_activations
from neuropil.structure.weightspace.interpolation import interpolate, loss_barrier
from neuropil.structure.weightspace.matching import alignment, match_weights
from neuropil.structure.weightspace.merging import match_many, merge_many
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.structure.weightspace.straight_through import match_straight_through
from neuropil.structure.weightspace.unit_activity import places, watched
from tests.structure.zoo import HOUSE, Case, case
from tests.structure.zoo.odd import rows

EXPORTED = [one for one in HOUSE if one.exports]


def same(net: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def larger(one: Case, count: int = 4) -> list:
    """Batches of the example's shapes, drawn anew: of words, every word."""
    generator = torch.Generator().manual_seed(9)

    def drawn(t: Tensor) -> Tensor:
        if t.is_floating_point():
            return 2 * torch.randn(t.shape, generator=generator, dtype=t.dtype)
        return torch.randint(int(t.max()) + 1, t.shape, generator=generator)

    return [pytree.tree_map(drawn, one.inputs()) for _ in range(count)]


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, nn.Module, UnitGraph, list[tuple[Tensor, Tensor]]]:
    """Two nets of one task."""
    x = rows(4, 400)
    y = (x[:, 0] * x[:, 1] > 0).long()
    nets = []
    for seed in range(2):
        net = mlp(4, 24, 24, 2, generator=torch.Generator().manual_seed(seed))
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        nets.append(net)
    batches = list(zip(x.split(100), y.split(100), strict=True))
    return nets[0], nets[1], trace_units(nets[0], x[:2]), batches


def midpoint(a: nn.Module, b: nn.Module, batches: list) -> float:
    net = interpolate(a, b, 0.5)
    with torch.no_grad():
        return sum(float(cross_entropy(net(x), y)) for x, y in batches) / len(batches)


@pytest.mark.parametrize("one", EXPORTED, ids=str)
def test_a_reordered_copy_is_found_again_by_what_it_does(one: Case):
    """In every house model all units that are ever active come back to their places."""
    net = one.make()
    graph = trace_units(net, one.inputs())
    b = Permutation.random(graph, torch.Generator().manual_seed(1)).apply(net)
    found = match_activations(net, b, larger(one), graph, inputs=lambda batch: batch)
    loud = active(net, one, graph)
    assert all(float(units.float().mean()) > 0.2 for units in loud.values())
    # A unit that never acts cannot be told from another one, and is left out, with the weights that touch it.
    kept = {name: torch.ones_like(t, dtype=torch.bool) for name, t in net.state_dict().items()}
    for name, units in loud.items():
        for member in graph[name].members:
            for one_name in (member.parameter, *graph.names.get(member.parameter, ())):
                kept[one_name].movedim(member.axis, 0)[member.index[~units]] = False
    for name, tensor in found.apply(b).state_dict().items():
        assert torch.equal(tensor[kept[name]], net.state_dict()[name][kept[name]])


def active(net: nn.Module, one: Case, graph: UnitGraph) -> dict[str, Tensor]:
    """Which units of a group ever act where they are read, or made if no layer reads them; all, where nothing shows."""
    seen: dict[tuple[str, str], Tensor] = {}
    for batch in larger(one):
        with watched(net, places(net, graph)) as activity:
            one.call(net, batch)
        for place, calls in activity.items():
            for name in place.groups:
                acts = torch.stack([(rows.abs().amax(0) > 0)[place.index(name)].any(1) for rows in calls]).any(0)
                seen[name, place.io] = seen.get((name, place.io), torch.zeros_like(acts)) | acts
    everything = {group.name: torch.ones(group.size, dtype=torch.bool) for group in graph if group.permutable}
    return {name: seen.get((name, "in"), seen.get((name, "out"), units)) for name, units in everything.items()}


def test_the_largest_sum_of_products_is_found():
    """One layer: the assignment maximises the sum of products of activities, over all orders of few units."""
    a, b = (mlp(3, 5, 2, generator=torch.Generator().manual_seed(seed)).double() for seed in (0, 1))
    x = rows(3, 50).double()
    graph = trace_units(a, x)
    z_a, z_b = (torch.relu(net[0](x)).detach() for net in (a, b))
    products, correlations = z_a.T @ z_b, torch.corrcoef(torch.cat([z_a, z_b], 1).T)[:5, 5:].nan_to_num()
    for table, found in (
        (products, match_activations(a, b, x.split(7), graph)),
        (correlations, match_activations(a, b, x.split(7), graph, kind="correlation")),
    ):
        order = found["0"]
        best = max(sum(float(table[i, j]) for i, j in enumerate(o)) for o in itertools.permutations(range(5)))
        assert float(table.gather(1, order[:, None]).sum()) == pytest.approx(best)


def test_batches_do_not_matter_and_are_read_once(trained):
    a, b, graph, batches = trained
    x = torch.cat([x for x, _ in batches])
    whole = match_activations(a, b, [x], graph)
    assert match_activations(a, b, iter(batches), graph) == whole
    assert match_activations(a, b, ({"input": part} for part in x.split(30)), graph) == whole
    assert match_activations(a, b, batches, graph, inputs=lambda batch: (batch[0],)) == whole


def test_correlation_does_not_mind_the_size_of_activities(trained):
    """Scaled ReLU units compute the same: products are misled by them, correlations are not."""
    a, _, graph, batches = trained
    b = copy.deepcopy(a)
    scales = torch.logspace(-3, 3, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(0))]
    with torch.no_grad():
        b[0].weight *= scales[:, None]
        b[0].bias *= scales
        b[2].weight /= scales
    acts = torch.relu(a[0](batches[0][0])).detach().amax(0) > 0
    found = match_activations(a, b, batches, graph, kind="correlation")["0"]
    assert torch.equal(found[acts], torch.arange(24)[acts])
    assert not torch.equal(match_activations(a, b, batches, graph)["0"][acts], torch.arange(24)[acts])


def test_matching_lowers_the_barrier_of_trained_nets(trained):
    a, b, graph, batches = trained
    before = midpoint(a, b, batches)
    for found in (match_activations(a, b, batches, graph), match_weights(a, b, graph)):
        assert midpoint(a, found.apply(b), batches) < before


def test_batch_norm_is_run_on_its_statistics_and_modes_come_back(generator: torch.Generator):
    a, b = (small_conv((1, 8, 8), 4, generator=torch.Generator().manual_seed(seed)).train() for seed in (0, 1))
    a[0].eval()
    graph = trace_units(a, torch.zeros(2, 1, 8, 8))
    before = copy.deepcopy(a.state_dict())
    match_activations(a, b, [torch.randn(5, 1, 8, 8, generator=generator)], graph)
    assert a.training
    assert not a[0].training
    assert all(torch.equal(t, before[name]) for name, t in a.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in a.modules())


def test_heads_that_no_layer_shows_are_matched_by_weights():
    """Fused attention calls none of its layers: the queries' groups are found by their weights."""
    one = case("encoder")
    net = one.make()
    graph = trace_units(net, one.inputs())
    shown = {name for place in places(net, graph) for name in place.groups}
    order = Permutation.random(graph, torch.Generator().manual_seed(1))
    found = match_activations(net, order.apply(net), larger(one, 8), graph, inputs=lambda batch: batch)
    hidden = [name for name in order if name not in shown]
    assert all(torch.equal(found[name], order.inverse()[name]) for name in hidden)
    assert set(found) == set(order)


def test_activations_refuse_what_they_cannot_use(trained):
    a, b, graph, _ = trained
    with pytest.raises(ValueError, match="batches is empty"):
        match_activations(a, b, [], graph)
    with pytest.raises(FloatingPointError, match="not finite"):
        match_activations(a, b, [torch.full((2, 4), torch.inf)], graph)


def test_straight_through_finds_a_lower_midpoint_than_the_weights(trained):
    a, b, graph, batches = trained
    before = [copy.deepcopy(net.state_dict()) for net in (a, b)]
    state = torch.random.get_rng_state()
    start = match_weights(a, b, graph)
    found = match_straight_through(a, b, batches, cross_entropy, graph, steps=120, lr=1e-2)
    assert found != start
    assert midpoint(a, found.apply(b), batches) < midpoint(a, start.apply(b), batches)
    assert torch.equal(torch.random.get_rng_state(), state)
    for net, old in zip((a, b), before, strict=True):
        assert all(torch.equal(t, old[name]) for name, t in net.state_dict().items())
        assert all(parameter.grad is None or not parameter.grad.isnan().any() for parameter in net.parameters())


def test_straight_through_never_gives_a_worse_midpoint_than_its_beginning(trained):
    a, b, graph, batches = trained
    start = match_activations(a, b, batches, graph)
    for lr in (1e-4, 10.0):
        found = match_straight_through(a, b, batches, cross_entropy, graph, steps=8, lr=lr, init=start)
        assert midpoint(a, found.apply(b), batches) <= midpoint(a, start.apply(b), batches) + 1e-6
    assert match_straight_through(a, b, batches, cross_entropy, graph, steps=0, init=start) == start


def test_the_gradient_is_that_of_the_midpoint(trained):
    """Half the loss's slope at the midpoint reaches the free weights; the value is that of the midpoint itself."""
    a, b, graph, batches = trained
    order = match_weights(a, b, graph)
    middle = straight_through._Midpoint(a, b, cross_entropy)
    free = {name: torch.randn_like(value).requires_grad_() for name, value in middle.a.items()}
    x, y = batches[0]
    loss = middle(x, y, order, free)
    loss.backward()
    net = interpolate(a, order.apply(b), 0.5)
    wanted = cross_entropy(net(x), y)
    wanted.backward()
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert free[name].grad is not None
        torch.testing.assert_close(free[name].grad, parameter.grad / 2, atol=1e-6, rtol=1e-4)


def test_straight_through_of_a_net_with_batch_norm_and_of_one_with_tied_weights(generator: torch.Generator):
    a, b = (small_conv((1, 8, 8), 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x, y = torch.randn(20, 1, 8, 8, generator=generator), torch.randint(4, (20,), generator=generator)
    graph = trace_units(a, x[:2])
    before = copy.deepcopy(a.state_dict())
    found = match_straight_through(a, b, [(x, y)], cross_entropy, graph, steps=3)
    assert set(found) == {group.name for group in graph if group.permutable}
    assert all(torch.equal(t, before[name]) for name, t in a.state_dict().items())
    one = case("tied-embedding")
    nets = [one.make(seed) for seed in (0, 1)]
    words = one.inputs()
    graph = trace_units(nets[0], words)
    target = torch.randn(one.call(nets[0])[0].shape, generator=generator, dtype=torch.float64)
    found = match_straight_through(nets[0], nets[1], [(words, target)], mse_loss, graph, steps=3)
    assert set(found) == {group.name for group in graph if group.permutable}


def test_straight_through_refuses_bad_input(trained):
    a, b, graph, batches = trained
    with pytest.raises(TypeError, match="pass a list or a loader"):
        match_straight_through(a, b, iter(batches), cross_entropy, graph)
    with pytest.raises(ValueError, match="batches is empty"):
        match_straight_through(a, b, [], cross_entropy, graph)
    with pytest.raises(ValueError, match="lr must be"):
        match_straight_through(a, b, batches, cross_entropy, graph, lr=0.0)
    with pytest.raises(ValueError, match="sweeps at least 1"):
        match_straight_through(a, b, batches, cross_entropy, graph, sweeps=0)
    with pytest.raises(FloatingPointError, match="step 0"):
        match_straight_through(a, b, batches, lambda out, y: cross_entropy(out, y) * torch.inf, graph)


def test_the_steps_go_round_the_batches():
    seen = list(straight_through._cycle("abc", 7))
    assert [batch for batch, _ in seen] == list("abcabca")
    assert [last for _, last in seen] == [False, False, True, False, False, True, False]


def test_reordered_copies_merge_into_the_net_itself():
    one = case("residual")
    net = one.make()
    graph = trace_units(net, one.inputs())
    copies = [Permutation.random(graph, torch.Generator().manual_seed(seed)).apply(net) for seed in range(3)]
    merged = merge_many([net, *copies], graph)
    assert isinstance(merged, nn.Module)
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, net.state_dict()[name], rtol=1e-12, atol=1e-12)
    state = merge_many([copies[0].state_dict(), net.state_dict()], graph)
    assert isinstance(state, dict)
    for name, tensor in state.items():  # of two nets, the order is that of the first one
        torch.testing.assert_close(tensor, copies[0].state_dict()[name], rtol=1e-12, atol=1e-12)


def test_every_round_brings_the_nets_closer_to_each_other():
    nets = [mlp(5, 14, 14, 3, generator=torch.Generator().manual_seed(seed)).double() for seed in range(4)]
    graph = trace_units(nets[0], torch.zeros(2, 5, dtype=torch.float64))

    def together(orders: list[Permutation]) -> float:
        moved = [order.apply(net) for order, net in zip(orders, nets, strict=True)]
        return sum(alignment(x, y, graph) for x, y in itertools.combinations(moved, 2))

    start = together([Permutation({}, graph)] * 4)
    heights = [together(match_many(nets, graph, max_iter=n)) for n in (1, 2, 3, 100)]
    pairwise = together([Permutation({}, graph)] + [match_weights(nets[0], net, graph) for net in nets[1:]])
    assert heights[-1] > pairwise > start
    # In the end no net fits the others better in another order that one sweep can find.
    orders = match_many(nets, graph)
    moved = [order.apply(net.state_dict()) for order, net in zip(orders, nets, strict=True)]
    for i, state in enumerate(moved):
        others = {name: torch.stack([m[name] for j, m in enumerate(moved) if j != i]).mean(0) for name in state}
        assert match_weights(others, state, graph, init={}).moved() == 0
    merged = merge_many(nets, graph)
    for name, tensor in merged.state_dict().items():
        torch.testing.assert_close(tensor, torch.stack([m[name] for m in moved]).mean(0))


def test_two_nets_merge_into_their_matched_midpoint(trained):
    a, b, graph, batches = trained
    merged = merge_many([a, b], graph)
    x, y = batches[0]
    with torch.no_grad():
        apart = float(cross_entropy(interpolate(a, b, 0.5)(x), y))
        assert float(cross_entropy(merged(x), y)) < apart
    wanted = loss_barrier(a, match_weights(a, b, graph).apply(b), lambda net: float(cross_entropy(net(x), y)), points=3)
    assert float(cross_entropy(merged(x), y).detach()) == pytest.approx(wanted.losses[1], rel=0.2)
    with pytest.raises(ValueError, match="at least two networks"):
        merge_many([a], graph)
