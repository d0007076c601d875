"""Four other circuit models of error-driven plasticity, on the axes of `curves`.

Each neuron gets an input x through a weight of 1 and may be asked for a target rate; phi is a softplus. Three
conditions: with a target, without one, and with inhibition imposed (x then stands for the dendritic potential). Only
the dis-inhibitory rule keeps a BCM curve when no top-down signal comes.

    Sacramento et al. 2018: soma between a basal dendrite v_b = x and an apical one v_a = w_IE phi(ui) + target,
        ue' = -g_lk ue + g_B (v_b - ue) + g_A (v_a - ue)
        ui' = -g_lk ui + g_D (phi(ue) - ui) + target
        dw  = x (phi(ue) - phi(v_b g_B / (g_lk + g_B + g_A)))
    Meulemans et al. 2021: deep feedback control, v = x,
        u' = -u + v + alpha (target - phi(u)),      dw = x (u - v)
    Payeur et al. 2021: bursts, e = phi(x), p = sigmoid(beta (target - e) + alpha),
        dw = x e (p - p_bar),                       p_bar = sigmoid(alpha)
    Greedy et al. 2022: bursts of a hidden neuron e = phi(x) below an output e_o = phi(e), h = phi'/phi of each,
        p_o = p_b (1 - (target - e_o) h_o),         u = p_b e_o - p_o e_o,      p = sigmoid(4 u h)
        dw = x e (p - p_b),                         p_b = 1/2

Imposed inhibition r_I takes the place of the apical input: v_a = -r_I (Sacramento), -r_I in u (Meulemans), and -r_I in
the apical potential that sets p (Payeur, Greedy). For the two burst models this reading is ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit

__all__ = ["RIVALS", "rival_curve"]

STEPS, DT = 600, 0.02


class Clamp(NamedTuple):
    """What the neuron is subjected to: a target rate, imposed inhibition, or neither."""

    target: float | None = None
    inhibition: float | None = None


Rule = Callable[[np.ndarray, Clamp], tuple[np.ndarray, np.ndarray]]


def _phi(u: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, u)


def sacramento(x: np.ndarray, clamp: Clamp) -> tuple[np.ndarray, np.ndarray]:
    """Rate and weight change of the segregated-dendrite model (Sacramento et al. 2018)."""
    g_lk, g_b, g_a, g_d, w_ie = 0.1, 1.0, 0.8, 1.0, -0.55
    total = g_lk + g_b + g_a
    if clamp.inhibition is not None:
        u_e = (g_b * x - g_a * clamp.inhibition) / total
    else:
        top_down = 0.0 if clamp.target is None else clamp.target
        u_e, u_i = np.zeros_like(x), np.zeros_like(x)
        for _ in range(STEPS):
            apical = w_ie * _phi(u_i) + top_down
            u_e, u_i = (
                u_e + DT * (g_b * x + g_a * apical - total * u_e),
                u_i + DT * (g_d * _phi(u_e) + top_down - (g_lk + g_d) * u_i),
            )
    return _phi(u_e), x * (_phi(u_e) - _phi(x * g_b / total))


def meulemans(x: np.ndarray, clamp: Clamp) -> tuple[np.ndarray, np.ndarray]:
    """Rate and weight change of deep feedback control (Meulemans et al. 2021)."""
    if clamp.inhibition is not None:
        u = x - clamp.inhibition
    else:
        u = np.zeros_like(x)
        for _ in range(STEPS):
            control = 0.0 if clamp.target is None else clamp.target - _phi(u)
            u = u + DT * (x + control - u)
    return _phi(u), x * (u - x)


def payeur(x: np.ndarray, clamp: Clamp) -> tuple[np.ndarray, np.ndarray]:
    """Event rate and weight change of burst-dependent plasticity (Payeur et al. 2021)."""
    e = _phi(x)
    apical = 0.0 if clamp.target is None else clamp.target - e
    if clamp.inhibition is not None:
        apical = -clamp.inhibition
    return e, x * e * (expit(apical) - 0.5)


def greedy(x: np.ndarray, clamp: Clamp) -> tuple[np.ndarray, np.ndarray]:
    """Event rate and weight change of the bursting cortico-cortical network (Greedy et al. 2022)."""
    gain, baseline = 4.0, 0.5
    e = _phi(x)
    out = _phi(e)
    error = 0.0 if clamp.target is None else clamp.target - out
    bursts = baseline * (1 - error * expit(e) / out)
    apical = baseline * out - bursts * out
    if clamp.inhibition is not None:
        apical = -clamp.inhibition
    return e, x * e * (expit(gain * apical * expit(x) / e) - baseline)


RIVALS: dict[str, Rule] = {
    "Sacramento 2018": sacramento,
    "Meulemans 2021": meulemans,
    "Payeur 2021": payeur,
    "Greedy 2022": greedy,
}


def rival_curve(
    name: str,
    x: ArrayLike,
    target: float | None = None,
    inhibition: float | None = None,
) -> pd.DataFrame:
    """Weight change of a rival model over a range of inputs.

    Args:
        name: one of `RIVALS`.
        x: inputs.
        target: rate that top-down feedback asks for; None for no feedback.
        inhibition: imposed rate of inhibition, in place of feedback; None for none.

    Returns:
        One row an input: x, r_e (rate, or event rate), dw.

    Raises:
        ValueError: if the model is unknown, both a target and inhibition are given, or an input is not finite.

    Source: Rossbroich & Zenke 2023, Supp. Fig. S1, and the models' own papers.
    """
    if name not in RIVALS:
        raise ValueError(f"No rival named {name!r}; there are {', '.join(RIVALS)}.")
    if target is not None and inhibition is not None:
        raise ValueError("A neuron is either driven to a target or clamped to inhibition, not both.")
    inputs = np.asarray(x, dtype=float).ravel()
    if inputs.size == 0 or not np.isfinite(inputs).all():
        raise ValueError("x must hold finite numbers, and at least one.")
    rates, changes = RIVALS[name](inputs, Clamp(target, inhibition))
    return pd.DataFrame({"x": inputs, "r_e": rates, "dw": changes})
