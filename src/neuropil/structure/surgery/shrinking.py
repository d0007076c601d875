"""Remove units for real: smaller parameters, buffers, gradients and optimizer state, and every size set right."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.structure.graph.tracing import Example, trace_units
from neuropil.structure.graph.unit_graph import Keep, UnitGraph
from neuropil.structure.surgery.containers import Attribute, cut_rows, discover, kept_units, set_attributes
from neuropil.structure.surgery.leaves import settle_sizes
from neuropil.structure.surgery.rewrite import rewritten
from neuropil.structure.surgery.rows import Rows, replace, select

__all__ = ["Cut", "Known", "cut", "load_pruned", "shrink"]

Known = Mapping[str, "tuple[Attribute, ...] | str"]


@dataclass(frozen=True)
class Cut:
    """What was done to a network, enough to do it again to a fresh one (see `load_pruned`).

    Attributes:
        rows: by parameter and axis, which of the old rows are left.
        attributes: new values of sizes on modules, by "module.name".
    """

    rows: Rows
    attributes: dict[str, int]

    def spec(self) -> dict[str, Any]:
        """Write it as plain lists and numbers, for JSON."""
        rows = {name: {str(k): index.tolist() for k, index in axes.items()} for name, axes in self.rows.items()}
        return {"format": "neuropil.cut/1", "rows": rows, "attributes": self.attributes}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> "Cut":
        """Read it back.

        Raises:
            ValueError: if it is no such specification.
        """
        if spec.get("format") != "neuropil.cut/1":
            raise ValueError(f"This is no specification of a cut: its format is {spec.get('format')!r}.")
        rows = {name: {int(k): torch.tensor(i) for k, i in axes.items()} for name, axes in spec["rows"].items()}
        return cls(rows, dict(spec["attributes"]))


def shrink(
    net: nn.Module,
    keep: Keep,
    graph: UnitGraph | None = None,
    *,
    example_inputs: Example | None = None,
    optimizer: Optimizer | None = None,
    attributes: Mapping[str, str] | None = None,
    backend: Literal["module", "graph"] = "module",
    proof: bool = True,
) -> nn.Module:
    """Remove units from a network.

    Args:
        net: with backend "module" this same object is changed in place.
        keep: by group, which units stay; groups that are not named stay whole.
        graph: its units; None traces it.
        example_inputs: for tracing, where no graph is given.
        optimizer: goes on with what is left: parameters are swapped in place, its state loses the same rows.
        attributes: sizes on modules that follow a group, such as {"encoder.attn.num_heads": "encoder.attn.q:4x8"}: what
            is given here is taken as given, the rest is found by trial.
        backend: "module" keeps the module and its class; "graph" returns the recorded graph with its sizes rewritten,
            which always works but is specialised to eval mode and to the example's sizes.
        proof: see `prune_units`.

    Returns:
        The network.

    Raises:
        KeyError: if there is no such group.
        ValueError: if a group is frozen or would be left without units, or if the module's code has a size written in
            that no attribute reaches (the line is named).
    """
    if graph is None:
        if example_inputs is None:
            raise ValueError("shrink needs the graph of the network, or example_inputs to trace it with.")
        graph = trace_units(net, example_inputs)
    if backend == "graph":
        graph.check(keep)
        return rewritten(net, graph, keep, cut_rows(net, graph, keep)[0])
    cut(net, keep, graph, optimizer=optimizer, attributes=attributes, proof=proof)
    return net


def cut(
    net: nn.Module,
    keep: Keep,
    graph: UnitGraph,
    *,
    optimizer: Optimizer | None = None,
    attributes: Mapping[str, str] | None = None,
    known: Known | None = None,
    proof: bool = True,
) -> Cut:
    """Remove units in place, as `shrink` does, and say what was done.

    Args:
        net: changed in place.
        keep: by group, which units stay.
        graph: its units.
        optimizer: goes on with what is left.
        attributes: see `shrink`.
        known: what `discover` found before for these groups, to save the trials.
        proof: see `prune_units`.

    Raises:
        KeyError, ValueError: as `shrink`.
    """
    graph.check(keep)
    keep = {name: kept for name, kept in keep.items() if not bool(kept.all())}
    given = _given(net, attributes or {}, graph)
    found = _found(net, keep, graph, given, proof) if known is None else known
    needed: list[Attribute] = list(given)
    for name in keep:
        these = found.get(name, ())
        if isinstance(these, str):
            raise ValueError(f"Units of {name} cannot be removed from the module: it {these}.")
        needed += [one for one in these if one not in needed]
    rows, shapes = cut_rows(net, graph, keep)
    replace(net, graph, rows, lambda name, old: select(old, rows[name]), optimizer)
    settle_sizes(net, rows, shapes)
    return Cut(rows, set_attributes(net, needed, kept_units(keep), rows))


def load_pruned(
    make_net: Callable[[], nn.Module],
    spec: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    state_dict: Mapping[str, Tensor],
) -> nn.Module:
    """Build a network, cut it as another was cut, and load that one's parameters: nothing is unpickled.

    Args:
        make_net: makes the whole network.
        spec: what `Cut.spec` (or a prune report) wrote; several cuts, one after the other, as a list.
        state_dict: of the network that was cut.

    Raises:
        ValueError: if the specification is none, or does not fit.
    """
    net = make_net()
    for one in [spec] if isinstance(spec, Mapping) else spec:
        made = Cut.from_spec(one)
        tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        missing = sorted(set(made.rows) - set(tensors))
        if missing:
            raise ValueError(f"The cut names parameters that the network does not have: {', '.join(missing)}.")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        alike: dict[int, list[str]] = {}
        for name, tensor in [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]:
            alike.setdefault(id(tensor), []).append(name)
        graph = UnitGraph([], names={names[0]: tuple(names[1:]) for names in alike.values()})
        replace(net, graph, made.rows, lambda name, old, rows=made.rows: select(old, rows[name]))
        settle_sizes(net, made.rows, shapes)
        for place, value in made.attributes.items():
            path, _, last = place.rpartition(".")
            setattr(net.get_submodule(path), last, value)
    net.load_state_dict(state_dict)
    return net


def _given(net: nn.Module, attributes: Mapping[str, str], graph: UnitGraph) -> list[Attribute]:
    listed = []
    for place, name in attributes.items():
        path, _, last = place.rpartition(".")
        value = getattr(net.get_submodule(path), last)
        group = graph[name]
        if value == group.size:
            listed.append(Attribute(path, last, name))
            continue
        tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        fits = [m for m in group.members if tensors[m.parameter].shape[m.axis] == value]
        if not fits:
            raise ValueError(
                f"{place} is {value}: neither the number of units of {name} nor the length of one of its axes."
            )
        listed.append(Attribute(path, last, name, fits[0].parameter, fits[0].axis))
    return listed


def _found(net: nn.Module, keep: Keep, graph: UnitGraph, given: list[Attribute], proof: bool) -> Known:
    settled = {one.group for one in given}
    if graph.reading is None:
        raise ValueError("This graph was read from a specification: trace the network to cut it.")
    return discover(net, graph, [graph[name] for name in keep if name not in settled], proof=proof)
