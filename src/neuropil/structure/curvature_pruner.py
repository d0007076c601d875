"""Train and prune at once, where the curvature says that it costs little, and rather where the loss is sharp.

Every `interval` epochs after the warm-up one round:

    1. candidates: units removed one by one, the cheapest first and the others compensated, as long as the predicted
       rises add up to no more than epsilon times the loss
    2. of the candidates, those first whose removal takes most out of the sharpest directions,

           lambda_max(A_l) lambda_max(G_l) v_u^2   of the layers that produce the unit, v the top eigenvector of G_l
           lambda_max(A_m) lambda_max(G_m) v_u^2   of those that read it, v the top eigenvector of A_m

       (by Cauchy interlacing no removal raises either factor's largest eigenvalue), up to a fraction of all units
    3. the compensation is done for exactly these, then surgery on network, optimizer and factors

The budget speaks of what is removed within a round: rises of a joint removal add up as far as the curvature holds, so
the factors are taken anew before the next round.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.neurons.ranges import require, require_positive
from neuropil.probes.curvature.inputs import call
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.structure.compensation import Compensation, natural_side
from neuropil.structure.criterion import undisturbed
from neuropil.structure.curvature import consumers, producers
from neuropil.structure.graph.tracing import trace_units
from neuropil.structure.graph.units import UnitGroup
from neuropil.structure.surgery.shrinking import shrink

__all__ = ["CurvaturePruner", "Round", "keep_factors", "sharpness_shares"]


@dataclass(frozen=True)
class Round:
    """What one round of pruning did.

    Attributes:
        epoch: after which it came, from 1.
        removed: units, by group.
        units: that are left in all prunable groups.
        rise: predicted, of the loss.
        radius: largest lambda_max(A) lambda_max(G) of a layer, before and after.
    """

    epoch: int
    removed: dict[str, int]
    units: int
    rise: float
    radius: tuple[float, float]


def sharpness_shares(factors: KroneckerFactors, group: UnitGroup) -> Float[Tensor, " units"]:
    """How much of the layers' sharpness runs through each unit, see the head of the module; float64."""
    device = next(iter(factors.A.values())).device
    total = torch.zeros(group.size, dtype=torch.float64, device=device)
    sides = [(factors.G, factors.A, producers(group, factors.layers))]
    sides.append((factors.A, factors.G, consumers(group, factors.layers)))
    for own, other, layers in sides:
        for name, index in layers:
            values, vectors = torch.linalg.eigh(own[name].double())
            radius = values[-1] * torch.linalg.eigvalsh(other[name].double())[-1]
            total += radius * vectors[:, -1].square()[index].sum(1)
    return total


def keep_factors(factors: KroneckerFactors, group: UnitGroup, keep: Bool[Tensor, " units"]) -> None:
    """Cut the factors of the layers that produce or read a group's units, as surgery cuts the layers."""
    for member in group.members:
        name, _, kind = member.parameter.rpartition(".")
        if kind != "weight" or name not in factors.A or member.axis > 1:
            continue
        rows = len(factors.G[name])
        if member.axis == 1:
            layer = factors.layers[name]
            size = len(factors.A[name]) - (layer.bias is not None)
            rows = size // layer.weight[0, 0].numel()
        stays = torch.ones(rows, dtype=torch.bool)
        stays[member.index[~keep.cpu()].flatten()] = False
        factors.keep(name, **{"rows" if member.axis == 0 else "cols": stays})


class CurvaturePruner:
    """Removes units while a network trains.

    Stepped after the optimizer, and told when an epoch is over::

        for epoch in range(epochs):
            for x, y in batches:
                ...
                optimizer.step()
                pruner.step(x)
            pruner.epoch(mean_loss)

    Args:
        net: the network, which is changed in place; its layers with parameters are linear, convolutions or norms.
        optimizer: whose state follows.
        factors: of the network; they are updated here. Not of the empirical Fisher, which needs targets.
        example_inputs: one batch of inputs, from which the network is traced.
        epsilon: budget of a round, as a fraction of the loss.
        interval: epochs between rounds.
        max_fraction: of all prunable units, at most in a round.
        widths: units that stay at least, by group; 1 where none is given.
        warm_up: epochs before the first round.
        every: steps from one update of the factors to the next.
        flat: whether candidates are ordered by sharpness; else by their rise.
        damping: of the compensation, in mean diagonals of G.

    Attributes:
        graph: of the network as it is.
        rounds: what was done.

    Raises:
        ValueError: if an argument is out of range, or a group in `widths` is unknown.

    Source: after Ebrahimi & Klabjan 2021, arXiv 2111.08577; budget, order and compensation are our reading.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        factors: KroneckerFactors,
        example_inputs: Any,
        *,
        epsilon: float = 0.02,
        interval: int = 1,
        max_fraction: float = 0.1,
        widths: Mapping[str, int] | None = None,
        warm_up: int = 1,
        every: int = 10,
        flat: bool = True,
        damping: float = 0.01,
    ):
        require_positive(epsilon=epsilon)
        require("max_fraction", max_fraction, 0.0, 1.0, ends=(False, True))
        for name, number, low in (("interval", interval, 1), ("warm_up", warm_up, 0), ("every", every, 1)):
            if number < low:
                raise ValueError(f"{name} must be at least {low}, got {number}.")
        if factors.fisher == "empirical":
            raise ValueError(
                'factors are of the empirical Fisher, which needs targets: take fisher="sampled" or "exact".'
            )
        self.net = net
        self.optimizer = optimizer
        self.factors = factors
        self.epsilon = epsilon
        self.interval = interval
        self.max_fraction = max_fraction
        self.warm_up = warm_up
        self.every = every
        self.flat = flat
        self.damping = damping
        self.rounds: list[Round] = []
        self._example = example_inputs
        self._steps = 0
        self._epochs = 0
        self._seen = False  # whether the factors are of the network as it is
        self.graph = trace_units(net, example_inputs)
        self.widths = dict(widths or {})
        for name in self.widths:
            if name not in {group.name for group in self._groups()}:
                raise ValueError(f"widths names {name!r}, but the groups that can be cut are {self._names()}.")

    def _groups(self) -> list[UnitGroup]:
        """Groups of which some layer with factors produces or reads the units."""
        layers = self.factors.layers
        found = self.graph.prunable()
        return [group for group in found if producers(group, layers) or consumers(group, layers)]

    def _names(self) -> list[str]:
        return [group.name for group in self._groups()]

    def step(self, x: Any) -> None:
        """Update the factors, every so many steps and at the first after a round.

        Args:
            x: inputs of the batch: a tensor, a tuple of arguments or a dict of keywords.
        """
        self._steps += 1
        # The first step after a round too: of epochs shorter than `every` each has its update.
        if self._seen and (self._steps - 1) % self.every:
            return
        with undisturbed(self.net), torch.enable_grad():
            with self.factors:
                output = call(self.net, x)
            self.factors.update(output)
        self._seen = True

    def epoch(self, loss: float) -> Round | None:
        """Prune, if a round is due.

        Args:
            loss: mean of the epoch that is over.

        Returns:
            What was done; None if no round was due, or nothing was within the budget.

        Raises:
            ValueError: if the loss is not finite, or negative.
            RuntimeError: if a round is due, but there was no step since the last.
        """
        require("loss", loss, 0.0, float("inf"), ends=(True, False))
        self._epochs += 1
        due = self._epochs - self.warm_up
        if due < 1 or (due - 1) % self.interval:
            return None
        if not self._seen:
            raise RuntimeError("There was no step since the last round: call step(x) after each batch.")
        chosen = self._chosen(self.epsilon * loss)
        return self._cut(chosen) if any(chosen.values()) else None

    def _chosen(self, budget: float) -> dict[str, list[int]]:
        """Units to remove, by group."""
        groups = self._groups()
        trials = {group.name: self._compensation(group) for group in groups}
        candidates: list[tuple[str, int]] = []
        spent = 0.0
        while True:
            offers = [
                (float(rises.min()), name, int(rises.argmin()))
                for name, trial in trials.items()
                if int(trial.keep.sum()) > max(1, self.widths.get(name, 1))
                for rises in [trial.rises()]
            ]
            if not offers:
                break
            rise, name, unit = min(offers)
            if spent + rise > budget:
                break
            spent += rise
            trials[name].remove(unit)
            candidates.append((name, unit))
        if self.flat:
            shares = {group.name: sharpness_shares(self.factors, group) for group in groups}
            candidates.sort(key=lambda one: -float(shares[one[0]][one[1]]))  # stable: ties stay in the order of rises
        # At least one: of few units a fraction is less than one.
        most = max(1, int(self.max_fraction * sum(group.size for group in groups)))
        chosen: dict[str, list[int]] = {}
        for name, unit in candidates[:most]:
            chosen.setdefault(name, []).append(unit)
        return chosen

    def _compensation(self, group: UnitGroup) -> Compensation:
        return Compensation(self.factors, group, damping=self.damping, side=natural_side(group, self.factors.layers))

    def _cut(self, chosen: Mapping[str, list[int]]) -> Round:
        before = max(self.factors.spectral_radius().values())
        keep, rise = {}, 0.0
        for name, units in chosen.items():
            compensation = self._compensation(self.graph[name])
            for unit in units:
                compensation.remove(unit)
            compensation.repair_()
            rise += compensation.rise
            keep[name] = compensation.keep
        for name, stays in keep.items():
            keep_factors(self.factors, self.graph[name], stays)
        shrink(self.net, keep, self.graph, optimizer=self.optimizer)
        self.graph = trace_units(self.net, self._example)
        self._seen = False
        done = Round(
            epoch=self._epochs,
            removed={name: len(units) for name, units in chosen.items()},
            units=sum(group.size for group in self._groups()),
            rise=rise,
            radius=(before, max(self.factors.spectral_radius().values())),
        )
        self.rounds.append(done)
        return done
