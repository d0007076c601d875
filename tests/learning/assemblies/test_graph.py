import numpy as np
import pytest
from scipy.stats import binom, kstest

from neuropil.learning.assemblies import RandomGraph


def test_every_pair_is_a_coin_of_its_own():
    graph = RandomGraph(5, 400, 600, 0.05).matrix()
    pairs = graph.size
    assert abs(graph.sum() - 0.05 * pairs) < 4 * np.sqrt(0.05 * 0.95 * pairs)
    # Degrees spread like binomials both ways, and neighbours in a row or a column know nothing of each other.
    for degrees, size in ((graph.sum(0), 400), (graph.sum(1), 600)):
        jitter = np.random.default_rng(0).random(degrees.size)
        uniform = binom.cdf(degrees - 1, size, 0.05) + jitter * binom.pmf(degrees, size, 0.05)
        assert kstest(uniform, "uniform").pvalue > 1e-3
    for a, b in ((graph[:, 1:], graph[:, :-1]), (graph[1:], graph[:-1])):
        assert abs((a & b).mean() - 0.05**2) < 5 * np.sqrt(0.05**2 / a.size)


def test_parts_agree_with_the_whole():
    graph = RandomGraph(7, 30, 50, 0.2)
    whole, rng = graph.matrix(), np.random.default_rng(0)
    for _ in range(20):  # in a row: only what changed is counted again
        active = rng.permutation(30)[: rng.integers(31)]
        assert np.array_equal(graph.count(active), whole[active].sum(0))
        rows, columns = rng.permutation(30)[:9], rng.permutation(50)[:11]
        sources, targets = graph.pairs(rows, columns)
        found = np.zeros_like(whole)
        found[sources, targets] = True
        wanted = np.zeros_like(whole)
        wanted[np.ix_(rows, columns)] = whole[np.ix_(rows, columns)]
        assert np.array_equal(found, wanted)
        assert len(sources) == wanted.sum()
    assert np.array_equal(graph.in_degrees(), whole.sum(0))


def test_a_count_is_not_changed_by_the_next_one():
    graph = RandomGraph(1, 10, 20, 0.5)
    first = graph.count(np.arange(5))
    copy = first.copy()
    graph.count(np.arange(6))
    assert np.array_equal(first, copy)


def test_the_seed_is_the_graph():
    same, again, other = (RandomGraph(seed, 20, 20, 0.3).matrix() for seed in (3, 3, 4))
    assert np.array_equal(same, again)
    assert not np.array_equal(same, other)


@pytest.mark.parametrize("p", [1.0, 1e-12, 0.999])
def test_dense_and_empty_graphs(p):
    graph = RandomGraph(2, 40, 40, p).matrix()
    assert abs(graph.mean() - p) < 0.01
    if p == 1.0:
        assert graph.all()
