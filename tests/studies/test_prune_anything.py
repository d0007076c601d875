"""The longer scales of the study, on tiny shapes, and what it compares."""

import torch

from neuropil.atlas import run_study
from neuropil.structure.graph import trace_units
from neuropil.studies.structure._images import pooled_images
from neuropil.studies.structure._units_zoo import ResidualNet
from neuropil.studies.structure.prune_anything import REPAIRS, SCALES, cut_every_way, repaired, scored, trained

TINY = {
    "data": "digits",
    "train": 120,
    "test": 60,
    "pool": 1,
    "stem": 4,
    "widths": (4, 6),
    "blocks": 1,
    "epochs": 1,
    "calibration": 40,
    "seeds": 2,
    "families": False,
    "timed_width": 4,
    "timed_side": 8,
    "timed_batch": 2,
}


def test_a_tiny_version_of_the_default_scale_runs_to_its_end(tmp_path):
    result = run_study("prune-anything", scale="default", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 2 + 4 + 1
    assert all(claim.threshold for claim in result.claims)
    assert result.figures == ["accuracy.svg"]


def test_a_tiny_version_of_the_paper_runs_to_its_end(tmp_path):
    result = run_study("prune-anything", scale="paper", settings=TINY, output=tmp_path)
    assert result.status == "complete", result.error
    assert len(result.claims) == 2 + 4 + 1


def tiny():
    settings = SCALES["default"].__class__(**TINY)
    data = pooled_images(settings.data, settings.train, settings.test, settings.pool, 0)
    return settings, data, trained(settings, data, 0)


def test_a_seed_fixes_everything():
    settings, _, _ = tiny()
    assert cut_every_way(settings, 1) == cut_every_way(settings, 1)


def test_the_two_l1_scores_see_different_members():
    _, data, net = tiny()
    graph = trace_units(net, data.x_train[:2])
    batches = [(data.x_train[:40], data.y_train[:40])]
    one = scored("one producer's L1", net, graph, batches, 0)
    whole = scored("grouped L1", net, graph, batches, 0)
    assert set(one) == set(whole)
    first = next(g for g in graph.prunable() if len(g.producing()) > 4)
    weight = net.get_parameter(first.producing()[0].parameter).detach().double().abs().flatten(1).sum(dim=1)
    torch.testing.assert_close(one[first.name], weight / weight.mean())
    assert not torch.allclose(one[first.name], whole[first.name])


def test_repairs_cut_the_same_units_and_the_whole_net_is_left_alone():
    _, data, net = tiny()
    graph = trace_units(net, data.x_train[:2])
    batches = [(data.x_train[:40], data.y_train[:40])]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    scores = scored("grouped L1", net, graph, batches, 0)
    made = {r: repaired(net, graph, scores, 0.5, r, batches, 0) for r in REPAIRS}
    assert len({macs for _, macs in made.values()}) == 1
    assert len({tuple(p.shape for p in small.parameters()) for small, _ in made.values()}) == 1
    weights = {r: next(small.parameters()) for r, (small, _) in made.items()}
    assert all(torch.equal(weights["none"], w) for w in weights.values())  # the first layer reads no units
    heads = [small[-1].weight for small, _ in made.values()]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[2], heads[3])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_papers_net_is_a_resnet_18():
    s = SCALES["paper"]
    net = ResidualNet(3, 10, s.stem, s.widths, s.blocks)
    assert sum(p.numel() for p in net.parameters()) == 11_173_962  # as for CIFAR-10 elsewhere
