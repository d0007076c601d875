"""The small modules of the ground floor: losses, networks' initial weights, processes, panels."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch.testing import assert_close

from neuropil.learning.networks import lecun_normal_, linear, mlp
from neuropil.losses import half_squared_error, soften
from neuropil.parallel import parallel
from neuropil.plotting import canvas, panels


def test_the_gradient_of_half_the_squared_error_is_the_difference(generator):
    output = torch.randn(5, 3, generator=generator, requires_grad=True)
    target = torch.randn(5, 3, generator=generator)
    half_squared_error(output, target).backward()
    assert_close(output.grad, (output.detach() - target) / 5)


def test_soft_targets_are_probabilities():
    targets = soften(torch.tensor([2, 0]), 4, 0.97)
    assert_close(targets, torch.tensor([[0.01, 0.01, 0.97, 0.01], [0.97, 0.01, 0.01, 0.01]]))
    assert_close(soften(torch.tensor([1]), 3, 1.0), torch.tensor([[0.0, 1.0, 0.0]]))
    assert soften(torch.tensor([1]), 3, dtype=torch.float64).dtype == torch.float64
    assert soften(torch.zeros(0, dtype=torch.int64), 3).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: soften(torch.tensor([3]), 3), r"class 3 .* 3 classes"),
        (lambda: soften(torch.tensor([-1]), 3), "class -1"),
        (lambda: soften(torch.tensor([0]), 1), "at least 2"),
        (lambda: soften(torch.tensor([0]), 2, 0.0), "top"),
        (lambda: mlp(3), "sizes of its inputs and outputs"),
        (lambda: linear(0, 3), "at least one input"),
        (lambda: lecun_normal_(torch.ones(3)), "fan-in"),
        (lambda: parallel([], jobs=0), "jobs"),
        (lambda: panels(0), "panels"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_initial_weights_have_the_variance_of_their_fan_in():
    weight = lecun_normal_(torch.empty(400, 100), torch.Generator().manual_seed(0))
    assert float(weight.std()) == pytest.approx(0.1, rel=0.02)
    assert float(weight.abs().max()) < 0.1 / 0.87962566 * 2 + 1e-6


def test_a_generator_makes_networks_without_the_global_state():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = mlp(4, 5, 3, generator=torch.Generator().manual_seed(1))
    two = mlp(4, 5, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_close(one.state_dict(), two.state_dict())
    assert mlp(4, 3, readout_bias=False)[0].bias is None


@pytest.mark.parametrize("jobs", [1, 2])
def test_calls_come_back_in_order_on_one_thread_each(jobs):
    labels = []

    def track(items, label, total):
        labels.append((label, total))
        return items

    values = parallel(
        [lambda k=k: (k, torch.get_num_threads()) for k in range(4)], jobs=jobs, track=track, label="squares"
    )
    assert values == [(k, 1) for k in range(4)]
    assert labels == [("squares", 4)]


def test_figures_are_outside_pyplot():
    figure, axes = panels(2, 2)
    assert len(axes) == 4
    assert canvas(axes[0]) == (figure, axes[0])
    assert canvas(None)[0] is not figure
    assert plt.get_fignums() == []
