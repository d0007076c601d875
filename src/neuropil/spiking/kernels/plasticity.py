"""Spike-timing-dependent plasticity in the engine; equations in `network.plasticity`.

Weights are updated before the traces take this step's spikes in, so the two loops do not depend on each other's order.
"""

from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import overload

from .engine import Spikes, operation
from .exponential import exp

__all__ = ["Eligibility", "TraceStep", "WeightUpdate"]


class Eligibility(NamedTuple):
    """Eligibility traces (nnz,) with the step of their last change; rate is -dt/tau."""

    value: np.ndarray
    last: np.ndarray
    rate: Any


class WeightUpdate(NamedTuple):
    """Arrivals depress by the posts' traces, spikes of posts potentiate by the sources' traces.

    r1, r2 (n_pre,) and o1, o2 (n_post,): traces of the triplet rule, r2 and o2 None in the pair rule. eligibility:
    where updates go instead of the weights, or None. rows, synapses: incoming synapses by csc_indptr.
    """

    pre: Spikes
    post: Spikes
    first: Any
    first_post: Any
    delay: Any
    offsets: np.ndarray
    indices: np.ndarray
    csc_indptr: np.ndarray
    rows: np.ndarray
    synapses: np.ndarray
    weight: np.ndarray
    eligibility: Any
    r1: np.ndarray
    r2: Any
    o1: np.ndarray
    o2: Any
    potentiation: Any
    potentiation3: Any
    depression: Any
    depression3: Any
    low: Any
    high: Any


class TraceStep(NamedTuple):
    """A trace (n,) takes the spikes of `lag` steps ago in, then decays; nearest: it is set to 1 instead of raised."""

    spikes: Spikes
    first: Any
    lag: Any
    trace: np.ndarray
    decay: Any
    nearest: Any


def amount(first, third, pair, triplet, i, j):
    """How much a synapse changes: first pair, or first (pair + triplet third) with the traces of i and j."""
    return pair * first[i] if third is None else first[i] * (pair + triplet * third[j])


@overload(amount)
def _amount(first, third, pair, triplet, i, j):
    if third == types.none:
        return lambda first, third, pair, triplet, i, j: pair * first[i]
    return lambda first, third, pair, triplet, i, j: first[i] * (pair + triplet * third[j])


def change(weight, eligibility, s, by, k, low, high):
    """Change a weight within its bounds, or its eligibility where there is one."""
    if eligibility is None:
        weight[s] = min(max(weight[s] + by, low), high)
    else:
        passed = weight.dtype.type(k - eligibility.last[s])
        eligibility.value[s] = eligibility.value[s] * exp(eligibility.rate * passed) + by
        eligibility.last[s] = k


@overload(change)
def _change(weight, eligibility, s, by, k, low, high):
    if eligibility == types.none:

        def bounded(weight, eligibility, s, by, k, low, high):
            weight[s] = min(max(weight[s] + by, low), high)

        return bounded

    def eligible(weight, eligibility, s, by, k, low, high):
        passed = weight.dtype.type(k - eligibility.last[s])
        eligibility.value[s] = eligibility.value[s] * exp(eligibility.rate * passed) + by
        eligibility.last[s] = k

    return eligible


@operation(WeightUpdate)
def update_weights(op, k, row, part):
    _depress(op, k, part)
    _potentiate(op, k, part)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _depress(op, k, part):
    """Arrivals of this step, at the targets of this thread."""
    pre, n_pre = op.pre, op.offsets.shape[0]
    slot = (k - op.delay) % pre.ring.shape[0]
    for q in range(pre.counts.shape[1]):
        base = pre.bounds[q]
        for m in range(base, base + pre.counts[slot, q]):
            i = pre.ring[slot, m] - op.first
            if 0 <= i < n_pre:
                for s in range(op.offsets[i, part], op.offsets[i, part + 1]):
                    by = amount(op.o1, op.r2, op.depression, op.depression3, op.indices[s], i)
                    change(op.weight, op.eligibility, s, -by, k, op.low, op.high)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _potentiate(op, k, part):
    """Spikes of this step, of the posts of this thread."""
    post, n_post = op.post, op.csc_indptr.size - 1
    slot, base = k % post.ring.shape[0], post.bounds[part]
    for m in range(base, base + post.counts[slot, part]):
        j = post.ring[slot, m] - op.first_post
        if 0 <= j < n_post:
            for q in range(op.csc_indptr[j], op.csc_indptr[j + 1]):
                by = amount(op.r1, op.o2, op.potentiation, op.potentiation3, op.rows[q], j)
                change(op.weight, op.eligibility, op.synapses[q], by, k, op.low, op.high)


@operation(TraceStep)
def step_trace(op, k, row, part):
    spikes, one, tiny = op.spikes, op.trace.dtype.type(1), op.trace.dtype.type(1e-30)
    slot, base, n = (k - op.lag) % spikes.ring.shape[0], spikes.bounds[part], op.trace.size
    for m in range(base, base + spikes.counts[slot, part]):
        i = spikes.ring[slot, m] - op.first
        if 0 <= i < n:
            op.trace[i] = one if op.nearest else op.trace[i] + one
    lo, hi = max(base - op.first, 0), min(spikes.bounds[part + 1] - op.first, n)
    trace, decay = op.trace[lo : max(hi, lo)], op.decay
    for i in range(trace.size):
        y = decay * trace[i]
        trace[i] = y if y >= tiny else one - one
