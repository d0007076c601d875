import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.learning.equilibrium import DSiLU, HoloSigmoid, is_holomorphic, softmax_pool
from neuropil.learning.equilibrium.activations import holomorphic_softmax, slope
from neuropil.learning.equilibrium.connections import ConvolutionDown, ConvolutionUp, Dense, from_windows, windows

PAIRS = [HoloSigmoid(), DSiLU()]


def plane(generator, *shape, height=0.3):
    real, imag = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return torch.complex(3 * real, height * imag)


def written_out(activation, z):
    def logistic(v):
        return 1 / (1 + torch.exp(-v))

    return (
        logistic(4 * z - 2)
        if isinstance(activation, HoloSigmoid)
        else z / 2 * logistic(z) + (1 - z / 2) * logistic(z - 2)
    )


@pytest.mark.parametrize("activation", PAIRS)
def test_the_formula_holds_on_and_off_the_real_line(activation, generator):
    z = plane(generator, 500)
    assert_close(activation(z), written_out(activation, z))
    assert_close(activation(z.real), written_out(activation, z.real))
    assert_close(activation(z.conj()), activation(z).conj())
    assert_close(activation(torch.complex(z.real, 0 * z.real)).imag, 0 * z.real)


@pytest.mark.parametrize("activation", PAIRS)
def test_the_derivative_is_autograds_and_the_complex_one(activation, generator):
    z = plane(generator, 200)
    leaf = z.real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(activation(leaf).sum(), leaf)
    assert_close(activation.derivative(z.real), gradient)
    assert_close(slope(activation.forward, z.real), gradient)  # a plain function: by autograd
    h = 1e-6
    for direction in (1, 1j):
        quotient = (activation(z + h * direction) - activation(z - h * direction)) / (2 * h * direction)
        assert_close(activation.derivative(z), quotient, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("activation", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_huge_potentials_saturate(activation, dtype):
    z = torch.tensor([-1e4, -100.0, 100.0, 1e4]).to(dtype)
    assert_close(activation(z).real, torch.tensor([0.0, 0, 1, 1]), atol=2e-3, rtol=0)
    assert torch.isfinite(activation.derivative(z).abs()).all()


def test_the_poles_are_where_they_should_be():
    pole = torch.tensor([0.5 + 1j * torch.pi / 4, 0.5 - 1j * torch.pi / 4], dtype=torch.complex128)
    assert bool((HoloSigmoid()(pole).abs() > 1e12).all() or not torch.isfinite(HoloSigmoid()(pole).abs()).all())
    assert bool((HoloSigmoid()(pole + 0.1).abs() < 10).all())


def test_what_is_holomorphic_is_told_from_what_is_not():
    for activation in (*PAIRS, torch.tanh, torch.sigmoid, nn.SiLU(), nn.Identity(), lambda z: z * z):
        assert is_holomorphic(activation)
    for activation in (torch.relu, torch.abs, nn.Hardtanh(), torch.conj, lambda z: z.real.sigmoid()):
        assert not is_holomorphic(activation)


def test_softmax_goes_on_in_the_complex_plane(generator):
    z = plane(generator, 6, 5)
    assert_close(holomorphic_softmax(z, 1).sum(1), torch.ones(6, dtype=z.dtype))
    assert_close(holomorphic_softmax(z.real, 1), z.real.softmax(1))
    assert_close(holomorphic_softmax(z, 1), torch.exp(z) / torch.exp(z).sum(1, keepdim=True))
    assert torch.isfinite(holomorphic_softmax(1e3 * z, 1).abs()).all()


def test_softmax_pooling_lies_between_mean_and_maximum(generator):
    z = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)
    assert_close(from_windows(windows(z, 2), 2), z)
    assert softmax_pool(z).shape == (2, 3, 2, 3)
    assert_close(softmax_pool(torch.full_like(z, 0.7)), torch.full((2, 3, 2, 3), 0.7, dtype=z.dtype))
    assert_close(softmax_pool(1e3 * z) / 1e3, nn.functional.max_pool2d(z, 2), atol=1e-6, rtol=0)
    assert_close(softmax_pool(1e-6 * z) * 1e6, nn.functional.avg_pool2d(z, 2), atol=1e-5, rtol=0)
    assert is_holomorphic(
        lambda v: softmax_pool(torch.stack([v, 1 - v, v * v, 0.3 * v], -1).view(1, -1, 2, 2)).view(v.shape)
    )
    with pytest.raises(ValueError, match="5 x 6 has no whole number of 2 x 2"):
        softmax_pool(torch.zeros(1, 1, 5, 6))


@pytest.mark.parametrize("padding", [0, 1])
def test_up_and_down_are_the_two_derivatives_of_one_energy(padding, generator):
    up = ConvolutionUp(3, 4, padding=padding, generator=generator).double()
    down = ConvolutionDown(up, generator=generator).double()
    low = torch.randn(2, 3, 6, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    pooled = softmax_pool(nn.functional.conv2d(low, down.weight, padding=padding))
    high = torch.randn(pooled.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((pooled * high).sum(), low)
    assert_close(down(high, low.detach()), gradient)
    with torch.no_grad():
        up.bias.fill_(0.3)
        down.weight.copy_(up.weight)
        assert_close(up(low), softmax_pool(nn.functional.conv2d(low, up.weight, up.bias, padding=padding)))


def test_connections_send_complex_activity_as_a_holomorphic_map_does(generator):
    up = ConvolutionUp(2, 3, generator=generator).double()
    down, flat = ConvolutionDown(up, generator=generator).double(), Dense(4, 3, bias=True, generator=generator).double()
    low, high = plane(generator, 2, 2, 4, 4, height=1e-6), plane(generator, 2, 3, 2, 2, height=1e-6)
    for send, arguments in ((up, (low, high)), (down, (high, low)), (flat, (low[:, 0, 0], low[:, 0, 0]))):
        real = tuple(value.real.contiguous() for value in arguments)
        imag = tuple(value.imag.contiguous() for value in arguments)
        assert_close(send(*arguments).real, send(*real), rtol=1e-9, atol=1e-9)
        assert_close(send(*arguments).imag, send.differential(*real, *imag), rtol=1e-6, atol=1e-12)
