"""The longer scales of the study, on tiny shapes."""

import pytest

from neuropil.atlas import run_study

TINY = {
    "data": "digits",
    "width": 8,
    "epochs": 1,
    "tuning_epochs": 1,
    "tuning_seeds": 1,
    "batch_size": 500,
    "rates": (0.01, 0.03),
    "seeds": 2,
    "bottlenecks": (0.0, 0.5, 0.9),
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    result = run_study("dfa-principles", scale=scale, settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("improves the accuracy" in text for text in texts) == 4
    assert any("blocked" in text for text in texts)
    assert any("convolutions" in text for text in texts)
    assert set(result.figures) == {"bottleneck.svg", "practices.svg"}
