"""Closed forms of unit scores and compensated removal; then the pruner on real surgery."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning.networks import mlp
from neuropil.losses import half_squared_error
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.probes.curvature.layers import to_matrix
from neuropil.structure.compensation import Compensation, Elimination, compensated_cut, natural_side
from neuropil.structure.curvature import KroneckerNeuron, column_rises, row_rises
from neuropil.structure.graph.tracing import trace_units
from neuropil.structure.prune import prune_units

FLOAT = torch.float64


def two_layers(*sizes: int, seed: int = 0) -> nn.Sequential:
    """A deep linear net: with half squared error its curvature in the first layer is exactly A (x) G."""
    return mlp(*sizes, activation=nn.Identity, generator=torch.Generator().manual_seed(seed)).double()


def data(examples: int = 30, features: int = 5, outputs: int = 2, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, features, generator=generator, dtype=FLOAT)
    return x, torch.randn(examples, outputs, generator=generator, dtype=FLOAT)


def exact_factors(net: nn.Module, x: torch.Tensor, likelihood="normal") -> KroneckerFactors:
    factors = KroneckerFactors(net, decay=None, fisher="exact", likelihood=likelihood)
    with factors:
        output = net(x)
    factors.update(output)
    return factors


def at_the_optimum(net: nn.Sequential, x: torch.Tensor, y: torch.Tensor) -> None:
    """Solve for the first layer, the second held."""
    abar = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    goal = y - net[2].bias
    matrix = torch.linalg.pinv(net[2].weight) @ torch.linalg.lstsq(abar, goal).solution.T
    with torch.no_grad():
        net[0].weight.copy_(matrix[:, :-1])
        net[0].bias.copy_(matrix[:, -1])


def rise_without(net: nn.Sequential, batch, unit: int) -> float:
    before = half_squared_error(net(batch[0]), batch[1]).item()
    kept = net[0].weight.detach().clone(), net[0].bias.detach().clone()
    with torch.no_grad():
        net[0].weight[unit] = 0.0
        net[0].bias[unit] = 0.0
    after = half_squared_error(net(batch[0]), batch[1]).item()
    with torch.no_grad():
        net[0].weight.copy_(kept[0])
        net[0].bias.copy_(kept[1])
    return after - before


@pytest.mark.parametrize("side", ["out", "in"])
def test_at_the_optimum_scores_are_the_rises_and_off_it_only_with_the_first_order(side):
    net, batch = two_layers(5, 4, 2), data()
    graph = trace_units(net, batch[0])
    (name,) = [group.name for group in graph.prunable()]

    def scores(*, first_order: bool) -> torch.Tensor:
        criterion = KroneckerNeuron(exact_factors(net, batch[0]), compensate=False, first_order=first_order)
        return criterion.unit_scores(net, [batch], half_squared_error, graph, side=side)[name]

    for optimal in (False, True):
        if optimal:
            at_the_optimum(net, *batch)
            if side == "in":  # the readers' curvature with D = 0 in their weights as well
                break
        true = torch.tensor([rise_without(net, batch, unit) for unit in range(4)], dtype=FLOAT)
        assert_close(scores(first_order=True), true)
        if optimal:
            assert_close(scores(first_order=False), true, atol=1e-5, rtol=0)
        else:
            assert (scores(first_order=False) - true).abs().max() > 0.05


def test_compensated_removal_is_the_constrained_optimum():
    net, (x, y) = two_layers(5, 4, 3), data(outputs=3)
    net[2].weight.data = torch.randn(3, 4, generator=torch.Generator().manual_seed(4), dtype=FLOAT)
    at_the_optimum(net, x, y)
    before = half_squared_error(net(x), y).item()
    factors = exact_factors(net, x)
    (group,) = trace_units(net, x).prunable()
    # G = V^T V of 4 units and 3 outputs is singular: a little damping picks, among the equal, the smallest change.
    trial = Compensation(factors, group, damping=1e-9)
    predicted = trial.rises()
    for unit in range(4):
        one = Compensation(factors, group, damping=1e-9)
        one.remove(unit)
        kept = to_matrix(net[0], net[0].weight, net[0].bias).detach().clone()
        one.repair_()
        after = half_squared_error(net(x), y).item()
        others = [other for other in range(4) if other != unit]
        # The best that the other rows can do, solved for directly.
        abar = torch.cat([x, torch.ones_like(x[:, :1])], 1)
        through = net[2].weight[:, others].detach()
        best = torch.linalg.pinv(through) @ torch.linalg.lstsq(abar, y - net[2].bias.detach()).solution.T
        optimum = float(half_squared_error(abar @ best.T @ through.T + net[2].bias.detach(), y))
        assert after == pytest.approx(optimum, abs=1e-6)
        assert float(predicted[unit]) == pytest.approx(after - before, abs=1e-6)
        assert net[0].weight[unit].abs().max() == 0
        with torch.no_grad():
            net[0].weight.copy_(kept[:, :-1])
            net[0].bias.copy_(kept[:, -1])


def test_removing_several_in_turn_is_removing_them_at_once():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(8, 6, generator=generator, dtype=FLOAT)
    g, weight = root.T @ root, torch.randn(6, 5, generator=generator, dtype=FLOAT)
    gone, left = [1, 4, 5], [0, 2, 3]
    turn = Elimination(weight @ weight.T, torch.linalg.inv(g), torch.arange(6)[:, None])
    rise = 0.0
    for unit in gone:
        rise += float(turn.rises()[unit])
        turn.remove(unit)
    repaired = turn.transform @ weight
    # The joint optimum: rows that are left take over G_LL^-1 G_LR of those that go.
    expected = weight[left] + torch.linalg.solve(g[left][:, left], g[left][:, gone]) @ weight[gone]
    assert_close(repaired[left], expected)
    assert repaired[gone].abs().max() == 0
    change = repaired - weight
    assert rise == pytest.approx(0.5 * float((change.T @ g @ change).trace()))
    assert_close(turn.gram, repaired @ repaired.T)
    assert_close(turn.inverse[left][:, left], torch.linalg.inv(g[left][:, left]))
    assert torch.isinf(turn.rises()[gone]).all()


def test_units_of_several_rows_go_as_a_block():
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(8, 6, generator=generator, dtype=FLOAT)
    g, weight = root.T @ root, torch.randn(6, 5, generator=generator, dtype=FLOAT)
    index = torch.tensor([[0, 3], [1, 4], [2, 5]])
    block = Elimination(weight @ weight.T, torch.linalg.inv(g), index)
    single = Elimination(weight @ weight.T, torch.linalg.inv(g), torch.arange(6)[:, None])
    rise = float(block.rises()[1])
    block.remove(1)
    total = 0.0
    for row in (1, 4):
        total += float(single.rises()[row])
        single.remove(row)
    assert_close(block.transform, single.transform)
    assert rise == pytest.approx(total)
    # With all else held, a block's rise is the quadratic form of both rows together.
    a = torch.eye(5, dtype=FLOAT)
    both = torch.zeros_like(weight)
    both[[1, 4]] = weight[[1, 4]]
    assert float(row_rises(weight, a, g, index)[1]) == pytest.approx(0.5 * float((both.T @ g @ both).trace()))
    assert_close(column_rises(weight.T, g, a, index), row_rises(weight, a, g, index))


def test_compensation_never_costs_more_than_removal_alone():
    net, (x, y) = mlp(5, 7, 3, generator=torch.Generator().manual_seed(0)).double(), data(outputs=3)
    factors = exact_factors(net, x, "categorical")
    graph = trace_units(net, x)
    batch = (x, y.argmax(1))
    for side in ("out", "in"):
        plain, repaired = (
            KroneckerNeuron(factors, compensate=compensate, first_order=False, damping=1e-6).unit_scores(
                net, [batch], cross_entropy, graph, side=side
            )["0"]
            for compensate in (False, True)
        )
        assert (repaired <= plain + 1e-9).all()
        assert (repaired >= -1e-9).all()


def test_a_twin_takes_over_all_of_its_twin():
    net, (x, _) = mlp(5, 4, 3, generator=torch.Generator().manual_seed(0)).double(), data()
    with torch.no_grad():
        net[0].weight[2], net[0].bias[2] = net[0].weight[0], net[0].bias[0]
    factors = exact_factors(net, x, "categorical")
    (group,) = trace_units(net, x).prunable()
    before = net(x)
    for side in ("in",):
        trial = Compensation(factors, group, damping=1e-9, side=side)
        assert int(trial.rises().argmin()) in (0, 2)
        trial.shrink_to(3)
        trial.repair_()
        assert_close(net(x), before, atol=1e-5, rtol=0)
    assert trial.rise < 1e-6


def test_the_first_order_term_after_compensation_is_the_slope_along_the_repair():
    net, (x, _) = mlp(5, 4, 3, generator=torch.Generator().manual_seed(0)).double(), data()
    y = torch.randint(3, (30,), generator=torch.Generator().manual_seed(2))
    graph = trace_units(net, x)
    factors = exact_factors(net, x, "categorical")
    scores = [
        KroneckerNeuron(factors, first_order=first_order).unit_scores(net, [(x, y)], cross_entropy, graph)["0"]
        for first_order in (True, False)
    ]
    matrix = to_matrix(net[0], net[0].weight, net[0].bias).detach().clone()
    cross_entropy(net(x), y).backward()
    slope = to_matrix(net[0], net[0].weight.grad, net[0].bias.grad)
    for unit in range(4):
        trial = Compensation(factors, graph["0"])
        trial.remove(unit)
        change = trial._layers[0][1].transform @ matrix - matrix
        assert float((scores[0] - scores[1])[unit]) == pytest.approx(float((slope * change).sum()))


def test_a_criterion_gives_weights_whose_rows_sum_to_the_units_scores():
    net, (x, _) = mlp(5, 4, 3, generator=torch.Generator().manual_seed(0)), data()
    batch = (x.float(), torch.zeros(30, dtype=torch.long))
    criterion = KroneckerNeuron(compensate=False)
    scores = criterion(net, [batch], cross_entropy)
    assert {name: score.shape for name, score in scores.items()} == {"0.weight": (4, 5), "2.weight": (3, 4)}
    graph = trace_units(net, batch[0])
    units = criterion.unit_scores(net, [batch], cross_entropy, graph)
    assert_close(scores["0.weight"].sum(1), units["0"])
    reduced = graph.reduce(scores, norm="none")["0"]
    assert torch.equal(reduced.argsort(), units["0"].argsort())


def test_it_prunes_units_as_a_criterion_and_by_scores_of_units():
    net, (x, _) = mlp(5, 8, 3, generator=torch.Generator().manual_seed(0)), data()
    batches = [(x.float(), torch.randint(3, (30,), generator=torch.Generator().manual_seed(2)))]
    criterion = KroneckerNeuron()
    units = criterion.unit_scores(net, batches, None, trace_units(net, batches[0][0]))
    other = copy.deepcopy(net)
    one = prune_units(net, batches[0][0], criterion, batches=batches, loss_fn=cross_entropy, keep=0.5)
    two = prune_units(other, batches[0][0], units, keep=0.5)
    assert one.kept == two.kept == {"0": (4, 8)}
    assert_close(one.net(x.float()), two.net(x.float()))


def test_convolutions_norms_and_readers_across_a_flatten():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 2),
    )  # fmt: skip
    x, y = torch.randn(6, 1, 6, 6), torch.tensor([0, 1, 0, 1, 1, 0])
    net(x)
    net.eval()
    graph = trace_units(net, x)
    factors = exact_factors(net, x, "categorical")
    sides = {group.name: natural_side(group, factors.layers) for group in graph.prunable(inexact=True)}
    assert sides == {"0": "in", "3": "out"}
    units = KroneckerNeuron(factors).unit_scores(net, [(x, y)], cross_entropy, graph)
    assert {name: len(score) for name, score in units.items()} == {"0": 4, "3": 3}
    keep = compensated_cut(factors, {name: graph[name] for name in sides}, {"0": 2, "3": 2})
    assert {name: int(kept.sum()) for name, kept in keep.items()} == {"0": 2, "3": 2}
    columns = net[3].weight.abs().amax((0, 2, 3))
    assert torch.equal(columns > 0, keep["0"])
    rows = net[3].weight.abs().amax((1, 2, 3))
    assert torch.equal(rows > 0, keep["3"])
    assert net(x).isfinite().all()


def test_layers_without_gradient_or_input_do_not_break_it():
    net, (x, _) = mlp(5, 4, 3, generator=torch.Generator().manual_seed(0)).double(), data()
    with torch.no_grad():
        net[2].weight.zero_()
    factors = exact_factors(net, torch.zeros_like(x), "categorical")
    (group,) = trace_units(net, x).prunable()
    trial = Compensation(factors, group)
    assert (trial.rises() == 0).all()
    trial.shrink_to(1)
    trial.repair_()
    assert all(parameter.isfinite().all() for parameter in net.parameters())


def test_bad_input_is_named():
    net, (x, _) = mlp(5, 4, 3, generator=torch.Generator().manual_seed(0)).double(), data()
    graph = trace_units(net, x)
    (group,) = graph.prunable()
    with pytest.raises(ValueError, match="damping"):
        KroneckerNeuron(damping=-1.0)
    with pytest.raises(ValueError, match="no factors of '0' yet"):
        Compensation(KroneckerFactors(net), group)
    factors = exact_factors(net, x, "categorical")
    trial = Compensation(factors, group)
    trial.remove(1)
    with pytest.raises(ValueError, match="unit 1 was removed"):
        trial.remove(1)
    with pytest.raises(ValueError, match="width"):
        trial.shrink_to(0)
    with pytest.raises(ValueError, match="No layer with Kronecker factors reads"):
        Compensation(KroneckerFactors(net, ["0"]), group, side="in")
    with pytest.raises(ValueError, match=r"'0\.bias' is none"):
        KroneckerNeuron(factors)(net, [(x, torch.zeros(30).long())], cross_entropy, ["0.bias"])
    with pytest.raises(ValueError, match="needs batches"):
        KroneckerNeuron()(net, [], cross_entropy)
    factors.keep("0", rows=torch.arange(2))
    with pytest.raises(ValueError, match="call keep after surgery"):
        Compensation(factors, group)
