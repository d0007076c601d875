"""The nets of the study of lottery tickets, how they are trained, and one whole search with its controls."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from neuropil.data import Dataset, load
from neuropil.learning.networks import mlp
from neuropil.structure.lottery import Ticket, distances, find_ticket
from neuropil.structure.masks import prunable_parameters

FRESH, SHUFFLED, ORDER = 10_000, 20_000, 30_000  # seeds of the controls are the seed's own and this


@dataclass(frozen=True)
class Task:
    """One net on one data set.

    Attributes:
        kind: "mlp", trained by Adam, or "residual", trained by SGD with momentum and two drops of its rate.
        data: name of the data set.
        sizes: of the hidden layers, or channels of the stages; the stem has the first.
        blocks: residual blocks a stage.
        steps: T.
        rate: learning rate.
        batch_size: samples a step.
        drops: fractions of T at which the rate falls to a tenth.
        weight_decay: of SGD.
        rounds: of pruning.
        scope: "layer", at half the fraction in the readout, or "global".
    """

    kind: Literal["mlp", "residual"]
    data: str
    sizes: tuple[int, ...]
    steps: int
    rate: float
    rounds: int
    scope: Literal["layer", "global"]
    blocks: int = 1
    batch_size: int = 60
    drops: tuple[float, ...] = ()
    weight_decay: float = 0.0
    fraction: float = 0.2
    train: int | None = None
    test: int | None = None

    def samples(self, seed: int) -> Dataset:
        """The data of a seed."""
        return _samples(self.data, self.train, self.test, self.kind == "mlp", seed)

    def make_net(self, data: Dataset) -> Callable[[int], nn.Module]:
        """What makes the net from a seed."""

        def make(seed: int) -> nn.Module:
            generator = torch.Generator().manual_seed(seed)
            if self.kind == "mlp":
                return mlp(data.features, *self.sizes, data.classes, generator=generator)
            return residual_net(data, self.sizes, self.blocks, generator)

        return make

    def training(self, data: Dataset) -> Callable[[nn.Module, int, int, int], None]:
        """What trains a net from one step to another, on batches in the order of a seed."""

        def train(net: nn.Module, first: int, last: int, seed: int) -> None:
            if self.kind == "mlp":
                optimizer: torch.optim.Optimizer = torch.optim.Adam(net.parameters(), self.rate)
            else:
                optimizer = torch.optim.SGD(net.parameters(), self.rate, momentum=0.9, weight_decay=self.weight_decay)
            net.train()
            for step, chosen in enumerate(batches(len(data.x_train), self.batch_size, last, seed)):
                if step < first:
                    continue
                for group in optimizer.param_groups:
                    group["lr"] = self.rate * 0.1 ** sum(step >= drop * self.steps for drop in self.drops)
                optimizer.zero_grad()
                cross_entropy(net(data.x_train[chosen]), data.y_train[chosen]).backward()
                optimizer.step()

        return train


@cache
def _samples(name: str, train: int | None, test: int | None, flat: bool, seed: int) -> Dataset:
    data = load(name, seed=seed).subset(train, test, seed=seed)
    if flat or len(data.shape) == 3:
        return data.flat() if flat else data
    raise ValueError(f"{name} has no images for a residual net.")


def batches(samples: int, size: int, count: int, seed: int) -> list[Tensor]:
    """So many batches of indices, each pass over the samples in a new order; the seed alone decides."""
    generator, found = torch.Generator().manual_seed(seed), []
    while len(found) < count:
        found += list(torch.randperm(samples, generator=generator)[: samples - samples % size or None].split(size))
    return found[:count]


@torch.no_grad()
def accuracy(net: nn.Module, data: Dataset) -> float:
    """Fraction of the test part that is right."""
    net.eval()
    right = [net(x).argmax(1) == y for x, y in zip(data.x_test.split(1000), data.y_test.split(1000), strict=True)]
    return float(torch.cat(right).double().mean())


class Block(nn.Module):
    """Two convolutions with batch norm beside a shortcut (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Images, (batch, channels, height, width)."""
        return relu(self.norm2(self.second(relu(self.norm1(self.first(x))))) + self.shortcut(x))


def residual_net(data: Dataset, sizes: tuple[int, ...], blocks: int, generator: torch.Generator) -> nn.Sequential:
    """A residual net for images; every stage but the first halves them. Weights are He-normal, from the generator."""
    with torch.random.fork_rng(devices=[]):  # torch's own draws, which are replaced
        layers: list[nn.Module] = [nn.Conv2d(data.shape[0], sizes[0], 3, 1, 1, bias=False), nn.BatchNorm2d(sizes[0])]
        layers, channels = [*layers, nn.ReLU()], sizes[0]
        for stage, wider in enumerate(sizes):
            for block in range(blocks):
                layers.append(Block(channels, wider, 2 if stage and not block else 1))
                channels = wider
        net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, data.classes))
    for name, weight in net.named_parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    return net


def search(task: Task, rewind: float, seed: int) -> dict[str, Any]:
    """Find a ticket, train it and its controls, and measure how far they end from each other.

    Args:
        task: net, data, training.
        rewind: k as a fraction of T.
        seed: of everything.

    Returns:
        Accuracies by arm and by round, and distances over all layers.
    """
    data, first = task.samples(seed), list[nn.Module]()

    def evaluate(net: nn.Module) -> float:
        if not first:  # the first round trains the dense net
            first.append(net)
        return accuracy(net, data)

    make, train = task.make_net(data), task.training(data)
    readout = prunable_parameters(make(seed))[-1]
    ticket = find_ticket(
        make,
        train,
        rewind=round(rewind * task.steps),
        total=task.steps,
        rounds=task.rounds,
        seed=seed,
        fraction=task.fraction,
        scope=task.scope,
        per_layer_fraction={readout: task.fraction / 2} if task.scope == "layer" else None,
        evaluate=evaluate,
    )
    (dense,) = first
    row: dict[str, Any] = {"kind": task.kind, "rewind": rewind, "seed": seed, "density": ticket.masks.density()}
    row["dense"] = accuracy(dense, data)
    row["fresh weights"] = accuracy(ticket.random_reinit(seed + FRESH).trained(train, seed), data)
    for name, arm in (("ticket", ticket), ("shuffled mask", ticket.shuffled(seed + SHUFFLED))):
        row |= _arm(name, arm, dense, train, data)
    row["history"] = [
        {"density": density, "accuracy": one}
        for density, one in zip(ticket.history["density"], ticket.history["accuracy"], strict=True)
    ]
    return row


def _arm(name: str, ticket: Ticket, dense: nn.Module, train: Callable[..., None], data: Dataset) -> dict[str, float]:
    """Accuracy, distance to the trained dense net, and between two orders of the data."""
    first, second = ticket.trained(train), ticket.trained(train, ticket.seed + ORDER)
    found = {name: accuracy(first, data)}
    for what, table in (
        ("to pruning", distances(dense, first, ticket.masks)),
        ("to order", distances(first, second, ticket.masks)),
    ):
        for of in ("l2", "angle", "norm", "other_norm"):
            found[f"{name}, {what}, {of}"] = float(table[of].to_numpy()[-1])
    return found
