"""The model as a distribution over targets, whose information the Fisher matrix measures.

    "categorical"  p = softmax(f)             -log p(y)                     cross-entropy
    "normal"       p = N(f, 1), each output   |f - y|^2 / 2                 half squared error
    "bernoulli"    p = sigmoid(f), each       -log p(y), summed             binary cross-entropy of logits

The Fisher information of the outputs, E_y[grad_f log p grad_f log p^T], equals the Hessian of the loss in f for all
three (their f is the natural parameter): diag(p) - p p^T, 1, and diag(p (1 - p)). With columns s_k whose outer products
sum to it, passing each s_k back once gives the exact Fisher information; passing back the gradient for a drawn y gives
an unbiased estimate for the price of one pass.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Likelihood", "output_gradients", "output_roots", "sample_targets"]

Likelihood = Literal["categorical", "normal", "bernoulli"]


def _probabilities(output: Tensor, likelihood: Likelihood) -> Tensor:
    if likelihood not in ("categorical", "normal", "bernoulli"):
        raise ValueError(f'likelihood must be "categorical", "normal" or "bernoulli", got {likelihood!r}.')
    if output.dim() != 2:
        raise ValueError(f"The output must be (examples, units) for a likelihood, got shape {tuple(output.shape)}.")
    if likelihood == "categorical":
        return output.softmax(1)
    return output.sigmoid() if likelihood == "bernoulli" else output


def sample_targets(
    output: Float[Tensor, "examples *units"], likelihood: Likelihood, generator: torch.Generator
) -> Tensor:
    """Draw a target for each example from the model.

    Args:
        output: of the network: logits or means.
        likelihood: see the head of the module.
        generator: of the draws.

    Returns:
        Class indices (examples,), or targets of the output's shape.

    Raises:
        ValueError: if the likelihood is unknown or the output is not (examples, units).
    """
    found = _probabilities(output.detach(), likelihood)
    drawn = found.to(generator.device)
    if likelihood == "categorical":
        return torch.multinomial(drawn, 1, generator=generator)[:, 0].to(output.device)
    if likelihood == "bernoulli":
        return torch.bernoulli(drawn, generator=generator).to(output)
    noise = torch.randn(drawn.shape, generator=generator, device=generator.device, dtype=drawn.dtype)
    return found + noise.to(output)


def output_gradients(
    output: Float[Tensor, "examples *units"], target: Tensor, likelihood: Likelihood
) -> Float[Tensor, "examples units"]:
    """Gradient of each example's own -log p(target) by its output: mean minus target."""
    mean = _probabilities(output, likelihood)
    if likelihood == "categorical":
        return mean - torch.nn.functional.one_hot(target, output.shape[1]).to(mean)
    return mean - target


def output_roots(
    output: Float[Tensor, "examples *units"], likelihood: Likelihood
) -> Float[Tensor, "roots examples units"]:
    """Columns s_k of each example whose outer products sum to the Fisher information of its outputs."""
    mean = _probabilities(output, likelihood)
    eye = torch.eye(output.shape[1], dtype=output.dtype, device=output.device)
    if likelihood == "categorical":
        # sum_c p_c (e_c - p)(e_c - p)^T = diag(p) - p p^T
        return mean.sqrt().T[:, :, None] * (eye[:, None, :] - mean)
    if likelihood == "bernoulli":
        return (mean * (1 - mean)).sqrt() * eye[:, None, :]
    return eye[:, None, :].expand(-1, len(output), -1)
