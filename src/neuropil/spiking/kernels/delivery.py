"""Arrivals: the rows of neurons that fired are added to the receptors of their targets."""

from typing import Any, NamedTuple

import numpy as np

from .connectivity import row_next, row_start
from .engine import Spikes, at, operation, scaled
from .prefetch import prefetch

__all__ = ["Delivery", "RowDelivery", "SlotDelivery"]


AHEAD = 2
"""Rows by which memory is asked for before it is needed."""


class Delivery(NamedTuple):
    """Spikes emitted `delay` steps ago reach `target`, the receptor variable of the posts.

    Sources are the neurons first, ..., first + len(offsets) - 1 of their population. offsets (n_pre, parts + 1): where
    the row of a source passes the bounds of the threads. factor: of each source, or None.
    """

    spikes: Spikes
    first: Any
    delay: Any
    offsets: np.ndarray
    indices: np.ndarray
    weight: Any
    factor: Any
    target: np.ndarray


class SlotDelivery(NamedTuple):
    """Spikes emitted in the last step are put into the slots (L, n_post) of the steps in which they arrive."""

    spikes: Spikes
    first: Any
    delays: np.ndarray
    offsets: np.ndarray
    indices: np.ndarray
    weight: Any
    factor: Any
    slots: np.ndarray


class RowDelivery(NamedTuple):
    """As `Delivery`, the rows made again whenever they are needed; a thread keeps what lies within its bounds."""

    spikes: Spikes
    first: Any
    delay: Any
    n_pre: Any
    n_post: Any
    seed: Any
    scale: Any
    without_self: Any
    bounds: np.ndarray
    weight: Any
    factor: Any
    target: np.ndarray


@operation(Delivery)
def deliver(op, k, row, part):
    spikes, last, indices, target = op.spikes, op.offsets.shape[0], op.indices, op.target
    slot = (k - op.delay) % spikes.ring.shape[0]
    for q in range(spikes.counts.shape[1]):
        base = spikes.bounds[q]
        end = base + spikes.counts[slot, q]
        for m in range(base, end):
            if m + AHEAD < end:
                later = spikes.ring[slot, m + AHEAD] - op.first
                if 0 <= later < last:
                    prefetch(indices, op.offsets[later, part], op.offsets[later, part + 1])
            i = spikes.ring[slot, m] - op.first
            if 0 <= i < last:
                for s in range(op.offsets[i, part], op.offsets[i, part + 1]):
                    target[indices[s]] += scaled(at(op.weight, s), op.factor, i)


@operation(SlotDelivery)
def deliver_to_slots(op, k, row, part):
    spikes, last, length = op.spikes, op.offsets.shape[0], op.slots.shape[0]
    slot = (k - 1) % spikes.ring.shape[0]
    for q in range(spikes.counts.shape[1]):
        base = spikes.bounds[q]
        for m in range(base, base + spikes.counts[slot, q]):
            i = spikes.ring[slot, m] - op.first
            if 0 <= i < last:
                for s in range(op.offsets[i, part], op.offsets[i, part + 1]):
                    w = scaled(at(op.weight, s), op.factor, i)
                    op.slots[(k - 1 + op.delays[s]) % length, op.indices[s]] += w


@operation(RowDelivery)
def deliver_rows(op, k, row, part):
    spikes, target = op.spikes, op.target
    slot, low, high = (k - op.delay) % spikes.ring.shape[0], op.bounds[part], op.bounds[part + 1]
    for q in range(spikes.counts.shape[1]):
        base = spikes.bounds[q]
        for m in range(base, base + spikes.counts[slot, q]):
            i = spikes.ring[slot, m] - op.first
            if 0 <= i < op.n_pre:
                w = scaled(op.weight, op.factor, i)
                skip = i if op.without_self else -1
                state, j = row_next(row_start(op.seed, i), np.int64(-1), op.scale, op.n_post, skip)
                while j < high:
                    if j >= low:
                        target[j] += w
                    state, j = row_next(state, j, op.scale, op.n_post, skip)
