"""The longer scales of the study, on tiny shapes, and how arms are compared."""

import torch

from neuropil.atlas import run_study
from neuropil.studies.structure.serene import SCALES, best, most_common, plain_step, train_arm

TINY = {
    "data": "digits",
    "train": 120,
    "test": 60,
    "hidden": (8, 6),
    "epochs": 2,
    "batch_size": 10,
    "decays": (1.0, 8.0),
    "seeds": 3,
    "full_seeds": 2,
    "wide": False,
    "timed_batch": 4,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("serene", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 2 + 2 + 1 + 3 + 2
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["neurons.svg"]


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    result = run_study("serene", scale="paper", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 2 + 2 + 1 + 3 + 2


def test_a_seed_fixes_a_run_and_stronger_decay_leaves_smaller_weights():
    settings = SCALES["default"].__class__(**TINY, tolerance=0.0)
    rows = [train_arm(settings, "weight decay", decay, 0) for decay in (1.0, 1.0, 8.0)]
    assert all(torch.equal(rows[0]["state"][name], rows[1]["state"][name]) for name in rows[0]["state"])
    sizes = [float(next(iter(row["state"].values())).abs().sum()) for row in rows]
    assert sizes[2] < 0.5 * sizes[0]


def test_the_fewest_neurons_within_the_slack_count():
    settings = SCALES["default"]
    dense = {"arm": "dense", "decay": 0.0, "seed": 0, "neurons": 192, "validation": 95.0, "loss": 0.1}

    def row(neurons: int, validation: float, arm: str = "L1") -> dict:
        return {"arm": arm, "decay": 1.0, "seed": 0, "neurons": neurons, "validation": validation, "loss": 0.1}

    chosen = best([dense, row(80, 94.5), row(60, 94.4), row(100, 96.0), row(10, 20.0, "x")], settings)
    assert chosen["L1"][0]["neurons"] == 80
    assert chosen["x"][0]["neurons"] == 192
    assert most_common([2.0, 4.0, 4.0, 2.0, 8.0]) == 2.0
    assert most_common([]) == 1.0


def test_plain_steps_are_shrinkage_and_its_proximal_form():
    weight = torch.nn.Parameter(torch.tensor([1.0, -0.5, 0.01]))
    plain_step([weight], [0.5], 0.1, proximal=False)
    assert torch.allclose(weight, torch.tensor([0.9, -0.45, 0.009]))
    plain_step([weight], [0.5], 0.1, proximal=True)
    assert torch.allclose(weight, torch.tensor([0.85, -0.4, 0.0]))
