"""The longer scales of the study, on tiny shapes: every part of it runs."""

import pytest

from neuropil.atlas import run_study

TINY = {
    "sizes": ((100, 8, 0.2),),
    "steps": 7,
    "seeds": 2,
    "alone_steps": (2, 3),
    "joint_steps": 3,
    "grid_n": 100,
    "grid_k": (5, 8),
    "grid_p": (0.1, 0.2),
    "large": (1000, 10, 0.1),
    "large_seeds": 2,
    "compared": (100, 5, 0.2),
    "compared_graphs": 3,
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    result = run_study("assemblies", scale=scale, settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 14
    assert all(claim.threshold for claim in result.claims)
    assert {"support-n-100-k-8-p-02.svg", "recall.svg", "grid.svg"} == set(result.figures)
    (bound,) = [claim for claim in result.claims if "Oja's rule keeps weights" in claim.text]
    assert bound.holds is True
