"""Mean field: closed forms, the tanh curve, and that real wide nets do what it says."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from neuropil.learning.networks import linear, mlp
from neuropil.structure.chaos import StableResidual, edge_of_chaos, init_edge_of_chaos_, init_gaussian_, mean_field


@given(st.floats(0.1, 1.35), st.floats(0.0, 2.0))
def test_relu_below_its_edge_has_closed_forms(sigma_w, sigma_b):
    field = mean_field("relu", sigma_w, sigma_b)
    assert field.chi == pytest.approx(sigma_w**2 / 2, rel=1e-12)
    expected = sigma_b**2 / (1 - sigma_w**2 / 2)
    assert field.q == pytest.approx(expected, rel=1e-8, abs=1e-11)
    assert field.phase == "ordered"


def test_relu_at_and_above_its_edge():
    assert edge_of_chaos("relu") == pytest.approx(math.sqrt(2), abs=1e-12)
    at = mean_field("relu", math.sqrt(2))
    assert (at.q, at.phase) == (1.0, "edge")
    above = mean_field("relu", 2.0)
    assert (above.q, above.phase) == (math.inf, "chaotic")
    assert above.chi == pytest.approx(2.0)
    assert above.depth_scale == pytest.approx(1 / math.log(2))
    with pytest.raises(ValueError, match=r"no edge of chaos at sigma_b = 0.1.*without end"):
        edge_of_chaos("relu", 0.1)


@pytest.mark.parametrize(
    ("sigma_b", "sigma_w"), [(0.0, 1.0), (0.05, 1.1225), (0.1, 1.1934), (0.2, 1.3041), (0.3, 1.3956), (0.5, 1.5497)]
)
def test_the_edge_of_tanh_is_a_curve(sigma_b, sigma_w):
    assert edge_of_chaos("tanh", sigma_b) == pytest.approx(sigma_w, abs=5e-5)


def test_an_often_quoted_point_lies_a_little_below_the_edge():
    assert mean_field("tanh", 1.298, 0.2).chi == pytest.approx(0.9966, abs=5e-5)


def test_erf_has_arcsine_as_its_variance_map():
    field = mean_field("erf", 1.5, 0.3)
    q = field.q
    assert q == pytest.approx(0.3**2 + 1.5**2 * 2 / math.pi * math.asin(2 * q / (1 + 2 * q)), rel=1e-10)
    assert field.chi == pytest.approx(1.5**2 * 4 / math.pi / math.sqrt(1 + 4 * q), rel=1e-10)
    assert edge_of_chaos("erf") == pytest.approx(math.sqrt(math.pi) / 2, abs=1e-6)


def test_a_function_does_as_well_as_a_name():
    assert mean_field(torch.tanh, 1.7, 0.1) == mean_field("tanh", 1.7, 0.1)


def test_a_jump_over_one_is_no_edge():
    with pytest.raises(ValueError, match=r"chi jumps over 1"):
        edge_of_chaos("gelu")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_field("tanh", 0.0), r"sigma_w must be .* above 0, got 0"),
        (lambda: mean_field("tanh", 1.0, -1.0), r"sigma_b must be .* at least 0, got -1"),
        (lambda: mean_field("tanh", math.nan), r"sigma_w"),
        (lambda: mean_field("step", 1.0), r"'step' is unknown; known are erf"),
        (lambda: mean_field(torch.exp, 1.0), r"chi is inf"),
        (lambda: mean_field(torch.zeros_like, 1.0), r"chi is 0|does not require grad"),
    ],
)
def test_what_has_no_mean_field_is_refused(call, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()


@pytest.mark.parametrize(("sigma_w", "sigma_b"), [(1.0, 0.2), (1.3041, 0.2), (2.0, 0.2)])
def test_a_wide_net_has_the_variance_and_the_gradient_gain_of_its_mean_field(sigma_w, sigma_b, generator):
    net = mlp(*[600] * 13, activation=nn.Tanh, generator=generator).double()
    init_gaussian_(net, sigma_w, sigma_b, generator)
    x = torch.randn(64, 600, dtype=torch.float64, generator=generator)
    kept = []
    for layer in net:
        x = layer(x)
        if isinstance(layer, nn.Linear):
            x.retain_grad()
            kept.append(x)
    (x * torch.randn(600, dtype=torch.float64, generator=generator)).sum().backward()
    field = mean_field("tanh", sigma_w, sigma_b)
    assert float(kept[-1].detach().square().mean()) == pytest.approx(field.q, rel=0.1)
    powers = [float(h.grad.square().mean()) for h in kept if h.grad is not None]
    gain = (powers[4] / powers[-2]) ** (1 / (len(powers) - 6))
    assert gain == pytest.approx(field.chi, rel=0.06)


def test_drawing_is_from_the_generator_and_the_same_in_every_dtype(generator):
    nets = [nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 300)) for _ in range(2)]
    nets[1].double()
    before = torch.random.get_rng_state()
    assert init_edge_of_chaos_(nets[0]) == pytest.approx(math.sqrt(2))
    init_edge_of_chaos_(nets[1], generator=torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.random.get_rng_state())
    for name, weight in nets[0].named_parameters():
        assert torch.equal(weight, nets[1].get_parameter(name).float())
    assert float(nets[0][0].weight.detach().std()) == pytest.approx(math.sqrt(2 / 27), rel=0.1)
    assert float(nets[0][3].weight.detach().std()) == pytest.approx(math.sqrt(2 / 8), rel=0.05)
    assert torch.equal(nets[0][3].bias, torch.zeros(300))
    assert torch.equal(nets[0][1].weight, torch.ones(8))


def test_a_net_without_layers_is_refused():
    with pytest.raises(ValueError, match="no linear or convolutional layer"):
        init_gaussian_(nn.ReLU(), 1.0)


def test_stable_residual_is_the_plain_block_with_a_smaller_branch(generator):
    branch = mlp(6, 6, generator=generator)
    x = torch.randn(5, 6, generator=generator)
    assert torch.equal(StableResidual(branch, 1)(x), x + branch(x))
    assert torch.allclose(StableResidual(branch, 16)(x), x + branch(x) / 4)
    with pytest.raises(ValueError, match=r"depth must be at least 1, got 0"):
        StableResidual(branch, 0)
    with pytest.raises(ValueError, match=r"makes \(5, 1\) of \(5, 6\)"):
        StableResidual(mlp(6, 1, generator=generator), 2)(x)


def test_activations_of_stable_blocks_stay_below_e_and_of_plain_ones_double(generator):
    depth, width = 16, 200
    x = torch.randn(32, width, generator=generator)
    growth = {}
    for factor in (1, depth):
        h = x
        for _ in range(depth):
            branch = nn.Sequential(nn.ReLU(), linear(width, width, bias=False, generator=generator))
            init_edge_of_chaos_(branch, generator=generator)
            h = StableResidual(branch, factor)(h).detach()
        growth[factor] = float(h.square().mean() / x.square().mean())
    assert growth[depth] == pytest.approx((1 + 1 / depth) ** depth, rel=0.15)
    assert math.log2(growth[1]) == pytest.approx(depth, abs=2)
