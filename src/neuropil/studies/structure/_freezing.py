"""The arms of the study of frozen weights: what is trained, and what the other weights hold."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import MultiStepLR

from neuropil.data import Dataset, load
from neuropil.learning.networks import linear, mlp
from neuropil.structure.criteria import SNIP, Criterion, Gradient, Random
from neuropil.structure.freeze import FrozenNet, freeze_at_init
from neuropil.structure.masks import attach

SCORED, SHUFFLING, DRAWING = 0x5C0, 0x5EED, 0xD4A  # apart from the seeds of the initial weights

DENSE = "dense"
# Which weights are trained, and whether the others are frozen or 0.
ARMS = {
    "gradient, frozen": ("gradient", True),
    "gradient, pruned": ("gradient", False),
    "SNIP, frozen": ("SNIP", True),
    "SNIP, pruned": ("SNIP", False),
    "random, frozen": ("random", True),
    "random, pruned": ("random", False),
}


@cache
def images(name: str, train: int | None, test: int | None, *, flat: bool) -> Dataset:
    """A data set, read once a process."""
    data = load(name).subset(train, test)
    return data.flat() if flat else data


def make_net(kind: str, data: Dataset, seed: int) -> nn.Sequential:
    """LeNet-300-100, the convolutional LeNet-5 of Caffe, or a small perceptron; weights are drawn again later."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "lenet-300-100":
        return mlp(data.features, 300, 100, data.classes, generator=generator)
    if kind == "small":
        return mlp(data.features, 128, 64, data.classes, generator=generator)
    if kind != "lenet-5":
        raise ValueError(f'net must be "lenet-300-100", "lenet-5" or "small", got {kind!r}.')
    channels, height, width = data.shape
    with torch.random.fork_rng(devices=[]):  # torch's own draws, which are replaced
        first, second = nn.Conv2d(channels, 20, 5), nn.Conv2d(20, 50, 5)
    sizes = [((size - 4) // 2 - 4) // 2 for size in (height, width)]
    return nn.Sequential(
        first,
        nn.MaxPool2d(2),
        second,
        nn.MaxPool2d(2),
        nn.Flatten(),
        linear(50 * sizes[0] * sizes[1], 500, generator=generator),
        nn.ReLU(),
        linear(500, data.classes, generator=generator),
    )


def scored_batch(data: Dataset, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Samples to score with, as many of each class as can be."""
    part = data.subset(size, seed=seed ^ SCORED)
    return part.x_train, part.y_train


def criterion(masks: str, seed: int) -> Criterion:
    """What gives the scores."""
    if masks == "random":
        return Random(torch.Generator().manual_seed(seed ^ DRAWING))
    return SNIP() if masks == "SNIP" else Gradient()


def prepared(arm: str, kind: str, data: Dataset, rate: float, scored: int, seed: int) -> FrozenNet:
    """An arm's net and masks before training. The same seed starts from the same weights in all arms."""
    masks, _ = ARMS.get(arm, ("gradient", True))
    return freeze_at_init(
        make_net(kind, data, seed),
        scored_batch(data, scored, seed),
        cross_entropy,
        0.0 if arm == DENSE else rate,
        seed=seed,
        criterion=criterion(masks, seed),
    )


def train_arm(
    arm: str,
    rate: float,
    data_set: tuple[str, int | None, int | None],
    kind: str,
    *,
    epochs: int,
    drops: tuple[int, ...],
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    scored: int,
    seed: int,
) -> dict[str, Any]:
    """Train one arm and test it."""
    data = images(*data_set, flat=kind != "lenet-5")
    frozen = prepared(arm, kind, data, rate, scored, seed)
    net, masks = frozen.net, frozen.masks
    stays = ARMS.get(arm, ("", True))[1]
    dense = gradient_norm(net, data, scored, seed)
    if not stays:
        masks.filled(0.0).apply_(net)
    row: dict[str, Any] = {"arm": arm, "rate": 0.0 if arm == DENSE else rate, "seed": seed, "trained": masks.kept()}
    *_, last = masks.values()
    row["in the readout"], row["units read"] = int(last.count_nonzero()), int(last.any(0).count_nonzero())
    row["gradient"] = gradient_norm(net, data, scored, seed) / dense
    optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum=0.9, weight_decay=weight_decay)
    if stays:
        frozen.attach(optimizer)
    else:
        attach(masks.filled(0.0), net, optimizer)
    schedule = MultiStepLR(optimizer, list(drops), gamma=0.1)
    order = torch.Generator().manual_seed(seed ^ SHUFFLING)
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.x_train), generator=order).split(batch_size):
            optimizer.zero_grad()
            cross_entropy(net(data.x_train[chosen]), data.y_train[chosen]).backward()
            optimizer.step()
        schedule.step()
    net.eval()
    with torch.no_grad():
        right = [net(x).argmax(1) == y for x, y in zip(data.x_test.split(1000), data.y_test.split(1000), strict=True)]
    row["accuracy"] = float(torch.cat(right).double().mean())
    if stays:
        storage = frozen.storage()
        again = FrozenNet.expand(lambda: make_net(kind, data, seed + 1), frozen.compact()).net.state_dict()
        row["bytes"], row["dense bytes"] = storage.bytes_compact, storage.bytes_dense
        row["comes back"] = all(torch.equal(value, again[name]) for name, value in net.state_dict().items())
    return row


def gradient_norm(net: nn.Module, data: Dataset, scored: int, seed: int) -> float:
    """Norm of the gradient of the first layer's weights."""
    x, y = scored_batch(data, scored, seed)
    first = next(iter(net.parameters()))
    (gradient,) = torch.autograd.grad(cross_entropy(net(x), y), first)
    return float(gradient.norm())
