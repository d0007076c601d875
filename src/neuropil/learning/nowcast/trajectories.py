"""Trajectories of weights in training: what nowcasters learn from, and the loss curves by which they are judged."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from neuropil.data import Dataset
from neuropil.learning.backpropagation import Backpropagation
from neuropil.learning.nowcast.graph import NeuralGraph, neural_graph, weight_table
from neuropil.learning.nowcast.jumping import Nowcasting, weight_vector
from neuropil.learning.rule import LearningRule, Loss
from neuropil.learning.training import SHUFFLING, adam
from neuropil.parallel import Track, parallel

__all__ = ["Trajectory", "TrajectoryDataset", "collect_trajectories", "train_curve"]

Maker = Callable[[torch.Generator], nn.Module]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The weights of one training.

    Attributes:
        states: of the flat vector, in time.
        graph: of the network.
    """

    states: Float[Tensor, "weights states"]
    graph: NeuralGraph


@dataclass(frozen=True, eq=False)
class TrajectoryDataset:
    """Trajectories, from which slices are drawn.

    Attributes:
        trajectories: of one network or of many kinds.
    """

    trajectories: Sequence[Trajectory]

    def __len__(self) -> int:
        """Number of trajectories."""
        return len(self.trajectories)

    def draw(
        self, length: int, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "weights {length}"], NeuralGraph]:
        """Consecutive states of a random trajectory from a random time on.

        Args:
            length: number of states.
            generator: source of the draw.

        Raises:
            ValueError: if there are no trajectories, or the drawn one has fewer states.
        """
        if not self.trajectories:
            raise ValueError("There are no trajectories to draw from.")
        chosen = self.trajectories[int(torch.randint(len(self), (), generator=generator))]
        spare = chosen.states.shape[1] - length
        if spare < 0:
            raise ValueError(f"A trajectory has {chosen.states.shape[1]} states, a slice wants {length}.")
        start = int(torch.randint(spare + 1, (), generator=generator))
        return chosen.states[:, start : start + length], chosen.graph


def train_curve(
    rule: LearningRule,
    data: Dataset,
    optimizer: Optimizer,
    *,
    steps: int,
    batch_size: int = 64,
    seed: int = 0,
    every: int = 10,
    nowcasting: Nowcasting | None = None,
    watch: Callable[[], None] | None = None,
) -> pd.DataFrame:
    """Train, and look at the loss on the whole training set every so many steps.

    Args:
        rule: fills the gradients; its `loss_fn` is the loss.
        data: the training part is used, in random order, without a last smaller batch.
        optimizer: of the rule's net.
        steps: of the optimizer.
        batch_size: samples a step; the whole set if it is smaller.
        seed: of the order of the batches.
        every: steps between two losses.
        nowcasting: stepped after the optimizer.
        watch: called after every such number of steps, before the loss is taken, instead of it.

    Returns:
        One row each, from step `every` on: step, loss (infinite where it is no number); none with `watch`.

    Raises:
        ValueError: if a number is less than 1.
    """
    if min(steps, batch_size, every) < 1:
        raise ValueError(f"steps, batch_size and every must be at least 1, got {steps}, {batch_size} and {every}.")
    x, y = data.x_train, data.y_train
    loss_fn, rows = rule.required_loss(), []
    rule.net.train()
    for step, chosen in enumerate(_batches(len(x), batch_size, steps, seed), start=1):
        rule.learn(x[chosen], y[chosen], optimizer)
        if nowcasting is not None:
            nowcasting.step()
        if step % every:
            continue
        if watch is not None:
            watch()
            continue
        loss = _whole_loss(rule, loss_fn, data)
        rows.append((step, float("inf") if math.isnan(loss) else loss))
    return pd.DataFrame(rows, columns=["step", "loss"])


@torch.no_grad()
def _whole_loss(rule: LearningRule, loss_fn: Loss, data: Dataset, part: int = 5000) -> float:
    """Mean loss over the training set, in evaluation mode and in parts that fit the memory."""
    rule.net.eval()
    parts = zip(data.x_train.split(part), data.y_train.split(part), strict=True)
    total = sum(float(loss_fn(rule.predict(x), y)) * len(y) for x, y in parts)
    rule.net.train()
    return total / len(data.y_train)


def _batches(samples: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed ^ SHUFFLING)
    done, size = 0, min(size, samples)
    while done < steps:
        for chosen in torch.randperm(samples, generator=generator)[: samples - samples % size].split(size):
            yield chosen
            done += 1
            if done == steps:
                return


def collect_trajectories(
    nets: Sequence[Maker],
    data: Dataset,
    *,
    count: int,
    steps: int,
    every: int,
    rate: float = 1e-3,
    batch_size: int = 64,
    loss_fn: Loss = cross_entropy,
    optimizer: Callable[..., Optimizer] = adam,
    connect: bool = True,
    seed: int = 0,
    jobs: int = 1,
    track: Track | None = None,
) -> TrajectoryDataset:
    """Train networks and keep their weights every so many steps.

    Args:
        nets: makers of networks from a generator, taken in turn.
        data: what they learn.
        count: of trainings, on seeds from `seed` on.
        steps: of the optimizer.
        every: steps between two states; the first state is after that many steps.
        rate: learning rate.
        batch_size: samples a step.
        loss_fn: mean-reduced loss of (output, target).
        optimizer: makes it from parameters and `lr`.
        connect: whether the graphs have connections; without them, nets need not be traced.
        seed: of the first training: initial weights and order of the batches.
        jobs: processes.
        track: shows progress.

    Raises:
        TypeError: as `neural_graph`.
        ValueError: if there are no networks, or a number is less than 1.
    """
    if not nets or count < 1:
        raise ValueError(f"There must be at least one net and one training, got {len(nets)} and {count}.")
    calls = [
        partial(
            _trajectory,
            nets[index % len(nets)],
            partial(optimizer, lr=rate),
            number,
            connect,
            partial(train_curve, data=data, steps=steps, batch_size=batch_size, every=every, seed=number),
            loss_fn,
        )
        for index, number in enumerate(range(seed, seed + count))
    ]
    return TrajectoryDataset(parallel(calls, jobs=jobs, track=track, label="trajectories"))


def _trajectory(
    make: Maker, optimizer: Callable[..., Optimizer], seed: int, connect: bool, train: Callable[..., Any], loss_fn: Loss
) -> Trajectory:
    net = make(torch.Generator().manual_seed(seed))
    states: list[Tensor] = []
    rule = Backpropagation(net, loss_fn)
    train(rule, optimizer=optimizer(net.parameters()), watch=lambda: states.append(weight_vector(net)))
    if not states:
        raise ValueError("A training kept no state: every must be at most its number of steps.")
    return Trajectory(torch.stack(states, dim=1), neural_graph(net) if connect else weight_table(net))
