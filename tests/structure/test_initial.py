"""Pruning at the start: exact scales, what each kind of rescaling restores, and what is refused."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.chaos import init_edge_of_chaos_
from neuropil.structure.criteria import SNIP, Magnitude, Random
from neuropil.structure.initial import prune_at_init, rescale_to_data_, rescale_to_edge_, signal_power
from neuropil.structure.masks import Masks, prunable_parameters


@pytest.fixture
def batch(generator):
    return torch.randn(128, 60, generator=generator), torch.randint(10, (128,), generator=generator)


def deep(generator, activation=nn.ReLU, depth=12):
    net = mlp(60, *[80] * depth, 10, activation=activation, generator=generator)
    init_edge_of_chaos_(net, "relu" if activation is nn.ReLU else "tanh", generator=generator)
    return net


def sigma(weight):
    return math.sqrt(weight[0].numel() * float(weight.detach().double().square().mean()))


def test_moment_gives_every_layer_its_second_moment_back(batch, generator):
    net = deep(generator)
    before = {name: sigma(net.get_parameter(name)) for name in prunable_parameters(net)}
    masks = prune_at_init(net, [batch], cross_entropy, 0.2, rescale="moment")
    assert masks.density() == pytest.approx(0.2, abs=1e-4)
    for name, mask in masks.items():
        weight = net.get_parameter(name)
        assert sigma(weight) == pytest.approx(before[name], rel=1e-5)
        assert not bool(weight[~mask].any())


def test_the_factor_counts_removed_weights_as_zeros():
    net = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1]]))
    masks = Masks({"0.weight": torch.tensor([[True, False, False, False], [True, False, False, False]])})
    factors = rescale_to_edge_(net, masks, 3.0)
    assert factors == {"0.weight": 3.0 / math.sqrt(4 * 0.25)}  # not 3 / sqrt(4): the mean over kept weights would be 1
    assert net[0].weight[:, 0].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("criterion", [SNIP(), Magnitude(), Random()])
def test_data_gives_every_layer_the_power_that_it_passed_on(criterion, batch, generator):
    net = deep(generator)
    names = prunable_parameters(net)
    before = signal_power(net, batch[0], names)
    prune_at_init(net, [batch], cross_entropy, 0.2, criterion=criterion, scope="layer")
    assert signal_power(net, batch[0], names) == pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: small_conv((2, 8, 8), 5, generator=g),
        lambda g: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), mlp(128, 30, 30, 5, activation=nn.Tanh, generator=g)),
    ],
)
def test_biases_norms_and_dropout_are_seen_through(make, generator):
    net = make(generator).double()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, generator=generator)
    x = torch.randn(40, 2, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(5, (40,), generator=generator)
    names = prunable_parameters(net)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    state = torch.random.get_rng_state()
    before = signal_power(net, x, names)
    net.train()
    prune_at_init(net, [(x, y)], cross_entropy, 0.3)
    assert signal_power(net, x, names) == pytest.approx(before, rel=1e-9)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert torch.equal(state, torch.random.get_rng_state())
    assert net.training and all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())


def test_the_power_is_that_of_weights_alone(generator):
    layer = nn.Sequential(nn.Conv1d(3, 4, 3))
    x = torch.randn(7, 3, 9, generator=generator)
    plain = nn.functional.conv1d(x, layer[0].weight)
    expected = float(plain.detach().square().mean())
    assert signal_power(layer, x, ["0.weight"])["0.weight"] == pytest.approx(expected, rel=1e-5)


def test_moment_keeps_a_randomly_pruned_signal_and_no_rescaling_loses_it(batch, generator):
    power = {}
    for rescale in (None, "moment"):
        net = deep(torch.Generator().manual_seed(1))
        before = signal_power(net, batch[0], ["24.weight"])["24.weight"]
        criterion = Random(torch.Generator().manual_seed(2))
        prune_at_init(net, [batch], cross_entropy, 0.3, criterion=criterion, rescale=rescale, scope="layer")
        power[rescale] = signal_power(net, batch[0], ["24.weight"])["24.weight"] / before
    assert power[None] < 0.3**9
    assert 0.05 < power["moment"] < 20


def test_density_1_changes_nothing(batch, generator):
    for rescale in (None, "moment", "data"):
        net = deep(generator)
        before = [parameter.clone() for parameter in net.parameters()]
        assert prune_at_init(net, [batch], cross_entropy, 1.0, rescale=rescale).density() == 1
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(before, net.parameters(), strict=True))


def test_an_empty_layer_is_refused_before_anything_is_changed(batch, generator):
    net = deep(generator)
    with torch.no_grad():
        net[6].weight.mul_(1e-8)
    before = [parameter.clone() for parameter in net.parameters()]
    with pytest.raises(ValueError, match=r"6\.weight would keep no weight .* empty from sparsity 0\.\d+ on"):
        prune_at_init(net, [batch], cross_entropy, 0.1, criterion=Magnitude())
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    for rescale in ("data", "moment"):
        again = deep(generator)
        with torch.no_grad():
            again[6].weight.mul_(1e-8)
        with pytest.warns(RuntimeWarning, match=r"6\.weight would keep no weight"):
            prune_at_init(
                again, [batch], cross_entropy, 0.1, criterion=Magnitude(), on_collapse="warn", rescale=rescale
            )
        assert all(bool(torch.isfinite(parameter).all()) for parameter in again.parameters())


def test_what_cannot_be_rescaled_is_refused_by_name(batch, generator):
    net = deep(generator)
    with torch.no_grad():
        net[2].weight.zero_()
    with pytest.raises(ValueError, match=r"2\.weight has no weight but 0"):
        rescale_to_edge_(net, Masks.full(net), 1.0)
    with pytest.raises(ValueError, match=r"2\.weight has nothing to pass on"):
        rescale_to_data_(net, dict.fromkeys(prunable_parameters(net), 1.0), batch[0])
    with pytest.raises(ValueError, match=r"0\.bias is no layer's weight"):
        signal_power(net, batch[0], ["0.bias"])
    with pytest.raises(ValueError, match=r"sigma_w of 0\.weight must be"):
        rescale_to_edge_(net, Masks.full(net), 0.0)
    with pytest.raises(ValueError, match=r"masks\['0\.weight'\] has shape \(3,\)"):
        rescale_to_edge_(net, {"0.weight": torch.ones(3, dtype=torch.bool)}, 1.0)


def test_a_layer_that_is_used_otherwise_is_named_and_another_way_said(generator):
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).train()
    x, y = torch.randn(3, 5, 8, generator=generator), torch.randn(3, 5, 8, generator=generator)
    with pytest.raises(ValueError, match=r"self_attn.*rescale='moment'"):
        prune_at_init(net, [(x, y)], nn.functional.mse_loss, 0.5)
    prune_at_init(net, [(x, y)], nn.functional.mse_loss, 0.5, rescale="moment")


def test_a_layer_called_twice_is_scaled_once(generator):
    layer = mlp(6, 6, generator=generator)[0]
    net = nn.Sequential(layer, nn.Tanh(), layer)
    x = torch.randn(20, 6, generator=generator)
    factors = rescale_to_data_(net, {"0.weight": 4 * signal_power(net, x, ["0.weight"])["0.weight"]}, x)
    assert factors["0.weight"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"density": 0.0}, r"density must be in \(0, 1\]"),
        ({"batches": []}, "batches is empty"),
        ({"rescale": "edge"}, "rescale is"),
        ({"on_collapse": "ignore"}, "on_collapse"),
    ],
)
def test_arguments_out_of_range_are_refused(changes, message, batch, generator):
    arguments = {"batches": [batch], "density": 0.5} | changes
    if not {"rescale", "on_collapse"} & set(changes):
        with pytest.raises(ValueError, match=message):
            prune_at_init(deep(generator), loss_fn=cross_entropy, **arguments)
