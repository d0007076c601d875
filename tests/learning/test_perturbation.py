"""Node perturbation against autograd: closed forms for one draw, the limit of many, and what it must refuse."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation, Stages
from neuropil.learning.networks import linear, mlp
from neuropil.learning.perturbation import NodePerturbation
from neuropil.losses import half_squared_error
from tests.learning.nets import CASES, case


def gradient(rule, x, y):
    rule.net.zero_grad()
    rule.backward(x, y)
    return torch.cat([p.grad.flatten() for p in rule.net.parameters() if p.grad is not None])


def small(generator, dtype=torch.float64):
    net = mlp(4, 5, 3, activation=nn.Tanh, generator=generator).to(dtype)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64).to(dtype)
    return net, x, torch.randint(3, (6,), generator=generator)


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 50.0])
def test_on_a_linear_neuron_two_sided_estimates_are_the_projection_on_the_noise_at_any_size(generator, sigma):
    net = linear(4, 2, generator=generator).double()
    x, y = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    rule = NodePerturbation(
        net, half_squared_error, points=(), sigma=sigma, two_sided=True, generator=generator.manual_seed(3)
    )
    (packet,) = rule.packets(x, y)
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(3)).double()
    error = net(x).detach() - y
    assert_close(packet.teaching[0], (error * noise).sum(1, keepdim=True) * noise / 5, rtol=1e-6, atol=1e-9)
    assert_close(packet.loss, half_squared_error(net(x), y).detach())


def test_one_sided_estimates_add_the_curvature_along_the_noise(generator):
    net = linear(4, 2, generator=generator).double()
    x, y = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    rule = NodePerturbation(net, half_squared_error, points=(), sigma=0.3, generator=generator.manual_seed(3))
    (packet,) = rule.packets(x, y)
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(3)).double()
    change = ((net(x).detach() - y) * noise).sum(1) + 0.3 * noise.square().sum(1) / 2
    assert_close(packet.teaching[0], change[:, None] * noise / 5, rtol=1e-6, atol=1e-9)


def repeated(x, y, times):
    """The same samples many times: every copy has noise of its own, and the gradient of the mean stays the same."""
    return x.repeat(times, *[1] * (x.dim() - 1)), y.repeat(times)


@pytest.mark.parametrize("cut", ["activation", "preactivation"])
@pytest.mark.parametrize("two_sided", [False, True])
def test_the_mean_estimate_is_the_gradient_in_every_stage(generator, cut, two_sided):
    net, x, y = small(generator)
    rule = NodePerturbation(net, cross_entropy, cut=cut, sigma=1e-3, two_sided=two_sided, generator=generator)
    estimates = torch.stack([gradient(rule, *repeated(x, y, 2000)) for _ in range(40)])
    exact = gradient(Backpropagation(net, cross_entropy), x, y)
    error = (estimates.mean(0) - exact) / (estimates.std(0) / 40**0.5)
    assert error.abs().max() < 4.5  # in standard errors, over 43 parameters
    assert_close(estimates.mean(0), exact, atol=0.01, rtol=0.05)


def test_the_error_falls_with_the_square_root_of_the_draws(generator):
    net, x, y = small(generator)
    exact = gradient(Backpropagation(net, cross_entropy), x, y)
    rules = [NodePerturbation(net, cross_entropy, samples=n, generator=generator) for n in (1, 16)]
    few, many = (torch.stack([gradient(r, *repeated(x, y, 4)) - exact for _ in range(20)]).norm() for r in rules)
    assert 2.8 < few / many < 5.6


def test_the_last_stage_hears_nothing_of_the_noise_below_it_in_a_net_whose_loss_is_flat(generator):
    net, x, y = small(generator)
    flat = NodePerturbation(net, lambda output, target: 0 * output.sum() / len(output), generator=generator)
    assert not gradient(flat, x, y).any()


def test_judged_together_samples_share_one_change_of_the_loss(generator):
    net = linear(4, 2, generator=generator).double()
    x, y = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (4, 2))
    options = {"sigma": 0.3, "two_sided": True, "credit": "batch", "generator": generator.manual_seed(3)}
    (packet,) = NodePerturbation(net, half_squared_error, points=(), **options).packets(x, y)
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(3)).double()
    error = (net(x).detach() - y) / 5
    assert_close(packet.teaching[0], (error * noise).sum() * noise, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_nets_of_every_kind_are_taught_along_their_gradient(name, generator):
    net, points, x, y = case(name)
    net = net.eval()  # dropout and batch statistics off: both gradients are of the same net
    rule = NodePerturbation(net, cross_entropy, points=points, generator=generator)
    ours = gradient(rule, *repeated(x, y, 2000))
    exact = gradient(Backpropagation(net, cross_entropy), x, y)
    assert torch.cosine_similarity(ours, exact, dim=0) > 0.8


def test_samples_that_depend_on_one_another_are_refused_or_judged_together(generator):
    net = nn.Sequential(linear(3, 2, generator=generator), nn.BatchNorm1d(2), linear(2, 2, generator=generator))
    x, y = torch.randn(5, 3, generator=generator), torch.tensor([0, 1, 0, 1, 1])
    net = net.double()
    x = x.double()
    with pytest.raises(ValueError, match=r"Batch norm '1' .* credit=\"batch\""):
        NodePerturbation(net, cross_entropy).backward(x, y)
    options = {"credit": "batch", "samples": 250, "two_sided": True, "sigma": 1e-3, "generator": generator}
    ours = gradient(NodePerturbation(net, cross_entropy, **options), x, y)
    exact = gradient(Backpropagation(net, cross_entropy), x, y)
    assert torch.cosine_similarity(ours, exact, dim=0) > 0.6
    net.eval()
    NodePerturbation(net, cross_entropy).backward(x, y)  # with running statistics samples are on their own


def test_the_net_is_run_once_as_far_as_it_can_tell():
    net, _, x, y = case("conv")
    twin = copy.deepcopy(net)
    before = torch.get_rng_state()
    with torch.random.fork_rng():
        rule = NodePerturbation(net, cross_entropy, credit="batch", samples=3, two_sided=True)
        loss = rule.backward(x, y)
        after = torch.get_rng_state()
    with torch.random.fork_rng():
        assert torch.equal(torch.get_rng_state(), before)
        expected = cross_entropy(twin(x), y)  # the same dropout mask
        assert torch.equal(torch.get_rng_state(), after)
    assert_close(loss, expected.detach())
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, twin.get_buffer(name)), name


def test_the_noise_comes_from_the_generator_alone(generator):
    net, x, y = small(generator)
    seeded = [NodePerturbation(net, cross_entropy, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    one, other = (gradient(rule, x, y) for rule in seeded)
    assert torch.equal(one, other)
    assert not torch.equal(gradient(seeded[0], x, y), one)  # the next draw is another
    assert torch.equal(*(gradient(NodePerturbation(net, cross_entropy), x, y) for _ in range(2)))


def test_frozen_stages_one_sample_and_strides(generator):
    net, x, y = small(generator, torch.float32)
    net[0].requires_grad_(False)
    rule = NodePerturbation(net, cross_entropy, generator=generator)
    rule.backward(x.t().contiguous().t()[:1], y[:1])
    assert net[0].weight.grad is None
    assert net[2].weight.grad.isfinite().all()
    net.zero_grad()
    rule.backward(torch.zeros_like(x), y)
    assert not net[2].weight.grad.isnan().any()


def test_it_learns_and_the_names_of_its_cuts_are_those_of_the_stages(generator):
    net, x, y = small(generator, torch.float32)
    rule = NodePerturbation(net, cross_entropy, generator=generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    losses = [float(rule.learn(x, y, optimizer)) for _ in range(120)]
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])
    assert rule.stages.names == Stages(net, cut="preactivation").names


def test_a_saved_rule_goes_on_with_the_same_noise(generator):
    net, x, y = small(generator)
    rule = NodePerturbation(net, cross_entropy, generator=generator)
    rule.backward(x, y)
    kept = copy.deepcopy(rule.state_dict())
    other = NodePerturbation(net, cross_entropy, generator=torch.Generator().manual_seed(9))
    other.load_state_dict(kept)
    assert torch.equal(gradient(rule, x, y), gradient(other, x, y))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"sigma": float("nan")}, "sigma must be positive"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"credit": "unit"}, "credit must be"),
        ({"cut": "middle"}, "cut must be"),
    ],
)
def test_wrong_arguments_are_named(generator, options, words):
    with pytest.raises(ValueError, match=words):
        NodePerturbation(linear(2, 2, generator=generator), cross_entropy, **{"points": (), **options})


def test_wrong_batches_are_named(generator):
    net, x, y = small(generator)
    with pytest.raises(ValueError, match="pass y"):
        NodePerturbation(net, cross_entropy).backward(x)
    with pytest.raises(ValueError, match="as the mean over samples"):
        NodePerturbation(net, nn.CrossEntropyLoss(reduction="sum")).backward(x, y)
    with pytest.raises(ValueError, match="must be the batch"):
        NodePerturbation(nn.Sequential(net, nn.Flatten(0)), half_squared_error, points=["0.0"]).backward(x, y)
    with pytest.raises(FloatingPointError, match="under noise"):
        NodePerturbation(net, half_squared_error, sigma=1e200).backward(x, torch.zeros(6, 3, dtype=torch.float64))
