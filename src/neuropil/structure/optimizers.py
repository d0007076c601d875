"""What an optimizer remembers of a parameter, kept right when entries are masked, cut, moved or grown.

Every torch optimizer keeps, for a parameter, tensors of the parameter's shape (momentum_buffer; exp_avg, exp_avg_sq,
max_exp_avg_sq; square_avg; sum; ...) beside counts. Whatever is done to the entries of a parameter is done to those
tensors too: nothing here knows an optimizer by name.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Fill", "held_by", "replace_parameter", "reset_state_", "state_like"]

Fill = Literal["zero", "mean"]
# Second moments, by the names that torch's optimizers give them: what the fill "mean" applies to.
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta"})


def held_by(optimizer: Optimizer, parameter: Tensor) -> bool:
    """Tell whether the optimizer updates this very parameter."""
    return any(held is parameter for group in optimizer.param_groups for held in group["params"])


def state_like(optimizer: Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """Give the optimizer's tensors of the parameter's own shape, by name; none before its first step."""
    state = optimizer.state.get(parameter, {})
    # A count of steps has no axes, and is no memory of a parameter that has none either.
    return {
        key: value
        for key, value in state.items()
        if isinstance(value, Tensor) and value.shape == parameter.shape and key != "step"
    }


def reset_state_(
    optimizer: Optimizer,
    parameter: Tensor,
    where: Bool[Tensor, "*shape"],
    fill: Fill = "zero",
    live: Tensor | None = None,
) -> None:
    """Forget what the optimizer remembers of some entries of a parameter, in place.

    Args:
        optimizer: any torch optimizer.
        parameter: one that it may hold.
        where: entries to forget, of the parameter's shape.
        fill: "zero", or "mean": second moments of these entries become the mean of the tensor's other entries, so that
            an adaptive optimizer with one count of steps does not take its first step there several times too large.
        live: entries whose mean is taken with fill "mean"; None: all but `where`.
    """
    for key, value in state_like(optimizer, parameter).items():
        if fill == "mean" and key in SECOND_MOMENTS:
            others = value[~where if live is None else live & ~where]
            value[where] = others.mean() if others.numel() else 0.0
        else:
            value[where] = 0.0


def replace_parameter(
    optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, change: Callable[[Tensor], Tensor]
) -> None:
    """Let the optimizer go on with a new parameter in the place of an old one: same group, same position.

    Args:
        optimizer: any torch optimizer; nothing happens if it does not hold `old`.
        old: the parameter that leaves.
        new: the one that comes, of any shape.
        change: makes of a tensor of the old shape one of the new: applied to the state of the parameter's shape; counts
            and the like are kept.
    """
    if old is new or not held_by(optimizer, old):
        return
    for group in optimizer.param_groups:
        group["params"] = [new if held is old else held for held in group["params"]]
    if old not in optimizer.state:
        return
    state = optimizer.state.pop(old)
    with torch.no_grad():
        optimizer.state[new] = {
            key: change(value) if isinstance(value, Tensor) and value.shape == old.shape and value.ndim else value
            for key, value in state.items()
        }
