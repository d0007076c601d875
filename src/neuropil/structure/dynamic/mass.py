"""Which channels carry most of the activation: the masks that prediction heads learn.

    h_i = max over space of |activation of channel i|
    k = least number of the largest h whose sum is at least (mass - 1e-6) times the sum of all

so one number, the mass, says for every sample and layer how many channels count.

Source: Elkerdawy et al. 2022, arXiv 2110.08232, the ground truth of the masks.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.neurons.ranges import require

__all__ = ["check_mass", "mass_topk", "pooled", "space"]

SLACK = 1e-6  # a mass of 1, or an exact fraction, must not depend on how a sum was rounded


def check_mass(mass: float) -> None:
    """Check that a mass is above 0 and at most 1.

    Raises:
        ValueError: if it is not.
    """
    require("mass", mass, 0.0, 1.0, ends=(False, True))


def pooled(x: Float[Tensor, "..."], axis: int = 1) -> Float[Tensor, "batch channels"]:
    """Give the maximum of every channel over all axes but the first and that of the channels."""
    return x if x.ndim == 2 else x.amax(dim=space(x, axis))


def space(x: Tensor, axis: int = 1) -> list[int]:
    """Give the axes beside those of samples and channels."""
    return [k for k in range(1, x.ndim) if k != axis % x.ndim]


def mass_topk(
    activations: Float[Tensor, "batch channels *space"], mass: float
) -> tuple[Bool[Tensor, "batch channels"], Int[Tensor, " batch"]]:
    """Mark the fewest channels of every sample that hold a share of its activation.

    Args:
        activations: what the channels give, their sign does not count; of equal ones the first counts as larger.
        mass: the share, above 0 and at most 1.

    Returns:
        The marks, and how many there are in every sample: at least 1, also where nothing is active.

    Raises:
        ValueError: if the mass is out of range, there are no channels, or an activation is not finite.
    """
    check_mass(mass)
    if activations.ndim < 2 or not activations.shape[1] or not all(activations.shape[2:]):
        raise ValueError(f"activations must have a batch and channels, got shape {(*activations.shape,)}.")
    heat = pooled(activations.detach().abs()).double()
    if not bool(heat.isfinite().all()):
        raise ValueError(f"activations hold {int((~activations.isfinite()).sum())} numbers that are not finite.")
    top = heat.amax(dim=1, keepdim=True)
    # Divided by the largest first: sums of huge numbers stay finite. The largest of nothing is 0 and stays so.
    ordered, order = (heat / torch.where(top > 0, top, 1.0)).sort(dim=1, descending=True, stable=True)
    sums = ordered.cumsum(dim=1)
    k = (sums < (mass - SLACK) * sums[:, -1:]).sum(dim=1).add(1).clamp(max=heat.shape[1])
    ranks = torch.arange(heat.shape[1], device=heat.device).expand_as(order)
    mask = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, ranks < k[:, None])
    return mask, k
