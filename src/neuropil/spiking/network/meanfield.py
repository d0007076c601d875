r"""Rates of integrate-and-fire networks in theory: every neuron sees independent Gaussian noise.

A neuron with mean input mu and noise sigma fires at (Siegert 1951; Amit & Brunel 1997)

    1/nu = t_ref + tau sqrt(pi) int_{(v_reset - mu)/sigma}^{(theta - mu)/sigma} e^{u^2} (1 + erf u) du

and the noise comes from the network itself: for C_ab synapses of J_ab from every population b of rate nu_b (per ms),

    mu_a = mu_ext,a + tau_a sum_b C_ab J_ab nu_b,      sigma_a^2 = sigma_ext,a^2 + tau_a sum_b C_ab J_ab^2 nu_b.

The rates are those that reproduce themselves. Where there are several, a network that starts silent is meant.

The integrand is erfcx(-u), which never becomes infinity times zero. Below u = -50 its integral is known from an
asymptotic series, above 0 it is integrated relative to its largest value, in between by Gauss-Legendre quadrature.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.integrate import solve_ivp
from scipy.optimize import root, root_scalar
from scipy.special import erfcx

from neuropil.neurons.ranges import require, require_positive

__all__ = ["FixedPoint", "brunel_fixed_points", "brunel_rate", "mean_field_rates", "siegert_rate", "threshold_rate"]

Array = Float[np.ndarray, "..."]

NODES, WEIGHTS = (0.5 * x for x in np.polynomial.legendre.leggauss(64))
NODES = NODES + 0.5  # on [0, 1]
FAR = 50.0  # from here on erfcx is its asymptotic series
NEGLIGIBLE = 40.0  # e^-40 of the integrand's largest value is left out
SILENT = 40.0  # e^(-40^2) is 0
FASTER = 100.0  # inhibition than excitation, where several populations settle
PATIENCE = 5000  # evaluations; a settling network takes a few hundred
GRID = 4000  # rates at which a self-consistent one is looked for


def siegert_rate(
    mu: ArrayLike, sigma: ArrayLike, tau: ArrayLike, theta: ArrayLike, v_reset: ArrayLike, t_ref: ArrayLike
) -> Any:
    """Firing rate of a leaky integrate-and-fire neuron under white noise.

    All arguments broadcast; potentials are relative to rest.

    Args:
        mu: mean input, mV: where the potential would settle without noise and threshold.
        sigma: noise, mV, at least 0: sqrt(2) times the spread of the potential without threshold. At 0 the rate is that
            of the noiseless neuron, 1/(t_ref + tau log((mu - v_reset)/(mu - theta))) above threshold and 0 below.
        tau: membrane time constant, ms, positive.
        theta: threshold, mV, above v_reset.
        v_reset: potential after a spike, mV.
        t_ref: refractory time, ms, at least 0.

    Returns:
        Rates in Hz, of the broadcast shape; a float if all arguments are numbers. Relative error below 1e-10 wherever
        the rate is not too small for a float64 (threshold about 27 sigma above the mean).

    Raises:
        ValueError: if a number is not finite or out of its range, or the shapes do not broadcast.

    Source: Siegert, Phys. Rev. 81 (1951); Amit & Brunel, Cerebral Cortex 7 (1997); Brunel, J. Comput. Neurosci. 8
        (2000), eq. 21.
    """
    given = {"mu": mu, "sigma": sigma, "tau": tau, "theta": theta, "v_reset": v_reset, "t_ref": t_ref}
    arrays = {name: _finite(name, value) for name, value in given.items()}
    for name, wanted in (("sigma", "at least 0"), ("tau", "positive"), ("t_ref", "at least 0")):
        least = arrays[name].min(initial=math.inf)
        if least < 0 or (least == 0 and wanted == "positive"):
            raise ValueError(f"{name} must be {wanted}, got {least:g}.")
    try:
        m, s, t, top, low, rest = np.broadcast_arrays(*arrays.values())
    except ValueError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"The shapes do not broadcast: {shapes}.") from error
    if not (top > low).all():
        raise ValueError("theta must lie above v_reset: a neuron at or beyond its threshold after a spike never stops.")
    rates = np.zeros(m.shape)
    noisy, driven = s > 0, (s == 0) & (m > top)
    passage = t[driven] * np.log1p((top[driven] - low[driven]) / (m[driven] - top[driven]))
    rates[driven] = 1000.0 / (rest[driven] + passage)
    rates[noisy] = _noisy_rate(*(x[noisy] for x in (m, s, t, top, low, rest)))
    return rates if rates.ndim else float(rates)


def threshold_rate(*, weight: float, in_degree: int, tau: float, theta: float) -> float:
    """External rate per synapse that takes the mean potential just to threshold, nu_thr = theta / (J C_E tau).

    Args:
        weight: J, mV, positive.
        in_degree: external synapses per neuron, C_E, positive.
        tau: membrane time constant, ms, positive.
        theta: threshold above rest, mV, positive.

    Returns:
        Hz.

    Raises:
        ValueError: if a number is not finite and positive.

    Source: Brunel 2000, section 2.
    """
    require_positive(weight=weight, in_degree=in_degree, tau=tau, theta=theta)
    return 1000.0 * theta / (weight * in_degree * tau)


class FixedPoint(NamedTuple):
    """A rate in Hz that reproduces itself, and whether small deviations of it die out."""

    rate: float
    stable: bool


def brunel_fixed_points(
    *,
    g: float,
    eta: float,
    weight: float = 0.1,
    in_degree: int = 1000,
    inhibitory_in_degree: int = 250,
    tau: float = 20.0,
    theta: float = 20.0,
    v_reset: float = 10.0,
    t_ref: float = 2.0,
) -> list[FixedPoint]:
    """All rates of a network in which excitatory and inhibitory neurons are alike that reproduce themselves.

    Looked for between neighbouring points of a grid, geometric from 1e-9 Hz and then even, and refined by Brent's
    method; two that lie closer together than the grid are missed. Stable means that the rate the network would produce
    rises more slowly than the rate itself (dnu/dt = phi(nu) - nu); oscillations are another matter.

    Args:
        g: inhibitory weight in units of the excitatory one, at least 0.
        eta: external rate in units of `threshold_rate`, at least 0; there are `in_degree` external synapses.
        weight: J, mV, positive.
        in_degree: excitatory synapses per neuron, C_E, positive.
        inhibitory_in_degree: C_I, at least 0.
        tau: membrane time constant, ms, positive.
        theta: threshold above rest, mV, positive and above v_reset.
        v_reset: mV.
        t_ref: refractory time, ms, positive: it bounds the rates.

    Returns:
        From the lowest rate to the highest; there is at least one.

    Raises:
        ValueError: if a number is not finite or out of its range.

    Source: Brunel 2000, eqs. 4, 5 and 21.
    """
    for name, number in (("g", g), ("eta", eta), ("inhibitory_in_degree", inhibitory_in_degree)):
        require(name, number, 0.0, math.inf, ends=(True, False))
    require_positive(t_ref=t_ref)
    external = eta * threshold_rate(weight=weight, in_degree=in_degree, tau=tau, theta=theta) / 1000.0
    gamma = inhibitory_in_degree / in_degree

    def surplus(rate: ArrayLike) -> Any:
        """What the network would fire more than it does, Hz."""
        nu = np.asarray(rate, float) / 1000.0
        mu = in_degree * weight * tau * (nu * (1.0 - gamma * g) + external)
        variance = in_degree * weight**2 * tau * (nu * (1.0 + gamma * g**2) + external)
        return siegert_rate(mu, np.sqrt(variance), tau, theta, v_reset, t_ref) - 1000.0 * nu

    highest = 1000.0 / t_ref
    grid = np.concatenate(
        [[0.0], np.geomspace(1e-9, 1.0, GRID // 4) * highest / GRID, np.linspace(0, highest, GRID)[2:]]
    )
    signs = np.sign(surplus(grid))
    found = [FixedPoint(float(grid[i]), bool(signs[min(i + 1, len(grid) - 1)] < 0)) for i in np.flatnonzero(signs == 0)]
    for i in np.flatnonzero(signs[:-1] * signs[1:] < 0):
        found.append(FixedPoint(root_scalar(surplus, bracket=(grid[i], grid[i + 1])).root, bool(signs[i] > 0)))
    return sorted(found)


def brunel_rate(
    *,
    g: float,
    eta: float,
    weight: float = 0.1,
    in_degree: int = 1000,
    inhibitory_in_degree: int = 250,
    tau: float = 20.0,
    theta: float = 20.0,
    v_reset: float = 10.0,
    t_ref: float = 2.0,
) -> float:
    """Rate of Brunel's sparse network of excitatory and inhibitory neurons in the asynchronous state, in theory.

    The lowest of the rates that reproduce themselves: it is stable from below, and the one that a network reaches which
    starts silent.

    Args:
        g: inhibitory weight in units of the excitatory one, at least 0.
        eta: external rate in units of `threshold_rate`, at least 0; there are `in_degree` external synapses.
        weight: J, mV, positive.
        in_degree: excitatory synapses per neuron, C_E, positive.
        inhibitory_in_degree: C_I, at least 0.
        tau: membrane time constant, ms, positive.
        theta: threshold above rest, mV, positive and above v_reset.
        v_reset: mV.
        t_ref: refractory time, ms, positive.

    Returns:
        Hz.

    Raises:
        ValueError: if a number is not finite or out of its range.

    Source: Brunel 2000, eqs. 4, 5 and 21; its table 1 for (g, eta) = (6, 4), (5, 2) and (4.5, 0.9).
    """
    points = brunel_fixed_points(
        g=g,
        eta=eta,
        weight=weight,
        in_degree=in_degree,
        inhibitory_in_degree=inhibitory_in_degree,
        tau=tau,
        theta=theta,
        v_reset=v_reset,
        t_ref=t_ref,
    )
    return points[0].rate


def mean_field_rates(
    in_degrees: ArrayLike,
    weights: ArrayLike,
    *,
    mu: ArrayLike,
    sigma: ArrayLike = 0.0,
    tau: ArrayLike,
    theta: ArrayLike,
    v_reset: ArrayLike,
    t_ref: ArrayLike,
) -> Float[np.ndarray, " populations"]:
    """Rates of several populations, each with parameters of its own, that reproduce each other.

    From silence, every population's rate relaxes to what its input would make it fire, dnu/dt = phi(nu) - nu; those
    with negative weights a hundred times as fast as the others, lest excitation and inhibition chase each other. Where
    that settles, the rates are refined to a root.

    Args:
        in_degrees: synapses per neuron, (target population, source population), at least 0.
        weights: mV, of the same shape, negative for inhibitory sources.
        mu: mean external input, mV, (populations,) or a number; for C synapses of J and rate nu it is C J tau nu.
        sigma: noise of the external input, mV, likewise; C J^2 tau nu is its square.
        tau: membrane time constants, ms, positive, likewise.
        theta: thresholds above rest, mV, likewise.
        v_reset: mV, likewise.
        t_ref: refractory times, ms, likewise.

    Returns:
        Hz, (populations,).

    Raises:
        ValueError: if a number is out of its range, or the shapes do not fit.
        RuntimeError: if the rates do not settle.

    Source: Amit & Brunel 1997; Brunel 2000, section 6 (model B).
    """
    degrees, strengths = _finite("in_degrees", in_degrees), _finite("weights", weights)
    if degrees.ndim != 2 or degrees.shape[0] != degrees.shape[1] or strengths.shape != degrees.shape:
        shapes = f"{degrees.shape} and {strengths.shape}"
        raise ValueError(f"in_degrees and weights must be square and of one shape, (target, source), got {shapes}.")
    if (degrees < 0).any():
        raise ValueError(f"in_degrees must be at least 0, got {degrees.min():g}.")
    count = len(degrees)
    numbers = {"mu": mu, "sigma": sigma, "tau": tau, "theta": theta, "v_reset": v_reset, "t_ref": t_ref}
    arrays = {name: _finite(name, value) for name, value in numbers.items()}
    for name, array in arrays.items():
        if array.shape not in ((), (count,)):
            raise ValueError(f"{name} must be a number or one for each of {count} populations, got {array.shape}.")
    means, noise, times, *rest = arrays.values()

    def surplus(rates: np.ndarray) -> np.ndarray:
        nu = np.maximum(rates, 0.0) / 1000.0
        spread = np.sqrt(noise**2 + times * ((degrees * strengths**2) @ nu))
        fired = siegert_rate(means + times * ((degrees * strengths) @ nu), spread, times, *rest)
        return fired - rates

    speed = np.where((strengths < 0).any(axis=0), FASTER, 1.0)
    speed = speed / speed.min()
    asked = 0

    def motion(_: float, at: np.ndarray) -> np.ndarray:
        nonlocal asked
        asked += 1
        if asked > PATIENCE:
            raise RuntimeError(f"The rates do not settle, they are still on the move at {np.round(at, 3)} Hz.")
        return speed * surplus(at)

    path = solve_ivp(motion, (0.0, 50.0), np.zeros(count), method="LSODA", rtol=1e-6, atol=1e-9)
    rates = root(surplus, path.y[:, -1], tol=1e-13).x
    if np.abs(surplus(rates)).max() > 1e-7 * max(rates.max(), 1.0) or rates.min() < -1e-7:
        raise RuntimeError(f"The rates do not settle, they are still on the move at {np.round(path.y[:, -1], 3)} Hz.")
    return np.maximum(rates, 0.0)


def _noisy_rate(mu: Array, sigma: Array, tau: Array, theta: Array, v_reset: Array, t_ref: Array) -> Array:
    """The Siegert rate for sigma > 0, in Hz."""
    with np.errstate(over="ignore"):  # the smallest sigma make infinite bounds, and the noiseless rate
        upper, width = (theta - mu) / sigma, (theta - v_reset) / sigma  # a difference of two bounds would lose digits
    negative = _negative_part(mu, sigma, theta, v_reset, upper, width)
    top = np.clip(upper, 0.0, SILENT)
    positive = _positive_part(top, np.minimum(width, top))
    small = np.exp(-(top**2))
    root_pi = math.sqrt(math.pi)
    return 1000.0 * small / (small * (t_ref + tau * root_pi * negative) + tau * root_pi * positive)


def _negative_part(mu: Array, sigma: Array, theta: Array, v_reset: Array, upper: Array, width: Array) -> Array:
    """Integral over the negative u: of erfcx from a = -min(upper, 0) to b = width - upper."""
    a, b = np.maximum(-upper, 0.0), np.maximum(width - upper, 0.0)
    near_a, near_b = np.minimum(a, FAR), np.minimum(b, FAR)
    # u = e^y - 1: erfcx falls as 1/u, and (1 + u) erfcx(u) is nearly flat in y.
    span = np.log1p((np.where(b > FAR, FAR - near_a, np.minimum(width, near_b))) / (1.0 + near_a))
    u = np.expm1(np.log1p(near_a)[..., None] + span[..., None] * NODES)
    near = span * (((1.0 + u) * erfcx(u)) @ WEIGHTS)
    far = b > FAR
    from_start = a > FAR  # the ratio of the bounds is then (mu - v_reset)/(mu - theta), whatever sigma
    gap = np.where(from_start, mu - theta, 1.0)
    log = np.where(
        from_start,
        np.log1p((theta - v_reset) / gap),
        np.log(np.where(far, mu - v_reset, 1.0)) - np.log(np.where(far, FAR * sigma, 1.0)),
    )
    with np.errstate(over="ignore"):  # a bound of 1e200 has no correction left
        corrections = _correction(np.maximum(b, FAR)) - _correction(np.maximum(a, FAR))
    return near + np.where(far, (log + corrections) / math.sqrt(math.pi), 0.0)


def _correction(u: Array) -> Array:
    """What the integral of sqrt(pi) erfcx has beside log u, for large u."""
    x = (1.0 / u) ** 2
    return x * (1 / 4 - x * (3 / 16 - x * (5 / 16 - x * 105 / 128)))


def _positive_part(top: Array, width: Array) -> Array:
    """Integral over the positive u, from top - width to top, of erfcx(-u) e^(-top^2)."""
    visible = NEGLIGIBLE / np.maximum(top + np.sqrt(np.maximum(top**2 - NEGLIGIBLE, 0.0)), 1e-300)
    width = np.minimum(width, np.where(top**2 > NEGLIGIBLE, visible, top))
    below = width[..., None] * NODES
    u = top[..., None] - below
    rising = np.exp(-below * (2.0 * top[..., None] - below))  # e^(u^2 - top^2)
    return width * ((2.0 * rising - erfcx(u) * np.exp(-(top**2))[..., None]) @ WEIGHTS)


def _finite(name: str, value: ArrayLike) -> np.ndarray:
    array = np.asarray(value, float)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {array[~np.isfinite(array)].flat[0]}.")
    return array
