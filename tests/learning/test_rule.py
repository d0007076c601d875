from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation, LearningRule, Packet
from neuropil.learning.rule import refuse
from tests.learning.nets import CASES, case, dense


def grads(net):
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


class Scripted(LearningRule):
    """Yields what it is told to, and counts the weights it saw."""

    def __init__(self, net, script):
        super().__init__(net)
        self.script, self.seen = script, []

    def packets(self, x: Tensor, y: Tensor | None = None) -> Iterator[Packet]:
        for loss, weight in self.script:
            output = self.net(x)
            self.seen.append(output.detach().clone())
            yield Packet([output], [torch.ones_like(output)], torch.tensor(loss), weight)


@pytest.mark.parametrize("name", CASES)
def test_backpropagation_is_autograd_to_the_last_bit(name):
    net, _, x, y = case(name)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        loss = cross_entropy(net(x), y)
    loss.backward()
    expected = grads(net)
    net.zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        returned = Backpropagation(net, cross_entropy).backward(x, y)
    assert torch.equal(returned, loss.detach())
    assert not returned.requires_grad
    for key, gradient in grads(net).items():
        assert torch.equal(gradient, expected[key])


def test_backward_adds_like_autograd_and_scales():
    net, _, x, y = case("dense")
    rule = Backpropagation(net, cross_entropy)
    rule.backward(x, y)
    once = grads(net)
    rule.backward(x, y)
    assert_close(grads(net), {key: 2 * value for key, value in once.items()})
    net.zero_grad()
    for part in (slice(0, 2), slice(2, 5)):  # micro-batches that add up to the whole
        rule.backward(x[part], y[part], scale=len(x[part]) / 5)
    assert_close(grads(net), once)


def test_packets_weigh_loss_and_gradient_alike():
    net = nn.Linear(3, 2)
    x = torch.ones(4, 3)
    rule = Scripted(net, [(1.0, 2.0), (5.0, -0.5)])
    assert float(rule.backward(x)) == pytest.approx(2.0 - 2.5)
    assert_close(net.bias.grad, torch.full((2,), 4 * 1.5))


def test_learn_steps_after_every_packet_and_packets_see_the_moved_weights():
    net = nn.Linear(3, 2)
    rule = Scripted(net, [(0.0, 1.0), (0.0, 1.0)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.bias.detach().clone()
    rule.learn(torch.ones(4, 3), None, optimizer)
    assert not torch.equal(rule.seen[0], rule.seen[1])
    assert_close(net.bias.detach(), before - 2 * 0.1 * 4)
    rule.backward(torch.ones(4, 3))
    assert_close(rule.seen[2], rule.seen[3])


def test_a_rule_owns_nothing_of_the_net():
    net = dense()
    rule = Backpropagation(net, cross_entropy)
    assert not list(rule.parameters())
    assert not rule.state_dict()
    rule.eval()
    assert net.training
    assert_close(rule(torch.ones(2, 6)), net(torch.ones(2, 6)))


def test_frozen_stages_keep_no_gradient():
    net, _, x, y = case("dense")
    net[0].requires_grad_(False)
    Backpropagation(net, cross_entropy).backward(x, y)
    assert net[0].weight.grad is None
    net.requires_grad_(False)
    net.zero_grad()
    Backpropagation(net, cross_entropy).backward(x, y)  # nothing to learn is no error
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_clipping_schedulers_and_optimizers_work_as_with_autograd(optimizer):
    ours, theirs = dense(), dense()
    theirs.load_state_dict(ours.state_dict())
    _, _, x, y = case("dense")
    rule = Backpropagation(ours, cross_entropy)
    for net, call in ((ours, lambda: rule.backward(x, y)), (theirs, lambda: cross_entropy(theirs(x), y).backward())):
        steps = optimizer(net.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.StepLR(steps, 2, gamma=0.5)
        for _ in range(5):
            steps.zero_grad()
            call()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            steps.step()
            schedule.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_loss_scaling_goes_through_scale():
    net, _, x, y = case("dense")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rule = Backpropagation(net, cross_entropy)
    rule.backward(x, y)
    plain = grads(net)
    net.zero_grad()
    scaler.scale(torch.zeros(()))
    rule.backward(x, y, scale=scaler.get_scale())
    scaler.unscale_(optimizer)
    assert_close(grads(net), plain)


def test_compiled_nets_and_stages_give_the_same_gradient():
    net, _, x, y = case("dense")
    Backpropagation(net, cross_entropy).backward(x, y)
    plain = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    stages = nn.Sequential(*(torch.compile(child, backend="eager") for child in net))
    Backpropagation(stages, cross_entropy).backward(x, y)
    for gradient, parameter in zip(plain, net.parameters(), strict=True):
        assert_close(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda net, x, y: Backpropagation(net).backward(x, y), ValueError, "needs a loss_fn"),
        (lambda net, x, y: Backpropagation(net, cross_entropy).backward(x), ValueError, "pass y"),
        (lambda net, x, y: Scripted(net, []).backward(x), ValueError, "yielded nothing"),
        (lambda net, x, y: Packet([x], [x, x], x).apply(), ValueError, "1 outputs and 2 teaching"),
        (lambda net, x, y: Packet([x], [x[:2]], x).apply(), ValueError, r"Stage 0 has output \(5, 6\)"),
    ],
)
def test_wrong_use_is_named(call, error, words):
    net, _, x, y = case("dense")
    with pytest.raises(error, match=words):
        call(net, x, y)


def test_the_output_error_is_the_gradient_there():
    net, _, x, y = case("dense")
    output = net(x)
    loss, error = Backpropagation(net, cross_entropy).output_error(output, y)
    assert_close(error, torch.autograd.grad(cross_entropy(output, y), output)[0])
    assert_close(loss, cross_entropy(output, y).detach())
    assert not error.requires_grad
    with torch.no_grad():
        assert_close(Backpropagation(net, cross_entropy).output_error(output, y)[1], error)


def test_nets_are_refused_by_name():
    net, _, _, _ = case("conv")
    with pytest.raises(TypeError, match=r"Backpropagation cannot train '1' \(BatchNorm2d\)\. Use LayerNorm\."):
        refuse(Backpropagation(net, cross_entropy), (nn.BatchNorm2d,), "Use LayerNorm.")
    refuse(Backpropagation(net, cross_entropy), (nn.LayerNorm,), "There is none.")


def test_nets_of_several_arguments_are_trained():
    class Sum(nn.Linear):
        def forward(self, x, shift):
            return super().forward(x) + shift

    net, x, shift, y = Sum(3, 2), torch.ones(4, 3), torch.ones(2), torch.zeros(4, dtype=torch.int64)
    expected = torch.autograd.grad(cross_entropy(net(x, shift), y), net.weight)[0]
    rule = Backpropagation(net, cross_entropy)
    rule.backward((x, shift), y)
    assert_close(net.weight.grad, expected)
    assert_close(rule.predict({"x": x, "shift": shift}), net(x, shift))
