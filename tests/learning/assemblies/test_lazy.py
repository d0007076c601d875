"""Lazy simulation against the exact graph: the same distributions, where the published shortcut gives others."""

import numpy as np
import pytest
import torch
from scipy.stats import binom, ks_2samp

from neuropil.learning.assemblies import Brain, overlap, project, recall, simulate
from neuropil.learning.assemblies.kernels import random_subsets
from neuropil.learning.assemblies.lazy import KnownGraph, Tail
from neuropil.learning.plasticity import BCM, STDP, HebbMultiplicative, Oja

SEEDS = 40


def brain(storage, seed, rule=None, *, n=500, k=25, p=0.1, **options):
    made = Brain(p, torch.Generator().manual_seed(seed), storage=storage)
    made.add_stimulus("x", k)
    made.add_area("A", n, k, rule, **options)
    return made


def statistics(storage, seed, rule):
    """What a projection shows of its graph, and the inputs by which new winners came in."""
    made = brain(storage, seed, rule, initial_weight=0.5)
    rows, seen, counts = [], set(), {}
    for step in range(8):
        before = made.area("A").winners
        fired = made.step({"A": ["x", "A"] if step else ["x"]})["A"]
        new = torch.tensor(sorted(set(fired.tolist()) - seen), dtype=torch.int64)
        seen |= set(fired.tolist())
        rows.append(len(new))
        if step == 1:
            # The graph does not change, so how a winner came in can be read from it afterwards.
            sent = {"x": torch.arange(25), "A": before}
            found = {src: made.connect(src, "A").graph.pairs(ids.numpy(), new.numpy())[1] for src, ids in sent.items()}
            counts = {src: np.bincount(ids, minlength=int(new.max()) + 1)[new] for src, ids in found.items()}
    full = made.area("A").winners
    recalled = overlap(recall(made, "A", full[::2], 1)[-1], full)
    inputs = counts["x"] + counts["A"]
    return [rows[1], rows[3], len(seen), recalled, counts["x"].mean(), counts["A"].mean(), inputs.min(), inputs.max()]


@pytest.mark.parametrize("rule", [HebbMultiplicative(0.1), Oja(0.1)], ids=str)
def test_lazy_statistics_are_those_of_the_exact_graph(rule):
    exact = np.array([statistics("sparse", seed, rule) for seed in range(SEEDS)])
    lazy = np.array([statistics("lazy", seed, rule) for seed in range(SEEDS)])
    forgetful = np.array([statistics("forgetful", seed, rule) for seed in range(SEEDS // 2)])

    def distances(other):
        error = np.sqrt(exact.var(0, ddof=1) / len(exact) + other.var(0, ddof=1) / len(other))
        return np.abs(exact.mean(0) - other.mean(0)) / error

    assert (distances(lazy) < 3.5).all(), distances(lazy)
    assert min(ks_2samp(exact[:, i], lazy[:, i]).pvalue for i in range(exact.shape[1])) > 2e-3
    # The test has the power to tell: drawing every tail afresh makes too many neurons win, by too much of the stimulus.
    assert distances(forgetful)[2] > 5
    assert forgetful[:, 4].mean() > exact[:, 4].mean()


def test_the_first_tail_is_that_of_the_whole_population():
    tail, everyone = [], []
    rng = np.random.default_rng(0)
    for _ in range(300):
        graph = KnownGraph(40, 0.2, rng)
        graph.draw(np.arange(40))
        inputs = Tail(500, 20, 1.0, rng).recruit({"x": graph}, {"x": np.arange(40)}, np.empty(0))
        assert np.array_equal(graph.count(np.arange(40)), inputs)
        tail.append(np.sort(inputs)[-20:])
        everyone.append(np.sort(rng.binomial(40, 0.2, 500))[-20:])
    for best in (0, 10, 19):
        assert ks_2samp([row[best] for row in tail], [row[best] for row in everyone]).pvalue > 0.01


def test_known_neurons_are_all_those_of_a_tail():
    """No neuron becomes known at a level that an earlier step had emptied, however often the same sources fire."""
    rng = np.random.default_rng(1)
    graph = KnownGraph(40, 0.2, rng)
    sources = np.arange(40)
    graph.draw(sources)
    tail = Tail(500, 20, 1.0, rng)
    first = tail.recruit({"x": graph}, {"x": sources}, np.empty(0))
    again = tail.recruit({"x": graph}, {"x": sources}, first)
    assert len(again) == 0
    half = {"x": sources[:20]}
    lower = tail.recruit({"x": graph}, half, graph.count(sources[:20]).astype(float))
    assert len(lower) > 0
    assert graph.count(sources)[len(first) :].max() < first.min()


def test_known_synapses_are_drawn_at_the_right_probability():
    rng = np.random.default_rng(2)
    graph = KnownGraph(50, 0.3, rng)
    graph.draw(np.arange(10))
    graph.add_columns(rng.random((400, 10)) < 0.3)
    graph.add_rows(80)
    fresh = np.arange(45, 75)
    counts = graph.count(fresh)
    assert abs(counts.mean() - 9) < 0.5
    assert abs(counts.var() - binom.var(30, 0.3)) < 1.5
    assert np.array_equal(graph.count(fresh), counts)
    sources, targets = graph.pairs(fresh, np.arange(400))
    assert np.array_equal(np.bincount(targets, minlength=400), counts)
    assert set(sources) <= set(fresh)


def test_subsets_are_uniform():
    subsets = random_subsets(np.uint64(3), 20_000, 7, 3)
    assert (subsets.sum(1) == 3).all()
    assert np.abs(subsets.mean(0) - 3 / 7).max() < 0.015
    together = (subsets[:, :, None] & subsets[:, None, :]).mean(0)
    assert np.abs(together[~np.eye(7, dtype=bool)] - 1 / 7).max() < 0.015
    assert random_subsets(np.uint64(3), 2, 4, 0).sum() == 0
    assert random_subsets(np.uint64(3), 2, 4, 4).all()


@pytest.mark.parametrize("rule", [HebbMultiplicative(0.1), Oja(0.1), BCM(0.1), STDP(0.2, 0.05)], ids=str)
def test_lazy_areas_drive_each_other(rule):
    made = brain("lazy", 0, rule, initial_weight=0.3)
    made.add_stimulus("y", 40)
    made.add_area("B", 5000, 50, rule, initial_weight=0.3)
    first = project(made, "x", "A", 15).winners[-1]
    traces = simulate(made, {"A": ["x", "A", "B"], "B": ["A", "B", "y"]}, 8)
    assert all(len(set(fired)) == 50 for fired in traces["B"].winners.tolist())
    for src, dst in (("x", "A"), ("B", "A"), ("A", "B"), ("B", "B")):
        weights = made.weights(src, dst)
        assert weights.shape == (made.sources[src].size, made.area(dst).size)
        assert torch.isfinite(weights).all()
    assert made.area("B").size < 5000
    assert overlap(project(made, "x", "A", 3, plastic=False).winners[-1], first) > 0.2


def test_an_area_of_a_hundred_million_neurons_is_as_quick_as_a_small_one():
    made = brain("lazy", 0, n=100_000_000, k=100, p=0.01)
    trace = project(made, "x", "A", 5)
    assert trace.winners.shape == (5, 100)
    assert made.stored_bytes < 5e6 < made.dense_bytes


def test_the_seed_is_the_simulation():
    first, again, other = (project(brain("lazy", seed), "x", "A", 8).winners for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_coarse_inputs_tie_without_end():
    """Few synapses: a level holds more neurons than can win, all of them become known, and the cap still holds."""
    made = brain("lazy", 0, n=400, k=5, p=0.02)
    trace = project(made, "x", "A", 10)
    assert trace.winners.shape == (10, 5)
    assert 5 < made.area("A").size <= 400
    full = brain("lazy", 0, n=100, k=5, p=1.0)
    project(full, "x", "A", 3)
    assert full.area("A").size == 100


def test_what_lazy_storage_cannot_do_is_named():
    made = brain("lazy", 0)
    with pytest.raises(ValueError, match=r'k <= n / 10, got k 30 and n 200: use "sparse"'):
        made.add_area("B", 200, 30)
    with pytest.raises(ValueError, match="normalise_every"):
        made.add_area("B", 1000, 30, normalise_every=2)
    made.connect("x", "A")
    with pytest.raises(ValueError, match=r"at one p, got 0\.5"):
        made.connect("A", "A", p=0.5)
