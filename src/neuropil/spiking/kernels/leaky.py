"""A leaky sum over a whole sequence in one compiled loop, and its gradient.

    y[t] = a y[t-1] + k x[t]

Backward, t = T-1..0: g <- grad_y[t] + a g, then grad_x[t] = k g, grad_a += g y[t-1], grad_k += g x[t].
"""

from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from neuropil.spiking.kernels.lif import TILE, anchor, as_rows, once, put, rows_of
from neuropil.spiking.kernels.threads import spread

__all__ = ["leaky_sequence"]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _forward(x, y0, parameters, y, lo, hi):
    for start in range(lo, hi, TILE):
        stop = min(start + TILE, hi)
        rows = rows_of(parameters, start, stop - start)
        a, k = rows[0], rows[1]
        state = np.empty(stop - start, x.dtype)
        put(state, y0[start:stop])
        for t in range(x.shape[0]):
            current, out = x[t, start:stop], y[t, start:stop]
            for i in range(stop - start):
                state[i] = a[i] * state[i] + k[i] * current[i]
                out[i] = state[i]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _backward(gy, x, y, y0, parameters, wants, gx, g0, totals, lo, hi):
    want_a, want_k = wants
    for start in range(lo, hi, TILE):
        stop = min(start + TILE, hi)
        width = stop - start
        rows = rows_of(parameters, start, width)
        a, k = rows[0], rows[1]
        g = np.zeros(width, gx.dtype)
        for t in range(gx.shape[0] - 1, -1, -1):
            incoming, out = gy[min(t, gy.shape[0] - 1), start:stop], gx[t, start:stop]
            if want_a:
                before, total = y[t - 1, start:stop] if t > 0 else y0[start:stop], totals[0, start:stop]
                for i in range(width):
                    total[i] += (incoming[i] + g[i]) * before[i]
            if want_k:
                current, total = x[t, start:stop], totals[1, start:stop]
                for i in range(width):
                    total[i] += (incoming[i] + g[i]) * current[i]
            for i in range(width):
                all_of_it = incoming[i] + g[i]
                out[i] = k[i] * all_of_it
                g[i] = a[i] * all_of_it
        put(g0[start:stop], g)


def _pack(a: Any, k: Any, shape: tuple[int, ...], like: Tensor) -> np.ndarray:
    """Both parameters as rows, one column where both are numbers, else one for each neuron."""
    if all(not isinstance(value, Tensor) or value.numel() == 1 for value in (a, k)):
        return torch.tensor([[float(a)], [float(k)]], dtype=like.dtype).numpy()
    rows = torch.empty(2, *shape, dtype=like.dtype)
    for row, value in zip(rows, (a, k), strict=True):
        row.copy_(value) if isinstance(value, Tensor) else row.fill_(value)
    return rows.reshape(2, -1).numpy()


def _filter(x: Tensor, y0: Tensor, parameters: np.ndarray) -> Tensor:
    y = torch.empty_like(x)
    spread(_forward, *x.shape, x.detach().numpy(), y0.detach().numpy(), parameters, y.numpy())
    return y


class _Leaky(torch.autograd.Function):
    """Inputs: currents (T, N), state (N,), a, k (numbers or tensors), an anchor, and the neurons' shape."""

    @staticmethod
    def forward(x: Tensor, y0: Tensor, a: Any, k: Any, _: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        return _filter(x, y0, _pack(a, k, shape, x))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        x, y0, a, k, root, ctx.shape = inputs
        ctx.numbers = [None if isinstance(value, Tensor) else value for value in (a, k)]
        values = [value if isinstance(value, Tensor) else None for value in (a, k)]
        _, _, need_a, need_k, *_ = ctx.needs_input_grad
        ctx.save_for_backward(x if need_k else None, output if need_a else None, y0, root, *values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, y, y0, root, *values = ctx.saved_tensors
        like, wants = y0.detach(), tuple(bool(need) for need in ctx.needs_input_grad[2:4])
        a, k = (n if t is None else t.detach() for n, t in zip(ctx.numbers, values, strict=True))
        gx, g0 = like.new_empty(gradients[0].shape), torch.empty_like(like)
        totals = np.zeros((2 if any(wants) else 0, like.numel()), like.numpy().dtype)
        spread(
            _backward, *gx.shape, as_rows(gradients[0], like), as_rows(x, like), as_rows(y, like), like.numpy(),
            _pack(a, k, ctx.shape, like), wants, gx.numpy(), g0.numpy(), totals,
        )  # fmt: skip
        folded = [
            torch.from_numpy(total).view(ctx.shape).sum_to_size(value.shape).to(value.dtype) if want else None
            for total, value, want in zip(totals if any(wants) else (None, None), values, wants, strict=True)
        ]
        return *once([gx, g0, *folded], root, y0, gradients[0], *values), None, None


def leaky_sequence(x: Tensor, y0: Tensor, a: Any, k: Any, shape: tuple[int, ...]) -> Tensor:
    """The leaky sums of a sequence.

    Args:
        x: currents, (T, N), contiguous.
        y0: sums before the first step, (N,), contiguous.
        a: what is left of a sum after a step: a number or a tensor that broadcasts to `shape`.
        k: what the current is multiplied by, likewise.
        shape: of the neurons, N in all.

    Returns:
        y, (T, N).
    """
    tracked = (x, y0, *(value for value in (a, k) if isinstance(value, Tensor)))
    if torch.is_grad_enabled() and any(each.requires_grad for each in tracked):
        return _Leaky.apply(x, y0, a, k, anchor(x), shape)
    return _filter(x, y0, _pack(a, k, shape, x))
