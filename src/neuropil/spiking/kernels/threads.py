"""Compiled loops over neurons spread over torch's number of threads.

Neurons of a layer do not meet within a kernel, so each thread takes a range of them and the result does not depend on
the number of threads. The threads are made when first needed, anew in every process: a pool does not survive a fork.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

__all__ = ["spread"]

GRAIN = 1 << 16
"""Neuron-steps below which another thread costs more than it saves."""
LANE = 64
"""Ranges begin at multiples of this: a cache line is written by one thread, and vectors are whole."""

_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def spread(kernel: Callable[..., None], steps: int, neurons: int, *arguments: Any) -> None:
    """Call `kernel(*arguments, lo, hi)` for ranges that cover the neurons.

    Args:
        kernel: compiled, without the interpreter's lock, writing nothing but what belongs to its range.
        steps: of the loop over time, to judge the work.
        neurons: number of them.
        arguments: of the kernel before the range.
    """
    blocks = -(-neurons // LANE)
    parts = max(1, min(torch.get_num_threads(), blocks, steps * neurons // GRAIN))
    ends = [min(neurons, blocks * part // parts * LANE) for part in range(parts + 1)]
    # The calling thread takes the first range itself.
    others = [_pool(parts).submit(kernel, *arguments, ends[i], ends[i + 1]) for i in range(1, parts)]
    kernel(*arguments, ends[0], ends[1])
    for other in others:
        other.result()


def _pool(parts: int) -> ThreadPoolExecutor:
    key = os.getpid(), parts
    if key not in _pools:
        _pools[key] = ThreadPoolExecutor(parts - 1, thread_name_prefix="neuropil-spiking")
    return _pools[key]
