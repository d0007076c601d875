import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg, eigsh
from torch import nn
from torch.func import hessian
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.testing import assert_close

from neuropil.losses import half_squared_error
from neuropil.probes.curvature.inputs import flatten, split
from neuropil.probes.curvature.operators import GaussNewton, Hessian, Symmetric, ggn, hvp

from .nets import full_hessian, jacobian, smooth_net, task


def test_the_hessian_is_that_of_torch_func():
    net, batch = smooth_net(4, 5, 3), task()
    assert_close(Hessian(net, batch, cross_entropy).to_dense(), full_hessian(net, batch, cross_entropy))


def test_gauss_newton_is_jacobian_loss_hessian_jacobian():
    net, (x, y) = smooth_net(4, 5, 3), task()
    rows = jacobian(net, x)
    inner = hessian(lambda z: cross_entropy(z.view(-1, 3), y))(net(x).detach().flatten())
    assert_close(GaussNewton(net, (x, y), cross_entropy).to_dense(), rows.T @ inner @ rows)


def test_of_a_linear_net_with_squared_error_both_are_the_covariance_of_the_inputs():
    net, (x, _) = smooth_net(4, 2), task()
    y = torch.randn(12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.kron(torch.eye(2, dtype=torch.float64), x.T @ x / 12)
    for kind in (Hessian, GaussNewton):
        found = kind(net, (x, y), half_squared_error, params=["0.weight"]).to_dense()
        assert_close(found, weight)


def test_batches_of_different_sizes_make_the_mean_over_all_examples():
    net, (x, y) = smooth_net(4, 5, 3), task()
    parts = [(x[:2], y[:2]), (x[2:9], y[2:9]), (x[9:], y[9:])]
    vector = torch.randn(43, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_close(hvp(net, parts, cross_entropy, vector), hvp(net, (x, y), cross_entropy, vector))
    assert_close(ggn(net, parts, cross_entropy, vector), ggn(net, (x, y), cross_entropy, vector))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=5)
    assert_close(hvp(net, loader, cross_entropy, vector[:, 0]), hvp(net, (x, y), cross_entropy, vector[:, 0]))


def test_chosen_parameters_give_the_block_in_their_order():
    net, batch = smooth_net(4, 5, 3), task()
    full = full_hessian(net, batch, cross_entropy)
    found = Hessian(net, batch, cross_entropy, params=["2.bias", "0.bias"]).to_dense()
    order = torch.cat([torch.arange(40, 43), torch.arange(20, 25)])
    assert_close(found, full[order][:, order])


def test_scipy_finds_the_same_eigenvalues_and_solves():
    net, batch = smooth_net(4, 5, 3), task()
    matrix = GaussNewton(net, batch, cross_entropy)
    operator = matrix.linear_operator()
    dense = matrix.to_dense().numpy()
    assert operator.dtype == np.float64
    np.testing.assert_allclose(eigsh(operator, k=2)[0], np.linalg.eigvalsh(dense)[-2:])
    right = dense @ np.ones(43)
    solution, info = cg(operator, right, rtol=1e-10)
    assert info == 0
    np.testing.assert_allclose(operator @ solution, right, atol=1e-8)
    np.testing.assert_allclose(operator @ np.eye(43)[:, :4], dense[:, :4], atol=1e-12)
    assert (operator @ np.ones((43, 1))).shape == (43, 1)


def test_float32_stays_float32():
    net, (x, y) = smooth_net(4, 5, 3).float(), task()
    found = hvp(net, (x.float(), y), cross_entropy, torch.ones(43))
    assert found.dtype == torch.float32
    assert Hessian(net, (x.float(), y), cross_entropy).linear_operator().dtype == np.float32


def test_a_loss_linear_in_the_parameters_has_no_curvature():
    net, (x, y) = smooth_net(4, 3), task()
    linear = lambda output, _: output.sum() / len(output)  # noqa: E731
    vector = torch.ones(15, dtype=torch.float64)
    assert_close(hvp(net, (x, y), linear, vector), torch.zeros_like(vector))
    assert_close(ggn(net, (x, y), linear, vector), torch.zeros_like(vector))


def test_a_parameter_that_is_not_used_has_no_curvature():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = smooth_net(4, 3)
            self.idle = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, x):
            return self.used(x)

    net, batch = Net(), task()
    for matrix in (Hessian(net, batch, cross_entropy), GaussNewton(net, batch, cross_entropy)):
        dense = matrix.to_dense()
        idle = split(torch.arange(17.0), matrix.params)["idle"].long()
        assert dense[idle].abs().max() == 0
        assert dense.abs().max() > 0


def test_buffers_gradients_and_parameters_are_left_as_they_were():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    batch = task()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    hvp(net, batch, cross_entropy, torch.ones(63, dtype=torch.float64))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_it_works_where_gradients_are_off():
    net, batch = smooth_net(4, 3), task()
    with torch.no_grad():
        found = hvp(net, batch, cross_entropy, torch.ones(15, dtype=torch.float64))
    assert not found.requires_grad
    assert found.abs().max() > 0


def test_fused_attention_keyword_inputs_and_tuples_are_followed():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(4, 12)

        def forward(self, x, scale):
            q, k, v = self.project(x).chunk(3, -1)
            return scale * scaled_dot_product_attention(q, k, v).mean(1)

    torch.manual_seed(0)
    net = Attention()
    x = torch.randn(2, 3, 4)
    y = torch.tensor([0, 3])
    vector = torch.randn(60)
    by_name = hvp(net, ({"x": x, "scale": 2.0}, y), cross_entropy, vector)
    assert_close(by_name, hvp(net, ((x, 2.0), y), cross_entropy, vector))
    assert by_name.abs().max() > 0


def test_quadratic_is_the_second_difference_of_the_loss():
    net, batch = smooth_net(4, 5, 3), task()
    matrix = Hessian(net, batch, cross_entropy)
    vector = torch.randn(43, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    start = flatten(matrix.params).detach()
    losses = []
    for step in (-1e-4, 0.0, 1e-4):
        values = matrix.split(start + step * vector)
        losses.append(float(cross_entropy(torch.func.functional_call(net, values, (batch[0],)), batch[1])))
    assert matrix.quadratic(vector) == pytest.approx((losses[0] - 2 * losses[1] + losses[2]) / 1e-8, rel=1e-4)


def test_one_example_huge_and_strided_inputs():
    net, (x, y) = smooth_net(4, 5, 3), task()
    strided = x.T.contiguous().T
    vector = torch.randn(43, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert not strided.is_contiguous()
    assert_close(hvp(net, (strided, y), cross_entropy, vector), hvp(net, (x, y), cross_entropy, vector))
    every_other = torch.randn(86, dtype=torch.float64)[::2]
    assert_close(hvp(net, (x, y), cross_entropy, every_other), hvp(net, (x, y), cross_entropy, every_other.clone()))
    one = (x[:1], y[:1])
    assert_close(Hessian(net, one, cross_entropy).to_dense(), full_hessian(net, one, cross_entropy))
    assert ggn(net, (1e150 * x, y), cross_entropy, vector).isfinite().all()
    assert not hvp(net, (float("nan") * x, y), cross_entropy, vector).isfinite().all()


def test_bad_input_is_named():
    net, (x, y) = smooth_net(4, 3), task()
    with pytest.raises(TypeError, match="iterator, gone after one pass"):
        Hessian(net, iter([(x, y)]), cross_entropy)
    with pytest.raises(TypeError):
        Hessian(net, 3, cross_entropy)
    with pytest.raises(TypeError, match="pair"):
        hvp(net, [x], cross_entropy, torch.ones(15, dtype=torch.float64))
    with pytest.raises(ValueError, match="empty"):
        hvp(net, [], cross_entropy, torch.ones(15, dtype=torch.float64))
    with pytest.raises(ValueError, match="'nothing'"):
        Hessian(net, (x, y), cross_entropy, params=["nothing"])
    with pytest.raises(ValueError, match="15 x 15"):
        hvp(net, (x, y), cross_entropy, torch.ones(14, dtype=torch.float64))
    with pytest.raises(ValueError, match="1 drops out"):
        hvp(nn.Sequential(net, nn.Dropout(0.5)), (x, y), cross_entropy, torch.ones(15, dtype=torch.float64))
    attention = nn.ModuleDict({"inner": nn.MultiheadAttention(4, 1, dropout=0.1)})
    with pytest.raises(ValueError, match="inner drops out"):
        hvp(attention, (x, y), cross_entropy, torch.ones(80))
    net.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter"):
        Hessian(net, (x, y), cross_entropy)
    with pytest.raises(ValueError, match="requires no gradient"):
        Hessian(net, (x, y), cross_entropy, params=["0.bias"])
    with pytest.raises(ValueError, match="size"):
        Symmetric(lambda v: v, 0)
    with pytest.raises(ValueError, match="entries"):
        split(torch.ones(3), {"a": torch.ones(2)})


def test_mixed_dtypes_are_refused():
    net = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).double())
    with pytest.raises(ValueError, match="device and dtype"):
        Hessian(net, task(), cross_entropy)
