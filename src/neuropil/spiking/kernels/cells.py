"""Neurons of the engine: receptors drive them, they integrate, who fires is entered into the ring.

The neurons of a thread are taken in tiles that stay in the first cache: receptors fill the tile's drive, conductance
and jump, then the model advances, each loop over a tile without a branch, so that it becomes vector code.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import overload

from .engine import Spikes, at, cut, operation, scaled
from .exponential import exp

__all__ = [
    "ADVANCE",
    "Cells",
    "GivenCells",
    "LIFArrays",
    "LIFConductanceArrays",
    "Linear",
    "ToConductance",
    "ToCurrent",
    "ToJump",
    "ToMagnesium",
]

TILE = 1024
TINY = 1e-30
"""Smaller conductances become 0: what decays for long would end among denormal numbers, which are slow."""

ADVANCE = {}
"""The function (model, lo, hi, drive, conductance, jump, fired) that advances the arrays of each neuron model."""
FILL = {}
"""The function (receptor, k, lo, hi, v, drive, conductance, jump) of each kind of receptor."""


class Cells(NamedTuple):
    """A population; scratch (parts, 3, TILE) holds the tile's drive, conductance and jump."""

    model: tuple
    receptors: tuple
    bias: Any
    external: Any
    scratch: np.ndarray
    fired: np.ndarray
    spikes: Spikes


class GivenCells(NamedTuple):
    """Sources that fire when they are told: steps and neurons (m,), sorted by both."""

    steps: np.ndarray
    neurons: np.ndarray
    spikes: Spikes


class Linear(NamedTuple):
    """Variables of a linear receptor, g (n,) and x (n,) or None; symbols of `synapses.Propagator`.

    slots (L, n) hold arrivals to come, or None; scale (n,) multiplies what the neuron receives, or None.
    """

    g: np.ndarray
    x: Any
    slots: Any
    scale: Any
    decay: Any
    inflow: Any
    decay_x: Any


class ToJump(NamedTuple):
    """A receptor whose exact contribution is added to the potential."""

    linear: Linear
    gain: Any
    gain_x: Any


class ToCurrent(NamedTuple):
    """A receptor whose g is a current."""

    linear: Linear


class ToConductance(NamedTuple):
    """A receptor whose g is a conductance with a reversal potential."""

    linear: Linear
    reversal: Any


class ToMagnesium(NamedTuple):
    """As `ToConductance`, blocked by magnesium; block is [Mg]/3.57."""

    linear: Linear
    reversal: Any
    block: Any


class LIFArrays(NamedTuple):
    """Leaky integrate-and-fire neurons without conductances: symbols of `neurons`; held is None where none are held."""

    v: np.ndarray
    held: Any
    a: Any
    k: Any
    rest: Any
    threshold: Any
    floor: Any
    held_steps: Any
    amount: Any
    reset: Any


class LIFConductanceArrays(NamedTuple):
    """The same under conductances; rate is -dt/tau."""

    v: np.ndarray
    held: Any
    rate: Any
    rest: Any
    threshold: Any
    floor: Any
    held_steps: Any
    amount: Any
    reset: Any


def fills(structure: type):
    """Decorate the function that fills a tile from a kind of receptor."""

    def register(function):
        FILL[structure] = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
        return FILL[structure]

    return register


def advances(structure: type):
    """Decorate the function that advances the arrays of a neuron model."""

    def register(function):
        ADVANCE[structure] = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
        return ADVANCE[structure]

    return register


@numba.njit(cache=True, nogil=True)
def _take_slots(slots, y, k, lo, hi):
    """Arrivals of this step from the slots, into the variable that takes them."""
    if slots is not None:
        arrived = slots[k % slots.shape[0], lo:hi]
        for i in range(y.size):
            y[i] += arrived[i]
            arrived[i] = 0


@numba.njit(cache=True, nogil=True)
def _arrivals(r, k, lo, hi):
    """The part of the receptor for a tile, arrivals from the slots included: g, x and scale."""
    g, x = cut(r.g, lo, hi), cut(r.x, lo, hi)
    _take_slots(r.slots, _taker(g, x), k, lo, hi)
    return g, x, cut(r.scale, lo, hi)


def _taker(g, x):
    """The variable that takes arrivals: x, or g where there is none."""
    return g if x is None else x


@overload(_taker)
def _take(g, x):
    if x == types.none:
        return lambda g, x: g
    return lambda g, x: x


@numba.njit(cache=True, nogil=True)
def _decay(g, x, decay, inflow, decay_x):
    """The receptor's variables after the step."""
    tiny, zero = g.dtype.type(TINY), g.dtype.type(0)
    if x is None:
        for i in range(g.size):
            y = decay * g[i]
            g[i] = y if abs(y) >= tiny else zero
    else:
        for i in range(g.size):
            y = decay * g[i] + inflow * x[i]
            z = decay_x * x[i]
            g[i] = y if abs(y) >= tiny else zero
            x[i] = z if abs(z) >= tiny else zero


@numba.njit(cache=True, nogil=True)
def _gain_and_decay(g, x, scale, gain, gain_x, decay, inflow, decay_x, jump):
    """Add the exact contribution of a receptor to the potential, and let it decay."""
    tiny, zero = g.dtype.type(TINY), g.dtype.type(0)
    if x is None:
        for i in range(g.size):
            jump[i] += scaled(gain * g[i], scale, i)
            y = decay * g[i]
            g[i] = y if abs(y) >= tiny else zero
    else:
        for i in range(g.size):
            jump[i] += scaled(gain * g[i] + gain_x * x[i], scale, i)
        _decay(g, x, decay, inflow, decay_x)


@fills(ToJump)
def fill_jump(r, k, lo, hi, v, drive, conductance, jump):
    g, x, scale = _arrivals(r.linear, k, lo, hi)
    _gain_and_decay(g, x, scale, r.gain, r.gain_x, r.linear.decay, r.linear.inflow, r.linear.decay_x, jump)


@fills(ToCurrent)
def fill_current(r, k, lo, hi, v, drive, conductance, jump):
    g, x, scale = _arrivals(r.linear, k, lo, hi)
    for i in range(g.size):
        drive[i] += scaled(g[i], scale, i)
    _decay(g, x, r.linear.decay, r.linear.inflow, r.linear.decay_x)


@fills(ToConductance)
def fill_conductance(r, k, lo, hi, v, drive, conductance, jump):
    g, x, scale = _arrivals(r.linear, k, lo, hi)
    reversal = r.reversal
    for i in range(g.size):
        y = scaled(g[i], scale, i)
        conductance[i] += y
        drive[i] += y * reversal
    _decay(g, x, r.linear.decay, r.linear.inflow, r.linear.decay_x)


@fills(ToMagnesium)
def fill_magnesium(r, k, lo, hi, v, drive, conductance, jump):
    g, x, scale = _arrivals(r.linear, k, lo, hi)
    v, one, slope, reversal, block = v[lo:hi], g.dtype.type(1), g.dtype.type(-0.062), r.reversal, r.block
    for i in range(g.size):
        y = scaled(g[i], scale, i) / (one + block * exp(slope * v[i]))
        conductance[i] += y
        drive[i] += y * reversal
    _decay(g, x, r.linear.decay, r.linear.inflow, r.linear.decay_x)


@numba.njit(cache=True, nogil=True)
def _fire(h, v, held, threshold, floor, held_steps, amount, reset, fired):
    """Hold, fire and reset the neurons of a tile, whose potentials before the reset are h."""
    if reset == 0:
        _fire_hard(h, v, held, threshold, floor, held_steps, fired)
        return
    zero, nothing, one = v.dtype.type(0), np.int32(0), np.int32(1)
    if held is not None:
        for i in range(v.size):
            left = held[i]
            y = floor if left > nothing else h[i]
            spike = (left == nothing) & (y >= at(threshold, i))
            h[i] = y
            fired[i] = spike
            held[i] = held_steps if spike else max(left - one, nothing)
    else:
        for i in range(v.size):
            fired[i] = h[i] >= at(threshold, i)
    if reset == 1:
        for i in range(v.size):
            v[i] = h[i] - (at(amount, i) if fired[i] else zero)
    else:
        for i in range(v.size):
            v[i] = h[i]


@numba.njit(cache=True, nogil=True)
def _fire_hard(h, v, held, threshold, floor, held_steps, fired):
    """The same with a hard reset, in one loop: what large networks spend their time in."""
    nothing, one = np.int32(0), np.int32(1)
    if held is not None:
        for i in range(v.size):
            left = held[i]
            free = left == nothing
            spike = free & (h[i] >= at(threshold, i))
            v[i] = h[i] if free & (not spike) else floor
            held[i] = held_steps if spike else max(left - one, nothing)
            fired[i] = spike
    else:
        for i in range(v.size):
            spike = h[i] >= at(threshold, i)
            v[i] = floor if spike else h[i]
            fired[i] = spike


@advances(LIFArrays)
def advance_lif(m, lo, hi, drive, conductance, jump, fired):
    # The tile's drive is not needed any more once it has become the potential.
    v, held, a, k, rest = m.v[lo:hi], cut(m.held, lo, hi), cut(m.a, lo, hi), cut(m.k, lo, hi), cut(m.rest, lo, hi)
    for i in range(v.size):
        h = at(a, i) * v[i] + at(k, i) * drive[i]
        drive[i] = (h + at(rest, i)) + jump[i]
    threshold, amount = cut(m.threshold, lo, hi), cut(m.amount, lo, hi)
    _fire(drive, v, held, threshold, m.floor, m.held_steps, amount, m.reset, fired[lo:hi])


@advances(LIFConductanceArrays)
def advance_lif_conductance(m, lo, hi, drive, conductance, jump, fired):
    v, held, rest, rate, one = m.v[lo:hi], cut(m.held, lo, hi), m.rest, cut(m.rate, lo, hi), m.v.dtype.type(1)
    for i in range(v.size):
        total = one + conductance[i]
        target = (rest + drive[i]) / total
        drive[i] = (target + (v[i] - target) * exp(at(rate, i) * total)) + jump[i]
    threshold, amount = cut(m.threshold, lo, hi), cut(m.amount, lo, hi)
    _fire(drive, v, held, threshold, m.floor, m.held_steps, amount, m.reset, fired[lo:hi])


def advance(model, lo, hi, drive, conductance, jump, fired):
    """Advance neurons lo, ..., hi - 1."""
    ADVANCE[type(model)](model, lo, hi, drive, conductance, jump, fired)


@overload(advance)
def _advance(model, lo, hi, drive, conductance, jump, fired):
    function = ADVANCE[model.instance_class]

    def call(model, lo, hi, drive, conductance, jump, fired):
        function(model, lo, hi, drive, conductance, jump, fired)

    return call


def fill(receptors, k, lo, hi, v, drive, conductance, jump):
    """Let every receptor fill the tile, in order."""
    for receptor in receptors:
        FILL[type(receptor)](receptor, k, lo, hi, v, drive, conductance, jump)


@overload(fill)
def _fill(receptors, k, lo, hi, v, drive, conductance, jump):
    if len(receptors) == 0:
        return lambda receptors, k, lo, hi, v, drive, conductance, jump: None
    function = FILL[receptors[0].instance_class]

    def several(receptors, k, lo, hi, v, drive, conductance, jump):
        function(receptors[0], k, lo, hi, v, drive, conductance, jump)
        fill(receptors[1:], k, lo, hi, v, drive, conductance, jump)

    return several


@operation(Cells)
def advance_cells(op, k, row, part):
    lo, hi = op.spikes.bounds[part], op.spikes.bounds[part + 1]
    drive, conductance, jump = op.scratch[part, 0], op.scratch[part, 1], op.scratch[part, 2]
    for start in range(lo, hi, TILE):
        stop = min(start + TILE, hi)
        _begin(op.bias, op.external, row, start, stop, drive, conductance, jump)
        fill(op.receptors, k, start, stop, op.model.v, drive, conductance, jump)
        advance(op.model, start, stop, drive, conductance, jump, op.fired)
    _enter(op.fired, op.spikes, k, part)


@numba.njit(cache=True, nogil=True)
def _begin(bias, external, row, lo, hi, drive, conductance, jump):
    """The tile before any receptor: constant and given currents."""
    bias = cut(bias, lo, hi)
    for i in range(hi - lo):
        drive[i] = at(bias, i)
        conductance[i] = 0
        jump[i] = 0
    if external is not None:
        given = external[row, lo:hi]
        for i in range(hi - lo):
            drive[i] += given[i]


@numba.njit(cache=True, nogil=True)
def _enter(fired, spikes, k, part):
    """Enter who fired into the ring; eight neurons without a spike are passed at once."""
    base, end = spikes.bounds[part], spikes.bounds[part + 1]
    slot, words, n = k % spikes.ring.shape[0], fired.view(np.uint64), 0
    entries = spikes.ring[slot]
    # Bounds between threads are multiples of eight, and `fired` is filled up with zeros to one.
    for word in range(base // 8, (end + 7) // 8):
        if words[word] != 0:
            for i in range(word * 8, word * 8 + 8):
                if fired[i] != 0:
                    entries[base + n] = i
                    n += 1
    spikes.counts[slot, part] = n


@operation(GivenCells)
def fire_given(op, k, row, part):
    spikes = op.spikes
    slot, base, end, n = k % spikes.ring.shape[0], spikes.bounds[part], spikes.bounds[part + 1], 0
    for m in range(np.searchsorted(op.steps, k), np.searchsorted(op.steps, k + 1)):
        if base <= op.neurons[m] < end:
            spikes.ring[slot, base + n] = op.neurons[m]
            n += 1
    spikes.counts[slot, part] = n
