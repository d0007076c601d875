"""The recorded network with its numbers rewritten to what is left: surgery that always works, for deployment and proof.

Every literal of the recorded graph that is a size (of view, expand, split, slice, normalized_shape, groups) becomes the
number of labels that survive on its axis; the default scale of attention is written in before its axis shrinks.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from neuropil.structure.graph.labels import Axis
from neuropil.structure.graph.reading import Value
from neuropil.structure.graph.recording import Recording, aliases
from neuropil.structure.graph.replay import Replay
from neuropil.structure.graph.rules.products import CONVOLUTIONS
from neuropil.structure.graph.unit_graph import Keep, Reading, UnitGraph
from neuropil.structure.surgery.leaves import knows_its_sizes
from neuropil.structure.surgery.rows import Rows, select

__all__ = ["LooseSizes", "rewritten", "rewritten_recording"]

RESHAPES = frozenset(["view", "reshape", "_unsafe_view", "expand", "broadcast_to"])


def rewritten(net: nn.Module, graph: UnitGraph, keep: Keep, rows: Rows) -> Replay:
    """Give the recorded network without the units that go.

    Args:
        net: has the weights, still whole; it is not touched.
        graph: with its reading.
        keep: which units stay.
        rows: which rows stay (see `surviving`).

    Returns:
        A module specialised to eval mode and to the example's sizes.

    Raises:
        ValueError: if the graph was read from a specification.
    """
    first = aliases(net)
    lasting = set(net.state_dict(keep_vars=True))
    tensors: dict[str, Tensor] = {}
    for name, tensor in [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]:
        if first[name] == name:
            cut = select(tensor.detach(), rows[name]) if name in rows else tensor.detach().clone()
            learns = tensor.requires_grad
            tensors[name] = nn.Parameter(cut, requires_grad=learns) if isinstance(tensor, nn.Parameter) else cut
        else:
            tensors[name] = tensors[first[name]]  # tensors that were one stay one
    return Replay(rewritten_recording(graph, keep), tensors, set(tensors) - lasting)


def rewritten_recording(graph: UnitGraph, keep: Keep) -> Recording:
    """Copy the recorded graph, its numbers rewritten to what is left when units go.

    Raises:
        ValueError: if the graph was read from a specification.
    """
    reading = graph.reading
    if reading is None:
        raise ValueError("This graph was read from a specification: trace the network to rewrite it.")
    recording = reading.recording
    copied = Graph()
    copied.output(copied.graph_copy(recording.graph, {}))
    attributes = copy.deepcopy(dict(recording.attributes))
    survivors = Survivors(reading, graph.gone(keep))
    for old, new in _together((recording.graph, recording.attributes), (copied, attributes)):
        for k, value in _literals(old, reading, survivors).items():
            _set(new, k, value)
    copied.eliminate_dead_code()
    return replace(recording, graph=copied, attributes=attributes)


class Survivors:
    """Counts what is left of labelled axes."""

    def __init__(self, reading: Reading, gone: np.ndarray):
        self._reading, self._gone = reading, gone
        self._known: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def alive(self, axis: Axis) -> np.ndarray | None:
        """Tell which positions of an axis stay; None for an axis without labels."""
        if axis is None:
            return None
        if id(axis) not in self._known:
            positions, classes = self._reading.solution.below(axis)
            units = self._reading.numbers[classes]
            left = np.ones(len(axis), dtype=bool)
            known = units >= 0
            left[positions[known][self._gone[units[known]]]] = False
            self._known[id(axis)] = axis, left
        return self._known[id(axis)][1]

    def count(self, axis: Axis, otherwise: int) -> int:
        """Count the positions that stay."""
        left = self.alive(axis)
        return otherwise if left is None else int(left.sum())

    def whole(self, axis: Axis) -> bool:
        """Tell whether all positions of an axis stay."""
        left = self.alive(axis)
        return left is None or bool(left.all())

    def before(self, axis: Axis, position: int) -> int:
        """Count the positions that stay before one."""
        left = self.alive(axis)
        return position if left is None else int(left[:position].sum())

    def blocks(self, axis: Axis, blocks: int) -> int:
        """Count the equal blocks of an axis of which anything stays."""
        left = self.alive(axis)
        return blocks if left is None else int(left.reshape(blocks, -1).any(axis=1).sum())


Level = tuple[Graph, Mapping[str, Any]]  # a graph, and what its get_attr finds


def _together(old: Level, new: Level) -> Iterator[tuple[Node, Node]]:
    """Walk a graph and its copy, graphs within them too."""
    for a, b in zip(old[0].nodes, new[0].nodes, strict=True):
        if a.op == "get_attr" and isinstance(inner := old[1].get(str(a.target)), GraphModule):
            copied = new[1][str(b.target)]
            yield from _together(
                (inner.graph, dict(inner.named_children())), (copied.graph, dict(copied.named_children()))
            )
        elif a.op == "call_function":
            yield a, b


class LooseSizes:
    """Sizes in the user's code that follow units: those that no known module sets right by itself.

    Args:
        net: the network.
        graph: its units.
        keep: which stay, of every group that is to be asked about.
    """

    def __init__(self, net: nn.Module, graph: UnitGraph, keep: Keep):
        self._graph, self._nodes = graph, list[Node]()
        if graph.reading is None:
            return
        modules = dict(net.named_modules())
        level = graph.reading.recording.graph, graph.reading.recording.attributes
        every = [node for node, _ in _together(level, level)]
        self._nodes = [
            node for node in self._changing(every, keep) if not knows_its_sizes(modules.get(node.meta["module"]))
        ]

    def lines(self, keep: Keep) -> list[str]:
        """List the lines of the user's code with a size that changes when these units go."""
        return list(dict.fromkeys(node.meta["where"] for node in self._changing(self._nodes, keep)))

    def _changing(self, nodes: Sequence[Node], keep: Keep) -> Iterator[Node]:
        reading = self._graph.reading
        if reading is None or not nodes:
            return
        survivors = Survivors(reading, self._graph.gone(keep))
        for node in nodes:
            changed = _literals(node, reading, survivors)
            target: Any = node.target
            names = [argument.name for argument in target._schema.arguments] if changed else []
            before = {key: _argument(node, names.index(key)) for key in changed}
            if {key: list(old) if isinstance(old, list | tuple) else old for key, old in before.items()} != changed:
                yield node


@dataclass(frozen=True)
class Literals:
    """One operation whose arguments hold sizes: arguments by the schema's names, first input, what it returned."""

    arguments: Mapping[str, Any]
    values: Mapping[Node, Any]
    x: Value
    made: Any

    @property
    def out(self) -> Value:
        """The one tensor returned."""
        return self.made


def _literals(node: Node, reading: Reading, survivors: Survivors) -> dict[str, Any]:
    """Give the literals of an operation that depend on what survives, by the names of its schema."""
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload) or node not in reading.values:
        return {}
    arguments = {argument.name: _argument(node, k) for k, argument in enumerate(target._schema.arguments)}
    made = reading.values[node]
    if "size" in arguments and id(made) in reading.fits:  # a constant takes the size of what it meets
        axes = reading.fits[id(made)]
        return {"size": [survivors.count(a, s) for s, a in zip(arguments["size"], axes, strict=True)]}
    name = target._schema.name.split("::")[-1].removesuffix("_")
    inputs = [value for one in node.all_input_nodes if isinstance(value := reading.values.get(one), Value)]
    if name not in LITERALS or not inputs:
        return {}
    return LITERALS[name](Literals(arguments, reading.values, inputs[0], made), survivors)


def _argument(node: Node, k: int) -> Any:
    target: Any = node.target
    argument = target._schema.arguments[k]
    return node.args[k] if k < len(node.args) else node.kwargs.get(argument.name, argument.default_value)


def _set(node: Node, name: str, value: Any) -> None:
    target: Any = node.target
    k = [argument.name for argument in target._schema.arguments].index(name)
    if k < len(node.args):
        node.update_arg(k, value)
    else:
        node.update_kwarg(name, value)


def _reshaped(call: Literals, survivors: Survivors) -> dict[str, Any]:
    key = "size" if "size" in call.arguments else "shape"
    sizes = call.arguments[key]
    return {
        key: [
            size if size == -1 or isinstance(size, Node) else survivors.count(axis, size)
            for size, axis in zip(sizes, call.out.axes, strict=True)
        ]
    }


def _unflattened(call: Literals, survivors: Survivors) -> dict[str, Any]:
    sizes = call.arguments["sizes"]
    dim = call.arguments["dim"] % len(call.x.shape)
    axes = call.out.axes[dim : dim + len(sizes)]
    return {"sizes": [s if s == -1 else survivors.count(a, s) for s, a in zip(sizes, axes, strict=True)]}


def _sliced(call: Literals, survivors: Survivors) -> dict[str, Any]:
    dim = call.arguments["dim"] % len(call.x.shape)
    axis, size, start = call.x.axes[dim], call.x.shape[dim], call.arguments.get("start") or 0
    if survivors.whole(axis) or call.arguments.get("step", 1) != 1 or not isinstance(start, int):
        return {}
    start = max(start + size, 0) if start < 0 else min(start, size)
    return {"start": survivors.before(axis, start), "end": survivors.before(axis, start + call.out.shape[dim])}


def _narrowed(call: Literals, survivors: Survivors) -> dict[str, Any]:
    dim = call.arguments["dim"] % len(call.x.shape)
    start, length = call.arguments["start"], call.arguments["length"]
    first = survivors.before(call.x.axes[dim], start)
    return {"start": first, "length": survivors.before(call.x.axes[dim], start + length) - first}


def _divided(call: Literals, survivors: Survivors) -> dict[str, Any]:
    dim = call.arguments.get("dim", 0) % len(call.x.shape)
    sizes = [survivors.count(piece.axes[dim], piece.shape[dim]) for piece in call.made]
    key = "split_sizes" if "split_sizes" in call.arguments else "split_size"
    return {key: sizes if isinstance(call.arguments[key], (list, tuple)) else sizes[0]}


def _convolved(call: Literals, survivors: Survivors) -> dict[str, Any]:
    groups, weight = call.arguments.get("groups", 1), call.values[call.arguments["weight"]]
    return {} if groups == 1 else {"groups": survivors.blocks(weight.axes[0], groups)}


def _normalised(call: Literals, survivors: Survivors) -> dict[str, Any]:
    shape = call.arguments["normalized_shape"]
    axes = call.x.axes[len(call.x.axes) - len(shape) :]
    return {"normalized_shape": [survivors.count(a, s) for a, s in zip(axes, shape, strict=True)]}


def _grouped(call: Literals, survivors: Survivors) -> dict[str, Any]:
    return {"num_groups": survivors.blocks(call.x.axes[1], call.arguments["num_groups"])}


def _attended(call: Literals, survivors: Survivors) -> dict[str, Any]:
    """Write in the scale that attention takes from an axis which may shrink."""
    query = call.values[call.arguments["query"]]
    if call.arguments.get("scale") is not None or survivors.whole(query.axes[-1]):
        return {}
    return {"scale": 1 / math.sqrt(query.shape[-1])}


def _shuffled(call: Literals, survivors: Survivors) -> dict[str, Any]:
    return {"groups": survivors.blocks(call.x.axes[1], call.arguments["groups"])}


LITERALS: dict[str, Callable[[Literals, Survivors], dict[str, Any]]] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "expand", "broadcast_to"), _reshaped),
    "unflatten": _unflattened,
    "slice": _sliced,
    "narrow": _narrowed,
    "split": _divided,
    "split_with_sizes": _divided,
    **dict.fromkeys(CONVOLUTIONS, _convolved),
    "layer_norm": _normalised,
    "rms_norm": _normalised,
    "group_norm": _grouped,
    "scaled_dot_product_attention": _attended,
    "channel_shuffle": _shuffled,
}
