"""Counts are exact, ties go by index, and shares between layers are those of their closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.structure.allocation import allocate, erk_densities

SHAPES = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}


def draws(generator: torch.Generator, shapes=SHAPES) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("scope", ["global", "layer", "erk"])
@pytest.mark.parametrize("density", [0.0001, 0.02, 0.5, 0.999, 1.0])
def test_counts_are_exact(scope, density, generator):
    masks = allocate(draws(generator), density, scope)
    assert masks.kept() == round(density * 266_200)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    levels=st.integers(1, 5),
    density=st.floats(0.05, 1.0),
    scope=st.sampled_from(["global", "layer", "erk"]),
    seed=st.integers(0, 99),
    least=st.integers(0, 2),
)
def test_counts_are_exact_among_ties_and_with_a_least_number(sizes, levels, density, scope, seed, least):
    generator = torch.Generator().manual_seed(seed)
    scores = {str(place): torch.randint(levels, (size,), generator=generator) * 1.0 for place, size in enumerate(sizes)}
    total = round(density * sum(sizes))
    if total < max(1, sum(min(least, size) for size in sizes)):
        with pytest.raises(ValueError, match="density"):
            allocate(scores, density, scope, least)
        return
    masks = allocate(scores, density, scope, least)
    assert masks.kept() == total
    for name, mask in masks.items():
        assert mask.count_nonzero() >= min(least, mask.numel())
        kept, dropped = scores[name][mask], scores[name][~mask]
        if len(kept) and len(dropped):
            assert kept.min() >= dropped.max()
        ties = mask[scores[name] == kept.min()].int() if len(kept) else torch.zeros(0)
        assert (ties.diff() <= 0).all()  # of equals the first


def test_the_best_stay_wherever_they_are():
    scores = {"a": torch.tensor([[1.0, 5.0], [2.0, -9.0]]), "b": torch.tensor([3.0, 3.0, 3.0])}
    masks = allocate(scores, 3 / 7)
    assert masks["a"].tolist() == [[False, True], [False, False]]
    assert masks["b"].tolist() == [True, True, False]


def test_infinite_scores_are_ordered_as_any():
    masks = allocate({"a": torch.tensor([-torch.inf, 1.0, torch.inf, -torch.inf])}, 0.75)
    assert masks["a"].tolist() == [True, True, True, False]


def test_scores_of_double_precision_are_not_rounded():
    scores = {"a": torch.tensor([1.0, 1.0 + 1e-12], dtype=torch.float64), "b": torch.tensor([0.5, 0.5])}
    assert allocate(scores, 0.25)["a"].tolist() == [False, True]


def test_layers_of_one_density(generator):
    masks = allocate(draws(generator), 0.1, "layer")
    assert masks.densities() == {"a": 0.1, "b": 0.1, "c": 0.1}


def test_a_layer_keeps_its_least_number(generator):
    scores = draws(generator)
    scores["c"] -= 100
    assert allocate(scores, 0.02)["c"].count_nonzero() == 0
    masks = allocate(scores, 0.02, min_per_layer=7)
    assert masks["c"].count_nonzero() == 7
    assert masks.kept() == 5324
    best = scores["c"].flatten().topk(7).indices
    assert set(masks["c"].flatten().nonzero().flatten().tolist()) == set(best.tolist())


def test_only_what_is_within_stays(generator):
    scores = draws(generator)
    within = allocate(draws(generator), 0.1, "erk")
    for scope in ("global", "layer", "erk"):
        masks = allocate(scores, 0.05, scope, within=within)
        assert masks.kept() == 13_310
        assert (masks & ~within).kept() == 0
    assert allocate(scores, 0.4, within=within) == within  # no more than there are


def test_densities_by_name(generator):
    scores = draws(generator)
    masks = allocate(scores, None, {"a": 0.01, "b": 0.0, "c": 1.0})
    assert {name: int(mask.count_nonzero()) for name, mask in masks.items()} == {"a": 2352, "b": 0, "c": 1000}
    scaled = allocate(scores, 0.1, {"a": 0.1, "b": 0.2, "c": 0.9})
    assert scaled.kept() == 26_620
    densities = scaled.densities()
    assert densities["b"] / densities["a"] == pytest.approx(2, rel=1e-3)
    with pytest.raises(ValueError, match="lacks a density for 'c'"):
        allocate(scores, 0.1, {"a": 0.1, "b": 0.2})
    with pytest.raises(ValueError, match=r"density of 'b' must be in \[0, 1\], got 1.2"):
        allocate(scores, None, {"a": 0.1, "b": 1.2, "c": 1.0})


def test_erk_is_its_closed_form():
    densities = erk_densities(SHAPES, 0.02)
    raw = {name: sum(shape) / math.prod(shape) for name, shape in SHAPES.items()}
    factor = 0.02 * 266_200 / sum(sum(shape) for shape in SHAPES.values())  # no layer is full
    assert densities == pytest.approx({name: factor * number for name, number in raw.items()})


def test_erk_fills_a_layer_and_solves_again():
    densities = erk_densities(SHAPES, 0.1)
    assert densities["c"] == 1
    factor = (26_620 - 1000) / (1084 + 400)
    assert densities["a"] == pytest.approx(factor * 1084 / 235_200)
    assert densities["b"] == pytest.approx(factor * 400 / 30_000)
    assert erk_densities(SHAPES, 1.0) == pytest.approx({"a": 1, "b": 1, "c": 1})


def test_erk_counts_the_sides_of_kernels():
    densities = erk_densities({"thin": (8, 3, 3, 3), "thick": (64, 64, 3, 3)}, 0.05)
    assert densities["thin"] / densities["thick"] == pytest.approx((17 / 216) / (134 / 36_864))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, math.nan])
def test_densities_outside_are_refused(density):
    for scope in ("global", "layer", "erk"):
        with pytest.raises(ValueError, match=r"density must be in \(0, 1\]"):
            allocate({"a": torch.ones(4)}, density, scope)


def test_what_cannot_be_allocated_is_refused():
    with pytest.raises(ValueError, match="1 of 2 scores of 'a' are NaN"):
        allocate({"a": torch.tensor([1.0, torch.nan])}, 0.5)
    with pytest.raises(ValueError, match="keeps none of 4"):
        allocate({"a": torch.ones(4)}, 0.1)
    with pytest.raises(ValueError, match="no scores"):
        allocate({}, 0.5)
    with pytest.raises(ValueError, match='must be "global"'):
        allocate({"a": torch.ones(4)}, 0.5, "best")
    with pytest.raises(ValueError, match="can do without"):
        allocate({"a": torch.ones(4)}, None)
    with pytest.raises(ValueError, match="min_per_layer must be at least 0"):
        allocate({"a": torch.ones(4)}, 0.5, min_per_layer=-1)
    with pytest.raises(ValueError, match="within lacks 'a'"):
        allocate({"a": torch.ones(4)}, 0.5, within={})
    with pytest.raises(ValueError, match="boolean and of shape"):
        allocate({"a": torch.ones(4)}, 0.5, within={"a": torch.ones(4)})
    with pytest.raises(ValueError, match="'a' has no entries"):
        erk_densities({"a": (0, 3)}, 0.5)


def test_a_score_on_another_layout_is_ranked_by_its_positions(generator):
    score = torch.randn(4, 6, generator=generator)
    assert torch.equal(allocate({"a": score.T.contiguous().T}, 0.3)["a"], allocate({"a": score}, 0.3)["a"])
    assert_close(allocate({"a": score.half()}, 0.5).density(), 0.5)
