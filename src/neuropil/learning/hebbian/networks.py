"""Convolution nets with batch norm, whose first layer and its norm have names: what a stream is met with."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuropil.learning.networks import lecun_normal_, linear

__all__ = ["strided_conv", "wide_resnet"]


def convolution(
    inputs: int, outputs: int, size: int, *, stride: int = 1, generator: torch.Generator | None = None
) -> nn.Conv2d:
    """A convolution without bias, padded by half its size; LeCun-normal weights."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False, device="meta")
    layer = layer.to_empty(device=torch.get_default_device())
    lecun_normal_(layer.weight, generator)
    return layer


def strided_conv(
    shape: Sequence[int],
    classes: int,
    channels: tuple[int, int, int] = (16, 32, 32),
    *,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Three strided convolutions (5x5, 3x3, 3x3), each with batch norm and ReLU, a 2x2 average pool, a linear readout.

    Args:
        shape: of one image, (channels, height, width), at least 16x16.
        classes: number of outputs.
        channels: of each convolution.
        generator: source of the initial weights; None is torch's default generator.

    Returns:
        A net whose layers are called conv1, bn1, relu1, conv2 and so on.

    Raises:
        ValueError: if the images are too small.
    """
    if len(shape) != 3 or min(shape[1:]) < 16:
        raise ValueError(f"An image has shape (channels, height, width), at least 16x16; got {tuple(shape)}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before, (height, width) = shape[0], shape[1:]
    for index, outputs in enumerate(channels, 1):
        size = 5 if index == 1 else 3
        layers[f"conv{index}"] = convolution(before, outputs, size, stride=2, generator=generator)
        layers[f"bn{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU()
        before, height, width = outputs, (height + 1) // 2, (width + 1) // 2
    layers["pool"], layers["flatten"] = nn.AvgPool2d(2), nn.Flatten()
    layers["readout"] = linear(before * (height // 2) * (width // 2), classes, generator=generator)
    return nn.Sequential(layers)


class Residual(nn.Module):
    """Norm, ReLU, convolution, twice, beside a way around: the block of a wide residual net."""

    def __init__(self, inputs: int, outputs: int, stride: int, generator: torch.Generator | None):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = convolution(inputs, outputs, 3, stride=stride, generator=generator)
        self.conv2 = convolution(outputs, outputs, 3, generator=generator)
        same = inputs == outputs and stride == 1
        self.around = None if same else convolution(inputs, outputs, 1, stride=stride, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn1(x).relu()
        way = x if self.around is None else self.around(h)
        return way + self.conv2(self.bn2(self.conv1(h)).relu())


def wide_resnet(
    shape: Sequence[int], classes: int, depth: int = 40, width: int = 2, *, generator: torch.Generator | None = None
) -> nn.Sequential:
    """A wide residual net for small images (Zagoruyko & Komodakis 2016); 40 and 2 are the usual WRN-40-2.

    Args:
        shape: of one image, (channels, height, width).
        classes: number of outputs.
        depth: number of convolutions on the longest way, 6 n + 4.
        width: factor on the channels 16, 32, 64.
        generator: source of the initial weights; None is torch's default generator.

    Returns:
        A net whose first convolution is called conv1; the first norm behind it, block1.bn1.

    Raises:
        ValueError: if no net has that depth.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth must be 6 n + 4 with n at least 1, got {depth}.")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv1"] = convolution(shape[0], 16, 3, generator=generator)
    before, count = 16, 0
    for stage in range(3):
        for block in range((depth - 4) // 6):
            outputs, stride = 16 * width * 2**stage, 2 if stage and not block else 1
            count += 1
            layers[f"block{count}"] = Residual(before, outputs, stride, generator)
            before = outputs
    layers["norm"], layers["relu"] = nn.BatchNorm2d(before), nn.ReLU()
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["readout"] = linear(before, classes, generator=generator)
    return nn.Sequential(layers)
