"""Tell whether a network that was cut is still the same function.

Copies with drawn parameters tell: at trained or initial values (a scale of 1e-6, a shift of 0) wrong surgery passes
every comparison.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neuropil.structure.graph.tracing import Example, evaluating, forward

__all__ = ["agree", "drawn_copy", "outputs", "tensors_of"]


def drawn_copy(net: nn.Module, seed: int = 0) -> nn.Module:
    """Copy a network and draw its parameters anew: scales about 1, shifts about 0, weights that keep signals' size."""
    made = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if sum(n > 1 for n in parameter.shape) <= 1:
                values = 1 + 0.3 * noise if bool((parameter.double() > 0.05).double().mean() > 0.5) else 0.3 * noise
            else:
                values = noise / math.sqrt(max(math.prod(parameter.shape[1:]), 1))
            parameter.copy_(values.to(parameter))
        for name, buffer in made.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator).to(buffer))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator).to(buffer))
    return made


def outputs(net: nn.Module, example: Example) -> list[Tensor]:
    """Run a network in eval mode, without gradients, on a copy of the example; its mode is restored."""
    with evaluating(net), torch.no_grad():
        return [one.clone() for one in tensors_of(forward(net, copy.deepcopy(example)))]


def agree(a: list[Tensor], b: list[Tensor], tolerance: float | None = None) -> bool:
    """Tell whether two runs are the same function up to rounding (square root of the type's precision).

    Returns:
        False also where anything is not finite: that would prove nothing.
    """
    if len(a) != len(b):
        return False
    for one, other in zip(a, b, strict=True):
        if one.shape != other.shape:
            return False
        if not one.is_floating_point():
            continue
        if not bool(one.isfinite().all()) or not bool(other.isfinite().all()):
            return False
        allowed = math.sqrt(torch.finfo(one.dtype).eps) if tolerance is None else tolerance
        if one.numel() and float((one - other).abs().max()) > allowed * (1 + float(other.abs().max())):
            return False
    return True


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """Give the tensors in what a network returns, whatever holds them."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for one in tree.values():
            yield from tensors_of(one)
    elif isinstance(tree, (list, tuple)):
        for one in tree:
            yield from tensors_of(one)
