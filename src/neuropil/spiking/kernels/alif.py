"""The leaky integrate-and-fire neuron with an adaptive threshold over a sequence, and its gradient.

Forward, symbols as in `lif`, b the adaptation, beta its strength:

    th[t] = th + beta b[t-1];   h, s, v as in `lif` with th[t];   b[t] = rho b[t-1] + (1 - rho) s[t]

Backward, t = T-1..0, gb the gradient with respect to b[t], d and q as in `lif`:

    r   = (grad_s[t] + gb (1 - rho) + gv d) q
    gh  = r + grad_h[t] + gv (1 - s)   (hard)   r + grad_h[t] + gv   (soft)
    gth = -r, and - gv s besides where the threshold is what a reset subtracts
    grad_th += gth,   grad_beta += gth b[t-1],   grad_rho += gb (b[t-1] - s[t]),   the rest as in `lif`
    gb <- rho gb + beta gth
"""

import math
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from neuropil.spiking.kernels.lif import TILE, Firing, anchor, as_last, as_rows, nothing, once, put, rows_of, slope_row
from neuropil.spiking.kernels.threads import spread

__all__ = ["alif_sequence"]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _threshold(th, beta, b, by_threshold, m, now, amount):
    """Threshold of a step, and what a reset sets or subtracts then."""
    for i in range(th.size):
        now[i] = th[i] + beta[i] * b[i]
        amount[i] = now[i] if by_threshold else m[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _advance(x, v, b, rows, hard, by_threshold, now, amount, s, h):
    """One step of a tile: v and b are replaced, s and h are written; now and amount are room for its threshold."""
    a, k, c, th, p, m = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
    beta, rho, rest = rows[6], rows[7], rows[8]
    one, zero = x.dtype.type(1), x.dtype.type(0)
    _threshold(th, beta, b, by_threshold, m, now, amount)
    for i in range(x.size):
        potential = a[i] * v[i] + k[i] * x[i] + c[i]
        spike = one if p[i] * potential - p[i] * now[i] >= zero else zero
        h[i] = potential
        s[i] = spike
        v[i] = potential * (one - spike) + amount[i] * spike if hard else potential - amount[i] * spike
    for i in range(x.size):
        b[i] = rho[i] * b[i] + rest[i] * s[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _forward(x, v0, b0, parameters, hard, by_threshold, every, s, h, bs, marks, v, b, lo, hi):
    """Neurons lo..hi-1; h and adaptations before the step are kept where they have rows, both at marked steps."""
    for start in range(lo, hi, TILE):
        stop = min(start + TILE, hi)
        width = stop - start
        rows = rows_of(parameters, start, width)
        now, amount, scratch = np.empty(width, x.dtype), np.empty(width, x.dtype), np.empty(width, x.dtype)
        state, adaptation = np.empty(width, x.dtype), np.empty(width, x.dtype)
        put(state, v0[start:stop])
        put(adaptation, b0[start:stop])
        for t in range(x.shape[0]):
            if marks.shape[1] > 0 and t % every == 0:
                put(marks[0, t // every, start:stop], state)
                put(marks[1, t // every, start:stop], adaptation)
            if bs.shape[0] > 0:
                put(bs[t, start:stop], adaptation)
            potential = h[t, start:stop] if h.shape[0] > 0 else scratch
            _advance(
                x[t, start:stop], state, adaptation, rows, hard, by_threshold, now, amount, s[t, start:stop], potential
            )  # fmt: skip
        put(v[start:stop], state)
        put(b[start:stop], adaptation)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _through(gs, gh, h, b, now, amount, q, gv, gb, rows, hard, attached, by_threshold, gth, spikes):
    """One step backward of a tile: q becomes the gradient of h, gth and spikes are written."""
    rest, p = rows[8], rows[4]
    one, zero = h.dtype.type(1), h.dtype.type(0)
    for i in range(h.size):
        spike = one if p[i] * h[i] - p[i] * now[i] >= zero else zero
        way = amount[i] - h[i] if hard else -amount[i]
        r = (gs[i] + gb[i] * rest[i] + attached * gv[i] * way) * q[i]
        q[i] = r + (gv[i] * (one - spike) if hard else gv[i])
        gth[i] = -r - by_threshold * gv[i] * spike
        spikes[i] = spike
    if gh.size > 0:
        for i in range(h.size):
            q[i] += gh[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _back_to_state(q, gth, rows, gx, gv, gb):
    """Gradients of the current, and of potential and adaptation before the step, in place of those after it."""
    a, k, beta, rho = rows[0], rows[1], rows[6], rows[7]
    for i in range(q.size):
        gx[i] = k[i] * q[i]
        gv[i] = a[i] * q[i]
    for i in range(q.size):
        gb[i] = rho[i] * gb[i] + beta[i] * gth[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _reset(h, now, p, amount, hard, v):
    """v, the potential after the reset."""
    one, zero = h.dtype.type(1), h.dtype.type(0)
    for i in range(h.size):
        s = one if p[i] * h[i] - p[i] * now[i] >= zero else zero
        v[i] = h[i] * (one - s) + amount[i] * s if hard else h[i] - amount[i] * s


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _to_parameters(x, v, b, q, gth, gb, spikes, rest, totals, start, stop):
    """Add a step's gradients of a, k, th, beta and rho; v is the potential before the step."""
    for i in range(stop - start):
        totals[0, start + i] += q[i] * (v[i] - rest)
        totals[2, start + i] += gth[i]
        totals[3, start + i] += gth[i] * b[i]
        totals[4, start + i] += gb[i] * (b[i] - spikes[i])
    if x.size > 0:
        for i in range(stop - start):
            totals[1, start + i] += q[i] * x[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _backward(
    gs, gh, gv, gb, slopes, code, parameter, x, h, bs, marks, every, parameters, rest, hard, attached, by_threshold,
    gx, gv0, gb0, totals, lo, hi,
):  # fmt: skip
    """Neurons lo..hi-1 from the last step to the first.

    Arrays without rows are absent: gradients are then 0, h and b are computed again from x and marks, and totals of the
    parameters are not wanted.
    """
    steps, dtype = gx.shape[0], gx.dtype
    attached, subtracts, rest = dtype.type(attached), dtype.type(by_threshold), dtype.type(rest)
    again = h.shape[0] == 0
    kept, kept_b = np.empty((every if again else 0, TILE), dtype), np.empty((every if again else 0, TILE), dtype)
    history, history_b = (kept, kept_b) if again else (h, bs)
    none = np.empty(0, dtype)
    for start in range(lo, hi, TILE):
        stop = min(start + TILE, hi)
        width = stop - start
        rows = rows_of(parameters, start, width)
        th, p, m, beta = rows[3], rows[4], rows[5], rows[6]
        left = 0 if again else start
        right = left + width
        now, amount, q = np.empty(width, dtype), np.empty(width, dtype), np.empty(width, dtype)
        gth, fired, waste, zeros = (
            np.empty(width, dtype),
            np.empty(width, dtype),
            np.empty(width, dtype),
            np.zeros(width, dtype),
        )
        g, ga, v = np.zeros(width, dtype), np.zeros(width, dtype), np.empty(width, dtype)
        state, adaptation = np.empty(width, dtype), np.empty(width, dtype)
        if gv.size > 0:
            put(g, gv[start:stop])
        if gb.size > 0:
            put(ga, gb[start:stop])
        for mark in range((steps - 1) // every, -1, -1):
            first, end = mark * every, min((mark + 1) * every, steps)
            base = first if again else 0
            if again:
                put(state, marks[0, mark, start:stop])
                put(adaptation, marks[1, mark, start:stop])
                for t in range(first, end):
                    put(history_b[t - base, left:right], adaptation)
                    _advance(
                        x[t, start:stop], state, adaptation, rows, hard, by_threshold, now, amount, waste,
                        history[t - base, left:right],
                    )  # fmt: skip
            for t in range(end - 1, first - 1, -1):
                potential, b = history[t - base, left:right], history_b[t - base, left:right]
                spikes = gs[min(t, gs.shape[0] - 1), start:stop] if gs.shape[0] > 0 else zeros
                outer = gh[min(t, gh.shape[0] - 1), start:stop] if gh.shape[0] > 0 else none
                _threshold(th, beta, b, by_threshold, m, now, amount)
                if slopes.shape[0] > 0:
                    put(q, slopes[t, start:stop])
                else:
                    slope_row(code, parameter, potential, now, p, q)
                _through(
                    spikes, outer, potential, b, now, amount, q, g, ga, rows, hard, attached, subtracts, gth, fired
                )  # fmt: skip
                if totals.shape[0] > 0:
                    if t == first:
                        put(v, marks[0, mark, start:stop])
                    else:
                        before, last = history[t - 1 - base, left:right], history_b[t - 1 - base, left:right]
                        _threshold(th, beta, last, by_threshold, m, now, amount)
                        _reset(before, now, p, amount, hard, v)
                    current = x[t, start:stop] if x.shape[0] > 0 else none
                    _to_parameters(current, v, b, q, gth, ga, fired, rest, totals, start, stop)
                _back_to_state(q, gth, rows, gx[t, start:stop], g, ga)
        put(gv0[start:stop], g)
        put(gb0[start:stop], ga)


def _pack(firing: Firing, values: Any, like: Tensor) -> np.ndarray:
    a, k, th, beta, rho = values
    return firing.pack(a, k, th, beta, rho, 1.0 - rho, like=like)


def _run(
    x: Tensor,
    v0: Tensor,
    b0: Tensor,
    parameters: np.ndarray,
    firing: Firing,
    *,
    keep: bool,
    mark: bool,
    adaptations: bool,
) -> tuple[Tensor, ...]:
    """Spikes, last potentials and adaptations, and where kept potentials and adaptations of all and of marked steps."""
    steps, neurons = x.shape
    s, v, b = torch.empty_like(x), torch.empty_like(v0), torch.empty_like(b0)
    h = torch.empty_like(x) if keep else nothing(x, 0, neurons)
    bs = torch.empty_like(x) if adaptations else nothing(x, 0, neurons)
    marks = x.new_empty(2, -(-steps // firing.every) if mark else 0, neurons)
    arrays = (each.detach().numpy() for each in (x, v0, b0))
    spread(
        _forward, steps, neurons, *arrays, parameters, firing.hard, firing.by_threshold, firing.every,
        s.numpy(), h.numpy(), bs.numpy(), marks.numpy(), v.numpy(), b.numpy(),
    )  # fmt: skip
    return s, v, b, h, bs, marks


class _ALIF(torch.autograd.Function):
    """Inputs: currents, potentials, adaptations, a, k, th, beta, rho, an anchor, and what is fixed."""

    @staticmethod
    def forward(
        x: Tensor,
        v0: Tensor,
        b0: Tensor,
        a: Any,
        k: Any,
        th: Any,
        beta: Any,
        rho: Any,
        _: Tensor | None,
        firing: Firing,
    ) -> Any:
        parameters = _pack(firing, (a, k, th, beta, rho), x)
        keep = firing.potential or not firing.again
        return _run(x, v0, b0, parameters, firing, keep=keep, mark=firing.again, adaptations=not firing.again)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, v0, b0, *values, root, firing = inputs
        _, _, _, h, bs, marks = output
        ctx.firing = firing
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in values]
        need_x = firing.again or ctx.needs_input_grad[4]
        kept = (None, None, marks) if firing.again else (h, bs, None)
        tensors = [value if isinstance(value, Tensor) else None for value in values]
        ctx.save_for_backward(x if need_x else None, v0, b0, *kept, root, *tensors)
        ctx.mark_non_differentiable(bs, marks, *([] if firing.potential else [h]))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gs, gv, gb, gh, *_ = gradients
        x, v0, b0, h, bs, marks, root, *tensors = ctx.saved_tensors
        firing: Firing = ctx.firing
        like, like_b = v0.detach(), b0.detach()
        values = [n if t is None else t.detach() for n, t in zip(ctx.numbers, tensors, strict=True)]
        parameters = _pack(firing, values, like)
        if firing.again and firing.code < 0:
            h, bs = _run(x, like, like_b, parameters, firing, keep=True, mark=False, adaptations=True)[3:5]
        slopes = None
        if firing.code < 0:
            slopes = firing.slopes(h, values[2] + values[3] * bs.view(len(bs), *firing.shape))
        steps, again = len(x) if h is None else len(h), h is None
        marks = marks if again else torch.stack((like, like_b))[:, None]
        wants = [bool(need) for need in ctx.needs_input_grad[3:8]]
        gx, gv0, gb0 = like.new_empty(steps, like.numel()), torch.empty_like(like), torch.empty_like(like_b)
        totals = np.zeros((5 if any(wants) else 0, like.numel()), like.numpy().dtype)
        spread(
            _backward, steps, like.numel(), as_rows(gs, like), as_rows(gh, like), as_last(gv, like), as_last(gb, like),
            as_rows(slopes, like), firing.code, firing.neuron.spike.parameter, as_rows(x, like), as_rows(h, like),
            as_rows(bs, like), marks.numpy(), firing.every if again else max(steps, 1), parameters,
            firing.neuron.v_rest, firing.hard, 0.0 if firing.neuron.detach_reset else 1.0, firing.by_threshold,
            gx.numpy(), gv0.numpy(), gb0.numpy(), totals,
        )  # fmt: skip
        folded = [firing.fold(totals[i], t) if wants[i] else None for i, t in enumerate(tensors)]
        return *once([gx, gv0, gb0, *folded], root, v0, b0, gs, gv, gb, gh, *tensors), None, None


def alif_sequence(
    neuron: Any, x: Tensor, v0: Tensor, b0: Tensor, shape: tuple[int, ...], *, checkpoint: bool, potential: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """An adaptive neuron over a sequence.

    Args:
        neuron: an `ALIFNeuron` that `dispatch.unsupported` has no reason against.
        x: currents, (T, N), contiguous.
        v0: potentials before the first step, (N,), contiguous.
        b0: adaptations before it, (N,), contiguous.
        shape: of the neurons, N in all.
        checkpoint: keep x and few states for the gradient rather than all.
        potential: whether to return the potentials before the reset.

    Returns:
        Spikes (T, N), last potentials and adaptations (N,), and potentials before the reset (T, N) or None.
    """
    every = max(1, math.ceil(math.sqrt(len(x)))) if checkpoint else max(1, len(x))
    firing = Firing(neuron, shape, every, checkpoint, potential)
    values = (neuron.a, neuron.k, neuron.v_threshold, neuron.strength, neuron.rho)
    tracked = (x, v0, b0, *(value for value in values if isinstance(value, Tensor)))
    if torch.is_grad_enabled() and any(each.requires_grad for each in tracked):
        s, v, b, h, *_ = _ALIF.apply(x, v0, b0, *values, anchor(x), firing)
    else:
        parameters = _pack(firing, values, x)
        s, v, b, h, *_ = _run(x, v0, b0, parameters, firing, keep=potential, mark=False, adaptations=False)
    return s, v, b, h if potential else None
