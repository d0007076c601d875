import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning.inhibition import (
    DisinhibitoryControl,
    DisinhibitoryNetwork,
    LeakyPI,
    Proportional,
    close_loop,
    control_energy,
    trajectory,
)
from neuropil.learning.settle import NotSettledError
from neuropil.losses import half_squared_error, soften
from tests.learning.inhibition import dense

EXACT = {"tol": 1e-12}


def circuit(*sizes, dtype=torch.float64, seed=0):
    net = DisinhibitoryNetwork(sizes, generator=torch.Generator().manual_seed(seed)).to(dtype)
    with torch.no_grad():
        for drive in net.drives:
            drive.bias.normal_(std=0.3, generator=torch.Generator().manual_seed(seed + 1))
    return net


def batch(samples, inputs, outputs, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, inputs, generator=generator).to(dtype), torch.randint(
        outputs, (samples,), generator=generator
    )


def gradients(net, x, y, loss_fn=cross_entropy, **options):
    net.zero_grad()
    rule = DisinhibitoryControl(net, loss_fn, **options)
    rule.backward(x, y)
    return [p.grad.clone() for p in net.parameters()]


@given(
    hidden=st.lists(st.integers(2, 7), min_size=1, max_size=3),
    seed=st.integers(0, 1000),
    rule=st.sampled_from(["exact", "linear"]),
    loss=st.sampled_from(["cross_entropy", "half_squared_error"]),
    nudge=st.sampled_from([None, 0.015]),
)
def test_gradients_equal_an_independent_solution_of_the_circuit(hidden, seed, rule, loss, nudge):
    sizes, samples = (5, *hidden, 3), 4
    net = circuit(*sizes, seed=seed)
    x, labels = batch(samples, 5, 3, seed=seed)
    y = soften(labels, 3, dtype=torch.float64)
    loss_fn = cross_entropy if loss == "cross_entropy" else half_squared_error
    ours = gradients(net, x, y, loss_fn, rule=rule, nudge=nudge, **EXACT)

    weights = [drive.weight.detach().numpy() for drive in net.drives]
    biases = [drive.bias.detach().numpy() for drive in net.drives]
    given_net = (weights, biases, net.readout.weight.detach().numpy())
    options = {"loss": loss, "nudge": nudge}
    rates = [dense.gradients(*given_net, x[b].numpy(), y[b].numpy(), **options)[1] for b in range(samples)]
    r0 = [np.mean(level, axis=0) for level in zip(*rates, strict=True)]
    theirs = [
        dense.gradients(*given_net, x[b].numpy(), y[b].numpy(), rule=rule, r0=r0, **options)[0] for b in range(samples)
    ]
    for mine, *others in zip(ours, *theirs, strict=True):
        assert_close(mine, torch.tensor(np.mean(others, axis=0)), rtol=1e-6, atol=1e-8)


def test_without_control_the_exact_rule_is_silent_and_the_linear_one_is_not():
    net = circuit(6, 8, 8, 4)
    x, y = batch(5, 6, 4)
    exact = gradients(net, x, y, controller=Proportional(0.0))
    linear = gradients(net, 5 * x, y, controller=Proportional(0.0), rule="linear")
    assert all(g.abs().max() < 1e-12 for g in exact)
    assert all(g.abs().max() > 1e-4 for g in linear[:-1])


def test_the_batch_gradient_is_the_mean_of_single_samples():
    net = circuit(6, 8, 7, 4)
    x, y = batch(5, 6, 4)
    together = gradients(net, x, y, **EXACT)
    alone = [gradients(net, x[b : b + 1], y[b : b + 1], **EXACT) for b in range(5)]
    for joint, *parts in zip(together, *alone, strict=True):
        assert_close(joint, torch.stack(parts).mean(0), rtol=1e-9, atol=1e-12)


def test_the_linear_rule_with_single_samples_differs_only_by_where_its_tangent_touches():
    net = circuit(6, 8, 4)
    x, y = batch(1, 6, 4)
    repeated = gradients(net, x.expand(7, -1), y.expand(7), rule="linear", **EXACT)
    for many, one in zip(repeated, gradients(net, x, y, rule="linear", **EXACT), strict=True):
        assert_close(many, one)


@pytest.mark.parametrize("rule", ["exact", "linear"])
def test_the_ode_comes_to_rest_where_the_algebraic_loop_does(rule):
    net = circuit(8, 12, 12, 4)
    x, y = batch(6, 8, 4)
    algebraic = gradients(net, x, y, rule=rule, **EXACT)
    integrated = gradients(net, x, y, rule=rule, solver="ode")
    for ours, theirs in zip(integrated, algebraic, strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_the_trajectory_of_a_batch_leads_from_the_open_to_the_closed_loop():
    net = circuit(8, 12, 12, 4)
    x, y = batch(6, 8, 4)
    rule = DisinhibitoryControl(net, cross_entropy, **EXACT)
    rule.backward(x, y)
    first, *_, last = rule.trajectory(x, y, [0.0, 0.01, 0.1, 2.0])
    for begun, rest, ended, closed in zip(first.u_e, rule.last.open.u_e, last.u_e, rule.last.closed.u_e, strict=True):
        assert_close(begun, rest)
        assert_close(ended, closed, rtol=0, atol=1e-5)
    assert_close(last.control, rule.last.closed.control, rtol=0, atol=1e-5)


def test_the_ode_is_what_a_stiff_solver_integrates():
    from scipy.integrate import solve_ivp

    net = circuit(4, 5, 3)
    x, y = batch(1, 4, 3)
    target = soften(y, 3, dtype=torch.float64)
    controller = LeakyPI()
    rest = net.settle(x)
    feedback = [torch.randn(1, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * 0.3]

    def error(o):
        return target - o.softmax(1)

    def velocity(_, values):
        u_e, u_i, o, z = (torch.tensor(v)[None] for v in np.split(values, [5, 10, 13]))
        c, dz = controller(error(o), z)
        rates = net.activation_e(u_e)
        parts = [
            (net.drives[0](x) - net.activation_i(u_i) - u_e) / net.tau_e,
            (rates - c @ feedback[0][0] - u_i) / net.tau_i,
            (net.readout(rates) + c - o) / net.tau_e,
            dz,
        ]
        return torch.cat(parts, 1)[0].detach().numpy()

    start = torch.cat([rest.u_e[0], rest.u_i[0], rest.readout, torch.zeros_like(rest.readout)], 1)[0].detach().numpy()
    times = [0.02, 0.1, 0.3]
    exact = solve_ivp(velocity, (0, 0.3), start, t_eval=times, rtol=1e-9, atol=1e-11, method="LSODA").y.T
    options = {"start": rest, "feedback": feedback, "error": error, "controller": controller}
    gaps = []
    for dt in (1e-3, 5e-4):
        states = trajectory(net, x, times, dt=dt, **options)
        ours = np.stack([torch.cat([s.u_e[0], s.u_i[0], s.readout], 1)[0].detach().numpy() for s in states])
        gaps.append(np.abs(ours - exact[:, :13]).max())
    assert gaps[0] < 2e-3
    assert gaps[1] < 0.6 * gaps[0]  # first order in dt


def test_in_the_limit_of_weak_control_the_rule_is_the_chain_rule_of_the_jacobian():
    net = circuit(6, 8, 7, 4)
    x, y = batch(5, 6, 4)
    k = 1e-6
    ours = gradients(net, x, y, controller=Proportional(k), **EXACT)
    rest = net.settle(x)
    error = soften(y, 4, dtype=torch.float64) - rest.readout.softmax(1)
    rates = [x, *(net.activation_e(u) for u in rest.u_e)]
    for level, (jacobian, u_e, u_i) in enumerate(zip(net.output_jacobian(rest), rest.u_e, rest.u_i, strict=True)):
        q = jacobian * net.activation_i.derivative(u_i)[:, None]
        q = q / q.flatten(1).norm(dim=1)[:, None, None]
        change = torch.einsum("bo,bon->bn", k * error, q) * net.activation_e.derivative(u_e)
        assert_close(ours[2 * level], -(change.T @ rates[level]) / 5, rtol=1e-4, atol=1e-14)
    assert_close(ours[-1], -(k * error).T @ rates[-1] / 5, rtol=1e-4, atol=1e-14)


@pytest.mark.parametrize("options", [{}, {"feedback": "averaged"}, {"nudge": 0.1}, {"controller": Proportional(0.6)}])
def test_control_pulls_the_readout_towards_the_target(options):
    net = circuit(6, 20, 20, 4)
    x, y = batch(8, 6, 4)
    rule = DisinhibitoryControl(net, cross_entropy, **options)
    rule.backward(x, y)
    assert rule.last is not None
    assert bool(
        (
            cross_entropy(rule.last.closed.readout, y, reduction="none")
            < cross_entropy(rule.last.open.readout, y, reduction="none")
        ).all()
    )
    assert rule.last.settled.all()
    assert float(control_energy(rule.last.closed)) > 0
    assert float(control_energy(rule.last.open)) == 0


def test_learning_makes_control_unnecessary():
    net = circuit(6, 16, 3)
    x, y = batch(20, 6, 3)
    rule = DisinhibitoryControl(net, cross_entropy)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    first = rule.learn(x, y, optimizer)
    before = control_energy(rule.last.closed)
    for _ in range(150):
        last = rule.learn(x, y, optimizer)
    assert last < 0.7 * first
    assert control_energy(rule.last.closed) < 0.6 * before


def test_averaged_and_given_feedback_are_the_same_when_they_are_equal():
    net = circuit(6, 8, 7, 4)
    x, y = batch(5, 6, 4)
    rule = DisinhibitoryControl(net, cross_entropy, feedback="averaged", **EXACT)
    rule.backward(x, y)
    feedback = [q[0] for q in rule.last.feedback]
    assert all(abs(float(q.norm()) - 1) < 1e-12 for q in feedback)
    averaged = [p.grad.clone() for p in net.parameters()]
    for ours, theirs in zip(gradients(net, x, y, feedback=feedback, **EXACT), averaged, strict=True):
        assert_close(ours, theirs)


def test_a_function_may_shape_the_feedback():
    net = circuit(6, 8, 4)
    x, y = batch(5, 6, 4)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    plain = DisinhibitoryControl(net, cross_entropy)
    shuffled = DisinhibitoryControl(net, cross_entropy, feedback=lambda qs: [q[..., order] for q in qs])
    plain.backward(x, y)
    shuffled.backward(x, y)
    assert_close(shuffled.last.feedback[0], plain.last.feedback[0][..., order])


def test_clipped_feedback_stays_within_its_bound():
    net = circuit(6, 8, 4)
    x, y = batch(5, 6, 4)
    rule = DisinhibitoryControl(net, cross_entropy, feedback_norm=None, feedback_clip=1e-3)
    rule.backward(x, y)
    assert float(rule.last.feedback[0].abs().max()) == pytest.approx(1e-3)


def test_convolutional_stages_are_the_same_circuit_on_an_unrolled_matrix():
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(1, 2, 3, padding=1).double()
    pool = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 6)).double()
    readout = nn.Linear(6, 3, bias=False).double()
    net = DisinhibitoryNetwork.from_modules([conv, pool], readout)
    x = torch.rand(5, 1, 4, 4, dtype=torch.float64, generator=generator)
    y = torch.randint(3, (5,), generator=generator)

    def matrix(module, shape):
        zero = module(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        size = int(np.prod(shape))
        columns = module(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1) - zero
        linear = nn.Linear(size, len(zero)).double()
        linear.weight.data, linear.bias.data = columns.T.clone(), zero.clone()
        return linear

    dense_net = DisinhibitoryNetwork.from_modules(
        [matrix(conv, (1, 4, 4)), matrix(pool, (2, 4, 4))], nn.Linear(6, 3, bias=False).double()
    )
    dense_net.readout.weight.data.copy_(readout.weight)
    rules = [DisinhibitoryControl(n, cross_entropy, **EXACT) for n in (net, dense_net)]
    rules[0].backward(x, y)
    rules[1].backward(x.flatten(1), y)
    for one, other in zip(rules[0].last.closed.u_e, rules[1].last.closed.u_e, strict=True):
        assert_close(one.flatten(1), other)
    assert_close(readout.weight.grad, dense_net.readout.weight.grad)
    # Shared weights sum over positions: the conv bias collects every position's.
    assert_close(conv.bias.grad, dense_net.drives[0].bias.grad.view(2, 16).sum(1))
    linear = DisinhibitoryControl(net, cross_entropy, rule="linear")
    linear.backward(x, y)
    assert linear.mean_inhibition[0].shape == (2, 4, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", ["exact", "linear"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e2, 1e4])
def test_inputs_of_any_size_give_finite_gradients(scale, rule, dtype):
    net = circuit(8, 16, 16, 4, dtype=dtype)
    x, y = batch(6, 8, 4, dtype=dtype)
    for inputs in (scale * x, -scale * x, 0 * x, scale * x[:1]):
        for loss_fn in (cross_entropy, half_squared_error):
            targets = (
                y[: len(inputs)] if loss_fn is cross_entropy else nn.functional.one_hot(y, 4)[: len(inputs)].to(dtype)
            )
            for gradient in gradients(net, inputs, targets, loss_fn, rule=rule):
                assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("where", ["readout", "hidden"])
@pytest.mark.parametrize("rule", ["exact", "linear"])
def test_a_zero_weight_matrix_silences_feedback_and_is_counted(where, rule):
    net = circuit(8, 16, 16, 4)
    x, y = batch(6, 8, 4)
    with torch.no_grad():
        (net.readout if where == "readout" else net.drives[1]).weight.zero_()
    learner = DisinhibitoryControl(net, cross_entropy, rule=rule)
    learner.backward(x, y)
    assert learner.last.silent == (12 if where == "readout" else 6)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())
    assert float(net.readout.weight.grad.abs().max()) > 0


def test_hard_targets_and_large_weights_still_come_to_rest():
    net = circuit(8, 64, 64, 4, dtype=torch.float32)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(5)
    x, y = batch(20, 8, 4, dtype=torch.float32)
    rule = DisinhibitoryControl(net, cross_entropy, soft_target=None)
    rule.backward(x, y)
    assert rule.last.settled.all()
    rule = DisinhibitoryControl(net, half_squared_error)
    rule.backward(x, nn.functional.one_hot(y, 4).float())
    assert rule.last.settled.float().mean() > 0.5


def test_a_loop_that_does_not_settle_names_the_stage_and_the_residual():
    net = circuit(6, 8, 4)
    x, y = batch(5, 6, 4)
    with pytest.raises(NotSettledError, match=r"the control still moves by .* \(tol 1e-05\)\. Hidden stage 1 moves"):
        DisinhibitoryControl(net, half_squared_error, controller=Proportional(1e6)).backward(
            x, nn.functional.one_hot(y, 4).double()
        )
    with pytest.raises(NotSettledError, match=r"after 0\.01 s: .* \(tol 1e-05\)"):
        DisinhibitoryControl(net, cross_entropy, solver="ode", duration=0.01).backward(x, y)


def test_unsettled_samples_teach_nothing():
    net = circuit(6, 8, 4)
    x, _ = batch(5, 6, 4)
    with torch.no_grad():
        rest = net.settle(x)

    def error(o):  # one sample is never content
        wild = torch.zeros_like(o)
        wild[2] = torch.randn(4, dtype=o.dtype)
        return -0.1 * o + wild

    rule = DisinhibitoryControl(net, cross_entropy)
    feedback, _ = rule._feedback(rest)
    closed = close_loop(net, rest, feedback, error, 0.6)
    assert closed.settled.tolist() == [True, True, False, True, True]
    assert all(torch.isfinite(u).all() for u in closed.state.u_e)


def test_samples_do_not_interact_in_the_loop():
    net = circuit(6, 8, 7, 4)
    x, y = batch(5, 6, 4)
    rule = DisinhibitoryControl(net, cross_entropy, **EXACT)
    rule.backward(x, y)
    together = rule.last.closed
    for b in range(5):
        rule.backward(x[b : b + 1], y[b : b + 1])
        for joint, alone in zip(together.u_e, rule.last.closed.u_e, strict=True):
            assert_close(joint[b : b + 1], alone, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda net, x, y: DisinhibitoryControl(nn.Linear(2, 2), cross_entropy), "DisinhibitoryNetwork, got Linear"),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy, rule="hebb"), "'exact', 'linear'; got 'hebb'"),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy, solver="magic"), "'algebraic', 'ode'"),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy, feedback="random"), "'jacobian', 'averaged'"),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy, nudge=0.0), r"nudge must lie in \(0, 1\]"),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy, tol=-1.0), "tol must be positive"),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy).backward(x, y[:3]), "3 targets for 5 inputs"),
        (
            lambda net, x, y: DisinhibitoryControl(net, cross_entropy).backward(x, y[:, None]),
            r"\(batch,\), got \(5, 1\)",
        ),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy).backward(x, x), r"\(5, 6\), the readout \(5, 4\)"),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy).backward(x, y + 7), "class .* among the labels"),
        (lambda net, x, y: DisinhibitoryControl(net, cross_entropy).backward(x), "pass y"),
        (
            lambda net, x, y: DisinhibitoryControl(net, cross_entropy, feedback=[x]).backward(x, y),
            r"\(4, 8\), got \(5, 6\)",
        ),
        (
            lambda net, x, y: DisinhibitoryControl(net, cross_entropy, controller=LeakyPI(leak=0.0)).backward(x, y),
            "no finite gain",
        ),
        (lambda net, x, y: LeakyPI(tau=0.0), "tau must be positive"),
        (lambda net, x, y: trajectory(net, x, [0.2, 0.1]), "times must rise"),
        (lambda net, x, y: trajectory(net, x, [0.2], controller=LeakyPI()), "together"),
    ],
)
def test_bad_input_is_refused_in_words(build, words):
    with pytest.raises(ValueError, match=words):
        build(circuit(6, 8, 4), *batch(5, 6, 4))


def test_targets_of_a_wrong_type_are_refused():
    with pytest.raises(TypeError, match="bool"):
        DisinhibitoryControl(circuit(6, 8, 4), cross_entropy).backward(
            batch(5, 6, 4)[0], torch.ones(5, dtype=torch.bool)
        )


def test_state_dict_carries_the_running_mean_of_inhibition():
    net = circuit(6, 8, 4)
    x, y = batch(10, 6, 4)
    rule = DisinhibitoryControl(net, cross_entropy, rule="linear", averaging=0.3)
    rule.backward(x[:5], y[:5])
    other = DisinhibitoryControl(net, cross_entropy, rule="linear", averaging=0.3)
    other.load_state_dict(rule.state_dict())
    net.zero_grad()
    rule.backward(x[5:], y[5:])
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    other.backward(x[5:], y[5:])
    for ours, theirs in zip(expected, (p.grad for p in net.parameters()), strict=True):
        assert torch.equal(ours, theirs)


def test_frozen_stages_are_left_alone():
    net = circuit(6, 8, 7, 4)
    net.drives[0].requires_grad_(False)
    x, y = batch(5, 6, 4)
    DisinhibitoryControl(net, cross_entropy).backward(x, y)
    assert net.drives[0].weight.grad is None
    assert net.drives[1].weight.grad is not None
