"""Fully test-time adaptation: a trained network meets a shifted stream without labels, and adapts while it answers.

    adapter = Tent(net)
    for x in stream: logits = adapter.adapt(x)      update on the batch, then answer the same batch: two passes
    adapter.reset()                                 the source network again, bit for bit

All adapters follow one protocol, or a comparison would be unfair: normalisation takes the statistics of the batch (the
running ones are neither used nor moved), everything else is in evaluation mode, and the answer is that of the network
after its update on this batch.

    L = -(1/B) sum_b sum_c p_bc log p_bc            entropy of the answers, which Tent lowers
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["Adapter", "BatchNormAdapt", "MakeOptimizer", "Tent", "batch_statistics", "descend", "entropy"]

MakeOptimizer = Callable[..., torch.optim.Optimizer]
"""Makes an optimizer from a list of parameters and `lr`."""


def entropy(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Mean entropy of the predicted distributions, in nats: 0 for certain answers, log(classes) for none.

    Args:
        logits: unnormalised log-probabilities.

    Source: Wang, Shelhamer, Liu, Olshausen & Darrell, ICLR 2021, eq. 1.
    """
    log_p = torch.log_softmax(logits, 1)
    return -(log_p.exp() * log_p).sum(1).mean()


def batch_norms(net: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms of a net by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm)}


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Evaluation mode, but batch norms use the statistics of the batch and leave the running ones alone.

    Modes are as before afterwards.
    """
    modes = [(module, module.training) for module in net.modules()]
    tracking = [(norm, norm.track_running_stats) for norm in batch_norms(net).values()]
    try:
        net.eval()
        for norm, _ in tracking:
            norm.training, norm.track_running_stats = True, False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for norm, tracks in tracking:
            norm.track_running_stats = tracks


def descend(loss: Tensor, parameters: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """One step of an optimizer down the gradient of a loss, which no other parameter's `.grad` hears of.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(
            f"The entropy of the answers is {float(loss.detach())}: reset, or lower the learning rate."
        )
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    kept = [parameter.grad for parameter in parameters]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient


@contextmanager
def trainable(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Let parameters of a frozen net learn inside; gradients are recorded whatever the caller's mode."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        with torch.enable_grad():
            for parameter in parameters:
                parameter.requires_grad_(True)
            yield
    finally:
        for parameter, flag in zip(parameters, before, strict=True):
            parameter.requires_grad_(flag)


class Adapter(ABC):
    """A network on a stream.

    Args:
        net: a trained classifier; it is changed in place as it adapts.

    Raises:
        TypeError: if `net` is no module.
    """

    def __init__(self, net: nn.Module):
        if not isinstance(net, nn.Module):
            raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}.")
        self.net = net
        self._source = deepcopy(net.state_dict())

    def adapt(self, x: Tensor) -> Tensor:
        """Update on a batch, then answer it.

        Args:
            x: inputs, (batch, ...).

        Returns:
            Logits of the network after the update, (batch, classes), without a graph.

        Raises:
            ValueError: if normalisation has a single sample to take statistics from, or none.
            FloatingPointError: if the answers are no longer finite.
        """
        self._check(x)
        with batch_statistics(self.net):
            self.update(x)
        return self.predict(x)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Answer a batch as the network is, with the statistics of the batch; nothing is changed."""
        self._check(x)
        with batch_statistics(self.net):
            return self.net(x)

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """Change the network by a batch; batch statistics are in force.

        Args:
            x: inputs, (batch, ...).
        """

    def reset(self) -> None:
        """Make the network what it was when the adapter was made, and forget what optimizers remember."""
        self.net.load_state_dict(self._source)

    def _check(self, x: Tensor) -> None:
        if not len(x) or (len(x) < 2 and batch_norms(self.net)):
            raise ValueError(f"Batch statistics need at least 2 samples, got {len(x)}.")


class BatchNormAdapt(Adapter):
    """Statistics of the batch, and nothing else: what nearly all of the gain of the others comes from.

    Args:
        net: a trained classifier with batch norm.

    Raises:
        ValueError: if it has none.

    Source: Schneider et al., NeurIPS 2020; Nado et al., arXiv 2006.10963 (2020).
    """

    def __init__(self, net: nn.Module):
        super().__init__(net)
        _required(net, type(self).__name__)

    def update(self, x: Tensor) -> None:
        """Nothing to learn."""


class Tent(Adapter):
    """Entropy minimisation over the scales and shifts of batch norms.

    Args:
        net: a trained classifier with batch norm.
        lr: learning rate.
        layers: names of the batch norms that learn; None is all of them.
        optimizer: makes the optimizer from parameters and `lr`.

    Raises:
        ValueError: if there is no batch norm with scale and shift, or none of the given name.

    Source: Wang, Shelhamer, Liu, Olshausen & Darrell, ICLR 2021.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        lr: float = 1e-3,
        layers: Sequence[str] | None = None,
        optimizer: MakeOptimizer = torch.optim.Adam,
    ):
        super().__init__(net)
        norms = _required(net, type(self).__name__)
        chosen = list(norms) if layers is None else list(layers)
        for name in chosen:
            if name not in norms:
                raise ValueError(f"The net has no batch norm {name!r}; it has {', '.join(norms)}.")
        self.parameters = [p for name in chosen for p in (norms[name].weight, norms[name].bias) if p is not None]
        if not self.parameters:
            raise ValueError("The batch norms have neither scale nor shift (affine=False): Tent has nothing to learn.")
        self._make: Callable[[], Any] = lambda: optimizer(self.parameters, lr=lr)
        self.optimizer = self._make()

    def update(self, x: Tensor) -> None:
        """One step down the entropy of the answers."""
        with trainable(self.parameters):
            descend(entropy(self.net(x)), self.parameters, self.optimizer)

    def reset(self) -> None:
        """Make the network what it was, with a fresh optimizer."""
        super().reset()
        self.optimizer = self._make()


def _required(net: nn.Module, adapter: str) -> dict[str, _BatchNorm]:
    norms = batch_norms(net)
    if not norms:
        raise ValueError(f"{adapter} adapts batch norms, and the net has none.")
    return norms
