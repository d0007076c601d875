"""A gate that lets the learning signal through in the phase of a feature's spectrum, or in its amplitude.

    Z  = F h,   A = |Z|,   P = angle Z               F: discrete Fourier transform over `dims`
    h' = Re F^-1 (A exp(iP))                         A or P without its graph: what is stopped

The value does not change, h' = h. What changes is the gradient g = dL/dh on its way down. At every frequency it is a
vector G = F g in the plane, which has a part along Zhat = Z / |Z| (it moves the amplitude) and one across (it turns the
phase):

    G_amplitude =   Zhat Re(conj(Zhat) G)            passes where the phase is stopped
    G_phase     = i Zhat Im(conj(Zhat) G)            passes where the amplitude is stopped

Both are Hermitian where G is, so F^-1 gives a real gradient. They sum to G except where Z = 0: there Zhat = 0 and
neither part has a direction, so nothing passes. (Autograd through `abs` and `angle` gives the same where Z is not 0 and
NaN or a guess where it is, which after a ReLU it often is.) In particular an all-zero channel hears nothing through
either gate, while it would through none.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["SpectralGate", "spectral_part"]

Part = Literal["phase", "amplitude"]


def spectral_part(
    gradient: Float[Tensor, "*shape"],
    features: Float[Tensor, "*shape"],
    part: Part,
    dims: Sequence[int] | None = (-2, -1),
) -> Float[Tensor, "*shape"]:
    """The part of a gradient that turns the phases of a feature's spectrum, or the one that moves its amplitudes.

    Args:
        gradient: g, of the shape of the features.
        features: h, whose spectrum gives the directions.
        part: "phase" or "amplitude".
        dims: axes that are transformed; None takes all, the batch with them.

    Returns:
        Re F^-1 of the projected spectrum; a tensor of its own, in the dtype of the gradient.

    Raises:
        ValueError: if `part` is neither, or `dims` are not axes of the features.

    Source: Huang et al., ICCV 2023 (stopped amplitude and phase); the closed form of their gradients is ours.
    """
    if part not in ("phase", "amplitude"):
        raise ValueError(f'part must be "phase" or "amplitude", got {part!r}.')
    axes = _axes(features, dims)
    if features.numel() == 0:
        return torch.zeros_like(gradient)
    work = torch.promote_types(features.dtype, torch.float32)  # there is no transform of half precision everywhere
    h = features.to(work)
    # A direction does not depend on the scale: brought to 1, huge features do not overflow in the sum.
    Z = torch.fft.rfftn(h / h.abs().amax().clamp(min=torch.finfo(work).tiny), dim=axes)
    G = torch.fft.rfftn(gradient.to(work), dim=axes)
    direction = torch.sgn(Z)
    component = direction.conj() * G
    component = 1j * component.imag if part == "phase" else component.real
    size = [features.shape[axis] for axis in axes]
    return torch.fft.irfftn(direction * component, s=size, dim=axes).to(gradient.dtype)


class SpectralGate(nn.Module):
    """Identity whose backward pass stops the amplitude, the phase or both.

    With both stopped the features lose their graph: parameters below get no gradient at all (their `.grad` stays as it
    was), so that an optimizer leaves them where they are. Running statistics of norms below still move.

    Args:
        dims: axes that are transformed: (-2, -1) for images (batch, channels, height, width), (-1,) for features
            (batch, units); None takes all axes, batch and channels among them, as the authors' code does.
        stop_amplitude: whether the amplitude is stopped.
        stop_phase: whether the phase is stopped.
        rescale: whether what passes is brought to the norm of what came (over the whole tensor), so that a stopped part
            does not also mean slower learning.

    Attributes:
        stop_amplitude, stop_phase: may be set at any time; the next forward pass obeys.

    Raises:
        ValueError: if `dims` are empty or name an axis twice; in the forward pass, if they are not axes of the
            features, or touch the batch without being None.
        TypeError: in the forward pass, if the features are not real floating-point numbers.

    Source: Huang, Kang, Liu, Salvado, Rakotoarivelo, Wang & Liu, ICCV 2023, arXiv 2212.03462.
    """

    def __init__(
        self,
        dims: Sequence[int] | None = (-2, -1),
        *,
        stop_amplitude: bool = False,
        stop_phase: bool = False,
        rescale: bool = False,
    ):
        super().__init__()
        if dims is not None and (not dims or len(set(dims)) != len(dims)):
            raise ValueError(f"dims must name at least one axis and none twice, got {tuple(dims)}.")
        self.dims = None if dims is None else tuple(dims)
        self.stop_amplitude, self.stop_phase = stop_amplitude, stop_phase
        self.rescale = rescale

    def forward(self, h: Tensor) -> Tensor:
        """The features themselves.

        Args:
            h: features, (batch, ...).
        """
        if not (self.stop_amplitude or self.stop_phase) or not (h.requires_grad and torch.is_grad_enabled()):
            return h
        if not h.is_floating_point():
            raise TypeError(f"SpectralGate splits real features, got {str(h.dtype).removeprefix('torch.')}.")
        if self.dims is not None and 0 in _axes(h, self.dims):
            raise ValueError(
                f"dims {self.dims} of features {tuple(h.shape)} mix the samples of the batch: use dims=(-1,) for "
                "(batch, units), or dims=None to transform all axes on purpose."
            )
        if self.stop_amplitude and self.stop_phase:
            return h.detach()
        part = "phase" if self.stop_amplitude else "amplitude"
        passed = _Projected.apply(h, part, self.dims, self.rescale)
        assert isinstance(passed, Tensor)
        return passed

    def extra_repr(self) -> str:
        """What the gate stops."""
        return f"dims={self.dims}, stop_amplitude={self.stop_amplitude}, stop_phase={self.stop_phase}"


class _Projected(torch.autograd.Function):
    """Identity; going back, one part of the gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, part: Part, dims: Sequence[int] | None, rescale: bool) -> Tensor:
        ctx.save_for_backward(h)
        ctx.part, ctx.dims, ctx.rescale = part, dims, rescale
        return h.clone()  # a copy: an in-place activation above may overwrite it, and h is needed going back

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (h,) = ctx.saved_tensors
        passed = spectral_part(gradient, h, ctx.part, ctx.dims)
        if ctx.rescale:
            came, left = gradient.norm(), passed.norm()
            passed = passed * torch.where(left > 0, came / left, 0.0)
        return passed, None, None, None


def _axes(h: Tensor, dims: Sequence[int] | None) -> tuple[int, ...]:
    """The axes as numbers from 0."""
    if dims is None:
        return tuple(range(h.dim()))
    if any(not -h.dim() <= axis < h.dim() for axis in dims):
        raise ValueError(f"dims {tuple(dims)} are not all axes of features {tuple(h.shape)}.")
    axes = tuple(axis % h.dim() for axis in dims)
    if len(set(axes)) != len(axes):
        raise ValueError(f"dims {tuple(dims)} name an axis of features {tuple(h.shape)} twice.")
    return axes
