import threading

import numba
import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom as binomial
from scipy.stats import chi2, kstest

from neuropil.draws import seed_from
from neuropil.spiking.kernels.connectivity import random_pairs, row_next, row_start
from neuropil.spiking.network.connectivity import SparseConnectivity
from neuropil.spiking.network.rules import (
    AllToAll,
    DistanceDependent,
    Explicit,
    FixedIndegree,
    FixedOutdegree,
    FixedProbability,
    FixedTotal,
    JustInTime,
    OneToOne,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def out_degrees(matrix):
    return np.diff(matrix.indptr)


def in_degrees(matrix):
    return np.bincount(matrix.indices, minlength=matrix.n_post)


def has_self_connections(matrix):
    return bool((matrix.sources() == matrix.indices).any())


def has_duplicates(matrix):
    return bool(((np.diff(matrix.indices) == 0) & (np.diff(matrix.sources()) == 0)).any())


def assert_uniform(counts, mean, spread):
    """Chi-square of counts against one mean, each with `spread` times its variance as a Poisson count has."""
    statistic = np.sum((counts - mean) ** 2 / (mean * spread))
    assert 1e-4 < chi2.sf(statistic, len(counts)) < 1 - 1e-4


RULES = [
    FixedProbability(0.2),
    FixedProbability(1.0),
    FixedIndegree(6),
    FixedIndegree(17),
    FixedIndegree(6, multapses=True),
    FixedOutdegree(6),
    FixedOutdegree(17),
    FixedOutdegree(30, multapses=True),
    FixedTotal(100),
    FixedTotal(300),
    FixedTotal(100, multapses=True),
    OneToOne(),
    AllToAll(),
    DistanceDependent(torch.rand(20, 3, generator=seeded()), 0.9, 0.5),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_what_every_rule_keeps(rule):
    same, again, other = (rule.build(20, 20, seeded(seed), same=True) for seed in (3, 3, 4))
    assert np.array_equal(same.indptr, again.indptr)
    assert np.array_equal(same.indices, again.indices)
    assert (same.indptr.dtype, same.indices.dtype) == (np.int64, np.int32)
    fixed = isinstance(rule, (OneToOne, AllToAll)) or rule == FixedProbability(1.0)
    assert np.array_equal(same.indices, other.indices) == fixed
    assert has_self_connections(same) == isinstance(rule, OneToOne)
    assert has_duplicates(same) == getattr(rule, "multapses", False)
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(rule.build(20, 20, seeded(3), same=True))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result.indices, same.indices) for result in results)
    assert len(results) == 3


@given(st.integers(0, 25), st.integers(0, 25), st.integers(0, 25), st.booleans(), st.booleans(), st.integers(0, 99))
def test_degrees_are_exact(n_pre, n_post, k, same, multapses, seed):
    n_post = n_pre if same else n_post
    for rule, (drawers, drawn), degrees in (
        (FixedIndegree(k, multapses=multapses), (n_post, n_pre), in_degrees),
        (FixedOutdegree(k, multapses=multapses), (n_pre, n_post), out_degrees),
    ):
        possible = max(drawn - same, 0)
        if drawers and k > possible and not (multapses and possible):
            with pytest.raises(ValueError, match=f"k = {k}, but each neuron has only {possible} possible"):
                rule.build(n_pre, n_post, seeded(seed), same=same)
            continue
        matrix = rule.build(n_pre, n_post, seeded(seed), same=same)
        assert np.all(degrees(matrix) == k)
        assert not (same and has_self_connections(matrix))
        assert multapses or not has_duplicates(matrix)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 81), st.booleans(), st.booleans(), st.integers(0, 99))
def test_totals_are_exact(n_pre, n_post, n, same, multapses, seed):
    n_post = n_pre if same else n_post
    pairs = n_pre * n_post - n_pre * same
    rule = FixedTotal(n, multapses=multapses)
    if n > pairs and not (multapses and pairs):
        with pytest.raises(ValueError, match=f"n = {n}, but the populations have only {pairs} pairs"):
            rule.build(n_pre, n_post, seeded(seed), same=same)
        return
    matrix = rule.build(n_pre, n_post, seeded(seed), same=same)
    assert matrix.nnz == n
    assert not (same and has_self_connections(matrix))
    assert multapses or not has_duplicates(matrix)


def test_bernoulli_degrees_are_binomial():
    matrix = FixedProbability(0.05).build(400, 600, seeded(1))
    assert abs(matrix.nnz - 0.05 * 240_000) < 5 * np.sqrt(0.05 * 0.95 * 240_000)
    for degrees, size in ((in_degrees(matrix), 400), (out_degrees(matrix), 600)):
        jitter = np.random.default_rng(0).random(degrees.size)
        uniform = binomial.cdf(degrees - 1, size, 0.05) + jitter * binomial.pmf(degrees, size, 0.05)
        assert kstest(uniform, "uniform").pvalue > 1e-3
    assert_uniform(in_degrees(matrix), 20, 0.95)
    dense = matrix.to_dense().numpy() > 0
    for a, b in ((dense[:, 1:], dense[:, :-1]), (dense[1:], dense[:-1])):
        assert abs((a & b).mean() - 0.05**2) < 5 * np.sqrt(0.05**2 / a.size)


@pytest.mark.parametrize("same", [False, True])
def test_the_free_side_of_a_fixed_degree_is_uniform(same):
    n, k = 500, 40
    for multapses in (False, True):
        options = {"self_connections": False, "multapses": multapses}
        # A neuron is drawn by each other with chance k / n: binomial; with repetition, k times with chance 1 / n.
        chance = 1 / (n - same) if multapses else k / (n - same)
        outs = out_degrees(FixedIndegree(k, **options).build(n, n, seeded(2), same=same))
        ins = in_degrees(FixedOutdegree(k, **options).build(n, n, seeded(2), same=same))
        assert_uniform(outs, k, 1 - chance)
        assert_uniform(ins, k, 1 - chance)
        total = FixedTotal(n * k, **options).build(n, n, seeded(2), same=same)
        assert_uniform(in_degrees(total), k, 1 - 1 / n if multapses else 1 - chance)
        assert_uniform(out_degrees(total), k, 1 - 1 / n if multapses else 1 - chance)


@pytest.mark.parametrize("k", [2, 4])  # drawn directly, and by those that are left out
def test_every_subset_is_as_likely(k):
    matrix = FixedOutdegree(k).build(30_000, 6, seeded(5))
    subsets, counts = np.unique(np.sort(matrix.indices.reshape(-1, k), 1), axis=0, return_counts=True)
    assert len(subsets) == 15
    assert_uniform(counts, 2000, 1.0)
    without_self = FixedIndegree(2).build(4, 4, seeded(5), same=True)
    assert in_degrees(without_self).tolist() == [2] * 4
    several = np.array([FixedTotal(k).build(2, 3, seeded(seed)).to_dense().numpy() for seed in range(1500)])
    _, counts = np.unique(several.reshape(1500, 6), axis=0, return_counts=True)
    assert len(counts) == 15
    assert_uniform(counts, 100, 1.0)


@pytest.mark.parametrize("without_self", [False, True])
def test_later_draws_of_pairs_go_on_where_the_first_ended(without_self):
    whole, rest = np.empty(50, np.int64), np.empty(30, np.int64)
    random_pairs(seed_from(seeded()), 0, 9, 9, without_self, whole)
    random_pairs(seed_from(seeded()), 20, 9, 9, without_self, rest)
    assert np.array_equal(whole[20:], rest)


def test_self_connections_are_made_where_asked():
    assert AllToAll(self_connections=True).build(3, 3, same=True).nnz == 9
    assert AllToAll().build(3, 3, same=True).to_dense().tolist() == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]
    assert AllToAll().build(2, 3).nnz == 6
    for rule in (
        FixedProbability(0.5, self_connections=True),
        FixedIndegree(10, self_connections=True),
        FixedOutdegree(10, self_connections=True),
        FixedTotal(200, self_connections=True),
        DistanceDependent(torch.zeros(20, 1), 0.5, 1.0, self_connections=True),
    ):
        of_one = rule.build(20, 20, seeded(), same=True)
        assert has_self_connections(of_one)
        assert np.array_equal(of_one.indices, rule.build(20, 20, seeded()).indices)


@pytest.mark.parametrize("n_pre, n_post", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_empty_populations_and_single_neurons(n_pre, n_post):
    place = DistanceDependent(torch.zeros(n_pre, 2), 1.0, 1.0, torch.zeros(n_post, 2))
    for rule in (FixedProbability(1.0), FixedProbability(0.0), FixedIndegree(0), FixedOutdegree(0), AllToAll(), place):
        matrix = rule.build(n_pre, n_post, seeded())
        full = not isinstance(rule, (FixedIndegree, FixedOutdegree)) and rule != FixedProbability(0.0)
        assert matrix.nnz == n_pre * n_post * full
    if n_pre == n_post:
        assert AllToAll().build(n_pre, n_post, same=True).nnz == 0
        assert OneToOne().build(n_pre, n_post, same=True).nnz == n_pre
    with pytest.raises(ValueError, match="only 0 possible sources"):
        FixedIndegree(1).build(1, 1, same=True)


@pytest.mark.parametrize("p", [0.0, 1e-12, 0.999, 1.0])
def test_sparse_and_dense_extremes(p):
    matrix = FixedProbability(p).build(50, 70, seeded())
    assert abs(matrix.density - p) < 0.01
    if p in (0.0, 1.0):
        assert matrix.density == p


def test_distance_dependence():
    line = torch.arange(300.0)[:, None]
    matrix = DistanceDependent(line, 0.8, 5.0).build(300, 300, seeded(3), same=True)
    away = np.abs(matrix.sources() - matrix.indices.astype(int))
    for distance in range(1, 15):
        chance, pairs = 0.8 * np.exp(-((distance / 5.0) ** 2)), 2 * (300 - distance)
        assert abs(np.sum(away == distance) - chance * pairs) < 5 * np.sqrt(chance * (1 - chance) * pairs)
    table = torch.tensor([[0.0, 1.0], [0.3, 0.0]])  # [type of source, type of target]
    types = torch.arange(300) % 2
    mixed = DistanceDependent(torch.zeros(300, 2), table, 5.0, types_pre=types).build(300, 300, seeded(3), same=True)
    dense = mixed.to_dense().numpy()
    assert dense[::2, ::2].sum() == dense[1::2, 1::2].sum() == 0
    assert dense[::2, 1::2].all()
    assert abs(dense[1::2, ::2].mean() - 0.3) < 5 * np.sqrt(0.21 / 150**2)
    other = DistanceDependent(line, 1.0, 1e-3, line[5:9]).build(300, 4, seeded())
    assert other.sources().tolist() == [5, 6, 7, 8]
    assert other.indices.tolist() == [0, 1, 2, 3]


def test_explicit_synapses():
    dense = torch.tensor([[0.0, 2.0, -1.0], [3.0, 0.0, 0.0]])
    wanted = SparseConnectivity.from_dense(dense)
    edges = torch.tensor([[1, 0, 0], [0, 2, 1]])
    for given_as in (
        wanted,
        dense,
        dense.numpy(),
        dense != 0,
        scipy.sparse.csr_matrix(dense.numpy()),
        edges,
        edges.numpy(),
    ):
        matrix = Explicit(given_as).build(2, 3)
        assert matrix.indptr.tolist() == [0, 2, 3]
        assert matrix.indices.tolist() == [1, 2, 0]
    assert Explicit(wanted).build(2, 3) is wanted
    for given_as in (wanted, dense):
        with pytest.raises(ValueError, match="join 2 with 3 neurons; the populations have 3 and 3"):
            Explicit(given_as).build(3, 3)
    with pytest.raises(ValueError, match="post must lie within 0 to 1"):
        Explicit(edges).build(2, 2)
    with pytest.raises(ValueError, match="edge index of shape"):
        Explicit(torch.ones(3, 3, dtype=torch.int64)).build(3, 3)
    with pytest.raises(TypeError, match="sparse matrix of scipy, got str"):
        Explicit("all").build(3, 3)


@numba.njit
def read_row(seed, i, scale, n_post, skip):
    """The loop that an engine writes."""
    targets = []
    state, j = row_start(seed, i), np.int64(-1)
    while True:
        state, j = row_next(state, j, scale, n_post, skip)
        if j >= n_post:
            break
        targets.append(j)
    return targets


@pytest.mark.parametrize("p", [0.0, 0.07, 1.0])
@pytest.mark.parametrize("same", [False, True])
def test_rows_just_in_time_are_the_stored_ones(p, same):
    rows = JustInTime(p, seed=11).build(40, 40, same=same)
    matrix = rows.materialise()
    assert matrix.density == pytest.approx(p * (39 / 40 if same else 1), abs=0.02)
    for i in range(40):
        row = matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]
        assert np.array_equal(rows.row(i), row)
        assert read_row(rows.seed, i, rows.scale, 40, i if rows.without_self else -1) == row.tolist()
    assert has_self_connections(matrix) == (p > 0 and not same)


def test_just_in_time_is_fixed_probability_unstored():
    rows = JustInTime(0.1).build(30, 50, seeded(4))
    assert rows.seed == seed_from(seeded(4))
    assert np.array_equal(rows.materialise().indices, FixedProbability(0.1).build(30, 50, seeded(4)).indices)
    huge = JustInTime(1e-8, seed=1).build(10**9, 10**9)  # takes no memory
    assert 0 < len(huge.row(10**9 - 1)) < 100
    with pytest.raises(ValueError, match="i must lie within 0 to 29, got 30"):
        rows.row(30)


def test_rules_that_do_not_fit_are_refused():
    for p in (-0.1, 1.1, float("nan")):
        for rule in (FixedProbability, JustInTime):
            with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
                rule(p)
    for rule in (FixedIndegree, FixedOutdegree):
        with pytest.raises(ValueError, match="k must be at least 0, got -1"):
            rule(-1)
    with pytest.raises(ValueError, match="n must be at least 0"):
        FixedTotal(-1)
    with pytest.raises(ValueError, match="seed must lie within"):
        JustInTime(0.1, seed=-1)
    with pytest.raises(ValueError, match="one size, got 2 and 3"):
        OneToOne().build(2, 3)
    with pytest.raises(ValueError, match="n_pre is 2 and n_post 3"):
        FixedProbability(0.1).build(2, 3, same=True)
    with pytest.raises(ValueError, match="n_pre must be between"):
        FixedProbability(0.1).build(-1, 3)
    for rule in (AllToAll(), FixedIndegree(50_000), FixedOutdegree(50_000), FixedTotal(2_500_000_000)):
        with pytest.raises(ValueError, match="got 2500000000: cut it into several"):
            rule.build(50_000, 50_000)


def test_distances_that_do_not_fit_are_refused():
    line = torch.arange(4.0)[:, None]
    for bad, words in (
        ({"lam": 0.0}, "lam must be positive"),
        ({"lam": float("inf")}, "lam must be positive"),
        ({"C": 1.5}, r"C must lie in \[0, 1\]"),
        ({"C": torch.ones(2, 2)}, "needs types_pre"),
        ({"types_pre": torch.zeros(4, dtype=torch.int64)}, "C is a number"),
        ({"positions_pre": line / 0}, "positions_pre must be finite"),
    ):
        with pytest.raises(ValueError, match=words):
            DistanceDependent(**{"positions_pre": line, "C": 0.5, "lam": 1.0, **bad})
    with pytest.raises(ValueError, match="positions_post are of 4 neurons, but n_post is 5"):
        DistanceDependent(line, 0.5, 1.0).build(4, 5)
    with pytest.raises(ValueError, match="1 axes before and 2 after"):
        DistanceDependent(line, 0.5, 1.0, torch.zeros(3, 2)).build(4, 3)
    types = DistanceDependent(line, torch.ones(2, 2), 1.0, types_pre=torch.tensor([0, 1, 2, 0]))
    with pytest.raises(ValueError, match="types_pre must be 4 integers from 0 to 1"):
        types.build(4, 4)
