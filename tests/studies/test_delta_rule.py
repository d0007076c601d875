"""The longer scales of the study, on tiny shapes."""

import pytest

from neuropil.atlas import run_study

TINY = {
    "hidden": (2, 3),
    "starts": 3,
    "xor_epochs": 20,
    "splits": 2,
    "epochs": 1,
    "perceptron_epochs": 3,
    "curve_samples": 40,
    "curve_epochs": 1,
    "curve_seeds": 2,
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    result = run_study("delta-rule", scale=scale, settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("logistic regression" in text for text in texts) == 2
    assert sum("polynomial features" in text for text in texts) == 2
    assert sum("iris" in text for text in texts) == 2
    assert result.figures == ["neurons.svg"]
