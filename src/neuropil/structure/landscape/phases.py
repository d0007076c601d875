"""Measure a phase diagram: train at every temperature, prune to every density, retrain twice or more, compare.

    for each dense seed, temperature, density:
        masks  from the scores of the dense weights         one-shot
        theta_u = retrain(pruned weights, masks, seed u)    u = 1..U, other orders of the data
        error  = mean_u E_test(theta_u);   LMC, CKA, agreement, JS = means over pairs (u, v)

(Zhou et al. 2023, section 3: magnitude pruning, the same density in every layer.)
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from neuropil.neurons.ranges import require
from neuropil.probes.similarity import Agreement, JensenShannon, LinearCKA, stream_pair
from neuropil.structure.allocation import Scope, allocate
from neuropil.structure.criteria import Criterion, Magnitude
from neuropil.structure.landscape.connectivity import mode_connectivity
from neuropil.structure.landscape.diagram import PhaseDiagram
from neuropil.structure.masks import Masks, prunable_parameters
from neuropil.structure.weightspace.interpolation import Batches

__all__ = ["Gauges", "phase_diagram"]


@dataclass(frozen=True)
class Gauges:
    """How nets are measured.

    Attributes:
        test_error: of a net in evaluation mode, percent.
        train_error: the same on training data, for connectivity.
        batches: of training inputs, for similarity of the outputs; read again for every pair.
        renorm: batches for the statistics of batch norm along the line; None where there is none.
        points: on the line.
    """

    test_error: Callable[[nn.Module], float]
    train_error: Callable[[nn.Module], float]
    batches: Batches
    renorm: Batches | None = None
    points: int = 11


def phase_diagram(
    train: Callable[[Any, int], nn.Module],
    temperatures: Sequence[Any],
    densities: Sequence[float],
    retrain: Callable[[nn.Module, Masks, int], nn.Module],
    gauges: Gauges,
    *,
    seeds: Sequence[int] = (0,),
    retrain_seeds: Sequence[int] = (0, 1),
    criterion: Criterion | None = None,
    params: Sequence[str] | None = None,
    scope: Scope = "layer",
    track: Callable[..., Iterable[Any]] | None = None,
) -> PhaseDiagram:
    """Measure error, connectivity and similarity over load and temperature.

    Args:
        train: gives the dense net of a temperature and a dense seed; it is not changed.
        temperatures: labels, the hottest first.
        densities: fractions of the weights that stay, in (0, 1].
        retrain: trains a pruned net under masks, with the order of the data of a seed, and returns it; it may train the
            net that it gets, a copy.
        gauges: how nets are measured.
        seeds: of dense trainings.
        retrain_seeds: of retrainings, two or more.
        criterion: scores weights without data; None is their magnitude.
        params: names of the weights to prune; None takes all `prunable_parameters`.
        scope: how the density is shared between layers; see `allocate`.
        track: shows progress over the cells.

    Raises:
        ValueError: if there are fewer than two retraining seeds, a list is empty or has doubles, a density is outside
            (0, 1], the criterion needs data, or a retrained net has weights outside its mask.

    Source: Zhou et al. 2023 (arXiv 2305.18383).
    """
    _check(temperatures, densities, seeds, retrain_seeds)
    criterion = Magnitude() if criterion is None else criterion
    if criterion.needs != "weights":
        raise ValueError(f"criterion must need weights alone, {type(criterion).__name__} needs {criterion.needs}.")
    rows = []
    cells = [(seed, heat, label) for seed in seeds for heat, label in enumerate(reversed(temperatures))]
    for seed, heat, label in track(cells, "dense nets", total=len(cells)) if track else cells:
        dense = train(label, seed)
        start = {"seed": seed, "temperature": label, "heat": heat, "dense_error": _measured(dense, gauges.test_error)}
        names = prunable_parameters(dense) if params is None else list(params)
        scores = criterion(dense, (), None, names)
        for density in densities:
            masks = allocate(scores, density, scope)
            rows.append({**start, "density": density, **_retrained(dense, masks, retrain, retrain_seeds, gauges)})
    return PhaseDiagram(pd.DataFrame(rows))


def _retrained(
    dense: nn.Module,
    masks: Masks,
    retrain: Callable[[nn.Module, Masks, int], nn.Module],
    seeds: Sequence[int],
    gauges: Gauges,
) -> dict[str, float]:
    pruned = deepcopy(dense)
    masks.apply_(pruned)
    nets = [retrain(deepcopy(pruned), masks, seed) for seed in seeds]
    pairs = [_compared(a, b, masks, gauges) for a, b in combinations(nets, 2)]
    errors = [_measured(net, gauges.test_error) for net in nets]
    means = {name: float(np.mean([pair[name] for pair in pairs])) for name in pairs[0]}
    return {"error": float(np.mean(errors)), "error_spread": float(np.std(errors, ddof=1)), **means}


def _compared(a: nn.Module, b: nn.Module, masks: Masks, gauges: Gauges) -> Mapping[str, float]:
    line = mode_connectivity(a, b, gauges.train_error, gauges.points, gauges.renorm, masks)
    reducers = {"cka": LinearCKA(), "agreement": Agreement(), "js": JensenShannon()}
    alike = stream_pair(a, b, gauges.batches, reducers)
    return {
        "lmc": line.value,
        "barrier": line.barrier,
        "train_error": (line.errors[0] + line.errors[-1]) / 2,
        **{name: found.value for name, found in alike.items()},
    }


def _measured(net: nn.Module, error: Callable[[nn.Module], float]) -> float:
    net.eval()
    return float(error(net))


def _check(
    temperatures: Sequence[Any], densities: Sequence[float], seeds: Sequence[int], retrain_seeds: Sequence[int]
) -> None:
    lists = {"temperatures": temperatures, "densities": densities, "seeds": seeds, "retrain_seeds": retrain_seeds}
    for name, values in lists.items():
        if not len(values) or len(set(values)) < len(values):
            raise ValueError(f"{name} must have entries, each once, got {list(values)}.")
    if len(retrain_seeds) < 2:
        raise ValueError(f"retrain_seeds must be two or more, to compare pairs, got {list(retrain_seeds)}.")
    for density in densities:
        require("density", density, 0.0, 1.0, ends=(False, True))
