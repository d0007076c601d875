"""The implicit step of gradient descent: by descent on its own objective, and by relaxed activities.

    theta' = argmin J(theta'),      J(theta') = L(theta') + ||theta' - theta||^2 / (2 alpha)

so that theta' = theta - alpha grad L(theta'): stable for every alpha > 0 where L is convex, however stiff (the explicit
step diverges for alpha > 2 / lambda_max). For a chain p = W f(h) + b and one sample the minimum over parameters is a
minimum over activities: given all h, the smallest change that makes a stage say h_{l+1} has squared length
||h_{l+1} - p_{l+1}||^2 / (||f(h_l)||^2 + 1), so

    min_theta' J  =  min_h G,      G(h) = L(h_N, y) + sum_l ||h_{l+1} - p_{l+1}||^2 / (2 alpha (||f(h_l)||^2 + 1))
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.functional import linear

from neuropil.learning.energy.chain import LinearChain
from neuropil.learning.rule import Loss
from neuropil.learning.stages import Inputs

__all__ = ["implicit_sgd_step", "minimise_proximal"]

MEMORY = 50  # of L-BFGS


def implicit_sgd_step(
    net: nn.Module, loss_fn: Loss, x: Any, y: Tensor, alpha: float, *, inner: int = 500, lr: float = 0.005
) -> dict[str, Tensor]:
    """Parameters after an implicit step of gradient descent; the net stays as it is.

    J is descended with its quadratic term taken implicitly,

        theta' <- (theta' - lr grad L(theta') + (lr/alpha) theta) / (1 + lr/alpha)

    which has the same fixed point as plain descent and is not unstable for small alpha. It can run under
    `torch.func.vmap`, then over x and y.

    Args:
        net: any module without randomness of its own.
        loss_fn: mean-reduced loss of (output, target).
        x: inputs, (batch, ...).
        y: targets, (batch, ...).
        alpha: size of the step; the descent is done when inner * lr is several times the smaller of alpha and the
            inverse of the loss's smallest curvature along the way.
        inner: steps of the descent.
        lr: of the descent.

    Returns:
        New values of the parameters that require gradients, by name.

    Raises:
        ValueError: if alpha, lr or inner is out of range.

    Source: Toulis & Airoldi, Ann. Stat. 45 (2017); inner descent as in Alonso et al., NeurIPS 2022.
    """
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha}.")
    if not 0 < lr < float("inf"):
        raise ValueError(f"lr must be positive and finite, got {lr}.")
    if inner < 1:
        raise ValueError(f"inner must be at least 1, got {inner}.")
    start = {name: p.detach() for name, p in net.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return loss_fn(functional_call(net, parameters, (x,)), y)

    slope = grad(loss)
    pull = lr / alpha
    current = start
    for _ in range(inner):
        slopes = slope(current)
        current = {
            name: (value - lr * slopes[name] + pull * start[name]) / (1 + pull) for name, value in current.items()
        }
    return current


def minimise_proximal(
    chain: LinearChain, x: Inputs, loss_fn: Loss, y: Tensor, alpha: float, eps: float, steps: int
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Minimise G over the activities of every sample, the output's among them, and normalise the steps there.

    Args:
        chain: whose stages are a function, then the linear map.
        x: inputs, (batch, features).
        loss_fn: mean-reduced loss of (output, target).
        y: targets.
        alpha: size of the step.
        eps: added to every squared norm.
        steps: of L-BFGS, at most.

    Returns:
        The loss of the feed-forward pass, the parameters, and minus the mean over samples of their normalised steps.

    Raises:
        FloatingPointError: if the minimum is not finite.
    """
    predictions = chain.start(x)
    below = chain.inputs
    loss = loss_fn(predictions[-1], y).detach()
    free = [p.clone().requires_grad_() for p in predictions]

    def residuals() -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of every layer: s, e and ||s||^2 + 1 + eps of every sample."""
        found, h = [], below
        for layer, above in zip(chain.layers, free, strict=True):
            s = h if layer.before is None else layer.before.value(h)
            bias = None if layer.bias is None else layer.bias.detach()
            norm = s.square().sum(-1, keepdim=True) + (eps if bias is None else 1 + eps)
            found.append((s, above - linear(s, layer.weight.detach(), bias), norm))
            h = above
        return found

    def objective() -> Tensor:
        cost = len(y) * loss_fn(free[-1], y)
        return cost + sum((e.square().sum(-1, keepdim=True) / (2 * alpha * norm)).sum() for _, e, norm in residuals())

    tiny = torch.finfo(free[0].dtype).tiny
    search = torch.optim.LBFGS(
        free,
        max_iter=steps,
        max_eval=4 * steps,
        history_size=MEMORY,
        tolerance_grad=tiny,
        tolerance_change=tiny,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        search.zero_grad()
        value = objective()
        value.backward()
        return value

    with torch.enable_grad():
        end = search.step(closure)
    if not bool(torch.isfinite(torch.as_tensor(end))):
        raise FloatingPointError(f"The proximal objective is {float(end)} at alpha {alpha:g}, eps {eps:g}.")
    with torch.no_grad():
        parameters, gradients = [], []
        for layer, (s, e, norm) in zip(chain.layers, residuals(), strict=True):
            d = e / norm
            parameters += layer.tensors
            gradients.append(-(d.mT @ s) / len(y))
            if layer.bias is not None:
                gradients.append(-d.mean(0))
    return loss, parameters, gradients
