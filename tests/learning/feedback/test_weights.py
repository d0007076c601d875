"""Rules whose errors travel back through other weights than the forward ones."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation
from neuropil.learning.feedback import (
    FeedbackAlignment,
    FeedbackRule,
    KolenPollack,
    ProductFeedbackAlignment,
    SignSymmetry,
)
from neuropil.learning.feedback.maps import pull_back, weight_gradient
from neuropil.learning.networks import mlp
from tests.learning.nets import case

REROUTED = ["dense", "conv", "residual", "projected transformer"]


class Transposed(FeedbackRule):
    """Sends back through the forward weights: backpropagation."""

    def back_weight(self, name):
        return self.layers[name].weight


def gradients(rule, x, y):
    rule.net.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        loss = rule.backward(x, y)
    return {name: p.grad.clone() for name, p in rule.net.named_parameters()}, loss


@pytest.mark.parametrize("name", REROUTED)
def test_sending_back_through_the_forward_weights_is_backpropagation(name):
    net, _, x, y = case(name)
    expected, loss = gradients(Backpropagation(net, cross_entropy), x, y)
    ours, same = gradients(Transposed(net, cross_entropy), x, y)
    assert torch.equal(loss, same)
    for key, gradient in ours.items():
        assert_close(gradient, expected[key], rtol=1e-5, atol=1e-7)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("name", REROUTED)
@pytest.mark.parametrize("rule", [FeedbackAlignment, KolenPollack, SignSymmetry, ProductFeedbackAlignment])
def test_the_last_layer_hears_the_true_error_and_the_rest_another(name, rule, generator):
    net, _, x, y = case(name)
    expected, loss = gradients(Backpropagation(net, cross_entropy), x, y)
    options = {} if rule is SignSymmetry else {"generator": generator}
    ours, same = gradients(rule(net, cross_entropy, **options), x, y)
    assert torch.equal(loss, same)
    names = [key for key in ours if key.endswith("weight") and ours[key].dim() > 1]
    assert_close(ours[names[-1]], expected[names[-1]])
    assert not torch.allclose(ours[names[0]], expected[names[0]])
    assert all(gradient.isfinite().all() for gradient in ours.values())


CONVOLUTIONS = [
    (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 9, 8)),
    (nn.Conv1d(2, 4, 3, padding="same", dilation=2), (3, 2, 11)),
    (nn.Conv1d(2, 4, 3, padding="valid"), (3, 2, 11)),
    (nn.Conv3d(2, 3, 2, stride=(1, 2, 1)), (2, 2, 4, 5, 4)),
    (nn.Conv2d(4, 6, 3), (4, 6, 6)),
    (nn.Linear(5, 3), (7, 5)),
    (nn.Linear(5, 3), (2, 4, 5)),
    (nn.Linear(5, 3), (5,)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=str)
def test_maps_are_the_adjoints_that_autograd_takes(layer, shape, generator):
    layer = layer.double()
    h = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    output = layer(h)
    delta = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    error, weight = torch.autograd.grad(output, [h, layer.weight], delta)
    assert_close(pull_back(layer, layer.weight.detach(), delta, h.detach()), error)
    assert_close(weight_gradient(layer, layer.weight.detach(), delta, h.detach()), weight)


@pytest.mark.parametrize("name", REROUTED)
@pytest.mark.parametrize("density", [1.0, 0.4])
def test_the_gradient_of_r_is_b_times_that_of_w(name, density, generator):
    net, _, x, y = case(name)
    rule = ProductFeedbackAlignment(net, cross_entropy, expansion=3, density=density, generator=generator)
    gradients(rule, x, y)
    for layer, module in rule.layers.items():
        fixed, plastic = rule.fixed(layer)[0], rule.plastic(layer)
        expected = fixed.T @ module.weight.grad.flatten(1)
        mask = 1.0 if density == 1 else rule.get_buffer(f"mask {layer.replace('.', '/')}")
        assert_close(plastic.grad, expected.view_as(plastic) * mask, rtol=1e-4, atol=1e-7)


def test_in_groups_every_group_has_an_extra_population_of_its_own(generator):
    net = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 3))
    net.double()
    x, y = torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    rule = ProductFeedbackAlignment(net, cross_entropy, expansion=2, generator=generator)
    assert rule.fixed("2").shape == (2, 3, 6)
    gradients(rule, x, y)
    weight, plastic = net[2].weight.grad, rule.plastic("2").grad
    for group in range(2):
        expected = rule.fixed("2")[group].T @ weight[3 * group : 3 * group + 3].flatten(1)
        assert_close(plastic[6 * group : 6 * group + 6].flatten(1), expected)
    # the error that reaches the first layer is that of the product B R
    reference = FeedbackAlignment(net, cross_entropy, generator=generator)
    for layer in rule.layers:
        reference.get_buffer(layer).copy_(rule.back_weight(layer))
    ours, _ = gradients(rule, x, y)
    same, _ = gradients(reference, x, y)
    assert_close(ours, same)


def test_an_expansion_of_one_with_b_the_identity_is_kolen_pollack(generator):
    net, _, x, y = case("dense")
    product = ProductFeedbackAlignment(net, cross_entropy, expansion=1, generator=generator)
    learned = KolenPollack(net, cross_entropy, generator=generator)
    for name in product.layers:
        product.get_buffer(f"B {name}").copy_(torch.eye(product.layers[name].weight.shape[0]))
        learned.get_parameter(name).data.copy_(product.plastic(name))
    ours, _ = gradients(product, x, y)
    same, _ = gradients(learned, x, y)
    assert_close(ours, same)
    for name in product.layers:
        assert_close(product.plastic(name).grad, learned.get_parameter(name).grad)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_weight_decay_makes_learned_feedback_equal_to_the_forward_weights(momentum, generator):
    net, _, x, y = case("dense")
    rule = KolenPollack(net, cross_entropy, generator=generator)
    rate, decay, steps = 0.05, 0.2, 40
    optimizer = torch.optim.SGD([*net.parameters(), *rule.parameters()], rate, momentum=momentum, weight_decay=decay)
    difference = {
        name: layer.weight.detach() - rule.get_parameter(name).detach() for name, layer in rule.layers.items()
    }
    for _ in range(steps):
        rule.learn(x, y, optimizer)
    # the recursion of weight decay and momentum alone
    factor, velocity = 1.0, 0.0
    for _ in range(steps):
        velocity = momentum * velocity + decay * factor
        factor -= rate * velocity
    for name, layer in rule.layers.items():
        assert_close(layer.weight - rule.get_parameter(name), factor * difference[name], rtol=1e-3, atol=1e-6)


def test_an_orthogonal_product_follows_the_same_recursion(generator):
    net, _, x, y = case("dense")
    net.double()
    rule = ProductFeedbackAlignment(net, cross_entropy, expansion=1.5, orthogonal=True, generator=generator)
    for name in rule.layers:
        fixed = rule.fixed(name)[0]
        assert_close(fixed @ fixed.T, torch.eye(len(fixed), dtype=torch.float64))
    before = {name: layer.weight.detach() - rule.back_weight(name) for name, layer in rule.layers.items()}
    optimizer = torch.optim.SGD([*net.parameters(), *rule.parameters()], 0.05, weight_decay=0.2)
    for _ in range(200):
        rule.learn(x.double(), y, optimizer)
    for name, layer in rule.layers.items():
        assert_close(layer.weight - rule.back_weight(name), 0.99**200 * before[name])
    assert (rule.weight_alignment()["angle"] < 90).all()


@pytest.mark.parametrize("expansion", [4, 16])
def test_at_the_fixed_point_the_angle_is_that_of_marchenko_and_pastur(expansion, generator):
    net = mlp(300, 200, 200, generator=generator)
    rule = ProductFeedbackAlignment(net, expansion=expansion, generator=generator)
    for name in rule.layers:
        rule.plastic(name).data.copy_(rule.fixed(name)[0].T @ rule.layers[name].weight)
    angles = rule.weight_alignment()["angle"].to_numpy()
    assert np.abs(angles - math.degrees(math.atan(expansion**-0.5))).max() < 1.5


@pytest.mark.parametrize("density", [1.0, 0.2])
def test_b_has_entries_of_variance_one_over_width(density, generator):
    rule = ProductFeedbackAlignment(
        mlp(20, 100, generator=generator), density=density, expansion=8, generator=generator
    )
    fixed = rule.fixed("0")
    assert float(fixed.square().sum(-1).mean()) == pytest.approx(1, rel=0.03)
    assert float((fixed != 0).float().mean()) == pytest.approx(density, abs=0.01)
    assert float((rule.plastic("0") != 0).float().mean()) == pytest.approx(density, abs=0.02)


def test_signs_are_those_of_the_forward_weights_and_random_sizes_change_with_the_batch(generator):
    net, _, x, y = case("dense")
    uniform = SignSymmetry(net, cross_entropy)
    random = SignSymmetry(net, cross_entropy, magnitude="random", generator=generator)
    for name, layer in uniform.layers.items():
        assert torch.equal(uniform.back_weight(name).sign(), layer.weight.sign())
        assert uniform.back_weight(name).abs().unique().numel() == 1
    first = random.back_weight("2")
    gradients(random, x, y)
    assert not torch.equal(random.back_weight("2"), first)
    assert torch.equal(random.back_weight("2").sign(), first.sign())
    net[0].weight.data.zero_()
    assert math.isnan(uniform.weight_alignment()["angle"][0])


def test_other_layers_keep_their_transpose(generator):
    net, _, x, y = case("dense")
    expected, _ = gradients(Backpropagation(net, cross_entropy), x, y)
    rule = FeedbackAlignment(net, cross_entropy, layers=["2"], generator=generator)
    ours, _ = gradients(rule, x, y)
    assert_close(ours["2.weight"], expected["2.weight"])
    assert not torch.allclose(ours["0.weight"], expected["0.weight"])
    assert list(rule.state_dict()) == ["2"]


def test_a_layer_that_is_called_twice_sends_back_twice(generator):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))

    net, x, y = Twice(), torch.randn(5, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    expected, _ = gradients(Backpropagation(net, cross_entropy), x, y)
    assert_close(gradients(Transposed(net, cross_entropy), x, y)[0], expected)
    rule = KolenPollack(net, cross_entropy, generator=generator)
    gradients(rule, x, y)
    assert_close(rule.get_parameter("layer").grad, net.layer.weight.grad)


def test_in_place_activations_may_follow_a_weight_layer(generator):
    x, y = torch.randn(5, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    nets = [nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=inplace), nn.Linear(6, 3)) for inplace in (True, False)]
    nets[1].load_state_dict(nets[0].state_dict())
    ours, theirs = (gradients(FeedbackAlignment(net, cross_entropy), x, y)[0] for net in nets)
    assert_close(ours, theirs)


def test_frozen_layers_pass_errors_on_and_keep_no_gradient(generator):
    net, _, x, y = case("dense")
    net[2].requires_grad_(False)
    rule = FeedbackAlignment(net, cross_entropy, generator=generator)
    rule.backward(x, y)
    assert net[2].weight.grad is None
    assert net[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: FeedbackAlignment(nn.MultiheadAttention(4, 2)), TypeError, r"MultiheadAttention uses its weights"),
        (lambda: FeedbackAlignment(nn.Sequential(nn.LSTM(3, 4))), TypeError, r"'0' \(LSTM\) uses its weights without"),
        (lambda: FeedbackAlignment(nn.ConvTranspose1d(2, 3, 2)), TypeError, "ConvTranspose1d cannot send"),
        (lambda: FeedbackAlignment(nn.ReLU()), TypeError, "ReLU has no Linear or Conv"),
        (lambda: FeedbackAlignment(mlp(2, 3), layers=["1"]), ValueError, r"No weight layer is named '1'; .* \['0'\]"),
        (lambda: KolenPollack(nn.Conv1d(1, 1, 3, padding_mode="circular")), ValueError, "padding_mode='circular'"),
        (lambda: KolenPollack(nn.Conv1d(1, 1, 2, padding="same")), ValueError, "unevenly"),
        (lambda: ProductFeedbackAlignment(mlp(2, 3), expansion=0.5), ValueError, "expansion must be at least 1"),
        (lambda: ProductFeedbackAlignment(mlp(2, 3), density=0), ValueError, r"density must lie in \(0, 1\], got 0"),
        (lambda: ProductFeedbackAlignment(mlp(2, 3), density=0.5, orthogonal=True), ValueError, "no zeros to spare"),
        (lambda: SignSymmetry(mlp(2, 3), magnitude="big"), ValueError, "magnitude must be"),
        (lambda: FeedbackAlignment(mlp(2, 3), cross_entropy).backward(torch.ones(1, 2)), ValueError, "pass y"),
    ],
)
def test_what_cannot_be_done_is_named(make, error, words):
    with pytest.raises(error, match=words):
        make()
