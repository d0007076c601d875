import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn
from torch.testing import assert_close

from neuropil.learning.inhibition import DisinhibitoryNetwork, Softplus
from neuropil.learning.inhibition.root import balanced_root


def network(*sizes, dtype=torch.float64, seed=0, **options):
    return DisinhibitoryNetwork(sizes, generator=torch.Generator().manual_seed(seed), **options).to(dtype)


def test_softplus_derivative_inverse_and_tangent_agree(generator):
    for phi in (Softplus(), Softplus(5.0, 1.0, 3.0), Softplus(0.5, 2.5, -1.0)):
        u = torch.linspace(-20, 60, 400, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(phi(u).sum(), u)
        assert_close(phi.derivative(u.detach()), slope)
        assert_close(phi.inverse(phi(u)), u, rtol=1e-9, atol=1e-7)
        at = torch.tensor(1.3, dtype=torch.float64)
        assert_close(phi.inverse_tangent(at, at), phi.inverse(at))
        theta, delta = phi.tangent(at)
        near = (phi.inverse(at + 1e-6) - phi.inverse(at - 1e-6)) / 2e-6
        assert_close(delta, near, rtol=1e-6, atol=0)
        assert_close(theta + delta * at, phi.inverse(at))


def test_softplus_inverse_survives_tiny_and_huge_rates():
    r = torch.tensor([1e-30, 1e-6, 1.0, 1e3, 1e30])
    u = Softplus().inverse(r)
    assert torch.isfinite(u).all()
    assert_close(u[[3, 4]], r[[3, 4]])


def test_a_rate_that_no_potential_gives_is_refused():
    with pytest.raises(ValueError, match="positive"):
        Softplus().inverse(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="sharpness"):
        Softplus(sharpness=0.0)


@given(
    drive=st.floats(-1e4, 1e4),
    lift=st.floats(-50, 50),
    e=st.tuples(st.floats(0.2, 5), st.floats(0.3, 3), st.floats(-3, 3)),
    i=st.tuples(st.floats(0.2, 5), st.floats(0.3, 3), st.floats(-3, 3)),
)
def test_every_neuron_is_the_root_that_bisection_finds(drive, lift, e, i):
    def phi(u, constants):
        scale, sharpness, shift = constants
        return scale * np.logaddexp(0.0, sharpness * (u - shift))

    root = brentq(lambda u: u + phi(phi(u, e) - lift, i) - drive, -1e6, 1e6, xtol=1e-12, rtol=1e-14)
    a, d = torch.tensor([drive], dtype=torch.float64), torch.tensor([lift], dtype=torch.float64)
    u_e, r_e = balanced_root(a, d, Softplus(*e), Softplus(*i))
    assert float(u_e) == pytest.approx(root, rel=1e-9, abs=1e-7)
    assert float(r_e) == pytest.approx(phi(root, e), rel=1e-7, abs=1e-30)


@given(drive=st.floats(-40, 40), lift=st.floats(-20, 20), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_closed_form_of_plain_neurons_is_the_root(drive, lift, dtype):
    a, d = torch.tensor([drive], dtype=dtype), torch.tensor([lift], dtype=dtype)
    plain, almost = Softplus(), Softplus(shift=1e-300)  # the second iterates
    tight = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
    for lifted in (d, None):
        ours, theirs = balanced_root(a, lifted, plain, plain), balanced_root(a, lifted, almost, almost)
        assert_close(ours, theirs, **tight)
        assert_close(ours[1], plain(ours[0]), rtol=1e-4 if dtype == torch.float32 else 1e-11, atol=0)


def test_forward_is_the_open_loop_at_rest_and_its_gradient_is_implicit(generator):
    net = network(5, 7, 6, 3)
    x = torch.randn(4, 5, dtype=torch.float64, generator=generator)
    state = net.settle(x)
    assert_close(net(x), state.readout)
    for drive, u_e, u_i in zip(state.drive, state.u_e, state.u_i, strict=True):
        assert_close(u_e + net.activation_i(u_i), drive)
        assert_close(u_i, net.activation_e(u_e))
    assert torch.autograd.gradcheck(net, (x.requires_grad_(),))
    parameters = [p.detach().requires_grad_() for p in net.parameters()]
    names = [name for name, _ in net.named_parameters()]
    assert torch.autograd.gradcheck(
        lambda *values: torch.func.functional_call(net, dict(zip(names, values, strict=True)), x.detach()), parameters
    )


def test_jacobian_is_the_chain_rule_without_the_loop_gain(generator):
    net = network(5, 7, 6, 3)
    state = net.settle(torch.randn(4, 5, dtype=torch.float64, generator=generator))
    first, second = net.output_jacobian(state)
    w_out, w_2 = net.readout.weight, net.drives[1].weight
    for b in range(4):
        j_2 = w_out @ torch.diag(net.activation_e.derivative(state.u_e[1][b]))
        assert_close(second[b], j_2)
        assert_close(first[b], j_2 @ w_2 @ torch.diag(net.activation_e.derivative(state.u_e[0][b])))


def test_linear_modules_of_any_kind_give_the_same_jacobian(generator):
    plain = network(6, 8, 7, 3)
    wrapped = DisinhibitoryNetwork.from_modules(
        [nn.Sequential(drive, nn.Identity()) for drive in plain.drives], nn.Sequential(plain.readout)
    )
    x = torch.randn(5, 6, dtype=torch.float64, generator=generator)
    for ours, theirs in zip(
        wrapped.output_jacobian(wrapped.settle(x)), plain.output_jacobian(plain.settle(x)), strict=True
    ):
        assert_close(ours, theirs)


def test_control_raises_the_readout_where_it_pushes(generator):
    net = network(5, 8, 3)
    x = torch.randn(2, 5, dtype=torch.float64, generator=generator)
    rest = net.settle(x)
    feedback = [
        j * net.activation_i.derivative(u)[:, None] for j, u in zip(net.output_jacobian(rest), rest.u_i, strict=True)
    ]
    control = torch.tensor([[0.1, 0.0, -0.2], [0.0, 0.3, 0.0]], dtype=torch.float64)
    pushed = net.settle(x, control, feedback)
    shift = net.readout(net.activation_e(pushed.u_e[0])) - net.readout(net.activation_e(rest.u_e[0]))
    assert ((shift * control).sum(1) > 0).all()
    assert_close(pushed.readout - control, net.readout(net.activation_e(pushed.u_e[0])))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DisinhibitoryNetwork([3, 2]), "hidden stage"),
        (lambda: DisinhibitoryNetwork([3, 0, 2]), "at least one"),
        (lambda: DisinhibitoryNetwork([3, 2, 2], tau_e=0.0), "tau_e"),
        (lambda: DisinhibitoryNetwork.from_modules([], nn.Linear(2, 2)), "empty"),
        (lambda: network(3, 4, 2).settle(torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 2)), "feedback"),
    ],
)
def test_what_is_no_circuit_is_refused_in_words(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_input_that_is_not_finite_is_named_with_the_stage():
    with pytest.raises(FloatingPointError, match="Hidden stage 1"):
        network(3, 4, 2).settle(torch.full((1, 3), torch.nan, dtype=torch.float64))


def test_initial_weights_come_from_the_generator_alone():
    torch.manual_seed(1)
    first = network(4, 5, 2, seed=3)
    torch.manual_seed(2)
    second = network(4, 5, 2, seed=3)
    assert_close(first.state_dict(), second.state_dict())
    assert not torch.equal(first.drives[0].weight, network(4, 5, 2, seed=4).drives[0].weight)
