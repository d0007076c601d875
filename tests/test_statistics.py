import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from neuropil.statistics import above, below, bootstrap_interval, compare_paired, paired, sign_test, t_interval, within

SAMPLES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12)


@given(SAMPLES)
def test_the_t_interval_is_scipys(values):
    ours, theirs = t_interval(values), stats.ttest_1samp(values, 0).confidence_interval(0.95)
    if np.std(values) > 1e-6:
        assert ours == pytest.approx((theirs.low, theirs.high), rel=1e-9, abs=1e-9)


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    draws = rng.normal(1.0, 2.0, size=(2000, 5))
    covered = [low < 1.0 < high for low, high in map(t_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.015)
    draws = rng.exponential(size=(300, 40))
    covered = [low < 1.0 < high for low, high in (bootstrap_interval(d, resamples=500) for d in draws)]
    assert np.mean(covered) == pytest.approx(0.93, abs=0.05)


@given(SAMPLES)
def test_the_bootstrap_is_repeatable_and_within_the_sample(values):
    low, high = bootstrap_interval(values, resamples=200)
    assert (low, high) == bootstrap_interval(values, resamples=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9


def test_one_number_says_nothing_of_its_spread():
    assert t_interval([3.0]) == bootstrap_interval([3.0]) == (-np.inf, np.inf)
    assert compare_paired([1.0], [0.0]).above(0) is None


def test_the_sign_test_is_the_binomial_one_without_ties():
    assert sign_test([1, 1, 1, 1, 1]) == pytest.approx(2 * 0.5**5)
    assert sign_test([0, 0]) == 1.0
    assert sign_test([0, 1, -1]) == 1.0


def test_paired_differences_decide():
    gap = compare_paired([0.9, 0.92, 0.91], [0.8, 0.81, 0.82], scale=100)
    assert gap.mean == pytest.approx(10.0)
    assert gap.above(5) is True
    assert gap.below(5) is False
    assert gap.above(gap.mean) is None
    assert gap.below(gap.interval[1] + 1) is True
    wide = compare_paired([1, 2, 30], [0, 0, 0], interval="bootstrap")
    assert wide.above(0) is True


def test_a_long_table_is_paired_by_seed_at_the_last_epoch():
    rows = [
        {"rule": rule, "seed": seed, "epoch": epoch, "accuracy": base + seed + 10 * epoch}
        for rule, base in (("a", 1.0), ("b", 0.0))
        for seed in (2, 0, 1)
        for epoch in (0, 1)
    ]
    table = pd.DataFrame(rows).sample(frac=1, random_state=0)
    gap = paired(table, "a", "b")
    assert gap.differences == pytest.approx((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"No rule named 'c'; the table has \['a', 'b'\]"):
        paired(table, "a", "c")
    with pytest.raises(ValueError, match="nothing to pair"):
        paired(table[~((table["rule"] == "b") & (table["seed"] == 1))], "a", "b")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: t_interval([]), "empty"),
        (lambda: t_interval([1.0, np.nan]), "1 numbers that are not finite"),
        (lambda: t_interval([1.0], confidence=1.0), "confidence"),
        (lambda: bootstrap_interval([1.0, 2.0], resamples=0), "resamples"),
        (lambda: compare_paired([1.0], [1.0, 2.0]), "first has 1, second 2"),
    ],
)
def test_bad_samples_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("interval", "is_above", "is_below", "is_within"),
    [
        ((1, 2), True, False, False),
        ((-2, -1), False, True, False),
        ((-1, 1), None, None, None),
        ((0.1, 0.4), True, False, True),
    ],
)
def test_intervals_decide_or_leave_undecided(interval, is_above, is_below, is_within):
    assert above(interval, 0) is is_above
    assert below(interval, 0) is is_below
    assert within(interval, (0, 0.5)) is is_within


def test_differences_can_be_told():
    assert compare_paired([1, 2], [0.5, 2.25]).seed_by_seed(2) == "Seed by seed: 0.50, -0.25."
