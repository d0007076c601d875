"""The longer scales of the study, on tiny shapes."""

import pytest

from neuropil.atlas import run_study
from neuropil.data import locate

TINY = {
    "width": 20,
    "epochs": 2,
    "seeds": 2,
    "batch_size": 200,
    "image_epochs": 1,
    "image_seeds": 2,
    "image_train": 300,
    "image_test": 200,
    "unseen": (3,),
    "unseen_seeds": 2,
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    images = tuple(name for name in ("mnist",) if locate(name) is not None)
    result = run_study("forward-forward", scale=scale, settings={**TINY, "images": images}, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("sparser than backpropagation in every layer" in text for text in texts) == 1 + len(images)
    assert any("never-seen class" in text for text in texts)
    assert set(result.figures) == {"accuracy.svg", "sparseness.svg", "ensembles.svg"}


def test_data_that_are_not_at_hand_leave_a_claim_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    changes = {**TINY, "images": ("mnist",), "unseen": ()}
    result = run_study("forward-forward", scale="smoke", settings=changes, output=tmp_path)
    (claim,) = [claim for claim in result.claims if "mnist" in claim.text]
    assert claim.holds is None
    assert claim.note is not None
    assert "neuropil data fetch mnist" in claim.note
