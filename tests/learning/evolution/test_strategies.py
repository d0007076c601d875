"""Antithetic evolution strategies: closed forms for any draw, then the expectation, then use with optimizers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.learning.evolution import AntitheticES


def make(generator, population=10, sigma=0.1, shape=(3, 2)):
    theta = torch.randn(shape, generator=generator, dtype=torch.float64)
    return theta, AntitheticES({"theta": theta}, sigma, population, generator)


def test_the_second_half_mirrors_the_first(generator):
    theta, strategy = make(generator)
    mutants = strategy.ask()["theta"]
    assert mutants.shape == (10, 3, 2)
    assert_close((mutants[:5] + mutants[5:]) / 2, theta.expand(5, 3, 2))
    assert not torch.equal(strategy.ask()["theta"], mutants)
    _, wide = make(generator, population=40_000, sigma=0.3, shape=())
    assert float((wide.ask()["theta"]).std()) == pytest.approx(0.3, rel=0.02)


@given(population=st.sampled_from([2, 4, 10]), sigma=st.sampled_from([1e-3, 0.1, 5.0]), seed=st.integers(0, 99))
def test_on_a_linear_loss_the_estimate_is_the_sum_of_projections(population, sigma, seed):
    generator = torch.Generator().manual_seed(seed)
    theta, strategy = make(generator, population, sigma)
    slope = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    mutants = strategy.ask()["theta"]
    mutations = (mutants - theta)[: population // 2]
    strategy.tell((mutants * slope).sum((1, 2)) + 7)
    projections = (mutations * slope).sum((1, 2))
    expected = 2 * torch.einsum("p,pij->ij", projections, mutations) / (population * sigma**2)
    assert_close(theta.grad, expected, rtol=1e-6, atol=1e-8)


def test_even_orders_of_the_loss_cancel(generator):
    theta, strategy = make(generator)
    mutants = strategy.ask()["theta"]
    strategy.tell((mutants - theta).square().sum((1, 2)))
    assert theta.grad.abs().max() < 1e-9
    strategy.ask()
    strategy.tell(torch.full((10,), 3.0))
    assert theta.grad.abs().max() < 1e-9


def test_the_estimate_is_unbiased_and_its_cosine_is_the_theory(generator):
    slope = torch.randn(20, generator=generator, dtype=torch.float64)
    gradients, cosines = [], []
    for _ in range(300):
        theta, strategy = make(generator, 40, 0.2, (20,))
        strategy.tell(strategy.ask()["theta"] @ slope)
        gradients.append(theta.grad)
        cosines.append(torch.cosine_similarity(theta.grad, slope, dim=0))
    every = torch.stack(gradients)
    error = (every.mean(0) - slope) / (every.std(0) / 300**0.5)
    assert error.abs().max() < 4
    assert float(torch.stack(cosines).mean()) == pytest.approx((20 / 40) ** 0.5, abs=0.03)


def test_gradients_add_up_and_go_to_every_parameter_in_its_own_type(generator):
    params = {"a": torch.zeros(2), "b": torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)}
    strategy = AntitheticES(params, 0.1, 4, generator)
    losses = torch.tensor([1.0, 2.0, 3.0, -1.0])
    strategy.ask()
    strategy.tell(losses)
    before = params["b"].grad.clone()
    assert params["a"].grad.dtype == torch.float32
    strategy.ask()
    params["a"].grad = None
    strategy.tell(losses)
    assert not torch.equal(params["b"].grad, before)
    params["b"].grad = torch.ones_like(params["b"])
    strategy.ask()
    strategy.tell(torch.zeros(4))
    assert torch.equal(params["b"].grad, torch.ones(3, 3, dtype=torch.float64))


def test_any_optimizer_may_step(generator):
    theta = torch.nn.Parameter(torch.full((5,), 3.0))
    strategy = AntitheticES({"theta": theta}, 0.1, 20, generator)
    optimizer = torch.optim.Adam([theta], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        strategy.tell(strategy.ask()["theta"].sub(1).square().sum(1))
        optimizer.step()
    assert_close(theta.detach(), torch.ones(5), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda p: AntitheticES(p, 0.1, 5), ValueError, "must be even .* got 5"),
        (lambda p: AntitheticES(p, 0.1, 0), ValueError, "must be even"),
        (lambda p: AntitheticES(p, 0.0, 4), ValueError, "sigma must be positive"),
        (lambda p: AntitheticES({}, 0.1, 4), ValueError, "params is empty"),
        (lambda p: AntitheticES({"n": torch.arange(3)}, 0.1, 4), TypeError, "'n' is of type torch.int64"),
        (lambda p: AntitheticES(p, 0.1, 4).tell(torch.zeros(4)), ValueError, "call ask first"),
    ],
)
def test_wrong_use_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call({"theta": torch.zeros(3)})


def test_wrong_losses_are_named_and_change_nothing(generator):
    theta, strategy = make(generator, 4)
    strategy.ask()
    with pytest.raises(ValueError, match="3 losses for a population of 4"):
        strategy.tell(torch.zeros(3))
    with pytest.raises(FloatingPointError, match="1 of 4"):
        strategy.tell(torch.tensor([0.0, float("nan"), 0.0, 0.0]))
    assert theta.grad is None
    strategy.tell(torch.zeros(4))
    with pytest.raises(ValueError, match="call ask first"):
        strategy.tell(torch.zeros(4))
