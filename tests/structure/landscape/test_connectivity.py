"""Linear mode connectivity: its sign, its symmetry, and masks that must be those of both ends."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.landscape.connectivity import Connectivity, mode_connectivity
from neuropil.structure.masks import Masks


def line(*errors):
    return Connectivity(tuple(np.linspace(0, 1, len(errors)).tolist()), errors)


def weight(value):
    return {"w": torch.tensor([float(value)], dtype=torch.float64)}


def test_a_hill_is_negative_a_valley_positive_and_a_plain_zero():
    assert line(1.0, 3.0, 9.0, 3.0, 1.0).value == -8.0
    assert line(9.0, 5.0, 1.0, 5.0, 9.0).value == 8.0
    assert line(2.0, 2.0, 2.0).value == 0.0
    assert line(1.0, 3.0, 9.0, 3.0, 1.0).barrier == 8.0
    assert line(9.0, 5.0, 1.0, 5.0, 9.0).barrier == 0.0


def test_the_largest_deviation_keeps_its_sign():
    assert line(5.0, 2.0, 7.0, 5.0).value == 3.0
    assert line(5.0, 3.0, 9.0, 5.0).value == -4.0


@given(st.lists(st.floats(0, 100), min_size=3, max_size=11))
def test_the_order_of_the_two_nets_does_not_matter(errors):
    forth, back = line(*errors), line(*errors[::-1])
    assert forth.value == pytest.approx(back.value, abs=1e-9)
    assert abs(forth.value) <= 100


def test_unlike_ends_make_no_deviation_of_their_own():
    assert line(0.0, 5.0, 10.0).value == 0.0
    assert line(10.0, 5.0, 0.0).value == 0.0


def test_two_wells_are_badly_connected_and_one_well_is_not():
    def error(state):
        return float((state["w"].square() - 1).square())

    assert mode_connectivity(weight(-1), weight(1), error).value == pytest.approx(-1.0)
    assert mode_connectivity(weight(1), weight(1), error).value == pytest.approx(0.0, abs=1e-15)
    assert mode_connectivity(weight(-0.5), weight(0.5), lambda s: float(s["w"].square())).value == pytest.approx(0.25)


def test_norms_are_recomputed_at_every_point_of_the_line():
    a, b = (small_conv((1, 6, 6), 3, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(2))
    y = torch.arange(64) % 3
    seen = []

    def error(net):
        seen.append(net[1].running_mean.clone())
        return float(cross_entropy(net(x), y))

    mode_connectivity(a, b, error, points=3, renorm=[x])
    for mean, net in ((seen[0], a), (seen[-1], b)):
        torch.testing.assert_close(mean, net[0](x).mean((0, 2, 3)).detach())


def test_both_ends_need_the_same_mask():
    nets = [mlp(4, 6, 2, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    mask = torch.arange(24).view(6, 4) % 2 == 0
    masks, other = Masks({"0.weight": mask}), Masks({"0.weight": ~mask})
    masks.apply_(nets[0])
    other.apply_(nets[1])
    with pytest.raises(ValueError, match=r"b has 12 weights outside its mask in '0\.weight'"):
        mode_connectivity(*nets, lambda net: 0.0, masks=masks)
    masks.apply_(nets[1])
    assert mode_connectivity(*nets, lambda net: float(net[0].weight.count_nonzero()), masks=masks).errors[5] <= 12
    with pytest.raises(ValueError, match="a has no parameter '7"):
        mode_connectivity(*nets, lambda net: 0.0, masks=Masks({"7.weight": mask}))


def test_masks_that_hold_values_are_kept_too():
    theta = {"w": torch.tensor([1.0, 2.0])}
    masks = Masks({"w": torch.tensor([True, False])}, fill=theta)
    mode_connectivity({"w": torch.tensor([5.0, 2.0])}, {"w": torch.tensor([3.0, 2.0])}, lambda s: 0.0, masks=masks)
    with pytest.raises(ValueError, match="a has 1 weights outside"):
        mode_connectivity({"w": torch.tensor([5.0, 0.0])}, theta, lambda s: 0.0, masks=masks)


def test_a_line_needs_a_point_between_its_ends():
    with pytest.raises(ValueError, match="points must be at least 3"):
        mode_connectivity(weight(0), weight(1), lambda s: 0.0, points=2)
