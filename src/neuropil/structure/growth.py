"""Where masked weights grow again: scores of closed entries, and the exchange of live ones for them.

    GradientGrowth    |dL/dw| of the batch just used: where the loss falls fastest       RigL (Evci et al. 2020), GraNet
    MomentumGrowth    |running mean of dL/dw|                                   sparse momentum (Dettmers & Zettlemoyer)
    RandomGrowth      uniform draws                                             SET (Mocanu et al. 2018)

Gradients of masked entries are the dense network's at w = 0: masks leave them alone.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from neuropil.neurons.ranges import require
from neuropil.structure.allocation import highest
from neuropil.structure.masks import Masks

__all__ = ["GradientGrowth", "Growth", "MomentumGrowth", "RandomGrowth", "regrow"]

Gradients = Mapping[str, Tensor | None]


class Growth(ABC):
    """Scores closed entries, bigger grows first. Write your own by `scores`."""

    def observe(self, gradients: Gradients) -> None:  # noqa: B027 - most have no use for it
        """See the gradients of every step, whether anything grows or not; does nothing by default."""

    @abstractmethod
    def scores(self, gradients: Gradients, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores of the shapes of the weights, for every name.

        Args:
            gradients: of the batch just used, None where there is none.
            weights: by the same names.
        """

    def state_dict(self) -> dict[str, Any]:
        """What must be saved to go on later."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {', '.join(state)}.")


class GradientGrowth(Growth):
    """|dL/dw|: only its ranking counts, so scaled, clipped and accumulated gradients do as well."""

    def scores(self, gradients: Gradients, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The magnitude of the gradients.

        Raises:
            ValueError: if a gradient is missing or NaN.
        """
        return {name: _present(gradients, name).abs() for name in weights}


class MomentumGrowth(Growth):
    """The magnitude of a running mean of the gradients, m <- decay m + (1 - decay) g, of every step.

    The optimizer's own momentum cannot serve: it is zero wherever a mask is closed.

    Args:
        decay: in [0, 1); 0 is `GradientGrowth`.
    """

    def __init__(self, decay: float = 0.9):
        require("decay", decay, 0.0, 1.0, ends=(True, False))
        self.decay = decay
        self.means: dict[str, Tensor] = {}

    def observe(self, gradients: Gradients) -> None:
        """Move the means."""
        for name, gradient in gradients.items():
            if gradient is not None:
                mean = self.means.get(name)
                start = torch.zeros_like(gradient) if mean is None else mean.to(gradient)
                self.means[name] = start.lerp_(gradient.detach(), 1 - self.decay)

    def scores(self, gradients: Gradients, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The magnitude of the means.

        Raises:
            ValueError: if no gradient was ever seen, or a mean is NaN.
        """
        return {name: _present(self.means, name).abs() for name in weights}

    def state_dict(self) -> dict[str, Any]:
        """The means."""
        return dict(self.means)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with these means."""
        self.means = {name: mean.clone() for name, mean in state.items()}


class RandomGrowth(Growth):
    """Uniform draws.

    Args:
        generator: source of the draws, on the CPU; None is one of seed 0.
    """

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def scores(self, gradients: Gradients, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Uniform draws in float64, where ties are rare."""
        return {
            name: torch.rand(weight.shape, generator=self.generator, dtype=torch.float64).to(weight.device)
            for name, weight in weights.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of the generator."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.generator.set_state(state["generator"])


def regrow(masks: Masks, worth: Mapping[str, Tensor], growth: Mapping[str, Tensor], fraction: float) -> Masks:
    """Exchange a fraction of the live entries of every parameter for as many of the closed ones.

    Args:
        masks: the live entries are True.
        worth: scores of live entries: of each parameter's n, the ceil(fraction n) lowest are closed.
        growth: scores of closed entries, those just closed among them: as many of the highest are opened.
        fraction: in [0, 1).

    Returns:
        Masks with the same number of live entries in every parameter, and the same fill.

    Raises:
        ValueError: if the fraction lies outside [0, 1).
    """
    require("fraction", fraction, 0.0, 1.0, ends=(True, False))
    grown = {}
    for name, mask in masks.items():
        live = int(mask.count_nonzero())
        # 0.1 * 30 is a little more than 3 in floating point: what is a whole number but for rounding stays one.
        exchanged = min(math.ceil(fraction * live - 1e-9), live)
        kept = highest(worth[name], live - exchanged, mask)
        grown[name] = kept | highest(growth[name], exchanged, ~kept)
    return Masks(grown, masks.fill)


def _present(gradients: Gradients, name: str) -> Tensor:
    gradient = gradients.get(name)
    if gradient is None:
        raise ValueError(
            f"Nothing to grow by: {name!r} has no gradient. Step after loss.backward() and before zero_grad()."
        )
    if unknown := int(gradient.isnan().sum()):
        raise ValueError(f"The gradient of {name!r} is NaN at {unknown} of {gradient.numel()} entries.")
    return gradient.detach()
