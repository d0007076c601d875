"""What a pruned network should compute: the network it came from, with what was cut set to zero.

Whoever pruned it, and whatever it chose, is read off the weights: all values of a random network differ, so a pruned
tensor tells which rows and columns of the original it kept. The twin is the original with everything else zeroed, in
those that produce a unit and in those that read it. Norms over the cut axis differ between a masked and a smaller
network by construction: the twin's norms see the kept channels alone.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RegroupedError", "difference", "kept_by_axis", "masked_twin", "rescaled_attention"]


class RegroupedError(ValueError):
    """Channels of different groups of a norm were put in one."""


def kept_by_axis(original: Tensor, pruned: Tensor) -> list[Tensor] | None:
    """Indices of each axis that a pruned tensor kept; None if it is not made of rows and columns of the original."""
    if original.shape == pruned.shape and torch.equal(original, pruned):
        return [torch.arange(n) for n in original.shape]
    if original.ndim != pruned.ndim or not pruned.numel():
        return None
    values, order = original.detach().flatten().sort()
    if bool((values[1:] == values[:-1]).any()):
        return None
    wanted = pruned.detach().flatten()
    places = torch.searchsorted(values, wanted).clamp(max=len(values) - 1)
    if not torch.equal(values[places], wanted):
        return None
    where = torch.unravel_index(order[places].view(pruned.shape), original.shape)
    axes = []
    for axis, index in enumerate(where):
        first = index.movedim(axis, -1).reshape(-1, pruned.shape[axis])
        if not bool((first == first[0]).all()):
            return None
        axes.append(first[0])
    return axes


def masked_twin(original: nn.Module, pruned: nn.Module) -> nn.Module | None:
    """Zero what a pruned network lacks; None if its weights are not rows and columns of the original's.

    Raises:
        RegroupedError: if groups of a GroupNorm were mixed: no mask gives that.
    """
    twin = copy.deepcopy(original)
    smaller = dict(pruned.named_parameters(remove_duplicate=False))
    kept: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if name not in smaller:
                return None
            axes = kept_by_axis(parameter, smaller[name])
            if axes is None:
                return None
            kept[name] = axes
            mask = torch.zeros(parameter.shape, dtype=torch.bool)
            mask[torch.meshgrid(*axes, indexing="ij")] = True
            parameter.mul_(mask)
    for name, module in twin.named_modules():
        kind, weight = type(module).__name__, f"{name}.weight"
        if weight in kept and ("Norm" in kind or "GRN" in kind) and "BatchNorm" not in kind:
            channels = kept[weight][-1]
            if len(channels) < module.get_parameter("weight").shape[-1]:
                first = isinstance(module, nn.GroupNorm | nn.modules.instancenorm._InstanceNorm)
                first = first or getattr(module, "data_format", "") == "channels_first"
                module.forward = _on_kept(_smaller(module, channels), channels, 1 if first else -1)
    return twin


def _smaller(norm: nn.Module, channels: Tensor) -> nn.Module:
    """Make the norm of the kept channels alone, every one in its own group."""
    made = copy.deepcopy(norm)
    for name, parameter in norm.named_parameters(recurse=False):
        setattr(made, name, nn.Parameter(parameter.detach()[..., channels]))
    if isinstance(made, nn.LayerNorm | nn.RMSNorm):
        made.normalized_shape = (len(channels),)
    elif isinstance(made, nn.GroupNorm):
        sizes = (channels // (made.num_channels // made.num_groups)).unique(return_counts=True)[1]
        if len(sizes.unique()) > 1:
            raise RegroupedError("groups of a norm mixed")
        made.num_channels, made.num_groups = len(channels), len(sizes)
    elif isinstance(made, nn.modules.instancenorm._InstanceNorm):
        made.num_features = len(channels)
    return made


def _on_kept(norm: nn.Module, channels: Tensor, axis: int) -> Callable[..., Tensor]:
    """Apply a norm to the kept channels; the others become zero."""

    def forward(x: Tensor, *_: object) -> Tensor:
        return torch.zeros_like(x).index_copy(axis % x.ndim, channels, norm(x.index_select(axis, channels)))

    return forward


@contextmanager
def rescaled_attention() -> Iterator[None]:
    """Let attention without a scale of its own count only features that are not all zero, as a smaller network does."""
    plain = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **keywords: Any) -> Tensor:
        if keywords.get("scale") is None:
            alive = int((query.flatten(0, -2) != 0).any(0).sum())
            keywords["scale"] = 1 / math.sqrt(max(alive, 1))
        return plain(query, key, value, *rest, **keywords)

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def difference(one: list[Tensor], two: list[Tensor]) -> float:
    """Largest difference of outputs, relative to the largest of the second; infinite if shapes differ."""
    if [x.shape for x in one] != [x.shape for x in two]:
        return math.inf
    gaps = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(one, two, strict=True)]
    worst = max(gaps)
    return math.inf if math.isnan(worst) else worst
