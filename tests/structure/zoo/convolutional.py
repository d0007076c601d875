"""Small convolutional nets, one structure each."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.structure.zoo.case import Case

__all__ = ["CASES", "resnet18"]


def image(side: int = 16, channels: int = 3, batch: int = 2) -> Tensor:
    """Give a fixed random batch of images."""
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(1))


def conv_bn(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolve without bias, then BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)
    )


class Residual(nn.Module):
    """A stem, two residual blocks of one width, a head."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.stem = conv_bn(3, width)
        self.one = nn.Sequential(conv_bn(width, 12), nn.ReLU(), conv_bn(12, width))
        self.two = nn.Sequential(conv_bn(width, 10), nn.ReLU(), conv_bn(10, width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = functional.relu(x + self.one(x))
        x = functional.relu(x + self.two(x))
        return self.head(x.mean((2, 3)))


class BasicBlock(nn.Module):
    """ResNet's basic block; a 1x1 convolution on the short cut where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.short = conv_bn(c_in, c_out, 1, stride) if stride != 1 or c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.short(x))


def resnet18(width: int = 64, classes: int = 10) -> nn.Sequential:
    """ResNet-18 for images of 32x32: a 3x3 stem without pooling, four stages of two basic blocks."""
    layers: list[nn.Module] = [conv_bn(3, width), nn.ReLU()]
    c_in = width
    for stage in range(4):
        for block in range(2):
            layers.append(BasicBlock(c_in, width * 2**stage, 2 if stage and not block else 1))
            c_in = width * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, classes))


class Dense(nn.Module):
    """DenseNet: each layer reads all outputs before it; a transition; then another dense block."""

    def __init__(self, growth: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + growth * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + growth * i, growth, 3, padding=1) for i in range(3))
        self.transition = nn.Sequential(nn.BatchNorm2d(8 + 3 * growth), nn.ReLU(), nn.Conv2d(8 + 3 * growth, 10, 1))
        self.last = nn.Conv2d(10, growth, 3, padding=1)
        self.head = nn.Linear(10 + growth, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(functional.relu(norm(x)))], 1)
        x = functional.avg_pool2d(self.transition(x), 2)
        x = torch.cat([x, self.last(functional.relu(x))], 1)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class UNet(nn.Module):
    """Encoder, decoder and skips by concatenation; up by a transposed convolution or by interpolation."""

    def __init__(self, transposed: bool):
        super().__init__()
        self.down1, self.down2, self.deep = conv_bn(3, 6), conv_bn(6, 8), conv_bn(8, 12)
        self.up2: nn.Module = nn.ConvTranspose2d(12, 8, 2, 2) if transposed else nn.Conv2d(12, 8, 1)
        self.up1: nn.Module = nn.ConvTranspose2d(10, 6, 2, 2, groups=2) if transposed else nn.Conv2d(10, 6, 1)
        self.mid, self.last = conv_bn(16, 10), conv_bn(12, 6)
        self.head = nn.Conv2d(6, 2, 1)
        self.transposed = transposed

    def up(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not self.transposed:
            x = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return layer(x)

    def forward(self, x: Tensor) -> Tensor:
        one = functional.relu(self.down1(x))
        two = functional.relu(self.down2(functional.max_pool2d(one, 2)))
        x = functional.relu(self.deep(functional.max_pool2d(two, 2)))
        x = functional.relu(self.mid(torch.cat([self.up(self.up2, x), two], 1)))
        return self.head(functional.relu(self.last(torch.cat([self.up(self.up1, x), one], 1))))


class Shuffle(nn.Module):
    """ShuffleNetV2: half the channels pass, half are convolved; then the two halves interleave."""

    def __init__(self, width: int = 12):
        super().__init__()
        half = width // 2
        self.stem = conv_bn(3, width)
        self.branches = nn.ModuleList(
            nn.Sequential(
                conv_bn(half, half, 1), nn.ReLU(), conv_bn(half, half, groups=half), conv_bn(half, half, 1), nn.ReLU()
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for branch in self.branches:
            still, moved = x.chunk(2, 1)
            x = torch.cat([still, branch(moved)], 1)
            batch, channels, height, width = x.shape
            x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(x.mean((2, 3)))


class Squeeze(nn.Module):
    """Squeeze and excitation around a depthwise convolution, with a residual path."""

    def __init__(self, width: int = 8, wide: int = 16):
        super().__init__()
        self.stem = conv_bn(3, width)
        self.expand, self.depthwise = conv_bn(width, wide, 1), conv_bn(wide, wide, groups=wide)
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.project, self.head = conv_bn(wide, width, 1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.stem(x))
        y = functional.silu(self.depthwise(functional.silu(self.expand(x))))
        gate = torch.sigmoid(self.excite(functional.relu(self.squeeze(functional.adaptive_avg_pool2d(y, 1)))))
        x = x + self.project(y * gate)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, LayerNorm over the channels in last place, two linear layers, a scale per channel."""

    def __init__(self, width: int):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.one, self.two = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.gamma = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.two(functional.gelu(self.one(y))).permute(0, 3, 1, 2)
        return x + self.gamma * y


class Split(nn.Module):
    """One convolution whose output is split in parts of unequal size; one part gates, one is summed into the trunk."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, padding=1)
        self.a, self.b = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = self.stem(x).split([8, 8, 4], 1)
        y = self.a(functional.relu(a)) * torch.sigmoid(self.b(b))
        return self.head(torch.cat([c, y], 1).mean((2, 3)))


def grouped() -> nn.Module:
    """Grouped, then depthwise with two outputs a channel, then dense."""
    return nn.Sequential(
        conv_bn(3, 12), nn.ReLU(), conv_bn(12, 18, groups=3), nn.ReLU(), nn.Conv2d(18, 36, 3, groups=18), nn.ReLU(),
        nn.Conv2d(36, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def flattened() -> nn.Module:
    """A convolution flattened into a linear layer: nine features a channel; a plain VGG."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3),
        nn.LeakyReLU(), nn.AdaptiveMaxPool2d(3), nn.Flatten(), nn.Linear(72, 10), nn.Dropout(0.5), nn.ReLU(),
        nn.Linear(10, 4),
    )  # fmt: skip


def mobile() -> nn.Module:
    """Depthwise separable blocks."""
    return nn.Sequential(
        conv_bn(3, 8, stride=2), nn.ReLU6(), conv_bn(8, 8, groups=8), nn.ReLU6(), conv_bn(8, 16, 1), nn.Hardswish(),
        conv_bn(16, 16, groups=16), nn.ReLU6(), conv_bn(16, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 4),
    )  # fmt: skip


def conflicting() -> nn.Module:
    """Three groups of a convolution against four of a norm: no unit can leave without breaking one of them."""
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=3), nn.GroupNorm(4, 24),
        nn.ReLU(), nn.Conv2d(24, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def group_normed() -> nn.Module:
    """GroupNorm alone: units of one norm group leave together, or all groups lose the same number."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 8, 3),
        nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 36, 4),
    )  # fmt: skip


def convnext() -> nn.Module:
    """Two stages of one ConvNeXt block."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 2, 2), ConvNeXtBlock(12),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 4),
    )  # fmt: skip


CASES = (
    Case("residual", Residual, image(8)),
    Case("resnet18-32", lambda: resnet18(6), image(32)),
    Case("vgg", flattened, image(12), "flatten: nine features a channel"),
    Case("grouped", grouped, image(8), "groups=3; depthwise with multiplier 2"),
    Case("mobile", mobile, image(16), "depthwise separable"),
    Case("dense", Dense, image(8), "chain of concatenations"),
    Case("unet-transposed", lambda: UNet(True), image(8), "one transposed convolution with groups=2"),
    Case("unet-interpolated", lambda: UNet(False), image(8)),
    Case("shuffle", Shuffle, image(8), "chunk, concatenation and interleaving tie all halves"),
    Case("squeeze-excitation", Squeeze, image(8)),
    Case("convnext-own", convnext, image(32), "LayerNorm over permuted channels, scale (C, 1, 1)"),
    Case("split", Split, image(8), "unequal split"),
    Case("group-norm", group_normed, image(8), "GroupNorm, InstanceNorm"),
    Case("conflict", conflicting, image(8), "conv groups=3 against GroupNorm(4)"),
)
