"""Loops over sparse connectivity: making it, turning it round, and sending events along it.

Randomness is by counter (`neuropil.draws`): every row, or column, of a random matrix has a stream of its own, so a rule
that does not know its degrees beforehand runs twice, first to count and then to fill, and stores nothing in between.

A row whose synapses are never stored is read in the loop that needs it:

    state, j = row_start(seed, i), -1
    while True:
        state, j = row_next(state, j, scale, n_post, skip)
        if j >= n_post: break
        ...                                                  a synapse from i to j; j ascends

with scale = `skip_scale(p)` and skip = i where self connections are left out, else -1.
"""

import math

import numba
import numpy as np

from neuropil.draws import GOLDEN, UNIT, stream, uniform

__all__ = [
    "bernoulli_counts",
    "bernoulli_fill",
    "distance_counts",
    "distance_fill",
    "event_product",
    "event_product_spikes",
    "event_product_weight",
    "first_bad_row",
    "incoming",
    "indegree_counts",
    "indegree_fill",
    "outdegree_fill",
    "random_pairs",
    "row_next",
    "row_start",
    "scatter",
    "skip_scale",
    "split_rows",
]


def skip_scale(p: float) -> float:
    """1 / log(1 - p), the factor of geometric skips; p = 0 and p = 1 are exact."""
    return -math.inf if p == 0.0 else 0.0 if p == 1.0 else 1.0 / math.log1p(-p)


@numba.njit(cache=True, inline="always")
def row_start(seed, i):
    """State before the first synapse of row i; the target before it is -1."""
    return stream(seed, i)


@numba.njit(cache=True, inline="always")
def row_next(state, j, scale, n_post, skip):
    """The state and target of the synapse after the one onto j; a target of n_post or more ends the row.

    Absent synapses are skipped, floor(log(u) / log(1 - p)) of them; `skip` is a target to leave out, or -1.
    """
    while True:
        state += GOLDEN
        gap = np.log(uniform(state)) * scale  # nan where p = 0 and u = 1: no synapse either
        j += np.int64(1) + (np.int64(gap) if gap < n_post else np.int64(n_post))
        if j != skip:
            return state, j


@numba.njit(cache=True, inline="always")
def _below(state, m):
    """An integer in [0, m), m up to 2^53."""
    return np.int64((uniform(state) - UNIT) * m)


@numba.njit(cache=True, nogil=True)
def bernoulli_counts(seed, scale, n_post, without_self, first, counts):
    """Synapses of the rows first, first + 1, ... of a Bernoulli matrix."""
    for row in range(counts.size):
        i = first + row
        skip = i if without_self else -1
        state, j = row_start(seed, i), np.int64(-1)
        found = 0
        while True:
            state, j = row_next(state, j, scale, n_post, skip)
            if j >= n_post:
                break
            found += 1
        counts[row] = found


@numba.njit(cache=True, nogil=True)
def bernoulli_fill(seed, scale, n_post, without_self, first, place, targets):
    """Write the rows first, first + 1, ... of a Bernoulli matrix, row first + r from `place[r]` on."""
    for row in range(place.size):
        i = first + row
        skip = i if without_self else -1
        state, j = row_start(seed, i), np.int64(-1)
        at = place[row]
        while True:
            state, j = row_next(state, j, scale, n_post, skip)
            if j >= n_post:
                break
            targets[at] = j
            at += 1


@numba.njit(cache=True, nogil=True)
def _choose(seed, number, n, skip, distinct, seen, chosen):
    """Fill `chosen` with members of range(n) other than `skip`, from stream `number`.

    Where more than half are wanted, those left out are drawn instead. `seen` (n,) holds nothing equal to `number`.
    """
    state = stream(seed, number)
    available = n - 1 if skip >= 0 else n
    inverse = distinct and 2 * chosen.size > available
    wanted = available - chosen.size if inverse else chosen.size
    found = 0
    while found < wanted:
        state += GOLDEN
        j = _below(state, available)
        if skip >= 0 and j >= skip:
            j += 1
        if distinct:
            if seen[j] == number:
                continue
            seen[j] = number
        if not inverse:
            chosen[found] = j
        found += 1
    if inverse:
        found = 0
        for j in range(n):
            if seen[j] != number and j != skip:
                chosen[found] = j
                found += 1


@numba.njit(cache=True, nogil=True)
def indegree_counts(seed, k, n_post, without_self, distinct, counts):
    """Synapses of every row where every column draws k of them."""
    n_pre = counts.size
    seen, chosen = np.full(n_pre, -1, np.int32), np.empty(k, np.int32)
    for j in range(n_post):
        _choose(seed, j, n_pre, j if without_self else -1, distinct, seen, chosen)
        for i in chosen:
            counts[i] += 1


@numba.njit(cache=True, nogil=True)
def indegree_fill(seed, k, n_post, without_self, distinct, place, targets):
    """Write what `indegree_counts` counted; row i goes from `place[i]` on. Columns ascend, so rows come out sorted."""
    n_pre = place.size
    seen, chosen = np.full(n_pre, -1, np.int32), np.empty(k, np.int32)
    for j in range(n_post):
        _choose(seed, j, n_pre, j if without_self else -1, distinct, seen, chosen)
        for i in chosen:
            targets[place[i]] = j
            place[i] += 1


@numba.njit(cache=True, nogil=True)
def outdegree_fill(seed, n_post, without_self, distinct, targets):
    """Draw the targets (n_pre, k) of every row, sorted."""
    seen = np.full(n_post, -1, np.int32)
    for i in range(targets.shape[0]):
        _choose(seed, i, n_post, i if without_self else -1, distinct, seen, targets[i])
        targets[i].sort()


@numba.njit(cache=True, nogil=True)
def random_pairs(seed, first, n_pre, n_post, without_self, pairs):
    """Draws number first, first + 1, ... of a uniform pair (i, j), each as i n_post + j."""
    state = stream(seed, 0) + np.uint64(2 * first) * GOLDEN
    available = n_post - 1 if without_self else n_post
    for number in range(pairs.size):
        state += GOLDEN
        i = _below(state, n_pre)
        state += GOLDEN
        j = _below(state, available)
        if without_self and j >= i:
            j += 1
        pairs[number] = i * n_post + j


@numba.njit(cache=True, inline="always")
def _reaches(state, i, j, pre, post, table, type_pre, type_post, scale):
    """Whether a pair is joined: u <= C exp(-D^2 / lam^2), with scale = 1 / lam^2."""
    square = 0.0
    for axis in range(pre.shape[1]):
        away = pre[i, axis] - post[j, axis]
        square += away * away
    return uniform(state) <= table[type_pre[i], type_post[j]] * math.exp(-square * scale)


@numba.njit(cache=True, nogil=True)
def distance_counts(seed, pre, post, table, type_pre, type_post, scale, without_self, counts):
    """Synapses of every row where pairs are joined by their distance."""
    for i in range(pre.shape[0]):
        state = stream(seed, i)
        for j in range(post.shape[0]):
            state += GOLDEN
            if without_self and i == j:
                continue
            counts[i] += _reaches(state, i, j, pre, post, table, type_pre, type_post, scale)


@numba.njit(cache=True, nogil=True)
def distance_fill(seed, pre, post, table, type_pre, type_post, scale, without_self, place, targets):
    """Write what `distance_counts` counted; row i goes from `place[i]` on."""
    for i in range(pre.shape[0]):
        state = stream(seed, i)
        at = place[i]
        for j in range(post.shape[0]):
            state += GOLDEN
            if without_self and i == j:
                continue
            if _reaches(state, i, j, pre, post, table, type_pre, type_post, scale):
                targets[at] = j
                at += 1


@numba.njit(cache=True, nogil=True)
def first_bad_row(indptr, targets, n_post):
    """The first row with a target that is out of range or smaller than the one before it, or -1."""
    for i in range(indptr.size - 1):
        before = 0
        for q in range(indptr[i], indptr[i + 1]):
            if targets[q] < before or targets[q] >= n_post:
                return i
            before = targets[q]
    return -1


@numba.njit(cache=True, nogil=True)
def incoming(indptr, targets, n_post):
    """The same matrix by columns: where each begins, and the row and the place by rows of every synapse.

    A counting sort: O(nnz), and within a column rows ascend, parallel synapses in their order.
    """
    n_pre = indptr.size - 1
    begin = np.zeros(n_post + 1, np.int64)
    for j in targets:
        begin[j + 1] += 1
    for j in range(n_post):
        begin[j + 1] += begin[j]
    place = begin[:-1].copy()
    rows, order = np.empty(targets.size, np.int32), np.empty(targets.size, np.int32)
    for i in range(n_pre):
        for q in range(indptr[i], indptr[i + 1]):
            at = place[targets[q]]
            rows[at] = i
            order[at] = q
            place[targets[q]] = at + 1
    return begin, rows, order


@numba.njit(cache=True, nogil=True)
def split_rows(indptr, targets, bounds, offsets):
    """offsets[i, q] = the first synapse of row i whose target is bounds[q] or more, by bisection."""
    for i in range(indptr.size - 1):
        low, end = indptr[i], indptr[i + 1]
        for q in range(bounds.size):
            high = end
            while low < high:
                middle = (low + high) // 2
                if targets[middle] < bounds[q]:
                    low = middle + 1
                else:
                    high = middle
            offsets[i, q] = low


@numba.njit(cache=True, nogil=True)
def scatter(spikers, indptr, targets, weight, uniform_weight, out):
    """Add the rows of the neurons that fired; `weight` has one number for all synapses, or one each."""
    for i in spikers:
        if uniform_weight:
            w = weight[0]
            for q in range(indptr[i], indptr[i + 1]):
                out[targets[q]] += w
        else:
            for q in range(indptr[i], indptr[i + 1]):
                out[targets[q]] += weight[q]


@numba.njit(cache=True, nogil=True)
def event_product(spikes, indptr, targets, weight, uniform_weight, out):
    """out[b, j] += sum of spikes[b, i] w_ij over i in ascending order; rows of silent neurons are passed over."""
    for b in range(spikes.shape[0]):
        for i in range(spikes.shape[1]):
            s = spikes[b, i]
            if s != 0:
                for q in range(indptr[i], indptr[i + 1]):
                    out[b, targets[q]] += s * (weight[0] if uniform_weight else weight[q])


@numba.njit(cache=True, nogil=True)
def event_product_spikes(gradient, indptr, targets, weight, uniform_weight, out):
    """out[b, i] = sum of w_ij gradient[b, j]: all rows, silent or not."""
    for b in range(out.shape[0]):
        for i in range(out.shape[1]):
            for q in range(indptr[i], indptr[i + 1]):
                out[b, i] += gradient[b, targets[q]] * (weight[0] if uniform_weight else weight[q])


@numba.njit(cache=True, nogil=True)
def event_product_weight(gradient, spikes, indptr, targets, out):
    """out[q] = sum over b of spikes[b, i] gradient[b, j]: rows of neurons that fired."""
    for b in range(spikes.shape[0]):
        for i in range(spikes.shape[1]):
            s = spikes[b, i]
            if s != 0:
                for q in range(indptr[i], indptr[i + 1]):
                    out[q] += s * gradient[b, targets[q]]
