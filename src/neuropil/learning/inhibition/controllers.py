"""Controllers: what turns an output error into top-down control.

    leaky PI:       c = k_p e + k_i z,    tau dz/dt = e - leak z
    proportional:   c = k_p e

State is explicit: a controller takes z and returns dz/dt with the control. Where the error has come to rest, so has z =
e / leak, and both controllers reduce to c = gain * e.
"""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Controller", "LeakyPI", "Proportional"]


@runtime_checkable
class Controller(Protocol):
    """Turns an error into control, with a state of the same shape."""

    @property
    def gain(self) -> float:
        """Control per unit of a constant error, once at rest."""
        ...

    def __call__(self, error: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Control, and the rate of change of the state (per second)."""
        ...


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}.")


def _not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}.")


class LeakyPI(nn.Module):
    """Proportional-integral controller whose integral leaks.

    Args:
        k_p: proportional gain, not negative.
        k_i: integral gain, not negative.
        leak: of the integral, not negative; 0 is a plain PI controller, which has no finite gain at rest.
        tau: time constant of the integral, seconds.

    Raises:
        ValueError: if a constant is out of range.

    Source: Rossbroich & Zenke 2023, Methods.
    """

    def __init__(self, k_p: float = 0.2, k_i: float = 0.4, leak: float = 1.0, tau: float = 0.1):
        super().__init__()
        _positive(tau=tau)
        _not_negative(k_p=k_p, k_i=k_i, leak=leak)
        self.k_p, self.k_i, self.leak, self.tau = k_p, k_i, leak, tau

    @property
    def gain(self) -> float:
        """k_p + k_i / leak; infinite without a leak."""
        return self.k_p + (self.k_i / self.leak if self.leak > 0 else float("inf") if self.k_i > 0 else 0.0)

    def forward(
        self, error: Float[Tensor, "batch outputs"], state: Float[Tensor, "batch outputs"]
    ) -> tuple[Float[Tensor, "batch outputs"], Float[Tensor, "batch outputs"]]:
        """Control and dz/dt."""
        return self.k_p * error + self.k_i * state, (error - self.leak * state) / self.tau


class Proportional(nn.Module):
    """Proportional controller; its state stays zero.

    Args:
        k_p: gain, not negative.

    Raises:
        ValueError: if the gain is negative.
    """

    def __init__(self, k_p: float = 0.6):
        super().__init__()
        _not_negative(k_p=k_p)
        self.k_p = k_p

    @property
    def gain(self) -> float:
        """k_p."""
        return self.k_p

    def forward(
        self, error: Float[Tensor, "batch outputs"], state: Float[Tensor, "batch outputs"]
    ) -> tuple[Float[Tensor, "batch outputs"], Float[Tensor, "batch outputs"]]:
        """Control and a zero rate of change."""
        return self.k_p * error, torch.zeros_like(state)
