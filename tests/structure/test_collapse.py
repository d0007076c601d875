"""When layers are emptied: counted by hand, then what theory says of slopes off and at the edge of chaos."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import mlp
from neuropil.structure.allocation import allocate
from neuropil.structure.chaos import edge_of_chaos, init_gaussian_, mean_field
from neuropil.structure.collapse import critical_sparsity, layer_collapse, sbp_bound
from neuropil.structure.criteria import SNIP

SCORES = {"a": torch.tensor([[5.0, 1.0], [2.0, 0.0]]), "b": torch.tensor([3.0, 4.0]), "c": torch.tensor([7.0, 8.0])}


def test_a_table_of_layers_counted_by_hand():
    table = layer_collapse(SCORES, 0.5)
    assert list(table["layer"]) == ["a", "b", "c"]
    assert list(table["weights"]) == [4, 2, 2]
    assert list(table["mean_square_score"]) == [7.5, 12.5, 56.5]
    assert list(table["kept"]) == [0.25, 0.5, 1.0]
    assert list(table["empty_at"]) == [6 / 8, 5 / 8, 1.0]
    assert critical_sparsity(SCORES) == 5 / 8


def test_allocation_empties_a_layer_at_the_critical_sparsity_and_not_one_weight_before(generator):
    scores = {
        name: torch.rand(30, 20, generator=generator) * factor for name, factor in zip("abc", (1, 3, 2), strict=True)
    }
    total = 1800
    gone = round(critical_sparsity(scores) * total)
    at, before = (allocate(scores, 1 - count / total) for count in (gone, gone - 1))
    assert [name for name, mask in at.items() if not mask.any()] == ["a"]
    assert all(mask.any() for mask in before.values())


def test_equal_scores_go_together_and_one_layer_lasts_to_the_end():
    assert critical_sparsity({"a": torch.zeros(3), "b": torch.zeros(5)}) == 1.0
    assert critical_sparsity({"a": torch.rand(3)}) == 1.0
    assert critical_sparsity({"a": torch.zeros(3), "b": torch.ones(5)}) == 3 / 8
    assert critical_sparsity({"a": torch.full((2,), 1e300, dtype=torch.float64), "b": torch.ones(2)}) == 0.5


@pytest.mark.parametrize("function", [critical_sparsity, layer_collapse])
def test_scores_that_are_none_are_refused(function):
    with pytest.raises(ValueError, match="scores is empty"):
        function({})
    with pytest.raises(ValueError, match=r"scores\['a'\] has NaN"):
        function({"a": torch.tensor([1.0, math.nan])})
    with pytest.raises(ValueError, match=r"scores\['a'\] is empty"):
        function({"a": torch.zeros(0)})


def test_density_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"density must be in \(0, 1\], got 0"):
        layer_collapse(SCORES, 0)


def test_the_bound_is_the_formula_where_the_net_is_deep_and_1_where_it_says_nothing():
    kappa = math.log(2) / 8
    expected = (1 + math.log(kappa * 2000 * 100**2) / kappa) / 2000
    assert sbp_bound(2.0, 2000, 100) == pytest.approx(expected)
    assert sbp_bound(0.5, 2000, 100) == pytest.approx(expected)  # either side of the edge
    assert sbp_bound(2.0, 4000, 100) < expected < 1
    assert sbp_bound(0.779, 30, 200) == 1.0
    assert sbp_bound(1.0, 10**6, 10) == 1.0
    with pytest.raises(ValueError, match="chi must be"):
        sbp_bound(0.0, 10, 10)


def test_a_relu_net_without_biases_has_one_sum_of_weight_times_gradient(generator):
    net = mlp(20, *[50] * 8, 10, generator=generator).double()
    x = torch.randn(64, 20, dtype=torch.float64, generator=generator)
    y = torch.randint(10, (64,), generator=generator)
    cross_entropy(net(x), y).backward()
    sums = [float((w.detach() * w.grad).sum()) for w in net.parameters() if w.ndim == 2 and w.grad is not None]
    assert sums == pytest.approx([sums[0]] * 9, rel=1e-10)


@pytest.mark.parametrize("sigma_w", [1.0, 2.0])
def test_scores_fall_by_chi_a_layer_off_the_edge_and_hardly_at_it(sigma_w, generator):
    depth, width = 20, 300
    # Alike, as images are, and of a power near the fixed point: chi rules from the first layer on.
    x = 0.37 * (1 + torch.randn(256, width, generator=generator))
    y = torch.randint(10, (256,), generator=generator)
    slopes, critical = {}, {}
    for sigma in (sigma_w, edge_of_chaos("tanh", 0.2)):
        net = mlp(width, *[width] * depth, 10, activation=nn.Tanh, generator=generator)
        init_gaussian_(net, sigma, 0.2, generator)
        names = [name for name, weight in net.named_parameters() if weight.ndim == 2][1:-1]
        scores = SNIP()(net, [(x, y)], cross_entropy, names)
        square = layer_collapse(scores)["mean_square_score"].to_numpy()
        slopes[sigma] = np.polyfit(np.arange(len(square)), np.log(square), 1)[0]
        critical[sigma] = critical_sparsity(scores)
    off, at = slopes.values()
    assert off == pytest.approx(-math.log(mean_field("tanh", sigma_w, 0.2).chi), rel=0.35)
    assert abs(at) < 0.1
    assert critical[sigma_w] < min(critical.values()) + 1e-9 < max(critical.values())
