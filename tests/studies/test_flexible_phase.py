"""The longer scales of the study, on tiny shapes: every part of it runs, and says what it cannot do."""

import pytest

from neuropil.atlas import run_study
from neuropil.data import locate

TINY = {
    "draws": 200,
    "bars": 2,
    "hidden": 3,
    "steps": 2,
    "pairs": 80,
    "sweep": (0.3, 0.5),
    "evaluations": 4,
    "seeds": 2,
    "goodness_data": "digits",
    "goodness_hidden": (4, 4),
    "goodness_epochs": 1,
    "goodness_batch": 500,
}


def test_a_tiny_version_of_the_default_runs_to_its_end(tmp_path):
    result = run_study("flexible-phase", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 3 * 3 + 1 + 1 + 2
    assert all(claim.threshold for claim in result.claims)
    assert {"variance.svg", "bars-and-stripes.svg", "sweep.svg", "goodness.svg"} == set(result.figures)


@pytest.mark.skipif(locate("mnist") is None, reason="needs MNIST")
def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    tiny = TINY | {"image_phases": 4, "image_test": 4}
    result = run_study("flexible-phase", scale="paper", settings=tiny, output=tmp_path)
    assert result.status == "complete", result.error
    (claim,) = [claim for claim in result.claims if "MNIST from random phases" in claim.text]
    assert claim.measured is not None


def test_data_that_are_not_at_hand_leave_a_claim_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    result = run_study("flexible-phase", scale="smoke", settings={"draws": 100, "image_phases": 4}, output=tmp_path)
    (claim,) = [claim for claim in result.claims if "MNIST" in claim.text]
    assert claim.holds is None
    assert claim.note is not None
    assert "neuropil data fetch mnist" in claim.note
