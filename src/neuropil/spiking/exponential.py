"""An exponential of fixed operations, so that two backends give the same bits.

    exp(x) = 2^n p(r),  n = floor(x log2(e) + 1/2),  r = x - n ln 2,  |r| <= ln(2)/2

p is the Taylor polynomial by Horner's rule, ln 2 is split in two so that n ln 2 is exact, 2^n is written as bits. Every
operation is one that IEEE 754 rounds correctly; `kernels.exponential` repeats them. In a network that runs away from
itself exponentially fast, an ordinary exp that differs in its last bit gives other spikes after a second.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["COEFFICIENTS", "LIMITS", "LN2", "LOG2E", "exp"]

LOG2E = 1.0 / math.log(2.0)
LN2 = {
    torch.float32: (0.693359375, -2.12194440054690583e-4),
    torch.float64: (0.6931471803691238, 1.9082149292705877e-10),
}
"""ln 2 as a number of few bits and the rest, so that the first times n is exact."""
COEFFICIENTS = {
    torch.float32: [1.0 / math.factorial(i) for i in range(7, -1, -1)],
    torch.float64: [1.0 / math.factorial(i) for i in range(13, -1, -1)],
}
LIMITS = {torch.float32: (-87.0, 88.0), torch.float64: (-708.0, 709.0)}
"""Arguments are cut here: results stay normal numbers."""


class _Exp(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        low, high = LIMITS[x.dtype]
        (ln2, rest), bits = LN2[x.dtype], x.dtype == torch.float64
        x = x.clamp(low, high)
        n = torch.floor(x * LOG2E + 0.5)
        r = x - n * ln2
        r = r - n * rest
        p = torch.full_like(r, COEFFICIENTS[x.dtype][0])
        for c in COEFFICIENTS[x.dtype][1:]:
            p = p * r + c
        power = (n.long() + 1023) << 52 if bits else (n.int() + 127) << 23
        return p * power.view(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (output,) = ctx.saved_tensors
        return gradients[0] * output


def exp(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """e^x of float32 or float64 numbers, to within an ulp or two; arguments are cut at `LIMITS`.

    Raises:
        TypeError: for other types.
    """
    if x.dtype not in LIMITS:
        raise TypeError(f"exp takes float32 and float64, got {x.dtype}.")
    return _Exp.apply(x)
