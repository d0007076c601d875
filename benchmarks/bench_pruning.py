"""Cutting units beside torch-pruning: which networks come out right, time to trace and to prune, and the real speed.

python benchmarks/bench_pruning.py [models|times|speed] [names of models]

Right means that the smaller network computes, in float64, what the original computes with the same units set to zero
(see `masked_twin`). A run without an error proves nothing: a wrong view has the right shape. torch-pruning is tried in
three settings (heads of attention not named, named and made thinner, named and made fewer) and counted by the best of
them; layers whose units give the output are named for it.
"""

import contextlib
import copy
import importlib
import io
import math
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from masked_twin import RegroupedError, difference, masked_twin, rescaled_attention
from torch import Tensor, nn

from neuropil.structure.criteria import Magnitude
from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.profile import compare_profiles
from neuropil.structure.prune import prune_units
from neuropil.structure.surgery import shrink

# The models are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.structure.zoo import ZOO, Case, resnet18

try:
    from peers.torch_pruning_runs import TorchPruning, shape_keepers
except ImportError:
    TorchPruning = shape_keepers = None

RATIO, LIMIT = 0.5, 30
# These normalise over units by a function, with no norm to ask about the kept ones, or divide by a masked 0.
UNCOMPARED = ("softmax", "weight-norm", "hf-bit")
THINNER = "torch-pruning, thinner"
Tool = Callable[..., tuple[float, nn.Module]]


@dataclass(frozen=True)
class Outcome:
    """What a tool made of a model.

    Args:
        verdict: "right", "wrong", "nothing" (cut), "unclear" (no twin to compare with) or "error".
        traced: seconds to trace.
        pruned: seconds to choose and cut after it.
        left: share of parameters that is left.
        gap: largest relative difference from the masked twin.
        words: of an error.
    """

    verdict: str
    traced: float = math.nan
    pruned: float = math.nan
    left: float = math.nan
    gap: float = math.nan
    words: str = ""

    def __str__(self) -> str:
        """Give the verdict, what is left, and the seconds to trace and to prune."""
        if self.verdict == "error":
            return f"error    {self.words}"
        gap = {math.inf: ", other shapes", 0.0: ""}.get(self.gap, f", off by {self.gap:.2g}")
        gap = gap if self.verdict == "wrong" else ""
        return f"{self.verdict:<8} {self.left:4.0%} left{gap}{self.words}   {self.traced:.2f} + {self.pruned:.2f} s"


def theirs(
    net: nn.Module, example: Any, heads: Any = "unnamed", ignored: tuple[str, ...] = ()
) -> tuple[float, nn.Module]:
    """Prune half of every group with torch-pruning."""
    begun = time.perf_counter()
    tool = TorchPruning(net, example, RATIO, heads, ignored)  # pyright: ignore[reportOptionalCall]
    traced = time.perf_counter() - begun
    return traced, tool.prune()


def ours(net: nn.Module, example: Any, backend: str = "module", *, proof: bool = True) -> tuple[float, nn.Module]:
    """Cut half of every group of units that can go, those across norms too, smallest weights first."""
    begun = time.perf_counter()
    graph = trace_units(net, example)
    traced = time.perf_counter() - begun
    if backend == "graph":
        return traced, shrink(net, halves(net, graph), graph, backend="graph")
    options = {"keep": 1 - RATIO, "scope": "group", "inexact": True, "graph": graph, "proof": proof}
    return traced, prune_units(net, example, Magnitude(), **options).net


def halves(net: nn.Module, graph: UnitGraph) -> dict[str, Tensor]:
    """Keep the larger units of every group that can lose any."""
    scores = graph.reduce({name: p.detach().abs() for name, p in net.named_parameters()})
    keep = {}
    for group in graph.prunable(inexact=True):
        left = max(round(group.size * (1 - RATIO)), 1)
        if left < group.size and group.name in scores:
            keep[group.name] = torch.zeros(group.size, dtype=torch.bool)
            keep[group.name][scores[group.name].topk(left).indices] = True
    return keep


class OutOfTime(BaseException):
    """The limit is over; no Exception, so that nothing on the way takes it for its own."""


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Stop what takes too long, and hear nobody's warnings."""

    def stop(*_: object) -> None:
        raise OutOfTime(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    quiet = io.StringIO()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            warnings.simplefilter("ignore")
            yield
    finally:
        signal.alarm(0)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def shared(net: nn.Module) -> int:
    """Count the names of parameters that have another name."""
    return len(list(net.named_parameters(remove_duplicate=False))) - len(list(net.parameters()))


def judged(one: Case, tool: Tool) -> Outcome:
    """Prune a copy of a model and compare it with its masked twin."""
    net, example = one.make(), one.inputs()
    smaller = copy.deepcopy(net)
    try:
        with limited(LIMIT):
            begun = time.perf_counter()
            traced, smaller = tool(smaller, example)
            pruned = time.perf_counter() - begun - traced
            out = one.call(smaller)
    except (Exception, OutOfTime) as error:  # whatever a tool raises is its result
        text = " ".join(str(error).split())
        return Outcome("error", words=f"{type(error).__name__}: {text[:70]}")
    left = parameters(smaller) / parameters(net)
    if left == 1.0:
        return Outcome("nothing", traced, pruned, left)
    try:
        twin = None if one.name in UNCOMPARED else masked_twin(net, smaller)
        if twin is None:
            return Outcome("unclear", traced, pruned, left)
        gap = difference(out, one.call(twin))
        with rescaled_attention():
            gap = min(gap, difference(out, one.call(twin)))
    except RegroupedError as error:
        return Outcome("wrong", traced, pruned, left, 0.0, f", {error}")
    words = "" if shared(net) <= shared(smaller) else ", shared weights parted"
    return Outcome("right" if gap <= one.tolerance else "wrong", traced, pruned, left, gap, words)


def tools() -> dict[str, Tool]:
    """Give the tools that are there, each under a setting."""
    given: dict[str, Tool] = {"neuropil": ours, "neuropil, graph": partial(ours, backend="graph")}
    if TorchPruning is not None:
        given["torch-pruning"] = theirs
        given |= {f"torch-pruning, {heads}": partial(theirs, heads=heads) for heads in ("thinner", "fewer")}
    return given


def models(names: list[str]) -> None:
    """Print what every tool makes of every model, and which models only one of them gets right."""
    best: dict[str, dict[str, Outcome]] = {}
    for one in ZOO:
        if names and one.name not in names:
            continue
        print(one.name, flush=True)
        for name, tool in tools().items():
            library, so_far = name.split(",")[0], best.setdefault(one.name, {})
            if library in so_far and so_far[library].words.startswith("OutOfTime") and library != "neuropil":
                continue  # it is its tracing that does not end, in all settings
            outcome = judged(one, tool)
            if outcome.gap == math.inf and name.startswith("torch"):
                # An output lost units: find the layers that must keep theirs, as a user would after seeing this.
                with limited(10 * LIMIT):
                    kept = shape_keepers(one.make(), one.inputs())  # pyright: ignore[reportOptionalCall]
                outcome = judged(one, partial(tool, ignored=tuple(kept)))
            print(f"    {name:<24} {outcome}", flush=True)
            if library not in so_far or RANK.index(outcome.verdict) < RANK.index(so_far[library].verdict):
                so_far[library] = outcome
    summary(best)


RANK = ("right", "unclear", "nothing", "error", "wrong")


def summary(best: dict[str, dict[str, Outcome]]) -> None:
    """Print how many models each library gets right in its best setting, and where they differ."""
    libraries = list(dict.fromkeys(name for row in best.values() for name in row))
    for library in libraries:
        counts = Counter(row[library].verdict for row in best.values())
        print(f"{library:<16} best setting: " + ", ".join(f"{counts[v]} {v}" for v in RANK if counts[v]))
        parted = [n for n, row in best.items() if row[library].verdict == "right" and row[library].words]
        print(f"    right, but shared weights parted: {', '.join(parted) or 'none'}")
    if len(libraries) == 2:
        for one, other in (libraries, libraries[::-1]):
            only = [n for n, row in best.items() if row[one].verdict == "right" != row[other].verdict]
            print(f"right in {one} only ({len(only)}): " + "; ".join(f"{n} [{best[n][other].verdict}]" for n in only))


def times(repeats: int = 7) -> None:
    """Print seconds to trace and to prune networks of a real size: medians, the tools taking turns."""
    shown = {name: tool for name, tool in tools().items() if name in ("neuropil", "neuropil, graph", THINNER)}
    shown["neuropil, unproved"] = partial(ours, proof=False)  # as torch-pruning, which proves nothing
    for name in ("resnet18, width 64", "vit, 12 layers of 384"):
        net, example = large(name)
        print(f"{name}: {parameters(net) / 1e6:.1f} M parameters", flush=True)
        seconds: dict[str, list[tuple[float, float]]] = {label: [] for label in shown}
        left: dict[str, float] = {}
        for _ in range(repeats + 1):
            for label, tool in shown.items():
                copied = copy.deepcopy(net)
                with limited(300):
                    begun = time.perf_counter()
                    traced, smaller = tool(copied, example)
                    seconds[label].append((traced, time.perf_counter() - begun - traced))
                left[label] = parameters(smaller) / parameters(net)
        for label, pairs in seconds.items():
            traced, pruned = (median(pair[k] for pair in pairs[1:]) for k in (0, 1))  # the first warms up
            whole = median(sum(pair) for pair in pairs[1:])
            ratio = whole / median(sum(pair) for pair in seconds.get(THINNER, pairs)[1:])
            print(
                f"    {label:<24} trace {traced:5.3f} s, prune {pruned:5.3f} s, {ratio:4.2f} x torch-pruning's, "
                f"{left[label]:4.0%} left",
                flush=True,
            )


def large(name: str) -> tuple[nn.Module, Any]:
    if name.startswith("resnet18"):
        return resnet18(64).eval(), torch.zeros(1, 3, 32, 32)
    transformers = importlib.import_module("transformers")
    config = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)
    return transformers.ViTForImageClassification(config).eval(), torch.zeros(1, 3, 224, 224)


def speed(batch: int = 64, threads: int = 2) -> None:
    """Print what half of the multiply-accumulates of a ResNet-18 for 32x32 images saves in time."""
    torch.manual_seed(0)
    net, example = resnet18(64).eval(), torch.randn(2, 3, 32, 32)
    for round_to in (1, 8):
        smaller = prune_units(copy.deepcopy(net), example, Magnitude(), macs=0.5, scope="group", round_to=round_to).net
        print(f"numbers of units are multiples of {round_to}")
        print(compare_profiles(net, smaller, example, batches=(batch,), threads=threads), flush=True)


if __name__ == "__main__":
    what, *rest = sys.argv[1:] or ["all"]
    if what in ("all", "models"):
        models(rest)
    if what in ("all", "times"):
        times()
    if what in ("all", "speed"):
        speed()
