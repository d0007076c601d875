"""Linear and convolution layers as linear maps of given weights.

    a = W * h + b     pull_back: the transposed map of other weights, B^T * delta       weight_gradient: delta h^T

with W * h a matrix product over the last axis, or a convolution with the layer's own stride, padding, dilation and
groups. The weights that go back may have other output channels than the layer's (an extra population in between).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["WeightLayer", "pull_back", "weight_gradient", "weight_layers"]

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
WeightLayer = nn.Linear | Convolution
UNCALLED = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
OTHERS = (nn.Bilinear, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def weight_layers(net: nn.Module, names: Sequence[str] | None = None) -> dict[str, WeightLayer]:
    """The linear and convolution layers of a net, by name.

    Args:
        net: any module.
        names: only these layers; None takes all.

    Raises:
        TypeError: if there is none, or a module uses weights without calling a layer (attention and recurrent modules
            of torch), or maps with weights of another kind (transposed convolutions, bilinear layers).
        ValueError: if a name is no weight layer's, or a convolution pads with anything but zeros, or unevenly.
    """
    found: dict[str, WeightLayer] = {}
    for name, module in net.named_modules():
        what = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
        if isinstance(module, UNCALLED):
            raise TypeError(
                f"{what} uses its weights without calling a layer, so what they send back cannot be replaced. "
                "Build it of nn.Linear projections."
            )
        if isinstance(module, OTHERS):
            raise TypeError(f"{what} cannot send errors back through other weights: only Linear and Conv layers can.")
        if isinstance(module, WeightLayer):
            found[name] = module
    if names is not None:
        unknown = [name for name in names if name not in found]
        if unknown:
            raise ValueError(f"No weight layer is named {unknown[0]!r}; there are {list(found)}.")
        found = {name: layer for name, layer in found.items() if name in names}
    if not found:
        raise TypeError(f"{type(net).__name__} has no Linear or Conv layer to send errors back through other weights.")
    for name, layer in found.items():
        if not isinstance(layer, nn.Linear):
            _padding(layer, name)
    return found


def pull_back(layer: WeightLayer, weight: Tensor, delta: Tensor, h: Tensor) -> Tensor:
    """The error that `delta` sends to the layer's input through `weight` in place of the layer's own.

    Args:
        layer: for its kind, stride, padding, dilation and groups.
        weight: like the layer's, though its first axis may have another length.
        delta: error at the map's output, (batch, ..., weight's first axis) or (batch, that axis, *positions).
        h: the layer's input.

    Returns:
        Error of the shape of h.
    """
    if isinstance(layer, nn.Linear):
        return delta @ weight
    return _convolution_backward(layer, weight, delta, h, of_weight=False)


def weight_gradient(layer: WeightLayer, weight: Tensor, delta: Tensor, h: Tensor) -> Tensor:
    """Gradient of `weight`, in the place of the layer's own, for an error `delta` at the map's output and its input h.

    Arguments as of `pull_back`; returns a tensor of the shape of `weight`.
    """
    if isinstance(layer, nn.Linear):
        return delta.reshape(-1, delta.shape[-1]).T @ h.reshape(-1, h.shape[-1])
    return _convolution_backward(layer, weight, delta, h, of_weight=True)


def _convolution_backward(layer: Convolution, weight: Tensor, delta: Tensor, h: Tensor, *, of_weight: bool) -> Tensor:
    axes = len(layer.kernel_size)
    alone = h.dim() == axes + 1  # a sample without a batch axis
    if alone:
        delta, h = delta[None], h[None]
    error, gradient, _ = torch.ops.aten.convolution_backward(
        delta,
        h,
        weight,
        None,
        list(layer.stride),
        _padding(layer),
        list(layer.dilation),
        False,
        [0] * axes,
        layer.groups,
        [not of_weight, of_weight, False],
    )
    if of_weight:
        return gradient
    return error[0] if alone else error


def _padding(layer: Convolution, name: str = "") -> list[int]:
    """Zeros on each side of every axis."""
    if layer.padding_mode != "zeros":
        raise ValueError(f"{name!r} pads with padding_mode={layer.padding_mode!r}: only zeros can be undone.")
    if not isinstance(layer.padding, str):
        return list(layer.padding)
    if layer.padding == "valid":
        return [0] * len(layer.kernel_size)
    spans = [dilation * (size - 1) for dilation, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    if any(span % 2 for span in spans):
        raise ValueError(f"{name!r} pads 'same' unevenly with kernel {tuple(layer.kernel_size)}: use odd kernels.")
    return [span // 2 for span in spans]
