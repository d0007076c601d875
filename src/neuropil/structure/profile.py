"""What a network costs: parameters, multiply-accumulates, seconds, memory; and what a change of it has really saved.

    parameters   entries of all parameters, shared ones once; `nonzero` of them are not exactly 0
    MACs         multiply-accumulates of one forward of one example: products of matrices, convolutions, attention and
                 recurrent layers (torch.utils.flop_counter counts two operations for each). Elementwise work, norms,
                 softmax, pooling and look-ups are not counted, as is usual
    seconds      measured (`neuropil.structure.speed`), at batch sizes 1 and 64
    peak         bytes that a forward holds at most, see there

MACs say what could be saved, not what is: a network with half of them takes rarely half the time, and one whose weights
are set to zero one by one takes all of it, because dense kernels multiply by zero as by anything else. A comparison
prints the ratio of MACs beside the measured ratio for that reason.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from neuropil.structure.criterion import call, undisturbed
from neuropil.structure.speed import Example, Timing, latency, peak_memory, resized

__all__ = ["CostComparison", "ModuleCost", "Profile", "compare_profiles", "count_macs", "profile"]

aten = torch.ops.aten
BATCHES = (1, 64)
# Parts of names of operations that multiply matrices: such a one without a formula is reported, not passed over.
HEAVY = ("mm", "mv", "matmul", "conv", "attention", "rnn", "lstm", "gru", "fft", "cdist", "einsum", "dot")
HARMLESS = ("dropout", "asymm", "symmetric", "convert", "comm")


@dataclass(frozen=True)
class ModuleCost:
    """Costs of one module with all that is in it.

    Args:
        name: qualified; empty for the whole network.
        kind: class of the module.
        parameters: entries, shared ones once.
        macs: of one forward of one example; a module that is called twice is counted twice.
    """

    name: str
    kind: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class Profile:
    """Costs of a network.

    Args:
        modules: the network, then its modules in their order.
        nonzero: entries of parameters that are not exactly 0.
        bytes: of parameters and buffers.
        uncounted: operations that multiply matrices but for which no formula is known: MACs are too low by them.
        timings: by batch size; empty if not measured.
        peaks: bytes by batch size; empty if not measured.
    """

    modules: tuple[ModuleCost, ...]
    nonzero: int
    bytes: int
    uncounted: tuple[str, ...]
    timings: dict[int, Timing]
    peaks: dict[int, int]

    @property
    def parameters(self) -> int:
        """Entries of all parameters."""
        return self.modules[0].parameters

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward of one example."""
        return self.modules[0].macs

    def table(self, depth: int | None = None) -> str:
        """Costs by module, as text.

        Args:
            depth: how many levels below the network; None: all.
        """
        rows = [("module", "class", "parameters", "MACs", "share of MACs")]
        for cost in self.modules:
            level = cost.name.count(".") + 1 if cost.name else 0
            if depth is None or level <= depth:
                share = f"{cost.macs / self.macs:.1%}" if self.macs else "-"
                rows.append((cost.name or "all", cost.kind, f"{cost.parameters:,}", f"{cost.macs:,}", share))
        return _columns(rows)

    def __str__(self) -> str:
        """Give the totals, and what was measured."""
        lines = [
            f"parameters {self.parameters:,} ({self.nonzero:,} not zero), {_bytes(self.bytes)} with buffers; "
            f"MACs {self.macs:,} an example"
        ]
        for batch, timing in self.timings.items():
            low, high = timing.quartiles
            lines.append(
                f"batch {batch}: median {1e3 * timing.median:.3g} ms (quartiles {1e3 * low:.3g} to {1e3 * high:.3g}, "
                f"{len(timing.seconds)} forwards after {timing.warm}), {timing.device}, {timing.threads} threads"
            )
        for batch, peak in self.peaks.items():
            lines.append(f"batch {batch}: activations hold {_bytes(peak)} at most")
        if self.uncounted:
            lines.append(f"not in the MACs: {', '.join(self.uncounted)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class CostComparison:
    """Two networks beside each other, timed in turns.

    Args:
        before: costs of the one that was there.
        after: of the one that came of it.
    """

    before: Profile
    after: Profile

    @property
    def parameter_ratio(self) -> float:
        """Parameters before over after."""
        return _ratio(self.before.parameters, self.after.parameters)

    @property
    def macs_ratio(self) -> float:
        """MACs before over after: the speed-up if time went with them."""
        return _ratio(self.before.macs, self.after.macs)

    def speedup(self, batch: int) -> float:
        """Give the measured time before over after, median over the rounds.

        Raises:
            KeyError: if this batch size was not measured.
        """
        return self.before.timings[batch].ratio(self.after.timings[batch])

    @property
    def masked(self) -> bool:
        """Whether weights were zeroed that are still there."""
        zeros = [one.parameters - one.nonzero for one in (self.before, self.after)]
        return zeros[1] > zeros[0]

    def report(self) -> str:
        """Counts, the ratio of MACs beside the measured ratios, and what zeros do not give."""
        one, two = self.before, self.after
        rows = [("", "before", "after", "before / after")]
        rows.append(("parameters", f"{one.parameters:,}", f"{two.parameters:,}", f"{self.parameter_ratio:.2f}"))
        rows.append(("not zero", f"{one.nonzero:,}", f"{two.nonzero:,}", f"{_ratio(one.nonzero, two.nonzero):.2f}"))
        rows.append(("MACs an example", f"{one.macs:,}", f"{two.macs:,}", f"{self.macs_ratio:.2f}"))
        for batch in one.timings:
            old, new = (f"{1e3 * timing.median:.3g} ms" for timing in (one.timings[batch], two.timings[batch]))
            rows.append((f"measured, batch {batch}", old, new, f"{self.speedup(batch):.2f}"))
        for batch in one.peaks:
            ratio = f"{_ratio(one.peaks[batch], two.peaks[batch]):.2f}"
            rows.append((f"peak, batch {batch}", _bytes(one.peaks[batch]), _bytes(two.peaks[batch]), ratio))
        lines = [_columns(rows)]
        for batch, timing in one.timings.items():
            lines.append(
                f"batch {batch}: MACs promise {self.macs_ratio:.2f} x, measured {self.speedup(batch):.2f} x "
                f"({len(timing.seconds)} forwards each in turns, {timing.device}, {timing.threads} threads)"
            )
        if self.masked:
            zeros = two.parameters - two.nonzero
            lines.append(
                f"{zeros:,} of {two.parameters:,} entries ({zeros / two.parameters:.1%}) are zero but still there. "
                "Unstructured masks give no dense speed-up: dense kernels multiply by zero as by anything else. "
                "Only units that are cut out (shrink) make it faster."
            )
        for name, costs in (("before", one), ("after", two)):
            if costs.uncounted:
                lines.append(f"not in the MACs {name}: {', '.join(costs.uncounted)}")
        return "\n".join(lines)

    __str__ = report


def profile(
    net: nn.Module,
    example: Example,
    *,
    batches: Sequence[int] = BATCHES,
    runs: int = 30,
    warm: int = 10,
    threads: int | None = None,
) -> Profile:
    """Count and measure what a network costs.

    The network is looked at in evaluation mode; its buffers and modes are put back as they were.

    Args:
        net: any module; its forward may be anything.
        example: what it is called with: a tensor, a tuple, or a dict of keywords; the first axis is the batch.
        batches: sizes at which to measure time and memory; empty: count only.
        runs: measured forwards at each size.
        warm: forwards before.
        threads: of the CPU; None: as many as torch is set to.

    Raises:
        ValueError: if a number is out of range, or the example has no batch axis.
    """
    timings = {n: latency({"": net}, example, batch=n, runs=runs, warm=warm, threads=threads)[""] for n in batches}
    return _profile(net, example, timings)


def compare_profiles(
    before: nn.Module,
    after: nn.Module,
    example: Example,
    *,
    batches: Sequence[int] = BATCHES,
    runs: int = 30,
    warm: int = 10,
    threads: int | None = None,
) -> CostComparison:
    """Count and measure two networks, timed in turns.

    Args:
        before: any module.
        after: one that takes the same inputs.
        example: what both are called with.
        batches: sizes at which to measure; empty: count only.
        runs: measured forwards of each at each size.
        warm: forwards of each before.
        threads: of the CPU; None: as many as torch is set to.

    Raises:
        ValueError: if a number is out of range, or the example has no batch axis.
    """
    nets = {"before": before, "after": after}
    timings: dict[str, dict[int, Timing]] = {name: {} for name in nets}
    for n in batches:
        for name, timing in latency(nets, example, batch=n, runs=runs, warm=warm, threads=threads).items():
            timings[name][n] = timing
    return CostComparison(*(_profile(net, example, timings[name]) for name, net in nets.items()))


def count_macs(net: nn.Module, example: Example) -> tuple[dict[str, int], tuple[str, ...]]:
    """Count the multiply-accumulates of one forward of one example.

    Args:
        net: any module.
        example: what it is called with; its first member is used.

    Returns:
        MACs by qualified name of a module, all that is in it included ("" for the network); and the names of operations
        that multiply matrices but have no formula.
    """
    watch = _Watch()
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    # The counter is the inner one: it takes operations apart before the watch sees them.
    with undisturbed(net, evaluate=True), torch.no_grad(), watch, counter:
        call(net, resized(example, 1))
    root = type(net).__name__
    macs: dict[str, int] = defaultdict(int)
    for name, by_operation in counter.get_flop_counts().items():
        if name == root or name.startswith(f"{root}."):
            macs[name[len(root) + 1 :]] = sum(by_operation.values()) // 2
    known = {str(operation) for operation in counter.flop_registry}
    return dict(macs), tuple(sorted(watch.heavy - known))


def _profile(net: nn.Module, example: Example, timings: dict[int, Timing]) -> Profile:
    macs, uncounted = count_macs(net, example)
    modules = [
        ModuleCost(name, type(module).__name__, sum(p.numel() for p in module.parameters()), macs.get(name, 0))
        for name, module in net.named_modules()
    ]
    tensors = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    return Profile(
        modules=tuple(modules),
        nonzero=sum(int(torch.count_nonzero(p)) for p in net.parameters()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()),
        uncounted=uncounted,
        timings=timings,
        peaks={n: peak_memory(net, example, batch=n) for n in timings},
    )


class _Watch(TorchDispatchMode):
    """Remember which operations ran that look as if they multiplied matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.heavy: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an operation and run it."""
        name = str(func.overloadpacket)
        base = name.rsplit(".", 1)[-1]
        if any(word in base for word in HEAVY) and not any(word in base for word in HARMLESS):
            self.heavy.add(name)
        return func(*args, **(kwargs or {}))


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """Count flops of attention: queries by keys, then weights by values."""
    *outer, positions, features = query
    return 2 * math.prod(outer) * positions * key[-2] * (features + value[-1])


def _recurrent(x: Sequence[int], w_ih: Sequence[int], w_hh: Sequence[int], *_: Any, **__: Any) -> int:
    """Count flops of a recurrent layer in one direction: both matrices at every position of every example."""
    return 2 * math.prod(x[:-1]) * (math.prod(w_ih) + math.prod(w_hh))


def _by_vector(left: Sequence[int], right: Sequence[int], *_: Any, **__: Any) -> int:
    """Count flops of a matrix by a vector, or of an inner product."""
    return 2 * math.prod(left)


def _shifted_by_vector(shift: Sequence[int], matrix: Sequence[int], vector: Sequence[int], *_: Any, **__: Any) -> int:
    """Count flops of a matrix by a vector, added to another."""
    return 2 * math.prod(matrix)


def _bilinear(one: Sequence[int], form: Sequence[int], two: Sequence[int], *rest: Any, **__: Any) -> int:
    """Count flops of a bilinear form, the products of the weights with the first input only: the dearer part."""
    expanded = [list(shape) for shape in (one, form, two)]
    for shape, axes in zip(expanded, rest[:3], strict=True):
        for axis in sorted(axes):
            shape.insert(axis, 1)
    return 2 * math.prod(max(sizes) for sizes in zip(*expanded, strict=True))


# What the counter does not know: kernels of the CPU that are no compositions of others.
FORMULAS: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.mkldnn_rnn_layer: _recurrent,
    aten.mv: _by_vector,
    aten.dot: _by_vector,
    aten.addmv: _shifted_by_vector,
    aten._trilinear: _bilinear,
}


def _ratio(before: float, after: float) -> float:
    return before / after if after else (1.0 if before == after else math.inf)


def _bytes(number: int) -> str:
    return f"{number / 1e6:.3g} MB" if number >= 1e6 else f"{number / 1e3:.3g} kB"


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Set rows in columns, all but the first column to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
