"""The random graph of `graph`, whose docstring has its definition, compiled by numba."""

import numba
import numpy as np

from neuropil.draws import GOLDEN, UNIT, mix, stream, uniform

__all__ = ["count_targets", "find_pairs", "mix", "random_subsets"]


@numba.njit(cache=True, inline="always")
def _skip(state, scale, limit):
    """Absent synapses before the next one: geometric, by inversion, cut at `limit` so that it fits an integer."""
    gap = np.log(uniform(state)) * scale
    return np.int64(gap) if gap < limit else np.int64(limit)


@numba.njit(cache=True)
def count_targets(seed, rows, p, step, counts):
    """Add `step` to counts[j] for every synapse from a row to j."""
    n = counts.size
    scale = 1.0 / np.log1p(-p) if p < 1.0 else 0.0
    for row in rows:
        state = stream(seed, row)
        j = np.int64(-1)
        while True:
            state += GOLDEN
            j += 1 + _skip(state, scale, n)
            if j >= n:
                break
            counts[j] += step


@numba.njit(cache=True)
def find_pairs(seed, rows, p, marked, size):
    """Synapses from the rows to marked columns: (row, column), in order; `size` is a first guess of their number."""
    n = marked.size
    scale = 1.0 / np.log1p(-p) if p < 1.0 else 0.0
    sources, targets = np.empty(size, np.int32), np.empty(size, np.int32)
    found = 0
    for row in rows:
        state = stream(seed, row)
        j = np.int64(-1)
        while True:
            state += GOLDEN
            j += 1 + _skip(state, scale, n)
            if j >= n:
                break
            if marked[j]:
                if found == sources.size:
                    sources = np.concatenate((sources, np.empty_like(sources)))
                    targets = np.concatenate((targets, np.empty_like(targets)))
                sources[found] = row
                targets[found] = j
                found += 1
    return sources[:found].copy(), targets[:found].copy()


@numba.njit(cache=True)
def random_subsets(seed, number, size, chosen):
    """Uniform subsets: (number, size) booleans with `chosen` true in every row."""
    state = mix(seed)
    order = np.arange(size)
    subsets = np.zeros((number, size), np.bool_)
    for row in range(number):
        for place in range(chosen):
            state += GOLDEN
            other = place + np.int64(uniform(state) * (size - place) * (1.0 - UNIT))
            order[place], order[other] = order[other], order[place]
            subsets[row, order[place]] = True
    return subsets
