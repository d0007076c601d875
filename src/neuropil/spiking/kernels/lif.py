"""The leaky integrate-and-fire neuron over a whole sequence in one compiled loop, and its gradient.

Forward, for every neuron, t = 0..T-1 (h potential before, v after the reset, p polarity, th threshold):

    h[t] = a v[t-1] + k x[t] + (1 - a) v_rest
    s[t] = 1[p h[t] - p th >= 0]
    v[t] = h (1 - s) + v_reset s   (hard)      h - m s   (soft; m is th unless given; 0 where there is no reset)

Backward, t = T-1..0, where q = ds/dh is p times the surrogate's derivative, gv the gradient with respect to v[t], and
d = v_reset - h (hard) or -m (soft), 0 where the reset is detached:

    r  = (grad_s[t] + gv d) q
    gh = r + grad_h[t] + gv (1 - s)   (hard)   r + grad_h[t] + gv   (soft)
    grad_x[t] = k gh,    gv <- a gh
    grad_th -= r, and gv s besides where m is th
    grad_a  += gh (v[t-1] - v_rest),    grad_k += gh x[t]

The loops run over tiles of neurons whose state stays in the cache; within a tile, time is outside and the loops over
neurons have no branch, so that they become vector instructions. h is either kept, or, from the potentials at every
`every`-th step, computed again for one stretch of time after the other.
"""

import math
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from neuropil.spiking.kernels.exponential import exp
from neuropil.spiking.kernels.threads import spread
from neuropil.spiking.surrogate import SURROGATES, Surrogate

__all__ = ["Firing", "anchor", "lif_sequence", "once"]

TILE = 8192
HALF_PI = math.pi / 2


@numba.njit(cache=True, nogil=True, error_model="numpy")
def rows_of(parameters, start, width):
    """The parameters of a tile, (rows, width); a single column holds for all neurons."""
    rows = np.empty((parameters.shape[0], width), parameters.dtype)
    same = parameters.shape[1] == 1
    for row in range(rows.shape[0]):
        for i in range(width):
            rows[row, i] = parameters[row, 0 if same else start + i]
    return rows


@numba.njit(cache=True, nogil=True, error_model="numpy")
def put(to, values):
    """Copy a row; a slice assignment would take numba long to compile."""
    for i in range(to.size):
        to[i] = values[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def slope_row(code, parameter, h, th, p, q):
    """Q = p g(h - th), g the derivative of the surrogate of that code, which is even."""
    one, two, four = h.dtype.type(1), h.dtype.type(2), h.dtype.type(4)
    half, zero, w = h.dtype.type(0.5), h.dtype.type(0), h.dtype.type(parameter)
    if code == 0:
        scale, top = h.dtype.type(HALF_PI * parameter), h.dtype.type(0.5 * parameter)
        for i in range(h.size):
            z = (h[i] - th[i]) * scale
            q[i] = p[i] * (top / (one + z * z))
    elif code == 2:
        for i in range(h.size):
            z = one + w * abs(h[i] - th[i])
            q[i] = p[i] / (z * z)
    elif code == 3:
        for i in range(h.size):
            z = one - abs(h[i] - th[i]) / w
            q[i] = p[i] * ((z if z > zero else zero) / w)
    elif code == 4:
        edge, top = h.dtype.type(0.5 * parameter), one / w
        for i in range(h.size):
            q[i] = p[i] * (top if abs(h[i] - th[i]) <= edge else zero)
    else:
        # With e = exp(-z) both g (1 - g) = e / (1 + e)^2 and 1 - tanh^2(z / 2) = 4 e / (1 + e)^2 lose no digits.
        logistic = code == 1
        scale = w if logistic else two * w
        top = w if logistic else four * h.dtype.type(parameter / (2.0 * math.tanh(0.5 * parameter)))
        edge = h.dtype.type(np.inf) if logistic else half
        for i in range(h.size):
            z = abs(h[i] - th[i])
            e = exp(-scale * z)
            q[i] = p[i] * (top * e / ((one + e) * (one + e)) if z <= edge else zero)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _advance(x, v, a, k, c, th, p, m, hard, s, h):
    """One step of a tile: v is replaced, s and h are written."""
    one, zero = x.dtype.type(1), x.dtype.type(0)
    if hard:
        for i in range(x.size):
            potential = a[i] * v[i] + k[i] * x[i] + c[i]
            spike = one if p[i] * potential - p[i] * th[i] >= zero else zero
            h[i] = potential
            s[i] = spike
            v[i] = potential * (one - spike) + m[i] * spike
    else:
        for i in range(x.size):
            potential = a[i] * v[i] + k[i] * x[i] + c[i]
            spike = one if p[i] * potential - p[i] * th[i] >= zero else zero
            h[i] = potential
            s[i] = spike
            v[i] = potential - m[i] * spike


@numba.njit(cache=True, nogil=True, error_model="numpy")
def lif_forward(x, v0, parameters, hard, every, s, h, marks, v, lo, hi):
    """Neurons lo..hi-1 over all steps; h is kept where it has rows, v before every `every`-th step where marks has."""
    for start in range(lo, hi, TILE):
        stop = min(start + TILE, hi)
        width = stop - start
        rows = rows_of(parameters, start, width)
        a, k, c, th, p, m = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
        state, scratch = np.empty(width, x.dtype), np.empty(width, x.dtype)
        put(state, v0[start:stop])
        for t in range(x.shape[0]):
            if marks.shape[0] > 0 and t % every == 0:
                put(marks[t // every, start:stop], state)
            potential = h[t, start:stop] if h.shape[0] > 0 else scratch
            _advance(x[t, start:stop], state, a, k, c, th, p, m, hard, s[t, start:stop], potential)
        put(v[start:stop], state)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _through(gs, gh, gv, h, q, a, k, th, p, m, hard, attached, gx):
    """One step backward of a tile: q becomes the gradient of h, gv that of the potential before; gx is written."""
    one, zero = h.dtype.type(1), h.dtype.type(0)
    if hard:
        for i in range(h.size):
            spike = one if p[i] * h[i] - p[i] * th[i] >= zero else zero
            q[i] = (gs[i] + attached * gv[i] * (m[i] - h[i])) * q[i] + gv[i] * (one - spike)
    else:
        for i in range(h.size):
            q[i] = (gs[i] - attached * gv[i] * m[i]) * q[i] + gv[i]
    if gh.size > 0:
        for i in range(h.size):
            q[i] += gh[i]
    for i in range(h.size):
        gx[i] = k[i] * q[i]
        gv[i] = a[i] * q[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _to_threshold(gs, gv, h, q, th, p, m, hard, attached, by_threshold, total):
    """Add a step's gradient of the threshold; `by_threshold` is 1 where the threshold is what a reset subtracts."""
    one, zero = h.dtype.type(1), h.dtype.type(0)
    for i in range(h.size):
        spike = one if p[i] * h[i] - p[i] * th[i] >= zero else zero
        way = m[i] - h[i] if hard else -m[i]
        total[i] -= (gs[i] + attached * gv[i] * way) * q[i] + by_threshold * gv[i] * spike


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _to_decay(gh, before, th, p, m, hard, reset, rest, total):
    """Add a step's gradient of a; `before` is the last step's potential, before the reset unless `reset` is False."""
    one, zero = gh.dtype.type(1), gh.dtype.type(0)
    for i in range(gh.size):
        spike = one if reset and p[i] * before[i] - p[i] * th[i] >= zero else zero
        v = before[i] * (one - spike) + m[i] * spike if hard else before[i] - m[i] * spike
        total[i] += gh[i] * (v - rest)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def lif_backward(
    gs, gh, gv, slopes, code, parameter, x, h, marks, every, parameters, rest, hard, attached, by_threshold,
    wants, gx, gv0, totals, lo, hi,
):  # fmt: skip
    """Neurons lo..hi-1 from the last step to the first; `wants` says which of a, k, th need `totals`.

    Arrays without rows are absent: gradients are then 0, h is computed again from x and marks.
    """
    steps, dtype = gx.shape[0], gx.dtype
    attached, by_threshold, rest = dtype.type(attached), dtype.type(by_threshold), dtype.type(rest)
    want_a, want_k, want_th = wants
    again = h.shape[0] == 0
    scratch = np.empty((every if again else 0, TILE), dtype)
    history = scratch if again else h
    for start in range(lo, hi, TILE):
        stop = min(start + TILE, hi)
        width = stop - start
        rows = rows_of(parameters, start, width)
        a, k, c, th, p, m = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5]
        left = 0 if again else start
        right = left + width
        g, q, waste, none = np.zeros(width, dtype), np.empty(width, dtype), np.empty(width, dtype), np.empty(0, dtype)
        zeros, state = np.zeros(width, dtype), np.empty(width, dtype)
        if gv.size > 0:
            put(g, gv[start:stop])
        for mark in range((steps - 1) // every, -1, -1):
            first, end = mark * every, min((mark + 1) * every, steps)
            base = first if again else 0
            if again:
                put(state, marks[mark, start:stop])
                for t in range(first, end):
                    _advance(x[t, start:stop], state, a, k, c, th, p, m, hard, waste, history[t - base, left:right])
            for t in range(end - 1, first - 1, -1):
                now = history[t - base, left:right]
                spikes = gs[min(t, gs.shape[0] - 1), start:stop] if gs.shape[0] > 0 else zeros
                potential = gh[min(t, gh.shape[0] - 1), start:stop] if gh.shape[0] > 0 else none
                if slopes.shape[0] > 0:
                    put(q, slopes[t, start:stop])
                else:
                    slope_row(code, parameter, now, th, p, q)
                if want_th:
                    _to_threshold(
                        spikes, g, now, q, th, p, m, hard, attached, by_threshold, totals[2, start:stop]
                    )  # fmt: skip
                _through(spikes, potential, g, now, q, a, k, th, p, m, hard, attached, gx[t, start:stop])
                if want_a:
                    before = history[t - 1 - base, left:right] if t > first else marks[mark, start:stop]
                    _to_decay(q, before, th, p, m, hard, t > first, rest, totals[0, start:stop])
                if want_k:
                    current, total = x[t, start:stop], totals[1, start:stop]
                    for i in range(width):
                        total[i] += q[i] * current[i]
        put(gv0[start:stop], g)


class Firing(NamedTuple):
    """What the gradient of a sequence needs besides tensors; numbers as in the module's equations."""

    neuron: Any
    shape: tuple[int, ...]
    every: int
    again: bool
    potential: bool

    @property
    def code(self) -> int:
        """The surrogate's number in the kernels; -1 where its slopes are computed in torch."""
        spike: Surrogate = self.neuron.spike
        return spike.code if type(spike) in SURROGATES.values() and self.neuron.rectifier is None else -1

    @property
    def hard(self) -> bool:
        """Whether the reset sets the potential."""
        return self.neuron.reset == "hard"

    @property
    def by_threshold(self) -> bool:
        """Whether the threshold is what a reset subtracts."""
        return self.neuron.reset == "soft" and self.neuron.reset_amount is None

    def pack(self, a: Any, k: Any, th: Any, *more: Any, like: Tensor) -> np.ndarray:
        """Parameters as rows, one column where all are numbers, else one for each neuron."""
        n = self.neuron
        # Adding -0 changes no number, not even -0.
        c = (1.0 - a) * n.v_rest if n.v_rest != 0 else -0.0
        m = n.floor if self.hard else 0.0 if n.reset == "none" else th if self.by_threshold else n.reset_amount
        values = (a, k, c, th, 1.0 if n.polarity is None else n.polarity, m, *more)
        if all(not isinstance(value, Tensor) or value.numel() == 1 for value in values):
            return torch.tensor([[float(value)] for value in values], dtype=like.dtype).numpy()
        rows = torch.empty(len(values), *self.shape, dtype=like.dtype)
        for row, value in zip(rows, values, strict=True):
            row.copy_(value) if isinstance(value, Tensor) else row.fill_(value)
        return rows.reshape(len(values), -1).numpy()

    def slopes(self, h: Tensor, threshold: Any) -> Tensor:
        """ds/dh of a sequence of potentials (T, N), threshold (T, *shape) or as the neuron's."""
        h = h.detach().view(len(h), *self.shape)
        n = self.neuron
        with torch.enable_grad():
            h = h.requires_grad_()
            z = h if n.rectifier is None else n.rectifier(h)
            p = 1.0 if n.polarity is None else n.polarity
            z = p * z - p * threshold
            (slopes,) = torch.autograd.grad(z, h, n.spike.derivative(z.detach()))
        return slopes.reshape(len(h), -1).contiguous()

    def fold(self, total: np.ndarray, value: Tensor) -> Tensor:
        """A gradient for each neuron, summed to the shape of the parameter."""
        return torch.from_numpy(total).view(self.shape).sum_to_size(value.shape).to(value.dtype)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(gradient: Tensor, *inputs: Tensor | None) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "The compiled kernels give first derivatives only; choose backend='torch' to differentiate gradients."
        )


def once(gradients: list[Tensor | None], *inputs: Tensor | None) -> list[Tensor | None]:
    """Gradients that refuse, in words, to be differentiated by what they were made from."""
    if not torch.is_grad_enabled():
        return gradients
    return [None if each is None else _Once.apply(each, *inputs) for each in gradients]


def anchor(x: Tensor) -> Tensor | None:
    """A number that leads back to x in the graph, and keeps none of its memory alive."""
    return x[:0].sum() if x.requires_grad else None


def as_rows(gradient: Tensor | None, like: Tensor) -> np.ndarray:
    """A gradient (T, N) for the kernels: no row where there is none, one row where all steps have the same."""
    if gradient is None:
        return np.empty((0, 0), like.numpy().dtype)
    gradient = gradient.detach()
    if len(gradient) > 1 and gradient.stride(0) == 0:
        gradient = gradient[:1]
    return gradient.contiguous().numpy()


def nothing(like: Tensor, *shape: int) -> Tensor:
    """A tensor without elements."""
    return like.new_empty(shape)


def forward_lif(x: Tensor, v0: Tensor, parameters: np.ndarray, firing: Firing, *, keep: bool, mark: bool) -> Any:
    """Spikes (T, N), last potentials (N,), potentials before the reset and those of marked steps, where kept."""
    steps, neurons = x.shape
    s, v = torch.empty_like(x), torch.empty_like(v0)
    h = torch.empty_like(x) if keep else nothing(x, 0, neurons)
    marks = x.new_empty(-(-steps // firing.every) if mark else 0, neurons)
    arrays = (each.detach().numpy() for each in (x, v0))
    spread(
        lif_forward, steps, neurons, *arrays, parameters, firing.hard, firing.every,
        s.numpy(), h.numpy(), marks.numpy(), v.numpy(),
    )  # fmt: skip
    return s, v, h, marks


class _LIF(torch.autograd.Function):
    """Inputs: currents (T, N), potentials (N,), a, k, th (numbers or tensors), an anchor, and what is fixed."""

    @staticmethod
    def forward(x: Tensor, v0: Tensor, a: Any, k: Any, th: Any, _: Tensor | None, firing: Firing) -> Any:
        keep = firing.potential or not firing.again
        return forward_lif(x, v0, firing.pack(a, k, th, like=x), firing, keep=keep, mark=firing.again)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, v0, a, k, th, root, firing = inputs
        _, _, h, marks = output
        ctx.firing = firing
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in (a, k, th)]
        values = [value if isinstance(value, Tensor) else None for value in (a, k, th)]
        need_x = firing.again or ctx.needs_input_grad[3]
        kept = None if firing.again else h
        ctx.save_for_backward(x if need_x else None, v0, kept, marks if firing.again else None, root, *values)
        ctx.mark_non_differentiable(*([marks] if firing.potential else [marks, h]))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gs, gv, gh, _ = gradients
        x, v0, h, marks, root, *values = ctx.saved_tensors
        firing: Firing = ctx.firing
        like = v0.detach()
        a, k, th = (n if t is None else t.detach() for n, t in zip(ctx.numbers, values, strict=True))
        parameters = firing.pack(a, k, th, like=like)
        if firing.again and firing.code < 0:
            h = forward_lif(x, like, parameters, firing, keep=True, mark=False)[2]
        slopes = as_rows(firing.slopes(h, th) if firing.code < 0 else None, like)
        again = h is None
        steps = len(x) if h is None else len(h)
        marks = marks if again else like[None]
        wants = tuple(bool(need) for need in ctx.needs_input_grad[2:5])
        gx, gv0 = like.new_empty(steps, like.numel()), torch.empty_like(like)
        totals = np.zeros((3 if any(wants) else 0, like.numel()), like.numpy().dtype)
        spread(
            lif_backward, steps, like.numel(), as_rows(gs, like), as_rows(gh, like), as_last(gv, like), slopes,
            firing.code, firing.neuron.spike.parameter, as_rows(x, like), as_rows(h, like), as_rows(marks, like),
            firing.every if again else max(steps, 1), parameters, firing.neuron.v_rest, firing.hard,
            0.0 if firing.neuron.detach_reset else 1.0, float(firing.by_threshold), wants,
            gx.numpy(), gv0.numpy(), totals,
        )  # fmt: skip
        folded = [firing.fold(totals[i], t) if wants[i] else None for i, t in enumerate(values)]
        return *once([gx, gv0, *folded], root, v0, gs, gv, gh, *values), None, None


def as_last(gradient: Tensor | None, like: Tensor) -> np.ndarray:
    """A gradient (N,) for the kernels, empty where there is none."""
    return nothing(like, 0).numpy() if gradient is None else gradient.detach().contiguous().numpy()


def lif_sequence(
    neuron: Any, x: Tensor, v0: Tensor, shape: tuple[int, ...], *, checkpoint: bool, potential: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A leaky integrate-and-fire neuron over a sequence.

    Args:
        neuron: a `LIFNeuron` that `dispatch.unsupported` has no reason against.
        x: currents, (T, N), contiguous.
        v0: potentials before the first step, (N,), contiguous.
        shape: of the neurons, N in all.
        checkpoint: keep x and few potentials for the gradient rather than all.
        potential: whether to return the potentials before the reset.

    Returns:
        Spikes (T, N), last potentials (N,) and potentials before the reset (T, N) or None.
    """
    every = max(1, math.ceil(math.sqrt(len(x)))) if checkpoint else max(1, len(x))
    firing = Firing(neuron, shape, every, checkpoint, potential)
    a, k, th = neuron.a, neuron.k, neuron.v_threshold
    tracked = (x, v0, *(value for value in (a, k, th) if isinstance(value, Tensor)))
    if torch.is_grad_enabled() and any(each.requires_grad for each in tracked):
        s, v, h, _ = _LIF.apply(x, v0, a, k, th, anchor(x), firing)
    else:
        s, v, h, _ = forward_lif(x, v0, firing.pack(a, k, th, like=x), firing, keep=potential, mark=False)
    return s, v, h if potential else None
