"""Differentiable search: architecture and weights by gradient, in turns (DARTS).

    every edge gives  sum_o softmax(alpha)_o o(h);      minimise_alpha L_val(w*(alpha), alpha),
                                                        w*(alpha) = argmin_w L_train(w, alpha)

    first order    d = grad_alpha L_val(w, alpha)
    second order   w' = w - xi grad_w L_train(w, alpha),   v = grad_w' L_val(w', alpha),
                   e = 0.01 / |v|,   w+- = w +- e v,
                   d = grad_alpha L_val(w', alpha) - xi (grad_alpha L_train(w+) - grad_alpha L_train(w-)) / (2 e)

then alpha is stepped along d on validation data, and w on training data. At the end each edge keeps its strongest
operation that is not "zero", and each node its strongest edges.

A sharp validation loss in alpha foretells the collapse to skip connections: watch the largest eigenvalue of its Hessian
and stop when it has grown by a factor of 1.3 (Zela et al., ICLR 2020).

Source: Liu, Simonyan & Yang, ICLR 2019 (arXiv 1806.09055), eqs 3 to 8; White et al. 2023 (arXiv 2301.08727), section 4.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.neurons.ranges import require
from neuropil.structure.search.spaces import Architecture
from neuropil.structure.search.supernet import Loss, Supernet

__all__ = ["Darts"]

Batch = tuple[Tensor, Tensor]


class Darts:
    """A supernet whose mixture is learned along with its weights.

    Args:
        supernet: whose weights are trained.
        loss_fn: mean-reduced loss of (logits, targets).
        optimizer: of the supernet's parameters; None is SGD at 0.025 with momentum 0.9 and decay 3e-4.
        make_alpha_optimizer: from a list with alpha to its optimizer; None is Adam at 3e-4 with betas (0.5, 0.999) and
            decay 1e-3.
        unroll: xi, the step of the second order; 0 is the first order.
        generator: of the initial alpha, 1e-3 times standard normal; None starts at 0.

    Attributes:
        alpha: (edges, operations), before the softmax.

    Raises:
        ValueError: if `unroll` is negative.
    """

    def __init__(
        self,
        supernet: Supernet,
        loss_fn: Loss,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        make_alpha_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
        unroll: float = 0.0,
        generator: torch.Generator | None = None,
    ):
        require("unroll", unroll, 0.0, float("inf"), ends=(True, False))
        self.supernet, self.loss_fn, self.unroll = supernet, loss_fn, unroll
        weights = list(supernet.parameters())
        self.optimizer = optimizer or torch.optim.SGD(weights, lr=0.025, momentum=0.9, weight_decay=3e-4)
        space = supernet.space
        start = torch.zeros(len(space.edges), len(space.ops))
        if generator is not None:
            start = 1e-3 * torch.randn(start.shape, generator=generator)
        self.alpha = nn.Parameter(start.to(weights[0]) if weights else start)
        make = make_alpha_optimizer or (
            lambda alphas: torch.optim.Adam(alphas, lr=3e-4, betas=(0.5, 0.999), weight_decay=1e-3)
        )
        self.alpha_optimizer = make([self.alpha])

    def loss(self, batch: Batch) -> Tensor:
        """Loss of the mixture."""
        return self.loss_fn(self.supernet(batch[0], mixture=self.alpha.softmax(1)), batch[1])

    def step(self, train_batch: Batch, val_batch: Batch) -> tuple[float, float]:
        """One step of alpha on validation data, then one of the weights on training data.

        Args:
            train_batch: inputs and targets.
            val_batch: the same, of data that the weights are not trained on.

        Returns:
            Training loss after the step of alpha, and validation loss before it (second order: after the trial step).

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        self.alpha_optimizer.zero_grad()
        direction, val_loss = self.alpha_gradient(train_batch, val_batch)
        self.alpha.grad = direction
        self.alpha_optimizer.step()
        self.optimizer.zero_grad()
        train_loss = self.loss(train_batch)
        _finite("training", train_loss)
        weights = self._weights()
        for weight, gradient in zip(weights, self._gradients(train_loss, weights), strict=True):
            weight.grad = gradient
        self.optimizer.step()
        return train_loss.item(), val_loss

    def alpha_gradient(self, train_batch: Batch, val_batch: Batch) -> tuple[Float[Tensor, "edges operations"], float]:
        """The direction d of the module's head, and the validation loss; weights and alpha stay as they are.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        weights = self._weights()
        if self.unroll == 0:
            loss = self.loss(val_batch)
            _finite("validation", loss)
            return torch.autograd.grad(loss, self.alpha)[0], loss.item()
        train_loss = self.loss(train_batch)
        _finite("training", train_loss)
        with _moved(weights, self._gradients(train_loss, weights), -self.unroll):
            loss = self.loss(val_batch)
            _finite("validation", loss)
            direction, *v = self._gradients(loss, [self.alpha, *weights])
        norm = torch.sqrt(sum((gradient.square().sum() for gradient in v), start=torch.zeros(()).to(self.alpha)))
        if norm == 0:
            return direction, loss.item()
        epsilon = 0.01 / float(norm)
        sides = []
        for sign in (1, -1):
            with _moved(weights, v, sign * epsilon):
                sides.append(torch.autograd.grad(self.loss(train_batch), self.alpha)[0])
        return direction - self.unroll * (sides[0] - sides[1]) / (2 * epsilon), loss.item()

    def sharpness(self, batches: Iterable[Batch]) -> float:
        """Largest eigenvalue, by its size, of the Hessian of the mean loss by alpha: exact, alpha is small.

        Args:
            batches: of validation data, weighted by their numbers of samples.

        Raises:
            ValueError: if there are no batches.
        """
        total, seen = self.alpha.new_zeros(self.alpha.numel(), self.alpha.numel()), 0
        for batch in batches:
            (slope,) = torch.autograd.grad(self.loss(batch), self.alpha, create_graph=True)
            rows = [torch.autograd.grad(entry, self.alpha, retain_graph=True)[0].flatten() for entry in slope.flatten()]
            total, seen = total + len(batch[1]) * torch.stack(rows), seen + len(batch[1])
        if not seen:
            raise ValueError("sharpness needs a batch, there was none.")
        eigenvalues = torch.linalg.eigvalsh((total + total.T) / (2 * seen))
        return float(eigenvalues[eigenvalues.abs().argmax()])

    def discretise(self, incoming: int | None = 2) -> Architecture:
        """The architecture that alpha prefers.

        Args:
            incoming: searched edges that each node keeps, those with the strongest operation; the others get "zero".
                None keeps all, as a space without a zero does.

        Raises:
            ValueError: if `incoming` is less than 1.
        """
        if incoming is not None and incoming < 1:
            raise ValueError(f"incoming must be at least 1 or None, got {incoming}.")
        space = self.supernet.space
        shares = self.alpha.detach().softmax(1)
        zero = None if space.zero is None else space.ops.index(space.zero)
        if zero is not None:
            shares[:, zero] = -1
        strengths, chosen = (part.tolist() for part in shares.max(1))
        if zero is not None and incoming is not None:
            for node in {to for _, to in space.edges}:
                entering = [at for at, (_, to) in enumerate(space.edges) if to == node]
                for at in sorted(entering, key=lambda at: -strengths[at])[incoming:]:
                    chosen[at] = zero
        return tuple(chosen)

    def _weights(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.supernet.parameters() if parameter.requires_grad]

    @staticmethod
    def _gradients(loss: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
        gradients = torch.autograd.grad(loss, list(of), allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(of, gradients, strict=True)]


@contextmanager
def _moved(weights: Sequence[Tensor], along: Sequence[Tensor], by: float) -> Iterator[None]:
    """Weights moved along a direction, and put back to the last bit."""
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight, direction in zip(weights, along, strict=True):
            weight.add_(direction, alpha=by)
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in zip(weights, kept, strict=True):
                weight.copy_(value)


def _finite(which: str, loss: Tensor) -> None:
    if not loss.isfinite():
        raise FloatingPointError(f"The {which} loss is {loss.item()}.")
