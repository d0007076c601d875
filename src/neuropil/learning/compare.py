"""Learning rules on equal terms: the same splits, batches and number of updates, each at its own tuned rate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset
from neuropil.learning.alignment import gradient_angles
from neuropil.learning.rule import LearningRule, Loss
from neuropil.learning.settle import NotSettledError
from neuropil.learning.training import Contender, Course, Measure, train
from neuropil.parallel import Track, parallel

__all__ = ["compare", "final_accuracies", "tune_rates"]

Data = Dataset | Callable[[int], Dataset]


def compare(
    rules: Mapping[str, Contender | Callable[..., LearningRule]],
    data: Data,
    net: Callable[[torch.Generator], nn.Module] | None = None,
    *,
    loss_fn: Loss = cross_entropy,
    epochs: int = 10,
    batch_size: int = 100,
    rate: float = 1e-3,
    seeds: int | Sequence[int] = 5,
    measure: Measure | None = None,
    align: int | None = None,
    costs: bool = False,
    keep_diverged: bool = False,
    jobs: int = 1,
    track: Track | None = None,
) -> pd.DataFrame:
    """Train every rule on every seed.

    A seed fixes the split (where `data` is a function of it), the initial weights, the order of the batches and what a
    rule draws (where it takes a `generator`), alike for all rules; every run is computed on one thread, so that `jobs`
    does not change a number.

    Args:
        rules: by name, a rule (made from net and loss) or a Contender with a net and rate of its own.
        data: a data set, or a function that makes it from the seed.
        net: makes the network from a generator, for rules that bring none.
        loss_fn: mean-reduced loss of (output, target).
        epochs: passes over the training set.
        batch_size: samples an update.
        rate: learning rate of rules that bring none; Adam.
        seeds: how many, from 0, or which.
        measure: further columns of every row, from the rule and the data.
        align: training samples at which every row also has the angle between the rule's gradient and that of the loss,
            in degrees: "angle" (mean over layers, each alike) and "angle <layer>"; None leaves it out.
        costs: whether the rows of epoch 0 also have what one step costs, "milliseconds" and "megabytes" (see
            `step_cost`).
        keep_diverged: a run whose loss is no longer finite stays in the table, at chance and with an infinite loss from
            that epoch on, instead of ending the comparison.
        jobs: processes.
        track: shows progress: called with an iterable, a label and `total=`, yields the same items.

    Returns:
        One row a rule, seed and epoch (0 = before learning): rule, seed, epoch, rate, loss (mean over the epoch, NaN at
        epoch 0), accuracy (fraction of the test set), seconds (spent on learning in this epoch), and what `measure`
        adds.

    Raises:
        ValueError: if a rule has no net, or a number is out of range.
        FloatingPointError: if a run diverges and is not kept, naming rule, seed and step.
    """
    measures = [measure] if measure else []
    measures += [partial(gradient_angles, samples=align)] if align is not None else []
    course = Course(epochs, batch_size, loss_fn, measures, costs, keep_diverged)
    arms = {name: _contender(name, rule, net, rate) for name, rule in rules.items()}
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    # Split here, so that a process gets the samples of its own seed and no others.
    splits = {seed: data if isinstance(data, Dataset) else data(seed) for seed in chosen}
    calls = [partial(train, name, arm, splits[seed], seed, course) for seed in chosen for name, arm in arms.items()]
    label = f"{len(arms)} rules on {len(chosen)} seeds, {epochs} epochs"
    rows = [row for several in parallel(calls, jobs=jobs, track=track, label=label) for row in several]
    return pd.DataFrame(rows)


def tune_rates(
    rules: Mapping[str, Contender],
    data: Dataset,
    rates: Sequence[float],
    *,
    validation: int | float = 0.2,
    loss_fn: Loss = cross_entropy,
    epochs: int = 10,
    batch_size: int = 100,
    seeds: Sequence[int] = (0,),
    jobs: int = 1,
    track: Track | None = None,
) -> dict[str, Contender]:
    """Give every contender the rate of one grid that is best on validation parts of the training set.

    The judge is the accuracy over the last quarter of the epochs, mean over the seeds, each of which draws its own
    validation part and initial weights. Ties go to the smaller rate; a rate at which a run diverges loses.

    Returns:
        The contenders, each with its rate.

    Raises:
        ValueError: if there are no rates or no seeds.
        FloatingPointError: if every rate diverges for a contender.
    """
    if not rates or not seeds:
        raise ValueError(f"{'seeds' if rates else 'rates'} is empty: there is nothing to choose from.")
    course = Course(epochs, batch_size, loss_fn)
    held = {seed: data.holdout(validation, seed=seed) for seed in seeds}
    ordered = sorted(rates)
    calls = [
        partial(_score, name, replace(arm, rate=rate), held[seed], seed, course)
        for name, arm in rules.items()
        for rate in ordered
        for seed in seeds
    ]
    every = np.reshape(parallel(calls, jobs=jobs, track=track, label=f"tuning {len(rules)} rates"), (-1, len(seeds)))
    scores = np.where((every < 0).any(axis=1), -1.0, every.mean(axis=1)).tolist()
    chosen = {}
    for index, (name, arm) in enumerate(rules.items()):
        own = scores[index * len(ordered) : (index + 1) * len(ordered)]
        if max(own) < 0:
            raise FloatingPointError(f"{name} diverges at every rate of {ordered}.")
        chosen[name] = replace(arm, rate=ordered[own.index(max(own))])
    return chosen


def final_accuracies(table: pd.DataFrame) -> pd.DataFrame:
    """Where every rule ends.

    Args:
        table: from `compare`.

    Returns:
        One row a rule: rule, accuracy and spread (mean and standard deviation over seeds after the last epoch,
        percent), seeds, rate, and milliseconds (median time of learning an epoch).
    """
    rows = []
    for rule, own in table.groupby("rule", sort=False):
        last = 100 * own.loc[own["epoch"] == own["epoch"].max(), "accuracy"].to_numpy(dtype=float)
        spread = float(last.std(ddof=1)) if len(last) > 1 else float("nan")
        time_taken = own.loc[own["epoch"] > 0, "seconds"].dropna().to_numpy(dtype=float)
        rows.append(
            {
                "rule": str(rule),
                "accuracy": float(last.mean()),
                "spread": spread,
                "seeds": len(last),
                "rate": float(own["rate"].to_numpy(dtype=float)[0]),
                "milliseconds": float(1e3 * np.median(time_taken)) if len(time_taken) else float("nan"),
            }
        )
    return pd.DataFrame(rows)


def _contender(name: str, rule: Any, net: Callable | None, rate: float) -> Contender:
    if isinstance(rule, Contender):
        return rule
    if net is None:
        raise ValueError(f"{name!r} has no network: pass net, or a Contender that makes its own.")
    return Contender(net, rule, rate)


def _score(name: str, arm: Contender, data: Dataset, seed: int, course: Course) -> float:
    try:
        rows = train(name, arm, data, seed, course)
        # One epoch of a few hundred samples is a noisy judge: the last quarter of them decides.
        return float(np.mean([row["accuracy"] for row in rows[-max(1, course.epochs // 4) :]]))
    except (FloatingPointError, NotSettledError):
        return -1.0
