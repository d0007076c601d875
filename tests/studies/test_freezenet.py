"""The longer scales of the study, on tiny shapes, and what its arms share."""

from typing import Any

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.studies.structure._freezing import ARMS, DENSE, images, make_net, prepared, scored_batch, train_arm

TINY = {"data": "digits", "train": 200, "test": 100, "epochs": 1, "drops": (1,), "seeds": 2}
HOW = {"epochs": 1, "drops": (), "batch_size": 50, "learning_rate": 0.1, "weight_decay": 5e-4, "scored": 50}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    changes = {**TINY, "net": "small", "rates": (0.9, 0.95, 0.99)}
    result = run_study("freezenet", scale="default", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 6 + 1 + 2
    assert all(claim.threshold for claim in result.claims)
    assert result.claims[-1].holds
    assert result.figures == ["accuracy.svg"]
    assert len(result.tables["storage"]["rows"]) == 3


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_the_papers_net_has_its_weights_or_says_no(data):
    if data == "mnist":
        shape: Any = type("Shape", (), {"shape": (1, 28, 28), "features": 784, "classes": 10})()
        net = make_net("lenet-5", shape, 0)
        assert sum(weight.numel() for weight in net.parameters() if weight.ndim > 1) == 430_500
        assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
        net = make_net("lenet-300-100", shape, 0)
        assert sum(weight.numel() for weight in net.parameters()) == 266_610
    else:
        with pytest.raises(ValueError, match="net must be"):
            make_net("vgg", images(data, None, None, flat=True), 0)


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    changes = {**TINY, "net": "lenet-300-100", "rates": (0.95, 0.99), "drops": (1, 2), "epochs": 2, "seeds": 1}
    result = run_study("freezenet", scale="paper", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 6 + 1 + 2


def test_arms_of_a_seed_start_from_the_same_weights_and_the_random_mask_is_one():
    data = images("digits", 200, 100, flat=True)
    nets = {arm: prepared(arm, "small", data, 0.9, 50, 4) for arm in (*ARMS, DENSE)}
    weights = [nets[arm].net[0].weight for arm in nets]
    assert all(torch.equal(weights[0], weight) for weight in weights)
    assert nets["random, frozen"].masks == nets["random, pruned"].masks
    assert nets["gradient, frozen"].masks != nets["SNIP, frozen"].masks
    counts = {arm: frozen.masks.kept() for arm, frozen in nets.items()}
    assert counts.pop(DENSE) == nets[DENSE].masks.total()
    assert set(counts.values()) == {round(0.1 * nets[DENSE].masks.total())}


def test_the_score_batch_has_every_class():
    data = images("digits", None, None, flat=True)
    _, y = scored_batch(data, 100, 3)
    assert len(y.unique()) == 10


def test_frozen_arms_keep_the_gradient_and_pruned_ones_lose_it():
    state = torch.random.get_rng_state()
    frozen, pruned = (
        train_arm(arm, 0.98, ("digits", 200, 100), "small", **HOW, seed=0)
        for arm in ("random, frozen", "random, pruned")
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert frozen["gradient"] == pytest.approx(1.0)
    assert pruned["gradient"] < 0.3
    assert frozen["comes back"]
    assert "bytes" not in pruned
