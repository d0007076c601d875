"""The longer scales of the study, on tiny shapes, and what the study computes."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from neuropil.atlas import run_study
from neuropil.data import locate
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.structure.graph.tracing import trace_units
from neuropil.studies.structure import _curvature_courses as study
from neuropil.studies.structure._curvature_courses import Course
from neuropil.studies.structure._curvature_cuts import ARMS, COMPENSATED, MAGNITUDE, RANDOM, hidden_groups, row_norms

TINY = {"samples": 60, "test_samples": 40, "hidden": (8, 6), "epochs": 1, "batch_size": 20, "seeds": 2, "look": 60}


def settings(task: str, **changes):
    tiny = TINY | changes
    return {
        "ranking": Course(task, cuts=(), **tiny),
        "deletions": 3,
        "pruning": Course(task, cuts=((6, 4), (3, 2)), between=1, **tiny),
        "larger": Course(task, cuts=((4, 3),), between=1, **tiny),
        "flatness": Course(task, cuts=(), **tiny),
        "loop": Course(task, cuts=(), **tiny | {"epochs": 3}),
        "ends": 1,
        "epsilon": 1.0,
    }


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("kfac-pruning", scale="default", settings=settings("digits"), output=tmp_path)
    assert result.status == "complete", result.error
    texts = [claim.text for claim in result.claims]
    assert len(texts) == 3 + 4 + 3 + 1 + 2 + 2
    assert all(claim.threshold for claim in result.claims)
    assert {"deletions.svg", "pruning.svg"} <= set(result.figures)
    rows = result.tables["pruning"]["rows"]
    assert {row[0] for row in rows} == set(ARMS)
    sizes = {row[3] for row in rows}
    assert sizes == {64 * 3 + 3 + 3 * 2 + 2 + 2 * 10 + 10}  # every arm is as small as every other


@pytest.mark.skipif(locate("fashion-mnist") is None, reason="fashion-mnist is not on this machine")
def test_a_tiny_version_of_the_paper_scale_cuts_convolutions(tmp_path):
    changes = settings("fashion-mnist", convolution=True, seeds=1, samples=40, look=10, hidden=(4, 3))
    changes["pruning"] = replace(changes["pruning"], cuts=((2, 2),))
    changes |= {"flatness": Course(seeds=0), "larger": Course(seeds=0), "loop": Course(seeds=0)}
    result = run_study("kfac-pruning", scale="paper", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 10


def test_data_that_are_not_at_hand_leave_claims_undecided(tmp_path, monkeypatch):
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "empty"))
    nothing = Course(seeds=0)
    changes = settings("digits") | {"pruning": nothing, "flatness": nothing, "loop": nothing}
    changes["larger"] = Course("mnist", seeds=1)
    result = run_study("kfac-pruning", scale="default", settings=changes, output=tmp_path)
    assert result.status == "complete", result.error
    (claim,) = [claim for claim in result.claims if "one deep cut" in claim.text]
    assert claim.holds is None
    assert "neuropil data fetch mnist" in claim.note


def cut_by(arm: str, net: nn.Module, x: torch.Tensor, width: int) -> torch.Tensor:
    graph = trace_units(net, x[:2])
    batches = [(x, torch.zeros(len(x), dtype=torch.long))]
    return ARMS[arm](net, graph, {"0": width}, batches, torch.Generator().manual_seed(0))["0"]


def test_arms_keep_as_many_units_and_choose_as_they_say():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(30, 4, generator=generator)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        net[0].weight[2], net[0].bias[2] = 1e-3, 1e-3
        net[0].weight[4], net[0].bias[4] = net[0].weight[1], net[0].bias[1]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for arm in ARMS:
        assert int(cut_by(arm, net, x, 4).sum()) == 4
        changed = not torch.equal(net.state_dict()["0.weight"], before["0.weight"])
        assert changed == (arm == COMPENSATED)
        net.load_state_dict(before)
    assert not cut_by(MAGNITUDE, net, x, 5)[2]
    assert torch.equal(cut_by(RANDOM, net, x, 3), cut_by(RANDOM, net, x, 3))
    factors = KroneckerFactors(net)
    (group,) = hidden_groups(trace_units(net, x[:2]), factors)
    expected = torch.cat([net[0].weight, net[0].bias[:, None]], 1).double().norm(dim=1)
    assert torch.allclose(row_norms(net, group), expected)


def test_rank_correlations_are_one_for_the_same_order_and_minus_one_for_the_reverse():
    import pandas as pd

    true = [0.1, 0.4, 0.2, 0.9]
    columns = {score: [value**3 for value in true] for score in study.SCORES}
    columns["magnitude"] = [-value for value in true]
    table = pd.DataFrame({"layer": 1, "seed": 0, "unit": range(4), "true": true, **columns})
    found = study.rank_correlations(table).set_index("score")["correlation"]
    assert found[study.WITH] == pytest.approx(1)
    assert found["magnitude"] == pytest.approx(-1)


def test_true_rises_are_those_of_silenced_units():
    course = Course("digits", cuts=(), **TINY)
    table = study.deletions(course, 8, 0)
    assert len(table) == 8 + 6
    net, _, data = study.trained(course, 0)
    batches = study.looked_at(data, course)
    before = study.mean_loss(net, batches)
    unit = int(table["unit"][0])
    with torch.no_grad():
        net[0].weight[unit], net[0].bias[unit] = 0.0, 0.0
    assert study.mean_loss(net, batches) - before == pytest.approx(table["true"][0], abs=1e-6)
