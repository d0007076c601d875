import math
from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.learning.hebbian import (
    BatchNormAdapt,
    ChannelAffine,
    NeuroModulatedHebbian,
    SoftHebb,
    Tent,
    batch_statistics,
    entropy,
    strided_conv,
    wide_resnet,
)
from neuropil.learning.networks import mlp


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(batch=6, seed=1, dtype=torch.float32):
    return torch.rand(batch, 1, 16, 16, generator=generator(seed), dtype=dtype)


@pytest.fixture
def net():
    made = strided_conv((1, 16, 16), 4, (4, 6, 8), generator=generator())
    made.train()
    with torch.no_grad():
        for seed in range(3):
            made(images(20, seed=10 + seed))  # running statistics of their own
    return made.eval()


ADAPTERS = {
    "norm": BatchNormAdapt,
    "tent": partial(Tent, lr=0.05),
    "nhl": partial(NeuroModulatedHebbian, lr_hebb=0.1, lr_modulator=0.05),
    "inserted": partial(NeuroModulatedHebbian, modulator=None, lr_hebb=0.1, lr_modulator=0.05),
}
every = pytest.mark.parametrize("make", ADAPTERS.values(), ids=ADAPTERS)


def changed(net, source):
    now = net.state_dict()
    return {key for key, value in source.items() if not torch.equal(value, now[key])}


def test_entropy_in_closed_form_and_at_the_edges():
    assert float(entropy(torch.zeros(3, 8))) == pytest.approx(math.log(8))
    assert float(entropy(torch.tensor([[1e4, 0.0, -1e4]]))) == 0.0
    logits = torch.randn(5, 7, generator=generator(), dtype=torch.float64)
    p = logits.softmax(1)
    assert_close(entropy(logits), -(p * p.log()).sum() / 5)
    assert_close(entropy(logits + 100), entropy(logits))


def test_batch_statistics_are_those_of_training_mode_and_leave_no_trace(net):
    x, source = images(), deepcopy(net.state_dict())
    with torch.no_grad(), batch_statistics(net):
        ours = net(x)
    assert not any(module.training for module in net.modules())
    assert all(module.track_running_stats for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert not changed(net, source)
    with torch.no_grad():
        assert_close(ours, deepcopy(net).train()(x))
        assert not torch.allclose(ours, net(x))
    dropping = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.9)).train()
    with batch_statistics(dropping):
        assert dropping[0].training
        assert not dropping[1].training
    assert dropping[1].training


@every
def test_only_what_adapts_changes_and_reset_restores_the_source_bit_for_bit(make, net):
    source, flags = deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    adapter = make(net)
    first = [adapter.adapt(images(seed=seed)) for seed in range(3)]
    wanted = {
        "BatchNormAdapt": set(),
        "Tent": {f"bn{i}.{part}" for i in (1, 2, 3) for part in ("weight", "bias")},
        "NeuroModulatedHebbian": {"conv1.weight"},
    }[type(adapter).__name__]
    if isinstance(adapter, NeuroModulatedHebbian) and adapter.affine is None:
        wanted |= {"bn1.weight", "bn1.bias"}
    assert changed(net, source) == wanted
    assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    adapter.reset()
    assert not changed(net, source)
    again = [adapter.adapt(images(seed=seed)) for seed in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@every
def test_gradients_of_the_user_and_frozen_parameters_are_left_alone(make, net):
    for parameter in net.parameters():
        parameter.requires_grad_(False)
        parameter.grad = torch.full_like(parameter, 3.0)
    with torch.no_grad():
        logits = make(net).adapt(images())
    assert not logits.requires_grad
    assert not any(p.requires_grad for p in net.parameters())
    assert all(bool((p.grad == 3.0).all()) for p in net.parameters())


@every
def test_the_answer_is_that_of_the_updated_network_and_predicting_changes_nothing(make, net):
    x = images()
    adapter = make(net)
    logits, after = adapter.adapt(x), deepcopy(net.state_dict())
    assert torch.equal(logits, adapter.predict(x))
    assert not changed(net, after)


@every
def test_double_precision_and_views(make, net):
    adapter = make(net.double())
    x = images(dtype=torch.float64).transpose(2, 3)
    assert adapter.adapt(x).dtype == torch.float64


def test_tent_takes_the_step_of_an_ordinary_optimizer(net):
    x, other = images(), deepcopy(net)
    Tent(net, lr=0.1, optimizer=torch.optim.SGD).adapt(x)
    other.train()
    entropy(other(x)).backward()
    for name, parameter in other.named_parameters():
        step = 0.1 * parameter.grad if "bn" in name else 0.0
        assert_close(net.get_parameter(name), parameter - step)


def test_tent_lowers_the_entropy(net):
    adapter, x = Tent(net, lr=0.02), images(20)
    before = float(entropy(adapter.predict(x)))
    for _ in range(20):
        adapter.adapt(x)
    assert float(entropy(adapter.predict(x))) < 0.9 * before


def test_without_hebbian_rate_it_is_the_modulator_alone_bit_for_bit(net):
    other = deepcopy(net)
    alone, ours = Tent(other, lr=0.05, layers=["bn1"]), NeuroModulatedHebbian(net, lr_hebb=0.0, lr_modulator=0.05)
    for seed in range(4):
        assert torch.equal(alone.adapt(images(seed=seed)), ours.adapt(images(seed=seed)))


def test_without_rate_of_the_modulator_it_is_the_rule_alone(net):
    source, x = deepcopy(net.state_dict()), images()
    change = SoftHebb(net.conv1, temperature=0.5).change(x)
    NeuroModulatedHebbian(net, rule=partial(SoftHebb, temperature=0.5), lr_hebb=0.3, lr_modulator=0.0).adapt(x)
    assert changed(net, source) == {"conv1.weight"}
    assert_close(net.conv1.weight, source["conv1.weight"] + 0.3 * change)


def test_both_updates_belong_to_the_same_first_pass(net):
    x, halves = images(), [deepcopy(net), deepcopy(net)]
    NeuroModulatedHebbian(halves[0], lr_hebb=0.1, lr_modulator=0.0).adapt(x)
    NeuroModulatedHebbian(halves[1], lr_hebb=0.0, lr_modulator=0.05).adapt(x)
    NeuroModulatedHebbian(net, lr_hebb=0.1, lr_modulator=0.05).adapt(x)
    assert torch.equal(net.conv1.weight, halves[0].conv1.weight)
    assert torch.equal(net.bn1.weight, halves[1].bn1.weight)


def test_a_deep_layer_learns_from_what_reaches_it(net):
    x, seen = images(), []
    hook = net.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad(), batch_statistics(net):
        net(x)
    hook.remove()
    before, change = net.conv2.weight.clone(), SoftHebb(net.conv2).change(seen[0].detach())
    NeuroModulatedHebbian(net, "conv2", "bn2", lr_hebb=0.1).adapt(x)
    assert_close(net.conv2.weight, before + 0.1 * change)


def test_a_net_without_batch_norm_gets_a_modulator_of_its_own():
    net = mlp(5, 8, 3, generator=generator())
    x = torch.randn(10, 5, generator=generator(1))
    source, plain = deepcopy(net.state_dict()), net(x).detach()
    adapter = NeuroModulatedHebbian(
        net, "0", None, rule=partial(SoftHebb, norm="source"), lr_hebb=0.0, modulator_optimizer=torch.optim.SGD
    )
    assert torch.equal(adapter.predict(x), plain)
    before = float(entropy(adapter.predict(x)))
    for _ in range(50):
        adapter.adapt(x)
    assert float(entropy(adapter.predict(x))) < before
    assert adapter.affine is not None
    assert not torch.equal(adapter.affine.scale, torch.ones(8))
    assert not changed(net, source)
    assert torch.equal(net(x), plain)  # the modulator belongs to the adapter's passes only
    assert adapter.adapt(x[:1]).shape == (1, 3)  # one sample will do where nothing takes batch statistics
    adapter.reset()
    assert torch.equal(adapter.predict(x), plain)


def test_channel_affine_starts_as_the_identity_and_acts_channel_by_channel():
    affine, h = ChannelAffine(3), torch.randn(2, 3, 4, 5, generator=generator())
    assert torch.equal(affine(h), h)
    with torch.no_grad():
        affine.scale.copy_(torch.tensor([1.0, 2.0, 0.0]))
        affine.shift.copy_(torch.tensor([0.0, 0.0, 7.0]))
    assert_close(affine(h)[:, 1], 2 * h[:, 1])
    assert bool((affine(h)[:, 2] == 7).all())
    with pytest.raises(ValueError, match=r"h has shape \(2, 4\): wanted 3 channels on axis 1"):
        affine(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="channels must be at least 1"):
        ChannelAffine(0)


def test_the_nets_have_the_promised_shapes_and_names():
    net = strided_conv((3, 28, 28), 10, generator=generator())
    assert net(torch.zeros(2, 3, 28, 28)).shape == (2, 10)
    assert [tuple(net.get_parameter(f"conv{i}.weight").shape) for i in (1, 2, 3)] == [
        (16, 3, 5, 5),
        (32, 16, 3, 3),
        (32, 32, 3, 3),
    ]
    wide = wide_resnet((3, 32, 32), 10, generator=generator())
    weights = sum(p.numel() for p in wide.parameters())
    assert weights == pytest.approx(2.24e6, rel=0.01)  # WRN-40-2 as its authors count
    small = wide_resnet((1, 8, 8), 3, 10, 1, generator=generator())
    NeuroModulatedHebbian(small, "conv1", "block1.bn1").adapt(torch.rand(4, 1, 8, 8, generator=generator()))
    again = wide_resnet((1, 8, 8), 3, 10, 1, generator=generator())
    key = "block3.conv2.weight"
    assert torch.equal(again.get_parameter(key), small.get_parameter(key))
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 4 with n at least 1, got 12"):
        wide_resnet((3, 32, 32), 10, 12)
    with pytest.raises(ValueError, match="at least 16x16"):
        strided_conv((1, 8, 8), 10)


def test_bad_arguments_are_named(net):
    plain = mlp(4, 5, 2, generator=generator())
    with pytest.raises(ValueError, match="Tent adapts batch norms, and the net has none"):
        Tent(plain)
    with pytest.raises(ValueError, match="BatchNormAdapt adapts batch norms"):
        BatchNormAdapt(plain)
    with pytest.raises(ValueError, match="no batch norm 'bn9'; it has bn1, bn2, bn3"):
        Tent(net, layers=["bn9"])
    with pytest.raises(ValueError, match="affine=False"):
        Tent(nn.Sequential(nn.BatchNorm1d(3, affine=False)))
    with pytest.raises(ValueError, match="The net has no layer 'conv0'; it has conv1, bn1"):
        NeuroModulatedHebbian(net, "conv0")
    with pytest.raises(TypeError, match="SoftHebb trains a Linear or Conv2d, got BatchNorm2d"):
        NeuroModulatedHebbian(net, "bn1")
    with pytest.raises(ValueError, match="must be a batch norm of the net, got 'relu1'; there are: bn1"):
        NeuroModulatedHebbian(net, "conv1", "relu1")
    with pytest.raises(ValueError, match="must be a batch norm of the net, got 'bn1'; there are: none"):
        NeuroModulatedHebbian(plain, "0", "bn1")
    with pytest.raises(ValueError, match="lr_hebb must be at least 0 and finite, got -1"):
        NeuroModulatedHebbian(net, lr_hebb=-1.0)
    with pytest.raises(ValueError, match="lr_modulator must be at least 0 and finite, got nan"):
        NeuroModulatedHebbian(net, lr_modulator=float("nan"))
    with pytest.raises(TypeError, match="net"):
        BatchNormAdapt(object)  # pyright: ignore[reportArgumentType]


@every
def test_one_sample_is_refused_before_anything_changes(make, net):
    source, adapter = deepcopy(net.state_dict()), make(net)
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"Batch statistics need at least 2 samples, got {count}"):
            adapter.adapt(images()[:count])
    assert not changed(net, source)


def test_answers_that_are_no_longer_finite_are_raised_not_returned(net):
    with torch.no_grad():
        net.readout.weight.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="entropy of the answers is nan: reset"):
        Tent(net).adapt(images())
    shared = nn.Linear(3, 3)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    with pytest.raises(ValueError, match="called 2 times in a pass, wanted once"):
        NeuroModulatedHebbian(twice, "0", None).adapt(torch.zeros(2, 3))
