"""Pruning in one call: targets are met, what cannot be is said, and repair is the least-squares optimum."""

import copy
import json

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.nn.functional import cross_entropy, unfold

from neuropil.structure.criteria import SNIP, Magnitude, Random
from neuropil.structure.graph import trace_units
from neuropil.structure.prune import prune_units
from neuropil.structure.repair import OptimalBrainRepair, noise_like
from neuropil.structure.surgery import load_pruned, mask_units
from neuropil.structure.surgery.proof import outputs
from tests.structure.zoo import case


def residual() -> nn.Module:
    return case("residual").make()


def example() -> torch.Tensor:
    return case("residual").inputs()


@pytest.mark.parametrize("scope", ["global", "group"])
@pytest.mark.parametrize(("target", "fraction"), [("keep", 0.5), ("macs", 0.4), ("params", 0.45)])
def test_targets_are_met(scope: str, target: str, fraction: float):
    net = residual()
    report = prune_units(net, example(), Magnitude(), scope=scope, **{target: fraction})
    units = [sum(pair[k] for pair in report.kept.values()) for k in (0, 1)]
    assert report.net is net
    assert sum(p.numel() for p in net.parameters()) == report.parameters_after
    reached = {
        "keep": units[0] / units[1],
        "macs": report.macs_after / report.macs_before,
        "params": report.parameters_after / report.parameters_before,
    }[target]
    assert reached == pytest.approx(fraction, abs=0.1)
    if target != "keep":
        assert reached <= fraction


def test_the_lowest_scores_go_first():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    scores = {"0": torch.tensor([4.0, 3, 2, 1]), "2": torch.tensor([0.5, 9, 9, 0.4])}
    report = prune_units(net, torch.zeros(1, 3), scores, keep=5 / 8)
    assert report.kept == {"0": (3, 4), "2": (2, 4)}
    assert report.cut.rows["0.weight"][0].tolist() == [0, 1, 2]
    assert report.cut.rows["2.weight"][0].tolist() == [1, 2]


def test_grouped_scores_see_every_member_of_a_residual_sum():
    net = residual()
    graph = trace_units(net, example())
    stem = next(g for g in graph.prunable() if sum(m.role == "out" for m in g.members) > 4)
    names = {m.parameter for m in stem.members if m.parameter.endswith("weight")}
    scores = graph.reduce(Magnitude()(net, params=sorted(names)), norm="none")[stem.name]
    by_hand = torch.zeros(stem.size, dtype=torch.float64)
    for member in stem.members:
        if member.parameter in names:
            weight = net.get_parameter(member.parameter).detach().abs()
            for unit in range(stem.size):
                by_hand[unit] += weight.index_select(member.axis, member.index[unit]).sum()
    torch.testing.assert_close(scores, by_hand)


def test_widths_are_rounded_up():
    net = nn.Sequential(nn.Linear(3, 30), nn.ReLU(), nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 2))
    report = prune_units(net, torch.zeros(1, 3), Magnitude(), keep=0.5, scope="group", round_to=8)
    assert [pair[0] for pair in report.kept.values()] == [16, 8]
    with pytest.raises(ValueError, match=r"params=0.01 cannot be met.*leave at least"):
        prune_units(net, torch.zeros(1, 3), Magnitude(), params=0.01, min_units=4)


def test_the_proof_changes_nothing_but_the_time():
    proved, trusted = residual(), residual()
    trusted.load_state_dict(proved.state_dict())
    report = prune_units(proved, example(), Magnitude(), macs=0.5)
    assert prune_units(trusted, example(), Magnitude(), macs=0.5, proof=False).spec() == report.spec()
    assert all(torch.equal(a, b) for a, b in zip(outputs(trusted, example()), outputs(proved, example()), strict=True))


def test_a_pruned_network_is_rebuilt_without_pickle():
    net = residual()
    report = prune_units(net, example(), Magnitude(), macs=0.5)
    state = load(save({k: v.contiguous() for k, v in net.state_dict().items()}))
    again = load_pruned(residual, json.loads(json.dumps(report.spec())), state)
    assert torch.equal(outputs(again, example())[0], outputs(net, example())[0])


def test_pruning_twice_is_rebuilt_from_both_cuts():
    net = residual()
    first = prune_units(net, example(), Magnitude(), keep=0.7)
    second = prune_units(net, example(), Magnitude(), keep=0.7)
    again = load_pruned(residual, [first.spec(), second.spec()], net.state_dict())
    assert torch.equal(outputs(again, example())[0], outputs(net, example())[0])


def test_criteria_with_data_and_the_optimizer_work_on_the_users_net():
    generator = torch.Generator().manual_seed(0)
    net = residual().float()
    optimizer = torch.optim.Adam(net.parameters())
    x, y = torch.randn(4, *example().shape[1:], generator=generator), torch.tensor([0, 1, 2, 3])
    cross_entropy(net(x), y).backward()
    optimizer.step()
    prune_units(net, x, SNIP(), batches=[(x, y)], loss_fn=cross_entropy, keep=0.5, optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in net.parameters()}
    assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in net.parameters())
    cross_entropy(net(x), y).backward()
    optimizer.step()


def test_what_code_forbids_is_reported_and_left_whole():
    pytest.importorskip("transformers")
    one = case("hf-bert")
    net = one.make()
    report = prune_units(net, one.inputs(), Magnitude(), keep=0.5)
    assert report.frozen["reason"].str.contains("needs code").any()
    assert report.parameters_after < report.parameters_before
    assert "frozen" in str(report)


def test_time_is_measured_beside_the_whole():
    net = residual()
    whole = copy.deepcopy(net)
    report = prune_units(net, example(), Magnitude(), keep=0.5).time(whole, example(), batch=2, runs=30)
    assert set(report.latency) == {"before", "after"}
    assert "faster" in str(report)


def test_bad_requests_are_named():
    net = residual()
    with pytest.raises(TypeError, match="one of keep, macs and params, got none"):
        prune_units(net, example(), Magnitude())
    with pytest.raises(TypeError, match="got keep, macs"):
        prune_units(net, example(), Magnitude(), keep=0.5, macs=0.5)
    for fraction in (0.0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="keep must be"):
            prune_units(net, example(), Magnitude(), keep=fraction)
    with pytest.raises(ValueError, match="round_to must be"):
        prune_units(net, example(), Magnitude(), keep=0.5, round_to=0)
    group = trace_units(net, example()).prunable()[0]
    with pytest.raises(ValueError, match="are NaN for 1 of"):
        bad = torch.ones(group.size)
        bad[0] = float("nan")
        prune_units(net, example(), {group.name: bad}, keep=0.5)
    with pytest.raises(ValueError, match="its scores have shape"):
        prune_units(net, example(), {group.name: torch.ones(group.size + 1)}, keep=0.5)
    with pytest.raises(ValueError, match="cannot be pruned, or do not exist: nobody"):
        prune_units(net, example(), Magnitude(), keep=0.5, groups=["nobody"])
    with pytest.raises(ValueError, match="cannot read"):
        branch = case("branch")
        prune_units(branch.make(), branch.inputs(), Magnitude(), keep=0.5)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in residual().parameters())


def chain() -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.Flatten(), nn.Linear(36, 3)
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return net.double()


def test_repair_is_the_least_squares_optimum():
    """No other weights on the kept columns, bias included, come nearer to the outputs of the whole layer."""
    net = chain()
    x = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = trace_units(net, x[:1])
    keep = {"0": torch.tensor([True, True, False, True, False, True])}
    whole = copy.deepcopy(net)
    assert OptimalBrainRepair([x], damping=0.0).apply_(net, keep, graph) == ["2"]
    hidden = unfold(net[:2](x), 3, stride=2)
    columns = hidden.transpose(0, 1).reshape(54, -1)
    kept = keep["0"].repeat_interleave(9)
    inputs = torch.cat([columns[kept], torch.ones_like(columns[:1])])
    wanted = whole[2](whole[:2](x)).transpose(0, 1).reshape(4, -1)
    best = torch.linalg.lstsq(inputs.T, wanted.T).solution.T
    torch.testing.assert_close(net[2].weight.flatten(1)[:, kept], best[:, :-1])
    torch.testing.assert_close(net[2].bias, best[:, -1])
    assert not net[2].weight.flatten(1)[:, ~kept].any()


def test_repair_equals_the_surgeons_steps():
    """The closed form is what eliminating columns one after the other arrives at."""
    net = chain()[4:]
    x = torch.randn(80, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    layer = net[0]
    columns = torch.cat([x.T, torch.ones(1, 80, dtype=torch.float64)])
    H = 2 * columns @ columns.T / 80
    H.diagonal()[:36] += 0.1 * H.diagonal()[:36].mean()
    weight = torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], dim=1)
    inverse = torch.linalg.inv(H)
    for p in (3, 7, 20):
        weight = weight - weight[:, p : p + 1] / inverse[p, p] * inverse[p]
        inverse = inverse - inverse[:, p : p + 1] @ inverse[p : p + 1] / inverse[p, p]
    first = nn.Sequential(nn.Linear(36, 36), nn.Linear(36, 3)).double()
    with torch.no_grad():
        first[0].weight.copy_(torch.eye(36))
        first[0].bias.zero_()
        first[1].weight.copy_(layer.weight)
        first[1].bias.copy_(layer.bias)
    keep = torch.ones(36, dtype=torch.bool)
    keep[[3, 7, 20]] = False
    graph = trace_units(first, x[:1])
    OptimalBrainRepair([x], damping=0.1).apply_(first, {"0": keep}, graph)
    torch.testing.assert_close(first[1].weight[:, keep], weight[:, :-1][:, keep], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(first[1].bias, weight[:, -1], rtol=1e-6, atol=1e-9)


def test_a_unit_that_others_copy_costs_nothing():
    net = chain()
    with torch.no_grad():
        net[0].weight[5] = net[0].weight[0]
        net[0].bias[5] = net[0].bias[0]
    x = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = net(x)
    graph = trace_units(net, x[:1])
    scores = OptimalBrainRepair([x], damping=1e-9).scores(net, graph)["0"]
    assert int(scores.argmin()) in {0, 5}
    report = prune_units(
        net, x[:1], {"0": scores}, keep=5 / 6, groups=["0"], repair=OptimalBrainRepair([x], damping=1e-9)
    )
    torch.testing.assert_close(report.net(x), whole, rtol=1e-5, atol=1e-6)
    assert report.repaired == ("2",)


@pytest.mark.parametrize("sequential", [False, True])
def test_repair_helps_and_masked_equals_cut(sequential: bool):
    net = residual()
    x = torch.randn(32, *example().shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    graph = trace_units(net, example())
    generator = torch.Generator().manual_seed(1)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in graph.prunable()}
    whole, plain, mended = copy.deepcopy(net).eval(), copy.deepcopy(net), copy.deepcopy(net)
    repair = OptimalBrainRepair([x], sequential=sequential, reset_norm=False)
    prune_units(plain, example(), scores, keep=0.6)
    prune_units(mended, example(), scores, keep=0.6, repair=repair)
    wanted = outputs(whole, x)[0]
    gaps = [float((outputs(n, x)[0] - wanted).square().mean()) for n in (plain, mended)]
    assert gaps[1] < 0.8 * gaps[0]


def test_bad_repairs_are_named():
    net = chain()
    x = torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    graph = trace_units(net, x)
    keep = {"0": torch.tensor([True, False] * 3)}
    with pytest.raises(ValueError, match="damping must be"):
        OptimalBrainRepair([x], damping=-1.0)
    with pytest.raises(ValueError, match="there were none"):
        OptimalBrainRepair([]).apply_(net, keep, graph)
    with pytest.raises(ValueError, match="inputs of 2 are degenerate: raise the damping"):
        net[0].bias.data.fill_(-1.0)
        OptimalBrainRepair([x], damping=0.0).apply_(net, keep, graph)
    with pytest.raises(ValueError, match="high must be"):
        noise_like(x, 1, low=1.0, high=0.0, generator=torch.Generator())
    drawn = noise_like(x, 2, low=-1.0, high=3.0, generator=torch.Generator().manual_seed(0))
    assert [one.shape for one in drawn] == [x.shape] * 2
    assert all(-1 <= float(one.min()) < 0 and 2 < float(one.max()) <= 3 for one in drawn)


def test_nothing_is_drawn_from_the_global_state(generator: torch.Generator):
    before = torch.random.get_rng_state()
    prune_units(residual(), example(), Random(generator), keep=0.5)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert len(mask_units(residual(), {}, trace_units(residual(), example()))) == 0
