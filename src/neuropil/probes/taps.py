"""Look into any torch model while it runs, and change what passes.

    with tap(model, {Site("blocks.3.mlp.down", io="in"): clamp(0.0, mask)}):
        loss = loss_fn(model(x), y)
        loss.backward()

The contract: hooks are removed whatever happens inside; a site that was never met raises on leaving; of nested taps the
one entered first comes first, and the next sees what it left; gradients flow as without the tap, save through entries
that a clamp holds. It works without gradients, under autocast, in `generate` with its cache, and where gradient
checkpointing runs a part again, provided that the backward pass is inside the `with`.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from neuropil.learning.stages import Inputs, feed, undisturbed
from neuropil.probes.edits import TapFunction, add, clamp, patch, scale, zero
from neuropil.probes.recording import Budget, Recording
from neuropil.probes.sites import Context, Site, Step, Where, expand, pick, put, sites

__all__ = [
    "Context",
    "Recording",
    "Site",
    "TapFunction",
    "Where",
    "add",
    "clamp",
    "patch",
    "record",
    "scale",
    "sites",
    "tap",
    "two_pass",
    "zero",
]


Functions = Mapping[Where, TapFunction] | Mapping[Site, TapFunction] | Mapping[str, TapFunction]


@contextmanager
def tap(model: nn.Module, functions: Functions) -> Iterator[Mapping[Site, int]]:
    """Call functions with the tensors that pass some sites, while the block runs.

    Args:
        model: any module, run in any way inside the block.
        functions: by site, name of a module or pattern of names: fn(tensor, context) returns what takes the tensor's
            place, or None to leave it. It may not change the tensor in place.

    Yields:
        How often each site has been met so far.

    Raises:
        ValueError: at once if a site is in no module or named twice, or the model is a DataParallel, whose copies have
            hooks of their own; in the forward pass if a site has no such tensor, or a function returns one of another
            shape; on leaving if a site was never met.
        TypeError: if a function returns no tensor, or one of whole numbers for one that is not, or the reverse.
    """
    placed = _placed(model, functions)
    counters = {site: _Counter() for site in placed}
    passes = _Passes(list(counters.values()))
    handles: list[RemovableHandle] = []
    try:
        handles.append(model.register_forward_pre_hook(passes.begin, with_kwargs=True, prepend=True))
        for site, function in placed.items():
            module = model.get_submodule(site.module)
            visit = _visitor(site, function, counters[site], passes)
            if site.io == "out":
                handles.append(module.register_forward_hook(_output_hook(site, visit)))
            else:
                hook = _input_hook(site, visit)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        yield _Fired(counters)
    finally:
        for handle in handles:
            handle.remove()
    silent = [str(site) for site, counter in counters.items() if not counter.fired]
    if silent:
        why = (
            "the model was not run in the block"
            if passes.step < 0 and len(silent) == len(placed)
            else "the forward pass does not call these modules, or the model was compiled before"
        )
        raise ValueError(f"Never met: {', '.join(silent)}; {why}.")


def _placed(model: nn.Module, functions: Mapping[Any, TapFunction]) -> dict[Site, TapFunction]:
    if isinstance(model, nn.DataParallel):
        raise ValueError("model is a DataParallel, whose copies run hooks of their own: tap model.module.")
    placed: dict[Site, TapFunction] = {}
    for found, function in zip(expand(model, functions), functions.values(), strict=True):
        for site in found:
            if site in placed:
                raise ValueError(f"{site} is named twice: nest one tap in another to apply two functions to it.")
            placed[site] = function
    return placed


def _recomputing() -> bool:
    # The number of the backward pass that this thread is in: what torch's own checkpointing asks.
    return torch._C._current_graph_task_id() != -1


class _Counter:
    """How often a site was met: in all, and before the current pass."""

    __slots__ = ("before", "fired")

    def __init__(self):
        self.fired = self.before = 0


class _Fired(Mapping[Site, int]):
    """What a tap yields."""

    def __init__(self, counters: dict[Site, _Counter]):
        self._counters = counters

    def __getitem__(self, site: Site) -> int:
        return self._counters[site].fired

    def __iter__(self) -> Iterator[Site]:
        return iter(self._counters)

    def __len__(self) -> int:
        return len(self._counters)

    def __repr__(self) -> str:
        return repr(dict(self))


class _Passes:
    """Counts the passes through the model."""

    def __init__(self, counters: list[_Counter]):
        self.counters = counters
        self.step = -1
        self.grid: tuple[int, int] | None = None

    def begin(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not _recomputing():
            self.step += 1
            self.grid = _grid(args, kwargs)
            for counter in self.counters:
                counter.before = counter.fired


Visit = Callable[[Any], Tensor | None]
"""What is found at a site -> what takes its place, if anything does."""


def _visitor(site: Site, function: TapFunction, counter: _Counter, passes: _Passes) -> Visit:
    key = site.key

    # Called at every site in every pass: what can be looked up before is.
    def visit(tensor: Any) -> Tensor | None:
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{site} has a {type(tensor).__name__}, not a tensor: give its index.")
        fired, recomputed = counter.fired, _recomputing()
        if recomputed:
            fired = max(fired - 1, 0)
        else:
            counter.fired = fired + 1
        call = max(fired - counter.before, 0)
        seen = tensor if key is None else tensor[key]
        new = function(seen, Context(site, call, max(passes.step, 0), fired, passes.grid, recomputed))
        if new is None or new is seen:
            return None
        new = _fitting(site, seen, new)
        if key is None:
            return new
        whole = tensor.clone()
        whole[key] = new
        return whole

    return visit


def _fitting(site: Site, old: Tensor, new: object) -> Tensor:
    if not isinstance(new, Tensor):
        raise TypeError(f"{site}: a tap returns a tensor or None, got a {type(new).__name__}.")
    if new.shape != old.shape:
        raise ValueError(f"{site}: a tap returned shape {tuple(new.shape)} in place of {tuple(old.shape)}.")
    if new.dtype == old.dtype:
        return new
    # Autocast makes float32 of what sums and exponentials touch: back to what the model works with.
    if new.is_floating_point() != old.is_floating_point() or new.is_complex() != old.is_complex():
        raise TypeError(f"{site}: a tap returned {new.dtype} in place of {old.dtype}.")
    return new.to(old.dtype)


def _grid(args: tuple, kwargs: dict[str, Any]) -> tuple[int, int] | None:
    named = [kwargs.get("input_ids"), kwargs.get("inputs_embeds")]
    for x in (*args, *named, *kwargs.values()):
        if isinstance(x, Tensor):
            tokens = x.ndim == 2 and not x.is_floating_point()
            return (x.shape[0], x.shape[1]) if tokens or (x.ndim == 3 and x.is_floating_point()) else None
    return None


def _output_hook(site: Site, visit: Visit):
    path = site.path

    def hook(module: nn.Module, args: tuple, output: Any) -> Any:
        new = visit(output if isinstance(output, Tensor) and path == (0,) else pick(output, path, site))
        return None if new is None else put(output, path, new, site)

    return hook


def _input_hook(site: Site, visit: Visit):
    first, *rest = site.path
    deeper = tuple(rest)
    names: list[str] = []

    def argument(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Step:
        """Where the argument is: a position or a name, however `first` says it."""
        if (isinstance(first, int) and -len(args) <= first < len(args)) or first in kwargs:
            return first
        if not names:
            names.extend(inspect.signature(module.forward).parameters)
        if isinstance(first, int) and 0 <= first < len(names) and names[first] in kwargs:
            return names[first]
        if isinstance(first, str) and first in names and names.index(first) < len(args):
            return names.index(first)
        raise ValueError(f"{site}: called with {len(args)} arguments and {list(kwargs)} by name, not with {first!r}.")

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        place = argument(module, args, kwargs)
        given = args[place] if isinstance(place, int) else kwargs[place]
        new = visit(pick(given, deeper, site) if deeper else given)
        if new is None:
            return None
        if isinstance(place, int):
            return put(args, (place, *deeper), new, site), kwargs
        return args, put(kwargs, (place, *deeper), new, site)

    return hook


@contextmanager
def record(
    model: nn.Module,
    where: Where | Iterable[Where],
    *,
    max_bytes: int | None = None,
    device: torch.device | str | None = None,
    graph: bool = False,
) -> Iterator[Recording]:
    """Keep the tensors that pass some sites.

    Args:
        model: any module.
        where: sites, names of modules or patterns of names; one or several.
        max_bytes: how much may be kept; None is without limit.
        device: where it is kept; None is where it arises.
        graph: whether the tensors stay in the graph, so that gradients can be asked for them: of a loss with respect to
            a recorded tensor, they are what flows through this site. Otherwise they are detached.

    Yields:
        The recording: copies, so that what later works in place does not change them.

    Raises:
        MemoryError: before a tensor is copied that would exceed `max_bytes`.
        ValueError: as `tap` does.
    """
    wanted = [where] if isinstance(where, str | Site) else list(where)
    found = dict.fromkeys(site for each in expand(model, wanted) for site in each)
    recording, budget = Recording(list(found)), Budget(max_bytes)

    def keep(tensor: Tensor, context: Context) -> Tensor | None:
        if context.recomputed:
            return None
        budget.spend(tensor, str(context.site))
        if not graph:
            copied = tensor.detach()
            copied = copied.clone() if device is None else copied.to(device, copy=True)
            recording.append(context.site, copied)
            return None
        # Of two copies in a row the first has this site's gradient alone, and nobody writes into it.
        kept = tensor.clone()
        recording.append(context.site, kept if device is None else kept.to(device))
        return kept.clone()

    with tap(model, dict.fromkeys(found, keep)):
        yield recording


def two_pass(model: nn.Module, x: Inputs, keep: Where | Iterable[Where], edits: Functions | None = None) -> Any:
    """Run a model twice: the first pass records some sites, the second holds them there and applies the edits.

    With attention patterns kept and values silenced, what a head writes is gone and what it does to the patterns above
    it stays: an ablation that preserves patterns.

    Args:
        model: any module; both passes draw the same dropout masks, and running statistics count the batch once.
        x: its input; several arguments as a tuple or a mapping.
        keep: sites that the second pass takes from the first.
        edits: functions by site for the second pass, applied after what is kept.

    Returns:
        What the second pass returns. Gradients flow through all that is not kept.

    Source: Singh et al., ICML 2024 (pattern-preserving ablation).
    """
    with undisturbed(model), torch.no_grad(), record(model, keep) as recording:
        feed(model, x)
    kept = {site: patch(recording.calls(site)) for site in recording}
    with tap(model, kept), tap(model, edits or {}):
        return feed(model, x)
