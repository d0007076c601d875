"""Find the units of any network: record its ATen operations, read those, and group what must go together.

A recording sees functional uses of weights, views with concrete shapes and the names of parameters. What neither it nor
`torch.export` can follow, control flow that depends on data above all, is refused with its message and the cure.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from neuropil.structure.graph import rules
from neuropil.structure.graph.exporting import exported
from neuropil.structure.graph.labels import Axis, Solution
from neuropil.structure.graph.reading import Reader, Value
from neuropil.structure.graph.recording import Recording, aliases, record
from neuropil.structure.graph.unit_graph import Axes, Count, Reading, UnitGraph
from neuropil.structure.graph.units import Member, UnitGroup

__all__ = ["Example", "arguments", "evaluating", "forward", "trace_units"]

Example = Tensor | Sequence | Mapping[str, Any]
# Names of the weights that stand for their modules; those of weight norm have two.
ORIGINALS = tuple(f"parametrizations.weight.original{k}" for k in (0, 1, ""))
WEIGHTS = ("weight", "weight_ih_l0", "weight_ih", "weight_v", "weight_g", *ORIGINALS)
_ = rules  # importing them registers them


def trace_units(net: nn.Module, example_inputs: Example) -> UnitGraph:
    """Find which parameter axes form one unit, in any module that can be recorded, or read by `torch.export`.

    The network is read in eval mode; its mode is restored, its parameters are not touched.

    Args:
        net: any module.
        example_inputs: what it is called with: a tensor, a tuple of arguments, or a dict of keywords. Sizes that vary
            (batch, time) may be small.

    Returns:
        The groups of coupled units, frozen ones included, each with the reason.

    Raises:
        TypeError: if the network does not run on the example.
        ValueError: if it cannot be exported; the message names the operation.

    Source: coupled channels after Wang et al. 2024, arXiv 2403.18955; here every axis carries labels that operations
        unite, split and join.
    """
    recording = _recorded(net, example_inputs)
    reader = Reader()
    alike = aliases(net)
    tensors = {name: tensor for name, tensor in [*net.named_parameters(), *net.named_buffers()] if alike[name] == name}
    lasting = set(net.state_dict(keep_vars=True))
    for name, tensor in tensors.items():
        _label(name, tensor, reader, labelled=name in lasting and tensor.is_floating_point())
    placeholders = [node for node in recording.graph.nodes if node.op == "placeholder"]
    inputs = []
    for feed, node in zip(recording.feeds, placeholders, strict=True):
        if feed.kind == "tensor":
            inputs.append(reader.parameters[feed.name])
        elif node.meta["made"] is not None:
            inputs.append(Value.free(node.meta["made"]))
        else:
            inputs.append(node.meta["value"])
    returned = reader.run(recording.graph, inputs, recording.attributes)
    for value in _flat(returned):
        for axis in value.axes:
            if axis is not None:
                reader.labels.freeze(axis, "returned by the network")
    read = [feed for feed, node in zip(recording.feeds, placeholders, strict=True) if node.users]
    used = {feed.name for feed in read if feed.kind == "tensor"}
    for name in set(tensors) - used:
        for axis in reader.parameters[name].axes:
            if axis is not None:
                reader.labels.freeze(axis, "not used by the network")
    solution = reader.labels.solve()
    groups, classes = _grouped(reader, solution)
    sizes = [
        (name, 1, _axes(solution, value.axes, value.shape, classes))
        for name, value in reader.parameters.items()
        if isinstance(tensors[name], nn.Parameter)
    ]
    products = [
        (product.module, product.constant, _axes(solution, product.axes, product.sizes, classes))
        for product in reader.products
    ]
    names = {
        first: tuple(other for other, to in alike.items() if to == first and other != first)
        for first in reader.parameters
    }
    graph = UnitGraph(groups, reader.unknown, _shared(sizes), _shared(products), names)
    graph.reading = Reading(recording, reader.values, reader.fits, solution, classes, example_inputs)
    return graph


def arguments(example: Example) -> tuple[tuple, dict[str, Any]]:
    """Give the positional and keyword arguments that an example stands for."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example,) if isinstance(example, Tensor) else tuple(example), {}


def forward(net: nn.Module, example: Example) -> Any:
    """Call a network on an example."""
    args, keywords = arguments(example)
    return net(*args, **keywords)


@contextmanager
def evaluating(net: nn.Module):
    """Put every module into eval mode, and each back into its own afterwards.

    On the way there and back all are in training mode for a moment: then a module drops what it made of its parameters
    for evaluation, which would outlive a change of them.
    """
    modes = {module: module.training for module in net.modules()}
    net.train()
    net.eval()
    try:
        yield
    finally:
        net.train()
        net.train(modes[net])
        for module, training in modes.items():
            module.training = training


def _recorded(net: nn.Module, example: Example) -> Recording:
    """Record a network in eval mode; what a recording cannot follow is exported."""
    args, keywords = arguments(example)
    with evaluating(net), torch.no_grad():
        try:
            return record(net, args, keywords)
        except Exception:  # whatever stopped it: the network's own error is raised again here, all else export decides
            try:
                forward(net, example)
            except Exception as error:
                raise TypeError(f"The network does not run on example_inputs: {error}") from error
            return exported(net, args, keywords)


def _label(name: str, tensor: Tensor, reader: Reader, *, labelled: bool) -> None:
    """Label the axes of a parameter or buffer, once for all of its names."""
    axes = tuple(reader.labels.fresh(n) if labelled and n > 1 else None for n in tensor.shape)
    origin = tuple((name, k) for k in range(tensor.ndim))
    reader.parameters[name] = Value(tuple(tensor.shape), axes, origin)


def _flat(tree: Any) -> list[Value]:
    if isinstance(tree, Value):
        return [tree]
    if isinstance(tree, (list, tuple)):
        return [value for one in tree for value in _flat(one)]
    return []


def _grouped(reader: Reader, solution: Solution) -> tuple[list[UnitGroup], np.ndarray]:
    """Gather the rows of every unit, and units with the same rows of the same parameters into groups.

    Also returns the running number of every class of labels, in the order of groups and units, or -1.
    """
    places = [
        (name, axis, labels)
        for name, value in reader.parameters.items()
        for axis, labels in enumerate(value.axes)
        if labels is not None and (name, axis) not in reader.kernels
    ]
    numbers = np.full(len(solution.frozen), -1)
    if not places:
        return [], numbers
    found = [solution.below(labels) for _, _, labels in places]
    place = np.repeat(np.arange(len(places)), [len(positions) for positions, _ in found])
    position, one = (np.concatenate([pair[k] for pair in found]) for k in (0, 1))
    order = np.lexsort((position, place, one))
    place, position, one = place[order], position[order], one[order]
    # A unit's rows are neighbours now; the first of them in every place tells where its run begins.
    fresh = np.r_[True, (one[1:] != one[:-1]) | (place[1:] != place[:-1])]
    offset = position - position[np.maximum.accumulate(np.where(fresh, np.arange(len(one)), 0))]
    bounds = np.flatnonzero(np.r_[True, one[1:] != one[:-1], True])
    marks = np.stack([solution.frozen, solution.inexact, solution.contracted], axis=1)[one]
    groups: list[UnitGroup] = []
    count = 0
    for starts, length in sorted(
        _alike(np.column_stack([place, offset]), marks, bounds),
        key=lambda found: (place[found[0][0]], position[found[0][0]]),
    ):
        kinds = place[starts[0] : starts[0] + length]
        frozen, inexact, contracted = marks[starts[0]].tolist()
        rows = position[starts[:, None] + np.arange(length)]
        begins = np.flatnonzero(np.r_[True, kinds[1:] != kinds[:-1]])
        by_place = np.lexsort(rows[:, begins].T[::-1])
        rows, classes = rows[by_place], one[starts[by_place]]
        members = []
        for begin, end in pairwise([*begins.tolist(), len(kinds)]):
            name, axis, _ = places[kinds[begin]]
            index = torch.from_numpy(rows[:, begin:end].astype(np.int64))
            members.append(Member(name, axis, index, "in" if (name, axis) in reader.inputs else "out"))
        single = len(classes) == 1 and frozen < 0
        reason = solution.reasons[frozen] if frozen >= 0 else "a single unit" if single else None
        if reason is None and inexact >= 0:
            reason = solution.reasons[inexact]
        open_ = frozen < 0 and not single
        exact = open_ and inexact < 0
        groups.append(UnitGroup("", len(classes), tuple(members), open_, exact, open_, reason, contracted >= 0))
        numbers[classes] = np.arange(count, count + len(classes))
        count += len(classes)
    return _named(groups), numbers


def _alike(rows: np.ndarray, marks: np.ndarray, bounds: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Find the units with the same pattern of rows and the same marks.

    Args:
        rows: what makes the pattern, by row.
        marks: of the units, by row.
        bounds: where the rows of a unit begin, and where the last end.

    Returns:
        Where the rows of units that are alike begin, in order, and how many each has.
    """
    starts, lengths = bounds[:-1], np.diff(bounds)
    for length in np.unique(lengths).tolist():
        these = starts[lengths == length]
        pattern = rows[these[:, None] + np.arange(length)].reshape(len(these), -1)
        keys = np.ascontiguousarray(np.concatenate([pattern, marks[these]], axis=1, dtype=np.int64))
        _, kind = np.unique(keys.view(f"V{keys.itemsize * keys.shape[1]}").ravel(), return_inverse=True)
        order = np.argsort(kind, kind="stable")
        for alike in np.split(these[order], np.flatnonzero(np.diff(kind[order])) + 1):
            yield alike, length


def _named(groups: Sequence[UnitGroup]) -> list[UnitGroup]:
    """Name groups after what produces them (or reads them: "in"), then by units x rows, then by number."""
    firsts = [_first(group) for group in groups]
    short = [_module(first.parameter) + ("" if first.role == "out" else ".in") for first in firsts]
    names = [
        name if short.count(name) == 1 else f"{name}:{group.size}x{first.index.shape[1]}"
        for name, group, first in zip(short, groups, firsts, strict=True)
    ]
    seen: dict[str, int] = {}
    result = []
    for name, group in zip(names, groups, strict=True):
        seen[name] = seen.get(name, 0) + 1
        unique = name if names.count(name) == 1 else f"{name}#{seen[name]}"
        result.append(
            UnitGroup(unique, *(getattr(group, part) for part in UnitGroup.__dataclass_fields__ if part != "name"))
        )
    return result


def _first(group: UnitGroup) -> Member:
    """Choose the member that a group is named after."""
    members = group.producing() or group.members
    return next((member for member in members if not member.parameter.endswith("bias")), members[0])


def _module(parameter: str) -> str:
    """Name a weight by its module, any other parameter by itself."""
    for end in WEIGHTS:
        parameter = parameter.removesuffix(f".{end}")
    return parameter


def _axes(solution: Solution, axes: Sequence[Axis], sizes: Sequence[int], numbers: np.ndarray) -> tuple[Axes, ...]:
    """For every axis, which positions go with which units."""
    listed = []
    for axis, size in zip(axes, sizes, strict=True):
        if axis is None:
            listed.append((size, np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)))
            continue
        positions, classes = solution.below(axis)
        units = numbers[classes]
        listed.append((size, positions[units >= 0], units[units >= 0]))
    return tuple(listed)


def _shared(counts: Sequence[Count]) -> list[Count]:
    """Let equal axes be one object, so that each is counted once."""
    known: dict[tuple, Axes] = {}
    return [
        (name, constant, tuple(known.setdefault((a[0], a[1].tobytes(), a[2].tobytes()), a) for a in axes))
        for name, constant, axes in counts
    ]
