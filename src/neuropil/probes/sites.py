"""Named places where a tensor passes through a network.

Site("blocks.3.mlp")                            what the module gives
Site("blocks.3.mlp.down", io="in")              what it is given: of a down projection, the neurons' activations
Site("rnn", index=(1, 0))                       of a nest of outputs: the first of the second, an LSTM's last h
Site("blocks.3.mlp.act", select=(..., [3, 5]))  two units of the last axis, and no others
sites(net, "*.mlp.act")                         all that a pattern names, in the order of the modules
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from types import EllipsisType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Context", "Index", "Select", "Site", "Where", "expand", "pick", "put", "sites"]

Step = int | str
Index = Step | tuple[Step, ...]
"""Which of several tensors: a position or a name, or a path of them into a nest."""
Entry = int | slice | EllipsisType | Sequence[int] | Tensor
Select = Entry | tuple[Entry, ...]
"""Which part of a tensor, as in tensor[select]: numbers, slices, an ellipsis, lists of numbers."""


def _hashable(entry: Any) -> Any:
    if entry is Ellipsis or isinstance(entry, slice) or (isinstance(entry, int) and not isinstance(entry, bool)):
        return entry
    if isinstance(entry, Tensor):
        entry = (entry.nonzero().flatten() if entry.dtype == torch.bool else entry).tolist()
    if isinstance(entry, Sequence) and all(isinstance(n, int) and not isinstance(n, bool) for n in entry):
        return tuple(entry)
    raise TypeError(f"select takes numbers, slices, an ellipsis and lists of numbers, got {entry!r}.")


@dataclass(frozen=True)
class Site:
    """A place where a tensor passes.

    Args:
        module: name of a module as in `named_modules`, or a pattern of names ("*.mlp"); "" is the model itself.
        io: "out" for what the module returns, "in" for what it is called with.
        index: which tensor, where there are several. Of outputs: the position in a tuple, the name in a mapping; 0 of a
            module that returns a tensor is that tensor, never its first row. Of inputs: the position or the name among
            the arguments of `forward`, whichever way they are passed. A tuple is a path into a nest.
        select: the part of the tensor that is seen and may be changed, as in tensor[select]; None is all of it.

    Raises:
        ValueError: if `io` is neither.
        TypeError: if `select` holds anything but numbers, slices, an ellipsis and lists of numbers.
    """

    module: str
    io: Literal["out", "in"] = "out"
    index: Index = 0
    select: Select | None = None

    def __post_init__(self):
        if self.io not in ("out", "in"):
            raise ValueError(f'io must be "out" or "in", got {self.io!r}.')
        if self.select is not None:
            entries = self.select if isinstance(self.select, tuple) else (self.select,)
            object.__setattr__(self, "select", tuple(map(_hashable, entries)))

    def __hash__(self) -> int:
        return hash((self.module, self.io, self.index, repr(self.select)))  # slices have no hash before Python 3.12

    def __str__(self) -> str:
        name = self.module or "the model"
        name = name if self.io == "out" else f"input of {name}"
        which = "" if self.index == 0 else f", index {self.index!r}"
        return name + which + ("" if self.select is None else f", select {self.select!r}")

    @property
    def path(self) -> tuple[Step, ...]:
        """The index as a path."""
        return self.index if isinstance(self.index, tuple) else (self.index,)

    @property
    def key(self) -> tuple[Any, ...] | None:
        """What to index a tensor with, or None for all of it."""
        if not isinstance(self.select, tuple):
            return None
        return tuple(list(entry) if isinstance(entry, tuple) else entry for entry in self.select)


Where = str | Site
"""A site, or the name of a module or a pattern of names, which stands for outputs."""


class Context(NamedTuple):
    """Where and when a tensor was met.

    Attributes:
        site: the place.
        call: how often the module had been called before in this pass through the model: 0 unless it is shared.
        step: how many passes there were before since the tap was entered: under `generate`, the number of the token.
        fired: how often the site was met before since the tap was entered.
        grid: (batch, tokens) of the model's input, where that is whole numbers (batch, tokens) or floating-point
            numbers (batch, tokens, features); None for others.
        recomputed: whether gradient checkpointing runs this part again, during the backward pass. It is then the same
            call as before and does not count (of a module that a pass calls several times, the last call is named).
    """

    site: Site
    call: int = 0
    step: int = 0
    fired: int = 0
    grid: tuple[int, int] | None = None
    recomputed: bool = False

    def on_grid(self, tensor: Tensor) -> Tensor:
        """Give a tensor as (batch, tokens, ...), be it that already or flattened to (batch * tokens, features).

        Raises:
            ValueError: if the model's input has no such axes, or the tensor is neither.
        """
        if self.grid is None:
            raise ValueError(f"{self.site}: the model's input is no grid of tokens.")
        if tensor.ndim >= 3 and tuple(tensor.shape[:2]) == self.grid:
            return tensor
        if tensor.ndim == 2 and len(tensor) == self.grid[0] * self.grid[1]:
            return tensor.unflatten(0, self.grid)
        raise ValueError(f"{self.site}: shape {tuple(tensor.shape)} does not go with {self.grid} (batch, tokens).")


def sites(
    model: nn.Module,
    pattern: str | Iterable[str] = "*",
    *,
    io: Literal["out", "in"] = "out",
    index: Index = 0,
    select: Select | None = None,
) -> list[Site]:
    """Find the sites whose module's name matches a pattern.

    Args:
        model: any module.
        pattern: names, or patterns in which * stands for any characters, dots too, ? for one and [12] for one of these;
            one of them or several.
        io: as for `Site`; so are the next.
        index: which tensor.
        select: which part of it.

    Returns:
        One site a module, in the model's order; a module with several names has the first that matches. A pattern never
        stands for the model itself.

    Raises:
        ValueError: if a pattern matches no module; the message names the closest.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    names = _names(model)
    order = {name: position for position, name in enumerate(names)}
    found = sorted(_matching(model, names, patterns), key=order.__getitem__)
    return [Site(name, io, index, select) for name in found]


def _names(model: nn.Module) -> dict[str, int]:
    """Which module each name stands for."""
    return {name: id(module) for name, module in model.named_modules(remove_duplicate=False)}


def _matching(model: nn.Module, names: dict[str, int], patterns: Iterable[str]) -> list[str]:
    """The names that patterns stand for, one a module."""
    found: list[str] = []
    seen: set[int] = set()
    for each in patterns:
        # A name is looked up before it is read as a pattern: ModuleDicts may hold brackets.
        matches = [each] if each in names else [name for name in names if name and fnmatchcase(name, each)]
        if not matches:
            close = get_close_matches(each.replace("*", ""), [name for name in names if name], n=3, cutoff=0.3)
            hint = f"; the closest names are {close}" if close else ""
            raise ValueError(f"No module of {type(model).__name__} matches {each!r}{hint}.")
        for name in matches:
            if names[name] not in seen:
                seen.add(names[name])
                found.append(name)
    return found


def expand(model: nn.Module, places: Iterable[Where]) -> list[list[Site]]:
    """Give, for each site, name or pattern, the sites of the model that it stands for.

    Raises:
        ValueError: if there is none.
    """
    names = _names(model)
    found = []
    for where in places:
        site = where if isinstance(where, Site) else Site(where)
        if site.module in names:
            found.append([site])
        else:
            found.append([replace(site, module=name) for name in _matching(model, names, [site.module])])
    return found


def _at(tree: Any, step: Step, site: Site) -> Any:
    if isinstance(tree, Tensor) and step == 0:
        return tree
    try:
        if isinstance(tree, Mapping):
            return tree[_name(tree, step)]
        if isinstance(tree, tuple | list) and isinstance(step, int):
            return tree[step]
    except (KeyError, IndexError):
        pass
    raise ValueError(f"{site}: there is no {step!r} in {_described(tree)}.")


def _name(mapping: Mapping[str, Any], step: Step) -> str:
    return step if isinstance(step, str) else list(mapping)[step]


def _described(tree: Any) -> str:
    if isinstance(tree, Mapping):
        return f"a {type(tree).__name__} of {list(tree)}"
    if isinstance(tree, tuple | list):
        return f"a {type(tree).__name__} of {len(tree)}"
    return f"a single {type(tree).__name__}"


def pick(tree: Any, path: tuple[Step, ...], site: Site) -> Any:
    """Follow a path into nested tuples, lists and mappings; the site is named in the ValueError if it leads nowhere."""
    for step in path:
        tree = _at(tree, step, site)
    return tree


def put(tree: Any, path: tuple[Step, ...], value: Tensor, site: Site) -> Any:
    """Give a copy of a nest, of the same types, that holds the value at the end of the path."""
    if not path or isinstance(tree, Tensor):
        return value
    step, rest = path[0], path[1:]
    new = put(_at(tree, step, site), rest, value, site)
    if isinstance(tree, Mapping):
        copied: Any = copy(tree)
        copied[_name(tree, step)] = new
        return copied
    items = list(tree)
    items[int(step)] = new
    if hasattr(tree, "_make"):
        return tree._make(items)
    return items if isinstance(tree, list) else tuple(items)
