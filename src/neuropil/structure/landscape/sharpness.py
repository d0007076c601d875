"""Sharpness-aware minimisation: steps that are taken where the loss is worst nearby.

    eps = rho g / ||g||,   g the gradient at w           one ascent to w + eps
    w  <- w - step(gradient at w + eps)                  the optimizer's own step, from w

A larger rho is a hotter training in the language of phases. (Foret, Kleiner, Mobahi & Neyshabur 2021, eq. 2 and 3.)
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from neuropil.neurons.ranges import require_positive
from neuropil.structure.masks import MaskHandle

__all__ = ["SAM"]


class SAM:
    """Wraps an optimizer; call `step` with a closure, or the two halves of a step by hand.

    Args:
        optimizer: any torch optimizer that needs no closure; its hooks (masks) fire in the second half.
        rho: radius of the ascent, in the unit of the weights.
        handle: masks in force on the net: masked weights then stay where they are during the ascent and count for
            nothing in the norm.

    Raises:
        ValueError: if rho is not positive, or the masks are enforced on another optimizer.

    Statistics of batch norm see every batch twice. Source: Foret et al., ICLR 2021 (arXiv 2010.01412).
    """

    def __init__(self, optimizer: Optimizer, rho: float = 0.05, handle: MaskHandle | None = None):
        require_positive(rho=rho)
        if handle is not None and handle.optimizer is not optimizer:
            raise ValueError("handle holds the masks of another optimizer.")
        self.optimizer, self.rho, self.handle = optimizer, float(rho), handle
        self._origins: list[tuple[Tensor, Tensor]] = []

    def zero_grad(self) -> None:
        """Clear the gradients."""
        self.optimizer.zero_grad()

    @torch.no_grad()
    def first_step(self) -> float:
        """Climb to w + eps by the gradients in `.grad`, which are cleared; give the norm of the gradient.

        Raises:
            RuntimeError: if the second half of the last step is missing.
            FloatingPointError: if the gradient is not finite; the weights are then untouched.
        """
        if self._origins:
            raise RuntimeError("first_step was called twice: second_step comes between.")
        masks = self._masks()
        directions = []
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mask = masks.get(id(parameter))
                    gradient = parameter.grad if mask is None else parameter.grad * mask.to(parameter.device)
                    directions.append((parameter, gradient))
        norm = math.sqrt(math.fsum(float(gradient.double().square().sum()) for _, gradient in directions))
        if not math.isfinite(norm):
            raise FloatingPointError(f"The norm of the gradient is {norm}.")
        for parameter, gradient in directions:
            self._origins.append((parameter, parameter.clone()))
            if norm > 0:
                parameter.add_(gradient, alpha=self.rho / norm)
        self.optimizer.zero_grad()
        return norm

    @torch.no_grad()
    def second_step(self) -> None:
        """Go back to w, to the bit, and let the optimizer step by the gradients found at w + eps.

        Raises:
            RuntimeError: if there was no first half.
        """
        if not self._origins:
            raise RuntimeError("second_step needs a first_step before it.")
        self._return()
        self.optimizer.step()

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """Take a whole step.

        Args:
            closure: computes the loss of a batch, calls `backward` and returns it; it is called twice. Gradients are
                cleared here.

        Returns:
            The loss at w.
        """
        self.optimizer.zero_grad()
        with torch.enable_grad():
            loss = closure().detach()
        self.first_step()
        try:
            with torch.enable_grad():
                closure()
        except BaseException:
            self._return()
            raise
        self.second_step()
        return loss

    @torch.no_grad()
    def _return(self) -> None:
        for parameter, origin in self._origins:
            parameter.copy_(origin)
        self._origins.clear()

    def _masks(self) -> dict[int, Tensor]:
        """Masks in force, by identity of the parameter; masks may have been replaced since the last step."""
        if self.handle is None:
            return {}
        return {id(self.handle.net.get_parameter(name)): mask for name, mask in self.handle.masks.items()}
