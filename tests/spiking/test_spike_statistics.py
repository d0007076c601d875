import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuropil.spiking.statistics import (
    count_correlations,
    fano_factor,
    isi,
    isi_cv,
    local_variation,
    rate_spectrum,
    spike_counts,
    synchrony_index,
)


def renewal(shape, n, spikes, seed=0):
    """Gamma intervals: CV 1/sqrt(shape), LV 3/(2 shape + 1)."""
    intervals = np.random.default_rng(seed).gamma(shape, 1 / shape, (n, spikes))
    return intervals.cumsum(axis=1).ravel(), np.repeat(np.arange(n), spikes)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 4)), max_size=40), st.randoms(use_true_random=False))
def test_neurons_are_treated_one_by_one_in_any_order(spikes, random):
    trains = [np.sort([t for t, i in spikes if i == j]).astype(np.int64) for j in range(5)]
    random.shuffle(spikes)
    times, neurons = (np.array([s[k] for s in spikes], np.int64) for k in (0, 1))
    found = isi(times, neurons)
    for j, train in enumerate(trains):
        np.testing.assert_array_equal(found.lengths[found.neurons == j], np.diff(train))
    cv = isi_cv(times, neurons, 5)
    lv = local_variation(times, neurons, 5)
    for j, train in enumerate(trains):
        gaps = np.diff(train)
        if len(train) < 3:
            assert np.isnan(cv[j]) and np.isnan(lv[j])
            continue
        if gaps.sum() > 0:
            assert cv[j] == pytest.approx(gaps.std() / gaps.mean())
        terms = [((a - b) / (a + b)) ** 2 if a + b else 0.0 for a, b in itertools.pairwise(gaps)]
        assert lv[j] == pytest.approx(3 * np.mean(terms))


@pytest.mark.parametrize("shape", [1.0, 4.0, 25.0])
def test_renewal_processes_have_the_known_irregularity(shape):
    times, neurons = renewal(shape, 20, 20_000)
    np.testing.assert_allclose(isi_cv(times, neurons, 20), shape**-0.5, rtol=0.05)
    np.testing.assert_allclose(local_variation(times, neurons, 20), 3 / (2 * shape + 1), rtol=0.05)


def test_local_variation_is_deaf_to_a_slow_change_of_rate():
    times, neurons = renewal(4.0, 1, 20_000)
    warped = np.exp(times / times.max() * 3)
    assert isi_cv(warped, neurons, 1)[0] > 0.9
    assert local_variation(warped, neurons, 1)[0] == pytest.approx(1 / 3, rel=0.05)


def test_one_train_needs_no_indices_and_few_spikes_have_no_cv():
    assert isi(np.array([3.0, 1.0, 7.0])).lengths.tolist() == [2.0, 4.0]
    times, neurons = np.array([0, 1, 2, 3, 0, 2]), np.array([0, 0, 0, 0, 2, 2])
    cv = isi_cv(times, neurons, 3, min_spikes=4)
    assert cv[0] == 0 and np.isnan(cv[1:]).all()


def test_counts_fall_into_half_open_windows():
    times, neurons = np.array([9, 10, 14, 15, 19, 20, 24]), np.array([0, 0, 1, 1, 0, 0, 0])
    counts = spike_counts(times, neurons, 2, start=10, stop=24, window=5)
    assert counts.tolist() == [[1, 1], [1, 1]]
    with pytest.raises(ValueError, match="no whole window of 20 between 10 and 24"):
        spike_counts(times, neurons, 2, start=10, stop=24, window=20)


def test_fano_factor_is_one_for_poisson_and_less_for_regular_neurons():
    counts = np.random.default_rng(0).poisson([[5.0, 20.0, 0.0]], (20_000, 3))
    fano = fano_factor(counts)
    np.testing.assert_allclose(fano[:2], 1, rtol=0.03)
    assert np.isnan(fano[2])
    times, neurons = renewal(4.0, 5, 40_000)  # a renewal process's Fano factor tends to CV^2
    np.testing.assert_allclose(
        fano_factor(spike_counts(times, neurons, 5, start=0, stop=39_000, window=50)), 0.25, atol=0.04
    )


def test_synchrony_runs_from_one_over_n_to_one():
    rng = np.random.default_rng(0)
    assert synchrony_index(rng.poisson(3.0, (50_000, 20))) == pytest.approx(1 / 20, rel=0.05)
    common = rng.poisson(3.0, (500, 1))
    assert synchrony_index(np.repeat(common, 7, axis=1)) == pytest.approx(1)
    # a shared part of variance c among independent ones: c + (1 - c)/n
    mixed = rng.poisson(1.0, (50_000, 1)) + rng.poisson(3.0, (50_000, 20))
    assert synchrony_index(mixed) == pytest.approx(0.25 + 0.75 / 20, rel=0.05)
    assert np.isnan(synchrony_index(np.ones((5, 3))))


def test_spectrum_of_poisson_neurons_is_flat_and_a_rhythm_stands_out():
    rng, n, r, dt = np.random.default_rng(0), 100, 20.0, 1.0
    rate = rng.poisson(n * r * dt / 1000, 200_000) * 1000.0 / (n * dt)
    spectrum = rate_spectrum(rate, dt, segment_ms=500)
    assert spectrum.frequencies[1] == pytest.approx(2.0) and spectrum.frequencies[-1] == pytest.approx(500.0)
    np.testing.assert_allclose(spectrum.power[5:-5], 2 * r / n, rtol=0.2)
    assert np.trapezoid(spectrum.power, spectrum.frequencies) == pytest.approx(rate.var(), rel=0.02)
    beating = rate + 10 * np.sin(2 * np.pi * 40 * np.arange(len(rate)) * dt / 1000)
    found = rate_spectrum(beating, dt, segment_ms=500)
    assert found.frequencies[found.power.argmax()] == pytest.approx(40)


def test_correlations_of_counts_with_a_shared_part(generator):
    rng = np.random.default_rng(0)
    counts = rng.poisson(1.0, (20_000, 1)) + rng.poisson(3.0, (20_000, 30))
    counts = np.concatenate([counts, np.full((20_000, 2), 4)], axis=1)  # two that never change
    found = count_correlations(counts, pairs=700, generator=generator)
    assert len(found) == 700
    np.testing.assert_allclose(found, 0.25, atol=0.05)
    two = rng.normal(size=(50, 2))
    np.testing.assert_allclose(count_correlations(two, pairs=3), np.corrcoef(*two.T).min())
    again = (count_correlations(counts, pairs=9, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    a, b, c = again
    assert (a == b).all() and (a != c).any()


def test_bad_arguments_are_named():
    times, neurons = np.array([1.0, 2.0]), np.array([0, 3])
    for call, words in (
        (lambda: isi_cv(times, neurons, 3), r"neurons must lie in 0..2, got 0 to 3"),
        (lambda: isi_cv(times, neurons, 4, min_spikes=2), "min_spikes must be at least 3"),
        (lambda: isi(np.array([np.inf])), "times must be finite"),
        (lambda: fano_factor(np.ones((1, 4))), "two windows"),
        (lambda: synchrony_index(np.ones((5, 0))), "two windows and a neuron"),
        (lambda: spike_counts(times, neurons, 4, start=0, stop=9, window=0), "window must be finite and positive"),
        (lambda: count_correlations(np.ones((5, 3))), "two neurons whose counts vary, got 0"),
        (lambda: count_correlations(np.eye(3), pairs=0), "pairs must be at least 1"),
        (lambda: rate_spectrum(np.ones(10), 1.0, segment_ms=20), "A segment must have 2 to 10 bins"),
        (lambda: rate_spectrum(np.array([1.0, np.nan] * 9), 1.0), "rate must be finite"),
        (lambda: rate_spectrum(np.ones(10), 0.0), "bin_ms must be finite and positive"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
