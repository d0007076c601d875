"""Read a recorded network operation by operation, and let a rule say what each does to the labels of its axes.

A rule is a function of (reader, call) for one ATen operation, registered by name; it returns the labels of what the
operation returns. An operation none of whose inputs carries labels needs no rule, and one without a rule freezes the
labels that enter it and is reported: nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from neuropil.structure.graph.labels import Axis, Labels

__all__ = ["Call", "Product", "Reader", "Unknown", "Value", "rule"]

Origin = tuple[str, int] | None  # (parameter, axis) that an axis is, where it still is one


@dataclass(frozen=True)
class Value:
    """What is known of a tensor: its shape, the labels of its axes, and the parameter axes that it still is."""

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    origin: tuple[Origin, ...] = ()
    uniform: bool = False  # one number everywhere: it fits whatever is left of what it meets

    def __post_init__(self) -> None:
        if not self.origin:
            object.__setattr__(self, "origin", (None,) * len(self.shape))
        axes = tuple(None if size == 1 else axis for size, axis in zip(self.shape, self.axes, strict=True))
        object.__setattr__(self, "axes", axes)

    @property
    def labelled(self) -> bool:
        """Whether any axis carries labels."""
        return any(axis is not None for axis in self.axes)

    @classmethod
    def free(cls, shape: Sequence[int], *, uniform: bool = False) -> Value:
        """Give a tensor without labels."""
        return cls(tuple(shape), (None,) * len(shape), uniform=uniform)


@dataclass(frozen=True)
class Unknown:
    """An operation without a rule, or a conflict: what, why, and the line of code that it came from."""

    what: str
    reason: str
    where: str


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of one call: a constant times the number of entries that survive on each axis."""

    module: str
    constant: int
    axes: tuple[Axis, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One operation: its name, its arguments by the names of its schema, and the shapes of what it returns."""

    node: Node
    name: str
    arguments: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Give an argument, or the default where the operation has no such argument."""
        return self.arguments.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first tensor returned."""
        return self.shapes[0]

    @property
    def where(self) -> str:
        """The user's line that called it."""
        return self.node.meta["where"]

    @property
    def module(self) -> str:
        """Qualified name of the innermost module that called it."""
        return self.node.meta["module"]

    def values(self) -> list[Value]:
        """Give all tensors among the arguments."""
        return list(_values(self.arguments.values()))


Rule = Callable[["Reader", Call], "Value | tuple[Value, ...] | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operations by name; the in-place form of each is meant too."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = RULES[name + "_"] = function
        return function

    return register


@dataclass
class Reader:
    """Carries labels through a graph.

    Attributes:
        labels: the store of labels.
        parameters: labels of the axes of every parameter and buffer, by qualified name.
        inputs: parameter axes that are contracted somewhere: they read units, the others produce them.
        kernels: parameter axes that slide over space: nobody's units.
        unknown: operations that froze what entered them.
        products: where multiply-accumulates happen.
        values: what every operation read so far returned.
        fits: the axes that a tensor of one number met first, by the identity of its value.
        sources: of which other such a tensor was made, and its axes there, likewise.
    """

    labels: Labels = field(default_factory=Labels)
    parameters: dict[str, Value] = field(default_factory=dict)
    inputs: set[tuple[str, int]] = field(default_factory=set)
    kernels: set[tuple[str, int]] = field(default_factory=set)
    unknown: list[Unknown] = field(default_factory=list)
    products: list[Product] = field(default_factory=list)
    values: dict[Node, Any] = field(default_factory=dict)
    fits: dict[int, tuple[Axis, ...]] = field(default_factory=dict)
    sources: dict[int, tuple[Value, Sequence[int | None]]] = field(default_factory=dict)

    def run(self, graph: Graph, inputs: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
        """Read a graph: values of what it returns.

        Args:
            graph: with its shapes noted (see `Recording`).
            inputs: values of the placeholders.
            attributes: what `get_attr` finds.
        """
        known = self.values
        feed = iter(inputs)
        for node in graph.nodes:
            if node.op == "placeholder":
                known[node] = next(feed)
            elif node.op == "get_attr":
                known[node] = attributes.get(str(node.target))
                if isinstance(known[node], Tensor):
                    known[node] = Value.free(known[node].shape)
            elif node.op == "output":
                return _filled(node.args[0], known)
            else:
                known[node] = self._call(node, known)
        raise AssertionError("a graph without an output")

    def _call(self, node: Node, known: dict[Node, Any]) -> Any:
        target: Any = node.target
        args, kwargs = _filled(node.args, known), _filled(node.kwargs, known)
        if getattr(target, "__name__", "") == "getitem":
            return args[0][args[1]]
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._wrapped(node, args)
        result = node.meta["made"]
        shapes = tuple(_shapes(result))
        if not isinstance(target, torch._ops.OpOverload) or not shapes:
            return None
        name = target._schema.name.split("::")[-1]
        call = Call(node, name, _bound(target, args, kwargs), shapes)
        same = name in CONSTANT or (name in UNIFORM and all(value.uniform for value in call.values()))
        free = tuple(Value.free(shape, uniform=same) for shape in shapes)
        if same and name in UNIFORM:
            self._note_source(free[0], call)
        made: Any = free
        if any(value.labelled for value in call.values()):
            if name in RULES:
                made = RULES[name](self, call)
                made = (made,) if isinstance(made, Value) else made
            else:
                self.refuse(call, f"no rule for {name}", call.values())
        elif name in PRODUCTS:
            RULES[name](self, call)  # counts its multiply-accumulates
        if target._schema.is_mutable and isinstance(args[0], Value) and args[0].shape == made[0].shape:
            made = (Value(shapes[0], made[0].axes, args[0].origin), *made[1:])  # a parameter written into is still one
        return made[0] if isinstance(result, tuple) else list(made)

    def _wrapped(self, node: Node, args: Any) -> Any:
        """Read a graph within a graph, such as a stretch under another gradient or autocast mode."""
        inner = [one for one in args if isinstance(one, GraphModule)]
        if len(inner) == 1:
            place = args.index(inner[0])
            attributes = dict(inner[0].named_children())
            return self.run(inner[0].graph, args[place + 1 :], attributes)
        values = [value for value in _values(args) if value.labelled]
        if values:
            self.refuse(Call(node, str(node.target), {}, ((),)), f"no rule for {node.target}", values)
        return [Value.free(shape) for shape in _shapes(node.meta["made"])]

    def refuse(self, call: Call, reason: str, values: Iterable[Value]) -> None:
        """Freeze everything in these tensors, and remember why."""
        for value in values:
            for axis in value.axes:
                if axis is not None:
                    self.labels.freeze(axis, f"{call.name}: {reason}" if call.name not in reason else reason)
        self.unknown.append(Unknown(call.name, reason, call.where))

    def freeze(self, axis: Axis, call: Call, reason: str) -> None:
        """Freeze the labels of an axis, if it has any."""
        if axis is not None:
            self.labels.freeze(axis, f"{call.name} {reason}")

    def mark_inexact(self, axis: Axis, call: Call, reason: str) -> None:
        """Note that removal and masking differ for an axis, if it has labels."""
        if axis is not None:
            self.labels.inexact(axis, f"{call.name} {reason}")

    def unite(self, a: Axis, b: Axis, call: Call) -> Axis:
        """Make two axes of one size one; where only one has labels they are frozen, for the other cannot follow."""
        if a is None or b is None:
            self.freeze(a, call, "meets an axis that is nobody's unit")
            self.freeze(b, call, "meets an axis that is nobody's unit")
            return None
        self.labels.unite(a, b)
        return a

    def broadcast(self, values: Sequence[Value], shape: Sequence[int], call: Call) -> tuple[Axis, ...]:
        """Unite axes as broadcasting aligns them; gives the labels of the result."""
        axes: list[Axis] = []
        constants = [value for value in values if value.uniform]
        values = [value for value in values if not value.uniform]
        for k in range(-len(shape), 0):
            meeting = [v.axes[k] for v in values if len(v.shape) >= -k and v.shape[k] == shape[k] and shape[k] > 1]
            axis: Axis = meeting[0] if meeting else None
            for other in meeting[1:]:
                axis = self.unite(axis, other, call) if not (axis is None and other is None) else None
            axes.append(axis)
        for constant in constants:
            lead = len(shape) - len(constant.shape)
            met = [
                a if n == shape[lead + k] else None
                for k, (n, a) in enumerate(zip(constant.shape, axes[lead:], strict=True))
            ]
            self.fit(constant, met)
        return tuple(axes)

    def fit(self, constant: Value, axes: Sequence[Axis]) -> None:
        """Let a tensor of one number, and what it was made of, take the sizes of the axes that it met first."""
        if id(constant) in self.fits:
            return
        self.fits[id(constant)] = tuple(axes)
        if id(constant) in self.sources:
            whole, places = self.sources[id(constant)]
            before: list[Axis] = [None] * len(whole.shape)
            for place, axis, size in zip(places, axes, constant.shape, strict=True):
                if place is not None and whole.shape[place] == size:
                    before[place] = axis
            self.fit(whole, before)

    def _note_source(self, value: Value, call: Call) -> None:
        """Remember of which tensor of one number another was made, and which axis was which."""
        whole = call.values()[0]
        here, there = len(value.shape), len(whole.shape)
        places: Sequence[int | None] = range(here)
        if call.name == "unsqueeze":
            new = call["dim"] % here
            places = [None if k == new else k - (k > new) for k in range(here)]
        elif call.name == "transpose":
            one, other = (call[name] % here for name in ("dim0", "dim1"))
            places = [{one: other, other: one}.get(k, k) for k in range(here)]
        elif call.name == "permute":
            places = [k % here for k in call["dims"]]
        elif call.name == "expand":
            places = [k - (here - there) if k >= here - there else None for k in range(here)]
        elif value.shape != whole.shape:
            return  # split or joined: which sizes it has is in the code
        self.sources[id(value)] = whole, places

    def contracts(self, value: Value, axis: int) -> None:
        """Note that an axis of a parameter is summed over: it reads units."""
        origin = value.origin[axis]
        if origin is not None:
            self.inputs.add(origin)

    def meets(self, axis: Axis) -> None:
        """Note that an axis of activations is summed over against another: no parameter reads these units there."""
        if axis is not None:
            self.labels.contracted(axis)

    def multiplies(self, call: Call, constant: int, *axes: tuple[int, Axis]) -> None:
        """Count multiply-accumulates: a constant times each of the axes, given as (size, labels)."""
        self.products.append(Product(call.module, constant, tuple(a for _, a in axes), tuple(n for n, _ in axes)))


CONSTANT = frozenset(
    [
        "zeros",
        "ones",
        "full",
        "zeros_like",
        "ones_like",
        "full_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "scalar_tensor",
    ]
)
# What keeps a tensor of one number one.
UNIFORM = frozenset(
    [
        "expand",
        "view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "transpose",
        "permute",
        "clone",
        "to",
        "_to_copy",
        "contiguous",
        "alias",
    ]
)
PRODUCTS: set[str] = set()  # operations that multiply and accumulate: read even where nothing is labelled


def _bound(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of the schema, defaults filled in."""
    arguments = {}
    for k, argument in enumerate(target._schema.arguments):
        if k < len(args):
            arguments[argument.name] = args[k]
        elif argument.name in kwargs:
            arguments[argument.name] = kwargs[argument.name]
        elif argument.has_default_value():
            arguments[argument.name] = argument.default_value
    return arguments


def _filled(tree: Any, known: dict[Node, Any]) -> Any:
    if isinstance(tree, Node):
        return known[tree]
    if isinstance(tree, (list, tuple)):
        return [_filled(one, known) for one in tree]
    if isinstance(tree, dict):
        return {key: _filled(one, known) for key, one in tree.items()}
    return tree


def _values(tree: Any) -> Iterable[Value]:
    if isinstance(tree, Value):
        yield tree
    elif isinstance(tree, dict):
        for one in tree.values():
            yield from _values(one)
    elif isinstance(tree, Iterable) and not isinstance(tree, str):
        for one in tree:
            yield from _values(one)


def _shapes(made: Any) -> Iterable[tuple[int, ...]]:
    """Give the shapes of all tensors returned."""
    if isinstance(made, tuple):
        yield made
    elif isinstance(made, list):
        for one in made:
            yield from _shapes(one)


def repeated(axis: Axis, times: int, *, each: bool) -> Axis:
    """Repeat the labels of an axis: each entry in place, or the whole axis over and over."""
    if axis is None:
        return None
    return np.repeat(axis, times) if each else np.tile(axis, times)
