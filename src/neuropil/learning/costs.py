"""What one step of a rule costs: time, and the memory that it needs at its worst moment.

Memory is counted where torch allocates it: every storage that an operation returns adds its bytes while it lives,

    peak  =  max over time of  sum of the bytes of storages made inside and still alive

so the number is the same on every machine. Parameters, inputs and gradients that exist before the step are not in it,
nor what compiled kernels allocate for themselves.
"""

import statistics
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from neuropil.learning.alignment import borrowed
from neuropil.learning.rule import LearningRule
from neuropil.learning.stages import Inputs, undisturbed

__all__ = ["Cost", "peak_memory", "step_cost"]


class Cost(NamedTuple):
    """What a step costs.

    Attributes:
        milliseconds: median of the calls.
        megabytes: peak of what the step allocates, in 10^6 bytes.
    """

    milliseconds: float
    megabytes: float


def peak_memory(call: Callable[[], object]) -> int:
    """The most bytes that torch holds at once for tensors made inside a call."""
    with _Ledger() as ledger:
        call()
    return ledger.peak


def step_cost(rule: LearningRule, x: Inputs, y: Tensor | None = None, *, calls: int = 5) -> Cost:
    """Time and memory of `rule.backward(x, y)`, the optimizer's step left out.

    Nothing is left behind: `.grad`, running statistics and the random state are as before.

    Args:
        rule: the rule.
        x: inputs, (batch, ...).
        y: targets, (batch, ...).
        calls: how many are timed, after one that is not.

    Raises:
        ValueError: if `calls` is less than 1.
    """
    if calls < 1:
        raise ValueError(f"calls must be at least 1, got {calls}.")
    with borrowed(rule.net), borrowed(rule), undisturbed(rule.net), undisturbed(rule):
        peak = peak_memory(lambda: rule.backward(x, y))
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            rule.backward(x, y)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    return Cost(1e3 * statistics.median(seconds), peak / 1e6)


class _Ledger(TorchDispatchMode):
    """Counts storages as they come and go."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = [leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._known and not any(storage is other for other in given):  # views are free
                    self._known.add(storage)
                    self._count(storage.nbytes())
                    weakref.finalize(storage, self._count, -storage.nbytes())
        return result

    def _count(self, change: int) -> None:
        self.now += change
        self.peak = max(self.peak, self.now)
