import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.testing import assert_close

from neuropil.data import Dataset, load
from neuropil.learning import Backpropagation, Contender, mlp
from neuropil.learning.feedback import (
    DirectFeedbackAlignment,
    FeedbackAlignment,
    Shallow,
    ablate,
    alignment_history,
    signal_alignment,
    signal_cosines,
)
from tests.learning.nets import CASES, case


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(*sizes):
    return mlp(*sizes, activation=nn.Tanh, generator=seeded())


def small(samples=60):
    x = torch.randn(samples, 5, generator=seeded(1))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return Dataset("small", x, y, x, y, ("a", "b", "c"))


@pytest.mark.parametrize("name", CASES)
def test_backpropagation_agrees_with_itself_at_every_point_of_every_net(name):
    net, points, x, y = case(name)
    table = signal_alignment(Backpropagation(net, cross_entropy), x, y, points=points)
    assert len(table) >= 2
    for column, wanted in (("cosine_mean", 1), ("cosine_std", 0), ("norm_ratio", 1)):
        assert table[column].tolist() == pytest.approx([wanted] * len(table), abs=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_left_behind(name):
    net, points, x, y = case(name)
    rule = DirectFeedbackAlignment(net, cross_entropy, points)
    rule.stages(x)  # the leak check is over
    marker = torch.ones(())
    for parameter in net.parameters():
        parameter.grad = marker.expand_as(parameter)
    buffers, state = {key: b.clone() for key, b in net.named_buffers()}, torch.random.get_rng_state()
    table = signal_alignment(rule, x, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_close(dict(net.named_buffers()), buffers)
    assert all(parameter.grad is not None and parameter.grad.eq(1).all() for parameter in net.parameters())
    assert list(table["point"]) == rule.stages.names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_the_table_is_the_closed_form():
    net = network(5, 7, 6, 3).double()
    rule = DirectFeedbackAlignment(net, mse_loss, generator=seeded(1))
    x, y = (torch.randn(4, n, generator=seeded(2), dtype=torch.float64) for n in (5, 3))
    table = signal_alignment(rule, x, y)
    net.requires_grad_(False)
    e = 2 * (net(x) - y) / y.numel()
    h2 = net[:4](x)
    sent = e @ rule.projections.matrix[:, :6] / 7**0.5
    true = e @ net[4].weight
    cosines = torch.cosine_similarity(sent, true, dim=1)
    row = table[table["point"] == "3"].iloc[0]
    assert row["cosine_mean"] == pytest.approx(float(cosines.mean()))
    assert row["cosine_std"] == pytest.approx(float(cosines.std(correction=0)))
    assert row["norm_ratio"] == pytest.approx(float((sent.norm(dim=1) / true.norm(dim=1)).mean()))
    below = (true * (1 - h2**2)) @ net[2].weight
    first = torch.cosine_similarity(e @ rule.projections.matrix / 7**0.5, below, dim=1)
    assert table["cosine_mean"].iloc[0] == pytest.approx(float(first.mean()))


def test_dropout_masks_are_shared():
    net = nn.Sequential(nn.Linear(5, 40), nn.Tanh(), nn.Dropout(0.5), nn.Linear(40, 3))
    net[0].weight.data.uniform_(-1, 1, generator=seeded())
    net[3].weight.data.uniform_(-1, 1, generator=seeded(1))
    x, y = torch.randn(6, 5, generator=seeded(2)), torch.arange(6) % 3
    rule = DirectFeedbackAlignment(net, cross_entropy, normalise=False)
    rule.backward(x, y)
    rule.projections.matrix = (
        net[3].weight.detach().clone()
    )  # feedback by the transpose: nothing but masks could differ
    assert signal_alignment(rule, x, y)["cosine_mean"].iloc[0] == pytest.approx(1, abs=1e-6)


def test_rules_with_one_graph_for_the_whole_net_are_compared_too():
    net = network(5, 7, 6, 3)
    x, y = torch.randn(4, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0])
    rule = FeedbackAlignment(net, cross_entropy)
    cosines = signal_alignment(rule, x, y)["cosine_mean"].to_numpy(dtype=float)
    assert len(cosines) == 2
    assert (np.abs(cosines) < 0.99).all()
    net.requires_grad_(False)
    e = torch.softmax(net(x), 1) - torch.eye(3)[y]
    sent, true = e @ rule.back_weight("4"), e @ net[4].weight
    assert cosines[1] == pytest.approx(float(torch.cosine_similarity(sent, true, dim=1).mean()), abs=1e-5)


def test_the_reference_may_be_any_rule():
    net = network(5, 7, 6, 3)
    x, y = torch.randn(4, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0])
    rule, twin = (DirectFeedbackAlignment(net, cross_entropy) for _ in range(2))
    cosines = signal_alignment(rule, x, y, reference=twin)["cosine_mean"]
    assert cosines.tolist() == pytest.approx([1, 1], abs=1e-6)


def test_what_is_not_taught_has_no_cosine():
    net = network(5, 7, 6, 3)
    x, y = torch.randn(4, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0])
    assert signal_alignment(Shallow(net, cross_entropy), x, y)["cosine_mean"].isna().all()
    silent = signal_alignment(DirectFeedbackAlignment(net, lambda z, y: 0 * z.sum()), x, y)
    assert silent["cosine_mean"].isna().all()
    net[0].requires_grad_(False)
    table = signal_alignment(DirectFeedbackAlignment(net, cross_entropy), x, y)
    assert table["cosine_mean"].isna().tolist() == [True, False]
    assert np.isfinite(signal_cosines(DirectFeedbackAlignment(net, cross_entropy), small())["cosine"])


def test_samples_without_an_error_are_left_out():
    net = network(5, 7, 3)
    x, mask = torch.randn(4, 5, generator=seeded(2)), torch.tensor([1.0, 0, 1, 0])
    whole = DirectFeedbackAlignment(net, lambda z, y: (z.square().sum(1) * y).sum())
    table = signal_alignment(whole, x, mask)
    kept = signal_alignment(whole, x[mask > 0], mask[mask > 0])
    assert table["cosine_mean"].iloc[0] == pytest.approx(kept["cosine_mean"].iloc[0])


def test_alignment_grows_as_learning_goes_on():
    data = load("digits").flat()
    net = mlp(64, 32, 32, 10, activation=nn.Tanh, generator=seeded())
    rule = DirectFeedbackAlignment(net, cross_entropy, init="gaussian")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    history = alignment_history(rule, optimizer, data, epochs=5, every=2, batch_size=64, generator=seeded())
    assert sorted(set(history["epoch"])) == [0, 2, 4, 5]
    wide = history.pivot_table(index="epoch", columns="point", values="cosine_mean")
    assert (wide.loc[0].abs() < 0.15).all()
    assert (wide.loc[5] > 0.2).all()
    assert history["accuracy"].iloc[-1] > 0.85


def test_ablate_tunes_every_condition_and_tabulates_both():
    data = small()

    def condition(width, **options):
        return Contender(
            lambda generator: mlp(5, width, 3, activation=nn.Tanh, generator=generator),
            lambda net, loss_fn, generator: DirectFeedbackAlignment(net, loss_fn, generator=generator, **options),
        )

    conditions = {"narrow": condition(4), "gaussian": condition(8, init="gaussian")}
    table = ablate(conditions, data, rates=(1e-4, 1e-2), epochs=3, tuning_epochs=6, batch_size=10, seeds=range(2))
    assert set(table["rate"]) == {1e-2}
    assert len(table) == 2 * 2 * 4
    assert table["cosine 1"].between(-1, 1).all()
    assert table["cosine"].tolist() == table["cosine 1"].tolist()
    first = table[(table["rule"] == "narrow") & (table["epoch"] == 0)]["cosine"]
    assert first.nunique() == 2  # seeds have feedback of their own
    assert set(ablate(conditions, data, rates=(0.3,), epochs=1, seeds=[0])["rate"]) == {0.3}
    assert set(ablate(conditions, lambda seed: data, epochs=1, seeds=[0])["rate"]) == {1e-3}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda rule, x, y: signal_alignment(rule, x, y, reference=Backpropagation(network(5, 7, 3), mse_loss)),
            "trains another network",
        ),
        (lambda rule, x, y: signal_cosines(rule, small(), samples=0), "samples must be at least 1, got 0"),
        (
            lambda rule, x, y: alignment_history(rule, torch.optim.SGD(rule.net.parameters()), small(), epochs=0),
            "epochs must be at least 1, got 0",
        ),
        (lambda rule, x, y: signal_alignment(rule, x, y, points=["nowhere"]), "No module named 'nowhere'"),
        (
            lambda rule, x, y: ablate(
                {"a": Contender(lambda g: rule.net, Shallow)}, small(), rates=(1, 2), tuning_seeds=()
            ),
            "tuning_seeds is empty",
        ),
    ],
)
def test_wrong_use_is_named(call, words):
    rule = DirectFeedbackAlignment(network(5, 7, 3), cross_entropy)
    with pytest.raises(ValueError, match=words):
        call(rule, torch.randn(4, 5, generator=seeded(2)), torch.tensor([0, 1, 2, 0]))
