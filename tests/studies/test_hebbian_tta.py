"""The longer scales of the study, on tiny shapes."""

import numpy as np
import pytest

from neuropil.atlas import run_study
from neuropil.data import locate
from neuropil.studies.learning.hebbian_tta import CIFAR_C, CIFAR_C_HELD

TINY = {
    "train": 200,
    "held": 40,
    "stream": 60,
    "epochs": 1,
    "batch": 20,
    "seeds": 2,
    "modulator_rates": (1e-3, 1e-2),
    "hebbian_rates": (0.01, 0.1),
}


def cifar_folder(folder):
    """Files as CIFAR-10-C has them, five severities of four images."""
    rng = np.random.default_rng(0)

    def images(count):
        return rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)

    for kind in (*CIFAR_C, *CIFAR_C_HELD):
        np.save(folder / f"{kind}.npy", images(20))
    np.save(folder / "labels.npy", np.tile([0, 1, 2, 1], 5).astype(np.uint8))
    np.save(folder / "train_images.npy", images(30))
    np.save(folder / "train_labels.npy", rng.integers(0, 3, 30).astype(np.uint8))
    return str(folder)


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    if scale == "default" and locate("mnist") is None:
        pytest.skip("no files of mnist: this scale reads them")
    images = "mnist" if locate("mnist") is not None else ""
    cifar = {"depth": 10, "width": 1, "cifar_epochs": 1, "cifar_batch": 2, "cifar_seeds": 2}
    changes = {**TINY, "images": images, **cifar}
    if scale == "paper":
        changes["folder"] = cifar_folder(tmp_path)
    result = run_study("hebbian-tta", scale=scale, settings=changes, output=tmp_path / "runs")
    assert result.status == "complete", result.error
    streams = (["mnist"] if images else []) + (["CIFAR-10-C"] if scale == "paper" else [])
    for name in streams:
        assert sum(f"({name})" in claim.text for claim in result.claims) == 7
        assert f"errors-{name}.svg".lower() in result.figures
        rows = result.tables[f"{name}-seeds".lower()]["rows"]
        assert len(rows) == 9 * 2
        assert all(0 <= row[2] <= 100 for row in rows)


def test_data_that_are_not_at_hand_leave_a_claim_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    result = run_study("hebbian-tta", scale="paper", output=tmp_path)
    assert result.status == "complete", result.error
    lacking = [claim for claim in result.claims if claim.holds is None]
    assert len(lacking) == 2
    assert "neuropil data fetch mnist" in str(lacking[0].note)
    assert "--set folder=FOLDER" in str(lacking[1].note)
