import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Stages, mlp
from neuropil.learning.energy import IncrementalPredictiveCoding, PredictiveCoding, squared_energy
from tests.learning.nets import CASES, case


def small(generator):
    net = mlp(6, 8, 7, 4, activation=nn.Tanh, generator=generator).double()
    return net, torch.randn(5, 6, generator=generator).double(), torch.tensor([0, 3, 1, 1, 2])


def reference(net, x, y, steps, rate, momentum, lr):
    """Algorithm 1 from nothing but autograd on F, both gradients from one evaluation."""
    stages = Stages(net)
    h = [value.detach() for value in stages(x)[:-1]]
    velocity = [torch.zeros_like(value) for value in h]
    for _ in range(steps):
        leaves = [value.requires_grad_() for value in h]
        outputs = stages(x, activities=leaves)
        energy = sum(0.5 * (a - p).square().sum() for a, p in zip(leaves, outputs[:-1], strict=True))
        energy = energy + len(y) * squared_energy(outputs[-1], y)
        parameters = list(net.parameters())
        slopes = torch.autograd.grad(energy, [*leaves, *parameters])
        velocity = [momentum * v + g for v, g in zip(velocity, slopes, strict=False)]
        h = [(a - rate * v).detach() for a, v in zip(leaves, velocity, strict=True)]
        with torch.no_grad():
            for p, g in zip(parameters, slopes[len(h) :], strict=True):
                p.sub_(g, alpha=lr / len(y))


@pytest.mark.parametrize("momentum", [0.0, 0.25])
def test_learn_is_the_algorithm(momentum, generator):
    net, x, y = small(generator)
    twin, *_ = small(torch.Generator().manual_seed(0))
    assert torch.equal(net[0].weight, twin[0].weight)
    reference(twin, x, y, 6, 0.3, momentum, 0.05)
    rule = IncrementalPredictiveCoding(net, squared_energy, steps=6, rate=0.3, momentum=momentum)
    rule.learn(x, y, torch.optim.SGD(net.parameters(), lr=0.05))
    assert_close(net.state_dict(), twin.state_dict())


def test_backward_is_the_mean_gradient_at_fixed_weights(generator):
    net, x, y = small(generator)
    rule = IncrementalPredictiveCoding(net, squared_energy, steps=6, rate=0.3)
    loss = rule.backward(x, y)
    ours = [p.grad.clone() for p in net.parameters()]
    assert_close(loss, squared_energy(net(x), y).detach())
    means = [torch.zeros_like(p) for p in net.parameters()]
    for packet in rule.packets(x, y):
        net.zero_grad()
        packet.apply()
        for mean, p in zip(means, net.parameters(), strict=True):
            mean.add_(p.grad, alpha=1 / 6)
    assert_close(ours, means)


def test_without_weight_steps_activities_move_as_in_predictive_coding(generator):
    net, x, y = small(generator)
    rule = IncrementalPredictiveCoding(net, squared_energy, steps=6, rate=0.3)
    for _ in rule.packets(x, y):
        pass
    other = PredictiveCoding(net, squared_energy, steps=5, rate_own=0.3, rate_above=0.3)
    assert_close(rule.last.activities, other.relax(x, y).activities)
    assert_close(rule.last.energy, other.relax(x, y).energy)


def test_small_full_batch_steps_never_raise_the_energy(generator):
    net, x, y = small(generator)
    rule = IncrementalPredictiveCoding(net, squared_energy, steps=200, rate=0.05)
    rule.learn(x, y, torch.optim.SGD(net.parameters(), lr=0.01))
    total = rule.last.energy.sum(1)
    assert float(total.diff().max()) <= 1e-12
    assert float(total[-1]) < 0.2 * float(total[0])


def test_the_loss_returned_is_that_of_the_feed_forward_pass(generator):
    net, x, y = small(generator)
    expected = cross_entropy(net(x), y).detach()
    rule = IncrementalPredictiveCoding(net, cross_entropy, nudge=0.3)
    assert_close(rule.learn(x, y, torch.optim.SGD(net.parameters(), lr=0.1)), expected)


def test_an_abandoned_batch_leaves_no_hooks():
    net, points, x, y = case("residual")[:4]
    packets = IncrementalPredictiveCoding(net, cross_entropy, points=points).packets(x, y)
    next(packets)
    next(packets)
    packets.close()
    assert all(not m._forward_hooks for m in net.modules())


def test_gradient_mode_and_optimizer_between_packets_are_the_users():
    net, points, x, y = case("residual")[:4]
    rule = IncrementalPredictiveCoding(net, cross_entropy, points=points)
    with torch.no_grad():
        for packet in rule.packets(x, y):
            assert not torch.is_grad_enabled()
            for parameter, gradient in zip(packet.outputs, packet.teaching, strict=True):
                parameter.sub_(gradient, alpha=0.1)
    assert torch.is_grad_enabled()
    for _ in rule.packets(x, y):
        assert torch.is_grad_enabled()
        assert rule.predict(x).shape == (5, 4)  # the net may be used while the rule waits


@pytest.mark.parametrize("name", CASES)
def test_the_first_packet_teaches_the_output_alone(name):
    net, points, x, y = case(name)[:4]
    first = next(IncrementalPredictiveCoding(net, cross_entropy, points=points, steps=5).packets(x, y))
    stages = Stages(net.eval(), points)
    net.train()
    with torch.random.fork_rng():
        reached = torch.autograd.grad(stages(x)[-1].sum(), list(net.parameters()), allow_unused=True)
    last = {id(p) for p, g in zip(net.parameters(), reached, strict=True) if g is not None}
    sizes = {id(p): float(g.abs().max()) for p, g in zip(first.outputs, first.teaching, strict=True)}
    assert all(size == 0 for key, size in sizes.items() if key not in last)
    assert any(sizes[key] > 0 for key in last)


def test_divergence_is_raised_before_the_weights_see_it(generator):
    net, x, y = small(generator)
    rule = IncrementalPredictiveCoding(net, squared_energy, steps=2000, rate=4.0)
    with pytest.raises(FloatingPointError, match="Inference diverged: at step"):
        rule.learn(x, y, torch.optim.SGD(net.parameters(), lr=0.0))
    assert all(torch.isfinite(p).all() for p in net.parameters())


def test_momentum_out_of_range_is_named():
    with pytest.raises(ValueError, match="momentum must lie"):
        IncrementalPredictiveCoding(mlp(2, 3, 2), squared_energy, momentum=1.0)


def test_learn_leaves_frozen_stages_alone(generator):
    net, x, y = small(generator)
    net[2].requires_grad_(False)
    before = net[2].weight.clone()
    rule = IncrementalPredictiveCoding(net, squared_energy, steps=4)
    rule.learn(x, y, torch.optim.Adam(net.parameters(), lr=0.1))
    assert torch.equal(net[2].weight, before)
    assert net[2].weight.grad is None
    assert float(net[0].weight.grad.abs().max()) > 0
