import copy

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.data import Dataset
from neuropil.learning import Backpropagation, mlp
from neuropil.learning.energy import (
    Backpropagating,
    Incremental,
    IncrementalPredictiveCoding,
    InferenceLearning,
    Inferring,
    PredictiveCoding,
    Replicas,
    StackedAdam,
    StackedSGD,
    plot_curves,
    plot_grid,
    plot_step_sizes,
    plot_steps,
    single_steps_of,
    squared_energy,
    sweep,
)

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
    adaptive = adaptive and not proximal  # a proximal step goes through no Adam
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


def test_single_steps_are_those_of_single_samples(generator):
    net = nets(generator)[0]
    x, y = torch.randn(3, 6, generator=generator).double(), torch.tensor([0, 3, 1])
    steps = single_steps_of(net, Inferring(5, 0.1, 0.2, alpha=2.0), x, y)
    for k in range(3):
        moved = copy.deepcopy(net)
        rule = InferenceLearning(moved, cross_entropy, steps=5, rate_own=0.1, rate_above=0.2, alpha=2.0)
        rule.learn(x[k : k + 1], y[k : k + 1])
        change = [(b - a).detach().flatten() for a, b in zip(net.parameters(), moved.parameters(), strict=True)]
        assert_close(steps[k], torch.cat(change))


def blobs(seed):
    """Three well-separated classes."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(80) % 3
    x = torch.randn(80, 4, generator=generator) * 0.3 + torch.eye(4)[y] * 2
    return Dataset("blobs", x[:60], y[:60], x[60:], y[60:], ("a", "b", "c"))


def small_net(generator):
    return mlp(4, 6, 3, generator=generator)


def test_a_sweep_is_its_runs_one_by_one():
    cells = [{"rate": 0.1, "own": 0.1}, {"rate": 0.02, "own": 0.3}]

    def swept(some, seeds):
        return sweep(
            some,
            lambda c: Inferring(5, c["own"], 0.2),
            lambda c: StackedSGD(c["rate"]),
            blobs,
            small_net,
            seeds=seeds,
            steps=20,
            batch_size=16,
            every=8,
            measure=lambda replicas, x, y: {"largest": replicas.outputs(x).amax((1, 2))},
        )

    together = swept(cells, [0, 3])
    assert list(together["step"]) == [8] * 4 + [16] * 4 + [20] * 4
    for cell in cells:
        for seed in (0, 3):
            alone = swept([cell], [seed])
            rows = together.query(f"rate == {cell['rate']} and seed == {seed}")
            for column in ("accuracy", "loss", "largest"):
                assert_close(torch.tensor(rows[column].to_numpy()), torch.tensor(alone[column].to_numpy()))
    assert float(together["accuracy"].iloc[-4:].max()) > 0.9


def test_a_diverged_run_of_a_sweep_is_chance_with_infinite_loss():
    table = sweep(
        [{"rate": 1e30}, {"rate": 0.1}],
        lambda c: Backpropagating(),
        lambda c: StackedAdam(c["rate"]),
        blobs,
        small_net,
        seeds=[0],
        steps=12,
        batch_size=16,
        every=12,
        loss="squared",
    )
    assert float(table["accuracy"][0]) == pytest.approx(1 / 3)
    assert table["loss"][0] == float("inf")
    assert 0 < float(table["loss"][1]) < 0.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"steps": 0}, "must be at least 1"),
        ({"batch_size": 61}, "there are 60 training samples"),
    ],
)
def test_sweeps_that_cannot_be_are_named(options, words):
    given = {"seeds": [0], "steps": 1, "batch_size": 4, "every": 1, **options}
    with pytest.raises(ValueError, match=words):
        sweep([{"rate": 0.1}], lambda c: Backpropagating(), lambda c: StackedSGD(0.1), blobs, small_net, **given)


def test_pictures_draw_every_rule():
    cells = [{"alpha": alpha, "gamma": gamma} for alpha in (0.1, 1.0) for gamma in (0.1, 0.5)]
    tables = [
        sweep(
            cells,
            rule,
            lambda c: StackedSGD(c["alpha"]),
            blobs,
            small_net,
            seeds=[0, 1],
            steps=4,
            batch_size=16,
            every=2,
        ).assign(rule=name)
        for name, rule in (("one", lambda c: Backpropagating()), ("two", lambda c: Inferring(3, 0.1, c["gamma"])))
    ]
    table = pd.concat(tables, ignore_index=True)
    steps = table.assign(cosine=0.5, distance=table["alpha"] + table["seed"])
    grid = table.query("step == 4").assign(T=3)
    assert len(plot_grid(grid, rows="gamma", columns="T", panel="alpha").axes) == 4
    lines = plot_step_sizes(table.query("gamma == 0.1")).axes[0].get_legend_handles_labels()[1]
    assert lines == ["one", "two"]
    assert plot_curves(table.query("gamma == 0.1 and alpha == 1.0")).axes[0].get_legend_handles_labels()[1] == lines
    assert plot_steps(steps).axes[1].get_legend_handles_labels()[1] == lines
