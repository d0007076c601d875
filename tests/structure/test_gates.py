"""Gates: closed ones are removed units, their cost is the counted one, and training them finds what matters."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.structure.bottleneck import autobot, learn_bottleneck, select_by_macs
from neuropil.structure.gates import ExpectedMacs, UnitGates, expected_macs, gate_sensitivity, gated
from neuropil.structure.graph import trace_units
from neuropil.structure.graph.recording import tensors_of
from neuropil.structure.graph.tracing import arguments
from neuropil.structure.surgery import mask_units
from neuropil.structure.surgery.proof import outputs
from tests.structure.zoo import ZOO, case

EXPORTED = [one for one in ZOO if one.exports]


def halves(graph, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.randperm(g.size, generator=generator) >= g.size // 2 for g in graph.prunable()}


@pytest.mark.parametrize("one", EXPORTED, ids=str)
def test_closed_gates_are_masked_units_and_cost_what_is_counted(one):
    net, example = one.make(), one.inputs()
    graph = trace_units(net, example)
    keep = halves(graph)
    masked = copy.deepcopy(net)
    mask_units(masked, keep, graph).apply_(masked)
    lambdas = {name: kept.double() for name, kept in keep.items()}
    args, keywords = arguments(example)
    with torch.no_grad():
        got = list(tensors_of(gated(net, graph.prunable(), lambdas, args, keywords)))
    for x, y in zip(got, outputs(masked, example), strict=True):
        assert not x.is_floating_point() or float((x - y).abs().max() / (1 + y.abs().max())) < one.tolerance
    count = ExpectedMacs(graph)
    assert float(count(lambdas)) == graph.macs(keep)
    assert float(count({})) == graph.macs()


def test_the_expected_count_is_differentiable_and_multilinear():
    one = case("grouped")
    graph = trace_units(one.make(), one.inputs())
    generator = torch.Generator().manual_seed(0)
    lambdas = {
        g.name: torch.rand(g.size, generator=generator, dtype=torch.float64).requires_grad_() for g in graph.prunable()
    }
    count = ExpectedMacs(graph)
    assert torch.autograd.gradcheck(lambda *v: count(dict(zip(lambdas, v, strict=True))) / 1e4, tuple(lambdas.values()))
    name = next(iter(lambdas))
    ends = []
    for value in (0.0, 0.3, 1.0):
        moved = lambdas[name].detach().clone()
        moved[0] = value
        ends.append(float(expected_macs(graph, {**lambdas, name: moved}).detach()))
    assert ends[1] == pytest.approx(0.7 * ends[0] + 0.3 * ends[2])


def test_gates_are_the_only_parameters_and_leave_the_net_alone():
    one = case("residual")
    net, x = one.make(), one.inputs()
    gates = UnitGates(net, trace_units(net, x), 0.9)
    assert sum(p.numel() for p in gates.parameters()) == sum(g.size for g in gates.groups)
    assert all(torch.allclose(v, torch.tensor(0.9, dtype=v.dtype)) for v in gates.lambdas().values())
    gates(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in gates.parameters())
    open_ = UnitGates(net, trace_units(net, x), 0.999999 - 1e-9)
    torch.testing.assert_close(open_(x), net(x), rtol=1e-4, atol=1e-4)


def test_sensitivity_is_the_squared_derivative():
    one = case("residual")
    net, x = one.make(), one.inputs()
    graph = trace_units(net, x)
    y = torch.zeros(len(x), dtype=torch.long)
    scores = gate_sensitivity(net, graph, [(x, y)], cross_entropy)
    group, step = graph.prunable()[0], 1e-6
    for unit in (0, 1):
        losses = []
        for sign in (-1, 1):
            value = torch.ones(group.size, dtype=torch.float64)
            value[unit] += sign * step
            with torch.no_grad():
                losses.append(float(cross_entropy(gated(net, [group], {group.name: value}, (x,), {}), y)))
        assert float(scores[group.name][unit]) == pytest.approx(((losses[1] - losses[0]) / (2 * step)) ** 2, rel=1e-4)


def trained_with_a_dead_channel():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    y = torch.arange(60) % 3
    x = 0.3 * torch.randn(60, 1, 8, 8, generator=generator)
    for k in range(3):
        x[y == k, :, 2 * k : 2 * k + 3] += 1.5
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        net[1].weight[2] = net[1].bias[2] = 0
    return net.eval(), x, y


def test_a_dead_channel_closes_and_the_budget_is_met():
    net, x, y = trained_with_a_dead_channel()
    graph = trace_units(net, x[:1])
    target = 0.5 * graph.macs()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = learn_bottleneck(net, [(x, y)], cross_entropy, x[:1], target, steps=100)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert float(result.lambdas["0"][2]) < 0.5
    assert len(result.history) == 100
    keep = select_by_macs(result.lambdas, graph, target)
    assert not keep["0"][2]
    small, report, _ = autobot(net, [(x, y)], cross_entropy, x[:1], target, steps=100)
    assert report.macs_after == graph.macs(keep)
    assert abs(report.macs_after - target) < 0.2 * graph.macs()
    assert small is net


def test_selection_takes_the_nearest_threshold():
    net = nn.Sequential(nn.Linear(4, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    graph = trace_units(net, torch.zeros(1, 4))  # 7 multiply-accumulates a unit
    scores = {"0": torch.tensor([0.1, 0.9, 0.5, 0.5, 0.3])}
    for target, kept in ((7, 1), (8, 1), (20, 3), (21, 3), (23, 3), (27, 4), (34, 5)):
        assert int(select_by_macs(scores, graph, target)["0"].sum()) == kept, target
    for target in (35, 6, 0):
        with pytest.raises(ValueError, match="below the full count of 35 and at least 7"):
            select_by_macs(scores, graph, target)
    with pytest.raises(ValueError, match="are NaN for 1 of 5"):
        select_by_macs({"0": torch.tensor([float("nan"), 1, 1, 1, 1])}, graph, 20)


def test_bad_requests_are_named():
    one = case("residual")
    net, x = one.make(), one.inputs()
    graph = trace_units(net, x)
    for init in (0.0, 1.0, 1 - 1e-7):
        with pytest.raises(ValueError, match="init must be"):
            UnitGates(net, graph, init)
    with pytest.raises(ValueError, match="is frozen"):
        UnitGates(net, graph, groups=[next(g.name for g in graph if not g.prunable)])
    with pytest.raises(ValueError, match="no groups"):
        UnitGates(net, graph, groups=[])
    with pytest.raises(ValueError, match="there were none"):
        gate_sensitivity(net, graph, [], cross_entropy)
    with pytest.raises(ValueError, match="there were none"):
        learn_bottleneck(net, [], cross_entropy, x, 0.5 * graph.macs())
    with pytest.raises(ValueError, match="beta must be"):
        learn_bottleneck(net, [(x, x)], cross_entropy, x, 0.5 * graph.macs(), beta=-1.0)
    with pytest.raises(ValueError, match="its gates have shape"):
        ExpectedMacs(graph)({graph.prunable()[0].name: torch.ones(1)})
    y = torch.zeros(len(x), dtype=torch.long)
    with pytest.raises(FloatingPointError, match="not finite at step 0"):
        learn_bottleneck(net, [(x * float("inf"), y)], cross_entropy, x, 0.5 * graph.macs(), steps=2)
