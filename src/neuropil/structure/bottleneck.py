"""A trainable bottleneck: gates alone are trained, and say which units to keep for a budget of multiply-accumulates.

On a frozen network in eval mode, with gates lambda and a target T,

    L = loss + beta L_macs + gamma L_bool
    L_macs = (Phi - T) / (Phi_max - T)   where Phi > T,   1 - Phi / T   else
    L_bool = mean over groups of mean over units |lambda - round(lambda)|,   round detached

Adam on the gates for some batches; the gates of the smallest L in the last 40% of the steps count. Then the threshold
on lambda whose 0/1 gates come nearest to T says which units stay, at least the largest of every group.

Source: Castells & Yeom 2021, arXiv 2111.09635 (AutoBot).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.neurons.ranges import require
from neuropil.structure.criterion import Batches, LossFunction, as_batches, undisturbed
from neuropil.structure.gates import ExpectedMacs, Lambdas, UnitGates
from neuropil.structure.graph import Example, UnitGraph, trace_units
from neuropil.structure.graph.tracing import arguments
from neuropil.structure.prune import PruneReport, remove_units
from neuropil.structure.surgery.containers import discover

__all__ = ["GateResult", "autobot", "learn_bottleneck", "select_by_macs"]


@dataclass(frozen=True)
class GateResult:
    """Gates that were learned.

    Attributes:
        lambdas: by group, a gate a unit.
        history: a row a step: step, loss, task, macs, budget (L_macs), indecision (L_bool).
        graph: the network's units.
    """

    lambdas: dict[str, Float[Tensor, " units"]]
    history: pd.DataFrame
    graph: UnitGraph


def learn_bottleneck(
    net: nn.Module,
    batches: Batches,
    loss_fn: LossFunction,
    example_inputs: Example,
    target_macs: float,
    *,
    steps: int = 200,
    lr: float = 0.6,
    beta: float = 6.0,
    gamma: float = 0.4,
    init: float = 0.9,
    graph: UnitGraph | None = None,
    groups: Sequence[str] | None = None,
) -> GateResult:
    """Learn which units a budget should be spent on. The network is left as it was.

    Args:
        net: trained; used in eval mode, its parameters do not move.
        batches: of (x, y); gone through again if there are fewer than steps.
        loss_fn: mean-reduced loss of (output, y).
        example_inputs: what the network is called with, for tracing; multiply-accumulates are those of this example.
        target_macs: how many are allowed.
        steps: of Adam, one batch each.
        lr: learning rate.
        beta: weight of the budget.
        gamma: weight of indecision.
        init: gates at the start; 1 has no gradient.
        graph: the network's units, if traced already.
        groups: which groups get gates; None: every exact one.

    Raises:
        ValueError: if the target is not below the full count or not above the least (one unit a group and what has no
            gates), there are no batches, or a number is out of range.
        FloatingPointError: if the loss is no longer finite, with the step.
    """
    for name, value in (("steps", steps), ("lr", lr)):
        require(name, value, 0, math.inf, ends=(False, False))
    for name, value in (("beta", beta), ("gamma", gamma)):
        require(name, value, 0, math.inf, ends=(True, False))
    graph = trace_units(net, example_inputs) if graph is None else graph
    gates = UnitGates(net, graph, init, groups)
    full = _check_target(graph, [group.name for group in gates.groups], target_macs)
    count = ExpectedMacs(graph)
    given = list(as_batches(batches))
    if not given:
        raise ValueError("learn_bottleneck needs batches of (x, y): there were none.")
    optimizer = torch.optim.Adam(gates.parameters(), lr)
    rows: list[dict[str, float]] = []
    best, kept = math.inf, gates.lambdas()
    with undisturbed(net, evaluate=True), torch.enable_grad():
        for step, (x, y) in enumerate(itertools.islice(itertools.cycle(given), steps)):
            lambdas = gates.lambdas()
            args, keywords = arguments(x)
            task, macs = loss_fn(gates(*args, **keywords), y), count(lambdas)
            over = bool(macs.detach() > target_macs)
            budget = (macs - target_macs) / (full - target_macs) if over else 1 - macs / target_macs
            indecision = torch.stack([(v - v.detach().round()).abs().mean() for v in lambdas.values()]).mean()
            loss = task + beta * budget.to(task) + gamma * indecision
            if not bool(loss.isfinite()):
                raise FloatingPointError(f"The loss of the gates is not finite at step {step}.")
            rows.append(
                {
                    "step": step,
                    "loss": float(loss.detach()),
                    "task": float(task.detach()),
                    "macs": float(macs.detach()),
                    "budget": float(budget.detach()),
                    "indecision": float(indecision.detach()),
                }
            )
            if step >= 0.6 * (steps - 1) and rows[-1]["loss"] < best:
                best, kept = rows[-1]["loss"], {name: value.detach().clone() for name, value in lambdas.items()}
            gradients = torch.autograd.grad(loss, list(gates.parameters()), allow_unused=True)
            for alpha, gradient in zip(gates.parameters(), gradients, strict=True):
                alpha.grad = gradient
            optimizer.step()
    return GateResult(kept, pd.DataFrame(rows), graph)


def select_by_macs(lambdas: Lambdas, graph: UnitGraph, target_macs: float, tol: float = 1e-3) -> dict[str, Tensor]:
    """Choose the threshold whose units come nearest to a budget; every group keeps at least its largest.

    Args:
        lambdas: by group, scores of units that compare across groups (gates, for instance).
        graph: the network's units.
        target_macs: the budget.
        tol: how near, relative to the full count, is near enough: of thresholds that come so near the one that keeps
            most units is taken, else the nearest of all.

    Returns:
        By group, a mask of the units that stay.

    Raises:
        ValueError: if the target is not below the full count, or below the least; or a score is NaN.
    """
    require("tol", tol, 0.0, 1.0)
    for name, value in lambdas.items():
        if bool(value.isnan().any()):
            raise ValueError(
                f"The scores of group {name} are NaN for {int(value.isnan().sum())} of {len(value)} units."
            )
    full = _check_target(graph, list(lambdas), target_macs)
    values = torch.cat([value.detach().double().cpu() for value in lambdas.values()]).unique()
    thresholds = [-math.inf, *values.tolist()]  # ascending: the more is cut, the later

    def masks(threshold: float) -> dict[str, Tensor]:
        kept = {}
        for name, value in lambdas.items():
            kept[name] = value.detach().double().cpu() > threshold
            if not bool(kept[name].any()):
                kept[name][int(value.argmax())] = True
        return kept

    counted: dict[int, int] = {}

    def macs(k: int) -> int:
        if k not in counted:
            counted[k] = graph.macs(masks(thresholds[k]))
        return counted[k]

    low, high = 0, len(thresholds) - 1  # counts fall along the thresholds: find the first at or below the target
    while low < high:
        middle = (low + high) // 2
        if macs(middle) <= target_macs:
            high = middle
        else:
            low = middle + 1
    near = [k for k in (low - 1, low) if k >= 0]
    close = [k for k in near if abs(macs(k) - target_macs) <= tol * full]
    return masks(thresholds[close[0] if close else min(near, key=lambda k: abs(macs(k) - target_macs))])


def autobot(
    net: nn.Module,
    batches: Batches,
    loss_fn: LossFunction,
    example_inputs: Example,
    target_macs: float,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    **options: Any,
) -> tuple[nn.Module, PruneReport, GateResult]:
    """Learn a bottleneck, then remove what it closed. Units that the module's code cannot lose get no gates.

    Args:
        net: trained; cut in place.
        batches: of (x, y).
        loss_fn: mean-reduced loss of (output, y).
        example_inputs: what the network is called with.
        target_macs: budget for this example.
        optimizer: goes on with what is left.
        options: as in `learn_bottleneck`.

    Returns:
        The smaller network, the report of the cut, and the gates.

    Raises:
        ValueError: as `learn_bottleneck`.
    """
    graph = trace_units(net, example_inputs)
    found = discover(net, graph, graph.prunable())
    able = [name for name, these in found.items() if not isinstance(these, str)]
    result = learn_bottleneck(net, batches, loss_fn, example_inputs, target_macs, graph=graph, groups=able, **options)
    keep = select_by_macs(result.lambdas, graph, target_macs)
    return net, remove_units(net, keep, graph, optimizer=optimizer, found=found), result


def _check_target(graph: UnitGraph, groups: list[str], target: float) -> int:
    full = graph.macs()
    one = {name: torch.arange(graph[name].size) == 0 for name in groups}
    least = graph.macs(one)
    if not least <= target < full:
        raise ValueError(
            f"target_macs must be below the full count of {full:,} and at least {least:,} (one unit a group, and what "
            f"has no gates), got {target:,.0f}."
        )
    return full
