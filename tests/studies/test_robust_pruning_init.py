"""The longer scales of the study, on tiny shapes, and what its nets and trainings are."""

import math

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.studies.structure._pruning_init import (
    ResidualNet,
    homogeneous,
    images,
    score_profile,
    scored_batch,
    train_pruned,
    train_residual,
)

TINY = {
    "data": "digits",
    "train": 200,
    "test": 100,
    "scored": 64,
    "score_depth": 6,
    "score_width": 20,
    "score_seeds": 2,
    "width": 16,
    "epochs": 1,
    "seeds": 2,
    "residual_data": "digits",
    "residual_train": 200,
    "residual_test": 100,
    "residual_depth": 4,
    "residual_width": 8,
    "residual_density": 0.3,
    "residual_epochs": 1,
    "residual_tuning": 1,
    "residual_seeds": 2,
}
DIGITS = ("digits", 200, 100)
SHORT = {"epochs": 1, "batch_size": 50, "rate": 1e-3, "scored": 64}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("robust-pruning-init", scale="default", settings={**TINY, "depths": (4,)}, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 4 + 5 + 4
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["scores.svg", "rescaling.svg"]


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    changes = {**TINY, "depths": (3, 2), "densities": (0.3, 0.5), "seeds": 1, "residual_seeds": 1}
    result = run_study("robust-pruning-init", scale="paper", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 4 + 5 + 4
    assert result.figures == ["scores.svg", "rescaling.svg", "maps.svg"]
    assert len(result.tables["rescaling"]["rows"]) == 2 * (1 + 2 * 9)


def test_the_exact_facts_are_not_exact_with_biases():
    assert max(homogeneous(3, 10, (0.3,), 0)) < 1e-10
    profile = score_profile(DIGITS, "ordered", 1.0, 0.2, 5, 20, 64, 0)
    assert len(profile["squares"].split()) == 4
    assert 0 < profile["critical"] <= 1


@pytest.mark.parametrize("kind", ["mlp", "conv"])
def test_plain_branches_double_the_signal_and_scaled_ones_do_not(kind, generator):
    data = images(*DIGITS, flat=kind == "mlp")
    x, _ = scored_batch(data, 64, 0)
    growth = [ResidualNet(data, kind, 12, 96, stable, generator).growth(x) for stable in (False, True)]
    assert 9 < math.log2(growth[0]) < 13
    assert 1 < growth[1] < 6


def test_arms_of_a_seed_share_weights_batches_and_scores():
    state = torch.random.get_rng_state()
    rows = [train_pruned(DIGITS, 4, 16, 0.3, "random", rescale, **SHORT, seed=1) for rescale in ("none", "data")]
    again = train_pruned(DIGITS, 4, 16, 0.3, "random", "data", **SHORT, seed=1)
    assert rows[1] == again
    assert rows[0]["signal"] < rows[1]["signal"] == pytest.approx(1, rel=1e-3)
    assert torch.equal(state, torch.random.get_rng_state())


def test_rates_are_chosen_on_samples_that_are_not_the_test_part():
    held, whole = images(*DIGITS, held_out=True), images(*DIGITS)
    assert len(held.x_train) + len(held.x_test) == len(whole.x_train)
    row = train_residual(DIGITS, "mlp", 4, 8, True, 0.3, **SHORT, seed=0, held_out=True)
    assert 0 < row["smallest kept"] <= 1
    assert 0 <= row["accuracy"] <= 1
