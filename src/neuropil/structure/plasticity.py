"""Pruning plasticity: what a network that is pruned at some moment of its training makes up for afterwards.

    before      accuracy of the network as it is
    cut         the same network, pruned at once to a density and nothing else
    recovered   after some more steps of training with the masks in force

    plasticity = recovered - before,   recovery = recovered - cut

Regeneration (Liu et al. 2021) exchanges, after the cut, a fraction of the live weights of every layer for as many of
the closed ones with the steepest gradient. The arms have equal counts in every layer and see the same batches.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd
from torch import nn
from torch.optim import Optimizer

from neuropil.neurons.ranges import require
from neuropil.structure.allocation import Scope, allocate
from neuropil.structure.criteria import Criterion, Magnitude
from neuropil.structure.criterion import Batches, LossFunction, call, mean_gradients
from neuropil.structure.growth import GradientGrowth, Growth, regrow
from neuropil.structure.masks import Masks, attach, prunable_parameters

__all__ = ["pruning_plasticity"]


def pruning_plasticity(
    net: nn.Module,
    batches: Batches,
    loss_fn: LossFunction,
    evaluate: Callable[[nn.Module], float],
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
    *,
    densities: Sequence[float] = (0.1,),
    fractions: Sequence[float] = (0.0, 0.05),
    criterion: Criterion | None = None,
    grow: Growth | None = None,
    scope: Scope = "global",
    include: Callable[[str, nn.Parameter], bool] | Iterable[str] | None = None,
) -> pd.DataFrame:
    """Prune copies of a network, with and without regeneration, train them on, and measure.

    Args:
        net: trained so far; it is left as it is.
        batches: of (x, y), one a recovery step, the same for all arms; the first also gives scores and gradients.
        loss_fn: mean-reduced.
        evaluate: (net) -> accuracy; it chooses the mode that it wants.
        optimizer: makes a fresh optimizer of parameters, at the learning rate of the moment.
        densities: to prune to.
        fractions: of live weights exchanged after the cut; 0 is pruning alone.
        criterion: what weights are worth; None is `Magnitude()`.
        grow: how closed entries are chosen; None is `GradientGrowth()`.
        scope: as in `allocate`.
        include: as in `prunable_parameters`.

    Returns:
        A row for every density and fraction: density, fraction, before, cut (before regeneration), recovered,
        plasticity, recovery; accuracies in the unit of `evaluate`.

    Raises:
        ValueError: if there are no batches, or a density or fraction is out of range.

    Source: Liu et al., NeurIPS 2021, section 3.
    """
    batches = list(batches)
    if not batches:
        raise ValueError("Recovery needs batches of (x, y): there were none.")
    for density in densities:
        require("densities", density, 0.0, 1.0, ends=(False, True))
    for fraction in fractions:
        require("fractions", fraction, 0.0, 1.0, ends=(True, False))
    criterion = Magnitude() if criterion is None else criterion
    grow = GradientGrowth() if grow is None else grow
    names = prunable_parameters(net, include)
    before = float(evaluate(copy.deepcopy(net)))
    rows: list[dict[str, Any]] = []
    for density in densities:
        pruned = copy.deepcopy(net)
        masks = allocate(criterion(pruned, batches[:1], loss_fn, names), density, scope)
        masks.apply_(pruned)
        cut = float(evaluate(copy.deepcopy(pruned)))
        for fraction in fractions:
            ready = copy.deepcopy(pruned)
            grown = _regenerated(ready, masks, batches[:1], loss_fn, criterion, grow, fraction) if fraction else masks
            _recover(ready, grown, batches, loss_fn, optimizer)
            recovered = float(evaluate(ready))
            gained = {"plasticity": recovered - before, "recovery": recovered - cut}
            shown = {"density": density, "fraction": fraction, "before": before, "cut": cut, "recovered": recovered}
            rows.append(shown | gained)
    return pd.DataFrame(rows)


def _regenerated(
    net: nn.Module,
    masks: Masks,
    batches: Batches,
    loss_fn: LossFunction,
    criterion: Criterion,
    grow: Growth,
    fraction: float,
) -> Masks:
    names = list(masks)
    worth = criterion(net, batches, loss_fn, names)
    gradients = mean_gradients(net, batches, loss_fn, names)
    return regrow(masks, worth, grow.scores(gradients, {name: net.get_parameter(name) for name in names}), fraction)


def _recover(
    net: nn.Module,
    masks: Masks,
    batches: Batches,
    loss_fn: LossFunction,
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
) -> None:
    made = optimizer(net.parameters())
    handle = attach(masks, net, made)
    net.train()
    for x, y in batches:
        made.zero_grad()
        loss_fn(call(net, x), y).backward()
        made.step()
    handle.remove()
