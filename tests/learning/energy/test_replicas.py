import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation, mlp
from neuropil.learning.energy import (
    Backpropagating,
    Incremental,
    IncrementalPredictiveCoding,
    InferenceLearning,
    Inferring,
    PredictiveCoding,
    Replicas,
    squared_energy,
)
from neuropil.learning.energy.replicas import StackedAdam, StackedSGD

RATES = torch.tensor([0.05, 0.3, 0.01], dtype=torch.float64)


def nets(generator):
    return [mlp(6, 8, 7, 4, activation=nn.Tanh, generator=generator).double() for _ in range(3)]


def batches(generator, count=4):
    for _ in range(count):
        yield torch.randn(3, 5, 6, generator=generator).double(), torch.randint(4, (3, 5), generator=generator)


@pytest.mark.parametrize(
    ("stacked", "single", "loss"),
    [
        (Backpropagating(), lambda net, k: Backpropagation(net, cross_entropy), "cross_entropy"),
        (
            Inferring(5, RATES, 0.2),
            lambda net, k: PredictiveCoding(
                net, squared_energy, cut="preactivation", steps=5, rate_own=float(RATES[k]), rate_above=0.2, guard=False
            ),
            "squared",
        ),
        (
            Inferring(5, 0.1, 0.2, alpha=10 * RATES, eps=0.3),
            lambda net, k: InferenceLearning(
                net, cross_entropy, steps=5, rate_own=0.1, rate_above=0.2, alpha=float(10 * RATES[k]), eps=0.3
            ),
            "cross_entropy",
        ),
        (
            Incremental(5, RATES),
            lambda net, k: IncrementalPredictiveCoding(
                net, squared_energy, cut="preactivation", steps=5, rate=float(RATES[k])
            ),
            "squared",
        ),
    ],
)
@pytest.mark.parametrize("adaptive", [True, False])
def test_replicas_learn_as_single_nets_do(stacked, single, loss, adaptive, generator):
    originals = nets(generator)
    replicas = Replicas(originals, loss=loss)
    proximal = getattr(stacked, "alpha", None) is not None
    if proximal and adaptive:
        pytest.skip("a proximal step goes through no Adam")
    rates = torch.ones(3).double() if proximal else RATES / 10
    optimizer = (StackedAdam if adaptive else StackedSGD)(rates)
    data = list(batches(generator))
    for x, y in data:
        replicas.learn(x, y, stacked, optimizer)
    for k, original in enumerate(originals):
        net = copy.deepcopy(original)
        rule = single(net, k)
        own = (torch.optim.Adam if adaptive else torch.optim.SGD)(net.parameters(), lr=float(rates[k]))
        for x, y in data:
            rule.learn(x[k], y[k], own)
        assert_close([p[k] for p in replicas.parameters], [p.detach() for p in net.parameters()])
        assert_close(replicas.outputs(data[0][0])[k], net(data[0][0][k]).detach())


def test_backpropagation_towards_the_proximal_target(generator):
    originals = nets(generator)
    replicas = Replicas(originals)
    x, y = next(batches(generator))
    replicas.learn(x, y, Backpropagating(alpha=2.0, eps=0.3), StackedSGD(1.0))
    net, s = originals[1], [x[1]]
    for module in net[:-1]:
        s.append(module(s[-1]).detach())
    norms = [value.square().sum(1).mean() + 1.3 for value in s[::2]]
    share = 2 * norms[-1] / (1 + 2 * norms[-1])
    (share.detach() * cross_entropy(net(x[1]), y[1])).backward()
    for layer, norm, moved in zip(net[::2], norms, replicas.chain.layers, strict=True):
        assert_close(moved.weight[1], (layer.weight - layer.weight.grad / norm).detach())
        assert_close(moved.bias[1], (layer.bias - layer.bias.grad / norm).detach())


def test_a_diverged_replica_is_chance_and_alone(generator):
    originals = nets(generator)
    wild, tame = Replicas(originals), Replicas(originals)
    for x, y in batches(generator, 6):
        wild.learn(x, y, Inferring(5, 0.1, 0.1), StackedSGD(torch.tensor([0.1, 1e200, 0.1]).double()))
        tame.learn(x, y, Inferring(5, 0.1, 0.1), StackedSGD(0.1))
    assert float(wild.accuracies(x, y)[1]) == 0.25
    assert_close(wild.accuracies(x, y)[::2], tame.accuracies(x, y)[::2])
    assert_close([p[2] for p in wild.parameters], [p[2] for p in tame.parameters])


def test_accuracies_of_shared_and_own_samples(generator):
    replicas = Replicas(nets(generator))
    x, y = next(batches(generator))
    assert_close(replicas.accuracies(x[0], y[0])[0], replicas.accuracies(x, y)[0])
    right = (replicas.outputs(x[0])[2].argmax(-1) == y[0]).double().mean()
    assert_close(replicas.accuracies(x[0], y[0])[2], right)


def test_nets_that_cannot_be_stacked_are_named(generator):
    with pytest.raises(ValueError, match="nets is empty"):
        Replicas([])
    with pytest.raises(ValueError, match="all of one shape"):
        Replicas([mlp(6, 8, 4), mlp(6, 9, 4)])
    with pytest.raises(ValueError, match="Replicas are Sequentials"):
        Replicas([nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))])
    with pytest.raises(ValueError, match="loss must be"):
        Replicas(nets(generator), loss="hinge")
