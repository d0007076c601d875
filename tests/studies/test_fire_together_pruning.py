"""The longer scales of the study, on tiny shapes, and what it compares."""

import pandas as pd
import pytest
import torch

from neuropil.atlas import run_study
from neuropil.structure.dynamic.channels import dynamic_layers, using
from neuropil.studies.structure._dynamic_arms import accuracy, hit_rates, layer_speed, mask_rules, spent
from neuropil.studies.structure.fire_together_pruning import SCALES, dense, in_batches, judged, with_heads

TINY = {
    "data": "digits",
    "train": 150,
    "test": 60,
    "widths": (6, 10, 8),
    "epochs": 1,
    "masses": (0.6, 0.9),
    "head_epochs": 1,
    "tuning": 1,
    "seeds": 2,
    "timed": ((8, 0.5),),
    "runs": 3,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("fire-together-pruning", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 7
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["accuracy.svg", "needs.svg"]
    arms = {*(row[1] for row in result.tables["accuracy"]["rows"])}
    assert arms == {"whole", "heads", "heads, calibrated", "target", "shuffled", "L1", "mean activation", "joint"}


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    result = run_study("fire-together-pruning", scale="paper", settings=TINY | {"blocks": 1}, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 7


@pytest.fixture(scope="module")
def trained():
    settings = SCALES["default"].__class__(**TINY)
    data, net, graph = dense(settings, 0)
    made = with_heads(settings, data, net, graph, 0.6, 0)
    return data, net, graph, made, in_batches(data.x_train, data.y_train, 50)


def test_static_masks_keep_what_the_heads_keep_and_shuffled_ones_as_many_of_every_sample(trained):
    data, _, graph, made, train = trained
    _, densities = spent(made, graph, train)
    for arm in ("L1", "mean activation"):
        _, kept = spent(made, graph, train, mask_rules(arm, made, train, densities, 0))
        for name, layer in dynamic_layers(made).items():
            channels = layer.seen.logits.shape[1]
            assert kept[name] == pytest.approx(densities[name], abs=0.5 / channels + 1e-9)
    x = data.x_test[:20]
    rules = mask_rules("shuffled", made, train, densities, 0)
    first, *_ = dynamic_layers(made).values()
    with using(made, "infer"):
        made.eval()(x)
        counts, mask = first.k, first.seen.mask
    with using(made, "infer", rules):
        made(x)
        assert torch.equal(first.k, counts)
        assert not torch.equal(first.seen.mask, mask)


def test_the_target_itself_is_its_own_mask_and_a_mask_of_everything_is_the_whole_net(trained):
    data, net, _, made, train = trained
    with using(made, "train", mask_rules("target", made, train, {}, 0)):
        made.eval()(data.x_test[:10])
        for layer in dynamic_layers(made).values():
            assert torch.equal(layer.seen.mask, layer.seen.target)
    everything = {name: lambda z, _: torch.ones_like(z, dtype=torch.bool) for name in dynamic_layers(made)}
    assert accuracy(made, data, everything) == accuracy(net, data)


def test_hit_rates_are_in_percent_and_the_commoner_answer_meets_at_least_half_where_it_was_found(trained):
    _, _, _, made, train = trained
    met, common = hit_rates(made, train, train)
    assert 50 <= common <= 100
    assert 0 <= met <= 100


def test_the_judged_mass_is_the_one_nearest_to_45_percent():

    rows = [("heads", 0.5, 20.0), ("heads", 0.7, 47.0), ("heads", 0.9, 70.0), ("L1", 0.9, 45.0)]
    table = pd.DataFrame(rows, columns=["arm", "mass", "macs"]).assign(seed=0)
    assert judged(table, (0.5, 0.7, 0.9)) == 0.7


def test_a_speed_is_a_positive_ratio():
    assert min(layer_speed(8, 0.5, 6, 3, 0)) > 0
