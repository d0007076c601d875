"""What a tap may do to a tensor: hold it, replace it, silence it, scale it, shift it.

    a' = where(m, c, a)            clamp, patch, zero      c: a value, a recording, 0; no gradient flows into c
    a' = where(m, s a, a)          scale                   gradients flow into s and o, so that both can be learnt
    a' = where(m, a + o, a)        add

m is a boolean mask of the tensor (or of the part that the site selects), or everything. Gradients flow through the
unmasked entries of a as without the tap.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from neuropil.probes.sites import Context, Site

__all__ = ["TapFunction", "add", "clamp", "patch", "scale", "zero"]

TapFunction = Callable[[Tensor, Context], Tensor | None]
"""(tensor, context) -> what takes its place, of the same shape, or None to leave it. It changes nothing in place."""
Mask = Bool[Tensor, "*shape"]


def _numbers(name: str, value: float | Tensor) -> float | Tensor:
    if bool(torch.isnan(torch.as_tensor(value)).any()):
        raise ValueError(f"{name} must not be NaN.")
    return value


def _spread(name: str, value: float | Tensor, like: Tensor, site: Site) -> Tensor:
    """The value in the dtype and on the device of the tensor, checked to broadcast to its shape."""
    value = torch.as_tensor(value, device=like.device)
    if value.ndim > like.ndim or any(
        mine not in (1, its) for mine, its in zip(value.shape[::-1], like.shape[::-1], strict=False)
    ):
        raise ValueError(f"{site}: {name} of shape {tuple(value.shape)} does not broadcast to {tuple(like.shape)}.")
    return value if value.dtype == torch.bool else value.to(like.dtype)


def _where(mask: Mask | None, inside: Tensor, outside: Tensor, site: Site) -> Tensor:
    if mask is None:
        return inside.expand_as(outside)
    return torch.where(_spread("mask", mask, outside, site), inside, outside)


def clamp(value: float | Tensor, mask: Mask | None = None) -> TapFunction:
    """Hold the tensor at a value: a' = where(mask, value, a).

    Args:
        value: broadcasts to the tensor; it gets no gradient.
        mask: true where the value holds, broadcasts to the tensor; None is everywhere.

    Returns:
        A function for `tap`; it raises ValueError, naming the site, if value or mask do not broadcast.

    Raises:
        ValueError: if a value is NaN.

    Source: Singh et al., ICML 2024 ("artificial optogenetics").
    """
    held = _numbers("value", value)
    held = held.detach() if isinstance(held, Tensor) else held

    def edit(tensor: Tensor, context: Context) -> Tensor:
        return _where(mask, _spread("value", held, tensor, context.site), tensor, context.site)

    return edit


def zero(mask: Mask | None = None) -> TapFunction:
    """Silence the tensor, or where the mask is true: also what is infinite there becomes 0."""
    return clamp(0.0, mask)


def patch(recorded: Tensor | Sequence[Tensor], mask: Mask | None = None) -> TapFunction:
    """Put what was recorded in another run in the tensor's place.

    Args:
        recorded: one tensor for every call, or one a call, in order (`Recording.calls`): then the run, be it generation
            token by token, has as many calls as the recorded one.
        mask: true where the recording replaces the tensor, broadcasts to it; None is everywhere.

    Returns:
        A function for `tap`. It raises ValueError, naming the site, if there are more calls than recordings or shapes
        differ, and RuntimeError if gradient checkpointing repeats a call of a module that is called several times a
        pass, as it is then not known which.
    """
    calls = None if isinstance(recorded, Tensor) else [tensor.detach() for tensor in recorded]
    same = recorded.detach() if isinstance(recorded, Tensor) else None

    def edit(tensor: Tensor, context: Context) -> Tensor:
        value = same
        if calls is not None:
            if context.recomputed and context.call:
                raise RuntimeError(f"{context.site} is called several times a pass: patch it without checkpointing.")
            if context.fired >= len(calls):
                raise ValueError(f"{context.site}: call {context.fired + 1}, but {len(calls)} were recorded.")
            value = calls[context.fired]
        assert value is not None
        if value.shape != tensor.shape:
            raise ValueError(f"{context.site}: recorded {tuple(value.shape)}, now there is {tuple(tensor.shape)}.")
        return _where(mask, value.to(tensor), tensor, context.site)

    return edit


def scale(factor: float | Tensor, mask: Mask | None = None) -> TapFunction:
    """Multiply the tensor: a' = where(mask, factor * a, a).

    Args:
        factor: broadcasts to the tensor; a tensor that requires gradients gets them.
        mask: true where it applies, broadcasts to the tensor; None is everywhere.

    Raises:
        ValueError: if a factor is NaN.
    """
    factor = _numbers("factor", factor)

    def edit(tensor: Tensor, context: Context) -> Tensor:
        return _where(mask, tensor * _spread("factor", factor, tensor, context.site), tensor, context.site)

    return edit


def add(offset: float | Tensor, mask: Mask | None = None) -> TapFunction:
    """Shift the tensor: a' = where(mask, a + offset, a).

    Args:
        offset: broadcasts to the tensor, a steering vector for instance; one that requires gradients gets them.
        mask: true where it applies, broadcasts to the tensor; None is everywhere.

    Raises:
        ValueError: if an offset is NaN.
    """
    offset = _numbers("offset", offset)

    def edit(tensor: Tensor, context: Context) -> Tensor:
        return _where(mask, tensor + _spread("offset", offset, tensor, context.site), tensor, context.site)

    return edit
