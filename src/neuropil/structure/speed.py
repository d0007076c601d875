"""What a forward pass really takes: seconds and memory, measured, not derived from counts.

Latency is the median wall-clock time of at least 30 forwards after at least 10 that are thrown away (by default), in
inference mode, in evaluation mode, with a fixed number of threads. Several networks are timed in turns, forward by
forward, so that a noisy machine disturbs all of them alike and their ratio can be trusted further than either number.

Peak memory is, on a GPU, what torch's allocator held at most beyond what it held before. A CPU has no such counter, so
there it is reckoned: the storages of all tensors that operations return are followed until they die, and the largest
sum alive at one time is taken. Inputs and weights are not in it, and neither is scratch memory inside a kernel
(reordered weights, unfolded images): it is a lower bound of what the process needs, the same on every machine.
"""

import statistics
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from neuropil.structure.criterion import call, undisturbed

__all__ = ["Example", "Timing", "latency", "peak_memory", "resized"]

Example = Tensor | tuple[Any, ...] | dict[str, Any]
Given = TypeVar("Given", bound=Example)


@dataclass(frozen=True)
class Timing:
    """Times of a forward pass.

    Args:
        batch: examples in it.
        seconds: of every measured forward, in the order measured.
        warm: forwards that went before and were not measured.
        threads: of the CPU, while measuring.
        device: where.
    """

    batch: int
    seconds: tuple[float, ...]
    warm: int
    threads: int
    device: str

    @property
    def median(self) -> float:
        """Median seconds of a forward."""
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile, seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high

    def ratio(self, other: "Timing") -> float:
        """Say how many times longer this forward takes than another timed in turns with it: median over the rounds.

        Raises:
            ValueError: if the two were not measured equally often.
        """
        if len(self.seconds) != len(other.seconds):
            raise ValueError(f"A ratio wants equal rounds, got {len(self.seconds)} and {len(other.seconds)}.")
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def latency(
    nets: Mapping[str, nn.Module],
    example: Example,
    *,
    batch: int | None = None,
    runs: int = 30,
    warm: int = 10,
    threads: int | None = None,
) -> dict[str, Timing]:
    """Time the forward passes of networks in turns.

    Args:
        nets: by name.
        example: what all of them are called with: a tensor, a tuple, or a dict of keywords.
        batch: size that the example is brought to; None: as it is.
        runs: measured forwards of each; fewer than 30 say little.
        warm: forwards of each before.
        threads: of the CPU; None: as many as torch is set to.

    Raises:
        ValueError: if there is no network, a number is below 1, or the example has no tensor with a batch axis.
    """
    if not nets:
        raise ValueError("nets is empty: there is nothing to time.")
    for name, number, low in (("runs", runs, 1), ("warm", warm, 0), ("threads", threads, 1)):
        if number is not None and number < low:
            raise ValueError(f"{name} must be at least {low}, got {number}.")
    size = batch_of(example)
    given = example if batch is None else resized(example, batch)
    device = next(leaf.device for leaf in tree_leaves(given) if isinstance(leaf, Tensor))
    seconds: dict[str, list[float]] = {name: [] for name in nets}
    with ExitStack() as stack:
        # A network may be there under two names; it is put back as it was once.
        for net in {id(net): net for net in nets.values()}.values():
            stack.enter_context(undisturbed(net, evaluate=True))
        stack.enter_context(fixed_threads(threads))
        stack.enter_context(torch.inference_mode())
        used = torch.get_num_threads()
        for run in range(warm + runs):
            for name, net in nets.items():
                synchronize(device)
                begun = time.perf_counter()
                call(net, given)
                synchronize(device)
                if run >= warm:
                    seconds[name].append(time.perf_counter() - begun)
    return {
        name: Timing(size if batch is None else batch, tuple(times), warm, used, device.type)
        for name, times in seconds.items()
    }


def peak_memory(net: nn.Module, example: Example, *, batch: int | None = None) -> int:
    """Bytes that a forward pass holds at most, beside its inputs and the network's own tensors.

    Args:
        net: any module; it is looked at in evaluation mode, without gradients, and put back as it was.
        example: what it is called with.
        batch: size that the example is brought to; None: as it is.

    Returns:
        On CUDA the rise of the allocator's peak; elsewhere the largest sum of living tensors' storages, without
        kernels' own scratch memory (see the module's docstring).
    """
    given = example if batch is None else resized(example, batch)
    leaves = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    device = leaves[0].device if leaves else torch.device("cpu")
    with undisturbed(net, evaluate=True), torch.no_grad():
        if device.type == "cuda":
            call(net, given)  # workspaces of libraries are allocated once and stay
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            call(net, given)
            torch.cuda.synchronize(device)
            return torch.cuda.max_memory_allocated(device) - before
        with _Living([*leaves, *net.parameters(), *net.buffers()]) as living:
            call(net, given)
    return living.peak


class _Living(TorchDispatchMode):
    """Sum of the storages that operations made and somebody still holds; and the largest it has been."""

    def __init__(self, known: Sequence[Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._seen: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and follow what it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self._follow(leaf.untyped_storage())
        return out

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen or storage.data_ptr() in self._known or not size:
            return

        def gone(_: weakref.ref) -> None:
            self.now -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def batch_of(example: Example) -> int:
    """Length of the first axis of an example's first tensor.

    Raises:
        ValueError: if it has no tensor, the first one has no axis, or it is empty.
    """
    for leaf in tree_leaves(example):
        if isinstance(leaf, Tensor):
            if not leaf.ndim or not len(leaf):
                raise ValueError(f"example's first tensor needs a batch axis, got the shape {tuple(leaf.shape)}.")
            return len(leaf)
    raise ValueError("example holds no tensor.")


def resized(example: Given, batch: int) -> Given:
    """Bring an example to a batch size, by repeating its members or leaving some out.

    Every tensor whose first axis is as long as that of the first tensor counts as batched; others stay as they are.

    Raises:
        ValueError: if the size is below 1, or the example has no batch axis.
    """
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}.")
    size = batch_of(example)

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or len(leaf) != size:
            return leaf
        return leaf[torch.arange(batch, device=leaf.device) % size]

    return tree_map(change, example)


@contextmanager
def fixed_threads(threads: int | None) -> Iterator[None]:
    """Let torch use so many threads of the CPU meanwhile; None: as many as it is set to."""
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def synchronize(device: torch.device) -> None:
    """Wait for a device that works on its own; the CPU does not."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
