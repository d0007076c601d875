"""The longer scales of the study, on tiny shapes: every part of it runs, and says what it cannot do."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from neuropil.atlas import run_study
from neuropil.structure.search.benchmarks import nb_digits
from neuropil.structure.search.cell_spaces import nasbench201_space
from neuropil.studies.structure._search_arms import Fidelity, by_seed, short_trainings

TINY = {
    "runs": 3,
    "budget": 30,
    "model_runs": 1,
    "model_budget": 12,
    "cells": 6,
    "batch": 8,
    "resamples": 20,
    "shared_seeds": 2,
    "shared_steps": 5,
    "darts_steps": 10,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("architecture-search", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 10
    assert all(claim.threshold for claim in result.claims)
    assert [claim.holds for claim in result.claims[:2]] == [True, True]
    assert result.figures == ["regret.svg", "proxies.svg"]
    assert set(result.tables) == {
        "benchmark",
        "strategies",
        "checklist",
        "proxies",
        "short-trainings",
        "shared-weights",
        "darts",
    }


@pytest.fixture
def nb201(tmp_path):
    """A table with a few cells of NAS-Bench-201, their codes closed under nothing: the strategies draw from all."""
    space, rows = nasbench201_space(), []
    rng = np.random.default_rng(0)
    for code in space.all():
        losses = rng.uniform(0.5, 2.0, size=4)
        lengths = dict(zip(("22", "67", "200"), losses[:3], strict=True))
        row = space.describe(code) | {"seed": 777}
        rows.append(row | {f"validation loss {n}": loss for n, loss in lengths.items()} | {"test loss": losses[3]})
    pd.DataFrame(rows).to_csv(tmp_path / "nb201.csv", index=False)
    return str(tmp_path / "nb201.csv")


def test_the_paper_scale_takes_its_first_steps(tmp_path, nb201):
    generator = torch.Generator().manual_seed(0)
    batch = {"x": torch.randn(4, 3, 8, 8, generator=generator), "y": torch.arange(4)}
    save_file(batch, tmp_path / "batch.safetensors")
    changes = TINY | {"table": nb201, "images": str(tmp_path / "batch.safetensors"), "shared_seeds": 0, "cells": 3}
    changes |= {"population": (8, 3), "batch": 4}
    result = run_study("architecture-search", scale="paper", settings=changes, output=tmp_path / "run")
    assert result.status == "complete", result.error
    assert len(result.claims) == 7
    assert "proxies" in result.tables


def test_what_is_not_at_hand_is_named(tmp_path, nb201):
    result = run_study("architecture-search", scale="paper", settings={"table": "none.csv"}, output=tmp_path / "a")
    assert result.status == "complete", result.error
    assert result.claims[-1].holds is None
    assert "none.csv is not at hand" in str(result.claims[-1].note)
    changes = TINY | {"table": nb201, "images": "none.safetensors", "shared_seeds": 0, "population": (8, 3)}
    result = run_study("architecture-search", scale="paper", settings=changes, output=tmp_path / "b")
    assert result.status == "complete", result.error
    (claim,) = [claim for claim in result.claims if "proxy" in claim.text]
    assert claim.holds is None
    assert result.figures == ["regret.svg"]


def test_short_trainings_are_charged_and_judged_by_the_whole_one():
    benchmark = nb_digits()
    fidelity = Fidelity(benchmark)
    cell = benchmark.architectures[100]
    assert [fidelity(cell, ninths) for ninths in (1, 3, 9)] == [benchmark.value(cell, n) for n in (12, 36, 108)]
    table = short_trainings(benchmark, range(4))
    assert (table["regret"] >= 0).all()
    costs = table.pivot_table(index="seed", columns="method", values="cost")
    # One round: 9 + 9 + 9, 15 + 9 and 27 ninths, less what two brackets share.
    assert costs["Hyperband"].between(7, 78 / 9).all()
    assert (costs["successive halving"] == 9).all()
    assert (3 * costs["Hyperband"] - costs["random, three times the epochs"]).between(0, 1).all()


def test_runs_are_told_apart():
    rows = itertools.product("ab", (0, 1), ((0.5, (1,)), (0.7, (0,))))
    columns = ["strategy", "seed", "value", "architecture"]
    traces = pd.DataFrame([(name, seed, *both) for name, seed, both in rows], columns=columns)
    assert by_seed(traces, "a") == [[(0.5, (1,)), (0.7, (0,))]] * 2
