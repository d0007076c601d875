"""Regrowth exchanges exactly as many entries in every layer, the weakest for the most wanted."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuropil.structure.growth import GradientGrowth, MomentumGrowth, RandomGrowth, regrow
from neuropil.structure.masks import Masks


@given(live=st.integers(0, 20), fraction=st.floats(0, 0.999), seed=st.integers(0, 99), levels=st.integers(1, 30))
def test_counts_of_a_layer_never_change(live, fraction, seed, levels):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randperm(20, generator=generator).view(4, 5) < live
    worth = torch.randint(levels, (4, 5), generator=generator) * 1.0
    growth = torch.randint(levels, (4, 5), generator=generator) * 1.0
    grown = regrow(Masks({"w": mask}), {"w": worth}, {"w": growth}, fraction)["w"]
    assert grown.sum() == live
    kept = live - min(math.ceil(fraction * live - 1e-9), live)
    best = worth[mask].sort(descending=True).values[:kept]
    assert torch.equal(worth[mask & grown].sort(descending=True).values[:kept], best)


def test_the_weakest_go_and_the_steepest_come():
    mask = torch.tensor([True, True, True, True, False, False, False])
    worth = torch.tensor([4.0, 1.0, 3.0, 2.0, 9.0, 9.0, 9.0])
    growth = torch.tensor([9.0, 0.5, 9.0, 0.1, 0.2, 0.9, 0.3])
    grown = regrow(Masks({"w": mask}), {"w": worth}, {"w": growth}, 0.5)["w"]
    # Entries 1 and 3 close; of 1, 3, 4, 5 and 6 the steepest are 5 and 1, which was never away.
    assert grown.tolist() == [True, True, True, False, False, True, False]


def test_a_fraction_is_rounded_up_but_not_by_rounding_errors():
    mask = torch.arange(60) < 30
    worth, growth = torch.arange(60) * 1.0, torch.arange(60) * 1.0
    for fraction, exchanged in ((0.1, 3), (0.101, 4), (0.0, 0), (0.001, 1)):
        grown = regrow(Masks({"w": mask}), {"w": worth}, {"w": growth}, fraction)["w"]
        assert (mask & ~grown).sum() == exchanged


def test_a_full_layer_stays_full():
    mask = torch.ones(3, 4, dtype=torch.bool)
    grown = regrow(Masks({"w": mask}), {"w": torch.rand(3, 4)}, {"w": torch.rand(3, 4)}, 0.5)
    assert grown["w"].all()


def test_gradients_are_ranked_by_magnitude_and_must_be_there():
    gradient = torch.tensor([[1.0, -3.0], [0.0, 2.0]])
    weights = {"w": torch.zeros(2, 2)}
    assert GradientGrowth().scores({"w": gradient}, weights)["w"].tolist() == [[1, 3], [0, 2]]
    with pytest.raises(ValueError, match="'w' has no gradient"):
        GradientGrowth().scores({"w": None}, weights)
    with pytest.raises(ValueError, match="NaN at 1 of 4"):
        GradientGrowth().scores({"w": torch.tensor([[torch.nan, 1.0], [1.0, 1.0]])}, weights)


def test_a_running_mean_is_kept_over_steps():
    growth = MomentumGrowth(0.75)
    for gradient in ([4.0, 0.0], [0.0, 8.0], [-4.0, 0.0]):
        growth.observe({"w": torch.tensor(gradient), "idle": None})
    expected = [0.75 * (0.75 * 1.0) - 1.0, 0.75 * 2.0]
    assert growth.scores({}, {"w": torch.zeros(2)})["w"].tolist() == pytest.approx([abs(v) for v in expected])
    other = MomentumGrowth(0.75)
    other.load_state_dict(growth.state_dict())
    for one in (growth, other):
        one.observe({"w": torch.tensor([1.0, 1.0])})
    assert torch.equal(growth.means["w"], other.means["w"])
    with pytest.raises(ValueError, match="'v' has no gradient"):
        growth.scores({}, {"v": torch.zeros(2)})
    with pytest.raises(ValueError, match="decay must be in"):
        MomentumGrowth(1.0)


def test_without_decay_the_mean_is_the_gradient():
    growth = MomentumGrowth(0.0)
    for gradient in ([4.0, 0.0], [1.0, -8.0]):
        growth.observe({"w": torch.tensor(gradient)})
    assert growth.scores({}, {"w": torch.zeros(2)})["w"].tolist() == [1, 8]


def test_random_growth_draws_from_its_generator_alone():
    weights = {"w": torch.zeros(50, 50)}
    growth = RandomGrowth(torch.Generator().manual_seed(1))
    state = growth.state_dict()
    first = growth.scores({}, weights)["w"]
    assert not torch.equal(first, growth.scores({}, weights)["w"])
    growth.load_state_dict(state)
    assert torch.equal(first, growth.scores({}, weights)["w"])


def test_fractions_outside_are_refused():
    masks = Masks({"w": torch.ones(3, dtype=torch.bool)})
    for fraction in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"fraction must be in \[0, 1\)"):
            regrow(masks, {"w": torch.ones(3)}, {"w": torch.ones(3)}, fraction)
    with pytest.raises(ValueError, match="GradientGrowth keeps no state"):
        GradientGrowth().load_state_dict({"a": 1})
