"""Sizes that live in the user's Python (`num_heads`, `split_size`): found by trial, accepted only on equality.

A forward that runs proves nothing: `view(B, N, 3, h, -1)` after one of four heads was cut has the right shape and wrong
numbers. So a trial is accepted when its output equals, on drawn parameters, that of the masked network, or where the
groups are not exact that of the exported graph, cut alike.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor, nn

from neuropil.structure.graph.unit_graph import Keep, UnitGraph
from neuropil.structure.graph.units import UnitGroup
from neuropil.structure.surgery.leaves import settle_sizes
from neuropil.structure.surgery.masking import mask_units
from neuropil.structure.surgery.proof import agree, drawn_copy, outputs
from neuropil.structure.surgery.rewrite import places, rewritten
from neuropil.structure.surgery.rows import Rows, owner, replace, select, surviving

__all__ = ["Attribute", "cut_rows", "discover", "half_of", "kept_units", "set_attributes"]

TRIALS = 40


@dataclass(frozen=True)
class Attribute:
    """A whole number on a module that follows a size: the units of a group, or an axis of a parameter.

    Attributes:
        module: qualified name of the module.
        name: of the attribute.
        group: whose number of units it is.
        parameter: whose axis it is the length of; None if it counts units.
        axis: which axis.
    """

    module: str
    name: str
    group: str
    parameter: str | None = None
    axis: int = 0

    def value(self, units: Mapping[str, int], rows: Rows, old: int) -> int:
        """Give its value when groups have these numbers of units, and parameters these rows of the old ones."""
        if self.parameter is None:
            return units.get(self.group, old)
        kept = rows.get(self.parameter, {}).get(self.axis)
        return old if kept is None else len(kept)


def discover(
    net: nn.Module, graph: UnitGraph, groups: Sequence[UnitGroup] | None = None
) -> dict[str, tuple[Attribute, ...] | str]:
    """Find, for every group, which attributes must follow when its units go, or why the module cannot lose them.

    Args:
        net: the network that the graph was traced from; it is not touched.
        graph: its units.
        groups: which; None takes all prunable ones, inexact ones too.

    Returns:
        By group, the attributes (none for most); or a reason that names the user's line.
    """
    groups = graph.prunable(inexact=True) if groups is None else list(groups)
    if not groups:
        return {}
    proof = drawn_copy(net)
    halves = {group.name: half_of(group) for group in groups}
    if _Trial(proof, graph, halves).fails(()) is None:
        return {group.name: () for group in groups}
    found: dict[str, tuple[Attribute, ...] | str] = {}
    alike: dict[tuple, tuple[str, ...] | None] = {}  # by kind of module: names of attributes, None if nothing works
    for group in groups:
        found[group.name] = _search(proof, graph, group, alike)
    kinds: dict[tuple, list[str]] = {}
    for group in groups:
        if not isinstance(found[group.name], str):
            kinds.setdefault(_kind(proof, group), []).append(group.name)
    accepted: list[str] = []

    def together(names: list[str]) -> bool:
        """Tell whether these groups can go with those taken before."""
        chosen = [*accepted, *names]
        trial = _Trial(proof, graph, {name: halves[name] for name in chosen})
        return trial.fails(_joined(found[name] for name in chosen)) is None

    def accept(names: list[str]) -> None:
        """Take the groups of one kind that can go together: all, or none if the first cannot, else by halves."""
        if together(names):
            accepted.extend(names)
        elif len(names) == 1 or not together(names[:1]):
            for name in names:
                found[name] = "cannot lose these units together with those of other groups"
        else:
            accept(names[: len(names) // 2])
            accept(names[len(names) // 2 :])

    every = [name for names in kinds.values() for name in names]
    if every and not together(every):
        for names in kinds.values():
            accept(names)
    return found


def _joined(attributes: Iterable[tuple[Attribute, ...] | str]) -> list[Attribute]:
    return list(dict.fromkeys(one for these in attributes if not isinstance(these, str) for one in these))


def half_of(group: UnitGroup) -> Tensor:
    """Keep every other unit, the first among them."""
    return torch.arange(group.size) % 2 == 0


def kept_units(keep: Keep) -> dict[str, int]:
    """Count the units that stay, by group."""
    return {name: int(kept.sum()) for name, kept in keep.items()}


def cut_rows(net: nn.Module, graph: UnitGraph, keep: Keep) -> tuple[Rows, dict[str, tuple[int, ...]]]:
    """Find the rows that stay and the shapes before."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    rows = surviving(graph, keep, shapes)
    return rows, {name: tuple(shape) for name, shape in shapes.items()}


def set_attributes(
    net: nn.Module, attributes: Sequence[Attribute], units: Mapping[str, int], rows: Rows
) -> dict[str, int]:
    """Set attributes after surgery (see `Attribute.value`); gives their new values by "module.name"."""
    new = {}
    for one in attributes:
        module = net.get_submodule(one.module)
        value = one.value(units, rows, getattr(module, one.name))
        setattr(module, one.name, value)
        new[f"{one.module}.{one.name}" if one.module else one.name] = value
    return new


class _Trial:
    """A copy that was cut, and what it should compute."""

    def __init__(self, proof: nn.Module, graph: UnitGraph, keep: Keep):
        assert graph.reading is not None
        self._units, self._example = kept_units(keep), graph.reading.example
        self._rows, shapes = cut_rows(proof, graph, keep)
        self._failure: str | None = None
        if all(graph[name].exact for name in keep):
            masked = copy.deepcopy(proof)  # the same function as the cut graph, and sooner at hand
            mask_units(masked, keep, graph).apply_(masked)
            self._wanted = outputs(masked, self._example)
        else:
            try:
                self._wanted = outputs(rewritten(proof, graph, keep, self._rows), self._example)
            except Exception as error:
                self._failure = f"has no reference to compare with ({_short(error)})"
                return
        self._net = copy.deepcopy(proof)
        try:
            replace(self._net, graph, self._rows, lambda name, old: select(old, self._rows[name]))
            settle_sizes(self._net, self._rows, shapes)
        except Exception as error:
            self._failure = _short(error)

    def fails(self, attributes: Sequence[Attribute]) -> str | None:
        """Run it with these attributes set; None if it computes what it should, else what went wrong."""
        if self._failure is not None:
            return self._failure
        before = [getattr(self._net.get_submodule(one.module), one.name) for one in attributes]
        try:
            set_attributes(self._net, attributes, self._units, self._rows)
            got = outputs(self._net, self._example)
        except Exception as error:
            return _short(error)
        finally:
            for one, value in zip(attributes, before, strict=True):
                setattr(self._net.get_submodule(one.module), one.name, value)
        return None if agree(got, self._wanted) else "it runs, and computes something else"


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _search(
    proof: nn.Module, graph: UnitGraph, group: UnitGroup, alike: dict[tuple, tuple[str, ...] | None]
) -> tuple[Attribute, ...] | str:
    """Find the attributes of one group; those of modules of one kind are found once, and proved together later."""
    candidates = list(_candidates(proof, group))
    kind = _kind(proof, group)
    failure = ""
    if kind in alike:
        names = alike[kind]
        chosen = tuple(one for one in candidates if names is not None and one.name in names)
        if names is not None and {one.name for one in chosen} == set(names):
            return chosen
    else:
        trial = _Trial(proof, graph, {group.name: half_of(group)})
        alike[kind] = None
        for chosen in islice(_subsets(candidates), TRIALS):
            failure = trial.fails(chosen) or ""
            if not failure:
                alike[kind] = tuple(one.name for one in chosen)
                return chosen
    where = places(graph, {group.name: half_of(group)})
    return f"needs code: {'sizes are written in ' + '; '.join(where[:3]) if where else failure}"


def _subsets(candidates: Sequence[Attribute]) -> Iterator[tuple[Attribute, ...]]:
    """List sets of candidates to try: none, all, then each alone, then pairs, and so on."""
    for count in (0, *([len(candidates)] if candidates else []), *range(1, len(candidates))):
        yield from combinations(candidates, count)


def _kind(net: nn.Module, group: UnitGroup) -> tuple:
    """Tell groups of modules of one kind: classes of the modules, names and numbers of their rows."""
    return (
        group.size,
        *(
            (type(owner(net, member.parameter)[0]).__name__, member.parameter.rpartition(".")[2], *member.index.shape)
            for member in group.members
        ),
    )


def _candidates(net: nn.Module, group: UnitGroup) -> Iterator[Attribute]:
    """List whole numbers near the group's parameters that equal its units or the length of one of its axes."""
    modules = dict(net.named_modules())
    sizes: dict[int, tuple[str | None, int]] = {}
    tensors: Mapping[str, Tensor] = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    for member in group.members:
        sizes.setdefault(tensors[member.parameter].shape[member.axis], (member.parameter, member.axis))
    sizes[group.size] = (None, 0)
    near: dict[str, None] = {}
    for member in group.members:
        path = member.parameter.rpartition(".")[0]
        for _ in range(3):
            near.setdefault(path)
            path = path.rpartition(".")[0]
    for path in near:
        module = modules.get(path)
        if module is None or type(module).__module__.startswith("torch.nn"):
            continue
        for name, value in vars(module).items():
            if isinstance(value, int) and not isinstance(value, bool) and value in sizes and not name.startswith("_"):
                parameter, axis = sizes[value]
                yield Attribute(path, name, group.name, parameter, axis)
