"""Prune units of any network in one call: trace, score, select, repair, cut, report.

report = prune_units(net, example, Magnitude(), keep=0.5)
small = report.net
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.neurons.ranges import require
from neuropil.structure.criterion import Batches, Criterion, LossFunction
from neuropil.structure.graph import Example, UnitGraph, trace_units
from neuropil.structure.graph.units import Aggregate, Norm, UnitGroup
from neuropil.structure.repair import OptimalBrainRepair
from neuropil.structure.speed import Timing, latency
from neuropil.structure.surgery.containers import discover
from neuropil.structure.surgery.shrinking import Cut, Known, cut

__all__ = ["PruneReport", "prune_units", "remove_units", "select_units"]

Scope = Literal["global", "group"]
Target = Literal["keep", "macs", "params"]


@dataclass(frozen=True)
class PruneReport:
    """What `prune_units` did.

    Attributes:
        net: the smaller network.
        parameters_before: number of parameters.
        parameters_after: the same, of what is left.
        macs_before: multiply-accumulates of one forward of the example.
        macs_after: the same, of what is left.
        kept: by group, how many units were left of how many.
        frozen: what could not be pruned: columns what, reason, where.
        repaired: layers that were refitted.
        cut: what was done, for `load_pruned`.
        latency: by name ("before", "after"), measured times; filled by `time`.
    """

    net: nn.Module
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    kept: dict[str, tuple[int, int]]
    frozen: pd.DataFrame
    repaired: tuple[str, ...]
    cut: Cut
    latency: dict[str, Timing] = field(default_factory=dict)

    def time(
        self, before: nn.Module, example_inputs: Any, *, batch: int = 64, runs: int = 30, threads: int | None = None
    ) -> "PruneReport":
        """Measure the network as it was beside what is left of it, in turns; fills `latency`.

        Args:
            before: the network as it was (a copy made before pruning, or a new one: its weights do not matter).
            example_inputs: what both are called with.
            batch: size at which to measure.
            runs: measured forwards of each.
            threads: of the CPU; None: as many as torch is set to.
        """
        nets = {"before": before, "after": self.net}
        self.latency.update(latency(nets, example_inputs, batch=batch, runs=runs, threads=threads))
        return self

    def spec(self) -> dict[str, Any]:
        """Give what `load_pruned` needs beside the parameters, as plain lists and numbers."""
        return self.cut.spec()

    def __str__(self) -> str:
        units = [sum(pair[k] for pair in self.kept.values()) for k in (0, 1)]
        lines = [
            f"units      {units[1]:,} -> {units[0]:,} in {len(self.kept)} groups",
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,} "
            f"({self.parameters_before / max(self.parameters_after, 1):.2f} x fewer)",
            f"MACs       {self.macs_before:,} -> {self.macs_after:,} "
            f"({self.macs_before / max(self.macs_after, 1):.2f} x fewer)",
        ]
        if self.latency:
            before, after = self.latency["before"], self.latency["after"]
            lines.append(
                f"measured   {1e3 * before.median:.3g} ms -> {1e3 * after.median:.3g} ms "
                f"({before.ratio(after):.2f} x faster, {before.threads} threads)"
            )
        if len(self.frozen):
            lines.append(f"frozen     {', '.join(self.frozen['what'].unique())}")
        return "\n".join(lines)


def prune_units(
    net: nn.Module,
    example_inputs: Example,
    criterion: Criterion | Mapping[str, Tensor],
    *,
    batches: Batches = (),
    loss_fn: LossFunction | None = None,
    keep: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    scope: Scope = "global",
    agg: Aggregate = "sum",
    norm: Norm = "mean",
    round_to: int = 1,
    min_units: int = 1,
    inexact: bool = False,
    groups: Sequence[str] | None = None,
    repair: OptimalBrainRepair | None = None,
    optimizer: Optimizer | None = None,
    graph: UnitGraph | None = None,
    proof: bool = True,
) -> PruneReport:
    """Remove the least important units of a network, once.

    Args:
        net: any module that `trace_units` can read; changed in place.
        example_inputs: what it is called with: a tensor, a tuple, or a dict of keywords.
        criterion: scores weights, which are summed up to units (`UnitGraph.reduce`); or scores of units by group,
            bigger is kept, which are taken as they are.
        batches: of (x, y), for criteria that need them.
        loss_fn: mean-reduced loss of (output, y), for criteria that need one.
        keep: fraction of the prunable units to keep. Give this, or one of the next two.
        macs: fraction of the multiply-accumulates to keep, at most.
        params: fraction of the parameters to keep, at most.
        scope: "global" removes the units of the lowest scores wherever they are, "group" the same fraction of each
            group.
        agg: how the members of a unit are aggregated.
        norm: what a group's scores are divided by, so that groups compare.
        round_to: numbers of units are rounded up to multiples of this: odd widths can be slower than larger round ones.
        min_units: no group is left with fewer.
        inexact: prune also units that a norm takes moments over: then the cut network is not the masked one.
        groups: prune only these.
        repair: refits what reads the pruned units, without training.
        optimizer: goes on with what is left.
        graph: of the network, if it is traced already.
        proof: whether a cut copy must first compute, on drawn parameters, what the masked network does; False saves
            the time where no size in the user's code changes, and trusts the graph there.

    Returns:
        The report, with the network and all that could not be pruned.

    Raises:
        TypeError: if the network does not run on the example, or not exactly one target is given.
        ValueError: if a fraction is outside (0, 1], a target is below what frozen parts and `min_units` allow (the
            minimum is said), a score is NaN, or the network cannot be exported.

    Source: Wang et al. 2024, arXiv 2403.18955.
    """
    targets: dict[Target, float | None] = {"keep": keep, "macs": macs, "params": params}
    given: dict[Target, float] = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        raise TypeError(f"Give one of keep, macs and params, got {', '.join(given) or 'none'}.")
    ((target, fraction),) = given.items()
    require(target, fraction, 0.0, 1.0, ends=(False, True))
    for name, value in (("round_to", round_to), ("min_units", min_units)):
        require(name, value, 1, math.inf)
    graph = trace_units(net, example_inputs) if graph is None else graph
    candidates = graph.prunable(inexact=inexact)
    if groups is not None:
        unknown = sorted(set(groups) - {group.name for group in candidates})
        if unknown:
            raise ValueError(f"These groups cannot be pruned, or do not exist: {', '.join(unknown)}.")
        candidates = [group for group in candidates if group.name in set(groups)]
    found = discover(net, graph, candidates, proof=proof)
    stuck = {name: these for name, these in found.items() if isinstance(these, str)}
    candidates = [group for group in candidates if group.name not in stuck]
    scores = _unit_scores(net, graph, candidates, criterion, batches, loss_fn, agg, norm)
    candidates = [group for group in candidates if group.name in scores]
    chosen = select_units(
        graph, candidates, scores, target, fraction, scope=scope, round_to=round_to, min_units=min_units
    )
    return remove_units(net, chosen, graph, repair=repair, optimizer=optimizer, found=found)


def remove_units(
    net: nn.Module,
    keep: Mapping[str, Tensor],
    graph: UnitGraph,
    *,
    repair: OptimalBrainRepair | None = None,
    optimizer: Optimizer | None = None,
    found: Known | None = None,
) -> PruneReport:
    """Remove chosen units in place, as `prune_units` does once it has chosen, and report.

    Args:
        net: changed in place.
        keep: by group, which units stay.
        graph: its units.
        repair: refits what reads the units that go.
        optimizer: goes on with what is left.
        found: what `discover` found for these groups, to save its trials.

    Raises:
        KeyError, ValueError: as `shrink`.
    """
    graph.check(keep)
    found = discover(net, graph, [graph[name] for name in keep]) if found is None else found
    before = graph.parameters(), graph.macs()
    repaired = repair.apply_(net, keep, graph) if repair is not None else []
    made = cut(net, keep, graph, optimizer=optimizer, known=found)
    if repair is not None:
        repair.finish_(net)
    return PruneReport(
        net=net,
        parameters_before=before[0],
        parameters_after=graph.parameters(keep),
        macs_before=before[1],
        macs_after=graph.macs(keep),
        kept={name: (int(kept.sum()), len(kept)) for name, kept in keep.items()},
        frozen=_frozen(graph, {name: these for name, these in found.items() if isinstance(these, str)}),
        repaired=tuple(repaired),
        cut=made,
    )


def select_units(
    graph: UnitGraph,
    groups: Sequence[UnitGroup],
    scores: Mapping[str, Tensor],
    target: Target,
    fraction: float,
    *,
    scope: Scope = "global",
    round_to: int = 1,
    min_units: int = 1,
) -> dict[str, Tensor]:
    """Choose which units stay.

    How much is cut is bisected: multiply-accumulates and parameters are counted anew at every trial, for removals in
    neighbouring layers multiply.

    Args:
        graph: the network's units.
        groups: those to choose from.
        scores: by group, bigger is kept.
        target: what the fraction is of: units of these groups, or all multiply-accumulates or parameters.
        fraction: to keep; for "macs" and "params" at most, for "keep" to the nearest unit.
        scope: see `prune_units`.
        round_to: see `prune_units`.
        min_units: see `prune_units`.

    Returns:
        By group, a mask of the units that stay.

    Raises:
        ValueError: if the target cannot be met; the message says what can.
    """
    units = sum(group.size for group in groups)
    order = _order(groups, scores)
    whole = {"keep": units, "macs": graph.macs(), "params": graph.parameters()}[target]

    def kept(cut_units: int) -> dict[str, Tensor]:
        if scope == "group":
            share = cut_units / max(units, 1)
            counts = {g.name: round((1 - share) * g.size) for g in groups}
        else:
            counts = {g.name: g.size for g in groups}
            removed = 0
            for name in order:
                if removed == cut_units:
                    break
                if counts[name] > min(min_units, graph[name].size):
                    counts[name] -= 1
                    removed += 1
        return {g.name: _best(scores[g.name], _rounded(counts[g.name], g.size, round_to, min_units)) for g in groups}

    def left(masks: dict[str, Tensor]) -> float:
        if target == "keep":
            return sum(int(mask.sum()) for mask in masks.values())
        return graph.macs(masks) if target == "macs" else graph.parameters(masks)

    least = left(kept(units))
    wanted = fraction * whole
    if least > wanted + (0.5 if target == "keep" else 0.0):
        raise ValueError(
            f"{target}={fraction:g} cannot be met: frozen parts, min_units={min_units} and round_to={round_to} leave "
            f"at least {least / max(whole, 1):.3g}."
        )
    if target == "keep" and round_to == 1:
        return kept(units - round(wanted))
    low, high = 0, units  # smallest number of units cut that meets the target
    while low < high:
        middle = (low + high) // 2
        if left(kept(middle)) <= wanted:
            high = middle
        else:
            low = middle + 1
    return kept(low)


def _order(groups: Sequence[UnitGroup], scores: Mapping[str, Tensor]) -> list[str]:
    """List the groups of all units, the lowest score first; ties by place."""
    if not groups:
        return []
    values = torch.cat([scores[group.name].double().cpu() for group in groups])
    names = [group.name for group in groups for _ in range(group.size)]
    return [names[k] for k in torch.argsort(values, stable=True).tolist()]


def _rounded(count: int, size: int, round_to: int, min_units: int) -> int:
    count = max(count, min(min_units, size), 1)
    return min(-(-count // round_to) * round_to, size)


def _best(scores: Tensor, count: int) -> Tensor:
    """Mark the units of the highest scores; of equal ones the first."""
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[torch.argsort(scores.cpu(), descending=True, stable=True)[:count]] = True
    return mask


def _unit_scores(
    net: nn.Module,
    graph: UnitGraph,
    groups: Sequence[UnitGroup],
    criterion: Criterion | Mapping[str, Tensor],
    batches: Batches,
    loss_fn: LossFunction | None,
    agg: Aggregate,
    norm: Norm,
) -> dict[str, Tensor]:
    if isinstance(criterion, Mapping):
        scores = {name: score.detach().double() for name, score in criterion.items()}
        for group in groups:
            if group.name in scores and scores[group.name].shape != (group.size,):
                raise ValueError(
                    f"Group {group.name} has {group.size} units, its scores have shape {(*scores[group.name].shape,)}."
                )
    else:
        parameters = dict(net.named_parameters())
        names = {
            member.parameter
            for group in groups
            for member in group.members
            if member.parameter in parameters and parameters[member.parameter].ndim > 1
        }
        scores = graph.reduce(criterion(net, batches, loss_fn, sorted(names)), agg, norm)
    for name, score in scores.items():
        if bool(score.isnan().any()):
            raise ValueError(
                f"The scores of group {name} are NaN for {int(score.isnan().sum())} of {len(score)} units."
            )
    return scores


def _frozen(graph: UnitGraph, stuck: Mapping[str, str]) -> pd.DataFrame:
    more = pd.DataFrame([(name, reason, "") for name, reason in stuck.items()], columns=["what", "reason", "where"])
    return pd.concat([graph.frozen(), more], ignore_index=True)
