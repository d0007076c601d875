"""Tell whether a network that was cut is still the same function.

Copies with drawn parameters tell: at trained or initial values (a scale of 1e-6, a shift of 0) wrong surgery passes
every comparison.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from neuropil.structure.graph.recording import tensors_of
from neuropil.structure.graph.tracing import Example, evaluating, forward

__all__ = ["agree", "copy_with", "drawn_copy", "drawn_tensors", "outputs"]

POOL = 65_521  # normal numbers, dealt out over and over: a prime, so that no two rows of any width get the same


def drawn_tensors(net: nn.Module, seed: int = 0) -> dict[str, Tensor]:
    """Draw parameters and statistics anew: scales about 1, shifts about 0, weights that keep signals' size.

    Returns:
        Parameters and buffers by the first of their names, of the network's own memory none; other buffers than
        statistics have its values.
    """
    generator = torch.Generator().manual_seed(seed)
    pool = torch.randn(POOL, generator=generator).repeat(2)
    made: dict[str, Tensor] = {}
    dealt = 0

    def deal(like: Tensor, scale: float, shift: float) -> Tensor:
        nonlocal dealt
        count, start = like.numel(), dealt
        dealt = (dealt + count) % POOL
        numbers = pool[start : start + min(count, POOL)].to(like).mul(scale).add_(shift)
        if count > POOL:
            numbers = numbers.repeat(-(-count // POOL))[:count]  # a copy, as is what `mul` gives
        return numbers.reshape(like.shape)

    for name, parameter in net.named_parameters():
        values = parameter.detach()
        if not values.is_floating_point():
            made[name] = values.clone()
        elif sum(n > 1 for n in values.shape) <= 1:
            made[name] = deal(values, 0.3, float(bool((values > 0.05).double().mean() > 0.5)))
        else:
            made[name] = deal(values, 1 / math.sqrt(max(math.prod(values.shape[1:]), 1)), 0.0)
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            made[name] = deal(buffer, 0.3, 0.0)
        elif name.endswith("running_var"):
            made[name] = 0.5 + torch.rand(buffer.shape, generator=generator).to(buffer)
        else:
            made[name] = buffer.clone()
    return made


def copy_with(net: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Copy a network around other parameters and buffers, by the first of their names; none is copied itself."""
    memo: dict[int, Any] = {}
    for name, old in [*net.named_parameters(), *net.named_buffers()]:
        new = tensors[name]
        learns = isinstance(old, nn.Parameter) and not isinstance(new, nn.Parameter)
        memo[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if learns else new
    return copy.deepcopy(net, memo)


def drawn_copy(net: nn.Module, seed: int = 0) -> nn.Module:
    """Copy a network with drawn parameters (see `drawn_tensors`)."""
    return copy_with(net, drawn_tensors(net, seed))


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
