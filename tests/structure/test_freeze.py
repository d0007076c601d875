"""Frozen weights: gradients of the dense net, not a bit moved by any optimizer, the same net back from few bytes."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.criteria import SNIP
from neuropil.structure.freeze import FrozenNet, freeze_at_init

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=5e-4),
    "nesterov": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2, weight_decay=0.1),
}


@pytest.fixture
def batch(generator):
    return torch.randn(60, 20, generator=generator), torch.arange(60) % 5


def make(dtype=torch.float32):
    return mlp(20, 30, 15, 5, generator=torch.Generator().manual_seed(9)).to(dtype)


def frozen_net(batch, rate=0.9, seed=3, **options):
    return freeze_at_init(make(batch[0].dtype), batch, cross_entropy, rate, seed=seed, **options)


def steps(frozen, optimizer, batch, count=100):
    for _ in range(count):
        optimizer.zero_grad()
        cross_entropy(frozen.net(batch[0]), batch[1]).backward()
        optimizer.step()


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 0.995])
def test_the_largest_gradients_are_trained_and_so_many_of_them(rate, batch):
    frozen = frozen_net(batch, rate)
    total = 20 * 30 + 30 * 15 + 15 * 5
    assert frozen.masks.total() == total
    assert frozen.masks.kept() == round(total * (1 - rate))
    cross_entropy(frozen.net(batch[0]), batch[1]).backward()
    sizes = {name: frozen.net.get_parameter(name).grad.abs() for name in frozen.masks}
    kept = torch.cat([sizes[name][mask] for name, mask in frozen.masks.items()])
    left = torch.cat([sizes[name][~mask] for name, mask in frozen.masks.items()])
    assert not len(left) or kept.min() >= left.max()


def test_at_the_start_gradients_are_those_of_the_dense_net_and_a_pruned_net_has_less(batch):
    frozen, dense = frozen_net(batch), make()
    dense.load_state_dict(frozen.net.state_dict())
    pruned = make()
    pruned.load_state_dict(frozen.net.state_dict())
    frozen.masks.filled(0.0).apply_(pruned)
    for net in (frozen.net, dense, pruned):
        cross_entropy(net(batch[0]), batch[1]).backward()
    first = "0.weight"
    for name in frozen.masks:
        assert torch.equal(frozen.net.get_parameter(name).grad, dense.get_parameter(name).grad)
    assert pruned.get_parameter(first).grad.norm() < 0.5 * dense.get_parameter(first).grad.norm()


@pytest.mark.parametrize("memory", ["kept", "seed"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_moves_a_frozen_bit_and_trained_ones_do_move(name, memory, batch):
    frozen = frozen_net(batch, memory=memory)
    before = {key: value.clone() for key, value in frozen.net.state_dict().items()}
    optimizer = OPTIMIZERS[name](frozen.net.parameters())
    frozen.attach(optimizer)
    steps(frozen, optimizer, batch)
    for key, mask in frozen.masks.items():
        weight = frozen.net.get_parameter(key)
        assert torch.equal(weight[~mask].view(torch.int32), before[key][~mask].view(torch.int32))
        assert not torch.equal(weight[mask], before[key][mask])
        for state in optimizer.state[weight].values():
            if state.shape == weight.shape:
                assert not bool(state[~mask].any())
        assert bool((frozen.net.get_parameter(key.replace("weight", "bias")) != 0).any())


def test_both_memories_train_alike(batch):
    nets = []
    for memory in ("kept", "seed"):
        frozen = frozen_net(batch, memory=memory)
        assert isinstance(frozen.masks.fill, dict) == (memory == "kept")
        optimizer = OPTIMIZERS["adam"](frozen.net.parameters())
        frozen.attach(optimizer)
        steps(frozen, optimizer, batch, 20)
        nets.append(frozen.net.state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


@pytest.mark.parametrize("init", ["xavier_normal", "xavier_uniform", "he_normal", "he_uniform"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_net_comes_back_bit_for_bit(init, dtype, batch):
    frozen = frozen_net((batch[0].to(dtype), batch[1]), init=init)
    optimizer = OPTIMIZERS["momentum"](frozen.net.parameters())
    frozen.attach(optimizer)
    steps(frozen, optimizer, (batch[0].to(dtype), batch[1]), 10)
    state = torch.random.get_rng_state()
    again = FrozenNet.expand(
        lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 15), nn.ReLU(), nn.Linear(15, 5)).to(dtype),
        frozen.compact(),
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert again.masks == frozen.masks
    assert (again.seed, again.init, again.rate) == (3, init, 0.9)
    for name, value in frozen.net.state_dict().items():
        assert torch.equal(value, again.net.state_dict()[name])
    assert again.compact() == frozen.compact()


def test_norms_buffers_and_shared_weights_come_back_too(generator):
    def build():
        net = small_conv((1, 8, 8), 4, generator=torch.Generator().manual_seed(1))
        twice = mlp(4, 4, generator=torch.Generator().manual_seed(2))[0]
        return nn.Sequential(net, twice, nn.Tanh(), twice)

    x, y = torch.randn(40, 1, 8, 8, generator=generator), torch.arange(40) % 4
    frozen = freeze_at_init(build(), (x, y), cross_entropy, 0.8, seed=0)
    optimizer = OPTIMIZERS["adam"](frozen.net.parameters())
    frozen.attach(optimizer)
    steps(frozen, optimizer, (x, y), 10)
    again = FrozenNet.expand(build, frozen.compact()).net
    assert int(again.get_buffer("0.1.num_batches_tracked")) == 10
    for name, value in frozen.net.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert torch.equal(frozen.net.eval()(x), again.eval()(x))


def test_training_goes_on_from_the_bytes_as_from_the_net(batch):
    frozen = frozen_net(batch)
    optimizer = torch.optim.SGD(frozen.net.parameters(), 0.1)
    frozen.attach(optimizer)
    steps(frozen, optimizer, batch, 5)
    again = FrozenNet.expand(make, frozen.compact())
    other = torch.optim.SGD(again.net.parameters(), 0.1)
    again.attach(other)
    steps(frozen, optimizer, batch, 5)
    steps(again, other, batch, 5)
    assert all(torch.equal(a, b) for a, b in zip(frozen.net.parameters(), again.net.parameters(), strict=True))


def test_what_lenet_takes(generator):
    net = mlp(784, 300, 100, 10, generator=generator)
    x, y = torch.randn(100, 784, generator=generator), torch.arange(100) % 10
    storage = freeze_at_init(net, (x, y), cross_entropy, 0.9936, seed=0).storage()
    assert (storage.weights, storage.bytes_dense) == (266_200, 4 * 266_610)
    assert storage.value_ratio == pytest.approx(1 / 0.0064, rel=1e-3)
    assert 85 < storage.ratio < 110
    assert storage.bytes_compact < 4 * storage.trained + 3_000 + 4 * 410 + 1_000


@pytest.mark.parametrize("memory", ["kept", "seed"])
def test_decay_shrinks_frozen_weights_by_the_learning_rate_until_they_are_pruned(memory, batch):
    frozen = frozen_net(batch, memory=memory)
    before = {name: frozen.net.get_parameter(name).detach().clone() for name in frozen.masks}
    optimizer = torch.optim.SGD(frozen.net.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5, 0.5)
    frozen.attach(optimizer, decay=0.2)
    for _ in range(10):
        steps(frozen, optimizer, batch, 1)
        schedule.step()
    factor = (1 - 0.1 * 0.2) ** 5 * (1 - 0.05 * 0.2) ** 5
    for name, mask in frozen.masks.items():
        weight = frozen.net.get_parameter(name)
        assert torch.allclose(weight[~mask], before[name][~mask] * factor, rtol=1e-6)
    again = FrozenNet.expand(make, frozen.compact())
    assert all(torch.equal(a, b) for a, b in zip(frozen.net.parameters(), again.net.parameters(), strict=True))
    frozen.prune_()
    assert all(not bool(frozen.net.get_parameter(name)[~mask].any()) for name, mask in frozen.masks.items())
    steps(frozen, optimizer, batch, 3)
    again = FrozenNet.expand(make, frozen.compact())
    assert all(torch.equal(a, b) for a, b in zip(frozen.net.parameters(), again.net.parameters(), strict=True))


def test_removing_the_handle_ends_it(batch):
    for options in ({}, {"decay": 0.1}):
        frozen = frozen_net(batch)
        optimizer = OPTIMIZERS["momentum"](frozen.net.parameters())
        frozen.attach(optimizer, **options).remove()
        steps(frozen, optimizer, batch, 1)
        with pytest.raises(ValueError, match=r"frozen entries of '0\.weight' have moved"):
            frozen.compact()


def test_other_scores_and_shares_can_be_had(batch):
    frozen = frozen_net(batch, 0.5, criterion=SNIP(), scope="layer")
    assert all(share == pytest.approx(0.5, abs=0.02) for share in frozen.masks.densities().values())


def test_the_draws_are_the_seeds_alone_and_have_their_variance(batch):
    state = torch.random.get_rng_state()
    first, second, other = frozen_net(batch, seed=1), frozen_net(batch, seed=1), frozen_net(batch, seed=2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first.net[0].weight, second.net[0].weight)
    assert not torch.equal(first.net[0].weight, other.net[0].weight)
    assert float(first.net[0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 50), rel=0.1)
    assert not bool(first.net[0].bias.any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1"),
        ({"rate": -0.1}, "rate must be"),
        ({"rate": 0.9999}, "keeps none"),
    ],
)
def test_rates_that_train_nothing_are_refused(options, message, batch):
    with pytest.raises(ValueError, match=message):
        frozen_net(batch, **options)


def test_more_that_is_refused(batch):
    with pytest.raises(ValueError, match="no weight of two axes"):
        freeze_at_init(nn.BatchNorm1d(20), batch, cross_entropy, 0.5, seed=0)
    with pytest.raises(TypeError, match="seed"):
        freeze_at_init(make(), batch, cross_entropy, 0.5)
    frozen = frozen_net(batch)
    with pytest.raises(ValueError, match="decay must be"):
        frozen.attach(torch.optim.SGD(frozen.net.parameters(), 0.1), decay=-1.0)
    with pytest.raises(ValueError, match="does not hold"):
        frozen.attach(torch.optim.SGD([frozen.net[0].bias], 0.1))


def test_bytes_of_another_net_seed_or_torch_are_refused(batch):
    frozen = frozen_net(batch)
    code = frozen.compact()
    with pytest.raises(ValueError, match="no safetensors file"):
        FrozenNet.expand(make, b"nothing of the kind")
    with pytest.raises(ValueError, match="no safetensors file"):
        FrozenNet.expand(make, code[:-7])
    with pytest.raises(ValueError, match="draws other weights from seed 3"):
        FrozenNet.expand(lambda: mlp(20, 30, 16, 5, generator=torch.Generator()), code)
    with pytest.raises(ValueError, match=r"no parameter '2\.weight'"):
        FrozenNet.expand(lambda: mlp(20, 5, generator=torch.Generator()), code)
    size = int.from_bytes(code[:8], "little")
    header = json.loads(code[8 : 8 + size])
    checksum = json.loads(header["__metadata__"]["neuropil frozen net 1"])["checksum"]
    with pytest.raises(ValueError, match="frozen weights are lost"):
        FrozenNet.expand(make, code.replace(checksum.encode(), b"0" * len(checksum)))
    with pytest.raises(ValueError, match="no compact net of the format"):
        FrozenNet.expand(make, code.replace(b"neuropil frozen net 1", b"neuropil frozen net 7"))
