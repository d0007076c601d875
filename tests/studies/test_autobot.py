"""The longer scales of the study, on tiny shapes, and what it compares."""

import pytest
import torch

from neuropil.atlas import run_study
from neuropil.structure.graph import trace_units
from neuropil.studies.structure._images import accuracy, pooled_images
from neuropil.studies.structure.autobot import ARMS, SCALES, batches_of, chosen, make_net, train_

TINY = {
    "data": "digits",
    "train": 150,
    "test": 60,
    "pool": 1,
    "widths": (6, 8, 8),
    "epochs": 1,
    "steps": 6,
    "tuning": 1,
    "seeds": 2,
    "timed_batch": 2,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("autobot", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 2 + 1 + 2 * 2 + 1
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["accuracy.svg"]


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    result = run_study("autobot", scale="paper", settings=TINY | {"blocks": 2}, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 2 + 1 + 2 + 1


@pytest.fixture(scope="module")
def trained():
    settings = SCALES["default"].__class__(**TINY)
    data = pooled_images(settings.data, settings.train, settings.test, settings.pool, 0)
    net = train_(make_net(settings, "residual", data, 0), data, 1, settings.rate, settings, 0)
    return settings, data, net, trace_units(net, data.x_train[:1])


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_meets_the_same_budget(trained, arm):
    settings, data, net, graph = trained
    keep = chosen(arm, net, graph, 0.5, batches_of(data, settings, 0), settings, 0)
    largest = max(graph.macs() - graph.macs({g.name: torch.arange(g.size) > 0}) for g in graph.prunable())
    slack = largest * (len(graph.prunable()) if arm == "L1, one ratio" else 1)
    assert abs(graph.macs(keep) - 0.5 * graph.macs()) <= slack
    again = chosen(arm, net, graph, 0.5, batches_of(data, settings, 0), settings, 0)
    assert all(torch.equal(keep[name], again[name]) for name in keep)


def test_accuracy_is_in_percent(trained):
    _, data, net, _ = trained
    with torch.no_grad():
        right = int((net(data.x_test).argmax(1) == data.y_test).sum())
    assert accuracy(net, data) == pytest.approx(100 * right / 60)
