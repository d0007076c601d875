"""Poisson numbers of arrivals and Poisson spikes, drawn by counter: number i of step k depends on the seed alone."""

from typing import Any, NamedTuple

import numba
import numpy as np

from neuropil.draws import GOLDEN, UNIT, mix, stream

from .engine import Spikes, at, operation

__all__ = ["PoissonArrivals", "PoissonCells", "count_of", "poisson_counts", "poisson_spikes", "poisson_table"]

LIMIT = 500.0
"""Largest mean of a step: exp(-mean) must stay a normal number."""


class PoissonArrivals(NamedTuple):
    """Independent Poisson numbers of arrivals in every step, each adding `weight` to `target`.

    mean: (n,) of each neuron, float64, or None where one table serves all: cumulative (m,) uint32, P(count <= i) scaled
    to 2^32, and guide (256,) uint32, the smallest count of the uniforms with this first byte.
    """

    seed: Any
    mean: Any
    cumulative: np.ndarray
    guide: np.ndarray
    weight: Any
    target: np.ndarray
    bounds: np.ndarray


class PoissonCells(NamedTuple):
    """Sources that fire with a probability per step, all the same or each its own."""

    seed: Any
    probability: Any
    spikes: Spikes


def poisson_table(mean: float) -> tuple[np.ndarray, np.ndarray]:
    """The table of one mean: cumulative probabilities scaled to 2^32, and the guide by first byte."""
    probabilities = [np.exp(-mean)]
    while sum(probabilities) < 1.0 - 2.0**-33 and len(probabilities) < 4 * mean + 64:
        probabilities.append(probabilities[-1] * mean / len(probabilities))
    cumulative = np.minimum(np.cumsum(probabilities) * 2.0**32, 2.0**32 - 1).astype(np.uint32)
    cumulative[-1] = np.uint32(2**32 - 1)
    guide = np.searchsorted(cumulative, np.arange(256, dtype=np.uint64) << np.uint64(24), side="right")
    return cumulative, guide.astype(np.uint32)


@numba.njit(cache=True, nogil=True)
def count_of(mean, cumulative, guide, state, i):
    """Number of arrivals at neuron i from the state of the step's stream."""
    bits = mix(state + np.uint64(i + 1) * GOLDEN)
    if mean is None:
        u = np.uint32(bits >> np.uint64(32))
        count = np.int64(guide[u >> np.uint32(24)])
        # The last entry is the largest number there is: its equal ends the search too.
        while u >= cumulative[count] and count < cumulative.size - 1:
            count += 1
        return count
    x = np.float64(bits >> np.uint64(11)) * UNIT
    p = np.exp(-mean[i])
    total, count = p, 0
    while x >= total and p > 0.0:
        count += 1
        p *= mean[i] / count
        total += p
    return count


@operation(PoissonArrivals)
def arrive(op, k, row, part):
    state = stream(op.seed, k)
    target = op.target
    for i in range(op.bounds[part], op.bounds[part + 1]):
        count = count_of(op.mean, op.cumulative, op.guide, state, i)
        target[i] += at(op.weight, i) * target.dtype.type(count)


@operation(PoissonCells)
def fire(op, k, row, part):
    state, spikes = stream(op.seed, k), op.spikes
    slot, base, n = k % spikes.ring.shape[0], spikes.bounds[part], 0
    for i in range(base, spikes.bounds[part + 1]):
        if np.float64(mix(state + np.uint64(i + 1) * GOLDEN) >> np.uint64(11)) * UNIT < at(op.probability, i):
            spikes.ring[slot, base + n] = i
            n += 1
    spikes.counts[slot, part] = n


@numba.njit(cache=True, nogil=True)
def poisson_counts(seed, mean, cumulative, guide, k, n):
    """Numbers of arrivals of a step at n neurons, (n,): what the compiled engine adds."""
    state = stream(seed, k)
    counts = np.empty(n, np.int64)
    for i in range(n):
        counts[i] = count_of(mean, cumulative, guide, state, i)
    return counts


@numba.njit(cache=True, nogil=True)
def poisson_spikes(seed, probability, k, n):
    """Which of n sources fire in a step, (n,) booleans: what the compiled engine lets fire."""
    state = stream(seed, k)
    fired = np.empty(n, np.bool_)
    for i in range(n):
        u = np.float64(mix(state + np.uint64(i + 1) * GOLDEN) >> np.uint64(11)) * UNIT
        fired[i] = u < at(probability, i)
    return fired
