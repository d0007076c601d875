"""The softplus transfer function of the dis-inhibitory circuit, with its derivative, inverse and tangent.

    phi(u)    = scale * log(1 + exp(sharpness * (u - shift)))
    phi'(u)   = scale * sharpness / (1 + exp(-sharpness * (u - shift)))
    phi^-1(r) = shift + log(exp(r / scale) - 1) / sharpness

The inverse is evaluated as r/scale + log(1 - exp(-r/scale)), which neither overflows at high rates nor loses digits.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

__all__ = ["Softplus"]

LINEAR_ABOVE = 40.0  # log(1 + exp(v)) - v is below rounding in float64 from here on


class Softplus(nn.Module):
    """Rate of a neuron as a function of its membrane potential.

    Args:
        scale: slope of the linear branch at unit sharpness, positive.
        sharpness: of the bend, positive.
        shift: potential at the middle of the bend.

    Attributes:
        plain: whether all three are at their defaults.

    Raises:
        ValueError: if scale or sharpness is not positive.

    Source: Rossbroich & Zenke 2023 (arXiv 2310.19614), Methods.
    """

    def __init__(self, scale: float = 1.0, sharpness: float = 1.0, shift: float = 0.0):
        super().__init__()
        if not (scale > 0 and sharpness > 0):
            raise ValueError(f"scale and sharpness must be positive, got {scale} and {sharpness}.")
        self.scale, self.sharpness, self.shift = float(scale), float(sharpness), float(shift)
        self.plain = (self.scale, self.sharpness, self.shift) == (1.0, 1.0, 0.0)

    def extra_repr(self) -> str:
        """The three constants."""
        return f"scale={self.scale:g}, sharpness={self.sharpness:g}, shift={self.shift:g}"

    def forward(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Rate at the potential u."""
        if self.plain:
            return softplus(u, threshold=LINEAR_ABOVE)
        return self.scale * softplus(self.sharpness * (u - self.shift), threshold=LINEAR_ABOVE)

    def derivative(self, u: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Slope of the rate at the potential u."""
        if self.plain:
            return torch.sigmoid(u)
        return (self.scale * self.sharpness) * torch.sigmoid(self.sharpness * (u - self.shift))

    def inverse(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Potential at the rate r.

        Raises:
            ValueError: if a rate is not positive: no potential gives it.
        """
        if not bool((r > 0).all()):
            raise ValueError(f"A softplus rate is positive; got {float(r.min()):.3g}, which no potential gives.")
        scaled = r / self.scale
        return self.shift + (scaled + torch.log(-torch.expm1(-scaled))) / self.sharpness

    def tangent(self, at: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """Intercept and slope of the line that touches the inverse at a rate.

        Args:
            at: rates, positive.

        Returns:
            (theta, delta), so that the inverse is about theta + delta * r near `at`.

        Raises:
            ValueError: if a rate is not positive.
        """
        u = self.inverse(at)
        delta = 1 / self.derivative(u)
        return u - at * delta, delta

    def inverse_tangent(self, r: Float[Tensor, "..."], at: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The inverse at r, by its tangent at another rate.

        Raises:
            ValueError: if a rate of `at` is not positive.
        """
        theta, delta = self.tangent(at)
        return theta + delta * r
