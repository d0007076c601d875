"""Train one rule on one split: what `compare` does for every rule and seed."""

import inspect
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler

from neuropil.data import Dataset
from neuropil.learning.costs import step_cost
from neuropil.learning.rule import LearningRule, Loss

__all__ = ["Contender", "Course", "Measure", "evaluate", "train", "train_epoch"]

Measure = Callable[[LearningRule, Dataset], Mapping[str, float]]
SHUFFLING, FEEDBACK = 0x5EED, 0xFEED  # apart from the seeds of the initial weights


def adam(parameters: Iterable[Tensor], lr: float) -> torch.optim.Adam:
    """Adam in one kernel: on small networks it costs a third of the default."""
    return torch.optim.Adam(parameters, lr=lr, fused=True)


@dataclass(frozen=True)
class Contender:
    """One arm of a comparison.

    Attributes:
        net: makes the network from a generator.
        rule: makes the rule from the network and the loss; where it takes a `generator`, it is given one of the seed.
        rate: learning rate.
        optimizer: makes the optimizer from the parameters, the network's and the rule's own (plastic feedback), and
            `lr`.
        schedule: makes a learning-rate schedule from the optimizer, stepped after every epoch; None keeps the rate.
    """

    net: Callable[[torch.Generator], nn.Module]
    rule: Callable[..., LearningRule]
    rate: float = 1e-3
    optimizer: Callable[..., torch.optim.Optimizer] = adam
    schedule: Callable[[torch.optim.Optimizer], LRScheduler] | None = None


@dataclass(frozen=True)
class Course:
    """What every contender goes through.

    Attributes:
        epochs: passes over the training set.
        batch_size: samples an update.
        loss_fn: mean-reduced loss of (output, target).
        measures: further columns of every row, each from the rule and the data.
        costs: whether the rows of epoch 0 also have what one step costs.
        keep_diverged: whether a diverged run is kept, at chance.
    """

    epochs: int = 10
    batch_size: int = 100
    loss_fn: Loss = cross_entropy
    measures: Sequence[Measure] = ()
    costs: bool = False
    keep_diverged: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs and batch_size must be at least 1, got {self.epochs} and {self.batch_size}.")


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


def train(name: str, arm: Contender, split: Dataset, seed: int, course: Course) -> list[dict[str, Any]]:
    """Train one contender on one split.

    Args:
        name: of the contender, the column "rule".
        arm: the contender.
        split: training and test samples.
        seed: of the initial weights, the order of the batches and what the rule draws.
        course: what it goes through.

    Returns:
        One row an epoch, 0 being before learning, as `compare` has them.

    Raises:
        FloatingPointError: if the run diverges and is not kept, naming rule, seed and step.
    """
    rows: list[dict[str, Any]] = []
    try:
        net = arm.net(torch.Generator().manual_seed(seed)).to(split.x_train)
        rule = made(arm.rule, net, course.loss_fn, seed)
        optimizer = arm.optimizer([*net.parameters(), *rule.parameters()], lr=arm.rate)
        schedule = arm.schedule(optimizer) if arm.schedule else None
        order = torch.Generator().manual_seed(seed ^ SHUFFLING)
        for epoch in range(course.epochs + 1):
            loss, start = float("nan"), time.perf_counter()
            if epoch > 0:
                loss = train_epoch(rule, optimizer, split, batch_size=course.batch_size, generator=order)
                if schedule:
                    schedule.step()
            seconds = time.perf_counter() - start
            row: dict[str, Any] = {"rule": name, "seed": seed, "epoch": epoch, "rate": arm.rate, "loss": loss}
            row |= {"accuracy": evaluate(rule, split), "seconds": seconds}
            for measure in course.measures:
                row |= measure(rule, split)
            if course.costs and epoch == 0:
                first = slice(course.batch_size)
                row |= step_cost(rule, split.x_train[first], split.y_train[first])._asdict()
            rows.append(row)
        return rows
    except (FloatingPointError, ValueError) as error:
        if course.keep_diverged and isinstance(error, FloatingPointError) and rows:
            lost = {"loss": float("inf"), "accuracy": 1 / split.classes, "seconds": float("nan")}
            common = {"rule": name, "seed": seed, "rate": arm.rate, **lost}
            return rows + [common | {"epoch": epoch} for epoch in range(len(rows), course.epochs + 1)]
        error.add_note(f"This was {name!r} on seed {seed}, at rate {arm.rate:g}.")
        raise


def made(make: Callable[..., LearningRule], net: nn.Module, loss_fn: Loss | None, seed: int) -> LearningRule:
    """A rule from its maker, which gets a generator of the seed where it takes one."""
    draws = "generator" in inspect.signature(make).parameters and "generator" not in getattr(make, "keywords", ())
    return make(net, loss_fn, **({"generator": torch.Generator().manual_seed(seed ^ FEEDBACK)} if draws else {}))
