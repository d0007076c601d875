"""The longer scales of the study, on tiny shapes, and what it computes."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.atlas import run_study
from neuropil.data import load
from neuropil.structure.graph import trace_units
from neuropil.structure.weightspace.matching import match_weights
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.studies.structure._rebasin_nets import Residual, _varied, mean_loss, network, train
from neuropil.studies.structure.git_rebasin import SCALES, compared, identities, ratios, samples

TINY = {
    "data": "digits",
    "widths": (8, 16),
    "limits": {16: 0.25},
    "activation_limits": {16: 0.25},
    "straight": 16,
    "watched": 16,
    "pairs": 2,
    "samples": 300,
    "measured": 200,
    "points": 3,
    "epochs": 2,
    "batch_size": 50,
    "steps": 5,
    "batches": 100,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("git-rebasin", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 4 + 2 + 2 + 1 + 1 + 1
    assert all(claim.threshold for claim in result.claims)
    assert all(claim.holds for claim in result.claims[:4])
    assert result.figures == ["barriers.svg"]
    assert set(result.tables) == {"barriers", "training"}


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    tiny = {"data": "digits", "depth": 1, "widths": (1,), "limits": {1: 0.1}, "straight": 1, "watched": 1, "pairs": 1}
    tiny |= {"samples": 60, "measured": 40, "points": 3, "epochs": 2, "batch_size": 30, "steps": 2, "batches": 20}
    result = run_study("git-rebasin", scale="paper", settings=tiny, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 4 + 2 + 1 + 1 + 1
    assert all(claim.holds for claim in result.claims[:4])


def test_the_papers_net_is_a_resnet_20_of_the_papers_widths():
    settings = SCALES["paper"]
    net = network(settings.kind, torch.Size((3, 32, 32)), 10, 1, settings.depth, torch.Generator().manual_seed(0))
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert sum(m.kernel_size == (3, 3) for m in convolutions) + 1 == 20  # and the linear readout
    assert {m.out_channels for m in convolutions} == {16, 32, 64}
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert settings.epochs == 250
    assert settings.widths[-1] == 32


def test_streams_of_a_residual_net_share_one_order():
    """A group a stage of the stream, and one inside each block; copies in another order are found again."""
    net = Residual(1, 4, 4, 2, torch.Generator().manual_seed(0)).double()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graph = trace_units(net, x)
    free = [group for group in graph if group.permutable]
    assert sorted(group.size for group in free) == [4] * 3 + [8] * 3 + [16] * 3
    order = Permutation.random(graph, torch.Generator().manual_seed(2))
    b = order.apply(net)
    assert torch.allclose(b(x), net(x), atol=1e-12)
    assert match_weights(net, b, graph) == order.inverse()


def test_a_pair_is_trained_apart_and_measured_on_training_images():
    settings = replace(SCALES["default"], **{**TINY, "epochs": 1})
    found = compared(settings, 16, 3, torch.device("cpu"))
    again = compared(settings, 16, 3, torch.device("cpu"))
    assert found == again
    arms = {row["arm"] for row in found["barriers"] if row["epoch"] == 1}
    assert arms == {"naive", "random", "activations", "weights", "weights, from the identity", "straight-through"}
    assert {row["arm"] for row in found["barriers"] if row["epoch"] == 0} == {"naive", "activations", "weights"}
    ends = {(round(row["from"], 4), round(row["to"], 4)) for row in found["barriers"] if row["epoch"] == 1}
    assert len(ends) == 1  # no order changes what the two nets can do
    ((first, second),) = ends
    assert first != second
    assert len(found["lines"]) == 3 * len(arms)
    for row in found["barriers"]:
        if row["epoch"] == 1:
            line = [point["loss"] for point in found["lines"] if point["arm"] == row["arm"]]
            assert row["barrier"] == pytest.approx(max(line) - (line[0] + line[-1]) / 2)


def test_training_learns_and_is_the_same_again():
    data = load("digits").flat()
    x, y = data.x_train[:200], data.y_train[:200]
    course = {"batch_size": 50, "rate": 1e-2, "augment": False}
    losses = []
    for warmup in (0, 0, 2):
        net = network("mlp", x.shape[1:], 10, 16, 2, torch.Generator().manual_seed(0))
        before = mean_loss(net, x, y)
        done = list(train(net, x, y, epochs=6, warmup=warmup, generator=torch.Generator().manual_seed(1), **course))
        assert done == [1, 2, 3, 4, 5, 6]
        losses.append(mean_loss(net, x, y))
        assert losses[-1] < before - 0.4
    assert losses[0] == losses[1] != losses[2]
    with torch.no_grad():
        assert mean_loss(net, x, y) == pytest.approx(float(cross_entropy(net(x), y)), rel=1e-5)


def test_images_are_flipped_and_shifted_and_lose_no_middle():
    x = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    y = _varied(x, torch.Generator().manual_seed(1))
    assert y.shape == x.shape
    assert torch.equal(y, _varied(x, torch.Generator().manual_seed(1)))
    assert not torch.equal(y, _varied(x, torch.Generator().manual_seed(2)))
    for image, varied in zip(x, y, strict=True):  # what is shifted by at most 4 keeps its middle, as it was or mirrored
        middle = image[:, 4:12, 4:12]
        windows = [
            w for side in (varied, varied.flip(-1)) for w in side.unfold(1, 8, 1).unfold(2, 8, 1).reshape(-1, 1, 8, 8)
        ]
        assert any(torch.equal(window, middle) for window in windows)


def test_checks_and_ratios():
    settings = replace(SCALES["default"], **TINY)
    x, _, classes = samples(settings, torch.device("cpu"))
    a, b = (network("mlp", x.shape[1:], classes, 8, 3, torch.Generator().manual_seed(k)) for k in range(2))
    graph = trace_units(a, x[:2])
    found = identities(a, b, graph, x[:20], 0)
    assert found["difference, float32"] < 1e-4
    assert 0 < found["difference, float64"] < 1e-10
    assert found["units not found again"] == found["largest fall"] == 0

    rows = [("naive", 8, 0, 2.0), ("naive", 8, 1, 4.0), ("weights", 8, 0, 1.0), ("weights", 8, 1, 1.0)]
    table = pd.DataFrame(rows, columns=["arm", "width", "pair", "barrier"])
    assert ratios(table, "weights").tolist() == [0.5, 0.25]
