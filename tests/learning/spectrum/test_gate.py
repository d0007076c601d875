import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning.spectrum import SpectralGate, spectral_part


def reference(h, g, part, dims):
    """Autograd through abs and angle, as the method is written."""
    leaf = h.clone().requires_grad_()
    spectrum = torch.fft.fftn(leaf, dim=dims)
    amplitude, phase = spectrum.abs(), spectrum.angle()
    if part == "phase":
        amplitude = amplitude.detach()
    else:
        phase = phase.detach()
    again = torch.fft.ifftn(amplitude * torch.exp(1j * phase), dim=dims).real
    return torch.autograd.grad(again, leaf, g)[0]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def through(gate, h, g):
    leaf = h.clone().requires_grad_()
    out = gate(leaf)
    assert torch.equal(out, h)
    return torch.autograd.grad(out, leaf, g)[0]


@pytest.mark.parametrize(
    ("shape", "dims"),
    [((3, 2, 4, 4), (-2, -1)), ((2, 3, 5, 7), (-2, -1)), ((4, 9), (-1,)), ((2, 3, 4, 5), None), ((3, 6, 5), (2, 1))],
)
@pytest.mark.parametrize("part", ["phase", "amplitude"])
def test_the_projection_is_autograd_through_abs_and_angle(shape, dims, part):
    h, g = draw(*shape), draw(*shape, seed=1)
    gate = SpectralGate(dims, stop_amplitude=part == "phase", stop_phase=part == "amplitude")
    assert_close(through(gate, h, g), reference(h, g, part, dims), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 2, 4, 4), (1, 1, 5, 3), (2, 1, 1, 1)])
def test_the_two_parts_add_up_and_are_orthogonal(shape):
    h, g = draw(*shape), draw(*shape, seed=1)
    phase, amplitude = spectral_part(g, h, "phase"), spectral_part(g, h, "amplitude")
    assert_close(phase + amplitude, g, rtol=0, atol=1e-12)
    assert abs(float((phase * amplitude).sum())) < 1e-12


@pytest.mark.parametrize("part", ["phase", "amplitude"])
def test_a_part_is_a_projection(part):
    h, g = draw(2, 3, 4, 6), draw(2, 3, 4, 6, seed=1)
    once = spectral_part(g, h, part)
    assert_close(spectral_part(once, h, part), once, rtol=0, atol=1e-12)
    assert_close(spectral_part(g, -1e20 * h, part), once, rtol=0, atol=1e-10)  # directions have no scale


def test_features_are_their_own_amplitude_direction():
    h = draw(2, 3, 4, 4)  # scaling an image moves amplitudes only
    assert_close(spectral_part(h, h, "amplitude"), h)
    assert float(spectral_part(h, h, "phase").abs().max()) < 1e-12


def test_a_shift_of_an_image_is_phase_alone():
    x = torch.arange(16, dtype=torch.float64) * 2 * torch.pi / 16
    h, slope = torch.cos(x)[None], -torch.sin(x)[None]
    assert_close(spectral_part(slope, h, "phase", (-1,)), slope, rtol=0, atol=1e-12)


def test_open_gates_hand_on_the_very_tensor_and_closed_ones_a_detached_one():
    h = draw(2, 3, 4, 4).requires_grad_()
    assert SpectralGate()(h) is h
    closed = SpectralGate(stop_amplitude=True, stop_phase=True)(h)
    assert torch.equal(closed, h)
    assert not closed.requires_grad
    with torch.no_grad():
        assert SpectralGate(stop_phase=True)(h) is h


def test_the_gate_obeys_a_change_at_the_next_pass():
    gate, h, g = SpectralGate(), draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    assert torch.equal(through(gate, h, g), g)
    gate.stop_phase = True
    assert_close(through(gate, h, g), spectral_part(g, h, "amplitude"))


@pytest.mark.parametrize("stopped", ["stop_amplitude", "stop_phase"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_constant_and_huge_channels_give_finite_gradients(stopped, dtype):
    h = torch.zeros(1, 4, 4, 4, dtype=dtype)
    h[0, 1], h[0, 2], h[0, 3] = 1.0, torch.finfo(dtype).max, torch.finfo(dtype).tiny
    gate, g = SpectralGate(**{stopped: True}), draw(1, 4, 4, 4, dtype=dtype)
    passed = through(gate, h, g)
    assert passed.dtype == dtype
    assert torch.isfinite(passed).all()
    assert not passed[0, 0].any()  # no spectrum, no direction: a dead channel stays dead
    assert bool((passed.flatten(2).norm(dim=2) <= g.flatten(2).norm(dim=2) * (1 + 1e-6)).all())


def test_constant_channels_pass_their_mean_as_amplitude_alone():
    h, g = torch.full((1, 1, 4, 4), 2.0, dtype=torch.float64), draw(1, 1, 4, 4)
    assert_close(spectral_part(g, h, "amplitude"), torch.full_like(g, float(g.mean())))
    assert float(spectral_part(g, h, "phase").abs().max()) < 1e-12


def test_strided_half_precision_and_empty_features():
    h, g = draw(2, 3, 4, 6).transpose(2, 3), draw(2, 3, 4, 6, seed=1).transpose(2, 3)
    gate = SpectralGate(stop_amplitude=True)
    assert_close(through(gate, h, g), spectral_part(g.contiguous(), h.contiguous(), "phase"))
    rough = through(gate, h.bfloat16(), g.bfloat16())
    assert rough.dtype == torch.bfloat16
    assert_close(rough.double(), through(gate, h, g), rtol=0.1, atol=0.05)
    assert through(gate, h[:0], g[:0]).shape == (0, 3, 6, 4)


@pytest.mark.parametrize("stopped", ["stop_amplitude", "stop_phase"])
def test_rescaling_keeps_the_norm_and_the_direction(stopped):
    h, g = draw(2, 3, 4, 4), draw(2, 3, 4, 4, seed=1)
    plain = through(SpectralGate(**{stopped: True}), h, g)
    scaled = through(SpectralGate(**{stopped: True}, rescale=True), h, g)
    assert_close(scaled.norm(), g.norm())
    assert_close(scaled / scaled.norm(), plain / plain.norm())
    assert not through(SpectralGate(**{stopped: True}, rescale=True), torch.zeros_like(h), g).any()


def test_an_activation_in_place_above_the_gate_does_no_harm():
    def gradient(inplace):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 2, 3), SpectralGate(stop_amplitude=True), nn.ReLU(inplace=inplace))
        net(torch.ones(2, 1, 6, 6)).sum().backward()
        return net[0].weight.grad

    assert_close(gradient(True), gradient(False))


def test_gradients_below_change_and_those_above_do_not():
    torch.manual_seed(0)
    gate = SpectralGate()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), gate, nn.Flatten(), nn.Linear(32, 3))
    x, y = torch.randn(5, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1])

    def gradients():
        net.zero_grad()
        cross_entropy(net(x), y).backward()
        return net[0].weight.grad, net[4].weight.grad

    below, above = gradients()
    gate.stop_amplitude = True
    below_gated, above_gated = gradients()
    assert torch.equal(above, above_gated)
    assert float((below - below_gated).abs().max()) > 1e-3
    gate.stop_phase = True
    assert gradients()[0] is None


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: SpectralGate(()), ValueError, "at least one axis"),
        (lambda: SpectralGate((-1, -1)), ValueError, "none twice"),
        (lambda: SpectralGate((1, -1), stop_phase=True)(draw(2, 3).requires_grad_()), ValueError, "twice"),
        (lambda: SpectralGate(stop_phase=True)(draw(2, 3).requires_grad_()), ValueError, r"dims=\(-1,\)"),
        (lambda: SpectralGate((-3,), stop_phase=True)(draw(2, 3).requires_grad_()), ValueError, "not all axes"),
        (
            lambda: SpectralGate((-1,), stop_phase=True)(torch.ones(2, 3, dtype=torch.cfloat, requires_grad=True)),
            TypeError,
            "complex64",
        ),
        (lambda: spectral_part(draw(2, 3, 4), draw(2, 3, 4), "real"), Exception, "part"),
    ],
)
def test_wrong_use_is_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
