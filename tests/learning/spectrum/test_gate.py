import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from neuropil.learning.spectrum import SpectralGate, spectral_parts

DIMS = [(-2, -1), (-1,), None, (-3, -2, -1)]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def by_autograd(h, upstream, dims, stop, norm="backward"):
    """The paper's formula: rebuild the features from amplitude and phase, one of them held."""
    h = h.clone().requires_grad_()
    spectrum = torch.fft.fftn(h, dim=dims, norm=norm)
    amplitude, phase = spectrum.abs(), spectrum.angle()
    amplitude, phase = (amplitude.detach(), phase) if stop == "amplitude" else (amplitude, phase.detach())
    rebuilt = torch.fft.ifftn(torch.polar(amplitude, phase), dim=dims, norm=norm).real
    return torch.autograd.grad(rebuilt, h, upstream)[0]


def through(h, upstream, *, amplitude=False, phase=False, **options):
    gate = SpectralGate(**options)
    gate.stop_amplitude, gate.stop_phase = amplitude, phase
    h = h.clone().requires_grad_()
    out = gate(h)
    assert torch.equal(out, h)
    return torch.autograd.grad(out, h, upstream)[0]


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
@pytest.mark.parametrize("size", [(5, 4), (4, 7), (3, 3), (8, 8), (1, 6), (6, 1)])
def test_each_part_is_the_derivative_with_the_other_held(dims, norm, size):
    h, upstream = draw(2, 3, *size), draw(2, 3, *size, seed=1)
    assert_close(through(h, upstream, amplitude=True, dims=dims), by_autograd(h, upstream, dims, "amplitude", norm))
    assert_close(through(h, upstream, phase=True, dims=dims), by_autograd(h, upstream, dims, "phase", norm))


@given(
    shape=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    seed=st.integers(0, 999),
    size=st.sampled_from([1e-200, 1e-3, 1.0, 1e150]),
)
def test_parts_are_orthogonal_projections_that_sum_to_the_gradient(shape, seed, size):
    h, g = draw(*shape, seed=seed), draw(*shape, seed=seed + 1)
    radial, tangential = spectral_parts(size * h, g)
    assert_close(radial + tangential, g, rtol=0, atol=1e-12)
    assert abs(float((radial * tangential).sum())) < 1e-11  # Parseval: orthogonal at every frequency
    for part, others in ((radial, 1), (tangential, 0)):
        again = spectral_parts(h, part)
        assert_close(again[1 - others], part, rtol=0, atol=1e-12)
        assert float(again[others].abs().max()) < 1e-12


def test_moving_along_a_part_changes_only_its_spectrum():
    """What the names promise, to first order: a small step along the phase part keeps every amplitude."""
    h, g = draw(6, 5), draw(6, 5, seed=1)
    radial, tangential = spectral_parts(h, g)
    before = torch.fft.fft2(h)
    for eps in (1e-4, 1e-5):
        kept = (torch.fft.fft2(h + eps * tangential).abs() - before.abs()).abs().max()
        assert float(kept) < 100 * eps**2 * float(g.norm()) ** 2 * 10
        turned = torch.fft.fft2(h + eps * radial) / before
        assert float(turned.imag.abs().max()) < 1e-12


def test_a_constant_channel_has_a_mean_and_no_phase():
    for size in ((4, 4), (5, 7), (9, 9)):
        h, g = torch.full((2, 1, *size), 3.7, dtype=torch.float64), draw(2, 1, *size)
        assert float(through(h, g, amplitude=True).abs().max()) < 1e-12
        expected = g.mean((-2, -1), keepdim=True).expand_as(g)
        assert_close(through(h, g, phase=True), expected)


def test_zeros_pass_nothing_and_nothing_is_nan():
    h, g = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    h[:, 1] = 0
    for stop in ({"amplitude": True}, {"phase": True}):
        grad = through(h, g, **stop)
        assert grad.isfinite().all()
        assert not grad[:, 1].any()
        assert grad[:, 0].any()
        assert not through(torch.zeros_like(h), g, **stop).any()


def test_both_stopped_is_a_detach_and_both_open_the_identity():
    gate, h = SpectralGate(), draw(2, 3, 4, 4).requires_grad_()
    assert gate(h) is h
    gate.stop_amplitude = gate.stop_phase = True
    assert not gate(h).requires_grad
    assert torch.equal(gate(h), h)


@pytest.mark.parametrize("size", [1e-30, 1e-4, 1e30])
def test_tiny_and_huge_features_are_split_like_ordinary_ones(size):
    h, g = draw(2, 3, 6, 6, dtype=torch.float32), draw(2, 3, 6, 6, seed=1, dtype=torch.float32)
    for stop in ({"amplitude": True}, {"phase": True}):
        assert_close(through(size * h, g, **stop), through(h, g, **stop), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_type_keeps_its_type(dtype):
    h, g = draw(2, 3, 4, 4).to(dtype), draw(2, 3, 4, 4, seed=1).to(dtype)
    grad = through(h, g, amplitude=True)
    assert grad.dtype == dtype
    tolerance = 0.02 if dtype.itemsize == 2 else 1e-5
    assert_close(grad.double(), spectral_parts(h.double(), g.double())[1], rtol=tolerance, atol=tolerance)


def test_memory_that_is_not_contiguous_and_one_sample():
    h, g = draw(4, 6, 3).mT, draw(4, 6, 3, seed=1).mT
    assert_close(through(h, g, amplitude=True), through(h.contiguous(), g.contiguous(), amplitude=True))
    assert_close(through(h[:1], g[:1], phase=True), through(h, g, phase=True)[:1])


def test_samples_and_channels_are_split_on_their_own_unless_all_axes_are_transformed():
    h, g = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    assert_close(through(h, g, amplitude=True)[1:2], through(h[1:2], g[1:2], amplitude=True))
    assert not torch.allclose(through(h, g, amplitude=True, dims=None)[:1], through(h[:1], g[:1], amplitude=True))


def test_the_norm_can_be_kept():
    h, g = draw(3, 2, 4, 4), draw(3, 2, 4, 4, seed=1)
    for stop in ({"amplitude": True}, {"phase": True}):
        plain, kept = through(h, g, **stop), through(h, g, keep_norm=True, **stop)
        assert float(kept.norm()) == pytest.approx(float(g.norm()))
        assert_close(kept, plain * float(g.norm() / plain.norm()))
        assert not through(torch.zeros_like(h), g, keep_norm=True, **stop).any()


def test_activations_in_place_may_follow_and_evaluation_costs_nothing():
    gate, h = SpectralGate(), draw(2, 3, 4, 4).requires_grad_()
    gate.stop_amplitude = True
    out = nn.ReLU(inplace=True)(gate(h))
    (grad,) = torch.autograd.grad(out.sum(), h)
    assert_close(grad, spectral_parts(h.detach(), (h > 0).double())[1])
    with torch.no_grad():
        assert gate(h) is h


def test_it_saves_nothing_and_shows_its_state():
    gate = SpectralGate((-1,))
    assert not gate.state_dict()
    assert "dims=(-1,), stop_amplitude=False" in repr(gate)


@pytest.mark.parametrize("dims", [(0, 1), (-1, -1), ()])
def test_axes_that_make_no_sense_are_refused(dims):
    with pytest.raises(ValueError, match="dims"):
        SpectralGate(dims)


def test_features_that_do_not_fit_are_refused():
    gate = SpectralGate()
    gate.stop_phase = True
    with pytest.raises(ValueError, match=r"shape \(5,\) have no axes \(-2, -1\)"):
        gate(torch.ones(5))
    with pytest.raises(TypeError, match="complex64"):
        gate(torch.ones(2, 2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="int64"):
        gate(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="twice"):
        spectral_parts(torch.ones(2, 2), torch.ones(2, 2), (0, -2))
