"""The loops of `train_boltzmann`, whose module has the equations, compiled by numba."""

import math

import numba
import numpy as np

__all__ = ["run_phases"]

REASSOCIATE = {"reassoc", "contract", "nsz"}  # sums in any order, so that they run in parallel lanes


@numba.njit(cache=True, inline="always")
def _coin(uniform, log_odds):
    return 1.0 if uniform < 1.0 / (1.0 + math.exp(-log_odds)) else 0.0


@numba.njit(cache=True, fastmath=REASSOCIATE)
def _draw_hidden(w, b, v, h, uniform, at):
    for i in range(h.size):
        drive = b[i]
        row = w[i]
        for j in range(v.size):
            drive += row[j] * v[j]
        h[i] = _coin(uniform[at + i], drive)
    return at + h.size


@numba.njit(cache=True, fastmath=REASSOCIATE)
def _draw_visible(w, c, h, v, uniform, at):
    """Writes the drives into v first, then the coins over them."""
    v[:] = c
    for i in range(h.size):
        if h[i] > 0.0:  # half of the rows are silent
            row = w[i]
            for j in range(v.size):
                v[j] += row[j]
    for j in range(v.size):
        v[j] = _coin(uniform[at + j], v[j])
    return at + v.size


@numba.njit(cache=True)
def _learn(w, b, c, visible_bias, h, v, amount):
    for i in range(h.size):
        if h[i] > 0.0:
            b[i] += amount
            row = w[i]
            for j in range(v.size):
                row[j] += amount * v[j]
    if visible_bias:
        for j in range(v.size):
            c[j] += amount * v[j]


@numba.njit(cache=True)
def run_phases(w, b, c, visible_bias, data, cursor, v, signs, amounts, lengths, per_step, stored, uniform):
    """Go through the phases; weights w (hidden, visible), biases and the chain v change in place.

    `amounts`: rate times weight, and times the step's share where learning is `per_step`. `stored`: a positive phase
    is kept and learnt together with the negative one that follows.

    Returns:
        The row of the data that comes next.
    """
    h, at = np.zeros(b.size), 0
    h_kept, v_kept, amount_kept = np.zeros(b.size), np.zeros(v.size), 0.0
    for phase in range(signs.size):
        amount = amounts[phase]
        if signs[phase] > 0:
            v[:] = data[cursor]
            cursor = (cursor + 1) % data.shape[0]
        if per_step:
            for _ in range(lengths[phase]):
                if signs[phase] < 0:
                    at = _draw_hidden(w, b, v, h, uniform, at)
                    at = _draw_visible(w, c, h, v, uniform, at)
                at = _draw_hidden(w, b, v, h, uniform, at)
                _learn(w, b, c, visible_bias, h, v, amount)
            continue
        if signs[phase] < 0:
            for _ in range(lengths[phase]):
                at = _draw_hidden(w, b, v, h, uniform, at)
                at = _draw_visible(w, c, h, v, uniform, at)
        at = _draw_hidden(w, b, v, h, uniform, at)
        if stored and signs[phase] > 0:
            h_kept[:] = h
            v_kept[:] = v
            amount_kept = amount
            continue
        if stored:
            _learn(w, b, c, visible_bias, h_kept, v_kept, amount_kept)
        _learn(w, b, c, visible_bias, h, v, amount)
    return cursor
