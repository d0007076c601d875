"""Sizes that live in the user's Python (`num_heads`, `split_size`): found by trial, accepted only on equality.

A forward that runs proves nothing: `view(B, N, 3, h, -1)` after one of four heads was cut has the right shape and wrong
numbers. So a trial is accepted when its output equals, on drawn parameters, that of the masked network, or where the
groups are not exact that of the recorded graph, cut alike.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from neuropil.structure.graph.recording import tensors_of
from neuropil.structure.graph.replay import replayed
from neuropil.structure.graph.tracing import arguments
from neuropil.structure.graph.unit_graph import Keep, UnitGraph
from neuropil.structure.graph.units import UnitGroup
from neuropil.structure.surgery.leaves import settle_sizes
from neuropil.structure.surgery.masking import silence_
from neuropil.structure.surgery.proof import agree, copy_with, drawn_tensors, outputs
from neuropil.structure.surgery.rewrite import LooseSizes, rewritten_recording
from neuropil.structure.surgery.rows import Rows, owner, select, surviving

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
    net: nn.Module, graph: UnitGraph, groups: Sequence[UnitGroup] | None = None, *, proof: bool = True
) -> dict[str, tuple[Attribute, ...] | str]:
    """Find, for every group, which attributes must follow when its units go, or why the module cannot lose them.

    Args:
        net: the network that the graph was traced from; it is not touched.
        graph: its units.
        groups: which; None takes all prunable ones, inexact ones too.
        proof: whether to try groups, too, with which no size in the user's code changes.

    Returns:
        By group, the attributes (none for most); or a reason that names the user's line.
    """
    groups = graph.prunable(inexact=True) if groups is None else list(groups)
    if not groups:
        return {}
    halves = {group.name: half_of(group) for group in groups}
    sizes = LooseSizes(net, graph, halves)
    kinds: dict[tuple, list[UnitGroup]] = {}
    for group in groups:
        kinds.setdefault(_kind(net, group), []).append(group)
    loose = [kind for kind, these in kinds.items() if sizes.lines({these[0].name: halves[these[0].name]})]
    found: dict[str, tuple[Attribute, ...] | str] = {group.name: () for group in groups}
    if not proof and not loose:
        return found
    search = _Search(net, graph, sizes)
    for kind in loose:
        found |= search.of_one_kind(kinds[kind])

    def chosen(which: Iterable[tuple]) -> list[str]:
        return [g.name for kind in which for g in kinds[kind] if not isinstance(found[g.name], str)]

    def passes(names: list[str]) -> bool:
        trial = search.trial({name: halves[name] for name in names})
        return trial.fails(_joined(found[name] for name in names)) is None

    every = chosen(kinds if proof else loose)
    if not every or passes(every):
        return found
    tight = [kind for kind in kinds if kind not in loose]
    accepted: list[str] = []
    if passes(chosen(tight)):
        accepted = chosen(tight)
    else:
        for kind in tight:
            found |= search.of_one_kind(kinds[kind])

    def accept(names: list[str]) -> None:
        """Take the groups of one kind that can go together: all, or none if the first cannot, else by halves."""
        if passes([*accepted, *names]):
            accepted.extend(names)
        elif len(names) == 1 or not passes([*accepted, names[0]]):
            for name in names:
                found[name] = "cannot lose these units together with those of other groups"
        else:
            accept(names[: len(names) // 2])
            accept(names[len(names) // 2 :])

    for kind in sorted(kinds, key=lambda kind: -_rows(kinds[kind][0])):  # whole heads before positions within heads
        if names := [name for name in chosen([kind]) if name not in accepted]:
            accept(names)
    return found


def _rows(group: UnitGroup) -> int:
    """Count the rows that go with one unit."""
    return sum(member.index.shape[1] for member in group.members)


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
    """A copy that was cut, with drawn parameters, and what it should compute.

    Args:
        net: the network; it is not touched.
        drawn: parameters and buffers by the first of their names, the trial's own.
        graph: the network's units.
        keep: which stay.
    """

    def __init__(self, net: nn.Module, drawn: Mapping[str, Tensor], graph: UnitGraph, keep: Keep):
        assert graph.reading is not None
        self._whole, self._drawn, self._graph, self._keep = net, drawn, graph, keep
        self._units, self._example = kept_units(keep), graph.reading.example
        self._rows, shapes = cut_rows(net, graph, keep)
        self._tensors = {
            name: select(tensor, self._rows[name]) if name in self._rows else tensor for name, tensor in drawn.items()
        }
        self._net = copy_with(net, self._tensors)
        self._wanted: list[Tensor] | None = None
        self._failure: str | None = None
        try:
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
        if self._wanted is None:
            try:
                self._wanted = self._reference()
            except Exception as error:
                self._failure = f"has no reference to compare with ({_short(error)})"
                return self._failure
        return None if agree(got, self._wanted) else "it runs, and computes something else"

    def _reference(self) -> list[Tensor]:
        """Give what the masked network computes, or where the groups are not exact the recorded graph, cut alike."""
        if all(self._graph[name].exact for name in self._keep):
            silence_(self._drawn, self._keep, self._graph)
            return outputs(copy_with(self._whole, self._drawn), self._example)
        leaves, _ = tree_flatten(arguments(copy.deepcopy(self._example)))
        with torch.no_grad():
            return list(tensors_of(replayed(rewritten_recording(self._graph, self._keep), self._tensors, leaves)))


def _short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


class _Search:
    """Trials on one network.

    Args:
        net: it is not touched.
        graph: its units.
        sizes: lines of its code that hold sizes.
    """

    def __init__(self, net: nn.Module, graph: UnitGraph, sizes: LooseSizes):
        self._net, self._graph, self._sizes = net, graph, sizes
        self._tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        self._modules = dict(net.named_modules())

    def trial(self, keep: Keep) -> _Trial:
        """Cut a copy."""
        return _Trial(self._net, drawn_tensors(self._net), self._graph, keep)

    def of_one_kind(self, groups: Sequence[UnitGroup]) -> dict[str, tuple[Attribute, ...] | str]:
        """Find the attributes of groups of one kind: by trial for the first, of the same names for the others."""
        found: dict[str, tuple[Attribute, ...] | str] = {}
        known: tuple[Attribute, ...] | str | None = None
        for group in groups:
            if isinstance(known, str):
                found[group.name] = known
                continue
            candidates = list(self._candidates(group))
            names = {one.name for one in known or ()}
            chosen = tuple(one for one in candidates if one.name in names)
            if known is None or {one.name for one in chosen} != names:
                known = chosen = self._first(group, candidates)
            found[group.name] = chosen
        return found

    def _first(self, group: UnitGroup, candidates: Sequence[Attribute]) -> tuple[Attribute, ...] | str:
        keep = {group.name: half_of(group)}
        trial = self.trial(keep)
        failure = ""
        for chosen in islice(_subsets(candidates), TRIALS):
            failure = trial.fails(chosen) or ""
            if not failure:
                return chosen
        lines = self._sizes.lines(keep)
        return f"needs code: {'sizes are written in ' + '; '.join(lines[:3]) if lines else failure}"

    def _candidates(self, group: UnitGroup) -> Iterator[Attribute]:
        """List whole numbers near the group's parameters that equal its units or the length of one of its axes."""
        sizes: dict[int, tuple[str | None, int]] = {}
        for member in group.members:
            sizes.setdefault(self._tensors[member.parameter].shape[member.axis], (member.parameter, member.axis))
        sizes[group.size] = (None, 0)
        near: dict[str, None] = {}
        for member in group.members:
            path = member.parameter.rpartition(".")[0]
            for _ in range(3):
                near.setdefault(path)
                path = path.rpartition(".")[0]
        for path in near:
            module = self._modules.get(path)
            if module is None or type(module).__module__.startswith("torch.nn"):
                continue
            for name, value in vars(module).items():
                counts = isinstance(value, int) and not isinstance(value, bool) and not name.startswith("_")
                if counts and value in sizes:
                    parameter, axis = sizes[value]
                    yield Attribute(path, name, group.name, parameter, axis)


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
