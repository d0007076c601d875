"""Two networks whose weights the paper compares before and after fine-tuning: a recurrent and a residual one."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from neuropil.learning.networks import linear

__all__ = ["ResidualNet", "RowRecurrent"]


class RowRecurrent(nn.Module):
    """Reads an image row by row with tanh units, and classifies it by the last state.

        h_t = tanh(U x_t + W h_{t-1} + b),   h_0 = 0,   logits = V h_T + c

    Args:
        inputs: pixels of a row.
        hidden: recurrent units.
        classes: outputs.
        generator: source of the initial weights (LeCun normal).

    Raises:
        ValueError: if a size is less than 1.
    """

    def __init__(self, inputs: int, hidden: int, classes: int, *, generator: torch.Generator | None = None):
        super().__init__()
        self.receive = linear(inputs, hidden, generator=generator)
        self.recur = linear(hidden, hidden, bias=False, generator=generator)
        self.readout = linear(hidden, classes, generator=generator)

    def forward(self, x: Float[Tensor, "batch rows inputs"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images."""
        h = x.new_zeros(len(x), self.recur.in_features)
        for drive in self.receive(x).unbind(1):
            h = torch.tanh(drive + self.recur(h))
        return self.readout(h)


class ResidualNet(nn.Module):
    """A residual network of basic blocks (ResNet-18 and -34) with the parameter names of torchvision.

    Batch norms use the stored statistics in training too: a few samples must not move them.

    Args:
        widths: channels of the four layers of blocks.
        depths: number of blocks in each.
        classes: outputs.

    Source: He, Zhang, Ren & Sun, CVPR 2016.
    """

    def __init__(self, widths: tuple[int, ...], depths: tuple[int, ...], classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        inputs = widths[0]
        self.layers = [f"layer{index + 1}" for index in range(len(widths))]
        for index, (name, width, depth) in enumerate(zip(self.layers, widths, depths, strict=True)):
            blocks = [_BasicBlock(inputs, width, 1 if index == 0 else 2)]
            blocks += [_BasicBlock(width, width, 1) for _ in range(depth - 1)]
            self.add_module(name, nn.Sequential(*blocks))
            inputs = width
        self.fc = nn.Linear(inputs, classes)
        self.train()

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ResidualNet":
        """The pretrained network of a torchvision `state_dict`, whose sizes are read off the weights.

        Args:
            state: of resnet18 or resnet34, such as `torch.load("resnet18-f37072fd.pth", weights_only=True)`; copied.

        Raises:
            ValueError: if it is not the state of a residual network of basic blocks.
        """
        blocks = {".".join(name.split(".")[:2]) for name in state if name.startswith("layer")}
        layers = sorted({block.split(".")[0] for block in blocks})
        try:
            widths = tuple(len(state[f"{layer}.0.conv1.weight"]) for layer in layers)
            depths = tuple(sum(block.startswith(f"{layer}.") for block in blocks) for layer in layers)
            with torch.device("meta"):
                net = cls(widths, depths, len(state["fc.weight"]))
            net.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"No state of a residual network of basic blocks (resnet18, resnet34): {error}") from error
        return net.train().requires_grad_()

    def train(self, mode: bool = True) -> "ResidualNet":
        """Set the mode of everything but the batch norms, which stay in evaluation."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, x: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """Logits of a batch of images, normalised as torchvision does."""
        h = self.maxpool(relu(self.bn1(self.conv1(x))))
        for name in self.layers:
            h = self.get_submodule(name)(h)
        return self.fc(h.mean((2, 3)))


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(h + (x if self.downsample is None else self.downsample(x)))
