"""A gate that lets only the phase, or only the amplitude, of features teach the layers below.

Of features h with spectrum Z = A exp(iP), let g be the spectrum of the gradient dL/dh that arrives, and U = Z / |Z| the
direction of every frequency (0 where Z = 0). In the plane of one frequency the gradient has two components:

    g_amplitude = U Re(conj(U) g)        along Z: changes A, keeps P
    g_phase     = i U Im(conj(U) g)      across Z: changes P, keeps A
    g_amplitude + g_phase = g            where Z is not 0

Stopping the amplitude leaves g_phase, stopping the phase g_amplitude, stopping both nothing. What leaves the gate is
the inverse transform of what is left: the same as differentiating  Re IFFT(A exp(iP))  with A or P held constant, for
any normalisation of the transform, but finite at Z = 0, where the derivatives of |Z| and of the angle are not. The
frequencies that are their own mirror image (the mean, and every Nyquist frequency) are real: they have an amplitude and
a sign, and no phase to change. A channel of zeros has neither, and teaches nothing through a gate that stops either.

Values pass unchanged, to the last bit: nothing is transformed on the way forward.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SpectralGate", "spectral_parts"]

ROUNDING = 8.0  # a transform's error, in units of the dtype's eps times the norm of the features


def spectral_parts(
    features: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"], dims: Sequence[int] | None = (-2, -1)
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Split a gradient into what it says about the amplitude and about the phase of the features.

    Frequencies whose amplitude is a transform's rounding error count as 0. The split depends on the features up to a
    factor only.

    Args:
        features: h, any shape.
        gradient: dL/dh.
        dims: axes of the Fourier transform; None takes all.

    Returns:
        (amplitude part, phase part), of the gradient's shape and dtype; their sum is the gradient where no frequency
        of the features is 0.

    Raises:
        ValueError: if the features lack an axis of `dims`, or two of them are the same.

    Source: Huang et al. 2023, sec. 3; the projection is ours.
    """
    axes = _axes(features, dims)
    kind = torch.float32 if features.dtype in (torch.float16, torch.bfloat16) else features.dtype
    if not axes or not features.numel():
        return gradient.clone(), torch.zeros_like(gradient)
    h = features.to(kind)
    largest = h.abs().amax(axes, keepdim=True)
    h = h / torch.where(largest > 0, largest, 1.0)  # so that squares neither overflow nor vanish
    spectrum = torch.fft.rfftn(h, dim=axes)
    amplitude = spectrum.abs()
    noise = ROUNDING * torch.finfo(kind).eps * torch.linalg.vector_norm(h, dim=axes, keepdim=True)
    unit = torch.where(amplitude > noise, spectrum / amplitude, 0.0)
    g = torch.fft.rfftn(gradient.to(kind), dim=axes)
    turned = unit.conj() * g
    sizes = [features.shape[axis] for axis in axes]
    # unit * i Im(turned): a complex number of real part 0, times the direction
    parts = (unit * turned.real, torch.complex(torch.zeros_like(turned.real), turned.imag) * unit)
    radial, tangential = (torch.fft.irfftn(part, s=sizes, dim=axes).to(gradient.dtype) for part in parts)
    return radial, tangential


class _Project(torch.autograd.Function):
    """Identity; going back, one spectral part of the gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, dims: tuple[int, ...] | None, part: int, keep_norm: bool) -> Tensor:
        ctx.save_for_backward(h)
        ctx.dims, ctx.part, ctx.keep_norm = dims, part, keep_norm
        return h.clone()  # an activation in place may follow, and h is needed as it is

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (h,) = ctx.saved_tensors
        kept = spectral_parts(h, gradient, ctx.dims)[ctx.part]
        if ctx.keep_norm:
            norms = torch.linalg.vector_norm(gradient), torch.linalg.vector_norm(kept)
            kept = kept * torch.where(norms[1] > 0, norms[0] / norms[1], 0.0)
        return kept, None, None, None


class SpectralGate(nn.Module):
    """Identity whose gradient leaves out the amplitude or the phase spectrum of what passed.

    Args:
        dims: axes of the Fourier transform, from the end: (-2, -1) for feature maps (batch, channels, height, width),
            (-1,) for vectors; None takes all, batch and channels included, as the authors' code does.
        keep_norm: whether what is left of a batch's gradient is rescaled to the norm that arrived: a control that tells
            a different gradient from a smaller one.

    Attributes:
        stop_amplitude: whether no gradient passes through the amplitude.
        stop_phase: whether none passes through the phase; with both, none passes at all.

    Raises:
        ValueError: if an axis is not negative or comes twice; on a forward pass, if the features lack it.
        TypeError: on a forward pass with a closed gate, if the features are not real floating-point numbers.

    Source: Huang et al. 2023, sec. 3.
    """

    def __init__(self, dims: Sequence[int] | None = (-2, -1), *, keep_norm: bool = False):
        super().__init__()
        self.dims = None if dims is None else tuple(dims)
        if self.dims is not None and (len(set(self.dims)) < len(self.dims) or any(axis >= 0 for axis in self.dims)):
            raise ValueError(f"dims are different axes counted from the end, such as (-2, -1); got {self.dims}.")
        if self.dims is not None and not self.dims:
            raise ValueError("dims must name at least one axis, or be None for all.")
        self.keep_norm = keep_norm
        self.stop_amplitude = False
        self.stop_phase = False

    def extra_repr(self) -> str:
        """Axes and state."""
        return f"dims={self.dims}, stop_amplitude={self.stop_amplitude}, stop_phase={self.stop_phase}"

    def forward(self, h: Tensor) -> Tensor:
        """The features, unchanged.

        Args:
            h: features, (batch, ...).
        """
        if not (self.stop_amplitude or self.stop_phase):
            return h
        if not h.is_floating_point():
            raise TypeError(f"A spectral gate takes real floating-point features, got {h.dtype}.")
        _axes(h, self.dims)
        if not (h.requires_grad and torch.is_grad_enabled()):
            return h
        if self.stop_amplitude and self.stop_phase:
            return h.detach().clone()
        return _Project.apply(h, self.dims, int(self.stop_amplitude), self.keep_norm)


def _axes(h: Tensor, dims: Sequence[int] | None) -> tuple[int, ...]:
    """The axes, counted from the front."""
    if dims is None:
        return tuple(range(h.dim()))
    if any(not -h.dim() <= axis < h.dim() for axis in dims):
        raise ValueError(f"Features of shape {tuple(h.shape)} have no axes {tuple(dims)} to transform.")
    axes = tuple(axis % h.dim() for axis in dims)
    if len(set(axes)) < len(axes):
        raise ValueError(f"dims {tuple(dims)} name an axis of features of shape {tuple(h.shape)} twice.")
    return axes
