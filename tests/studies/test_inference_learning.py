"""The longer scales of the study, on tiny shapes: every part of it runs to its end."""

import pytest

from neuropil.atlas import run_study
from neuropil.data import is_at_hand

TINY = {
    "exact_alphas": (1.0,),
    "step_hidden": 6,
    "step_seeds": 2,
    "step_samples": 3,
    "step_training": (0, 4),
    "implicit_inner": (3, 3, 3),
    "train": 100,
    "test": 60,
    "hidden": (6, 5),
    "seeds": 2,
    "steps": 4,
    "every": 2,
    "tuning_seeds": 1,
    "batch_steps": 4,
    "batch": 30,
    "alphas": (0.01, 10.0),
    "sgd_rates": (0.01, 0.1),
    "adam_rates": (1e-3,),
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    if scale == "paper" and not is_at_hand("mnist"):
        pytest.skip("MNIST is not on this machine")
    result = run_study("inference-learning", scale=scale, settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 12
    assert all(claim.threshold for claim in result.claims)
    assert {"single-steps.svg", "stability.svg", "speed.svg"} == set(result.figures)


def test_data_that_are_not_at_hand_leave_a_claim_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    result = run_study("inference-learning", scale="paper", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert result.claims[-1].holds is None
    assert "neuropil data fetch mnist" in result.claims[-1].note
