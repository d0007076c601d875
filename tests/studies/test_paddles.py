"""The longer scales of the study, on tiny shapes: every part of it runs to its end."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from neuropil.atlas import run_study
from neuropil.data import load
from neuropil.studies.learning.paddles import SCALES, corrupted, ends, make_net, train_arm

TINY = {
    "train": 80,
    "test": 40,
    "noises": (("symmetric", 0.5), ("instance", 0.45)),
    "width": 4,
    "refine_rate": 1e-2,
    "epochs": 4,
    "stop_amplitude": 1,
    "stop_phase": 2,
    "seeds": 2,
    "held_epochs": 2,
    "held_seeds": 2,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("paddles", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    claims = [claim.text for claim in result.claims]
    assert len(claims) == 4 + 2 * 3 + 2
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["accuracy.svg", "fitted-labels.svg"]


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    tiny = {
        **TINY,
        "refine": (("layer4", 1), ("fc", 1)),
        "drops": (2, 3),
        "noises": (("pair", 0.45), ("instance", 0.45)),
    }
    tiny |= {"data": "digits", "seeds": 1, "held_seeds": 1}  # every training reads its data anew
    result = run_study("paddles", scale="paper", settings=tiny, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 4 + 2 * 3 + 2


def test_the_papers_net_is_resnet_18():
    data = load("digits")
    net = make_net(data, SCALES["paper"], torch.Generator().manual_seed(0))
    assert sum(parameter.numel() for parameter in net.parameters()) == 11_172_810  # He et al.'s, one input channel
    again = make_net(data, SCALES["paper"], torch.Generator().manual_seed(0))
    assert torch.equal(net.get_parameter("fc.weight"), again.get_parameter("fc.weight"))


@pytest.mark.parametrize("kind", ["symmetric", "pair", "instance"])
def test_the_labels_that_are_called_wrong_are_and_the_test_part_is_clean(kind):
    noisy, flipped, validation = corrupted(kind, 0.45, 1, SCALES["default"])
    clean = load("digits", seed=1)
    assert (len(noisy.x_train), len(validation.x_test), len(noisy.x_test)) == (1293, 144, 360)
    assert torch.equal(noisy.y_test, clean.y_test)
    truth = {tuple(x.flatten().tolist()): int(y) for x, y in zip(clean.x_train, clean.y_train, strict=True)}
    wrong = [truth[tuple(x.flatten().tolist())] != int(y) for x, y in zip(noisy.x_train, noisy.y_train, strict=True)]
    assert wrong == flipped.tolist()
    assert 0.4 < sum(wrong) / len(wrong) < 0.5


def test_arms_are_the_same_training_until_their_first_stop():
    settings = replace(SCALES["default"], epochs=6)
    rows = {
        name: train_arm(name, "symmetric", 0.5, 6, 0, settings, torch.device("cpu"))
        for name in ("no stop", "PES", "PADDLES")
    }
    assert rows["no stop"] == [{**row, "rule": "no stop"} for row in rows["PES"]]
    same = [{**row, "rule": "no stop"} == other for row, other in zip(rows["PADDLES"], rows["no stop"], strict=True)]
    assert same == [True] * 4 + [False] * 2


def test_ends_are_the_last_epoch_and_the_one_that_noisy_validation_chooses():
    rows = [
        {
            "rule": "a",
            "seed": 0,
            "epoch": epoch,
            "accuracy": accuracy,
            "noisy validation": score,
            "memorised": 0.1 * epoch,
            "confident classes": 10 - epoch,
        }
        for epoch, accuracy, score in [(2, 0.8, 0.7), (1, 0.5, 0.1), (3, 0.2, 0.6)]
    ]
    (row,) = ends(pd.DataFrame(rows)).to_dict("records")
    assert (row["last"], row["chosen"], row["best"], row["collapsed"]) == (0.2, 0.8, 0.8, True)
    assert row["late"] == pytest.approx(0.5)
    assert row["memorised"] == pytest.approx(0.3)
    assert (row["lost a class"], row["got it back"]) == (True, False)
