"""The longer scales of the study, on tiny shapes: every part of it runs to its end."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from neuropil.atlas import run_study
from neuropil.data import is_at_hand
from neuropil.studies.learning.incremental_predictive_coding import calibration_error, warm_up_cosine

TINY = {
    "hidden": (5, 4),
    "batch": 300,
    "epochs": 1,
    "seeds": 2,
    "grid_seeds": 2,
    "gammas": (0.1, 0.5),
    "steps": (3,),
    "rates": (1e-3, 1e-2),
    "image_hidden": (6, 5),
    "image_epochs": 1,
    "image_batch": 60,
    "image_seeds": 2,
    "image_rates": (1e-3,),
    "image_tuning_epochs": 1,
    "image_train": 200,
    "image_test": 60,
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    result = run_study("incremental-predictive-coding", scale=scale, settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert all(claim.threshold or claim.holds is None for claim in result.claims)
    assert {"grid.svg", "matrix-products.svg"} <= set(result.figures)
    images = scale == "paper" and is_at_hand("fashion-mnist")
    assert len(result.claims) == 8 + (2 if images else 1 if scale == "paper" else 0)


def test_data_that_are_not_at_hand_leave_a_claim_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    settings = {**TINY, "grid_seeds": 0, "images": ("fashion-mnist",)}
    result = run_study("incremental-predictive-coding", scale="smoke", settings=settings, output=tmp_path)
    assert result.claims[-1].holds is None
    assert "neuropil data fetch fashion-mnist" in result.claims[-1].note


def test_calibration_errors_of_known_outputs():
    y = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    sure = torch.eye(2)[torch.zeros(2, 4, dtype=torch.long)]  # says class 0, always, with certainty
    assert_close(calibration_error(sure, y), torch.tensor([0.5, 0.0]), atol=1e-4, rtol=0)
    assert_close(calibration_error(torch.full((1, 4, 2), 0.5), y[:1]), torch.tensor([0.0]), atol=1e-6, rtol=0)


def test_the_rate_warms_up_and_falls_to_a_tenth():
    factors = [warm_up_cosine(epoch, 20) for epoch in range(21)]
    assert factors[:2] == [0.5, 1.0]
    assert factors[20] == pytest.approx(0.1)
    assert all(b <= a for a, b in pairwise(factors[1:]))
