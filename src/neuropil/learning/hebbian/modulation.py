"""Neuro-modulated Hebbian learning: the first layer listens to its input, a thin layer behind it to the answers.

For every batch x of a stream:

    h, p   <-  one pass of the network                   h: input of the Hebbian layer, p: its answers
    W      <-  W + eta_h mean y (h - r w)                feed-forward, see `rules`
    g, s   <-  Adam on the entropy of p                  neuro-modulator m(u) = g u + s, a scale and shift a channel
    answer <-  a second pass

Both updates belong to the first pass; all other weights stay those of the source. This is a reconstruction: the paper's
temperature and rates, and where exactly its modulator stands, are not known to us.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.learning.hebbian.adaptation import Adapter, MakeOptimizer, batch_norms, descend, entropy, trainable
from neuropil.learning.hebbian.rules import HebbianRule, SoftHebb

__all__ = ["ChannelAffine", "NeuroModulatedHebbian"]


class ChannelAffine(nn.Module):
    """m(h) = g h + s, one scale and one shift a channel; starts as the identity.

    Args:
        channels: number of them.
        axis: of the channels in h.

    Raises:
        ValueError: if there are none.
    """

    def __init__(self, channels: int, axis: int = 1):
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}.")
        self.axis = axis
        self.scale = nn.Parameter(torch.ones(channels))
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, h: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
        """Scale and shift.

        Raises:
            ValueError: if h has another number of channels.
        """
        if h.shape[self.axis] != len(self.scale):
            raise ValueError(f"h has shape {tuple(h.shape)}: wanted {len(self.scale)} channels on axis {self.axis}.")
        shape = [1] * h.dim()
        shape[self.axis] = -1
        return self.scale.view(shape) * h + self.shift.view(shape)


class NeuroModulatedHebbian(Adapter):
    """Adapt a layer by a Hebbian rule and a modulator behind it by the entropy of the answers.

    Args:
        net: a trained classifier.
        first: name of the layer that learns by the rule, a Linear or Conv2d; called once in a pass.
        modulator: name of the batch norm whose scale and shift modulate; None puts a `ChannelAffine` at the output of
            `first`, for passes of this adapter only. A batch norm right behind would undo that one: name it instead.
        rule: makes the rule from the layer, e.g. `partial(SoftHebb, norm="source")`. Without a batch norm right behind
            the layer prefer `norm="source"`: the decay moves every filter to its length, and nothing hides it.
        lr_hebb: eta_h; 0 leaves the modulator alone at work.
        lr_modulator: learning rate of the modulator; 0 leaves the rule alone at work.
        optimizer: of the Hebbian layer, made from parameters and `lr`.
        modulator_optimizer: of the modulator.

    Raises:
        TypeError: if `first` is neither a Linear nor a Conv2d.
        ValueError: if a name is not the net's, the modulator is no batch norm with scale and shift, or a rate is
            negative.

    Source: Tang et al., Neuro-modulated Hebbian learning for fully test-time adaptation, CVPR 2023 (reconstructed).
    """

    def __init__(
        self,
        net: nn.Module,
        first: str = "conv1",
        modulator: str | None = "bn1",
        *,
        rule: Callable[[nn.Module], HebbianRule] = SoftHebb,
        lr_hebb: float = 1e-2,
        lr_modulator: float = 1e-2,
        optimizer: MakeOptimizer = torch.optim.SGD,
        modulator_optimizer: MakeOptimizer = torch.optim.Adam,
    ):
        super().__init__(net)
        modules = dict(net.named_modules())
        if first not in modules:
            raise ValueError(f"The net has no layer {first!r}; it has {', '.join(name for name in modules if name)}.")
        for name, rate in (("lr_hebb", lr_hebb), ("lr_modulator", lr_modulator)):
            if not 0 <= rate < float("inf"):
                raise ValueError(f"{name} must be at least 0 and finite, got {rate}.")
        self.first = modules[first]
        self.rule = rule(self.first)
        self.lr_hebb, self.lr_modulator = lr_hebb, lr_modulator
        self.affine: ChannelAffine | None = None
        if modulator is None:
            self.affine = _behind(self.rule.net)
            self.parameters = list(self.affine.parameters())
        else:
            self.parameters = _scale_and_shift(net, modulator)
        self._make: Callable[[], Any] = lambda: (
            optimizer([self.rule.net.weight], lr=lr_hebb),
            modulator_optimizer(self.parameters, lr=lr_modulator),
        )
        self.optimizers = self._make()

    def update(self, x: Tensor) -> None:
        """One pass, then both updates from it."""
        seen: list[Tensor] = []
        hook = self.first.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        with self._modulated(), trainable(self.parameters):
            try:
                uncertainty = entropy(self.net(x))
            finally:
                hook.remove()
            if len(seen) != 1:
                raise ValueError(f"The Hebbian layer was called {len(seen)} times in a pass, wanted once.")
            if self.lr_modulator:
                descend(uncertainty, self.parameters, self.optimizers[1])
        if self.lr_hebb:
            self._learn(seen[0], self.optimizers[0])

    def predict(self, x: Tensor) -> Tensor:
        """Answer a batch as the network and its modulator are; nothing is changed."""
        with self._modulated():
            return super().predict(x)

    def reset(self) -> None:
        """Make the network what it was, with the identity as modulator and fresh optimizers."""
        super().reset()
        if self.affine is not None:
            with torch.no_grad():
                self.affine.scale.fill_(1.0)
                self.affine.shift.zero_()
        self.optimizers = self._make()

    def _learn(self, h: Tensor, optimizer: torch.optim.Optimizer) -> None:
        weight = self.rule.net.weight
        kept, weight.grad = weight.grad, None
        with trainable([weight]):
            self.rule.learn(h, None, optimizer)
        weight.grad = kept

    @contextmanager
    def _modulated(self) -> Iterator[None]:
        if self.affine is None:
            yield
            return
        affine = self.affine
        hook = self.first.register_forward_hook(lambda _, __, output: affine(output))
        try:
            yield
        finally:
            hook.remove()


def _behind(layer: nn.Linear | nn.Conv2d) -> ChannelAffine:
    affine = ChannelAffine(len(layer.weight), axis=-1 if isinstance(layer, nn.Linear) else 1)
    return affine.to(layer.weight)


def _scale_and_shift(net: nn.Module, name: str) -> list[nn.Parameter]:
    norms = batch_norms(net)
    if name not in norms:
        there = ", ".join(norms) or "none"
        raise ValueError(f"The modulator must be a batch norm of the net, got {name!r}; there are: {there}.")
    parameters = [p for p in (norms[name].weight, norms[name].bias) if p is not None]
    if not parameters:
        raise ValueError(f"Batch norm {name!r} has neither scale nor shift (affine=False): it cannot modulate.")
    return parameters
