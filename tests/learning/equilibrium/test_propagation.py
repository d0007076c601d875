import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation, LearningRule, NotSettledError, alignment
from neuropil.learning.contrastive.phases import Alternating, Bernoulli, Geometric
from neuropil.learning.equilibrium import (
    EquilibriumPropagation,
    FixedPointNetwork,
    RecurrentBackprop,
    error_cosine,
    jacobian_asymmetry,
)
from neuropil.losses import half_squared_error
from tests.learning.equilibrium.nets import TIGHT, by_matrices, dense, flat, gradients, maps

EP = partial(EquilibriumPropagation, loss_fn=cross_entropy)


@pytest.mark.parametrize("wiring", ["chain", "loop"])
@pytest.mark.parametrize("angle", [0.0, 60.0])
def test_both_error_vectors_solve_their_equations(wiring, angle):
    case = dense(angle=angle, connections=wiring)
    tangent, adjoint = by_matrices(case)
    net, x, y = case
    assert_close(flat(EP(net, points=0, **TIGHT).error_vector(x, y)), tangent, rtol=1e-9, atol=1e-12)
    assert_close(
        flat(RecurrentBackprop(net, cross_entropy, **TIGHT).error_vector(x, y)), adjoint, rtol=1e-9, atol=1e-12
    )
    assert (float((tangent - adjoint).abs().max()) < 1e-12) == (wiring == "chain" and angle == 0)


@pytest.mark.parametrize("make", [dense, maps])
def test_the_error_of_n_points_is_of_order_beta_to_the_n(make):
    net, x, y = make()
    exact = flat(EP(net, points=0, **TIGHT).error_vector(x, y))
    betas = np.array([0.2, 0.1, 0.05])
    for points in (1, 2, 4):
        errors = [
            float((flat(EP(net, beta=beta, points=points, **TIGHT).error_vector(x, y)) - exact).abs().max())
            for beta in betas
        ]
        slope = np.polyfit(np.log(betas), np.log(errors), 1)[0]
        assert slope == pytest.approx(points, abs=0.3)


@pytest.mark.parametrize("make", [dense, maps])
def test_symmetric_nets_get_their_gradient(make):
    net, x, y = make(angle=0.0)
    loss = cross_entropy(net(x, steps=400, tol=1e-13), y)
    wanted = dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters())), strict=True))
    for rule in (EP(net, points=0, **TIGHT), RecurrentBackprop(net, cross_entropy, **TIGHT)):
        assert_close(gradients(rule, x, y), wanted, rtol=1e-7, atol=1e-10)
        assert_close(rule.backward(x, y), loss.detach())
    assert_close(gradients(EP(net, points=4, beta=0.05, **TIGHT), x, y), wanted, rtol=1e-3, atol=1e-6)


def test_asymmetric_nets_get_it_by_recurrent_backpropagation_alone():
    net, x, y = dense()
    loss = cross_entropy(net(x, steps=400, tol=1e-13), y)
    wanted = dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters())), strict=True))
    assert_close(gradients(RecurrentBackprop(net, cross_entropy, **TIGHT), x, y), wanted, rtol=1e-7, atol=1e-10)
    table = alignment(EP(net, points=0), x, y).set_index("layer")["cosine_mean"]
    assert table["readout"] == pytest.approx(1, abs=1e-6)
    assert table["connections.in-l1"] < 0.9
    straight = dense(angle=0.0)
    assert alignment(EP(straight.net, points=0), straight.x, straight.y)["cosine_mean"].min() > 0.999


def test_weights_learn_from_their_own_two_groups_alone():
    net, x, y = dense()
    rule = EP(net, points=0, **TIGHT)
    ours = gradients(rule, x, y)
    rest, error = rule.last.rest.activity, rule.last.error
    for pre, post in net.wiring:
        sender = x if pre == "in" else rest[pre]
        assert_close(ours[f"connections.{pre}-{post}.weight"], error[post].T @ sender / len(x))


def test_online_averages_are_the_nudged_differences():
    net, x, y = dense()
    offline = flat(EP(net, points=4, beta=0.2, **TIGHT).error_vector(x, y))
    online = EP(net, points=4, beta=0.2, free_steps=2 * 4 * 100, nudge_steps=100, online=True, tol=1e-13)
    assert_close(flat(online.error_vector(x, y)), offline, rtol=1e-6, atol=1e-9)
    free = net.settle(x, steps=400, tol=1e-13).potentials
    assert_close(flat(online.last.rest.potentials), flat(free), atol=3e-4, rtol=0)
    real = EP(net, points=2, beta=0.2, free_steps=400, nudge_steps=100, online=True, tol=1e-13)
    exact = flat(EP(net, points=2, beta=0.2, **TIGHT).error_vector(x, y))
    assert_close(flat(real.error_vector(x, y)), exact, rtol=1e-6, atol=1e-9)


def test_online_rules_move_the_weights_once_a_period():
    net, x, y = dense()
    rule = EP(net, points=2, free_steps=4 * 2 * 20, nudge_steps=20, online=True)
    assert [packet.weight for packet in rule.packets(x, y)] == [1 / 3] * 3
    whole = gradients(rule, x, y)
    assert_close(whole, gradients(EP(net, points=2, **TIGHT), x, y), rtol=0.05, atol=1e-3)
    before = net.readout.bias.detach().clone()
    rule.learn(x, y, torch.optim.SGD(net.parameters(), lr=0.3))
    assert not torch.allclose(net.readout.bias.detach(), before - 0.3 * whole["readout.bias"], rtol=1e-6)
    assert_close(net.readout.bias.detach(), before - 0.3 * whole["readout.bias"], rtol=0.2, atol=0.01)


def test_phases_of_a_schedule_are_right_on_average():
    net, x, y = dense()
    both = flat(EP(net, points=1, beta=0.1, **TIGHT).error_vector(x, y))
    assert torch.equal(flat(EP(net, points=1, beta=0.1, schedule=Alternating(), **TIGHT).error_vector(x, y)), both)
    b, mean, seen = 0.3, torch.zeros_like(both), set()
    schedule = Bernoulli(b, generator=torch.Generator().manual_seed(3))
    rule = EP(net, points=1, beta=0.1, schedule=schedule, **TIGHT)
    while len(seen) < 2:
        error = flat(rule.error_vector(x, y))
        positive = bool((error.sum() > 0).all())  # activities are positive, so the sign is the phase's
        if positive not in seen:
            seen.add(positive)
            mean += (b if positive else 1 - b) * error
    assert_close(mean, both, rtol=1e-7, atol=1e-9)


def test_samples_that_do_not_settle_teach_nothing_and_are_counted():
    net, x, y = dense(scale=1.0, batch=40, seed=1)
    options = {"points": 0, "free_steps": 20, "nudge_steps": 400, "tol": 1e-13}  # too few for some
    rule = EP(net, **options)
    ours = gradients(rule, x, y)
    settled = rule.last.settled
    assert 0 < rule.last.unsettled < len(x) / 2
    assert float(flat(rule.last.error)[~settled].abs().max()) == 0
    alone = gradients(EP(net, **options), x[settled], y[settled])
    share = float(settled.double().mean())
    assert_close(ours, {name: share * gradient for name, gradient in alone.items()})
    assert torch.isfinite(torch.tensor(error_cosine(rule, x, y)))


def test_batches_that_do_not_settle_are_refused():
    net, x, y = dense()
    with pytest.raises(NotSettledError, match=r"of 7 samples have not come to rest after 1 steps: residual"):
        EP(net, free_steps=1).backward(x, y)
    with pytest.raises(NotSettledError, match=r"have not settled under the nudge.*Take more nudge_steps"):
        EP(net, points=2, nudge_steps=1).backward(x, y)
    with pytest.raises(NotSettledError, match="have not answered a force after 1 steps"):
        EP(net, points=0, nudge_steps=1).backward(x, y)
    assert all(p.grad is None for p in net.parameters())


def test_nudges_that_meet_a_pole_are_refused():
    net = FixedPointNetwork((1, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(0.0)
        net.connection("in", "out").bias.fill_(0.5)
        net.readout.weight.fill_(1.0)  # the first step of the nudge i beta leads to 0.5 + i pi/4
    rule = EquilibriumPropagation(net, half_squared_error, beta=math.pi / 4, points=4, step=1.0)
    with pytest.raises(NotSettledError, match="1 of 1 samples have not settled under the nudge"):
        rule.backward(torch.zeros(1, 1), torch.full((1, 1), -0.5))


@pytest.mark.parametrize("beta", [3.0, 300.0, 1e6, 1e30])
@pytest.mark.parametrize("points", [1, 2, 6])
def test_nudges_far_out_never_give_nan(beta, points):
    net, x, y = dense(dtype=torch.float32)
    try:
        EP(net, points=points, beta=beta).backward(x, y)
    except NotSettledError:
        assert all(p.grad is None for p in net.parameters())
    else:
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("points", [0, 1, 2, 4])
@pytest.mark.parametrize("loss", ["classes", "probabilities", "squares"])
def test_losses_and_kinds_of_targets(points, loss, generator):
    net, x, y = dense(angle=0.0)
    target = {"classes": y, "probabilities": torch.rand(7, 4, generator=generator).double(), "squares": torch.eye(4)[y]}
    loss_fn = half_squared_error if loss == "squares" else cross_entropy
    given = target[loss].to(torch.float64) if loss != "classes" else y
    rule = EquilibriumPropagation(net, loss_fn, points=points, beta=1e-3, **TIGHT)
    wanted = gradients(RecurrentBackprop(net, loss_fn, **TIGHT), x, given)
    assert_close(gradients(rule, x, given), wanted, rtol=0.02, atol=2e-3)


def test_any_loss_does_for_real_nudges():
    net, x, y = dense()
    smooth = partial(cross_entropy, label_smoothing=0.1)
    same = partial(cross_entropy, label_smoothing=0.0)
    for points in (0, 1, 2):
        EquilibriumPropagation(net, smooth, points=points).backward(x, y)
        ours = EquilibriumPropagation(net, same, points=points, **TIGHT).error_vector(x, y)
        assert_close(ours, EP(net, points=points, **TIGHT).error_vector(x, y), rtol=1e-6, atol=1e-9)


def test_activations_without_a_complex_plane_learn_by_real_nudges():
    net, x, y = dense(activation=nn.Softplus(), angle=0.0)
    wanted = gradients(RecurrentBackprop(net, cross_entropy, **TIGHT), x, y)
    assert_close(gradients(EP(net, points=0, **TIGHT), x, y), wanted, rtol=1e-6, atol=1e-9)
    assert_close(gradients(EP(net, points=2, beta=1e-3, **TIGHT), x, y), wanted, rtol=1e-3, atol=1e-5)


def test_the_base_class_rules_hold():
    net, x, y = dense(dtype=torch.float32)
    rule = EP(net)
    assert isinstance(rule, LearningRule)
    assert not list(rule.parameters())
    first = gradients(rule, x, y)
    rule.backward(x, y)
    assert_close({n: p.grad for n, p in net.named_parameters()}, {n: 2 * g for n, g in first.items()})
    net.connections["in-l1"].requires_grad_(False)
    net.zero_grad(set_to_none=True)
    rule.backward(x, y)
    assert net.connections["in-l1"].weight.grad is None
    assert_close(rule.predict(x), net(x))
    one = gradients(EP(net, points=0), x[:1], y[:1])
    assert all(torch.isfinite(g).all() for g in one.values())
    assert_close(gradients(EP(net, points=0), x.T.contiguous().T, y), gradients(EP(net, points=0), x, y))


def test_correct_and_certain_outputs_teach_nothing():
    net, x, y = dense(dtype=torch.float32)
    with torch.no_grad():
        net.readout.weight.zero_()
        net.readout.bias.copy_(torch.tensor([200.0, 0, 0, 0]))
    for points in (0, 1, 2, 4):
        rule = EP(net, points=points)
        assert all(float(g.abs().max()) < 1e-4 for g in gradients(rule, x, torch.zeros_like(y)).values())
        assert rule.last.unsettled == 0


@pytest.mark.parametrize("make", [dense, maps])
def test_learning_lowers_the_loss(make):
    net, x, y = make(dtype=torch.float32, angle=90.0, batch=3)
    rule = EP(
        net, points=0, free_steps=60, noise_samples=1, homeostasis=0.3, generator=torch.Generator().manual_seed(0)
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.03)
    losses = [float(rule.learn(x, y, optimizer)) for _ in range(12)]
    assert losses[-1] < 0.85 * losses[0]
    exact = jacobian_asymmetry(net, x, None if net.linear else 50, torch.Generator().manual_seed(1)).detach()
    assert float(rule.last.asymmetry) < 2 * float(exact) + 0.01


def test_other_networks_are_refused_by_name():
    for rule in (EP, partial(RecurrentBackprop, loss_fn=cross_entropy)):
        with pytest.raises(TypeError, match=r"trains a FixedPointNetwork.*got Sequential.*another rule"):
            rule(nn.Sequential(nn.Linear(3, 2)))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"points": 3}, ValueError, "points must be 0, 1 or even, got 3"),
        ({"points": -2}, ValueError, "points must be 0, 1 or even"),
        ({"beta": 0.0}, ValueError, "beta must be positive"),
        ({"beta": float("nan")}, ValueError, "beta must be positive"),
        ({"free_steps": 0}, ValueError, "free_steps must be at least 1"),
        ({"nudge_steps": 0}, ValueError, "nudge_steps must be at least 1"),
        ({"step": 1.5}, ValueError, r"step must lie in \(0, 1\]"),
        ({"tol": 0.0}, ValueError, "tol must be positive"),
        ({"homeostasis": -1.0}, ValueError, "homeostasis must not be negative"),
        ({"noise_samples": 0}, ValueError, "noise_samples must be at least 1"),
        ({"online": True, "points": 1}, ValueError, "circle of 2 points or more"),
        ({"online": True, "points": 4, "free_steps": 159}, ValueError, "at least 160, two periods; got 159"),
        ({"schedule": Bernoulli(), "points": 2}, ValueError, "pass points=1, got 2"),
        ({"schedule": Geometric(0.1), "points": 1}, TypeError, "Alternating or Bernoulli, got Geometric"),
    ],
)
def test_bad_options_are_named(options, error, words):
    with pytest.raises(error, match=words):
        EP(dense().net, **options)


@pytest.mark.parametrize("activation", [nn.ReLU(), torch.abs, nn.Hardtanh()])
def test_complex_nudges_need_a_holomorphic_activation(activation):
    with pytest.raises(ValueError, match=r"is not holomorphic.*HoloSigmoid or DSiLU, or points=0, 1 or 2"):
        EP(dense(activation=activation).net, points=4)
    EP(dense(activation=activation).net, points=2)


def test_complex_nudges_need_a_loss_with_a_continuation():
    with pytest.raises(ValueError, match="mse_loss has no known complex continuation"):
        EquilibriumPropagation(dense().net, nn.functional.mse_loss, points=4)
    net, x, y = dense()
    u = {group: v.to(torch.complex128) for group, v in net.settle(x).potentials.items()}
    with pytest.raises(ValueError, match="not for mse_loss"):
        net.field(u, x, torch.eye(4).double()[y], 0.1j, nn.functional.mse_loss)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (None, "pass y"),
        (torch.zeros(6, dtype=torch.int64), "6 targets for 7 inputs"),
        (torch.full((7,), 4), "class 4 among the targets, but there are 4 classes"),
        (torch.full((7,), -1), "class -1"),
        (torch.zeros(7, 1, dtype=torch.int64), r"Class indices have shape \(batch,\)"),
        (torch.zeros(7, 5), r"Targets have shape \(7, 5\), the logits \(7, 4\)"),
    ],
)
@pytest.mark.parametrize("online", [False, True])
def test_targets_that_do_not_fit_are_named(y, words, online):
    net, x, _ = dense()
    with pytest.raises(ValueError, match=words):
        EP(net, online=online).backward(x, y)


def test_rules_are_compared_on_one_network():
    net, x, y = dense(angle=0.0)
    assert error_cosine(EP(net, points=0), x, y) == pytest.approx(1, abs=1e-4)
    assert error_cosine(EP(net, points=0), x, y, hidden=False) == pytest.approx(1, abs=1e-4)
    same = EP(net, points=0)
    assert error_cosine(same, x, y, reference=EP(net, points=0)) == pytest.approx(1)
    with pytest.raises(ValueError, match="another network"):
        error_cosine(same, x, y, reference=RecurrentBackprop(dense().net, cross_entropy))
    flat_net = FixedPointNetwork((5, 4)).double()
    with pytest.raises(ValueError, match="no hidden group"):
        error_cosine(EP(flat_net, points=0), x, y)
    with pytest.raises(ValueError, match="has not seen a batch"):
        _ = EP(net).record
    assert Backpropagation(net, cross_entropy).net is net
