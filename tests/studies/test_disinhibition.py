"""The longer scales of the study, on tiny shapes: every part of it runs, and says what it cannot do."""

import pytest

from neuropil.atlas import run_study
from neuropil.data import locate

TINY = {
    "hidden": 6,
    "epochs": 2,
    "deep_epochs": 2,
    "control_epochs": 1,
    "seeds": 2,
    "deep_seeds": 2,
    "rates": (1e-3, 1e-2),
    "tuning_epochs": 1,
    "image_hidden": 6,
    "image_epochs": 1,
    "image_seeds": 2,
    "image_train": 120,
    "image_test": 60,
    "teacher_epochs": 1,
    "teacher_seeds": 1,
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    images = tuple(name for name in ("mnist", "fashion-mnist") if locate(name) is not None)
    result = run_study("disinhibition", scale=scale, settings={**TINY, "images": images}, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("teacher in continuous time" in text for text in texts) == 3
    assert sum("comes close to backpropagation" in text for text in texts) >= 5
    assert all(claim.threshold for claim in result.claims)
    assert {"single-neuron.svg", "rivals.svg", "learning-curves.svg", "teacher-student.svg"} <= set(result.figures)


def test_data_that_are_not_at_hand_leave_a_claim_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    changes = {**TINY, "images": ("mnist",), "deep_epochs": 0, "teacher_epochs": 1}
    result = run_study("disinhibition", scale="smoke", settings=changes, output=tmp_path)
    (claim,) = [claim for claim in result.claims if "mnist" in claim.text]
    assert claim.holds is None
    assert claim.note is not None
    assert "neuropil data fetch mnist" in claim.note
