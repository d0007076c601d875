"""The longer scales of the study, on tiny shapes."""

import pytest

from neuropil.atlas import run_study

TINY = {
    "data": "digits",
    "width": 6,
    "depths": (2, 3),
    "seeds": (2, 2),
    "expansions": (2, 1),
    "epochs": 1,
    "batch_size": 500,
    "rates": (0.01, 0.02),
    "tuning_epochs": 1,
    "tuning_seeds": 1,
    "aligning_seeds": 2,
    "densities": (0.5, 0.1),
    "density_seeds": 2,
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    result = run_study("product-feedback-alignment", scale=scale, settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("as well as backpropagation" in text for text in texts) == 2
    assert sum("aligns with the forward weights" in text for text in texts) == 2
    assert any("sparse feedback" in text for text in texts)
    # a net that does not learn decides nothing
    assert all(claim.holds is not True for claim in result.claims if "as well as" in claim.text)
    assert set(result.figures) == {"accuracy.svg", "learning-and-angles.svg"}
