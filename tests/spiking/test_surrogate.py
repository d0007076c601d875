import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.spiking.surrogate import (
    SURROGATES,
    Atan,
    ClampedTanh,
    FastSigmoid,
    Rectangle,
    Sigmoid,
    Smooth,
    Triangle,
    as_surrogate,
)

CASES = [cls() for cls in SURROGATES.values()]
CASES += [Atan(0.7), Sigmoid(1.3), FastSigmoid(3.0), Triangle(0.4), Rectangle(0.3), ClampedTanh(1.1)]


@pytest.mark.parametrize("surrogate", CASES, ids=str)
def test_the_derivative_is_that_of_the_value(surrogate):
    x = torch.linspace(-2.003, 2.001, 400, dtype=torch.float64)  # no edge of a piecewise function lies on it
    eps = 1e-6
    slope = (surrogate.value(x + eps) - surrogate.value(x - eps)) / (2 * eps)
    assert_close(surrogate.derivative(x), slope, rtol=1e-6, atol=1e-8)
    assert torch.autograd.gradcheck(Smooth(surrogate), x[::7].clone().requires_grad_())


@pytest.mark.parametrize("surrogate", CASES, ids=str)
def test_the_value_rises_by_what_the_docstring_says(surrogate):
    ends = surrogate.value(torch.tensor([-1e9, 1e9], dtype=torch.float64))
    wanted = [-1 / surrogate.slope, 1 / surrogate.slope] if isinstance(surrogate, FastSigmoid) else [0.0, 1.0]
    assert_close(ends, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-8)


@given(st.sampled_from(CASES), st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8), st.booleans())
def test_a_spike_is_a_step_whose_gradient_is_the_derivative(surrogate, values, single):
    x = torch.tensor(values, dtype=torch.float32 if single else torch.float64, requires_grad=True)
    spikes = surrogate(x)
    assert spikes.dtype == x.dtype
    assert spikes.tolist() == [float(value >= 0) for value in values]
    (gradient,) = torch.autograd.grad(spikes, x, torch.full_like(x, 2.0))
    x = x.detach()
    assert torch.equal(gradient, 2 * surrogate.derivative(x))
    assert_close(surrogate.derivative(-x), surrogate.derivative(x))  # the kernels rely on it


def test_closed_forms_at_the_threshold():
    slopes = [as_surrogate(name).derivative(torch.zeros(1, dtype=torch.float64)).item() for name in SURROGATES]
    assert slopes == pytest.approx([1.0, 1.0, 1.0, 1.0, 1.0, 3 / (2 * math.tanh(1.5))])


def test_gradients_can_be_differentiated_again_and_batched():
    x = torch.tensor([-0.3, 0.2], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(Atan()(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    z = math.pi * x.detach()
    assert_close(second, -2 * z * math.pi / (1 + z * z) ** 2)
    assert_close(torch.vmap(torch.func.grad(Atan()))(x.detach()), Atan().derivative(x.detach()))


def test_what_is_no_surrogate_is_refused_in_words():
    with pytest.raises(ValueError, match=r"No surrogate is named 'relu'; there are atan, sigmoid"):
        as_surrogate("relu")
    for cls in SURROGATES.values():
        for width in (0.0, math.inf, math.nan):
            with pytest.raises(ValueError, match=f"must be finite and above 0, got {width}"):
                cls(width)
