import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.data import load
from neuropil.learning import mlp
from neuropil.learning.feedback import BottleneckLinear, DirectFeedbackAlignment, prealign, signal_alignment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(samples=64):
    data = load("digits").flat()
    return data.x_train[:samples], data.y_train[:samples]


def rule_of(*sizes, activation=nn.Tanh, **options):
    net = mlp(*sizes, activation=activation, generator=seeded())
    return DirectFeedbackAlignment(net, cross_entropy, init="gaussian", **options)


def test_with_linear_stages_signals_are_exactly_aligned_for_any_batch():
    rule = rule_of(64, 20, 18, 10, activation=nn.Identity)
    prealign(rule, *batch())
    x, y = load("digits").flat().x_test[:50], load("digits").flat().y_test[:50]
    cosines = signal_alignment(rule, x, y)["cosine_mean"]
    assert cosines.iloc[1] == pytest.approx(1, abs=1e-4)  # errors of a softmax live in nine dimensions: all were seen
    assert cosines.iloc[0] == pytest.approx(1, abs=1e-3)


def test_signals_are_nearly_aligned_before_learning_and_were_not():
    rule = rule_of(64, 32, 32, 32, 10)
    x, y = batch()
    before = signal_alignment(rule, x, y)["cosine_mean"]
    assert prealign(rule, x, y) is rule
    after = signal_alignment(rule, x, y)["cosine_mean"]
    assert (before.abs() < 0.3).all()
    assert (after > 0.95).all()
    for index in (2, 4, 6):
        assert float(rule.net[index].weight.detach().norm()) == pytest.approx(1, abs=1e-5)


def test_norms_can_be_kept_and_what_is_below_the_points_stays():
    rule = rule_of(64, 32, 32, 10)
    before = [rule.net[index].weight.detach().clone() for index in (0, 2, 4)]
    prealign(rule, *batch(), norm=None)
    assert_close(rule.net[0].weight.detach(), before[0])
    for index, old in zip((2, 4), before[1:], strict=True):
        assert_close(rule.net[index].weight.detach().norm(), old.norm())


def test_wrong_use_is_named():
    x, y = batch(8)
    with pytest.raises(ValueError, match="norm must be positive"):
        prealign(rule_of(64, 8, 10), x, y, norm=0.0)
    blocked = nn.Sequential(nn.Linear(64, 8), nn.Tanh(), BottleneckLinear(8, 10, 0.5, generator=seeded()))
    with pytest.raises(TypeError, match="begins with '2', a BottleneckLinear"):
        prealign(DirectFeedbackAlignment(blocked, cross_entropy), x, y)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)

        def forward(self, x):
            return self.last(self.first(x))

    with pytest.raises(ValueError, match=r"takes an nn\.Sequential, got Own"):
        prealign(DirectFeedbackAlignment(Own(), cross_entropy, ["first"]), x, y)
    silent = DirectFeedbackAlignment(mlp(64, 8, 10, generator=seeded()), lambda z, y: 0 * z.sum())
    with pytest.raises(ValueError, match="no error at 1"):
        prealign(silent, x, y)
