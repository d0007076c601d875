"""Add units by copying some: the same function, more capacity (the inverse of `shrink`).

A copied unit has the rows of its original wherever it is produced, and the rows that read it are divided by the number
of copies, so that their sum is what it was (Chen, Goodfellow & Shlens 2016, Net2WiderNet).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.neurons.ranges import require
from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.graph.units import Member
from neuropil.structure.optimizers import Fill, reset_state_
from neuropil.structure.surgery.containers import Attribute, discover, set_attributes
from neuropil.structure.surgery.leaves import settle_sizes
from neuropil.structure.surgery.proof import agree, drawn_copy, outputs
from neuropil.structure.surgery.rows import Rows, owner, replace, select

__all__ = ["widen"]


def widen(
    net: nn.Module,
    sizes: Mapping[str, int],
    graph: UnitGraph,
    *,
    noise: float = 0.0,
    optimizer: Optimizer | None = None,
    fill: Fill = "zero",
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Give groups more units without changing the function.

    Args:
        net: changed in place.
        sizes: by group, its new number of units. Which units are copied is drawn; none twice before all were once.
        graph: the network's units; afterwards trace anew.
        noise: standard deviation, relative to that of each parameter, of what is added to the rows that produce the
            copies, so that copies part ways in training; with it the function changes a little.
        optimizer: goes on with the new parameters; what it remembers of old rows stays.
        fill: what it remembers of copies: "zero", or "mean" for second moments (see `reset_state_`).
        generator: draws which units are copied, and the noise; None draws units in order and noise with seed 0.

    Returns:
        The same network.

    Raises:
        KeyError: if there is no such group.
        ValueError: if a group is frozen or would shrink, noise is negative, or the function would change (units that
            are contracted with one another, as queries with keys are, or that a norm takes moments over).
    """
    require("noise", noise, 0.0, float("inf"), ends=(True, False))
    for name, size in sizes.items():
        group = graph[name]
        if not group.prunable:
            raise ValueError(f"Group {name} is frozen ({group.reason}): it cannot be widened.")
        if size < group.size:
            raise ValueError(f"Group {name} has {group.size} units: its new size must be at least that, got {size}.")
    sizes = {name: size for name, size in sizes.items() if size > graph[name].size}
    if not sizes:
        return net
    source = {name: _sources(graph[name].size, size, generator) for name, size in sizes.items()}
    attributes = _attributes(net, graph, sizes)
    proof = drawn_copy(net)
    assert graph.reading is not None
    before = outputs(proof, graph.reading.example)
    _widen(proof, graph, source, attributes)
    try:
        same = agree(outputs(proof, graph.reading.example), before)
    except Exception as error:
        raise ValueError(f"Widening {', '.join(sizes)} does not fit the module's code: {error}") from error
    if not same:
        raise ValueError(
            f"Widening {', '.join(sizes)} would change the function: its units are contracted with one another, or "
            "something takes moments or sums over them."
        )
    _widen(net, graph, source, attributes, optimizer, noise, fill, generator)
    return net


def _sources(old: int, new: int, generator: torch.Generator | None) -> Tensor:
    """Count, for every old unit, how often the new group has it."""
    count = torch.full((old,), new // old)
    drawn = torch.randperm(old, generator=generator) if generator is not None else torch.arange(old)
    count[drawn[: new % old]] += 1
    return count


def _attributes(net: nn.Module, graph: UnitGraph, sizes: Mapping[str, int]) -> list[Attribute]:
    needed: list[Attribute] = []
    for name, these in discover(net, graph, [graph[name] for name in sizes]).items():
        if isinstance(these, str):
            raise ValueError(f"Group {name} cannot be widened in the module: it {these}.")
        needed += [one for one in these if one not in needed]
    return needed


def _widen(
    net: nn.Module,
    graph: UnitGraph,
    source: Mapping[str, Tensor],
    attributes: list[Attribute],
    optimizer: Optimizer | None = None,
    noise: float = 0.0,
    fill: Fill = "zero",
    generator: torch.Generator | None = None,
) -> None:
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    rows: Rows = {}
    new: dict[tuple[str, int], Tensor] = {}  # which of the new rows are copies
    divisors: dict[tuple[str, int], Tensor] = {}
    for name, count in source.items():
        for member in graph[name].members:
            place = member.parameter, member.axis
            index, copies = _expanded(member, count, rows.get(place[0], {}).get(place[1]), shapes[place[0]][place[1]])
            was = new.get(place, torch.zeros(shapes[place[0]][place[1]], dtype=torch.bool))
            shares = divisors.get(place, torch.ones(len(was)))
            kept = _positions(member, count, len(was), rows.get(place[0], {}).get(place[1]))
            new[place] = was[kept] | copies
            if member.role == "in":
                owned = torch.ones(shapes[place[0]][place[1]])
                owned[member.index.flatten()] = count[:, None].expand_as(member.index).flatten().float()
                divisors[place] = shares[kept] * owned[index]
            else:
                divisors[place] = shares[kept]
            rows.setdefault(place[0], {})[place[1]] = index
    noisy = torch.Generator().manual_seed(0) if generator is None else generator

    def grown(name: str, old: Tensor) -> Tensor:
        tensor = select(old, rows[name])
        for axis in rows[name]:
            shape = [-1 if k == axis else 1 for k in range(old.ndim)]
            tensor = tensor / divisors[name, axis].to(tensor).reshape(shape)
            roles = {m.role for g in source for m in graph[g].members if (m.parameter, m.axis) == (name, axis)}
            if noise and roles == {"out"} and old.is_floating_point():
                spread = noise * float(old.std()) if old.numel() > 1 else 0.0
                drawn = torch.randn(tensor.shape, generator=noisy).to(tensor) * spread
                tensor = tensor + drawn * new[name, axis].to(tensor).reshape(shape)
        return tensor

    replace(net, graph, rows, grown, optimizer, lambda name, old: select(old, rows[name]))
    if optimizer is not None:
        for name, axes in rows.items():
            module, last = owner(net, name)
            parameter = getattr(module, last)
            fresh = torch.zeros(parameter.shape, dtype=torch.bool)
            for axis in axes:
                shape = [-1 if k == axis else 1 for k in range(parameter.ndim)]
                fresh |= new[name, axis].reshape(shape)
            reset_state_(optimizer, parameter, fresh.to(parameter.device), fill)
    settle_sizes(net, rows, shapes)
    set_attributes(net, attributes, {name: int(count.sum()) for name, count in source.items()}, rows)


def _positions(member: Member, count: Tensor, size: int, before: Tensor | None) -> Tensor:
    """Give, for every new position, the position that it copies among the present ones.

    A unit's rows on an axis form runs, one in every block that holds the unit; each run is followed by its copies, so
    that blocks keep their order inside and out.
    """
    present = torch.arange(size) if before is None else before
    times = torch.zeros(int(present.max()) + 1, dtype=torch.long)
    unit = torch.full_like(times, -1)
    for k, rows in enumerate(member.index):
        times[rows], unit[rows] = count[k], k
    owners, repeats = unit[present], times[present]
    made: list[int] = []
    start = 0
    while start < len(present):
        stop = start + 1
        while stop < len(present) and owners[start] >= 0 and owners[stop] == owners[start]:
            stop += 1
        made += list(range(start, stop)) * (int(repeats[start]) if owners[start] >= 0 else 1)
        start = stop
    return torch.tensor(made)


def _expanded(member: Member, count: Tensor, before: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
    """Give the old row behind every new position, and which positions are copies (not the first of their run)."""
    present = torch.arange(size) if before is None else before
    positions = _positions(member, count, size, before)
    seen: set[int] = set()
    copies = torch.zeros(len(positions), dtype=torch.bool)
    for k, position in enumerate(positions.tolist()):
        copies[k] = position in seen
        seen.add(position)
    return present[positions], copies
