import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.learning.geometry import EUCLIDEAN, NegativeEntropy, PNorm, Potential

POTENTIALS = [EUCLIDEAN, PNorm(1.5), PNorm(3.0), NegativeEntropy()]
every_potential = pytest.mark.parametrize("potential", POTENTIALS, ids=lambda potential: potential.name)
weights = st.lists(st.floats(1e-3, 10) | st.floats(-10, -1e-3), min_size=1, max_size=6)


def vector(values):
    return torch.tensor(values, dtype=torch.float64)


@every_potential
@given(values=weights)
def test_the_gradient_is_autograds(potential, values):
    w = vector(values).requires_grad_()
    (expected,) = torch.autograd.grad(potential(w), w)
    assert_close(potential.grad(w.detach()), expected)


@every_potential
@given(values=weights)
def test_the_inverse_gradient_leads_back(potential, values):
    w = vector(values)
    assert_close(potential.inverse_grad(potential.grad(w), w.sign()), w)


@every_potential
@given(values=weights, factors=st.lists(st.floats(0.1, 10), min_size=6, max_size=6))
def test_the_divergence_is_positive_and_zero_only_on_itself(potential, values, factors):
    w = vector(values)
    other = w * vector(factors[: len(values)])
    assert float(potential.bregman(w, w)) == pytest.approx(0, abs=1e-12)
    divergence = float(potential.bregman(other, w))
    assert divergence >= -1e-12
    if float((other / w - 1).abs().max()) > 1e-2:
        assert divergence > 0


def test_the_euclidean_divergence_is_half_the_squared_distance():
    w1, w2 = vector([1.0, -2.0, 3.0]), vector([-0.5, 4.0, 3.0])
    assert_close(EUCLIDEAN.bregman(w1, w2), 0.5 * (w1 - w2).square().sum())


def test_the_entropys_divergence_is_kullback_and_leiblers():
    w1, w2 = vector([0.2, -0.3, 0.5]), vector([0.4, -0.5, 0.1])
    p, q = w1.abs(), w2.abs()
    entropy = NegativeEntropy()
    assert_close(entropy.bregman(w1, w2), (p * (p / q).log()).sum())  # both sum to 1
    by_definition = entropy(w1) - entropy(w2) - (entropy.grad(w2) * (w1 - w2)).sum()
    assert_close(entropy.bregman(w1, w2), by_definition)


def test_under_entropy_no_weight_reaches_another_sign_or_leaves_zero():
    entropy, one, zero = NegativeEntropy(), vector([1.0]), vector([0.0])
    assert float(entropy.bregman(-one, one)) == math.inf
    assert float(entropy.bregman(one, zero)) == math.inf
    assert float(entropy.bregman(zero, one)) == 1.0  # the limit
    assert float(entropy.bregman(zero, zero)) == 0.0


@every_potential
def test_zeros_make_no_nan(potential):
    zeros = torch.zeros(3)
    assert float(potential(zeros)) == 0.0
    assert_close(potential.grad(zeros), zeros)
    assert_close(potential.inverse_grad(zeros, zeros), zeros)


@every_potential
def test_a_step_is_the_plain_step_of_the_dual_variables(potential):
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(4, 5, generator=generator, dtype=torch.float64).T  # not contiguous
    direction = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    dual = potential.grad(w) - 0.05 * direction
    expected = potential.inverse_grad(dual, w.sign())
    potential.step_(w, direction, 0.05)
    assert_close(w, expected)


def test_half_precision_and_shapes_are_kept():
    w = torch.tensor([[0.5, -2.0]], dtype=torch.float16)
    for potential in POTENTIALS:
        assert potential.grad(w).dtype == torch.float16
        assert potential.grad(w).shape == (1, 2)


@pytest.mark.parametrize("p", [1.0, 0.5, -2.0, math.inf, math.nan])
def test_exponents_without_a_strictly_convex_potential_are_refused(p):
    with pytest.raises(ValueError, match="p must be a finite number above 1"):
        PNorm(p)


def test_names_tell_potentials_apart():
    assert [potential.name for potential in POTENTIALS] == ["2-norm", "1.5-norm", "3-norm", "negative entropy"]
    assert PNorm(2) == EUCLIDEAN
    assert PNorm(3) != EUCLIDEAN
    with pytest.raises(TypeError, match="abstract"):
        Potential()
