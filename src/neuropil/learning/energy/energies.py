"""Energies at the output, and the error that a clamped target puts there.

The output's term of the free energy is the rule's loss, times the samples of the batch:

    E_N = batch * loss(p_N, y),     e_N = -dE_N/dp_N:     y - p_N for squared energy, y - softmax(p_N) for cross entropy

so any mean-reduced loss works. For the two named ones the error has a closed form, which saves a pass of autograd in
every step of inference.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import cross_entropy

from neuropil.learning.rule import LearningRule
from neuropil.losses import half_squared_error

__all__ = ["Clamp", "clamp", "cross_entropy_energy", "one_hot_like", "squared_energy"]

Clamp = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Prediction of the output -> (mean loss, e_N); neither has a graph."""


def one_hot_like(output: Float[Tensor, "*batch classes"], target: Shaped[Tensor, "*labels"]) -> Tensor:
    """Targets in the shape and dtype of an output: class indices become one-hot vectors, others stay as they are.

    Raises:
        ValueError: if an index is no class, or the shapes do not fit.
    """
    if not target.dtype.is_floating_point and target.shape == output.shape[:-1]:
        classes = output.shape[-1]
        if target.numel() and not (int(target.min()) >= 0 and int(target.max()) < classes):
            raise ValueError(f"target has class indices {int(target.min())} to {int(target.max())}, for {classes}.")
        return torch.zeros_like(output).scatter_(-1, target.long().unsqueeze(-1), 1.0)
    if target.shape != output.shape:
        raise ValueError(f"target has shape {tuple(target.shape)}, the output {tuple(output.shape)}.")
    return target.to(output)


def squared_energy(output: Float[Tensor, "batch *units"], target: Shaped[Tensor, "batch *labels"]) -> Float[Tensor, ""]:
    """Half the squared distance, summed over units, averaged over the batch; class indices become one-hot targets.

    Raises:
        ValueError: if an index is no class, or the shapes do not fit.
    """
    return half_squared_error(output, one_hot_like(output.detach(), target))


def cross_entropy_energy(
    output: Float[Tensor, "batch *units"], target: Shaped[Tensor, "batch *labels"]
) -> Float[Tensor, ""]:
    """Cross entropy of logits, averaged over the batch; targets are class indices or probabilities."""
    return cross_entropy(output, target)


def clamp(rule: LearningRule, output: Tensor, y: Tensor | None) -> Clamp:
    """What a target does to the output of a rule's net, prediction by prediction.

    Args:
        rule: whose loss it is.
        output: a first prediction, for shapes.
        y: target.

    Raises:
        ValueError: if there is no loss or no target.
    """
    loss_fn, target = rule.required_loss(), rule.required_target(y)
    if output.dim() == 2:
        if loss_fn in (squared_energy, half_squared_error):
            loss_fn(output.detach(), target)  # complains as the loss does
            return _squared(one_hot_like(output.detach(), target))
        if loss_fn in (cross_entropy_energy, cross_entropy) and _plain(output, target):
            return _cross_entropy(one_hot_like(output.detach(), target))
    return _by_autograd(rule, target)


def _plain(output: Tensor, target: Tensor) -> bool:
    """Whether a target is a class in range for every sample, or a vector a sample (others have rules of their own)."""
    if target.dtype.is_floating_point:
        return target.shape == output.shape
    in_range = target.numel() > 0 and int(target.min()) >= 0 and int(target.max()) < output.shape[-1]
    return target.shape == output.shape[:-1] and in_range


def _squared(target: Tensor) -> Clamp:
    def at(prediction: Tensor) -> tuple[Tensor, Tensor]:
        error = target - prediction
        flat = error.reshape(-1)
        return torch.dot(flat, flat) / (2 * len(target)), error

    return at


def _cross_entropy(target: Tensor) -> Clamp:
    mass = target.sum(-1, keepdim=True)  # 1 for probabilities

    def at(prediction: Tensor) -> tuple[Tensor, Tensor]:
        log = prediction.log_softmax(-1)
        loss = -(target * log).sum() / len(target)
        return loss, torch.addcmul(target, mass, log.exp_(), value=-1)

    return at


def _by_autograd(rule: LearningRule, target: Tensor) -> Clamp:
    def at(prediction: Tensor) -> tuple[Tensor, Tensor]:
        loss, error = rule.output_error(prediction, target)
        return loss, error.mul_(-len(prediction))

    return at
