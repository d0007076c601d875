"""What the study of pruning by Kronecker-factored curvature computes for one seed; its claims are in the study."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset, load
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.probes.curvature.spectra import spectral_radius
from neuropil.structure.curvature import KroneckerNeuron
from neuropil.structure.curvature_pruner import CurvaturePruner
from neuropil.structure.flatness import FlatnessPenalty
from neuropil.structure.graph.tracing import trace_units
from neuropil.structure.surgery.masking import mask_units
from neuropil.structure.surgery.shrinking import shrink
from neuropil.studies.structure._columns import numbers
from neuropil.studies.structure._curvature_cuts import (
    ARMS,
    CUT,
    RETRAINED,
    TRAINED,
    accuracy,
    factors_on,
    hidden_groups,
    make_net,
    row_norms,
    train,
)

__all__ = [
    "CHEAP",
    "FLAT",
    "REPAIRED",
    "SCORES",
    "WHOLE",
    "WITH",
    "WITHOUT",
    "Course",
    "deletions",
    "flat_or_not",
    "looked_at",
    "looped",
    "mean_loss",
    "pruned",
    "rank_correlations",
    "task",
    "trained",
]

WITH, WITHOUT, REPAIRED = "with first order", "second order alone", "compensated"
SCORES = (WITH, WITHOUT, REPAIRED, "magnitude")
WHOLE, FLAT, CHEAP = "nothing removed", "sharpest of the cheap first", "cheapest first"


@dataclass(frozen=True)
class Course:
    """One task, its network and how it is trained and cut."""

    task: str = "digits"
    samples: int | None = None  # of the training part; None takes all
    test_samples: int | None = None
    convolution: bool = False
    hidden: tuple[int, ...] = (128, 64)  # units, or channels
    cuts: tuple[tuple[int, ...], ...] = ((64, 32), (32, 16), (13, 7))
    epochs: int = 4
    between: int = 2
    rate: float = 0.05
    last_rate: float = 0.02  # after the last cut
    batch_size: int = 50
    seeds: int = 10
    look: int = 4000  # training samples that the factors, gradients and radii are taken on, at most


def task(course: Course, seed: int) -> Dataset:
    """The data of a seed: where a split is drawn, it is the seed's own."""
    data = load(course.task, seed=seed) if course.task == "digits" else load(course.task)
    data = data.subset(course.samples, course.test_samples, seed=seed)
    return data if course.convolution else data.flat()


def trained(course: Course, seed: int, penalty: float = 0.0) -> tuple[nn.Module, torch.optim.SGD, Dataset]:
    """The network of a seed after its first epochs."""
    data = task(course, seed)
    net = make_net(data, course.hidden, course.convolution, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(net.parameters(), course.rate, momentum=0.9)
    flat = FlatnessPenalty(net, penalty, generator=torch.Generator().manual_seed(seed)) if penalty else None
    train(net, optimizer, data, epochs=course.epochs, batch_size=course.batch_size, seed=seed, penalty=flat)
    return net, optimizer, data


def looked_at(data: Dataset, course: Course) -> list[tuple[Tensor, Tensor]]:
    """Training samples on which curvature is taken, in batches."""
    x, y = data.x_train[: course.look], data.y_train[: course.look]
    return list(zip(x.split(500), y.split(500), strict=True))


def deletions(course: Course, count: int, seed: int) -> pd.DataFrame:
    """True rise and scores of some units in each hidden layer, on the same training samples."""
    net, _, data = trained(course, seed)
    batches = looked_at(data, course)
    factors = factors_on(net, batches, seed)
    graph = trace_units(net, batches[0][0][:2])
    criteria = {
        WITH: KroneckerNeuron(factors, compensate=False),
        WITHOUT: KroneckerNeuron(factors, compensate=False, first_order=False),
        REPAIRED: KroneckerNeuron(factors),
    }
    predicted = {
        name: criterion.unit_scores(net, batches, cross_entropy, graph) for name, criterion in criteria.items()
    }
    generator = torch.Generator().manual_seed(seed)
    before, rows = mean_loss(net, batches), []
    whole = copy.deepcopy(net.state_dict())
    for layer, group in enumerate(hidden_groups(graph, factors), 1):
        norms = row_norms(net, group)
        for unit in torch.randperm(group.size, generator=generator)[:count].tolist():
            keep = torch.arange(group.size) != unit
            mask_units(net, {group.name: keep}, graph).apply_(net)
            row = {"layer": layer, "unit": unit, "seed": seed, "true": mean_loss(net, batches) - before}
            net.load_state_dict(whole)
            row |= {name: float(scores[group.name][unit]) for name, scores in predicted.items()}
            rows.append(row | {"magnitude": float(norms[unit])})
    return pd.DataFrame(rows)


@torch.no_grad()
def mean_loss(net: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Over all samples."""
    total = sum(float(cross_entropy(net(x), y, reduction="sum")) for x, y in batches)
    return total / sum(len(y) for _, y in batches)


def rank_correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman's correlation of every score with the true rise, by layer and seed."""
    rows = []
    for layer, seed in dict.fromkeys(table[["layer", "seed"]].itertuples(index=False, name=None)):
        true = numbers(table, "true", layer=layer, seed=seed)
        for score in SCORES:
            pair = np.stack([rankdata(true), rankdata(numbers(table, score, layer=layer, seed=seed))])
            correlation = float(np.corrcoef(pair)[0, 1])
            rows.append({"layer": layer, "score": score, "seed": seed, "correlation": correlation})
    return pd.DataFrame(rows)


def pruned(course: Course, seed: int) -> pd.DataFrame:
    """Every arm from the same trained network: its accuracy, size and radius after each training and each cut."""
    net, optimizer, data = trained(course, seed)
    batches = looked_at(data, course)
    rows = []
    for arm, choose in ARMS.items():
        ours, steps = copy.deepcopy((net, optimizer))
        generator = torch.Generator().manual_seed(seed)

        def note(stage: str, number: int, ours: nn.Module = ours, arm: str = arm) -> None:
            row = {"arm": arm, "seed": seed, "stage": stage, "cut": number, "accuracy": accuracy(ours, data)}
            size = sum(parameter.numel() for parameter in ours.parameters())
            # On a part of the samples: it is shown, and decides nothing.
            radius = np.nan if stage == CUT else spectral_radius(ours, batches[:2], cross_entropy, tol=1e-2)
            rows.append(row | {"parameters": size, "radius": radius})

        note(TRAINED, 0)
        for number, widths in enumerate(course.cuts, 1):
            graph = trace_units(ours, batches[0][0][:2])
            groups = hidden_groups(graph, factors_on(ours, batches[:1], seed))
            wanted = {group.name: width for group, width in zip(groups, widths, strict=True)}
            shrink(ours, choose(ours, graph, wanted, batches, generator), graph, optimizer=steps)
            note(CUT, number)
            for group in steps.param_groups:
                group["lr"] = course.last_rate if number == len(course.cuts) else course.rate
            later = seed + 1000 * number  # an order of its own for every phase
            train(ours, steps, data, epochs=course.between, batch_size=course.batch_size, seed=later)
            note(RETRAINED, number)
    return pd.DataFrame(rows)


def flat_or_not(course: Course, strength: float, seed: int) -> pd.DataFrame:
    """Train with and without the penalty; the radius is the Hessian's, by products, on training samples."""
    rows = []
    for mu in (0.0, strength):
        net, _, data = trained(course, seed, mu)
        batches = looked_at(data, course)
        radius = spectral_radius(net, batches, cross_entropy)
        blocks = max(factors_on(net, batches, seed).spectral_radius().values())
        row = {"strength": mu, "seed": seed, "radius": radius, "radius of the blocks": blocks}
        rows.append(row | {"accuracy": accuracy(net, data)})
    return pd.DataFrame(rows)


def looped(course: Course, epsilon: float, fraction: float, ends: int, seed: int) -> pd.DataFrame:
    """Train and prune at once, but for the epochs at both ends; the candidates in either order, or none."""
    data = task(course, seed)
    rows = []
    for order in (WHOLE, FLAT, CHEAP):
        net = make_net(data, course.hidden, course.convolution, torch.Generator().manual_seed(seed))
        optimizer = torch.optim.SGD(net.parameters(), course.rate, momentum=0.9)
        pruner = None
        if order != WHOLE:
            factors = KroneckerFactors(net, generator=torch.Generator().manual_seed(seed))
            pruner = CurvaturePruner(
                net,
                optimizer,
                factors,
                data.x_train[:2],
                epsilon=epsilon,
                max_fraction=fraction,
                warm_up=ends - 1,
                flat=order == FLAT,
            )
        longest, size = course.epochs - ends, course.batch_size
        train(net, optimizer, data, epochs=longest, batch_size=size, seed=seed, pruner=pruner)
        train(net, optimizer, data, epochs=ends, batch_size=size, seed=seed + 1000)
        graph = trace_units(net, data.x_train[:2])
        units = sum(group.size for group in graph.prunable())
        radius = spectral_radius(net, looked_at(data, course), cross_entropy)
        falls = [100 * (1 - done.radius[1] / done.radius[0]) for done in pruner.rounds] if pruner else []
        row = {"order": order, "seed": seed, "accuracy": accuracy(net, data), "units": units, "radius": radius}
        rows.append(row | {"fall": float(np.mean(falls)) if falls else 0.0})
    return pd.DataFrame(rows)
