from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuropil.learning.contrastive import Alternating, Bernoulli, Geometric, Phase

inside = st.floats(0.01, 0.99)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(inside)
def test_weights_undo_the_probabilities(b):
    signs, weights, _ = Bernoulli(b, generator=seeded()).draw(2000)
    probability = np.where(signs > 0, b, 1 - b)
    np.testing.assert_allclose(probability * weights, signs)


@given(inside, st.floats(0.02, 1.0))
def test_signs_and_lengths_are_as_frequent_as_they_should_be(b, p):
    count = 4000
    signs, _, steps = Geometric(p, b, generator=seeded()).draw(count)
    assert abs((signs > 0).mean() - b) < 5 * (b * (1 - b) / count) ** 0.5
    assert steps.min() >= 1
    assert abs(steps.mean() - 1 / p) <= 5 * ((1 - p) / p**2 / count) ** 0.5
    assert abs((steps == 1).mean() - p) <= 5 * (p * (1 - p) / count) ** 0.5


@pytest.mark.parametrize(
    "make", [lambda: Bernoulli(0.3, steps=4, generator=seeded()), lambda: Geometric(0.2, 0.3, generator=seeded())]
)
def test_one_draw_is_the_same_as_many(make):
    whole, stream = make().draw(50), make()
    parts = [Phase(*values) for values in zip(*(column.tolist() for column in whole), strict=True)]
    assert parts == list(islice(stream, 50))
    assert {phase.positive for phase in parts} == {True, False}


def test_alternating_goes_by_pairs():
    assert Alternating(steps=3).next() == (Phase(1, 1.0, 3), Phase(-1, -1.0, 3))
    assert [phase.sign for phase in islice(Alternating(), 4)] == [1, -1, 1, -1]
    assert Alternating().next()[0].steps is None
    with pytest.raises(ValueError, match="even number of phases, got 3"):
        Alternating().draw(3)


def test_the_best_balance_is_where_the_docstring_says():
    positive, negative = 9.0, 4.0
    b = np.linspace(0.01, 0.99, 981)
    best = b[np.argmin(positive / b + negative / (1 - b))]
    assert best == pytest.approx(1 / (1 + (negative / positive) ** 0.5), abs=1e-3)


def test_shares_of_a_step_add_up():
    assert Alternating().share(4) == 0.25
    np.testing.assert_allclose(Bernoulli().share(np.array([1, 2, 5])), [1, 0.5, 0.2])
    geometric = Geometric(0.1, generator=seeded())
    lengths = geometric.draw(50_000).steps
    assert (geometric.share(lengths) * lengths).mean() == pytest.approx(1, abs=0.02)


def test_schedules_are_seeded_without_a_generator():
    assert np.array_equal(Bernoulli().draw(99).signs, Bernoulli().draw(99).signs)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Bernoulli(0.0), "b, the probability of the positive phase, must lie inside"),
        (lambda: Bernoulli(1.0), "must lie inside"),
        (lambda: Bernoulli(float("nan")), "must lie inside"),
        (lambda: Geometric(0.0), "p_switch must lie in"),
        (lambda: Geometric(1.5), "p_switch must lie in"),
        (lambda: Geometric(0.5, 1.0), "must lie inside"),
        (lambda: Alternating(steps=0), "steps must be at least 1"),
        (lambda: Bernoulli(steps=-1), "steps must be at least 1"),
    ],
)
def test_what_cannot_be_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
