"""Schedules are pure functions of the step with the values of their formulas."""

import math
from itertools import pairwise

import pytest

from neuropil.structure.schedules import Constant, CosineDecay, Cubic, Iterative, OneShot


def test_the_cubic_falls_from_initial_to_final():
    schedule = Cubic(100, 300, initial=0.5, final=0.1)
    assert schedule.density(99) is None
    assert schedule.density(100) == pytest.approx(0.5)
    assert schedule.density(200) == pytest.approx(0.1 + 0.4 / 8)
    assert schedule.density(300) == schedule.density(10_000) == 0.1
    densities = [schedule.density(step) for step in range(100, 301)]
    assert all(later < earlier for earlier, later in pairwise(densities))


def test_the_cubic_is_that_of_the_official_code_at_multiples_of_every():
    every, start, end, initial, final = 20, 40, 240, 0.5, 0.05
    schedule = Cubic(start, end, initial, final)
    first, events = start // every, end // every - start // every
    for event in range(first, end // every):
        sparsity = (1 - initial) + (initial - final) * (1 - (1 - (event - first) / events) ** 3)
        assert schedule.density(event * every) == pytest.approx(1 - sparsity)
    short = schedule.density(220) - final  # where the official code ends
    assert short == pytest.approx((initial - final) / events**3)


def test_events():
    cubic = Cubic(30, 100)
    assert [step for step in range(1, 121) if cubic.is_event(step, 20)] == [40, 60, 80, 100, 120]
    assert [step for step in range(1, 61) if Constant(0.1).is_event(step, 20)] == [20, 40, 60]
    assert [step for step in range(1, 61) if OneShot(33, 0.1).is_event(step, 20)] == [33, 40, 60]
    assert [step for step in range(1, 31) if Iterative(0.2, every=10).is_event(step, 1000)] == [10, 20, 30]


def test_the_other_densities():
    assert Constant(0.3).initial == Constant(0.3).density(7) == 0.3
    shot = OneShot(5, 0.2)
    assert [shot.initial, shot.density(4), shot.density(5), shot.density(6)] == [1.0, None, 0.2, 0.2]
    steps = Iterative(0.2, every=10, final=0.6)
    assert steps.initial == 1
    assert [steps.density(step) for step in (9, 10, 20, 30)] == pytest.approx([1, 0.8, 0.64, 0.6])


def test_the_cosine_decays():
    decay = CosineDecay(0.5, 0.005, 200)
    assert decay(0) == 0.5
    assert decay(100) == pytest.approx(0.2525)
    assert decay(50) == pytest.approx(0.005 + 0.495 * (1 + math.sqrt(0.5)) / 2)
    assert decay(200) == decay(500) == 0.005
    assert CosineDecay(0.3, 0.0, 10)(10) == 0


@pytest.mark.parametrize("density", [0.0, -0.1, 1.1, math.nan])
def test_densities_outside_are_refused(density):
    for make in (Constant, lambda d: OneShot(1, d), lambda d: Cubic(0, 1, final=d), lambda d: Cubic(0, 1, d, 0.01)):
        with pytest.raises(ValueError, match=r"must be in \(0, 1\]"):
            make(density)


def test_what_makes_no_schedule_is_refused():
    with pytest.raises(ValueError, match="initial must be at least final"):
        Cubic(0, 10, 0.1, 0.5)
    with pytest.raises(ValueError, match="0 <= start < end"):
        Cubic(10, 10)
    with pytest.raises(ValueError, match="step must be at least 1"):
        OneShot(0, 0.5)
    with pytest.raises(ValueError, match="fraction must be in"):
        Iterative(1.0, every=10)
    with pytest.raises(ValueError, match="every must be at least 1"):
        Iterative(0.5, every=0)
    with pytest.raises(ValueError, match=r"start must be in \[0, 1\)"):
        CosineDecay(1.0, 0.0, 10)
    with pytest.raises(ValueError, match="total must be at least 1"):
        CosineDecay(0.5, 0.0, 0)
