"""Pruning plasticity is what it says, of arms that differ in nothing else."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import mlp
from neuropil.structure.allocation import allocate
from neuropil.structure.criteria import Magnitude
from neuropil.structure.criterion import mean_gradients
from neuropil.structure.masks import attach
from neuropil.structure.plasticity import pruning_plasticity


@pytest.fixture
def setting(generator):
    net = mlp(6, 16, 3, activation=nn.Tanh, generator=generator)
    x = torch.randn(60, 6, generator=generator)
    y = (x[:, :3] + 0.1).argmax(1)
    batches = [(x[start : start + 10], y[start : start + 10]) for start in range(0, 60, 10)]

    def accuracy(model):
        with torch.no_grad():
            return 100 * (model(x).argmax(1) == y).float().mean().item()

    return net, batches, accuracy


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.3, momentum=0.9)


def test_it_is_the_accuracy_after_recovery_less_that_before(setting):
    net, batches, accuracy = setting
    start = copy.deepcopy(net.state_dict())
    table = pruning_plasticity(net, batches, cross_entropy, accuracy, sgd, densities=(0.3, 0.1), fractions=(0.0, 0.2))
    assert table[["density", "fraction"]].to_numpy().tolist() == [[0.3, 0.0], [0.3, 0.2], [0.1, 0.0], [0.1, 0.2]]
    assert (table["before"] == accuracy(net)).all()
    assert torch.equal(start["0.weight"], net[0].weight)
    masks = allocate(Magnitude()(net), 0.3)
    masks.apply_(net)
    assert table["cut"][0] == table["cut"][1] == accuracy(net)
    optimizer = sgd(net.parameters())
    attach(masks, net, optimizer)
    for x, y in batches:
        optimizer.zero_grad()
        cross_entropy(net(x), y).backward()
        optimizer.step()
    assert table["recovered"][0] == accuracy(net)
    assert table["plasticity"][0] == pytest.approx(accuracy(net) - table["before"][0])
    assert table["recovery"][0] == pytest.approx(accuracy(net) - table["cut"][0])


def test_regeneration_keeps_every_layers_count(setting, monkeypatch):
    net, batches, accuracy = setting
    seen = []

    def spy(masks, *rest):
        seen.append(masks)
        return attach(masks, *rest)

    monkeypatch.setattr("neuropil.structure.plasticity.attach", spy)
    pruning_plasticity(net, batches, cross_entropy, accuracy, sgd, densities=(0.2,), fractions=(0.0, 0.3))
    alone, regrown = seen
    assert alone == allocate(Magnitude()(net), 0.2)
    assert regrown.densities() == alone.densities()
    assert (regrown & ~alone).kept() > 0
    # The steepest closed weights of the cut net, on the first batch.
    alone.apply_(net)
    gradients = mean_gradients(net, batches[:1], cross_entropy, list(alone))
    opened = (regrown & ~alone)["0.weight"]
    assert gradients["0.weight"].abs()[opened].min() >= gradients["0.weight"].abs()[~regrown["0.weight"]].max()


def test_what_is_out_of_range_is_refused(setting):
    net, batches, accuracy = setting
    with pytest.raises(ValueError, match=r"densities must be in \(0, 1\], got 0"):
        pruning_plasticity(net, batches, cross_entropy, accuracy, sgd, densities=(0.0,))
    with pytest.raises(ValueError, match=r"fractions must be in \[0, 1\), got 1"):
        pruning_plasticity(net, batches, cross_entropy, accuracy, sgd, fractions=(1.0,))
    with pytest.raises(ValueError, match="Recovery needs batches"):
        pruning_plasticity(net, [], cross_entropy, accuracy, sgd)
