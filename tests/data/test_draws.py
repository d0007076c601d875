import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuropil.data.draws import check_count, check_seed, stratified_draw

labelled = st.lists(st.integers(0, 5), min_size=1, max_size=60).map(np.array)


@given(labels=labelled, data=st.data(), seed=st.integers(0, 2**32))
def test_a_draw_parts_the_samples_and_keeps_every_share(labels, data, seed):
    count = data.draw(st.integers(0, len(labels)))
    drawn, rest = stratified_draw(labels, count, seed)
    assert len(drawn) == count
    assert sorted([*drawn, *rest]) == list(range(len(labels)))
    for label in np.unique(labels):
        share = count * (labels == label).sum() / len(labels)
        assert abs((labels[drawn] == label).sum() - share) < 1


def test_the_seed_decides():
    labels = np.arange(100) % 7
    draws = [stratified_draw(labels, 30, seed)[0] for seed in (0, 0, 1)]
    assert (draws[0] == draws[1]).all()
    assert sorted(draws[0]) != sorted(draws[2])


def test_chance_decides_among_equal_remainders():
    first = {int(stratified_draw(np.arange(4), 1, seed)[0][0]) for seed in range(40)}
    assert first == {0, 1, 2, 3}


def test_order_is_random():
    drawn, rest = stratified_draw(np.repeat([0, 1], 50), 50, seed=0)
    assert 0 < (drawn[:25] < 50).sum() < 25
    assert 0 < (rest[:25] < 50).sum() < 25


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), (None, TypeError)])
def test_bad_seeds_are_named(seed, error):
    with pytest.raises(error, match=r"seed must .* got"):
        check_seed(seed)


@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (0, ValueError, r"train must be 1 to 9, .* got 0"),
        (10, ValueError, r"train must be 1 to 9, .* got 10"),
        (0.5, TypeError, "train must be a whole number of samples, got float"),
        (True, TypeError, "got bool"),
    ],
)
def test_bad_counts_are_named(count, error, message):
    with pytest.raises(error, match=message):
        check_count(count, 9, "train")


def test_integers_of_numpy_will_do():
    assert type(check_seed(np.int64(3))) is int
    assert check_count(np.uint8(9), 9, "train") == 9
