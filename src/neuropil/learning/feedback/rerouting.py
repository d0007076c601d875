"""Send errors back through other weights than the forward ones, in any network.

A weight layer computes  a = W * h + b.  Going back, autograd hands it delta = dL/da, keeps

    grad W = delta h^T      grad b = sum delta

and passes  W^T * delta  to whatever made h. Inside `rerouted` only that last term is replaced, by what `send_back`
returns; activations, norms, pools and skip connections are differentiated exactly, at the true forward values. (To
evaluate a stage with substituted weights is not the same: the derivative of an activation inside the stage would be
taken at B h.)

Hooks do it, for one forward pass: the layer sees h without its graph, so its own parameters get their exact gradient,
and an autograd function that changes no value hands h its error.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from neuropil.learning.feedback.maps import WeightLayer

__all__ = ["SendBack", "rerouted"]

SendBack = Callable[[str, Tensor, Tensor, bool], tuple[Tensor | None, Sequence[Tensor | None]]]
"""(name of the layer, delta, h, whether h wants an error) -> (error of h or None, gradients of the rule's own)."""


class _Route(torch.autograd.Function):
    """Identity on a layer's output; going back, the layer keeps delta and `send_back` says what its input hears."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, h: Tensor, name: str, send_back: SendBack, *own: Tensor) -> Tensor:
        ctx.save_for_backward(h)
        ctx.name, ctx.send_back, ctx.own = name, send_back, len(own)
        return output.clone()  # no view: an in-place activation may follow

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (h,) = ctx.saved_tensors
        error, gradients = ctx.send_back(ctx.name, delta, h, ctx.needs_input_grad[1])
        return delta, error, None, None, *gradients


@contextmanager
def rerouted(
    layers: Mapping[str, WeightLayer], send_back: SendBack, own: Mapping[str, Sequence[Tensor]] | None = None
) -> Iterator[None]:
    """Reroute the errors of every forward pass made inside.

    Args:
        layers: by name, as `weight_layers` finds them.
        send_back: called once a layer and call in the backward pass.
        own: by layer, further leaves whose gradients `send_back` returns, in the same order.
    """
    handles = []
    waiting: dict[str, list[Tensor]] = {name: [] for name in layers}  # a layer may be called more than once

    def before(name: str):
        def hook(module: Any, args: tuple) -> tuple:
            waiting[name].append(args[0])
            return args[0].detach(), *args[1:]

        return hook

    def after(name: str):
        def hook(module: Any, args: tuple, output: Tensor) -> Tensor:
            h = waiting[name].pop()
            leaves = own.get(name, ()) if own else ()
            if not (h.requires_grad or output.requires_grad or any(leaf.requires_grad for leaf in leaves)):
                return output
            return _Route.apply(output, h, name, send_back, *leaves)

        return hook

    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(before(name)))
            handles.append(layer.register_forward_hook(after(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()
