"""Plasticity of a single neuron with its inhibitory partner, as a function of its rate.

The microcircuit with unit time constants, input x, and, where a target is given, top-down control of strength alpha:

    uE' = -uE + x - phi(uI)
    uI' = -uI + phi(uE) - alpha (r_target - phi(uE))

followed by Euler steps to rest; then, with rE = phi(uE) and rI = phi(uI),

    dw = x (rE - u_hat) phi'(uE),      u_hat = uI (exact rule)   or   theta + delta rI (linear rule)

At rest rE - uI = alpha (r_target - rE): under the exact rule the sign flips exactly at the target rate. Without a
target the exact rule is silent and the linear one is a BCM curve. In the isolated neuron uE = x and rI are imposed, and
the sign flips at rE = theta + delta rI: inhibition moves the threshold.
"""

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from neuropil.learning.inhibition.activation import Softplus

__all__ = ["isolated_curve", "plasticity_curve", "zero_crossings"]

SHIFT = 3.0  # of the transfer functions in the single-neuron figures
STEPS, DT = 600, 0.02


def plasticity_curve(
    x: ArrayLike,
    target: float | None = None,
    theta: float | None = None,
    delta: float | None = None,
    *,
    alpha: float = 5.0,
    activation: Softplus | None = None,
    steps: int = STEPS,
    dt: float = DT,
) -> pd.DataFrame:
    """Weight change of a neuron in its microcircuit, over a range of inputs.

    Args:
        x: inputs (presynaptic rate times a weight of 1).
        target: rate that top-down control asks for; None for no control.
        theta: intercept of the linear rule's threshold; None, with delta, for the exact rule.
        delta: its slope.
        alpha: strength of control.
        activation: transfer function of both neurons; None for Softplus(shift=3).
        steps: Euler steps from potentials of 0.
        dt: step, in time constants.

    Returns:
        One row an input: x, r_e, r_i, dw.

    Raises:
        ValueError: if only one of theta and delta is given, or the inputs are empty or not finite.

    Source: Rossbroich & Zenke 2023, Fig. 3 A and B, Supp. Fig. S2.
    """
    inputs = _inputs(x)
    if (theta is None) != (delta is None):
        raise ValueError("The linear rule needs both theta and delta; the exact rule neither.")
    phi = Softplus(shift=SHIFT) if activation is None else activation
    u_e, u_i = torch.zeros_like(inputs), torch.zeros_like(inputs)
    for _ in range(steps):
        r_e = phi(u_e)
        control = 0.0 if target is None else alpha * (target - r_e)
        u_e, u_i = u_e + dt * (inputs - phi(u_i) - u_e), u_i + dt * (r_e - control - u_i)
    u_hat = u_i if theta is None or delta is None else theta + delta * phi(u_i)
    r_e = phi(u_e)
    return _table(x=inputs, r_e=r_e, r_i=phi(u_i), dw=inputs * (r_e - u_hat) * phi.derivative(u_e))


def isolated_curve(
    x: ArrayLike,
    inhibition: ArrayLike = (0.01, 0.673, 1.337, 2.0),
    theta: float | None = None,
    delta: float | None = None,
    *,
    activation: Softplus | None = None,
) -> pd.DataFrame:
    """Weight change of a neuron whose potential and inhibition are imposed, as in a slice.

    Args:
        x: imposed potentials of the excitatory neuron.
        inhibition: imposed rates of inhibition, positive; one curve each.
        theta: intercept of the linear rule's threshold; None, with delta, for the exact rule.
        delta: its slope.
        activation: transfer function; None for Softplus(shift=3).

    Returns:
        One row an input and inhibition: x, r_e, r_i, dw.

    Raises:
        ValueError: as `plasticity_curve`; if an inhibition is not positive.

    Source: Rossbroich & Zenke 2023, Fig. 3 C.
    """
    u_e = _inputs(x)
    if (theta is None) != (delta is None):
        raise ValueError("The linear rule needs both theta and delta; the exact rule neither.")
    phi = Softplus(shift=SHIFT) if activation is None else activation
    r_i = torch.as_tensor(np.asarray(inhibition, dtype=float))[:, None]
    u_hat = phi.inverse(r_i) if theta is None or delta is None else theta + delta * r_i
    r_e = phi(u_e)
    dw = u_e * (r_e - u_hat) * phi.derivative(u_e)
    grid = torch.broadcast_to(u_e, dw.shape), torch.broadcast_to(r_e, dw.shape), torch.broadcast_to(r_i, dw.shape)
    return _table(x=grid[0], r_e=grid[1], r_i=grid[2], dw=dw)


def zero_crossings(rates: ArrayLike, changes: ArrayLike) -> np.ndarray:
    """Rates at which a curve changes its sign, interpolated linearly; touching zero without crossing does not count."""
    rates, changes = np.asarray(rates, dtype=float), np.asarray(changes, dtype=float)
    moved = np.abs(changes) > 0
    rates, changes = rates[moved], changes[moved]
    at = np.flatnonzero(np.sign(changes[1:]) != np.sign(changes[:-1]))
    return rates[at] - changes[at] * (rates[at + 1] - rates[at]) / (changes[at + 1] - changes[at])


def _inputs(x: ArrayLike) -> Tensor:
    values = np.asarray(x, dtype=float).ravel()
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("x must hold finite numbers, and at least one.")
    return torch.from_numpy(values)


def _table(**columns: Tensor) -> pd.DataFrame:
    return pd.DataFrame({name: values.flatten().numpy() for name, values in columns.items()})
