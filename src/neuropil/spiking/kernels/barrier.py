"""A barrier for a few threads that run the same compiled loop: none goes on before all have come.

Every thread adds one to a counter that only ever grows, and waits until it reaches the next multiple of the number of
threads. Waiting is a spin, since steps take microseconds; after a while the processor is offered to others, so that
more threads than cores stay correct, if slow.
"""

import os

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

__all__ = ["new_barrier", "wait"]

SPINS = 4096


def new_barrier() -> np.ndarray:
    """The counter, alone on its cache line."""
    return np.zeros(16, np.int64)


@intrinsic
def _fetch_add_one(context, counter):
    """Add one to the first element, atomically; what it was before."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counter), generate


@intrinsic
def _load(context, counter):
    """The first element, as other threads left it."""

    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.load_atomic(array.data, "acquire", 8)

    return types.int64(counter), generate


if os.name == "posix":
    _sched_yield = types.ExternalFunction("sched_yield", types.int32())
else:

    @njit(cache=True)
    def _sched_yield():
        return np.int32(0)


@njit(cache=True, nogil=True)
def wait(counter, parts):
    """Return when all `parts` threads have called."""
    if parts == 1:
        return
    ticket = _fetch_add_one(counter)  # pyright: ignore[reportCallIssue]
    target = (ticket // parts + 1) * parts
    spins = 0
    while _load(counter) < target:  # pyright: ignore[reportCallIssue]
        spins += 1
        if spins > SPINS:
            _sched_yield()
