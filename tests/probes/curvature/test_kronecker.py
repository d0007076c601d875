import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.losses import half_squared_error
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.probes.curvature.layers import find_layers, from_matrix, input_rows, to_matrix
from neuropil.probes.curvature.operators import GaussNewton, Hessian

from .nets import smooth_net, task


def factors_of(net, x, **options):
    options = {"fisher": "exact", "damping": 0.0} | options
    factors = KroneckerFactors(net, **options)
    with factors:
        output = net(x)
    factors.update(output)
    return factors


def block(factors, name):
    """A layer's block, over its parameters as the layer holds them: weight, then bias."""
    a, g = factors.A[name], factors.G[name]
    columns, units = len(a), len(g)
    order = torch.arange(units * columns).view(units, columns)
    order = torch.cat([order[:, :-1].flatten(), order[:, -1]])
    return torch.kron(g, a)[order][:, order]


def test_of_linear_least_squares_the_factors_are_the_exact_hessian():
    net, (x, _) = smooth_net(4, 3), task()
    y = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = factors_of(net, x, likelihood="normal")
    assert_close(factors.G["0"], torch.eye(3, dtype=torch.float64))
    assert_close(block(factors, "0"), Hessian(net, (x, y), half_squared_error).to_dense())


def test_of_one_example_every_layers_block_is_exact():
    net, (x, y) = smooth_net(4, 5, 3), task(examples=1)
    factors = factors_of(net, x)
    for name in ("0", "2"):
        exact = GaussNewton(net, (x, y), cross_entropy, params=[f"{name}.weight", f"{name}.bias"]).to_dense()
        assert_close(block(factors, name), exact)


def test_the_last_layer_of_a_convolution_with_one_position_is_exact_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten()).double()
    x, y = torch.randn(1, 2, 3, 3, dtype=torch.float64), torch.tensor([1])
    exact = GaussNewton(net, (x, y), cross_entropy).to_dense()
    assert_close(block(factors_of(net, x), "0"), exact)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": 1},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
        {"stride": 2, "padding": (1, 0)},
        {"dilation": 2},
        {"bias": False},
    ],
)
def test_a_convolution_is_its_matrix_times_patches(options):
    layer = nn.Conv2d(2, 3, 3, **options).double()
    x = torch.randn(4, 2, 7, 6, dtype=torch.float64)
    output = layer(x)
    rows = input_rows(layer, x) @ to_matrix(layer, layer.weight, layer.bias).T
    assert_close(rows, output.movedim(1, -1).reshape(-1, 3))
    weight, bias = from_matrix(layer, to_matrix(layer, layer.weight, layer.bias))
    assert_close(weight, layer.weight)
    assert (bias is None) == (layer.bias is None)


def test_a_convolution_sums_inputs_and_averages_gradients_over_positions():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)).double()
    x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    factors = factors_of(net, x)
    assert float(factors.A["0"][-1, -1]) == pytest.approx(9)  # the bias is there at 9 positions
    # trace of the block with derivatives at positions uncorrelated: E sum_t,t' ... keeps t = t' alone
    by_hand = torch.nn.functional.unfold(x, 2).square().sum((1, 2)).mean() + 9
    assert_close(factors.A["0"].trace(), by_hand)


def test_a_linear_layer_along_a_sequence_counts_positions_alike_whether_flattened_or_not():
    class Flat(nn.Module):
        def __init__(self, layer, readout):
            super().__init__()
            self.layer, self.readout = layer, readout

        def forward(self, x):
            hidden = torch.tanh(self.layer(x.flatten(0, 1))).view(*x.shape[:2], -1)
            return self.readout(hidden.mean(1))

    class Shaped(Flat):
        def forward(self, x):
            return self.readout(torch.tanh(self.layer(x)).mean(1))

    torch.manual_seed(0)
    layer, readout, x = nn.Linear(4, 3), nn.Linear(3, 2), torch.randn(5, 6, 4)
    flat, shaped = (factors_of(kind(layer, readout), x) for kind in (Flat, Shaped))
    for name in ("layer", "readout"):
        assert_close(flat.A[name], shaped.A[name])
        assert_close(flat.G[name], shaped.G[name])
    assert float(flat.A["layer"][-1, -1]) == pytest.approx(6)


def test_the_empirical_factors_take_the_examples_own_gradients():
    net, (x, y) = smooth_net(4, 3), task()
    factors = KroneckerFactors(net, fisher="empirical")
    with factors:
        loss = cross_entropy(net(x), y)
    factors.update(loss)
    slopes = net(x).softmax(1) - torch.nn.functional.one_hot(y, 3)
    assert_close(factors.G["0"], (slopes.T @ slopes / 12).detach())


def test_sampled_factors_come_near_the_exact_ones():
    net, (x, _) = smooth_net(4, 5, 3), task()
    exact = factors_of(net, x)
    sampled = KroneckerFactors(net, decay=None)
    for _ in range(300):
        with sampled:
            output = net(x)
        sampled.update(output)
    for name in ("0", "2"):
        assert_close(sampled.A[name], exact.A[name])
        assert_close(sampled.G[name], exact.G[name], atol=0.03, rtol=0)


def test_running_averages():
    net, (x, _) = smooth_net(4, 3), task()
    first, second = factors_of(net, x[:4]).A["0"], factors_of(net, x[4:]).A["0"]
    moving, mean = KroneckerFactors(net, decay=0.75), KroneckerFactors(net, decay=None)
    for factors in (moving, mean):
        for part in (x[:4], x[4:]):
            with factors:
                output = net(part)
            factors.update(output)
    assert_close(moving.A["0"], 0.75 * first + 0.25 * second)
    assert_close(mean.A["0"], first * 4 / 12 + second * 8 / 12)


def test_the_loss_can_be_passed_back_as_ever_and_no_gradient_is_touched():
    net, (x, y) = smooth_net(4, 5, 3), task()
    cross_entropy(net(x), y).backward()
    plain = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    factors = KroneckerFactors(net)
    with factors:
        output = net(x)
    factors.update(output)
    assert all(parameter.grad is None for parameter in net.parameters())
    cross_entropy(output, y).backward()
    assert_close([parameter.grad for parameter in net.parameters()], plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_an_activation_in_place_changes_nothing():
    net, (x, _) = smooth_net(4, 5, 3), task()
    first = nn.Sequential(net[0], nn.ReLU(), net[2])
    second = nn.Sequential(net[0], nn.ReLU(inplace=True), net[2])
    one, two = factors_of(first, x), factors_of(second, x)
    assert_close(one.G["0"], two.G["0"])
    assert_close(one.A["2"], two.A["2"])


def test_damping_is_shared_by_the_scales_of_the_factors_and_the_inverse_inverts():
    net, (x, _) = smooth_net(4, 5, 3), task()
    factors = factors_of(net, x)
    a, g = factors.damped("0", 0.04)
    added = (a - factors.A["0"]).diagonal()[0], (g - factors.G["0"]).diagonal()[0]
    assert float(added[0] * added[1]) == pytest.approx(0.04)
    ratio = (factors.A["0"].trace() / 5) / (factors.G["0"].trace() / 5)
    assert float(added[0] / added[1]) == pytest.approx(float(ratio))
    for matrix, inverse in zip((a, g), factors.inverse("0", 0.04), strict=True):
        assert_close(matrix @ inverse, torch.eye(5, dtype=torch.float64))


def test_one_natural_step_solves_linear_least_squares():
    net, (x, _) = smooth_net(4, 3), task()
    y = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    factors = factors_of(net, x, likelihood="normal")
    half_squared_error(net(x), y).backward()
    factors.precondition_()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.sub_(parameter.grad)
    abar = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    solution = torch.linalg.lstsq(abar, y).solution.T
    assert_close(to_matrix(net[0], net[0].weight, net[0].bias).detach(), solution)


def test_the_radius_of_a_layer_is_that_of_its_kronecker_product():
    net, (x, _) = smooth_net(4, 5, 3), task()
    factors = factors_of(net, x)
    radius = factors.spectral_radius()
    for name in ("0", "2"):
        exact = torch.linalg.eigvalsh(torch.kron(factors.A[name], factors.G[name]))[-1]
        assert radius[name] == pytest.approx(float(exact))


def test_a_large_factor_goes_through_lanczos():
    net = smooth_net(600, 3)
    x = task(features=600)[0]
    factors = factors_of(net, x)
    exact = torch.linalg.eigvalsh(factors.A["0"])[-1] * torch.linalg.eigvalsh(factors.G["0"])[-1]
    assert factors.spectral_radius()["0"] == pytest.approx(float(exact), rel=1e-5)


def test_keep_is_the_factors_of_the_cut_layer():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 3)).double()
    x = torch.randn(5, 3, 3, 3, dtype=torch.float64)
    factors = factors_of(net, x)
    before_a, before_g = factors.A["0"], factors.G["0"]
    factors.keep("0", rows=torch.tensor([True, False, True, True]), cols=torch.tensor([0, 2]))
    assert_close(factors.G["0"], before_g[[0, 2, 3]][:, [0, 2, 3]])
    small = nn.Conv2d(2, 4, 2).double()
    rows = input_rows(small, x[:, [0, 2]])
    assert_close(factors.A["0"], rows.T @ rows / 5)
    assert len(before_a) == 13
    factors.keep("2", cols=torch.arange(8))
    assert factors.A["2"].shape == (9, 9)


def test_removal_never_raises_the_radius():
    net, (x, _) = smooth_net(4, 8, 3), task()
    factors = factors_of(net, x)
    before = factors.spectral_radius()
    factors.keep("0", rows=torch.arange(5))
    factors.keep("2", cols=torch.arange(5))
    assert all(factors.spectral_radius()[name] <= before[name] + 1e-12 for name in before)


def test_a_layer_called_twice_counts_both_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3).double()

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    torch.manual_seed(0)
    net, x = Twice(), torch.randn(6, 3, dtype=torch.float64)
    factors = factors_of(net, x)
    assert float(factors.A["layer"][-1, -1]) == pytest.approx(2)


def test_strided_single_and_broken_inputs():
    net, (x, _) = smooth_net(4, 5, 3), task()
    plain, strided = factors_of(net, x), factors_of(net, x.T.contiguous().T)
    assert_close(plain.A, strided.A)
    assert_close(plain.G, strided.G)
    single = factors_of(net, x[:1])
    assert torch.linalg.matrix_rank(single.A["0"]) == 1
    with pytest.raises(FloatingPointError, match="factor of 0 is not finite"):
        factors_of(net, float("inf") * x, fisher="sampled", likelihood="normal")
    with pytest.raises(ValueError, match="examples"):
        factors = KroneckerFactors(net)
        with factors:
            output = net(x)
        factors.update(output, examples=0)


def test_unsupported_layers_are_refused_by_name():
    grouped = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten())
    with pytest.raises(ValueError, match="0 is a convolution of 2 groups"):
        KroneckerFactors(grouped)
    with pytest.raises(ValueError, match="0 is a Embedding"):
        KroneckerFactors(nn.Sequential(nn.Embedding(3, 4), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match="cell is a RNN"):
        KroneckerFactors(nn.ModuleDict({"cell": nn.RNN(2, 3)}))
    with pytest.raises(ValueError, match="no linear layer"):
        KroneckerFactors(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match="'7'"):
        KroneckerFactors(nn.Linear(2, 2), ["7"])
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="1 and 0 share a weight"):
        KroneckerFactors(tied)
    assert list(find_layers(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))) == ["0"]
    assert list(find_layers(nn.Linear(2, 2))) == [""]


def test_bad_input_is_named():
    net, (x, y) = smooth_net(4, 3), task()
    for decay in (-0.1, 1.0):
        with pytest.raises(ValueError, match="decay"):
            KroneckerFactors(net, decay=decay)
    with pytest.raises(ValueError, match="damping"):
        KroneckerFactors(net, damping=-1.0)
    factors = KroneckerFactors(net)
    with pytest.raises(ValueError, match="no factors of '0' yet"):
        factors.inverse("0")
    with pytest.raises(RuntimeError, match="0 did not run"):
        factors.update(net(x))
    with pytest.raises(RuntimeError, match="0 did not run"), factors:
        with torch.no_grad():
            output = net(x)
        factors.update(output)
    with factors:
        output = net(x)
    with pytest.raises(ValueError, match="needs the output"):
        factors.update(cross_entropy(output, y))
    with factors, pytest.raises(RuntimeError, match="twice"):
        factors.__enter__()
    single = factors_of(smooth_net(4, 3), x[:1])
    with pytest.raises(ValueError, match=r"Factor A of 0 is not positive definite .* \(now 0\)"):
        single.inverse("0")
    with pytest.raises(ValueError, match="3 truth values"):
        single.keep("0", rows=torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="from 0 to 3"):
        single.keep("0", cols=torch.tensor([4]))
    single.keep("0", rows=torch.arange(2))
    net = smooth_net(4, 3)
    whole = factors_of(net, x)
    whole.keep("0", rows=torch.arange(2))
    net(x).sum().backward()
    with pytest.raises(ValueError, match="call keep"):
        whole.precondition_(0.1)
