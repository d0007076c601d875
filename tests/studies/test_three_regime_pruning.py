"""The longer scales of the study, on tiny shapes, and what it computes."""

from dataclasses import replace

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.data import load
from neuropil.learning.networks import mlp
from neuropil.structure.allocation import allocate
from neuropil.structure.criteria import Magnitude
from neuropil.studies.structure._pruned_nets import (
    PreResNet,
    error_of,
    hidden_weights,
    noisy_data,
    train_checkpoints,
    train_masked,
)
from neuropil.studies.structure.three_regime_pruning import SCALES, Recipe, measured

TRAINING = {"rate": 0.05, "decay": 0.0, "batch_size": 50, "drops": (), "seed": 0}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    tiny = {
        "data": "digits",
        "train": 200,
        "test": 100,
        "hidden": (16, 16),
        "recipes": (
            ("gentle", Recipe((1, 3), (0.5, 0.1), rate=0.05, retrain_epochs=1)),
            ("hot", Recipe((1, 3), (0.5, 0.1), rate=0.1, retrain_epochs=2)),
        ),
        "seeds": 2,
    }
    result = run_study("three-regime-pruning", scale="default", settings=tiny, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 2 * 4
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["phases.svg"]
    assert set(result.tables) == {"regimes-gentle", "regimes-hot"}


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    recipe = Recipe((1, 2, 3), (0.5, 0.1), rate=0.05, retrain_epochs=2, drops=(1,))
    tiny = {"data": "digits", "train": 64, "test": 64, "width": 2, "dense_drops": (2,), "compared": 64}
    tiny |= {"recipes": (("the paper's", recipe),), "seeds": 1, "retrain_seeds": 2}
    result = run_study("three-regime-pruning", scale="paper", settings=tiny, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 4


def test_the_papers_net_has_its_size_and_draws_from_its_generator():
    before = torch.random.get_rng_state()
    nets = [PreResNet(3, 10, 16, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(nets[0].stem.weight, nets[1].stem.weight)
    convolutions = [module for module in nets[0].modules() if isinstance(module, torch.nn.Conv2d)]
    assert len([layer for layer in convolutions if layer.kernel_size == (3, 3)]) == 19  # and the readout: 20
    assert nets[0](torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))).shape == (2, 10)
    assert "readout.weight" not in hidden_weights(nets[0])


def test_a_fifth_of_the_training_labels_is_random_and_none_of_the_test():
    data, clean = (
        noisy_data("digits", 1000, 300, 0.2, 1, images=False),
        load("digits", seed=1).subset(1000, 300, seed=1),
    )
    changed = (data.y_train != clean.y_train).double().mean()
    assert 0.15 < changed < 0.2  # a tenth of those drawn anew draw their own class
    assert torch.equal(data.y_test, clean.y_test)
    assert torch.equal(noisy_data("digits", 1000, 300, 0.0, 1, images=False).y_train, clean.y_train)
    assert data.x_train.mean() == pytest.approx(0.0, abs=1e-5)


def test_checkpoints_are_places_of_one_training():
    data = noisy_data("digits", 200, 100, 0.2, 0, images=False)

    def fresh():
        return mlp(64, 8, 10, generator=torch.Generator().manual_seed(0))

    both = train_checkpoints(data, fresh(), [2, 3], **TRAINING)
    alone = train_checkpoints(data, fresh(), [2], **TRAINING)
    assert torch.equal(both[2][0].weight, alone[2][0].weight)
    assert not torch.equal(both[3][0].weight, both[2][0].weight)


def test_retraining_keeps_its_mask_and_lowers_the_error():
    data = noisy_data("digits", 400, 100, 0.0, 0, images=False)
    net = mlp(64, 24, 10, generator=torch.Generator().manual_seed(0))
    net = train_checkpoints(data, net, [5], **TRAINING)[5]
    masks = allocate(Magnitude()(net, params=hidden_weights(net)), 0.1, "layer")
    masks.apply_(net)
    before = error_of(net, data.x_train, data.y_train)
    again = train_masked(data, net, masks, epochs=5, **TRAINING)
    assert error_of(again, data.x_train, data.y_train) < before - 5
    assert float(again[0].weight.detach()[~masks["0.weight"]].abs().max()) == 0.0
    assert list(masks) == ["0.weight"]


def test_a_diagram_is_the_same_again():
    settings = replace(SCALES["smoke"], train=100, test=50)
    recipe = Recipe((1, 2), (0.5,), rate=0.05, retrain_epochs=1)
    tables = [measured(recipe, 3, settings, torch.device("cpu")) for _ in range(2)]
    assert tables[0].equals(tables[1])
    assert set(tables[0]["seed"]) == {3}
