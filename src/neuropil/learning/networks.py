"""Plain networks whose initial weights come from a generator, not from the global random state."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["lecun_normal_", "linear", "mlp", "small_conv"]

TRUNCATION = 0.87962566103423978  # standard deviation of a unit normal cut at +-2


def lecun_normal_(weight: Float[Tensor, "units *fan_in"], generator: torch.Generator | None = None) -> Tensor:
    """Fill a weight with normal draws of variance 1/fan_in, cut at two standard deviations (LeCun et al. 1998).

    Raises:
        ValueError: if the weight has fewer than two axes, so no fan-in.
    """
    if weight.dim() < 2:
        raise ValueError(f"A weight with a fan-in has at least 2 axes, got shape {tuple(weight.shape)}.")
    std = weight[0].numel() ** -0.5 / TRUNCATION
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std, generator=generator)


def linear(inputs: int, outputs: int, *, bias: bool = True, generator: torch.Generator | None = None) -> nn.Linear:
    """A linear layer with LeCun-normal weights and zero bias.

    Raises:
        ValueError: if a size is less than 1.
    """
    if inputs < 1 or outputs < 1:
        raise ValueError(f"A layer needs at least one input and one output, got {inputs} and {outputs}.")
    layer = nn.Linear(inputs, outputs, bias=bias, device="meta")  # so that nothing is drawn from the global state
    layer = layer.to_empty(device=torch.get_default_device())
    lecun_normal_(layer.weight, generator)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(
    *sizes: int,
    activation: Callable[[], nn.Module] = nn.ReLU,
    readout_bias: bool = True,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """A multi-layer perceptron: linear layers with an activation between them, none after the last.

    Args:
        sizes: number of inputs, of units of each hidden layer, of outputs.
        activation: makes the module between two layers.
        readout_bias: whether the last layer has a bias.
        generator: source of the initial weights (LeCun normal; biases start at 0); None is torch's default generator.

    Raises:
        ValueError: if there are fewer than two sizes, or one is less than 1.
    """
    if len(sizes) < 2:
        raise ValueError(f"An MLP needs sizes of its inputs and outputs, got {sizes}.")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes[:-1]):
        layers += [linear(inputs, outputs, generator=generator), activation()]
    return nn.Sequential(*layers, linear(sizes[-2], sizes[-1], bias=readout_bias, generator=generator))


def small_conv(
    shape: Sequence[int], classes: int, channels: Sequence[int] = (8, 16), *, generator: torch.Generator | None = None
) -> nn.Sequential:
    """A small convolution net for images: 3x3 convolutions with batch norm and ReLU, a 2x2 pool, a linear readout.

    Args:
        shape: of one image, (channels, height, width).
        classes: number of outputs.
        channels: of each convolution.
        generator: source of the initial weights (LeCun normal; biases start at 0); None is torch's default generator.

    Raises:
        ValueError: if the shape is no image's of at least 2x2, or there are no convolutions.
    """
    if len(shape) != 3 or min(shape[1:]) < 2 or not channels:
        raise ValueError(f"An image has shape (channels, height, width), at least 2x2; got {tuple(shape)}.")
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((shape[0], *channels)):
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, device="meta")  # nothing drawn from the global state
        convolution = convolution.to_empty(device=torch.get_default_device())
        lecun_normal_(convolution.weight, generator)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
    features = channels[-1] * (shape[1] // 2) * (shape[2] // 2)
    return nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), linear(features, classes, generator=generator))
