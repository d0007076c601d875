"""The longer scales of the study, on tiny shapes; an evolution that is interrupted goes on as if it had not been."""

import json

import pytest

from neuropil.atlas import run_study
from neuropil.studies.learning import meta_plasticity

TINY = {
    "hidden": 3,
    "population": 4,
    "generations": 3,
    "seeds": 2,
    "trials": 14,
    "burn_in": 3,
    "quiet": 2,
    "scored": 4,
    "every": 2,
    "lives": 2,
    "rival_rates": (0.3, 1.0),
    "decoded_lives": 60,
}


@pytest.mark.parametrize("scale", ["default", "paper"])
def test_a_tiny_version_of_every_scale_runs_to_its_end(scale, tmp_path):
    result = run_study("meta-plasticity", scale=scale, settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert sum("evolved nets learn" in text for text in texts) == 4
    assert sum("acquired within a life" in text for text in texts) == 2
    assert sum("delayed match to sample" in text for text in texts) == (scale == "default")
    assert all(claim.threshold for claim in result.claims)
    assert set(result.figures) == {"components.svg", "success.svg", "within-life.svg", "decoding.svg"}
    rates = result.tables["generation-0-rates"]["rows"]
    assert {row[0] for row in rates} == {"train", "withheld"} | ({"shown"} if scale == "default" else set())


def test_withheld_tasks_are_never_trained_and_pairs_are_whole():
    for settings in meta_plasticity.SCALES.values():
        assert not set(settings.train) & {*settings.withheld, *settings.shown}
        for name in (*settings.train, *settings.withheld):
            assert meta_plasticity.complement(name) in {*settings.train, *settings.withheld}
    paper = meta_plasticity.SCALES["paper"]
    assert len(paper.train) == 12
    assert set(paper.train[::2]) == {"and", "01", "10", "watchstim1", "antiwatchstim1", "nor"}


def test_an_interrupted_evolution_goes_on_with_the_same_draws(tmp_path, monkeypatch):
    for part in ("components", "pictures", "decoding"):
        monkeypatch.setattr(meta_plasticity, part, lambda *arguments: None)
    whole = run_study("meta-plasticity", scale="default", settings=TINY | {"seeds": 1}, output=tmp_path / "whole")
    losses, calls = meta_plasticity.generation_losses, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise RuntimeError("out of time")
        return losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(meta_plasticity, "generation_losses", interrupted)
        broken = run_study("meta-plasticity", scale="default", settings=TINY | {"seeds": 1}, output=tmp_path / "parts")
    assert broken.status != "complete"
    (folder,) = {file.parent for file in (tmp_path / "parts").rglob("result.json")}
    resumed = run_study("meta-plasticity", scale="default", settings=TINY | {"seeds": 1}, resume=folder)
    assert resumed.status == "complete", resumed.error
    assert len(whole.claims) == 8
    one, other = ([json.dumps(claim.to_json()) for claim in result.claims] for result in (whole, resumed))
    assert one == other
