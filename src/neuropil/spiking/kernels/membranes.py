"""The neurons of `neuropil.spiking.membranes`, operation by operation, for loops that numba compiles.

A neuron becomes a named tuple of its state, numpy arrays that share memory with the tensors, and of the constants of
its step, numbers or arrays of one a neuron. `COMPILED` says how for each model: builder, tuple, and function

    advance(m, lo, hi, drive, conductance, jump, fired)

which takes neurons lo..hi-1 one step further in place; drive, conductance and jump belong to them alone (hi - lo),
fired is of all neurons. It is cut into loops without branches over few arrays, so that each becomes vector code: beyond
some number of arrays the compiler no longer proves that none overlaps another.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
import torch

from neuropil.spiking.hodgkin_huxley import NEAR, SERIES, HodgkinHuxleyConstants, HodgkinHuxleyNeuron
from neuropil.spiking.kernels.cells import advances
from neuropil.spiking.kernels.engine import at, cut
from neuropil.spiking.kernels.exponential import exp
from neuropil.spiking.membranes import (
    STEEPEST,
    AdExConstants,
    AdExNeuron,
    IzhikevichConstants,
    IzhikevichNeuron,
)

__all__ = [
    "COMPILED",
    "AdExArrays",
    "HodgkinHuxleyArrays",
    "IzhikevichArrays",
    "adex_arrays",
    "advance_adex",
    "advance_hodgkin_huxley",
    "advance_izhikevich",
    "hodgkin_huxley_arrays",
    "izhikevich_arrays",
]

C1, C2, C4, C6, C8, C10 = SERIES
RATE_18 = 1 / 18


class AdExArrays(NamedTuple):
    """State and constants of `AdExNeuron`; held is None where none are held."""

    v: np.ndarray
    w: np.ndarray
    held: np.ndarray | None
    held_steps: np.int32
    substeps: int
    rate: Any
    g_leak: Any
    leak: Any
    upstroke: Any
    v_threshold: Any
    steepness: Any
    e_leak: Any
    a: Any
    keep: Any
    b: Any
    v_peak: Any
    v_reset: Any


class IzhikevichArrays(NamedTuple):
    """State and constants of `IzhikevichNeuron`; held is None where none are held."""

    v: np.ndarray
    u: np.ndarray
    held: np.ndarray | None
    held_steps: np.int32
    half_steps: bool
    rise: Any
    recovery: Any
    b: Any
    v_reset: Any
    d: Any
    v_peak: Any


class HodgkinHuxleyArrays(NamedTuple):
    """State and constants of `HodgkinHuxleyNeuron`; held is None where every crossing counts."""

    v: np.ndarray
    m: np.ndarray
    h: np.ndarray
    n: np.ndarray
    held: np.ndarray | None
    held_steps: np.int32
    rate: Any
    step: Any
    g_leak: Any
    leak: Any
    g_sodium: Any
    sodium: Any
    g_potassium: Any
    potassium: Any
    v_traub: Any
    v_threshold: Any


def adex_arrays(neuron: AdExNeuron, state: Any, dtype: np.dtype | type) -> AdExArrays:
    """Arrays of adaptive exponential neurons.

    Args:
        neuron: whose numbers are alike for all or broadcast to the state.
        state: an `AdExState` of tensors or arrays of that type, contiguous: they are what is advanced.
        dtype: float32 or float64.

    Raises:
        ValueError: if a part of the state has another type or could not be shared.
    """
    v, w = _view("v", state.v, dtype), _view("w", state.w, dtype)
    held, last = _held(state.refractory), (np.int32(neuron.held_steps), neuron.substeps)
    constants: AdExConstants = neuron.constants(_like(dtype))
    return AdExArrays(v, w, held, *last, *_numbers(constants, state.v.shape, dtype))


def izhikevich_arrays(neuron: IzhikevichNeuron, state: Any, dtype: np.dtype | type) -> IzhikevichArrays:
    """Arrays of Izhikevich's neurons; arguments and errors as of `adex_arrays`."""
    v, u = _view("v", state.v, dtype), _view("u", state.u, dtype)
    held, last = _held(state.refractory), (np.int32(neuron.held_steps), neuron.half_steps)
    constants: IzhikevichConstants = neuron.constants(_like(dtype))
    return IzhikevichArrays(v, u, held, *last, *_numbers(constants, state.v.shape, dtype))


def hodgkin_huxley_arrays(neuron: HodgkinHuxleyNeuron, state: Any, dtype: np.dtype | type) -> HodgkinHuxleyArrays:
    """Arrays of Hodgkin-Huxley neurons; arguments and errors as of `adex_arrays`."""
    v, m, h, n = (_view(name, getattr(state, name), dtype) for name in ("v", "m", "h", "n"))
    constants: HodgkinHuxleyConstants = neuron.constants(_like(dtype))
    held, steps = _held(state.refractory), np.int32(neuron.held_steps)
    return HodgkinHuxleyArrays(v, m, h, n, held, steps, *_numbers(constants, state.v.shape, dtype))


def _like(dtype: np.dtype | type) -> torch.Tensor:
    return torch.zeros((), dtype=torch.from_numpy(np.zeros(0, dtype)).dtype)


def _view(name: str, values: Any, dtype: np.dtype | type) -> np.ndarray:
    """The values as one flat array that shares their memory."""
    array = values.detach().numpy() if isinstance(values, torch.Tensor) else values
    if array.dtype != dtype:
        raise ValueError(f"{name} must be {np.dtype(dtype)}, got {array.dtype}.")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous, so that compiled loops can share its memory.")
    return array.reshape(-1)


def _held(values: Any) -> np.ndarray | None:
    return None if values is None else _view("refractory", values, np.int32)


def _numbers(constants: tuple[Any, ...], shape: Any, dtype: np.dtype | type) -> list[Any]:
    kind = np.dtype(dtype).type
    return [
        np.ascontiguousarray(np.broadcast_to(p.detach().numpy(), tuple(shape))).reshape(-1)
        if isinstance(p, torch.Tensor)
        else kind(p)
        for p in constants
    ]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _fire(v, held, held_steps, v_peak, v_reset, fired):
    """Who fires, and who is held instead; potentials are those before the reset."""
    nothing, one = np.int32(0), np.int32(1)
    if held is None:
        for i in range(v.size):
            fired[i] = v[i] >= at(v_peak, i)
    else:
        for i in range(v.size):
            h = at(v_reset, i) if held[i] > nothing else v[i]
            fired[i] = (held[i] == nothing) & (h >= at(v_peak, i))
            v[i] = h
        for i in range(v.size):
            held[i] = held_steps if fired[i] != 0 else max(held[i] - one, nothing)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reset(v, x, v_reset, increment, fired):
    """Potentials and slow variables after the spikes."""
    one, zero = v.dtype.type(1), v.dtype.type(0)
    for i in range(v.size):
        s = one if fired[i] != 0 else zero
        v[i] = v[i] * (one - s) + at(v_reset, i) * s
        x[i] = x[i] + at(increment, i) * s


@advances(AdExArrays)
def advance_adex(m, lo, hi, drive, conductance, jump, fired):
    """One step of neurons lo..hi-1; arguments in the module's docstring."""
    v, w, fired = m.v[lo:hi], m.w[lo:hi], fired[lo:hi]
    rate, g_leak, leak, upstroke = (
        cut(m.rate, lo, hi),
        cut(m.g_leak, lo, hi),
        cut(m.leak, lo, hi),
        cut(m.upstroke, lo, hi),
    )
    v_threshold, steepness, e_leak = cut(m.v_threshold, lo, hi), cut(m.steepness, lo, hi), cut(m.e_leak, lo, hi)
    a, keep, v_peak = cut(m.a, lo, hi), cut(m.keep, lo, hi), cut(m.v_peak, lo, hi)
    half, steepest = v.dtype.type(0.5), v.dtype.type(STEEPEST)
    for _ in range(m.substeps):
        for i in range(v.size):
            y, z, peak = v[i], w[i], at(v_peak, i)
            total = at(g_leak, i) + conductance[i]
            decay, given = exp(at(rate, i) * total), at(leak, i) + drive[i]
            bounded = y if y < peak else peak
            x = (bounded - at(v_threshold, i)) * at(steepness, i)
            rise = at(upstroke, i) * exp(x if x < steepest else steepest)
            target = ((given + rise) - z) / total
            first = target + (y - target) * decay
            goal = at(a, i) * (bounded - at(e_leak, i))
            late = goal + (z - goal) * at(keep, i)
            ahead = first if first < peak else peak
            x = (ahead - at(v_threshold, i)) * at(steepness, i)
            rise = half * (rise + at(upstroke, i) * exp(x if x < steepest else steepest))
            target = ((given + rise) - half * (z + late)) / total
            v[i] = target + (y - target) * decay
            goal = at(a, i) * (half * (bounded + ahead) - at(e_leak, i))
            w[i] = goal + (z - goal) * at(keep, i)
    for i in range(v.size):
        v[i] = v[i] + jump[i]
    v_reset = cut(m.v_reset, lo, hi)
    _fire(v, cut(m.held, lo, hi), m.held_steps, v_peak, v_reset, fired)
    _reset(v, w, v_reset, cut(m.b, lo, hi), fired)


@advances(IzhikevichArrays)
def advance_izhikevich(m, lo, hi, drive, conductance, jump, fired):
    """One step of neurons lo..hi-1; arguments in the module's docstring."""
    v, u, fired = m.v[lo:hi], m.u[lo:hi], fired[lo:hi]
    rise, recovery, b = cut(m.rise, lo, hi), cut(m.recovery, lo, hi), cut(m.b, lo, hi)
    v_peak, v_reset = cut(m.v_peak, lo, hi), cut(m.v_reset, lo, hi)
    kind = v.dtype.type
    one, square, linear, offset = kind(1), kind(0.04), kind(5), kind(140)
    if m.half_steps:
        for i in range(v.size):
            y, z, k = v[i], u[i], at(rise, i)
            damping = one + k * conductance[i]
            y = (y + k * ((((square * y + linear) * y + offset) - z) + drive[i])) / damping
            y = (y + k * ((((square * y + linear) * y + offset) - z) + drive[i])) / damping
            u[i] = z + at(recovery, i) * (at(b, i) * y - z)
            v[i] = y + jump[i]
    else:
        for i in range(v.size):
            y, z, k = v[i], u[i], at(rise, i)
            h = (y + k * ((((square * y + linear) * y + offset) - z) + drive[i])) / (one + k * conductance[i])
            u[i] = z + at(recovery, i) * (at(b, i) * y - z)
            v[i] = h + jump[i]
    _fire(v, cut(m.held, lo, hi), m.held_steps, v_peak, v_reset, fired)
    _reset(v, u, v_reset, cut(m.d, lo, hi), fired)


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _ratio(x, like):
    """The function f of the rates, x / (exp(x) - 1), which is 1 at x = 0."""
    kind = like.dtype.type
    near = (x < kind(NEAR)) & (x > kind(-NEAR))
    y = x * x
    series = (((kind(C10) * y + kind(C8)) * y + kind(C6)) * y + kind(C4)) * y + kind(C2)
    away = kind(1) if near else x
    quotient = away / (exp(away) - kind(1))
    return (kind(C1) * x + kind(1)) + series * y if near else quotient


@numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _relax(gate, alpha, beta, step):
    """A gate after a step of constant rates; step is -dt."""
    total = alpha + beta
    target = alpha / total
    return target + (gate - target) * exp(step * total)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _relax_gates(v, v_traub, step, m, h, n):
    """The three gates, each in a loop of its own."""
    kind = v.dtype.type
    for i in range(v.size):
        x = v[i] - at(v_traub, i)
        alpha, beta = (
            kind(1.28) * _ratio((kind(13) - x) * kind(0.25), v),
            kind(1.4) * _ratio((x - kind(40)) * kind(0.2), v),
        )
        m[i] = _relax(m[i], alpha, beta, step)
    for i in range(v.size):
        x = v[i] - at(v_traub, i)
        alpha = kind(0.128) * exp((kind(17) - x) * kind(RATE_18))
        beta = kind(4) / (kind(1) + exp((kind(40) - x) * kind(0.2)))
        h[i] = _relax(h[i], alpha, beta, step)
    for i in range(v.size):
        x = v[i] - at(v_traub, i)
        alpha, beta = kind(0.16) * _ratio((kind(15) - x) * kind(0.2), v), kind(0.5) * exp((kind(10) - x) * kind(0.025))
        n[i] = _relax(n[i], alpha, beta, step)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _count(v, held, held_steps, threshold, fired):
    """Who of those that `fired` says were below the threshold is above it now, and may count."""
    nothing, one = np.int32(0), np.int32(1)
    if held is None:
        for i in range(v.size):
            fired[i] = (fired[i] != 0) & (v[i] >= at(threshold, i))
    else:
        for i in range(v.size):
            fired[i] = (fired[i] != 0) & (held[i] == nothing) & (v[i] >= at(threshold, i))
        for i in range(v.size):
            held[i] = held_steps if fired[i] != 0 else max(held[i] - one, nothing)


@advances(HodgkinHuxleyArrays)
def advance_hodgkin_huxley(m, lo, hi, drive, conductance, jump, fired):
    """One step of neurons lo..hi-1; arguments in the module's docstring."""
    v, fired, held = m.v[lo:hi], fired[lo:hi], cut(m.held, lo, hi)
    gate_m, gate_h, gate_n = m.m[lo:hi], m.h[lo:hi], m.n[lo:hi]
    _relax_gates(v, cut(m.v_traub, lo, hi), m.step, gate_m, gate_h, gate_n)
    threshold = cut(m.v_threshold, lo, hi)
    for i in range(v.size):
        fired[i] = v[i] < at(threshold, i)
    rate, g_leak, leak = cut(m.rate, lo, hi), cut(m.g_leak, lo, hi), cut(m.leak, lo, hi)
    g_sodium, in_sodium = cut(m.g_sodium, lo, hi), cut(m.sodium, lo, hi)
    g_potassium, in_potassium = cut(m.g_potassium, lo, hi), cut(m.potassium, lo, hi)
    for i in range(v.size):
        sodium = gate_m[i] * gate_m[i] * gate_m[i] * gate_h[i]
        potassium = gate_n[i] * gate_n[i] * (gate_n[i] * gate_n[i])
        total = ((at(g_leak, i) + at(g_sodium, i) * sodium) + at(g_potassium, i) * potassium) + conductance[i]
        target = (((at(leak, i) + at(in_sodium, i) * sodium) + at(in_potassium, i) * potassium) + drive[i]) / total
        v[i] = (target + (v[i] - target) * exp(at(rate, i) * total)) + jump[i]
    _count(v, held, m.held_steps, threshold, fired)


COMPILED: dict[type, tuple[Callable[..., Any], type, Callable[..., None]]] = {
    AdExNeuron: (adex_arrays, AdExArrays, advance_adex),
    IzhikevichNeuron: (izhikevich_arrays, IzhikevichArrays, advance_izhikevich),
    HodgkinHuxleyNeuron: (hodgkin_huxley_arrays, HodgkinHuxleyArrays, advance_hodgkin_huxley),
}
"""Builder of the arrays, their tuple, and the function that advances them, of each model."""
