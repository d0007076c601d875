import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation
from neuropil.learning.costs import peak_memory, step_cost
from tests.learning.nets import case

MEGABYTE = 250_000  # float32 numbers


def test_the_peak_is_what_lives_at_once():
    def one_after_the_other():
        for _ in range(5):
            torch.zeros(MEGABYTE)

    def together():
        kept = [torch.zeros(MEGABYTE) for _ in range(5)]
        del kept[1:]
        torch.zeros(2 * MEGABYTE)

    assert peak_memory(lambda: None) == 0
    assert peak_memory(together) == pytest.approx(5e6)
    assert peak_memory(one_after_the_other) <= 2e6  # a new one is made before the old one is let go


def test_views_and_what_was_there_before_are_free():
    before = torch.zeros(MEGABYTE)
    assert peak_memory(lambda: before.view(500, 500).T[:10].add_(1)) == 0
    assert peak_memory(lambda: (before + 1).view(500, 500)) == 1_000_000


def test_the_peak_counts_what_is_kept_for_the_backward_pass():
    net = nn.Sequential(*[nn.Linear(100, 100), nn.Tanh()] * 4, nn.Linear(100, 3))
    x, y = torch.ones(500, 100), torch.zeros(500, dtype=torch.int64)
    rule = Backpropagation(net, cross_entropy)
    kept = 4 * 500 * 100 * 4  # a hidden layer's output serves its own derivative and the next layer's
    assert kept <= step_cost(rule, x, y, calls=1).megabytes * 1e6 <= 2 * kept


def test_costs_leave_no_trace():
    net, _, x, y = case("conv")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    cost = step_cost(Backpropagation(net, cross_entropy), x, y)
    assert cost.milliseconds > 0
    assert_close(net.state_dict(), before)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in net.parameters())
    with pytest.raises(ValueError, match="calls must be at least 1, got 0"):
        step_cost(Backpropagation(net, cross_entropy), x, y, calls=0)
