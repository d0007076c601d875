from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.data import load
from neuropil.learning import (
    Backpropagation,
    Contender,
    LearningRule,
    Packet,
    alignment,
    compare,
    evaluate,
    final_accuracies,
    mlp,
    plot_final_accuracies,
    plot_learning_curves,
    train_epoch,
    tune_rates,
)
from neuropil.statistics import paired
from tests.learning.nets import case


def digits(seed=0):
    return load("digits", seed=seed).flat().subset(200, 100)


def net(generator):
    return mlp(64, 16, 10, generator=generator)


class Opposite(LearningRule):
    """Climbs the loss."""

    def packets(self, x, y=None):
        loss = cross_entropy(self.net(x), y)
        yield Packet([loss], [-torch.ones_like(loss)], loss.detach())


def test_compare_is_long_paired_and_repeatable():
    rules = {"backpropagation": Backpropagation, "opposite": Opposite}
    options = {"epochs": 3, "batch_size": 50, "seeds": 2, "rate": 1e-2}
    table = compare(rules, digits, net, **options)
    assert list(table.columns) == ["rule", "seed", "epoch", "rate", "loss", "accuracy", "seconds"]
    assert len(table) == 2 * 2 * 4
    start = table[table["epoch"] == 0].pivot_table(index="seed", columns="rule", values="accuracy")
    assert (start["backpropagation"] == start["opposite"]).all()  # the same weights and split
    assert paired(table, "backpropagation", "opposite", scale=100).mean > 20
    again = compare(rules, digits, net, **options)
    pd.testing.assert_frame_equal(table.drop(columns="seconds"), again.drop(columns="seconds"))


def test_more_processes_change_no_number():
    options = {"epochs": 1, "seeds": [3, 5]}
    one = compare({"bp": Backpropagation}, digits, net, **options)
    two = compare({"bp": Backpropagation}, digits, net, jobs=2, **options)
    pd.testing.assert_frame_equal(one.drop(columns="seconds"), two.drop(columns="seconds"))
    assert set(one["seed"]) == {3, 5}


def test_contenders_bring_their_own_net_and_measures_add_columns():
    arm = Contender(lambda g: mlp(64, 10, generator=g), Backpropagation, 1e-2, torch.optim.SGD)
    table = compare(
        {"linear": arm},
        digits(),
        epochs=1,
        seeds=1,
        measure=lambda rule, data: {"norm": float(next(rule.net.parameters()).detach().norm())},
        track=lambda items, label, total: items,
    )
    assert table["norm"].nunique() == 2
    final = final_accuracies(table)
    assert final["accuracy"].item() == pytest.approx(100 * table["accuracy"].iloc[-1])
    assert np.isnan(final["spread"].item())
    assert final["rate"].item() == 1e-2


def test_tuning_finds_a_rate_that_learns_and_a_diverging_one_loses():
    arms = {"bp": Contender(net, Backpropagation, optimizer=torch.optim.SGD)}
    tuned = tune_rates(arms, digits(), [1e-6, 0.3, 1e30], epochs=4, batch_size=20)
    assert tuned["bp"].rate == 0.3
    with pytest.raises(FloatingPointError, match="bp diverges at every rate"):
        tune_rates(arms, digits(), [1e30], epochs=4, batch_size=20)
    with pytest.raises(ValueError, match="rates is empty"):
        tune_rates(arms, digits(), [])


def test_divergence_names_rule_seed_and_step():
    with pytest.raises(FloatingPointError, match="the loss is nan at step") as info:
        compare({"bp": Contender(net, Backpropagation, 1e30, torch.optim.SGD)}, digits, epochs=2, seeds=1)
    assert "'bp' on seed 0" in info.value.__notes__[0]


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="'bp' has no network"):
        compare({"bp": Backpropagation}, digits())
    with pytest.raises(ValueError, match="epochs"):
        compare({"bp": Backpropagation}, digits(), net, epochs=0)


def test_an_epoch_uses_every_sample_once():
    data = digits()
    model = nn.Linear(64, 10)
    seen = []

    class Watch(Backpropagation):
        def packets(self, x, y=None):
            seen.append(x)
            return super().packets(x, y)

    rule = Watch(model, cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loss = train_epoch(rule, optimizer, data, batch_size=64, generator=torch.Generator().manual_seed(0))
    assert_close(loss, float(cross_entropy(model(data.x_train), data.y_train)), rtol=1e-5, atol=1e-5)
    assert [len(x) for x in seen] == [64, 64, 64, 8]
    assert_close(torch.cat(seen).sum(), data.x_train.sum())
    hits = (model(data.x_test).argmax(1) == data.y_test).float().mean()
    assert evaluate(rule, data, batch_size=7) == pytest.approx(float(hits))


@pytest.mark.parametrize("name", ["dense", "residual", "transformer"])
def test_a_rule_is_aligned_with_itself_and_against_its_opposite(name):
    model, _, x, y = case(name)
    rule = Backpropagation(model, cross_entropy)
    table = alignment(rule, x, y)
    assert_close(table["cosine_mean"].to_numpy(), np.ones(len(table)))
    assert_close(table["norm_ratio"].to_numpy(), np.ones(len(table)))
    opposite = alignment(Opposite(model, cross_entropy), x, y, size=1)
    assert_close(opposite["cosine_mean"].to_numpy(), -np.ones(len(table)))
    assert_close(opposite["cosine_std"].to_numpy(), np.zeros(len(table)), rtol=0, atol=1e-6)


def test_alignment_leaves_no_trace():
    model, _, x, y = case("conv")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    marker = torch.ones_like(model[0].weight)
    model[0].weight.grad = marker
    state = torch.random.get_rng_state()
    table = alignment(Backpropagation(model, cross_entropy), x, y)
    assert_close(model.state_dict(), before)
    assert model[0].weight.grad is marker
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_close(table["cosine_mean"].to_numpy(), np.ones(len(table)))  # the same dropout masks in both passes


def test_alignment_without_a_gradient_is_nan_and_wrong_use_is_named():
    model, _, x, y = case("dense")
    model[0].requires_grad_(False)
    rule = Backpropagation(model, cross_entropy)
    assert np.isnan(alignment(rule, x, y)["cosine_mean"][0])
    with pytest.raises(ValueError, match="another network"):
        alignment(rule, x, y, reference=Backpropagation(nn.Linear(6, 4), cross_entropy))
    with pytest.raises(ValueError, match="size"):
        alignment(rule, x, y, size=0)


def test_tables_can_be_drawn():
    table = compare({"bp": Backpropagation, "opposite": Opposite}, digits, net, epochs=2, seeds=2)
    figure = plot_learning_curves(table)
    assert {text.get_text() for text in figure.axes[0].get_legend().get_texts()} == {"bp", "opposite"}
    assert len(plot_final_accuracies({"one": table, "two": table}).axes) == 2
    assert plot_final_accuracies({"one": table[table["seed"] == 0]}, figure.axes) is figure
    with pytest.raises(ValueError, match="no tables"):
        plot_final_accuracies({})
    with pytest.raises(ValueError, match="1 axes for 2 tables"):
        plot_final_accuracies({"one": table, "two": table}, figure.axes)


class Plastic(Backpropagation):
    """Backpropagation with a weight of its own that learns."""

    def __init__(self, net, loss_fn):
        super().__init__(net, loss_fn)
        self.own = nn.Parameter(torch.zeros(()))

    def packets(self, x, y=None):
        yield from super().packets(x, y)
        yield Packet([self.own], [torch.ones(())], torch.zeros(()))


def test_a_rules_own_parameters_learn_too_and_schedules_are_stepped():
    rates = []

    def schedule(optimizer):
        rates.append(optimizer)
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, [1], gamma=0.1)

    arm = Contender(net, Plastic, 1e-2, torch.optim.SGD, schedule)
    table = compare({"plastic": arm}, digits, epochs=2, seeds=1, measure=lambda rule, data: {"own": float(rule.own)})
    assert rates[0].param_groups[0]["lr"] == pytest.approx(1e-3)
    first, second = -np.diff(table["own"].to_numpy())
    assert first == pytest.approx(2 * 1e-2, rel=1e-4)  # two batches, each its own update of 1
    assert second == pytest.approx(2 * 1e-3, rel=1e-4)


def test_a_rule_that_draws_gets_a_generator_of_the_seed():
    seeds = []

    class Drawing(Backpropagation):
        def __init__(self, net, loss_fn, generator=None):
            super().__init__(net, loss_fn)
            seeds.append(None if generator is None else generator.initial_seed())

    compare(
        {"one": Drawing, "other": Drawing, "bound": partial(Drawing, generator=None)}, digits, net, epochs=1, seeds=2
    )
    assert seeds[0] == seeds[1] != seeds[3] == seeds[4]
    assert seeds[2] is seeds[5] is None


def test_a_diverged_run_can_stay_in_the_table_at_chance():
    arm = Contender(net, Backpropagation, 1e30, torch.optim.SGD)
    table = compare({"bp": arm}, digits, epochs=3, seeds=1, keep_diverged=True)
    assert list(table["epoch"]) == [0, 1, 2, 3]
    assert table["accuracy"].iloc[-1] == 0.1
    assert table["loss"].iloc[-1] == float("inf")
    assert final_accuracies(table)["accuracy"].item() == pytest.approx(10)


def test_angles_and_costs_are_measured_on_request():
    rules = {"backpropagation": Backpropagation, "opposite": Opposite}
    table = compare(rules, digits, net, epochs=1, seeds=1, align=50, costs=True)
    angle = table.set_index(["rule", "epoch"])["angle"]
    assert angle["backpropagation"].tolist() == pytest.approx([0, 0], abs=0.1)
    assert angle["opposite"].tolist() == pytest.approx([180, 180], abs=0.1)
    assert {"angle 0", "angle 2"} <= set(table.columns)
    start = table[table["epoch"] == 0]
    assert (start[["milliseconds", "megabytes"]] > 0).all(axis=None)
    assert table.loc[table["epoch"] == 1, ["milliseconds", "megabytes"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        compare(rules, digits, net, epochs=1, seeds=1, align=0)
