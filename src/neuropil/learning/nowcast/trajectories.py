"""Training runs as data: the states that a network's weights went through."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset
from neuropil.learning.backpropagation import Backpropagation
from neuropil.learning.nowcast.forecasts import Nowcaster
from neuropil.learning.nowcast.graph import NeuralGraph, weight_table
from neuropil.learning.nowcast.jumping import Nowcasting
from neuropil.learning.nowcast.tracing import neural_graph
from neuropil.learning.rule import LearningRule, Loss
from neuropil.parallel import Track, parallel

__all__ = ["Trajectory", "TrajectoryDataset", "collect_trajectories", "train_curve"]


# eq=False: tensors do not compare to one truth value.
@dataclass(frozen=True, eq=False)
class Trajectory:
    """The states of one training run.

    Attributes:
        graph: of the network.
        states: flat vectors of weights, equally many steps apart.
    """

    graph: NeuralGraph
    states: Float[Tensor, "states weights"]


@dataclass(frozen=True, eq=False)
class TrajectoryDataset:
    """Training runs from which a nowcaster learns.

    Attributes:
        trajectories: the runs.

    Raises:
        ValueError: if there are none, or a state is not finite.
    """

    trajectories: tuple[Trajectory, ...]

    def __post_init__(self) -> None:
        if not self.trajectories:
            raise ValueError("A data set of trajectories needs at least one.")
        for index, one in enumerate(self.trajectories):
            if not bool(one.states.isfinite().all()):
                raise ValueError(f"Trajectory {index} holds states that are not finite.")

    def __len__(self) -> int:
        return len(self.trajectories)

    def __add__(self, other: "TrajectoryDataset") -> "TrajectoryDataset":
        return TrajectoryDataset(self.trajectories + other.trajectories)

    def windows(self, context: int, horizons: int) -> int:
        """In how many places a window of past and future states fits, all trajectories together."""
        return sum(max(0, len(one.states) - context - horizons + 1) for one in self.trajectories)


def minibatches(
    data: Dataset, batch_size: int, steps: int, generator: torch.Generator | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches of the training set, in a new random order every pass; a last, smaller batch is used too."""
    given = 0
    while given < steps:
        for chosen in torch.randperm(len(data.x_train), generator=generator).split(batch_size)[: steps - given]:
            given += 1
            yield data.x_train[chosen], data.y_train[chosen]


def collect_trajectories(
    factory: Callable[[torch.Generator], nn.Module],
    data: Dataset,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer] = torch.optim.Adam,
    n: int = 1,
    every: int = 200,
    *,
    steps: int = 10_000,
    batch_size: int = 64,
    rule: Callable[[nn.Module, Loss], LearningRule] = Backpropagation,
    loss_fn: Loss = cross_entropy,
    seed: int = 0,
    features: int = 9,
    jobs: int = 1,
    track: Track | None = None,
) -> TrajectoryDataset:
    """Train networks and keep the states of their weights.

    Args:
        factory: makes a network from a generator: its weights, and its sizes where they vary.
        data: trained on, its training part.
        optimizer: makes the optimizer from the parameters.
        n: number of networks.
        every: steps between two states; the initial weights are the first.
        steps: of each training.
        batch_size: samples a step.
        rule: learning rule.
        loss_fn: mean-reduced loss of (output, target).
        seed: of the first network and its batches; the next has the next seed.
        features: of `neural_graph`. A net that it does not know is kept without connections.
        jobs: processes.
        track: shows progress.

    Raises:
        ValueError: if a number is less than 1, or fewer than two states would be kept.
        FloatingPointError: if a training diverges, naming the seed.
    """
    if min(n, every, steps, batch_size) < 1 or steps < every:
        raise ValueError(
            "n, every and batch_size must be at least 1, and steps at least every; "
            f"got {n}, {every}, {batch_size} and {steps} steps."
        )
    calls = [
        partial(_trajectory, factory, data, optimizer, every, steps, batch_size, rule, loss_fn, features, seed + index)
        for index in range(n)
    ]
    return TrajectoryDataset(tuple(parallel(calls, jobs=jobs, track=track, label="trajectories")))


def _trajectory(
    factory: Callable[[torch.Generator], nn.Module],
    data: Dataset,
    optimizer: Callable[[Iterable[Tensor]], torch.optim.Optimizer],
    every: int,
    steps: int,
    batch_size: int,
    rule: Callable[[nn.Module, Loss], LearningRule],
    loss_fn: Loss,
    features: int,
    seed: int,
) -> Trajectory:
    generator = torch.Generator().manual_seed(seed)
    net = factory(generator)
    net.train()
    learner, stepper = rule(net, loss_fn), optimizer(net.parameters())
    states = [flat_weights(net)]
    for step, (x, y) in enumerate(minibatches(data, batch_size, steps, generator), start=1):
        learner.learn(x, y, stepper)
        if step % every == 0:
            states.append(flat_weights(net))
            if not bool(states[-1].isfinite().all()):
                raise FloatingPointError(f"The training of seed {seed} diverged before step {step}.")
    try:
        graph = neural_graph(net, features=features)
    except TypeError:
        graph = weight_table(net)
    return Trajectory(graph, torch.stack(states))


@torch.no_grad()
def flat_weights(net: nn.Module) -> Float[Tensor, " weights"]:
    """All parameters in one vector, single precision, on the CPU."""
    return torch.cat([parameter.detach().flatten().cpu().float() for parameter in net.parameters()])


def train_curve(
    rule: LearningRule,
    optimizer: torch.optim.Optimizer,
    data: Dataset,
    nowcaster: Nowcaster | None = None,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    every: int = 10,
    measure: Callable[[], float] | None = None,
    generator: torch.Generator | None = None,
    **options,
) -> pd.DataFrame:
    """Train a network, with or without jumps, and watch its loss.

    A jump is charged as one step: it takes the place of one in the published algorithm.

    Args:
        rule: trains the network.
        optimizer: of its parameters.
        data: trained on, its training part.
        nowcaster: forecasts the weights; None trains without jumps.
        steps: gradient steps.
        batch_size: samples a step.
        every: steps between two measurements.
        measure: what to watch; None is the mean loss over the whole training part.
        generator: of the order of batches.
        options: of `Nowcasting`; `max_steps` is `steps` unless given.

    Returns:
        One row a measurement: step (gradient steps and jumps so far), value, jumped (whether the step before the
        measurement was a jump).
    """
    net = rule.net
    jumps = nowcaster and Nowcasting(net, optimizer, nowcaster, **{"max_steps": steps, **options})
    watch = measure or partial(_mean_loss, rule, data)
    rows: list[dict[str, float | bool]] = [{"step": 0, "value": watch(), "jumped": False}]
    net.train()
    for step, (x, y) in enumerate(minibatches(data, batch_size, steps, generator), start=1):
        rule.learn(x, y, optimizer)
        jumped = jumps.step() if jumps else False
        if step % every == 0:
            taken = len(jumps.jumps) + len(jumps.rejected) if jumps else 0
            rows.append({"step": step + taken, "value": watch(), "jumped": jumped})
            net.train()
    return pd.DataFrame(rows)


@torch.no_grad()
def _mean_loss(rule: LearningRule, data: Dataset) -> float:
    rule.net.eval()
    return float(rule.required_loss()(rule.predict(data.x_train), data.y_train))


def states_of(trajectories: Sequence[Trajectory], device: torch.device) -> list[Trajectory]:
    """The trajectories on a device."""
    return [Trajectory(one.graph.to(device), one.states.to(device)) for one in trajectories]
