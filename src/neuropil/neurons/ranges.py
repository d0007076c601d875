"""Refusing numbers that are out of range, in words that name the argument."""

import math

import torch
from torch import Tensor

__all__ = ["require", "require_finite", "require_positive"]

Number = float | Tensor


def require(name: str, number: Number, low: float, high: float, *, ends: tuple[bool, bool] = (True, True)) -> None:
    """Check that a number, or each of a tensor, lies between low and high, which `ends` says to include or not.

    Raises:
        ValueError: if one does not, or is NaN.
    """
    # In float64: a bound must not be met by rounding.
    values = torch.as_tensor(number, dtype=torch.float64).detach()
    inside = (values >= low if ends[0] else values > low) & (values <= high if ends[1] else values < high)
    if bool(inside.all()):
        return
    worst = values[~inside].flatten()[0].item() if values.ndim else values.item()
    if math.isinf(low):
        wanted = "finite"
    elif math.isinf(high):
        wanted = f"finite and {'at least' if ends[0] else 'above'} {low:g}"
    else:
        wanted = f"in {'[' if ends[0] else '('}{low:g}, {high:g}{']' if ends[1] else ')'}"
    raise ValueError(f"{name} must be {wanted}, got {worst}.")


def require_finite(**numbers: Number) -> None:
    """Check that numbers, by name, are finite.

    Raises:
        ValueError: if one is not.
    """
    for name, number in numbers.items():
        require(name, number, -math.inf, math.inf, ends=(False, False))


def require_positive(**numbers: Number) -> None:
    """Check that numbers, by name, are finite and above 0.

    Raises:
        ValueError: if one is not.
    """
    for name, number in numbers.items():
        require(name, number, 0.0, math.inf, ends=(False, False))
