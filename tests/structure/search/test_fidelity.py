"""Rungs, brackets and promotions as the algorithms say; costs; what is kept."""

import math

import numpy as np
import pytest

from neuropil.structure.search.fidelity import asha, hyperband, hyperband_brackets, successive_halving
from neuropil.structure.search.landscapes import nk_landscape
from neuropil.structure.search.spaces import Space

LARGE = Space({f"digit {i}": range(10) for i in range(4)})


def exact(code, epochs):
    """Every length ranks alike."""
    return float(sum(d * 10**i for i, d in enumerate(code)))


def test_rungs_of_successive_halving():
    result = successive_halving(LARGE, exact, 27, configurations=27, eta=3)
    trace = result.trace
    counts = trace.groupby("epochs").size()
    assert counts.to_dict() == {1: 27, 3: 9, 9: 3, 27: 1}
    assert trace["cost"].iloc[-1] == 4 * 27
    # With ranks that never change the best of all first survives.
    first = trace[trace["epochs"] == 1]
    assert result.value == first["value"].max()
    for short, long in ((1, 3), (3, 9), (9, 27)):
        values = trace[trace["epochs"] == short]["value"].tolist()
        assert sorted(values)[-len(values) // 3 :] == sorted(trace[trace["epochs"] == long]["value"])


def test_resumed_trainings_cost_only_what_is_new():
    result = successive_halving(LARGE, exact, 9, configurations=9, resume=True)
    assert result.trace["cost"].iloc[-1] == 9 * 1 + 3 * 2 + 1 * 6


def test_one_rung_is_random_search():
    result = successive_halving(LARGE, exact, 5, configurations=4, min_epochs=5)
    assert result.trace["epochs"].tolist() == [5] * 4
    assert result.value == result.trace["value"].max()


def test_brackets_of_hyperband():
    # Li et al. 2018, table 1: R = 81, eta = 3.
    assert hyperband_brackets(81) == [(81, 1), (34, 3), (15, 9), (8, 27), (5, 81)]
    assert hyperband_brackets(9) == [(9, 1), (5, 3), (3, 9)]
    assert hyperband_brackets(1) == [(1, 1)]
    assert hyperband_brackets(243)[0] == (243, 1)  # log(243) / log(3) is below 5 in floating point
    assert hyperband_brackets(10) == [(9, 1), (5, 3), (3, 10)]


def test_hyperband_runs_its_brackets():
    result = hyperband(LARGE, exact, 9)
    assert result.trace["cost"].iloc[-1] <= 9 * 1 + 3 * 3 + 9 + 5 * 3 + 9 + 3 * 9
    assert result.trace["epochs"].max() == 9
    assert result.value == result.trace[result.trace["epochs"] == 9]["value"].max()
    assert len(hyperband(LARGE, exact, 9, rounds=2).trace) > len(result.trace)


def test_the_best_is_of_the_longest_evaluations_only():
    """A short training that looks better than any long one does not win."""
    result = hyperband(LARGE, lambda code, epochs: exact(code, 1) + (1e6 if epochs < 9 else 0), 9)
    row = result.trace[(result.trace["epochs"] == 9) & (result.trace["architecture"] == result.best)]
    assert row["value"].tolist() == [result.value]
    assert result.value < 1e6


def test_asha_promotes_the_best_third_and_never_twice():
    result = asha(LARGE, exact, 9, 60)
    trace = result.trace
    assert len(trace) == 60
    assert not trace.duplicated(["architecture", "epochs"]).any()
    for short, long in ((1, 3), (3, 9)):
        below, above = (trace[trace["epochs"] == epochs] for epochs in (short, long))
        assert set(above["architecture"]) <= set(below["architecture"])
        assert len(above) <= len(below) // 3 + 1
        for _, promotion in above.iterrows():  # at its time it was among the best third
            then = below[below["query"] < promotion["query"]].sort_values("value", ascending=False)
            assert promotion["architecture"] in list(then["architecture"].iloc[: len(then) // 3])
    assert trace["epochs"].iloc[:4].tolist() == [1, 1, 1, 3]


@pytest.mark.parametrize("method", [successive_halving, hyperband, asha])
def test_seeds_and_small_spaces(method):
    extra = {successive_halving: {"configurations": 20}, hyperband: {}, asha: {"budget": 60}}[method]
    space, value = nk_landscape(3, 1)
    whole = method(space, lambda code, epochs: value(code), 9, **extra, seed=1)
    assert whole.value == max(map(value, space.all()))
    assert not whole.trace.duplicated(["architecture", "epochs"]).any()
    one, two = (method(LARGE, exact, 9, **extra, seed=seed).trace["value"].tolist() for seed in (0, 1))
    assert one != two
    assert one == method(LARGE, exact, 9, **extra, seed=0).trace["value"].tolist()


def test_early_looks_find_a_good_one_for_less():
    rng = np.random.default_rng(0)

    def noisy(code, epochs):
        return exact(code, epochs) / 1e4 + rng.normal() * 0.3 / epochs

    halving = np.mean([successive_halving(LARGE, noisy, 9, configurations=27, seed=s).value for s in range(20)])
    cost = 27 + 9 * 3 + 3 * 9
    full = np.mean(
        [successive_halving(LARGE, noisy, 9, configurations=cost // 9, min_epochs=9, seed=s).value for s in range(20)]
    )
    assert halving > full


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hyperband(LARGE, exact, 0), "max_epochs >= 1"),
        (lambda: hyperband(LARGE, exact, 9, eta=1), "eta >= 2"),
        (lambda: hyperband(LARGE, exact, 9, rounds=0), "rounds"),
        (lambda: successive_halving(LARGE, exact, 9, configurations=0), "configurations"),
        (lambda: successive_halving(LARGE, exact, 9, configurations=3, min_epochs=10), "min_epochs"),
        (lambda: asha(LARGE, exact, 9, 0), "budget"),
        (lambda: hyperband(LARGE, lambda code, epochs: math.nan, 9), "NaN for"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
