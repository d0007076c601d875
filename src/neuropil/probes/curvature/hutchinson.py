"""Diagonal and trace of a matrix that is known only by its products.

For a vector z of independent signs, E[z * (C z)] is the diagonal of C and E[z^T C z] its trace (Hutchinson 1989;
Bekas, Kokiopoulou & Saad 2007). A sign's square is 1, so the diagonal itself adds no noise to it: an entry's variance
is the sum of the squares of its row's other entries, and a diagonal matrix is found exactly, from one vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.probes.curvature.inputs import Batches, Loss, drawing
from neuropil.probes.curvature.operators import Hessian, Symmetric

__all__ = ["Estimate", "diagonal", "hessian_diagonal", "trace"]


@dataclass(frozen=True)
class Estimate:
    """A mean over random draws.

    Attributes:
        value: the mean.
        error: its standard error; infinite from one draw.
    """

    value: float
    error: float


def _signs(matrix: Symmetric, samples: int, generator: torch.Generator | None) -> list[Tensor]:
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    source = drawing(generator)
    draws = (torch.randint(2, (matrix.size,), generator=source, device=source.device) for _ in range(samples))
    return [(2 * draw - 1).to(device=matrix.device, dtype=matrix.dtype) for draw in draws]


def diagonal(
    matrix: Symmetric, samples: int = 10, *, generator: torch.Generator | None = None
) -> Float[Tensor, " size"]:
    """Estimate the diagonal of a symmetric matrix.

    Args:
        matrix: a `Hessian`, a `GaussNewton`, or another.
        samples: products, each a pass over the data.
        generator: of the signs; None is seed 0.

    Raises:
        ValueError: if samples is less than 1.
    """
    signs = _signs(matrix, samples, generator)
    return torch.stack([sign * (matrix @ sign) for sign in signs]).mean(0)


def trace(matrix: Symmetric, samples: int = 10, *, generator: torch.Generator | None = None) -> Estimate:
    """Estimate the trace of a symmetric matrix, with its standard error; arguments as of `diagonal`."""
    signs = _signs(matrix, samples, generator)
    found = torch.stack([(sign.double() * (matrix @ sign).double()).sum() for sign in signs])
    error = float(found.std() / samples**0.5) if samples > 1 else float("inf")
    return Estimate(float(found.mean()), error)


def hessian_diagonal(
    net: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    samples: int = 10,
    params: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Estimate the diagonal of a loss's Hessian, as tensors of the parameters' shapes by name.

    Args:
        net: any module that returns one tensor.
        batches: one (x, y), or several that can be gone through again.
        loss_fn: mean-reduced loss of (output, target).
        samples: products, each a pass over the data.
        params: qualified names; None: all that require a gradient.
        generator: of the signs; None is seed 0.
    """
    matrix = Hessian(net, batches, loss_fn, params=params)
    return matrix.split(diagonal(matrix, samples, generator=generator))
