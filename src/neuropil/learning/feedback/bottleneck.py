"""A layer that is as wide as ever, and in which only a part of the weights can learn.

    y = W' x + b,      W'_ij = W_ij(0)  where blocked,  W_ij  elsewhere

The width stays, the freedom to turn the layer's Jacobian shrinks: what a narrow layer, or a convolution with its
shared weights, lacks for aligning with random feedback.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import linear as affine

from neuropil.learning.networks import linear

__all__ = ["BottleneckLinear"]


class BottleneckLinear(nn.Linear):
    """A linear layer in which a fraction of the weights never learns.

    Blocked weights are read from where they started, so that weight decay and momentum cannot move them either; their
    gradient is zero. The bias is free.

    Args:
        in_features: number of inputs.
        out_features: number of outputs.
        rate: fraction of blocked weights, 0 to 1, to within one weight.
        bias: whether there is a bias.
        generator: source of the initial weights (LeCun normal; as `linear` draws them), and after them of the mask.

    Attributes:
        blocked: mask of the weights that never learn, a buffer.
        initial: their values, a buffer of the weight's shape.

    Raises:
        ValueError: if the rate is outside [0, 1], or a size is less than 1.

    Source: Launay, Poli & Krzakala, arXiv:1906.04554, bottleneck layers.
    """

    blocked: Bool[Tensor, "out_features in_features"]
    initial: Float[Tensor, "out_features in_features"]

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: float,
        *,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ):
        if not 0 <= rate <= 1:
            raise ValueError(f"rate must lie in [0, 1], got {rate}.")
        layer = linear(in_features, out_features, bias=bias, generator=generator)
        super().__init__(in_features, out_features, bias=bias, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.rate = rate
        size = self.weight.numel()
        device = generator.device if generator is not None else None
        order = torch.randperm(size, generator=generator, device=device).to(self.weight.device)
        self.register_buffer("blocked", (order < round(rate * size)).view_as(self.weight))
        self.register_buffer("initial", self.weight.detach().clone())

    @property
    def effective(self) -> Float[Tensor, "out_features in_features"]:
        """The weights that the layer computes with."""
        return torch.where(self.blocked, self.initial, self.weight)

    def forward(self, input: Float[Tensor, "*batch in_features"]) -> Float[Tensor, "*batch out_features"]:
        """As `nn.Linear`, with the effective weights."""
        return affine(input, self.effective, self.bias)

    def extra_repr(self) -> str:
        """Sizes and rate."""
        return f"{super().extra_repr()}, rate={self.rate}"
