"""Learning rules on equal terms: the same splits, batches and number of updates, each at its own tuned rate."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler

from neuropil.data import Dataset
from neuropil.learning.rule import LearningRule, Loss
from neuropil.learning.settle import NotSettledError
from neuropil.parallel import Track, parallel

__all__ = ["Contender", "compare", "evaluate", "final_accuracies", "train_epoch", "tune_rates"]

Data = Dataset | Callable[[int], Dataset]
Measure = Callable[[LearningRule, Dataset], Mapping[str, float]]
SHUFFLING = 0x5EED  # apart from the seeds of the initial weights


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Adam:
    """Adam in one kernel: on small networks it costs a third of the default."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


@dataclass(frozen=True)
class Contender:
    """One arm of a comparison.

    Attributes:
        net: makes the network from a generator.
        rule: makes the rule from the network and the loss.
        rate: learning rate.
        optimizer: makes the optimizer from the parameters, the network's and the rule's own (plastic feedback), and
            `lr`.
        schedule: makes a learning-rate schedule from the optimizer, stepped after every epoch; None keeps the rate.
    """

    net: Callable[[torch.Generator], nn.Module]
    rule: Callable[[nn.Module, Loss], LearningRule]
    rate: float = 1e-3
    optimizer: Callable[..., torch.optim.Optimizer] = adam
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None


def train_epoch(
    rule: LearningRule,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    *,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
) -> float:
    """Pass once over the training set in a random order; a last, smaller batch is used too.

    Returns:
        Mean training loss over the samples, each before its own update.

    Raises:
        FloatingPointError: if the loss is no longer finite, with the step.
    """
    rule.net.train()
    total = 0.0
    order = torch.randperm(len(data.x_train), generator=generator)
    for step, chosen in enumerate(order.split(batch_size)):
        loss = float(rule.learn(data.x_train[chosen], data.y_train[chosen], optimizer))
        if not -float("inf") < loss < float("inf"):
            raise FloatingPointError(f"{type(rule).__name__}: the loss is {loss} at step {step} of the epoch.")
        total += loss * len(chosen)
    return total / len(order)


@torch.no_grad()
def evaluate(rule: LearningRule, data: Dataset, *, batch_size: int = 1000) -> float:
    """Fraction of the test set whose largest output is the right class."""
    rule.net.eval()
    batches = zip(data.x_test.split(batch_size), data.y_test.split(batch_size), strict=True)
    return sum(int((rule.predict(x).argmax(1) == y).sum()) for x, y in batches) / len(data.y_test)


def compare(
    rules: Mapping[str, Contender | Callable[[nn.Module, Loss], LearningRule]],
    data: Data,
    net: Callable[[torch.Generator], nn.Module] | None = None,
    *,
    loss_fn: Loss = cross_entropy,
    epochs: int = 10,
    batch_size: int = 100,
    rate: float = 1e-3,
    seeds: int | Sequence[int] = 5,
    measure: Measure | None = None,
    jobs: int = 1,
    track: Track | None = None,
) -> pd.DataFrame:
    """Train every rule on every seed.

    A seed fixes the split (where `data` is a function of it), the initial weights and the order of the batches, alike
    for all rules; every run is computed on one thread, so that `jobs` does not change a number.

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
        jobs: processes.
        track: shows progress: called with an iterable, a label and `total=`, yields the same items.

    Returns:
        One row a rule, seed and epoch (0 = before learning): rule, seed, epoch, rate, loss (mean over the epoch, NaN at
        epoch 0), accuracy (fraction of the test set), seconds (spent on learning in this epoch), and what `measure`
        adds.

    Raises:
        ValueError: if a rule has no net, or a number is out of range.
        FloatingPointError: if a run diverges, naming rule, seed and epoch.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, got {epochs} and {batch_size}.")
    arms = {name: _contender(name, rule, net, rate) for name, rule in rules.items()}
    chosen = range(seeds) if isinstance(seeds, int) else seeds
    # Split here, so that a process gets the samples of its own seed and no others.
    splits = {seed: data if isinstance(data, Dataset) else data(seed) for seed in chosen}
    calls = [
        partial(_run, name, arm, splits[seed], seed, loss_fn, epochs, batch_size, measure)
        for seed in chosen
        for name, arm in arms.items()
    ]
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
    held = {seed: data.holdout(validation, seed=seed) for seed in seeds}
    ordered = sorted(rates)
    calls = [
        partial(_score, name, replace(arm, rate=rate), held[seed], seed, loss_fn, epochs, batch_size)
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
        time_taken = own.loc[own["epoch"] > 0, "seconds"].to_numpy(dtype=float)
        rows.append(
            {
                "rule": str(rule),
                "accuracy": float(last.mean()),
                "spread": spread,
                "seeds": len(last),
                "rate": float(own["rate"].to_numpy(dtype=float)[0]),
                "milliseconds": float(1e3 * np.median(time_taken)),
            }
        )
    return pd.DataFrame(rows)


def _contender(name: str, rule: Any, net: Callable | None, rate: float) -> Contender:
    if isinstance(rule, Contender):
        return rule
    if net is None:
        raise ValueError(f"{name!r} has no network: pass net, or a Contender that makes its own.")
    return Contender(net, rule, rate)


def _run(
    name: str,
    arm: Contender,
    split: Dataset,
    seed: int,
    loss_fn: Loss,
    epochs: int,
    batch_size: int,
    measure: Measure | None = None,
) -> list[dict[str, Any]]:
    try:
        net = arm.net(torch.Generator().manual_seed(seed)).to(split.x_train)
        rule = arm.rule(net, loss_fn)
        optimizer = arm.optimizer([*net.parameters(), *rule.parameters()], lr=arm.rate)
        schedule = arm.schedule(optimizer) if arm.schedule else None
        order = torch.Generator().manual_seed(seed ^ SHUFFLING)
        rows = []
        for epoch in range(epochs + 1):
            loss, start = float("nan"), time.perf_counter()
            if epoch > 0:
                loss = train_epoch(rule, optimizer, split, batch_size=batch_size, generator=order)
                if schedule:
                    schedule.step()
            seconds = time.perf_counter() - start
            row: dict[str, Any] = {"rule": name, "seed": seed, "epoch": epoch, "rate": arm.rate, "loss": loss}
            row |= {"accuracy": evaluate(rule, split), "seconds": seconds}
            rows.append(row | dict(measure(rule, split) if measure else {}))
        return rows
    except (FloatingPointError, ValueError) as error:
        error.add_note(f"This was {name!r} on seed {seed}, at rate {arm.rate:g}.")
        raise


def _score(name: str, arm: Contender, data: Dataset, seed: int, loss_fn: Loss, epochs: int, batch_size: int) -> float:
    try:
        rows = _run(name, arm, data, seed, loss_fn, epochs, batch_size)
        # One epoch of a few hundred samples is a noisy judge: the last quarter of them decides.
        return float(np.mean([row["accuracy"] for row in rows[-max(1, epochs // 4) :]]))
    except (FloatingPointError, NotSettledError):
        return -1.0
