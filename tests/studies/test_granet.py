"""The longer scales of the study, on tiny shapes, and what its arms have in common."""

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.learning.networks import mlp
from neuropil.structure.optimizers import held_by
from neuropil.studies.structure._sparse_training import (
    DENSE,
    GMP,
    GRANET,
    RIGL,
    SET,
    STATIC,
    accuracy,
    batches,
    sgd,
    sparsifier,
    task,
)
from neuropil.studies.structure.granet import SCALES, plasticity_of, trained, tuned

TINY = {
    "data": "digits",
    "train": 120,
    "test": 60,
    "hidden": (12,),
    "batch_size": 20,
    "every": 2,
    "densities": (0.3, 0.2),
    "fractions": (0.1, 0.5),
    "tuning_seeds": 1,
    "seeds": 2,
    "plasticity_hidden": (12,),
    "plasticity_densities": (0.3, 0.2),
    "plasticity_steps": 12,
    "plasticity_moments": 3,
    "recovery_steps": 3,
    "plasticity_seeds": 2,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("granet", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 3 + 2
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["accuracy.svg", "plasticity.svg"]
    assert {row[0] for row in result.tables["tuning"]["rows"]} == {GRANET, RIGL, SET}
    for row in result.tables["accuracy"]["rows"]:
        named = dict(zip(result.tables["accuracy"]["columns"], row, strict=True))
        assert named["reached"] == pytest.approx(named["density"], abs=0.001)


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    tiny = {**TINY, "epochs": 1, "width": 2, "seeds": 1, "plasticity_data": "digits", "plasticity_seeds": 1}
    tiny |= {"fractions": (0.5,), "batch_size": 40}
    result = run_study("granet", scale="paper", settings=tiny, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 3 + 3 + 2


def made(arm, seed=3, density=0.2):
    net = mlp(20, 16, 4, generator=torch.Generator().manual_seed(seed))
    optimizer = sgd(net.parameters(), 0.1, 5e-4)
    assert held_by(optimizer, net.get_parameter("0.weight"))
    return sparsifier(arm, net, optimizer, density, initial=0.5, fraction=0.3, steps=20, every=2, seed=seed)


def test_arms_of_one_start_share_its_mask():
    assert made(DENSE) is None
    assert made(GRANET).masks == made(GMP).masks
    assert made(RIGL).masks == made(SET).masks == made(STATIC).masks
    assert made(GRANET).density() == pytest.approx(0.5, abs=0.002)
    assert made(STATIC).density() == pytest.approx(0.2, abs=0.002)
    assert made(STATIC, seed=4).masks != made(STATIC).masks


def test_batches_are_those_of_the_seed_and_each_epoch_shows_every_sample():
    data = task("digits", 100, 50, False, torch.device("cpu"))
    first, again, other = (list(batches(data, 25, 8, seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    rows = torch.cat([x for x, _ in first[:4]])
    assert rows.unique(dim=0).shape == data.x_train.unique(dim=0).shape
    assert not torch.equal(rows, torch.cat([x for x, _ in first[4:]]))


def test_accuracy_leaves_the_net_training():
    data = task("digits", 100, 50, False, torch.device("cpu"))
    net = mlp(64, 10, generator=torch.Generator().manual_seed(0))
    expected = 100 * (net(data.x_test).argmax(1) == data.y_test).float().mean().item()
    assert accuracy(net, data) == pytest.approx(expected)
    assert net.training


def test_a_training_is_a_function_of_its_seed():
    from dataclasses import replace

    settings = replace(SCALES["default"], **TINY)
    runs = [trained(GRANET, 0.2, 0.5, seed, settings, torch.device("cpu")) for seed in (5, 5, 6)]
    assert runs[0] == runs[1]
    assert runs[0]["reached"] == pytest.approx(0.2, abs=0.001)
    table = plasticity_of(5, settings, torch.device("cpu"))
    assert table["step"].unique().tolist() == [4, 8, 12]
    assert table["rate"].unique().tolist() == pytest.approx([0.1, 0.01, 0.001])
    assert tuned(replace(settings, fractions=(0.5,)), None) == {GRANET: 0.5, RIGL: 0.5, SET: 0.5}
