"""Small networks that pass tensors in all the ways a tap must cope with."""

import torch
from torch import Tensor, nn

from neuropil.learning.networks import mlp


def dense(seed: int = 0) -> nn.Sequential:
    return mlp(4, 6, 5, 3, generator=torch.Generator().manual_seed(seed))


class Nest(nn.Module):
    """Returns a tuple with a mapping in it."""

    def __init__(self):
        super().__init__()
        self.line = nn.Identity()

    def forward(self, x: Tensor, *, gain: Tensor) -> tuple[Tensor, dict[str, Tensor], None]:
        return self.line(x), {"twice": 2 * x, "gained": gain * x}, None


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.nest = Nest()

    def forward(self, x: Tensor) -> Tensor:
        first, more, _ = self.nest(x, gain=torch.full_like(x, 3.0))
        return first + more["twice"] + more["gained"]


class Shared(nn.Module):
    """Calls one module twice, under two names, and holds one that it never calls."""

    def __init__(self):
        super().__init__()
        self.first = nn.Identity()
        self.alias = self.first
        self.idle = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + 10 * self.alias(x)


class Failing(nn.Module):
    def __init__(self):
        super().__init__()
        self.line = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError(f"broken after {self.line(x).shape}")


def hooks(net: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in net.modules())
