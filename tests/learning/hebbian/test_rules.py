from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d, linear
from torch.testing import assert_close

from neuropil.learning.hebbian import HebbianRule, Instar, Oja, SoftHebb, patches
from neuropil.learning.networks import lecun_normal_

RULES = [SoftHebb, Oja, Instar]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def convolution(*sizes, seed=0, dtype=torch.float64, **options: Any):
    layer = nn.Conv2d(*sizes, **options, device="meta").to_empty(device="cpu").to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator(seed))
    return layer


def dense(inputs, outputs, seed=0, dtype=torch.float64, unit=False):
    layer = nn.Linear(inputs, outputs, bias=False, device="meta").to_empty(device="cpu").to(dtype)
    lecun_normal_(layer.weight, generator(seed))
    if unit:
        with torch.no_grad():
            layer.weight /= layer.weight.norm(dim=1, keepdim=True)
    return layer


def drawn(*shape, seed=1, dtype=torch.float64):
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"padding": 2, "padding_mode": "circular"},
        {"padding": "same", "padding_mode": "reflect"},
    ],
    ids=str,
)
@pytest.mark.parametrize("kernel", [3, (2, 3)], ids=str)
def test_patches_are_what_the_convolution_sees(options, kernel):
    layer, x = convolution(2, 4, kernel, **options), drawn(3, 2, 9, 8)
    rows = patches(layer, x)
    output = layer(x)
    assert layer.bias is not None
    ours = rows @ layer.weight.flatten(1).T + layer.bias
    assert_close(ours, output.permute(0, 2, 3, 1).reshape(-1, 4))


def one_by_one(rule, rows, weight):
    """The formula, patch by patch and unit by unit."""
    total = torch.zeros_like(weight)
    radius = rule.radius
    for x in rows:
        u = weight @ x
        if isinstance(rule, Oja):
            y = u
        elif rule.hard:
            y = torch.zeros_like(u)
            y[u.argmax()] = 1.0
        else:
            y = (u / rule.temperature).exp() / (u / rule.temperature).exp().sum()
        for k in range(len(weight)):
            decay = 1.0 if isinstance(rule, Instar) else u[k] / radius[k] ** 2
            total[k] += y[k] * (x - decay * weight[k])
    return total / len(rows)


@pytest.mark.parametrize(
    "make",
    [
        SoftHebb,
        lambda layer: SoftHebb(layer, temperature=0.3, norm="source", centre=True),
        lambda layer: SoftHebb(layer, hard=True),
        Oja,
        lambda layer: Oja(layer, norm="source"),
        Instar,
        lambda layer: Instar(layer, hard=False, temperature=2.0, centre=True),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_the_change_is_the_formula_and_the_gradient_is_minus_it(make, kind):
    layer, x = (
        (dense(5, 3), drawn(6, 5))
        if kind == "linear"
        else (convolution(2, 3, 3, stride=2, padding=1), drawn(2, 2, 7, 6))
    )
    rule = make(layer)
    rows = patches(layer, x)
    if rule.centre:
        rows = rows - rows.mean(1, keepdim=True)
    wanted = one_by_one(rule, rows, layer.weight.detach().flatten(1)).view_as(layer.weight)
    assert_close(rule.change(x), wanted)
    rule.backward(x)
    assert_close(layer.weight.grad, -wanted)
    rule.backward(x, torch.zeros(1), scale=0.5)  # a target is ignored, gradients add up
    assert_close(layer.weight.grad, -1.5 * wanted)
    assert getattr(layer.bias, "grad", None) is None


@pytest.mark.parametrize("rule", RULES)
def test_a_convolution_learns_what_a_linear_layer_learns_from_its_patches(rule):
    layer, x = convolution(3, 5, 3, stride=2, padding=1), drawn(4, 3, 8, 8)
    flat = dense(27, 5)
    with torch.no_grad():
        flat.weight.copy_(layer.weight.flatten(1))
    assert_close(rule(layer).change(x).flatten(1), rule(flat).change(patches(layer, x)))


def test_at_unit_length_soft_hebb_is_the_projected_gradient_of_its_likelihood():
    layer, x, temperature = dense(6, 4, unit=True), drawn(50, 6), 0.7
    loss = (-torch.logsumexp(linear(x, layer.weight) / temperature, 1) + torch.tensor(4.0).double().log()).mean()
    (slope,) = torch.autograd.grad(loss, layer.weight)
    w = layer.weight.detach()
    sideways = slope - (slope * w).sum(1, keepdim=True) * w
    rule = SoftHebb(layer, temperature=temperature)
    assert_close(rule.backward(x), loss.detach())
    assert_close(layer.weight.grad, temperature * sideways)


def test_at_unit_length_oja_is_the_projected_gradient_of_the_variance():
    layer, x = dense(6, 2, unit=True), drawn(40, 6)
    loss = -0.5 * linear(x, layer.weight).square().sum(1).mean()
    (slope,) = torch.autograd.grad(loss, layer.weight)
    w = layer.weight.detach()
    assert_close(Oja(layer).backward(x), loss.detach())
    assert_close(layer.weight.grad, slope - (slope * w).sum(1, keepdim=True) * w)


@pytest.mark.parametrize("hard", [True, False])
def test_instar_is_the_gradient_of_its_distance_at_fixed_activities(hard):
    layer, x = dense(4, 3), drawn(30, 4)
    rule = Instar(layer, hard=hard)
    y = rule.activity(linear(x, layer.weight)).detach()
    loss = 0.5 * (y * (x[:, None] - layer.weight).square().sum(2)).sum(1).mean()
    (slope,) = torch.autograd.grad(loss, layer.weight)
    assert_close(rule.backward(x), loss.detach())
    assert_close(layer.weight.grad, slope)


def test_hard_competition_is_the_limit_of_low_temperature():
    layer, x = dense(6, 4), drawn(30, 6)
    soft, hard = SoftHebb(layer, temperature=1e-4), SoftHebb(layer, hard=True)
    assert_close(soft.change(x), hard.change(x))
    assert_close(1e-4 * soft.backward(x), hard.backward(x), atol=1e-3, rtol=0)


@pytest.mark.parametrize("norm", ["unit", "source"])
def test_filters_end_at_their_length(norm):
    layer = dense(5, 3)
    with torch.no_grad():
        layer.weight *= torch.tensor([[0.5], [0.8], [1.3]])
    lengths = layer.weight.detach().norm(dim=1) if norm == "source" else torch.ones(3, dtype=torch.float64)
    x = drawn(200, 5) + 1.0
    rule, optimizer = SoftHebb(layer, norm=norm), torch.optim.SGD(layer.parameters(), lr=0.3)
    for _ in range(1500):
        rule.learn(x, None, optimizer)
    assert_close(layer.weight.detach().norm(dim=1), lengths, rtol=1e-6, atol=0)
    # and along the mean patch, weighted by its own activities
    pull = rule.activity(linear(x, layer.weight)).detach().T @ x
    assert_close(pull / pull.norm(dim=1, keepdim=True), layer.weight.detach() / lengths[:, None], atol=1e-6, rtol=0)


def test_oja_finds_the_principal_direction():
    scales = torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64)
    turn = torch.linalg.qr(drawn(3, 3, seed=4)).Q
    x = drawn(500, 3) * scales @ turn.T
    layer = dense(3, 1)
    rule, optimizer = Oja(layer), torch.optim.SGD(layer.parameters(), lr=0.02)
    for _ in range(500):
        rule.learn(x, None, optimizer)
    first = torch.linalg.svd(x, full_matrices=False).Vh[0]
    assert abs(float(layer.weight[0].detach() @ first)) == pytest.approx(1.0, abs=1e-6)


def test_instar_finds_the_centres_of_what_it_wins():
    centres = torch.tensor([[3.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    x = (centres[:, None] + 0.1 * drawn(2, 100, 2)).flatten(0, 1)
    layer = dense(2, 2)
    with torch.no_grad():
        layer.weight.copy_(centres / 4)
    rule, optimizer = Instar(layer), torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(60):
        rule.learn(x, None, optimizer)
    assert_close(layer.weight.detach(), x.view(2, 100, 2).mean(1), atol=1e-6, rtol=0)


def test_centring_takes_out_what_is_common_to_a_patch():
    layer, x = dense(6, 3), drawn(10, 6)
    shifted = x + drawn(10, 1, seed=9)
    assert_close(SoftHebb(layer, centre=True).change(shifted), SoftHebb(layer, centre=True).change(x))
    assert not torch.allclose(SoftHebb(layer).change(shifted), SoftHebb(layer).change(x))


@given(
    batch=st.integers(1, 4),
    scale=st.sampled_from([0.0, 1e-20, 1.0, 1e6]),
    double=st.booleans(),
    rule=st.sampled_from(RULES),
)
def test_any_scale_gives_finite_changes_of_the_right_type(batch, scale, double, rule):
    dtype = torch.float64 if double else torch.float32
    layer = convolution(2, 3, 3, padding=1, dtype=dtype)
    x = (scale * drawn(batch, 2, 6, 5, dtype=dtype)).transpose(2, 3)  # not contiguous
    change = rule(layer).change(x)
    assert change.dtype == dtype
    assert change.shape == layer.weight.shape
    assert change.isfinite().all()
    assert_close(change, rule(layer).change(x.contiguous()), rtol=1e-4, atol=1e-6 * float(change.abs().max()))
    if scale == 0.0 and rule is not Instar:
        assert not change.any()


def test_a_batch_is_the_mean_of_its_samples():
    layer, x = convolution(1, 4, 3), drawn(3, 1, 6, 6)
    rule = SoftHebb(layer)
    assert_close(rule.change(x), torch.stack([rule.change(sample[None]) for sample in x]).mean(0))
    sequence = dense(5, 3)
    assert_close(SoftHebb(sequence).change(drawn(2, 4, 5)), SoftHebb(sequence).change(drawn(2, 4, 5).view(8, 5)))


def test_a_frozen_layer_gets_no_gradient_and_the_radius_is_kept_in_the_state():
    layer = dense(4, 2)
    layer.weight.requires_grad_(False)
    rule = SoftHebb(layer, norm="source")
    rule.backward(drawn(3, 4))
    assert layer.weight.grad is None
    other = SoftHebb(dense(4, 2, seed=5), norm="source")
    other.load_state_dict(rule.state_dict())
    assert_close(other.radius, layer.weight.norm(dim=1))


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match="SoftHebb trains a Linear or Conv2d, got ReLU"):
        SoftHebb(nn.ReLU())
    with pytest.raises(ValueError, match="groups=1, got 2"):
        Oja(convolution(2, 4, 3, groups=2))
    with pytest.raises(ValueError, match='norm must be "unit" or "source", got \'l2\''):
        SoftHebb(dense(3, 2), norm="l2")
    for make in (SoftHebb, Instar):
        with pytest.raises(ValueError, match=r"temperature must be positive and finite, got 0\.0"):
            make(dense(3, 2), temperature=0.0)
    silent = dense(3, 2)
    with torch.no_grad():
        silent.weight[0] = 0.0
    with pytest.raises(ValueError, match="1 filters have length 0"):
        SoftHebb(silent, norm="source")
    with pytest.raises(ValueError, match=r"x has shape \(2, 4\), the layer takes \(\.\.\., 3\)"):
        SoftHebb(dense(3, 2)).change(drawn(2, 4))
    with pytest.raises(ValueError, match=r"the layer takes \(batch, 2, height, width\)"):
        SoftHebb(convolution(2, 4, 3)).change(drawn(2, 8, 8))
    with pytest.raises(ValueError, match="no patch to learn from"):
        SoftHebb(dense(3, 2)).change(drawn(0, 3))
    with pytest.raises(TypeError, match="layer must be a Linear or Conv2d, got Flatten"):
        patches(nn.Flatten(), drawn(2, 3))
    with pytest.raises(FloatingPointError, match="SoftHebb: the change of the weight is not finite"):
        SoftHebb(dense(3, 2)).change(torch.full((2, 3), float("nan"), dtype=torch.float64))


def test_every_rule_is_hebbian_and_a_plain_convolution_agrees_with_the_drive():
    layer, x = convolution(2, 3, 3), drawn(2, 2, 5, 5)
    for make in RULES:
        rule = make(layer)
        assert isinstance(rule, HebbianRule)
        assert_close(rule.predict(x), conv2d(x, layer.weight, layer.bias))
