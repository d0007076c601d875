"""Strategies against loops written apart, budgets, caches, and landscapes whose optimum is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from neuropil.structure.search.bayes import BayesSearch, acquisition
from neuropil.structure.search.landscapes import nk_landscape
from neuropil.structure.search.searching import search
from neuropil.structure.search.spaces import Space, chain_space
from neuropil.structure.search.strategies import (
    LocalSearch,
    PolicyGradient,
    RandomSearch,
    RegularisedEvolution,
    Strategy,
)
from neuropil.structure.search.surrogates import gaussian_process, mlp_ensemble, random_forest

STRATEGIES = {
    "random": RandomSearch(),
    "local": LocalSearch(),
    "evolution": RegularisedEvolution(8, 3),
    "policy": PolicyGradient(),
    "gp": BayesSearch("gp", initial=5, round=5, candidates=30),
    "forest": BayesSearch("forest", acquisition="ucb", initial=5, round=10, candidates=30),
    "ensemble": BayesSearch(
        lambda x, y, g: mlp_ensemble(x, y, g, members=2, layers=2, steps=10), "ei", initial=5, round=10, candidates=30
    ),
}
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


class Listed(Strategy):
    """Asks for given codes, and keeps what it is told."""

    def __init__(self, codes):
        self.codes, self.told = codes, []

    def propose(self, space, generator):
        for code in self.codes:
            self.told.append((yield code))


def bits(n):
    return Space({f"bit {i}": (0, 1) for i in range(n)})


@every_strategy
def test_every_strategy_keeps_to_the_contract(strategy):
    space, value = nk_landscape(8, 2, seed=1)
    calls = []

    def counted(code):
        calls.append(code)
        return value(code)

    result = search(space, counted, 40, strategy, seed=3)
    trace = result.trace
    assert len(calls) == len(set(calls)) == result.queries == 40
    assert trace["query"].tolist() == list(range(1, 41))
    assert trace["architecture"].tolist() == calls
    assert trace["best"].tolist() == np.maximum.accumulate(trace["value"]).tolist()
    assert result.value == value(result.best) == trace["value"].max()
    assert 0 <= result.overhead <= result.seconds
    again = search(space, value, 40, strategy, seed=3)
    assert again.trace["architecture"].tolist() == calls
    assert search(space, value, 40, strategy, seed=4).trace["architecture"].tolist() != calls


@every_strategy
def test_a_counted_space_is_searched_whole_and_then_given_up(strategy, monkeypatch):
    monkeypatch.setattr("neuropil.structure.search.searching.PATIENCE", 500)
    space, value = nk_landscape(4, 1)
    result = search(space, value, 100, strategy)
    assert result.exhausted
    if not isinstance(strategy, PolicyGradient):  # which may be sure of its choice before it has seen all
        assert result.queries == 16
        assert result.value == max(map(value, space.all()))


def test_networks_met_again_cost_nothing_but_are_told():
    space = chain_space((0, 1), {"width": (1, 2)})
    listed = Listed([(0, 0), (0, 1), (1, 0), (0, 0), (1, 1)])  # the second and the fourth are the first
    result = search(space, lambda code: float(sum(code)), 3, listed)
    assert result.trace["architecture"].tolist() == [(0, 0), (1, 0), (1, 1)]
    assert listed.told == [0, 0, 1, 0]  # the budget ends with the last
    assert not result.exhausted


def test_a_strategy_may_end():
    result = search(bits(3), lambda code: float(sum(code)), 10, Listed([(0, 0, 0), (1, 0, 0)]))
    assert (result.queries, result.exhausted, result.best) == (2, True, (1, 0, 0))


def test_local_search_climbs_a_slope_by_its_neighbourhoods():
    space = bits(6)
    start = space.sample(torch.Generator().manual_seed(5))
    result = search(space, lambda code: float(sum(code)), 64, LocalSearch(), seed=5)
    codes = result.trace["architecture"].tolist()
    assert codes[0] == start
    zeros = 6 - sum(start)
    assert 0 < zeros < 6
    # All six neighbours come before anything else, and the summit after one neighbourhood a zero.
    assert set(codes[1:7]) == set(space.neighbours(start))
    assert (1,) * 6 in codes[: 1 + 6 * zeros]


def test_local_search_starts_anew_after_a_summit():
    space = bits(4)
    peak = (0, 0, 0, 0)
    result = search(space, lambda code: 1.0 if code == peak else -float(sum(code)), 16, LocalSearch(), seed=0)
    assert result.queries == 16
    assert result.best == peak


def test_evolution_drops_the_oldest_and_mutates_the_best_of_its_sample():
    space, value = bits(12), lambda code: float(sum(code))
    told, alive = [], []
    proposals = RegularisedEvolution(6, 6).propose(space, torch.Generator().manual_seed(0))
    code = next(proposals)
    for step in range(60):
        if step >= 6:
            parents = [one for one in alive[-6:] if sum(a != b for a, b in zip(one, code, strict=True)) == 1]
            assert parents, "a child is one edit away from somebody who is still alive"
        alive.append(code)
        told.append(value(code))
        code = proposals.send(told[-1])
    # With the worst dropped instead, the population's best would never be lost; ageing loses it.
    best = [max(told[max(0, step - 5) : step + 1]) for step in range(5, 60)]
    assert any(after < before for before, after in itertools.pairwise(best))


def test_evolution_of_one_is_a_random_walk():
    space = bits(5)
    proposals = RegularisedEvolution(1, 3).propose(space, torch.Generator().manual_seed(0))
    codes = [next(proposals)]
    for _ in range(20):
        codes.append(proposals.send(0.0))
    assert all(sum(a != b for a, b in zip(x, y, strict=True)) == 1 for x, y in itertools.pairwise(codes))


def test_policy_gradient_is_reinforce_with_a_moving_baseline():
    space = Space({"a": range(3), "b": range(2)})
    strategy = PolicyGradient(rate=0.5, decay=0.8)
    ours = strategy.propose(space, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    logits = [torch.zeros(3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    code, baseline = next(ours), None
    for step in range(10):
        drawn = tuple(int(torch.multinomial(one.detach().softmax(0), 1, generator=generator)) for one in logits)
        assert code == drawn
        reward = float(step % 3) + drawn[0]
        baseline = reward if baseline is None else baseline
        log_p = sum(one.log_softmax(0)[c] for one, c in zip(logits, drawn, strict=True))
        for values, gradient in zip(logits, torch.autograd.grad((reward - baseline) * log_p, logits), strict=True):
            values.data += 0.5 * gradient
        baseline = 0.8 * baseline + 0.2 * reward
        code = ours.send(reward)


def test_policy_gradient_learns_a_bandit():
    space = Space({"a": range(4)})
    proposals = PolicyGradient(rate=1.0).propose(space, torch.Generator().manual_seed(0))
    code = next(proposals)
    late = []
    for step in range(400):
        if step >= 300:
            late.append(code == (2,))
        code = proposals.send(1.0 if code == (2,) else 0.0)
    assert np.mean(late) > 0.9


def test_a_policy_that_is_sure_of_an_invalid_code_draws_at_random():
    space = Space({"a": (0, 1)}, valid=lambda code: code == (1,))
    sure = [torch.tensor([1.0, 0.0])]
    assert PolicyGradient._draw(space, sure, torch.Generator().manual_seed(0)) == (1,)


def test_searches_beat_random_on_a_smooth_landscape():
    space, value = nk_landscape(14, 0, seed=2)
    names = ("local", "evolution", "gp", "policy")
    final = {
        name: np.mean([search(space, value, 80, STRATEGIES[name], seed).value for seed in range(5)])
        for name in (*names, "random")
    }
    assert all(final[name] > final["random"] for name in names), final


def test_nk_landscapes():
    space, value = nk_landscape(6, 0, seed=0)
    # No dependence: the best code has the best bit everywhere.
    base = (0,) * 6
    gains = [value(tuple(int(j == i) for j in range(6))) - value(base) for i in range(6)]
    best = tuple(int(gain > 0) for gain in gains)
    assert max(map(value, space.all())) == pytest.approx(value(best))
    space, value = nk_landscape(5, 4, seed=0)
    values = list(map(value, space.all()))
    assert all(0 <= v <= 1 for v in values)
    assert len(set(values)) == 32
    assert nk_landscape(5, 4, seed=1)[1](base[:5]) != values[0]
    with pytest.raises(ValueError, match="0 <= k < n"):
        nk_landscape(3, 3)


def test_a_gaussian_process_interpolates_and_knows_where_it_does_not_know():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 2, generator=generator, dtype=torch.float64)
    y = 3 + (4 * x[:, 0]).sin() + x[:, 1]
    predict = gaussian_process(x, y)
    mean, std = predict(x)
    assert (mean - y).abs().max() < 0.05
    far_mean, far_std = predict(torch.full((1, 2), 50.0, dtype=torch.float64))
    assert far_std > 5 * std.max()
    assert far_mean == pytest.approx(float(y.mean()))
    assert far_std == pytest.approx(float(y.std(correction=0)), rel=1e-6)


def test_a_gaussian_process_is_the_conditional_of_a_joint_normal():
    # Against the textbook's formula with the hyper-parameters that it chose, found from its own far variance.
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    y = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mean, std = gaussian_process(x, y)(torch.tensor([[0.5]], dtype=torch.float64))
    assert mean == pytest.approx(0.5)  # by symmetry
    assert 0 < float(std) < 0.5


@pytest.mark.parametrize("fit", [gaussian_process, random_forest, mlp_ensemble])
def test_surrogates_take_constant_values_and_one_sample(fit):
    generator = torch.Generator().manual_seed(0)
    for count in (1, 6):
        x = torch.eye(6)[:count]
        mean, std = fit(x, torch.full((count,), 7.0), generator)(torch.eye(6))
        assert mean.shape == std.shape == (6,)
        assert mean.isfinite().all()
        assert (std >= 0).all()
    assert mean[:6] == pytest.approx([7.0] * 6, abs=1.0)
    with pytest.raises(ValueError, match="samples, features"):
        fit(torch.zeros(0, 2), torch.zeros(0), generator)
    with pytest.raises(ValueError, match="finite"):
        fit(torch.zeros(2, 2), torch.tensor([0.0, math.nan]), generator)


@pytest.mark.parametrize("fit", [random_forest, mlp_ensemble])
def test_surrogates_learn_a_linear_function(fit):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (80, 8), generator=generator).float()
    y = x @ torch.arange(8.0)
    mean, _ = fit(x[:60], y[:60], generator)(x[60:])
    assert np.corrcoef(mean, y[60:])[0, 1] > 0.8


def test_acquisitions_in_closed_form(generator):
    mean, std = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 0.0, 2.0])
    assert acquisition("ucb", mean, std, best=0.0, generator=generator, beta=2.0).tolist() == [2.0, 1.0, 5.0]
    ei = acquisition("ei", mean, std, best=0.5, generator=generator)
    draws = torch.randn(400_000, generator=generator)
    for m, s, value in zip(mean, std, ei, strict=True):
        assert float(value) == pytest.approx(float((m + s * draws - 0.5).clamp(min=0).mean()), abs=5e-3)
    its = acquisition(
        "its", mean.expand(20_000, 3).flatten(), std.expand(20_000, 3).flatten(), best=0, generator=generator
    )
    assert its.view(-1, 3).mean(0).tolist() == pytest.approx([0, 1, 1], abs=0.06)
    assert its.view(-1, 3).std(0).tolist() == pytest.approx([1, 0, 2], abs=0.06)


def test_bayes_survives_diverged_trainings():
    space, value = nk_landscape(8, 1)
    result = search(space, lambda code: -math.inf if code[0] else value(code), 40, STRATEGIES["gp"])
    assert math.isfinite(result.value)
    assert search(space, lambda code: -math.inf, 20, STRATEGIES["gp"]).value == -math.inf


def test_nan_is_refused_by_the_name_of_the_architecture():
    with pytest.raises(ValueError, match=r"NaN for \{'bit 0': 0, 'bit 1': 1\}"):
        search(bits(2), lambda code: math.nan if code == (0, 1) else 0.0, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: search(bits(2), len, 0), "budget must be at least 1"),
        (lambda: search(bits(9), len, 99, RegularisedEvolution()), "at least 100"),
        (lambda: search(bits(9), len, 9, BayesSearch()), "at least 10"),
        (lambda: LocalSearch(0), "initial"),
        (lambda: RegularisedEvolution(0), "population"),
        (lambda: RegularisedEvolution(5, 0), "sample"),
        (lambda: PolicyGradient(rate=0), "rate"),
        (lambda: PolicyGradient(decay=1.0), "decay"),
        (lambda: BayesSearch("oracle"), "surrogate"),
        (lambda: BayesSearch(acquisition="greed"), "acquisition"),
        (lambda: BayesSearch(round=0), "round"),
        (lambda: acquisition("greed", torch.zeros(1), torch.ones(1), best=0.0, generator=torch.Generator()), "greed"),
        (lambda: mlp_ensemble(torch.eye(2), torch.zeros(2), torch.Generator(), members=0), "members"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
