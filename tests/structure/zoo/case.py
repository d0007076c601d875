"""One model of the zoo: how it is made, what it is called with, and what is known to be odd about it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Case", "Example", "arguments", "randomise_"]

Example = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
NORMS = ("Norm", "GRN")
# Scales of whole channels that start at 1e-6 in some papers: with such values a wrong rule passes every comparison.
SCALES = ("layer_scale", "gamma", "lambda")


def randomise_(net: nn.Module, seed: int) -> nn.Module:
    """Draw every parameter and every running statistic anew: nothing stays 0 or 1, and signals keep their size."""
    generator = torch.Generator().manual_seed(seed)

    def normal(like: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(like.shape, generator=generator, dtype=like.dtype)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        owners = {id(p): m for m in net.modules() for p in m.parameters(recurse=False)}
        for name, parameter in net.named_parameters():
            owner = type(owners[id(parameter)]).__name__
            flat = sum(n > 1 for n in parameter.shape) <= 1
            scales = any(word in name.rsplit(".", 1)[-1] for word in SCALES)
            if scales or (flat and name.endswith("weight") and any(word in owner for word in NORMS)):
                parameter.copy_(uniform(parameter, 0.5, 1.5))
            elif flat or "Embedding" in owner:
                parameter.copy_(normal(parameter, 0.4))
            else:
                fan = math.prod(parameter.shape[1:]) if parameter.ndim > 1 else 1
                parameter.copy_(normal(parameter, 1.2 / math.sqrt(max(fan, 1))))
        for name, buffer in net.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(normal(buffer, 0.4))
            elif name.endswith("running_var"):
                buffer.copy_(uniform(buffer, 0.5, 2.0))
    return net


def arguments(example: Example) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Give an example as the positions and keywords of a call."""
    if isinstance(example, dict):
        return (), example
    return (example if isinstance(example, tuple) else (example,)), {}


@dataclass(frozen=True)
class Case:
    """A model for the tests of units.

    Args:
        name: of the case.
        build: makes the bare model; whatever it draws from the global state is undone and redrawn.
        example: what its forward is called with: a tensor, a tuple, or a dict of keywords.
        notes: what is odd about it.
        exports: whether `torch.export` takes it.
        tolerance: relative, for two float64 forwards that should agree; larger where the model's own code computes in
            float32.
        needs: libraries beside torch.
        counted: whether torch's counter of operations knows all its products.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Example
    notes: str = ""
    exports: bool = True
    tolerance: float = 1e-9
    needs: tuple[str, ...] = field(default=())
    counted: bool = True

    def make(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Build the model with random weights, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self.build()
        # Drawn in float64: no two values of a tensor are alike, so that each tells where it came from.
        return randomise_(net.to(torch.float64), seed).to(dtype).eval()

    def inputs(self, dtype: torch.dtype = torch.float64) -> Example:
        """Give the example, its real numbers in a precision."""
        return pytree.tree_map(lambda t: t.to(dtype) if t.is_floating_point() else t, self.example)

    def call(self, net: nn.Module, example: Example | None = None) -> list[Tensor]:
        """Run the model on the example (or another) without gradients; its outputs, flat."""
        given = self.inputs() if example is None else example
        with torch.no_grad():
            args, keywords = arguments(given)
            out = net(*args, **keywords)
        return [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]

    def __str__(self) -> str:
        return self.name
