"""Training data with wrong labels, the nets of the three-regime study, and how they are trained dense and pruned."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from neuropil.data import Dataset, load
from neuropil.learning.networks import mlp
from neuropil.structure.landscape.phases import Gauges
from neuropil.structure.masks import Masks, attach, prunable_parameters

__all__ = [
    "PreResNet",
    "error_of",
    "gauges_of",
    "hidden_weights",
    "make_net",
    "noisy_data",
    "train_checkpoints",
    "train_masked",
]

NOISE, SHUFFLING = 0x1ABE1, 0x5EED


def noisy_data(name: str, train: int | None, test: int | None, noise: float, seed: int, images: bool) -> Dataset:
    """A part of a data set, pixels standardised; a fraction of the training labels is drawn anew from all classes."""
    data = load(name, seed=seed).subset(train, test, seed=seed)
    data = data if images else data.flat()
    mean, scale = data.x_train.mean(), data.x_train.std()
    generator = torch.Generator().manual_seed(seed ^ NOISE)
    y = data.y_train.clone()
    drawn = torch.randperm(len(y), generator=generator)[: round(noise * len(y))]
    y[drawn] = torch.randint(data.classes, (len(drawn),), generator=generator)
    return replace(data, x_train=(data.x_train - mean) / scale, x_test=(data.x_test - mean) / scale, y_train=y)


class _Block(nn.Module):
    """Two convolutions, each after its norm, beside a shortcut (He et al. 2016, pre-activation)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changed = stride > 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Images, (batch, channels, height, width)."""
        h = relu(self.norm1(x))
        return self.conv2(relu(self.norm2(self.conv1(h)))) + self.shortcut(h)


class PreResNet(nn.Module):
    """PreResNet-20 for small images: three stages of three blocks; `width` channels in the first.

    Args:
        channels: of the images.
        classes: number of outputs.
        width: channels of the first stage, 16 in the paper.
        generator: source of the initial weights.
    """

    def __init__(self, channels: int, classes: int, width: int, generator: torch.Generator):
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # torch's own initialisation, from our generator
            torch.default_generator.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
            self.stem = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
            blocks, inputs = [], width
            for stage in range(3):
                for block in range(3):
                    blocks.append(_Block(inputs, width * 2**stage, 2 if stage and not block else 1))
                    inputs = width * 2**stage
            self.blocks = nn.Sequential(*blocks)
            self.norm, self.readout = nn.BatchNorm2d(inputs), nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images, (batch, channels, height, width)."""
        return self.readout(relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


def make_net(data: Dataset, hidden: Sequence[int], width: int | None, seed: int) -> nn.Module:
    """A multi-layer perceptron, or a PreResNet-20 where a width is given."""
    generator = torch.Generator().manual_seed(seed)
    if width is None:
        return mlp(data.features, *hidden, data.classes, generator=generator)
    return PreResNet(data.shape[0], data.classes, width, generator)


def hidden_weights(net: nn.Module) -> list[str]:
    """All weights but those of the last layer."""
    return prunable_parameters(net)[:-1]


@torch.no_grad()
def error_of(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Percent of wrong answers."""
    wrong = sum(
        int((net(part).argmax(1) != labels).sum()) for part, labels in zip(x.split(2000), y.split(2000), strict=True)
    )
    return 100 * wrong / len(y)


def gauges_of(data: Dataset, norms: bool, renorm: int) -> Gauges:
    """Errors on test and training data; outputs are compared, and norms recomputed, on the first training samples."""
    batches = list(data.x_train[:renorm].split(500))
    return Gauges(
        lambda net: error_of(net, data.x_test, data.y_test),
        lambda net: error_of(net, data.x_train, data.y_train),
        batches,
        batches if norms else None,
    )


def _sgd(net: nn.Module, rate: float, decay: float) -> torch.optim.SGD:
    return torch.optim.SGD(net.parameters(), rate, momentum=0.9, weight_decay=decay)


def _epochs(
    net: nn.Module,
    data: Dataset,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    batch_size: int,
    drops: Sequence[int],
    order: torch.Generator,
    after: Callable[[int], Any] | None = None,
) -> None:
    net.train()
    loss = torch.zeros(())
    for epoch in range(1, epochs + 1):
        for chosen in torch.randperm(len(data.y_train), generator=order).to(data.y_train.device).split(batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(net(data.x_train[chosen]), data.y_train[chosen])
            loss.backward()
            optimizer.step()
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"The loss is {loss.item()} after epoch {epoch}.")
        if epoch in drops:
            for group in optimizer.param_groups:
                group["lr"] *= 0.1
        if after is not None:
            after(epoch)


def train_checkpoints(
    data: Dataset,
    net: nn.Module,
    checkpoints: Sequence[int],
    *,
    rate: float,
    decay: float,
    batch_size: int,
    drops: Sequence[int],
    seed: int,
) -> dict[int, nn.Module]:
    """Train once, and keep copies of the net at some epochs."""
    kept: dict[int, nn.Module] = {}

    def keep(epoch: int) -> None:
        if epoch in checkpoints:
            kept[epoch] = deepcopy(net)

    order = torch.Generator().manual_seed(seed ^ SHUFFLING)
    _epochs(net, data, _sgd(net, rate, decay), max(checkpoints), batch_size, drops, order, keep)
    return kept


def train_masked(
    data: Dataset,
    net: nn.Module,
    masks: Masks,
    *,
    rate: float,
    decay: float,
    epochs: int,
    batch_size: int,
    drops: Sequence[int],
    seed: int,
) -> nn.Module:
    """Train under masks, from the weights that are there."""
    optimizer = _sgd(net, rate, decay)
    handle = attach(masks, net, optimizer)
    order = torch.Generator().manual_seed(seed ^ SHUFFLING)
    _epochs(net, data, optimizer, epochs, batch_size, drops, order)
    handle.remove()
    return net
