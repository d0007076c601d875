import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation
from neuropil.learning.feedback import BottleneckLinear, DirectFeedbackAlignment, FeedbackAlignment
from neuropil.learning.networks import linear


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1))
def test_a_fraction_is_blocked_to_within_one_weight(inputs, outputs, rate):
    layer = BottleneckLinear(inputs, outputs, rate, generator=seeded())
    assert abs(int(layer.blocked.sum()) - rate * inputs * outputs) <= 0.5


def test_before_learning_it_is_the_plain_layer():
    plain, narrow = linear(6, 4, generator=seeded()), BottleneckLinear(6, 4, 0.5, generator=seeded())
    x = torch.randn(3, 6, generator=seeded(1))
    assert_close(narrow.weight, plain.weight)
    assert_close(narrow(x), plain(x))
    assert_close(narrow.double()(x.double()), plain.double()(x.double()))


@pytest.mark.parametrize("make", [Backpropagation, DirectFeedbackAlignment, FeedbackAlignment])
@pytest.mark.parametrize("rate", [0.0, 0.7, 1.0])
def test_blocked_weights_never_move_whatever_the_optimizer_does(make, rate):
    net = nn.Sequential(linear(6, 5, generator=seeded(2)), nn.Tanh(), BottleneckLinear(5, 3, rate, generator=seeded()))
    layer, before = net[2], net[2].effective.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, momentum=0.9, weight_decay=0.1)
    rule = make(net, cross_entropy)
    x, y = torch.randn(8, 6, generator=seeded(1)), torch.arange(8) % 3
    for _ in range(4):
        rule.learn(x, y, optimizer)
    moved = layer.effective != before
    assert torch.equal(moved, ~layer.blocked)
    assert layer.weight.grad is not None
    assert not layer.weight.grad[layer.blocked].any()
    assert layer.bias.detach().any()


def test_gradients_are_those_of_the_plain_layer_where_weights_are_free():
    plain, narrow = linear(6, 4, generator=seeded()), BottleneckLinear(6, 4, 0.5, generator=seeded())
    x = torch.randn(3, 6, generator=seeded(1), requires_grad=True)
    plain(x).square().sum().backward()
    through, x.grad = x.grad, None
    narrow(x).square().sum().backward()
    assert_close(x.grad, through)  # the signal below the layer is not masked
    assert_close(narrow.bias.grad, plain.bias.grad)
    assert_close(narrow.weight.grad, plain.weight.grad.masked_fill(narrow.blocked, 0))


def test_the_mask_travels_with_the_state():
    first, second = (BottleneckLinear(6, 4, 0.5, generator=seeded(seed)) for seed in (0, 1))
    assert not torch.equal(first.blocked, second.blocked)
    with torch.no_grad():
        first.weight.add_(1)
    second.load_state_dict(first.state_dict())
    twin = copy.deepcopy(first)
    for other in (second, twin):
        assert_close(other.effective, first.effective)
    assert "rate=0.5" in repr(first)
    assert BottleneckLinear(6, 4, 0.5, bias=False, generator=seeded()).bias is None


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\]"):
        BottleneckLinear(6, 4, rate)


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ValueError, match="at least one input"):
        BottleneckLinear(0, 4, 0.5)
