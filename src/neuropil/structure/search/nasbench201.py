"""Networks of NAS-Bench-201, for small images.

    stem 3x3 conv + norm -> N cells of C channels -> residual block to 2C, half the size -> N cells -> to 4C -> N cells
    -> norm, ReLU, mean over positions, linear

A convolution of the cell is ReLU, convolution, norm; pooling keeps the size.

Source: Dong & Yang, ICLR 2020 (arXiv 2001.00326), section 2.1; C = 16, N = 5 there.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuropil.learning.networks import lecun_normal_, linear
from neuropil.structure.search.cell_spaces import Edge, nasbench201_space
from neuropil.structure.search.cells import Cell, Zero
from neuropil.structure.search.spaces import Architecture

__all__ = ["nasbench201_net"]


def nasbench201_net(
    architecture: Architecture,
    shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    *,
    channels: int = 16,
    cells: int = 5,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """The network of a cell.

    Args:
        architecture: code of `nasbench201_space`.
        shape: of one image, (channels, height, width).
        classes: number of outputs.
        channels: C, of the first stage.
        cells: N, in each of the three stages.
        generator: of the initial weights; None is torch's default generator.

    Raises:
        ValueError: if the code is none of the space, or a number is out of range.
    """
    if len(shape) != 3 or min(shape[1:]) < 4 or min(channels, cells, classes) < 1:
        raise ValueError(
            f"An image of at least 4x4 and channels, cells, classes >= 1 wanted, got {tuple(shape)}, {channels}, "
            f"{cells}, {classes}."
        )
    space = nasbench201_space()
    layers: list[nn.Module] = [_conv(shape[0], channels, 3, generator), nn.BatchNorm2d(channels)]
    widths = [channels, 2 * channels, 4 * channels]
    for stage, width in enumerate(widths):
        if stage:
            layers.append(_Reduction(width // 2, width, generator))
        for _ in range(cells):

            def make(_: Edge, name: str, width: int = width) -> nn.Module:
                return _operation(name, width, generator)

            layers.append(Cell(space, architecture, make))
    head = [nn.BatchNorm2d(widths[-1]), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, *head, linear(widths[-1], classes, generator=generator))


class _Reduction(nn.Module):
    """A residual block that halves the size; its shortcut is a mean pool and a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, generator: torch.Generator | None):
        super().__init__()
        first, second = _relu_conv(inputs, outputs, 3, generator, stride=2), _relu_conv(outputs, outputs, 3, generator)
        self.body = nn.Sequential(first, second)
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.shortcut = nn.Sequential(pool, _conv(inputs, outputs, 1, generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


def _operation(name: str, channels: int, generator: torch.Generator | None) -> nn.Module:
    if name == "none":
        return Zero()
    if name == "skip_connect":
        return nn.Identity()
    if name == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return _relu_conv(channels, channels, 1 if name == "nor_conv_1x1" else 3, generator)


def _relu_conv(
    inputs: int, outputs: int, size: int, generator: torch.Generator | None, stride: int = 1
) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), _conv(inputs, outputs, size, generator, stride), nn.BatchNorm2d(outputs))


def _conv(inputs: int, outputs: int, size: int, generator: torch.Generator | None, stride: int = 1) -> nn.Conv2d:
    # On "meta" first, so that nothing is drawn from the global random state.
    layer = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False, device="meta")
    layer = layer.to_empty(device=torch.get_default_device())
    lecun_normal_(layer.weight, generator)
    return layer
