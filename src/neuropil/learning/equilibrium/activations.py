"""Activations that are defined, and complex-differentiable, off the real line.

    HoloSigmoid   1 / (1 + exp(-4 z + 2))                             poles at z = 1/2 + i (pi/4) (2k + 1)
    DSiLU         z/2 s(z) + (1 - z/2) s(z - 2),   s logistic         poles at z = i pi (2k + 1) and 2 + i pi (2k + 1)
    softmax       exp(z_k) / sum_j exp(z_j)

A nudge by a complex teaching signal moves the potentials into the complex plane. There an activation must obey the
Cauchy-Riemann equations, f(z + ih) - f(z) = i (f(z + h) - f(z)) to first order; ReLU, absolute value and max-pooling
do not. The poles bound how far a nudge may reach.
"""

from collections.abc import Callable

import torch
from jaxtyping import Inexact
from torch import Tensor, nn

__all__ = ["DSiLU", "HoloSigmoid", "holomorphic_softmax", "is_holomorphic", "slope"]

Activation = Callable[[Tensor], Tensor]


def _logistic(z: Tensor) -> Tensor:
    """1 / (1 + exp(-z)); of z = x + iy in real numbers, which is faster, and with no exponential that overflows."""
    if not z.is_complex():
        return torch.sigmoid(z)
    t = torch.exp(-z.real.abs())
    across, along = t * torch.sin(z.imag), t * torch.cos(z.imag)
    size = 1 + 2 * along + t * t  # |1 + exp(-|x| -+ iy)|^2, zero at the poles
    return torch.complex((along + torch.where(z.real < 0, t * t, 1)) / size, across / size)


class HoloSigmoid(nn.Module):
    """Logistic function of 4 z - 2: from 0 to 1, slope 1 at its middle z = 1/2.

    Source: Laborieux & Zenke 2024 (arXiv 2309.02214), appendix.
    """

    def forward(self, z: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Activity at the potential z, real or complex."""
        return _logistic(4 * z - 2)

    def derivative(self, z: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Slope at the potential z."""
        activity = self.forward(z)
        return 4 * activity * (1 - activity)


class DSiLU(nn.Module):
    """Difference of two sigmoid-weighted linear units: from 0 to 1 like a sigmoid, nearly linear from 0 to 2.

    Source: Laborieux & Zenke 2024 (arXiv 2309.02214), appendix.
    """

    def forward(self, z: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Activity at the potential z, real or complex."""
        return 0.5 * z * _logistic(z) + (1 - 0.5 * z) * _logistic(z - 2)

    def derivative(self, z: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
        """Slope at the potential z."""
        low, high = _logistic(z), _logistic(z - 2)
        return 0.5 * (low - high) + 0.5 * z * low * (1 - low) + (1 - 0.5 * z) * high * (1 - high)


def slope(activation: Activation, z: Inexact[Tensor, "*shape"]) -> Inexact[Tensor, "*shape"]:
    """Derivative of an elementwise activation at real potentials: its own `derivative`, or autograd's."""
    derivative = getattr(activation, "derivative", None)
    if derivative is not None:
        return derivative(z)
    with torch.enable_grad():
        leaf = z.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(activation(leaf).sum(), leaf)
    return gradient


def holomorphic_softmax(z: Inexact[Tensor, "*shape"], dim: int) -> Inexact[Tensor, "*shape"]:
    """Softmax along an axis, for real and complex numbers.

    Args:
        z: logits.
        dim: the axis along which the result sums to 1.
    """
    if not z.is_complex():
        return z.softmax(dim)
    # A shift cancels; by the largest real part no exponential overflows.
    weights = torch.exp(z - z.real.detach().amax(dim, keepdim=True))
    return weights / weights.sum(dim, keepdim=True)


def is_holomorphic(activation: Activation, tol: float = 1e-5) -> bool:
    """Whether an elementwise activation obeys the Cauchy-Riemann equations near the real line.

    Args:
        activation: takes a tensor of complex numbers; one that cannot is not holomorphic.
        tol: largest departure of the two difference quotients.
    """
    real = torch.linspace(-2.05, 2.95, 51, dtype=torch.float64)
    z = torch.complex(*torch.broadcast_tensors(real, torch.tensor([[-0.21], [0.0], [0.13]], dtype=torch.float64)))
    h = 1e-6
    try:
        with torch.no_grad():
            at, right, up = (activation(z + shift).to(z.dtype) for shift in (0, h, 1j * h))
    except (RuntimeError, NotImplementedError, TypeError):  # torch has no complex version of it
        return False
    return bool(((up - at) - 1j * (right - at)).abs().max() < tol * h)
