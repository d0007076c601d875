"""The networks that are matched, and their training: multi-layer perceptrons, and a residual net with layer norms."""

from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, layer_norm, pad

from neuropil.learning.networks import lecun_normal_, linear, mlp

__all__ = ["Residual", "in_batches", "mean_loss", "network", "train"]

CHANNELS = 16  # of the residual net's first stage at width 1
EVALUATED = 1000  # images at a time


def network(
    kind: str, shape: torch.Size, classes: int, width: int, depth: int, generator: torch.Generator
) -> nn.Module:
    """Make a network for samples of a shape.

    Args:
        kind: "mlp" or "residual".
        shape: of a sample.
        classes: number of outputs.
        width: hidden units of an mlp's layers; multiplier of a residual net's channels.
        depth: hidden layers of an mlp; blocks a stage of a residual net, 3 in a ResNet-20.
        generator: of the initial weights.
    """
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), *mlp(shape.numel(), *[width] * depth, classes, generator=generator))
    return Residual(shape[0], classes, CHANNELS * width, depth, generator)


class Residual(nn.Module):
    """A residual net for small images: three stages of blocks, layer norms over the channels of every position."""

    def __init__(self, inputs: int, classes: int, channels: int, blocks: int, generator: torch.Generator):
        super().__init__()
        self.stem, self.norm = _convolution(inputs, channels, 3, 1, generator), ChannelNorm(channels)
        sizes = [channels, 2 * channels, 4 * channels]
        stages: list[nn.Module] = []
        for stage, size in enumerate(sizes):
            for block in range(blocks):
                first = block == 0
                before = sizes[max(stage - 1, 0)] if first else size
                stages.append(Block(before, size, 2 if first and stage else 1, generator))
        self.blocks = nn.Sequential(*stages)
        self.head = linear(sizes[-1], classes, generator=generator)

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch classes"]:
        return self.head(self.blocks(torch.relu(self.norm(self.stem(x)))).mean((2, 3)))


class Block(nn.Module):
    """Two convolutions beside a shortcut, which is projected where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, generator: torch.Generator):
        super().__init__()
        self.one, self.norm1 = _convolution(inputs, outputs, 3, stride, generator), ChannelNorm(outputs)
        self.two, self.norm2 = _convolution(outputs, outputs, 3, 1, generator), ChannelNorm(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(_convolution(inputs, outputs, 1, stride, generator), ChannelNorm(outputs))

    def forward(self, x: Float[Tensor, "batch inputs height width"]) -> Float[Tensor, "batch outputs h w"]:
        y = self.norm2(self.two(torch.relu(self.norm1(self.one(x)))))
        return torch.relu(y + self.shortcut(x))


class ChannelNorm(nn.Module):
    """A layer norm over the channels of every position."""

    def __init__(self, channels: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias).movedim(-1, 1)


def _convolution(inputs: int, outputs: int, size: int, stride: int, generator: torch.Generator) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, device="meta").to_empty(device="cpu")
    lecun_normal_(layer.weight, generator)
    return layer


def train(
    net: nn.Module,
    x: Float[Tensor, "samples *shape"],
    y: Int[Tensor, "samples"],
    *,
    epochs: int,
    batch_size: int,
    rate: float,
    warmup: int,
    augment: bool,
    generator: torch.Generator,
) -> Iterator[int]:
    """Train by Adam, in place.

    Args:
        net: what is trained.
        x: inputs.
        y: classes.
        epochs: passes over the samples.
        batch_size: samples a step.
        rate: learning rate, constant where there is no warm-up.
        warmup: epochs of a linear rise of the rate, followed by half a cosine to 0; 0: neither.
        augment: whether images are flipped and shifted by up to 4 pixels.
        generator: of the order of the samples and of the augmentation, on the CPU.

    Yields:
        The number of epochs done, after each.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    each = -(-len(x) // batch_size)
    schedule = _schedule(optimizer, warmup * each, epochs * each) if warmup else None
    for epoch in range(epochs):
        net.train()
        for chosen in torch.randperm(len(x), generator=generator).to(x.device).split(batch_size):
            images = _varied(x[chosen], generator) if augment else x[chosen]
            optimizer.zero_grad()
            loss = cross_entropy(net(images), y[chosen])
            if not bool(loss.isfinite()):
                raise FloatingPointError(f"The loss is {float(loss.detach())} in epoch {epoch}.")
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
        yield epoch + 1
    net.eval()


def _schedule(optimizer: torch.optim.Optimizer, warmup: int, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-2, 1.0, warmup)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup))
    return torch.optim.lr_scheduler.SequentialLR(optimizer, [rise, fall], [warmup])


def _varied(x: Float[Tensor, "batch channels height width"], generator: torch.Generator) -> Tensor:
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip.to(x.device)[:, None, None, None], x.flip(-1), x)
    down, right = torch.randint(9, (2,), generator=generator).tolist()
    return pad(x, (4, 4, 4, 4))[:, :, down : down + x.shape[2], right : right + x.shape[3]]


@torch.no_grad()
def mean_loss(net: nn.Module, x: Float[Tensor, "samples *shape"], y: Int[Tensor, "samples"]) -> float:
    """Mean cross entropy, nats."""
    return sum(float(cross_entropy(net(a), b, reduction="sum")) for a, b in in_batches(x, y, EVALUATED)) / len(x)


def in_batches(x: Tensor, y: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    """Cut samples into batches, in their order."""
    return list(zip(x.split(size), y.split(size), strict=True))
