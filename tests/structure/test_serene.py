"""Sensitivity against closed forms and explicit Jacobians; thresholds against brute force; shrinking without change."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.func import jacrev

from neuropil.structure.graph import trace_units
from neuropil.structure.masks import Masks
from neuropil.structure.sensitivity import InsensitivityDecay, hidden_layers, neuron_sensitivity
from neuropil.structure.serene import SeReNe, dead_units, fold_constants_, threshold_by_loss


def drawn(net: nn.Module, scale: float = 0.5) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return net.double()


def mlp() -> nn.Module:
    return drawn(nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3)))


def batch(n: int = 9, width: int = 5) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_a_linear_readout_is_the_closed_form():
    net = drawn(nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)))
    V = net[1].weight.detach()
    full = neuron_sensitivity(net, batch(), kind="full")["0"]
    lower = neuron_sensitivity(net, batch(), kind="lower")["0"]
    torch.testing.assert_close(full, V.abs().mean(dim=0))
    torch.testing.assert_close(lower, V.sum(dim=0).abs() / 3)
    torch.testing.assert_close(neuron_sensitivity(net, batch(), kind="local")["0"], full)
    assert bool((lower <= full + 1e-12).all())


def test_every_kind_is_what_the_jacobian_says():
    net, x = mlp(), batch()
    p0 = net[0](x).detach()
    J = torch.stack([jacrev(net[1:])(p) for p in p0])  # (batch, classes, units)
    torch.testing.assert_close(neuron_sensitivity(net, x, kind="full")["0"], J.abs().mean(dim=(0, 1)))
    torch.testing.assert_close(neuron_sensitivity(net, x, kind="lower")["0"], J.mean(dim=1).abs().mean(dim=0))
    local = torch.stack([jacrev(net[1:3])(p) for p in p0])
    torch.testing.assert_close(neuron_sensitivity(net, x, kind="local")["0"], local.abs().mean(dim=(0, 1)))


def test_a_convolution_has_one_number_a_channel():
    net = drawn(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)))
    x = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = neuron_sensitivity(net, x, kind="full")
    assert {name: value.shape for name, value in found.items()} == {"0": (4,)}
    p = net.eval()[0](x).detach()
    J = torch.stack([jacrev(net[1:])(q[None])[0, :, 0] for q in p])
    torch.testing.assert_close(found["0"], J.abs().mean(dim=(0, 1, 3, 4)))


def test_dead_neurons_and_frozen_nets():
    net = mlp()
    net[1] = nn.ReLU()
    with torch.no_grad():
        net[0].bias[2] = -1e3
        net[2].weight[:, 4] = 0
    for parameter in net.parameters():
        parameter.requires_grad_(requires_grad=False)
    found = neuron_sensitivity(net, batch())["0"]
    assert float(found[2]) == float(found[4]) == 0
    assert float(found[0]) > 0


def test_insensitivity_of_one_is_weight_decay_to_the_bit():
    net = mlp()
    with torch.no_grad():
        net[4].weight.zero_()
    decay = InsensitivityDecay(net, torch.optim.SGD(net.parameters(), 0.1), 0.25)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decay.observe(batch())
    assert "plain weight decay" in str(caught[0].message)
    before = [net[k].weight.detach().clone() for k in (0, 2, 4)]
    decay.step()
    for k, was in zip((0, 2), before, strict=False):
        assert torch.equal(net[k].weight, was * 0.75)
    assert torch.equal(net[4].weight, before[2])


def test_normalised_decay_spares_the_most_sensitive_and_is_measured_every_so_often():
    net, x = mlp(), batch()
    decay = InsensitivityDecay(net, torch.optim.SGD(net.parameters(), 0.1), 0.5, normalise="layer", every=2)
    decay.observe(x)
    S = neuron_sensitivity(net, x)["0"]
    torch.testing.assert_close(decay.insensitivity["0"], 1 - S / S.max())
    before = net[0].weight.detach().clone()
    decay.step()
    assert torch.equal(net[0].weight[S.argmax()], before[S.argmax()])
    torch.testing.assert_close(net[0].weight, before * (0.5 + 0.5 * S / S.max())[:, None])
    measured = decay.insensitivity
    decay.observe(x)
    assert decay.insensitivity is measured
    decay.observe(x)
    assert decay.insensitivity is not measured


def test_the_threshold_is_that_of_brute_force():
    """On a loss that rises with every weight cut, no larger threshold is allowed."""
    net, x = mlp(), batch(40)
    wanted = net(x).detach()
    names = ["0.weight", "2.weight"]

    def loss() -> float:
        return 0.01 + float((net(x) - wanted).square().mean().detach())

    before = {name: value.clone() for name, value in net.state_dict().items()}
    masks = threshold_by_loss(net, loss, 0.5, names=names)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    every = torch.cat([net.get_parameter(name).detach().abs().flatten() for name in names]).sort().values
    count = masks.total() - masks.kept()

    def after(k: int) -> float:
        edge = every[k - 1] if k else -1
        cut = copy.deepcopy(net)
        Masks({name: net.get_parameter(name).abs() > edge for name in names}).apply_(cut)
        return 0.01 + float((cut(x) - wanted).square().mean())

    first = next(k for k in range(len(every) + 1) if after(k) > 1.5 * 0.01)
    assert after(count) <= 1.5 * 0.01
    assert count <= first - 1 + round(len(every) / 20)
    assert all(after(k) > 1.5 * 0.01 for k in range(count + 1, count + 2))
    assert threshold_by_loss(net, loss, 0.0, names=names).kept() == masks.total()
    again = threshold_by_loss(net, loss, 0.5, masks)
    assert again.kept() <= masks.kept()


def test_constants_are_folded_and_the_function_stays():
    net = drawn(nn.Sequential(nn.Linear(5, 7), nn.Sigmoid(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)))
    with torch.no_grad():
        net[0].weight[[1, 3]] = 0
        net[2].weight[4] = 0
    x = batch()
    wanted = net(x).detach()
    graph = trace_units(net, x)
    keep = dead_units(net, graph)
    assert {name: int(kept.sum()) for name, kept in keep.items()} == {"0": 5, "2": 5}
    fold_constants_(net, keep, graph, x)
    torch.testing.assert_close(net(x), wanted)
    assert not net[2].weight[:, [1, 3]].any()


def digits():
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(120) % 3
    x = torch.randn(120, 6, generator=generator, dtype=torch.float64)
    x[torch.arange(120), y] += 2.5
    return x, y


def test_the_procedure_prunes_neurons_and_shrinks_exactly():
    x, y = digits()
    net = drawn(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3)), 0.3)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    loss_fn = nn.functional.cross_entropy

    def evaluate() -> float:
        with torch.no_grad():
            return float(loss_fn(net(x), y))

    serene = SeReNe(net, optimizer, evaluate, x[:2], strength=0.01, tolerance=0.2, patience=0)
    for epoch in range(12):
        for part in torch.arange(120).split(20):
            optimizer.zero_grad()
            loss_fn(net(x[part]), y[part]).backward()
            optimizer.step()
            serene.step(x[part])
        state = serene.epoch(threshold=epoch >= 4)
        assert state.thresholded == (epoch >= 4)
        for name, mask in serene.masks.items():
            assert not net.get_parameter(name)[~mask].any()
    assert state.density < 0.7
    alive = serene.alive()
    assert alive["0"] < 24
    wanted = net(x).detach()
    report = serene.shrink()
    assert net[0].out_features <= alive["0"]
    torch.testing.assert_close(net(x), wanted)
    assert report.parameters_after == sum(p.numel() for p in net.parameters())
    loss_fn(net(x), y).backward()
    optimizer.step()
    for name, mask in serene.masks.items():
        assert not net.get_parameter(name)[~mask].any()


def test_bad_requests_are_named():
    net, x = mlp(), batch()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for strength in (-0.1, 1.0):
        with pytest.raises(ValueError, match="strength must be"):
            InsensitivityDecay(net, optimizer, strength)
    with pytest.raises(RuntimeError, match="before observe"):
        InsensitivityDecay(net, optimizer, 0.1).step()
    with pytest.raises(ValueError, match="calls 1 layers"):
        hidden_layers(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match="no linear or convolutional layer '1'"):
        neuron_sensitivity(net, x, modules=["1"])
    with pytest.raises(ValueError, match="axis of classes"):
        neuron_sensitivity(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1), nn.Flatten(0)), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="not finite"):
        neuron_sensitivity(drawn(nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 1)), 1e308), x)
    with pytest.raises(ValueError, match="tolerance must be"):
        threshold_by_loss(net, lambda: 1.0, -1.0)
    with pytest.raises(ValueError, match="loss of the network is nan"):
        threshold_by_loss(net, lambda: float("nan"), 0.1, names=["0.weight"])
    graph = trace_units(net, x)
    with pytest.raises(ValueError, match="no constants"):
        fold_constants_(net, {"0": torch.arange(7) > 0}, graph, x)
