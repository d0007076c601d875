"""Add a layer that changes nothing yet: the same function, one layer deeper.

After an activation f with f(f(x)) = f(x), a layer whose weights are the identity and then f once more give f(x) again
(Chen, Goodfellow & Shlens 2016, Net2DeeperNet).
"""

import copy
import math

import torch
from torch import Tensor, nn

from neuropil.neurons.ranges import require
from neuropil.structure.graph.tracing import evaluating

__all__ = ["deepen"]

IDEMPOTENT = (nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Identity)


def deepen(
    net: nn.Sequential,
    after: int,
    example_inputs: Tensor,
    *,
    kernel: int = 3,
    noise: float = 0.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Insert a layer and its activation after an activation of a chain, without changing the function.

    Args:
        net: a chain of modules; it is left as it is, and its modules are those of the chain returned.
        after: place of an activation in it: ReLU, ReLU6, Hardtanh or Identity.
        example_inputs: what the chain is called with: tells whether a linear layer or a convolution fits there.
        kernel: odd size of the convolution.
        noise: standard deviation of what is added to the identity, so that training can tell its weights apart; with it
            the function changes a little.
        generator: draws the noise; None draws it with seed 0.

    Returns:
        The longer chain. An optimizer must be given the new layer's parameters (`optimizer.add_param_group`).

    Raises:
        ValueError: if there is no such activation, the kernel is even, noise is negative, or what passes there is
            neither (batch, ..., features) nor images, (batch, channels, height, width).

    Source: Chen, Goodfellow & Shlens 2016, arXiv 1511.05641, section 2.4.
    """
    require("noise", noise, 0.0, math.inf, ends=(True, False))
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel must be odd, got {kernel}.")
    modules = list(net)
    if not 0 <= after < len(modules) or not isinstance(modules[after], IDEMPOTENT):
        found = type(modules[after]).__name__ if 0 <= after < len(modules) else f"a chain of {len(modules)}"
        raise ValueError(f"after must be the place of a ReLU, ReLU6, Hardtanh or Identity; {after} is {found}.")
    with evaluating(net), torch.no_grad():
        x = example_inputs
        for module in modules[: after + 1]:
            x = module(x)
    layer = _identity(x, kernel)
    drawn = torch.Generator().manual_seed(0) if generator is None else generator
    with torch.no_grad():
        layer.weight.add_(noise * torch.randn(layer.weight.shape, generator=drawn).to(layer.weight))
    layer.train(net.training)
    return nn.Sequential(*modules[: after + 1], layer, copy.deepcopy(modules[after]), *modules[after + 1 :])


def _identity(x: Tensor, kernel: int) -> nn.Linear | nn.Conv2d:
    """Give a layer that passes x on, of its type and on its device."""
    if x.dim() in {2, 3}:
        layer: nn.Linear | nn.Conv2d = nn.Linear(x.shape[-1], x.shape[-1], device="meta", dtype=x.dtype)
    elif x.dim() == 4:
        layer = nn.Conv2d(x.shape[1], x.shape[1], kernel, padding=kernel // 2, device="meta", dtype=x.dtype)
    else:
        raise ValueError(f"Nothing fits after a tensor of shape {(*x.shape,)}.")
    layer = layer.to_empty(device=x.device)  # nothing is drawn from the global state
    with torch.no_grad():
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(torch.eye(x.shape[-1]))
        else:
            nn.init.dirac_(layer.weight)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
