"""The longer scales of the study, on tiny shapes: every part of it runs, and says what it decided."""

from neuropil.atlas import run_study

TINY = {
    "nets": 1,
    "data": "digits",
    "sizes": (8, 6, 10),
    "scale": 0.5,
    "epochs": 1,
    "seeds": 1,
    "tuning_epochs": 1,
    "free_steps": 30,
    "nudge_steps": 15,
    "online_steps": 12,
    "online_periods": 2,
    "angles": (0.0, 90.0),
    "nudges": (0.5,),
    "points": (1, 4),
    "nudge_seeds": 1,
    "train": 20,
    "test": 10,
}


def claims(result):
    assert result.status == "complete", result.error
    assert all(claim.threshold for claim in result.claims)
    return [claim.text for claim in result.claims]


def test_a_tiny_default_runs_to_its_end(tmp_path):
    result = run_study("equilibrium-propagation", scale="default", settings=TINY, output=tmp_path)
    texts = claims(result)
    assert len(texts) == 8
    assert sum("homeostasis" in text for text in texts) == 3
    assert set(result.figures) == {"orders.svg", "angles.svg", "homeostasis.svg"}
    assert {"angles", "weight-decay", "nudges", "biases"} <= set(result.tables)


def test_a_tiny_version_of_the_papers_setting_runs_to_its_end(tmp_path):
    changes = {**TINY, "channels": (3, 4), "cnn_epochs": 1, "cnn_steps": (40, 20), "cnn_batch": 20, "loop_seeds": 1}
    result = run_study("equilibrium-propagation", scale="paper", settings=changes, output=tmp_path)
    texts = claims(result)
    assert any("cyclic" in text for text in texts)
    assert any("convolutional" in text for text in texts)
    assert {"homeostasis", "loop", "images"} <= set(result.tables)
    (paper,) = [claim for claim in result.claims if "convolutional" in claim.text]
    assert "CIFAR-10" in (paper.note or "")
