import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import mlp
from neuropil.learning.energy import (
    InferenceLearning,
    PredictiveCoding,
    implicit_sgd_step,
    output_target,
    predictive,
    proximal,
    squared_energy,
)
from tests.learning.nets import case


def small(generator, activation=nn.Tanh):
    net = mlp(6, 5, 4, 3, activation=activation, generator=generator).double()
    return net, torch.randn(1, 6, generator=generator).double(), torch.tensor([1])


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


def implicit_by_scipy(net, x, y, alpha):
    """The implicit step by an independent minimiser."""
    shapes = [(name, p.shape, p.numel()) for name, p in net.named_parameters()]
    start = flat(net.parameters())

    def objective(values):
        moving = torch.tensor(values, requires_grad=True)
        pieces = moving.split([size for *_, size in shapes])
        parameters = {name: piece.view(shape) for (name, shape, _), piece in zip(shapes, pieces, strict=True)}
        loss = cross_entropy(functional_call(net, parameters, (x,)), y)
        total = loss + (moving - start).square().sum() / (2 * alpha)
        total.backward()
        return total.item(), moving.grad.numpy()

    options = {"maxiter": 20_000, "maxfun": 100_000, "ftol": 1e-16, "gtol": 1e-12}
    return torch.tensor(minimize(objective, start.numpy(), jac=True, method="L-BFGS-B", options=options).x)


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_the_exact_proximal_step_is_the_implicit_step(alpha, generator):
    net, x, y = small(generator)
    expected = implicit_by_scipy(net, x, y, alpha)
    InferenceLearning(net, cross_entropy, alpha=alpha, eps=0, inference="exact", steps=3000).learn(x, y)
    assert_close(flat(net.parameters()), expected, rtol=0, atol=1e-6)


def test_exact_batches_take_the_mean_of_the_samples_steps(generator):
    net, x, y = small(generator)
    x, y = torch.cat([x, -x, 2 * x]), torch.tensor([1, 0, 2])
    steps = []
    for sample in range(3):
        alone = copy.deepcopy(net)
        rule = InferenceLearning(alone, cross_entropy, alpha=2, eps=0, inference="exact", steps=1000)
        rule.learn(x[sample : sample + 1], y[sample : sample + 1])
        steps.append(flat(alone.parameters()) - flat(net.parameters()))
    before = flat(net.parameters())
    InferenceLearning(net, cross_entropy, alpha=2, eps=0, inference="exact", steps=2000).learn(x, y)
    assert_close(flat(net.parameters()) - before, torch.stack(steps).mean(0), rtol=0, atol=1e-6)


def test_implicit_descent_reaches_the_implicit_step_and_leaves_the_net(generator):
    net, x, y = small(generator)
    before = copy.deepcopy(net.state_dict())
    for alpha, inner, lr in ((0.001, 200, 0.005), (1.0, 1000, 0.1)):
        found = implicit_sgd_step(net, cross_entropy, x, y, alpha, inner=inner, lr=lr)
        assert_close(flat(found.values()), implicit_by_scipy(net, x, y, alpha), rtol=0, atol=1e-6)
    assert_close(net.state_dict(), before)
    assert all(p.grad is None for p in net.parameters())


def test_the_implicit_step_of_a_linear_net_is_a_linear_system(generator):
    net = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.normal_(generator=generator)
    x, y = torch.randn(7, 3, generator=generator).double(), torch.randn(7, 1, generator=generator).double()
    alpha = 1000.0  # the explicit step diverges here
    found = implicit_sgd_step(net, squared_energy, x, y, alpha, inner=1500, lr=0.3)["weight"]
    system = torch.eye(3).double() + alpha * x.T @ x / 7
    assert_close(found.T, torch.linalg.solve(system, net.weight.detach().T + alpha * x.T @ y / 7))


def test_many_implicit_steps_at_once(generator):
    net, x, _ = small(generator)
    x, y = torch.cat([x, -x]), torch.tensor([1, 2])
    found = vmap(lambda a, b: implicit_sgd_step(net, cross_entropy, a[None], b[None], 1.0, inner=20))(x, y)
    alone = implicit_sgd_step(net, cross_entropy, x[1:], y[1:], 1.0, inner=20)
    assert_close({name: value[1] for name, value in found.items()}, alone)


@pytest.mark.parametrize("eps", [0.1, 2.0])
def test_a_normalised_step_solves_its_local_problem(eps, generator):
    net, x, y = small(generator)
    rule = InferenceLearning(net, cross_entropy, steps=10, rate_own=0.1, rate_above=0.1, eps=eps)
    start = [p.detach().clone() for p in net.parameters()]
    rule.learn(x, y)
    inputs = [x, *(torch.tanh(h) for h in rule.last.activities)]
    for layer, (W, b), s, e in zip(
        net[::2], zip(start[::2], start[1::2], strict=True), inputs, rule.last.errors, strict=True
    ):
        s1 = torch.cat([s, torch.ones(1, 1).double()], 1)
        W1 = torch.cat([W, b[:, None]], 1)
        target = s1 @ W1.T + e
        system = s1.T @ s1 + eps * torch.eye(s1.shape[1]).double()
        solved = torch.linalg.solve(system, s1.T @ target + eps * W1.T).T
        assert_close(torch.cat([layer.weight, layer.bias[:, None]], 1).detach(), solved)


def test_large_alpha_saturates_and_small_alpha_is_a_gradient_step(generator):
    net, x, y = small(generator)

    def step(alpha, **options):
        moved = copy.deepcopy(net)
        InferenceLearning(moved, cross_entropy, alpha=alpha, **options).learn(x, y)
        return flat(moved.parameters()) - flat(net.parameters())

    assert_close(step(1e6), step(1e9), rtol=1e-4, atol=1e-8)
    cross_entropy(net(x), y).backward()
    gradient = flat(p.grad for p in net.parameters())
    tiny = 1e-5
    ours = step(tiny, eps=0, inference="exact", steps=2000)
    assert_close(ours / -tiny, gradient, rtol=1e-3, atol=1e-4)


def test_output_targets_lie_between_prediction_and_label():
    q, y = torch.tensor([[0.7, 0.3]]), torch.tensor([[0.0, 1.0]])
    assert_close(output_target(q, y, 1.0, 3.0), q / 4 + y * 3 / 4)
    assert_close(output_target(q, y, 1e9, 3.0), y)
    assert_close(output_target(q, y, 1e-9, 3.0), q)
    for bad in ((q, y, 0.0, 1.0), (q, y, 1.0, 0.0), (q, y[:, :1], 1.0, 1.0)):
        with pytest.raises(ValueError, match=r"must be positive|has shape"):
            output_target(*bad)


def test_the_output_error_aims_at_the_output_target(generator):
    net, x, y = small(generator)
    rule = InferenceLearning(net, cross_entropy, alpha=3.0, eps=0.5)
    relaxed = rule.relax(x, y)
    s = torch.tanh(relaxed.activities[-1])
    q = torch.softmax(net[-1](s), -1).detach()
    aim = output_target(q, torch.eye(3).double()[y], 3.0, s.square().sum() + 1.5)
    assert_close(relaxed.errors[-1], aim - q)


@pytest.mark.parametrize("is_proximal", [True, False])
def test_closed_form_equals_autograd(is_proximal, generator, monkeypatch):
    net, x, y = small(generator)
    x, y = torch.randn(4, 6, generator=generator).double(), torch.tensor([0, 1, 2, 1])
    rule = InferenceLearning(net, cross_entropy, proximal=is_proximal, decay=0.01)
    rule.backward(x, y)
    closed = flat(p.grad for p in net.parameters())
    net.zero_grad()
    for module in (predictive, proximal):
        monkeypatch.setattr(module, "read_chain", lambda stages, x: None)
    rule.backward(x, y)
    assert_close(flat(p.grad for p in net.parameters()), closed)


def test_without_proximal_it_is_predictive_coding(generator):
    net, x, y = small(generator)
    InferenceLearning(net, cross_entropy, proximal=False, rate_own=0.02, rate_above=0.03).backward(x, y)
    ours = flat(p.grad for p in net.parameters())
    net.zero_grad()
    PredictiveCoding(net, cross_entropy, cut="preactivation", rate_own=0.02, rate_above=0.03).backward(x, y)
    assert_close(flat(p.grad for p in net.parameters()), ours)


def test_convolutions_are_normalised_by_their_patches(generator):
    convolution = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    with torch.no_grad():
        for p in convolution.parameters():
            p.normal_(0, 0.3, generator=generator)
    x, y = torch.randn(2, 2, 4, 4, generator=generator).double(), torch.tensor([0, 2])
    options = {"steps": 3, "alpha": 1.0, "eps": 0.25}
    plain = InferenceLearning(convolution, cross_entropy, **options)
    plain.learn(x, y)
    patches = nn.functional.unfold(x, 3, padding=1, stride=2)
    norm = patches.square().sum() / 2 + patches.shape[-1]
    from neuropil.learning.energy.circuit import _squared_norm

    assert_close(_squared_norm(convolution[0], x), norm)
    losses = [float(plain.learn(x, y)) for _ in range(40)]
    assert losses[-1] < 0.5 * losses[0]


def test_it_learns_where_the_step_size_is_absurd(generator):
    net = mlp(6, 20, 20, 3, generator=generator)
    x, y = torch.randn(30, 6, generator=generator), torch.arange(30) % 3
    rule = InferenceLearning(net, cross_entropy, alpha=1e6, steps=6, rate_own=0, rate_above=0.05)
    for _ in range(6):
        for k in range(30):
            rule.learn(x[k : k + 1], y[k : k + 1])
    assert float((net(x).argmax(1) == y).float().mean()) > 0.8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": 0.0}, "alpha must be positive"),
        ({"alpha": float("inf")}, "alpha must be positive"),
        ({"eps": -1.0}, "eps must be at least 0"),
        ({"inference": "long"}, "inference must be"),
        ({"inference": "exact", "proximal": False}, "needs proximal=True"),
    ],
)
def test_arguments_out_of_range_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        InferenceLearning(mlp(2, 3, 2), cross_entropy, **options)


def test_optimizers_that_would_distort_a_proximal_step_are_refused(generator):
    net, x, y = small(generator)
    rule = InferenceLearning(net, cross_entropy)
    for optimizer in (torch.optim.Adam(net.parameters()), torch.optim.SGD(net.parameters(), lr=1, momentum=0.9)):
        with pytest.raises(ValueError, match="A proximal step is a whole step"):
            rule.learn(x, y, optimizer)
    with pytest.raises(ValueError, match="learn needs an optimizer"):
        InferenceLearning(net, cross_entropy, proximal=False).learn(x, y)
    before = flat(net.parameters())
    twin = copy.deepcopy(net)
    rule.learn(x, y, torch.optim.SGD(net.parameters(), lr=1.0))
    InferenceLearning(twin, cross_entropy).learn(x, y)
    assert_close(flat(net.parameters()), flat(twin.parameters()))
    assert not torch.equal(before, flat(net.parameters()))


def test_nets_without_a_proximal_step_are_refused_by_name():
    net = case("conv")[0]
    with pytest.raises(TypeError, match=r"no proximal step for '1' \(BatchNorm2d\).*proximal=False"):
        InferenceLearning(net, cross_entropy)
    InferenceLearning(net, cross_entropy, proximal=False)
    net, points, x, y = case("residual")[:4]
    with pytest.raises(ValueError, match="4 weight layers in 3 stages"):
        InferenceLearning(net, cross_entropy, points=points).backward(x, y)
    with pytest.raises(ValueError, match='"exact" needs a Sequential'):
        InferenceLearning(net, cross_entropy, points=points, inference="exact").backward(x, y)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"alpha": 0.0}, "alpha"), ({"alpha": 1.0, "lr": 0.0}, "lr"), ({"alpha": 1.0, "inner": 0}, "inner")],
)
def test_implicit_steps_out_of_range_are_named(options, words, generator):
    net, x, y = small(generator)
    with pytest.raises(ValueError, match=f"{words} must be"):
        implicit_sgd_step(net, cross_entropy, x, y, **options)


def test_dead_inputs_are_no_division_by_zero():
    net = mlp(4, 3, 2)
    InferenceLearning(net, cross_entropy, eps=0).learn(torch.zeros(1, 4), torch.tensor([1]))
    assert all(np.isfinite(p.detach().numpy()).all() for p in net.parameters())
