"""Feedback weights as large as the forward ones: fixed, learned, or with their signs.

feedback alignment      B fixed, random                                    Lillicrap et al. 2016
Kolen-Pollack           B plastic: grad B = grad W, so W - B decays        Kolen & Pollack 1994; Akrout et al. 2019
                        as (1 - eta lambda)^t under weight decay lambda
sign symmetry           B = |M| sign(W), M constant or random              Liao et al. 2016; Moskovitz et al. 2018
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuropil.learning.feedback.maps import pull_back, weight_gradient
from neuropil.learning.feedback.rule import FeedbackRule, own_name, xavier_uniform
from neuropil.learning.rule import Loss

__all__ = ["FeedbackAlignment", "KolenPollack", "SignSymmetry"]


class FeedbackAlignment(FeedbackRule):
    """Carry errors back through fixed random weights; the forward weights learn to align with them.

    Args:
        net: any module of Linear and Conv layers.
        loss_fn: mean-reduced loss of (output, target).
        layers: as in `FeedbackRule`.
        generator: source of the feedback weights (Xavier uniform); None is one of seed 0, never the global state.

    Raises:
        TypeError: as in `FeedbackRule`.
        ValueError: as in `FeedbackRule`.

    Source: Lillicrap, Cownden, Tweed & Akerman, Nature Communications 7 (2016).
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        layers: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn, layers=layers)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        for name, layer in self.layers.items():
            weight = xavier_uniform(layer.weight.shape, generator, layer.weight.detach())
            self.register_buffer(own_name(name), weight)

    def back_weight(self, name: str) -> Tensor:
        """B of a layer."""
        return self.get_buffer(own_name(name)).to(self.layers[name].weight)


class KolenPollack(FeedbackRule):
    """Learn feedback weights by the forward weights' own updates; weight decay makes the two equal.

    Give the optimizer both, with the same settings: `SGD([*net.parameters(), *rule.parameters()], weight_decay=...)`.
    The difference decays as (1 - rate x decay)^steps under SGD; Adam breaks that.

    Args:
        net: any module of Linear and Conv layers.
        loss_fn: mean-reduced loss of (output, target).
        layers: as in `FeedbackRule`.
        generator: source of the first feedback weights (Xavier uniform); None is one of seed 0, never the global state.

    Raises:
        TypeError: as in `FeedbackRule`.
        ValueError: as in `FeedbackRule`.

    Source: Kolen & Pollack, ICNN (1994); Akrout, Wilson, Humphreys, Lillicrap & Tweed, NeurIPS (2019).
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        layers: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn, layers=layers)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        for name, layer in self.layers.items():
            weight = xavier_uniform(layer.weight.shape, generator, layer.weight.detach())
            self.register_parameter(own_name(name), nn.Parameter(weight))

    def back_weight(self, name: str) -> Tensor:
        """R of a layer."""
        return self.get_parameter(own_name(name))

    def own(self) -> dict[str, list[Tensor]]:
        """R of every layer."""
        return {name: [self.get_parameter(own_name(name))] for name in self.layers}

    def send_back(
        self, name: str, delta: Tensor, h: Tensor, wanted: bool
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """R^T * delta, and delta h^T for R."""
        layer, weight = self.layers[name], self.back_weight(name)
        error = pull_back(layer, weight, delta, h) if wanted else None
        return error, [weight_gradient(layer, weight, delta, h)]


class SignSymmetry(FeedbackRule):
    """Carry errors back through the signs of the forward weights.

    Args:
        net: any module of Linear and Conv layers.
        loss_fn: mean-reduced loss of (output, target).
        magnitude: "uniform" gives every feedback weight the same size (the standard deviation of Xavier's law);
            "random" draws the sizes anew for every batch, as the absolute values of Xavier-uniform weights.
        layers: as in `FeedbackRule`.
        generator: source of random magnitudes; None is one of seed 0, never the global state.

    Raises:
        TypeError: as in `FeedbackRule`.
        ValueError: as in `FeedbackRule`, or if `magnitude` is unknown.

    Source: Liao, Leibo & Poggio, AAAI (2016) (batch-wise random magnitudes); Moskovitz, Litwin-Kumar & Abbott,
    arXiv:1812.06488 (2018) (uniform).
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        magnitude: str = "uniform",
        layers: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn, layers=layers)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        if magnitude not in ("uniform", "random"):
            raise ValueError(f'magnitude must be "uniform" or "random", got {magnitude!r}.')
        self.magnitude, self.generator = magnitude, generator
        for name, layer in self.layers.items():
            self.register_buffer(own_name(name), self._size(layer.weight))

    def start_batch(self) -> None:
        """Draw new sizes where they are random."""
        if self.magnitude == "random":
            for name, layer in self.layers.items():
                self.get_buffer(own_name(name)).copy_(self._size(layer.weight))

    def back_weight(self, name: str) -> Tensor:
        """|M| sign(W) of a layer."""
        weight = self.layers[name].weight
        return self.get_buffer(own_name(name)).to(weight) * weight.detach().sign()

    def _size(self, weight: Tensor) -> Tensor:
        if self.magnitude == "random":
            return xavier_uniform(weight.shape, self.generator, weight.detach()).abs()
        field = weight[0, 0].numel()
        return torch.full((), (2 / (field * (weight.shape[0] + weight.shape[1]))) ** 0.5).to(weight)
