"""The lifetime rule: its sums against the step-by-step form, its signs, and its limits."""

import pytest
import torch
from torch.testing import assert_close

from neuropil.learning.evolution import LifetimePlasticity, LifetimeState


def draw(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_eligibility_in_one_sum_is_eligibility_step_by_step(generator):
    rule = LifetimePlasticity(tau_trace=100.0)
    deltas, rates = draw(generator, 6, 2, 3), draw(generator, 6, 2, 3)
    state = LifetimeState(draw(generator, 2, 3, 3), draw(generator, 2, 4))
    trace = state.trace
    for delta, rate in zip(deltas, rates, strict=True):
        trace = (1 - 20 / 100) * (trace + delta[:, :, None] * rate[:, None, :])
    once = rule.accumulate(state, deltas, rates, 20.0)
    assert_close(once.trace, trace)
    assert torch.equal(once.baseline, state.baseline)
    halves = rule.accumulate(rule.accumulate(state, deltas[:2], rates[:2], 20.0), deltas[2:], rates[2:], 20.0)
    assert_close(halves.trace, trace)
    shared = rule.accumulate(state, deltas[:, :1], rates, 20.0)  # the same noise for every life
    assert_close(shared.trace, rule.accumulate(state, deltas[:, :1].expand(-1, 2, -1), rates, 20.0).trace)
    assert_close(rule.accumulate(state, deltas[:0], rates[:0], 20.0), state)


def test_the_update_is_the_equation_and_the_baseline_moves_after_it(generator):
    rule = LifetimePlasticity(eta=0.3, clip=100.0, baseline_decay=0.8)
    p, state = draw(generator, 2, 3, 3), LifetimeState(draw(generator, 2, 3, 3), torch.rand(2, 4).double() + 1)
    loss, kind = torch.tensor([0.5, 2.0]).double(), torch.tensor([3, 0])
    after, memory = rule.update(p, state, loss, kind)
    for b in range(2):
        usual = state.baseline[b, kind[b]]
        assert_close(after[b], p[b] - 0.3 * state.trace[b] * usual * (loss[b] - usual))
        assert_close(memory.baseline[b, kind[b]], 0.8 * usual + 0.2 * loss[b])
    untouched = torch.ones(2, 4, dtype=torch.bool)
    untouched[[0, 1], kind] = False
    assert torch.equal(memory.baseline[untouched], state.baseline[untouched])
    still, later = rule.update(p, state, loss, kind, learn=False)
    assert torch.equal(still, p)
    assert_close(later, memory)


def test_what_raised_the_loss_is_undone_and_nothing_moves_further_than_the_clip():
    rule = LifetimePlasticity(eta=10.0, clip=0.01)
    state = LifetimeState(torch.tensor([[[1e6, -1e6], [0.0, 1e-6]]]), torch.ones(1, 4))
    kind, p = torch.tensor([1]), torch.zeros(1, 2, 2)
    worse, _ = rule.update(p, state, torch.tensor([2.0]), kind)
    better, _ = rule.update(p, state, torch.tensor([0.5]), kind)
    assert_close(worse, torch.tensor([[[-0.01, 0.01], [0.0, -1e-5]]]))
    assert_close(better, torch.tensor([[[0.01, -0.01], [0.0, 5e-6]]]))
    as_usual, _ = rule.update(p, state, torch.tensor([1.0]), kind)
    unseen, _ = rule.update(p, state._replace(baseline=torch.zeros(1, 4)), torch.tensor([9.0]), kind)
    assert not as_usual.any()
    assert not unseen.any()


def test_following_the_rule_descends_in_expectation(generator):
    """On linear neurons the mean change of P points down the gradient of the loss."""
    rule = LifetimePlasticity(prob=1.0, scale=0.05, eta=1.0, clip=1e9, tau_trace=1e9)
    x, target, count = draw(generator, 3), draw(generator, 3), 20_000
    deltas = rule.perturbations(count, 3, generator=generator, dtype=torch.float64)
    losses = (deltas - target).square().sum(1)
    usual = target.square().sum().expand(count, 4)
    trace = deltas[:, :, None] * x.expand(count, 1, 3)
    p, _ = rule.update(
        torch.zeros(count, 3, 3).double(), LifetimeState(trace, usual), losses, torch.zeros(count).long()
    )
    descent = 2 * target[:, None] * x
    assert torch.cosine_similarity(p.mean(0).flatten(), descent.flatten(), dim=0) > 0.99


def test_perturbations_have_their_rate_and_size(generator):
    rule = LifetimePlasticity(prob=0.1, scale=0.5)
    drawn = rule.perturbations(1000, 100, generator=generator)
    assert float((drawn != 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert drawn.abs().max() <= 0.5
    assert float(drawn[drawn != 0].std()) == pytest.approx(0.5 / 3**0.5, rel=0.03)
    again = rule.perturbations(1000, 100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
    assert not LifetimePlasticity(prob=0.0).perturbations(50, generator=generator).any()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prob": 1.1}, "prob must lie"),
        ({"baseline_decay": -0.1}, "baseline_decay must lie"),
        ({"tau_trace": 0.0}, "tau_trace must be positive"),
        ({"eta": -1.0}, "eta must be at least 0"),
        ({"clip": float("nan")}, "clip must be at least 0"),
        ({"quiet": -1}, "quiet must be at least 0"),
    ],
)
def test_wrong_arguments_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        LifetimePlasticity(**options)
    with pytest.raises(ValueError, match="dt must lie"):
        LifetimePlasticity(tau_trace=10.0).keep(20.0)
