"""What a run keeps of a step: who fired, how many fired, and samples of state variables."""

from typing import Any, NamedTuple

import numpy as np

from .engine import Spikes, operation

__all__ = ["RecordCounts", "RecordSpikes", "Sample"]


class RecordCounts(NamedTuple):
    """Numbers of spikes, counts (steps,)."""

    spikes: Spikes
    counts: np.ndarray


class RecordSpikes(NamedTuple):
    """The neurons that fired, one step after another: neurons (capacity,), counts (steps,), filled (1,).

    The capacity is what all neurons would need if they fired in every step; memory is used as it is filled.
    """

    spikes: Spikes
    neurons: np.ndarray
    counts: np.ndarray
    filled: np.ndarray


class Sample(NamedTuple):
    """Values of some neurons in every `every`-th step: values (rows, m); first is the row of step 0, negative or 0."""

    source: np.ndarray
    chosen: np.ndarray
    every: Any
    first: Any
    values: np.ndarray


@operation(RecordCounts)
def record_counts(op, k, row, part):
    op.counts[row] = op.spikes.counts[k % op.spikes.ring.shape[0]].sum()


@operation(RecordSpikes)
def record_spikes(op, k, row, part):
    spikes = op.spikes
    slot, end = k % spikes.ring.shape[0], op.filled[0]
    start = end
    for q in range(spikes.counts.shape[1]):
        base = spikes.bounds[q]
        for m in range(base, base + spikes.counts[slot, q]):
            op.neurons[end] = spikes.ring[slot, m]
            end += 1
    op.counts[row] = end - start
    op.filled[0] = end


@operation(Sample)
def sample(op, k, row, part):
    if part == 0 and k % op.every == 0:
        out = op.values[k // op.every + op.first]
        for m in range(op.chosen.size):
            out[m] = op.source[op.chosen[m]]
