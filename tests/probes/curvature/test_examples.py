import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.losses import half_squared_error
from neuropil.probes.curvature.examples import fisher_diagonal, per_example_gradients
from neuropil.probes.curvature.inputs import flatten
from neuropil.probes.curvature.kernel import tangent_kernel
from neuropil.probes.curvature.likelihood import output_gradients, output_roots, sample_targets
from neuropil.probes.curvature.operators import GaussNewton

from .nets import jacobian, smooth_net, task


def one_by_one(net, x, y, loss_fn):
    rows = []
    for index in range(len(y)):
        net.zero_grad()
        loss_fn(net(x[index : index + 1]), y[index : index + 1]).backward()
        rows.append(flatten([parameter.grad.clone() for parameter in net.parameters()]))
    net.zero_grad()
    return torch.stack(rows)


@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("vectorize", [True, False])
def test_per_example_gradients_are_those_of_batches_of_one(chunk, vectorize):
    net, (x, y) = smooth_net(4, 5, 3), task()
    found = per_example_gradients(net, x, y, cross_entropy, chunk=chunk, vectorize=vectorize)
    assert found["0.weight"].shape == (12, 5, 4)
    rows = torch.cat([gradient.flatten(1) for gradient in found.values()], 1)
    assert_close(rows, one_by_one(net, x, y, cross_entropy))
    assert all(parameter.grad is None for parameter in net.parameters())


def test_convolutions_and_eval_batch_norm_have_per_example_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    found = per_example_gradients(net, x, y, cross_entropy)
    rows = torch.cat([gradient.flatten(1) for gradient in found.values()], 1)
    assert_close(rows, one_by_one(net, x, y, cross_entropy))


def test_the_empirical_fisher_is_the_mean_of_squares_not_the_square_of_the_mean():
    net, (x, y) = smooth_net(4, 5, 3), task()
    found = fisher_diagonal(net, [(x[:5], y[:5]), (x[5:], y[5:])], cross_entropy, fisher="empirical", chunk=3)
    assert_close(flatten(found), one_by_one(net, x, y, cross_entropy).square().mean(0))


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_exact_fisher_is_the_diagonal_of_gauss_newton(vectorize):
    net, (x, y) = smooth_net(4, 5, 3), task()
    exact = GaussNewton(net, (x, y), cross_entropy).to_dense().diagonal()
    assert_close(flatten(fisher_diagonal(net, (x, y), fisher="exact", vectorize=vectorize, chunk=5)), exact)
    target = torch.zeros(12, 3, dtype=torch.float64)
    exact = GaussNewton(net, (x, target), half_squared_error).to_dense().diagonal()
    assert_close(flatten(fisher_diagonal(net, (x, y), fisher="exact", likelihood="normal")), exact)
    binary = lambda z, t: nn.functional.binary_cross_entropy_with_logits(z, t, reduction="sum") / len(z)  # noqa: E731
    exact = GaussNewton(net, (x, target), binary).to_dense().diagonal()
    assert_close(flatten(fisher_diagonal(net, (x, y), fisher="exact", likelihood="bernoulli")), exact)


@pytest.mark.parametrize("likelihood", ["categorical", "normal", "bernoulli"])
def test_the_sampled_fisher_comes_near_the_exact_one(likelihood):
    net, (x, y) = smooth_net(4, 3), task()
    exact = flatten(fisher_diagonal(net, (x, y), fisher="exact", likelihood=likelihood))
    found = flatten(fisher_diagonal(net, (x, y), samples=500, likelihood=likelihood))
    assert_close(found, exact, rtol=0.2, atol=3e-3)


@pytest.mark.parametrize("likelihood", ["categorical", "normal", "bernoulli"])
def test_gradients_of_drawn_targets_have_mean_zero_and_the_covariance_of_the_roots(likelihood):
    output = torch.tensor([[0.5, -1.0, 2.0]], dtype=torch.float64).expand(40000, 3)
    target = sample_targets(output, likelihood, torch.Generator().manual_seed(0))
    slopes = output_gradients(output, target, likelihood)
    roots = output_roots(output[:1], likelihood)[:, 0]
    assert slopes.mean(0).abs().max() < 0.02
    assert_close(slopes.T @ slopes / 40000, roots.T @ roots, atol=0.03, rtol=0)


def test_draws_are_the_generators_alone():
    net, batch = smooth_net(4, 3), task()
    before = torch.random.get_rng_state()
    first, second = (flatten(fisher_diagonal(net, batch, generator=torch.Generator().manual_seed(3))) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(first, flatten(fisher_diagonal(net, batch, generator=torch.Generator().manual_seed(4))))


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("max_bytes", [1, 2000, 2**28])
def test_the_tangent_kernel_is_the_jacobian_times_itself(max_bytes, vectorize):
    net, (x, _) = smooth_net(4, 5, 3), task(examples=7)
    rows = jacobian(net, x)
    found = tangent_kernel(net, x, max_bytes=max_bytes, vectorize=vectorize)
    assert_close(found, rows @ rows.T)
    others = task(examples=4, seed=9)[0]
    found = tangent_kernel(net, x, others, max_bytes=max_bytes, vectorize=vectorize)
    assert_close(found, rows @ jacobian(net, others).T)


def test_the_tangent_kernel_of_chosen_outputs_and_parameters():
    net, (x, _) = smooth_net(4, 5, 3), task(examples=6)
    full = tangent_kernel(net, x).view(6, 3, 6, 3)
    assert_close(tangent_kernel(net, x, outputs=slice(1, 3)), full[:, 1:, :, 1:].reshape(12, 12))
    assert_close(tangent_kernel(net, x, outputs=[2]), full[:, 2, :, 2])
    mean = tangent_kernel(net, x, outputs=lambda output: output.mean(1))
    assert_close(mean, full.mean((1, 3)))
    parts = [tangent_kernel(net, x, params=[name]) for name, _ in net.named_parameters()]
    assert_close(sum(parts), full.view(18, 18))


def test_of_a_linear_net_the_kernel_is_the_inputs_product():
    net, (x, _) = smooth_net(4, 1), task(examples=5)
    assert_close(tangent_kernel(net, x), x @ x.T + 1)


class Recurrent(nn.Module):
    """Time first, reads the last step."""

    def __init__(self):
        super().__init__()
        self.cell, self.readout = nn.RNN(2, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.readout(self.cell(x)[0][-1])


def test_sequences_that_are_time_first():
    torch.manual_seed(0)
    net = Recurrent()
    x = torch.randn(4, 5, 2)  # time, examples, features
    rows = jacobian(net, x)
    assert_close(tangent_kernel(net, x, axis=1, vectorize=False), rows @ rows.T)


def test_bad_input_is_named():
    net, (x, y) = smooth_net(4, 3), task()
    normed = nn.Sequential(net, nn.BatchNorm1d(3).double())
    for call in (
        lambda: per_example_gradients(normed, x, y, cross_entropy),
        lambda: tangent_kernel(normed, x),
        lambda: fisher_diagonal(normed, (x, y)),
    ):
        with pytest.raises(ValueError, match="1 normalises over the batch"):
            call()
    with pytest.raises(ValueError, match="12 examples, y 11"):
        per_example_gradients(net, x, y[:11], cross_entropy)
    with pytest.raises(ValueError, match="chunk"):
        per_example_gradients(net, x, y, cross_entropy, chunk=0)
    with pytest.raises(ValueError, match="loss_fn is missing"):
        fisher_diagonal(net, (x, y), fisher="empirical")
    with pytest.raises(ValueError, match="samples"):
        fisher_diagonal(net, (x, y), samples=0)
    with pytest.raises(ValueError, match="max_bytes"):
        tangent_kernel(net, x, max_bytes=0)
    with pytest.raises(ValueError, match=r"\(examples, units\)"):
        fisher_diagonal(nn.Sequential(net, nn.Unflatten(1, (3, 1))), (x, y))
