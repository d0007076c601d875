import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from neuropil.neurons.integrators import LeakyIntegrator, decay_factor


@given(st.floats(0.5, 1e3), st.floats(1e-3, 0.5))
def test_a_factor_is_the_decay_of_a_step(tau, dt):
    assert decay_factor(tau, dt) == math.exp(-dt / tau)
    assert decay_factor(tau, dt, "euler") == 1 - dt / tau
    assert_close(decay_factor(torch.tensor([tau], dtype=torch.float64), dt).item(), math.exp(-dt / tau))
    # Half steps compose exactly, which Euler's do not.
    assert_close(decay_factor(tau, dt / 2) ** 2, decay_factor(tau, dt))
    assert decay_factor(tau, dt, "euler") < decay_factor(tau, dt)


def test_gradients_flow_to_the_time_constant():
    tau = torch.tensor([2.0, 5.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(decay_factor, (tau,))
    assert torch.autograd.gradcheck(lambda t: decay_factor(t, 1.0, "euler"), (tau,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "tau must be finite and above 0, got 0"),
        ((-1.0,), "tau must be finite and above 0, got -1"),
        ((math.nan,), "tau .* got nan"),
        ((math.inf,), "tau .* got inf"),
        ((torch.tensor([2.0, -3.0]),), "tau .* got -3"),
        ((1.0, 0.0), "dt must be finite and above 0"),
        ((0.5, 1.0, "euler"), "euler' must be finite and at least 1, got 0.5"),
    ],
)
def test_bad_time_constants_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        decay_factor(*arguments)


@pytest.mark.parametrize("integration", ["exact", "euler"])
def test_the_answer_to_a_constant_and_to_a_pulse_is_the_closed_form(integration):
    t = torch.arange(1, 31, dtype=torch.float64)
    a = decay_factor(7.0, 0.5, integration)
    integrator = LeakyIntegrator(2, tau=7.0, dt=0.5, integration=integration)
    x = torch.full((30, 3, 2), 4.0, dtype=torch.float64)
    assert_close(integrator(x)[0], (4 * (1 - a**t))[:, None, None].expand_as(x))
    pulse = torch.zeros_like(x)
    pulse[0] = 1.0
    summing = LeakyIntegrator(2, decay=0.9)
    assert_close(summing(pulse)[0], (0.9 ** (t - 1))[:, None, None].expand_as(x))
    assert_close(
        LeakyIntegrator(2, tau=7.0, gain=3.0)(pulse)[0], 3 * decay_factor(7.0) ** (t - 1)[:, None, None] + 0 * x
    )


def test_the_limits_are_a_sum_and_no_memory(generator):
    x = torch.randn(9, 2, 3, generator=generator)
    assert_close(LeakyIntegrator(3, decay=1.0)(x)[0], x.cumsum(0))
    assert_close(LeakyIntegrator(3, decay=0.0)(x)[0], x)


def test_neurons_can_differ_and_learn(generator):
    x = torch.randn(6, 2, 3, generator=generator, dtype=torch.float64)
    tau = torch.tensor([2.0, 5.0, 20.0], dtype=torch.float64)
    gain = nn.Parameter(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    each = [
        LeakyIntegrator(1, tau=float(t), gain=float(k))(x[..., i : i + 1])[0]
        for i, (t, k) in enumerate(zip(tau, gain.detach(), strict=True))
    ]
    fixed = LeakyIntegrator(3, tau=tau, gain=gain.detach())
    assert_close(fixed(x)[0], torch.cat(each, -1))
    assert not list(fixed.parameters())
    assert sorted(fixed.state_dict()) == ["decay.fixed", "gain"]
    learned = LeakyIntegrator(3, tau=tau, gain=gain, learnable=True)
    assert_close(learned(x)[0], torch.cat(each, -1))
    names = [name for name, _ in learned.named_parameters()]
    assert sorted(names) == ["decay.logit", "gain"]
    learned(x)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().min() > 0 for p in learned.parameters())


def test_what_is_learned_stays_a_decay():
    integrator = LeakyIntegrator(2, decay=0.5, learnable=True)
    optimizer = torch.optim.SGD(integrator.parameters(), lr=100.0)
    for _ in range(5):
        optimizer.zero_grad()
        (-integrator(torch.ones(5, 1, 2))[0].sum()).backward()
        optimizer.step()
    a = integrator.decay(torch.zeros(1))
    assert isinstance(a, torch.Tensor)
    assert 0.9 < float(a.detach()) <= 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_type_follows_the_input(dtype, generator):
    x = torch.randn(3, 2, 2, generator=generator, dtype=dtype)
    for learnable in (False, True):
        integrator = LeakyIntegrator(2, tau=torch.tensor([3.0, 4.0], dtype=torch.float64), learnable=learnable)
        outputs, state = integrator(x)
        assert outputs.dtype == state.v.dtype == dtype


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either tau or decay"),
        ({"tau": 2.0, "decay": 0.5}, "either tau or decay"),
        ({"decay": 1.5}, r"decay must be in \[0, 1\], got 1.5"),
        ({"decay": math.nan}, "decay .* got nan"),
        ({"decay": 1.0, "learnable": True}, r"decay must be in \(0, 1\), got 1"),
        ({"tau": torch.ones(4)}, r"have 3 elements, got \(4,\)"),
        ({"tau": 2.0, "gain": math.inf}, "gain must be finite, got inf"),
    ],
)
def test_bad_integrators_are_refused_in_words(options, message):
    with pytest.raises(ValueError, match=message):
        LeakyIntegrator(3, **options)
    with pytest.raises(ValueError, match="features must be at least 1, got 0"):
        LeakyIntegrator(0, tau=1.0)
