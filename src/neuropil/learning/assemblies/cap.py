"""k-winners-take-all, and how far two sets of winners agree."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["k_cap", "overlap"]


def k_cap(
    inputs: Float[Tensor, "*batch neurons"], k: int, generator: torch.Generator | None = None
) -> Int[Tensor, "*batch k"]:
    """The k neurons with the largest inputs.

    Args:
        inputs: total synaptic input of every neuron.
        k: number of winners.
        generator: breaks ties at random; None: the neurons with the lowest index win them.

    Returns:
        Indices of the winners in ascending order.

    Raises:
        ValueError: if k is below 1 or above the number of neurons, or an input is NaN.
    """
    neurons = inputs.shape[-1]
    if not 1 <= k <= neurons:
        raise ValueError(f"k must lie between 1 and the number of neurons, {neurons}, got {k}.")
    if torch.isnan(inputs).any():
        raise ValueError(f"inputs hold {int(torch.isnan(inputs).sum())} NaN.")
    if generator is not None:
        order = torch.rand(inputs.shape, generator=generator).argsort(-1).to(inputs.device)
        chosen = k_cap(inputs.gather(-1, order), k)
        return order.gather(-1, chosen).sort(-1).values
    least = inputs.topk(k, dim=-1).values[..., -1:]
    above, tied = inputs > least, inputs == least
    missing = k - above.sum(-1, keepdim=True)
    wins = above | (tied & (tied.cumsum(-1) <= missing))
    return wins.nonzero()[:, -1].reshape(*inputs.shape[:-1], k)


def overlap(first: Int[Tensor, " first"], second: Int[Tensor, " second"]) -> float:
    """Shared neurons of two sets, as a fraction of the larger one.

    Args:
        first: indices of neurons, without repetition.
        second: likewise.

    Raises:
        ValueError: if a set is empty or names a neuron twice.
    """
    for name, ids in (("first", first), ("second", second)):
        if len(ids) == 0 or len(ids.unique()) < len(ids):
            raise ValueError(f"{name} must name at least one neuron and none twice, got {len(ids)} indices.")
    return float(torch.isin(first, second).sum()) / max(len(first), len(second))
