"""The penalty on sharpness, and pruning while training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning.networks import mlp, small_conv
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.structure.curvature_pruner import CurvaturePruner, keep_factors, sharpness_shares
from neuropil.structure.flatness import FlatnessPenalty
from neuropil.structure.graph.tracing import trace_units
from neuropil.structure.surgery.shrinking import shrink

FLOAT = torch.float64


def net_and_batch(seed: int = 0, hidden: int = 6):
    generator = torch.Generator().manual_seed(seed)
    net = mlp(5, hidden, 3, activation=nn.Tanh, generator=generator).double()
    x = torch.randn(20, 5, generator=generator, dtype=FLOAT)
    return net, x, torch.randint(3, (20,), generator=generator)


def penalty_of(net, x, **options):
    penalty = FlatnessPenalty(net, 1.0, **options)
    with penalty:
        logits = net(x)
    return penalty(logits), penalty


def test_the_penalty_is_the_sum_of_the_layers_radii():
    net, x, _ = net_and_batch()
    factors = KroneckerFactors(net, fisher="exact")
    with factors:
        output = net(x)
    factors.update(output)
    found, penalty = penalty_of(net, x, fisher="exact")
    radii = factors.spectral_radius()
    assert_close(found, torch.tensor(sum(radii.values()), dtype=FLOAT))
    assert penalty.last == pytest.approx(radii)


def test_its_gradient_is_that_of_finite_differences():
    net, x, _ = net_and_batch()
    penalty_of(net, x, fisher="exact")[0].backward()
    weight = net[0].weight
    slope = weight.grad[1, 2].item()
    step, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            weight[1, 2] += sign * step
        values.append(penalty_of(net, x, fisher="exact")[0].item())
        with torch.no_grad():
            weight[1, 2] -= sign * step
    assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-5)
    assert slope != 0


def test_following_it_flattens():
    net, x, _ = net_and_batch()
    before = penalty_of(net, x, fisher="exact")[0].item()
    optimizer = torch.optim.SGD(net.parameters(), 0.02)
    penalty = FlatnessPenalty(net, 1.0)
    for _ in range(40):
        with penalty:
            logits = net(x)
        optimizer.zero_grad()
        penalty(logits).backward()
        optimizer.step()
    assert penalty_of(net, x, fisher="exact")[0].item() < 0.7 * before


def test_convolutions_wide_layers_and_zero_weights_have_a_penalty():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(32, 3))
    x = torch.randn(4, 1, 6, 6)
    assert penalty_of(net, x)[0] > 0
    with torch.no_grad():
        net[3].weight.zero_()
    found, _ = penalty_of(net, x)
    found.backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_draws_of_the_penalty_are_its_generators_alone():
    net, x, _ = net_and_batch()
    before = torch.random.get_rng_state()
    values = [penalty_of(net, x, generator=torch.Generator().manual_seed(seed))[0].item() for seed in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(before, torch.random.get_rng_state())


def test_shares_of_sharpness_bound_what_a_removal_leaves():
    net, x, _ = net_and_batch()
    factors = KroneckerFactors(net, fisher="exact")
    with factors:
        output = net(x)
    factors.update(output)
    graph = trace_units(net, x)
    shares = sharpness_shares(factors, graph["0"])
    assert_close(shares.sum(), torch.tensor(factors.spectral_radius()["0"], dtype=FLOAT) + shares_in(factors))
    total = []
    for unit in range(6):
        less = copy.deepcopy(factors)
        keep_factors(less, graph["0"], torch.arange(6) != unit)
        before, after = factors.spectral_radius(), less.spectral_radius()
        assert all(after[name] <= before[name] + 1e-12 for name in before)
        total.append(sum(before.values()) - sum(after.values()))
    # What runs most through the sharp directions takes most out of them.
    assert int(shares.argmax()) == int(torch.tensor(total).argmax())


def shares_in(factors):
    """Of the reading layer: what is not the bias's."""
    values, vectors = torch.linalg.eigh(factors.A["2"])
    return values[-1] * torch.linalg.eigvalsh(factors.G["2"])[-1] * (1 - vectors[-1, -1] ** 2)


def test_factors_follow_surgery():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).double()
    x = torch.randn(5, 1, 4, 4, dtype=FLOAT)
    graph = trace_units(net, x)
    keep = torch.tensor([True, False, True, True])
    with torch.no_grad():  # a channel that nobody hears: the others' gradients do not change with its removal
        net[3].weight[:, 4:8] = 0.0
    factors = KroneckerFactors(net, fisher="exact")
    with factors:
        output = net(x)
    factors.update(output)
    keep_factors(factors, graph["0"], keep)
    shrink(net, {"0": keep}, graph)
    again = KroneckerFactors(net, fisher="exact")
    with again:
        output = net(x)
    again.update(output)
    for name in ("0", "3"):
        assert_close(factors.A[name], again.A[name])
        assert_close(factors.G[name], again.G[name])


def trained_with_pruner(**options):
    net, x, y = net_and_batch(hidden=24)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    pruner = CurvaturePruner(net, optimizer, KroneckerFactors(net, fisher="exact"), x, **options)
    for _ in range(5):
        for _ in range(10):
            optimizer.zero_grad()
            loss = cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            pruner.step(x)
        pruner.epoch(float(loss.detach()))
    return net, optimizer, pruner, x


def test_units_go_while_the_net_trains_and_everything_follows():
    net, optimizer, pruner, x = trained_with_pruner(epsilon=0.5, max_fraction=0.25)
    left = net[0].weight.shape[0]
    assert 1 <= left < 24
    assert net(x).shape == (20, 3)
    assert pruner.graph["0"].size == left
    assert [done.epoch for done in pruner.rounds] == sorted({done.epoch for done in pruner.rounds})
    assert pruner.rounds[0].epoch >= 2
    assert sum(sum(done.removed.values()) for done in pruner.rounds) == 24 - left
    for done in pruner.rounds:
        assert done.radius[1] <= done.radius[0] + 1e-12
        assert max(done.removed.values()) <= 6
    for parameter in net.parameters():
        assert optimizer.state[parameter]["momentum_buffer"].shape == parameter.shape


def test_the_budget_is_kept():
    _, _, pruner, _ = trained_with_pruner(epsilon=1e-9, max_fraction=1.0)
    assert sum(done.rise for done in pruner.rounds) < 1e-6
    _, _, rich, _ = trained_with_pruner(epsilon=100.0, max_fraction=1.0, widths={"0": 7}, flat=False)
    assert rich.graph["0"].size == 7


def test_widths_and_fractions_bound_a_round():
    net, _, pruner, _ = trained_with_pruner(epsilon=100.0, max_fraction=0.1, widths={"0": 20})
    assert net[0].weight.shape[0] == 20
    assert all(sum(done.removed.values()) <= 2 for done in pruner.rounds)


def test_a_convolution_net_with_norms_is_pruned_at_its_readers():
    generator = torch.Generator().manual_seed(0)
    net = small_conv((1, 6, 6), 3, (8, 6), generator=generator)
    x, y = torch.randn(30, 1, 6, 6, generator=generator), torch.randint(3, (30,), generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    factors = KroneckerFactors(net)
    pruner = CurvaturePruner(net, optimizer, factors, x[:2], epsilon=10.0, max_fraction=0.3, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        state = {name: value.clone() for name, value in net.named_buffers()}
        pruner.step(x)
        assert all(torch.equal(state[name], value) for name, value in net.named_buffers())
        pruner.epoch(float(loss.detach()))
    assert pruner.rounds
    assert sum(module.out_channels for module in net if isinstance(module, nn.Conv2d)) < 14
    assert net(x).isfinite().all()
    for name, layer in factors.layers.items():
        assert len(factors.G[name]) == layer.weight.shape[0]
        assert len(factors.A[name]) == layer.weight[0].numel() + 1


def test_flat_candidates_are_those_with_the_larger_shares():
    net, x, _ = net_and_batch(hidden=24)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    factors = KroneckerFactors(net, fisher="exact")
    pruner = CurvaturePruner(net, optimizer, factors, x, max_fraction=0.25)
    pruner.step(x)
    budget = 1.0
    shares = sharpness_shares(factors, pruner.graph["0"])
    chosen = pruner._chosen(budget)["0"]
    pruner.max_fraction = 1.0
    candidates = pruner._chosen(budget)["0"]
    assert set(chosen) < set(candidates)
    assert shares[chosen].min() >= shares[[unit for unit in candidates if unit not in chosen]].max()


def test_bad_input_is_named():
    net, x, _ = net_and_batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    factors = KroneckerFactors(net)
    for options, words in (
        ({"epsilon": 0.0}, "epsilon"),
        ({"max_fraction": 1.5}, "max_fraction"),
        ({"interval": 0}, "interval"),
        ({"every": 0}, "every"),
        ({"warm_up": -1}, "warm_up"),
        ({"widths": {"7": 1}}, "'7'"),
    ):
        with pytest.raises(ValueError, match=words):
            CurvaturePruner(net, optimizer, factors, x, **options)
    with pytest.raises(ValueError, match="empirical"):
        CurvaturePruner(net, optimizer, KroneckerFactors(net, fisher="empirical"), x)
    pruner = CurvaturePruner(net, optimizer, factors, x, warm_up=0)
    with pytest.raises(RuntimeError, match="call step"):
        pruner.epoch(1.0)
    with pytest.raises(ValueError, match="loss"):
        pruner.epoch(float("nan"))
    with pytest.raises(ValueError, match="strength"):
        FlatnessPenalty(net, -1.0)
    with pytest.raises(RuntimeError, match="did not run"):
        FlatnessPenalty(net, 1.0)(net(x))
    with pytest.raises(ValueError, match="GRU"):
        FlatnessPenalty(nn.ModuleDict({"cell": nn.GRU(2, 2)}), 1.0)
