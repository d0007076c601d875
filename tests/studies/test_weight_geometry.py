"""The longer scales of the study, on tiny shapes: every part of it runs, and says what it cannot do."""

import matplotlib.image
import numpy as np
import pytest
import torch

from neuropil.atlas import run_study
from neuropil.learning.geometry import ResidualNet

TINY = {
    "exact_features": 60,
    "exact_samples": 4,
    "exact_seeds": 1,
    "features": (36, 100),
    "seeds": 2,
    "epochs": 10,
    "rates": (1e-3, 1e-1),
    "hidden": 12,
    "layer_epochs": 1,
    "layer_seeds": 2,
    "layer_rates": (1e-2, 1e-1),
    "recurrent": "digits",
    "recurrent_hidden": 8,
    "recurrent_epochs": 1,
    "tuned_epochs": 1,
    "tuned_seeds": 2,
    "tuned_rates": (1e-3, 1e-2),
    "image_size": 32,
}


@pytest.fixture
def pretrained(tmp_path):
    """A small residual network and images of two classes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(ResidualNet((4, 6), (1, 1), 2).state_dict(), tmp_path / "net.pth")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            matplotlib.image.imsave(tmp_path / "images" / name / f"{index}.png", rng.random((40, 40, 3)))
    return {"network": str(tmp_path / "net.pth"), "images": str(tmp_path / "images")}


def test_a_tiny_default_runs_to_its_end(tmp_path):
    result = run_study("weight-geometry", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("nearest to normal" in text for text in texts) == 3 + 3  # regression, recurrent network
    assert sum("come nearer to normal" in text for text in texts) == 3
    assert sum("log-normal" in text for text in texts) == 1
    assert all(claim.threshold for claim in result.claims)
    assert {"changes.svg", "distances-05-1.svg", "log-weights.svg"} <= set(result.figures)


def test_a_tiny_paper_scale_runs_to_its_end(tmp_path, pretrained):
    changes = {**TINY, **pretrained, "exponents": (0.75,)}
    result = run_study("weight-geometry", scale="paper", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("nearest to normal" in text for text in texts) == 3 * (2 + 2)  # two correlations, two networks
    assert sum("fine-tuned recurrent weights" in text for text in texts) == 3
    assert sum("fine-tuned convolutions" in text for text in texts) == 3


def test_what_is_not_at_hand_leaves_claims_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    changes = {**TINY, "features": (), "layer_seeds": 0, "recurrent": "mnist"}
    result = run_study("weight-geometry", scale="paper", settings=changes, output=tmp_path)
    undecided = {claim.text: claim.note for claim in result.claims if claim.holds is None}
    assert set(undecided) == {
        "fine-tuned recurrent weights name their geometry",
        "fine-tuned convolutions name their geometry",
    }
    assert any("neuropil data fetch mnist" in str(note) for note in undecided.values())
    assert any("--set network=FILE" in str(note) for note in undecided.values())
