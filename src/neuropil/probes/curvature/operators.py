"""Matrices in the space of the parameters that are too large to write down, known by what they do to a vector.

For the loss L(theta) = sum_n l(f(x_n; theta), y_n) / N over all examples of one or several batches,

    Hessian        H v = d(dL/dtheta . v)/dtheta                      two passes back (Pearlmutter 1994)
    Gauss-Newton   G v = sum_n J_n^T (d2l/df2) J_n v / N              J_n = df(x_n)/dtheta (Schraudolph 2002)

J v is a derivative of J^T u in u, so that nothing but reverse differentiation is asked of a network.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.autograd import grad

from neuropil.probes.curvature.inputs import Batch, Batches, Loss, as_batches, call, chosen, flatten, quiet, split

__all__ = ["Curvature", "GaussNewton", "Hessian", "Symmetric", "ggn", "hvp"]

Product = Callable[[Tensor], Tensor]


class Symmetric:
    """A symmetric matrix, known by its product with a vector.

    Args:
        product: of a vector, (size,) -> (size,).
        size: rows and columns.
        dtype: of the vectors.
        device: of the vectors.

    Raises:
        ValueError: if size is less than 1.
    """

    def __init__(
        self,
        product: Product,
        size: int,
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ):
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        self._product = product
        self.size = size
        self.dtype = dtype
        self.device = torch.device(device)

    @staticmethod
    def dense(matrix: Float[Tensor, "size size"]) -> "Symmetric":
        """A matrix that is written down, taken to be symmetric."""
        return Symmetric(lambda vector: matrix @ vector, len(matrix), dtype=matrix.dtype, device=matrix.device)

    def __matmul__(self, other: Float[Tensor, "size *columns"]) -> Float[Tensor, "size *columns"]:
        if other.shape[0] != self.size or other.dim() > 2:
            raise ValueError(f"The operand has shape {tuple(other.shape)}, the matrix is {self.size} x {self.size}.")
        columns = other.to(device=self.device, dtype=self.dtype).reshape(self.size, -1)
        return self._times(columns).view(other.shape)

    def _times(self, columns: Float[Tensor, "size columns"]) -> Float[Tensor, "size columns"]:
        return torch.stack([self._product(column) for column in columns.unbind(1)], 1)

    def to_dense(self) -> Float[Tensor, "size size"]:
        """Write the matrix down: `size` products; for small ones."""
        return self @ torch.eye(self.size, dtype=self.dtype, device=self.device)

    def linear_operator(self) -> LinearOperator:
        """Hand the matrix to scipy, e.g. to `scipy.sparse.linalg.eigsh` or `cg`; numpy in and out, on the CPU."""

        def product(array: np.ndarray) -> np.ndarray:
            vectors = torch.from_numpy(np.ascontiguousarray(array))
            found = self @ (vectors.reshape(-1) if vectors.dim() == 1 or vectors.shape[1] == 1 else vectors)
            return found.cpu().numpy().reshape(array.shape)

        dtype = np.dtype(str(self.dtype).removeprefix("torch."))
        shape = (self.size, self.size)
        # The signature of the constructor is scipy's __new__, which the type checker does not follow.
        return LinearOperator(shape, matvec=product, rmatvec=product, matmat=product, dtype=dtype)  # pyright: ignore


class Curvature(Symmetric, ABC):
    """A curvature of a network's loss, as a symmetric matrix over its parameters.

    Every product passes once over all batches, so that one batch at a time is held. The network is left as it was:
    buffers too, though batch statistics, in training mode, are part of the loss.

    Args:
        net: any module that returns one tensor.
        batches: one (x, y), or several that can be gone through again. The mean over all examples counts, whatever
            the sizes of the batches.
        loss_fn: mean-reduced loss of (output, target).
        params: qualified names; None: all that require a gradient.

    Attributes:
        params: the parameters by name, in the order of the vector.

    Raises:
        ValueError: if a parameter is unknown, a dropout draws, or batches are empty.
        TypeError: if batches can be gone through only once.
    """

    def __init__(self, net: nn.Module, batches: Batches, loss_fn: Loss, *, params: Sequence[str] | None = None):
        self.params = chosen(net, params)
        first = next(iter(self.params.values()))
        size = sum(parameter.numel() for parameter in self.params.values())
        super().__init__(
            lambda vector: self._times(vector[:, None])[:, 0], size, dtype=first.dtype, device=first.device
        )
        self.net = net
        self.loss_fn = loss_fn
        self.batches = as_batches(batches)

    @abstractmethod
    def _products(self, batch: Batch) -> Product:
        """Prepare one batch; returns the product with one vector."""

    def _times(self, columns: Float[Tensor, "size columns"]) -> Float[Tensor, "size columns"]:
        total, examples = torch.zeros_like(columns), 0
        with quiet(self.net):
            for batch in self.batches:
                product, count = self._products(batch), len(batch[1])
                # All columns share one pass forward.
                found = torch.stack([product(column).detach() for column in columns.unbind(1)], 1)
                total += count * found
                examples += count
        return total / examples

    def split(self, vector: Float[Tensor, " size"]) -> dict[str, Tensor]:
        """Cut a vector into tensors of the parameters' shapes, by name."""
        return split(vector, self.params)

    def quadratic(self, vector: Float[Tensor, " size"]) -> float:
        """v^T C v: the curvature of the loss along a direction, twice its second-order rise for a step v."""
        return float(vector.to(self.dtype).to(self.device) @ (self @ vector))


class Hessian(Curvature):
    """The Hessian of the loss; arguments as of `Curvature`."""

    def _products(self, batch: Batch) -> Product:
        x, y = batch
        values = list(self.params.values())
        loss = self.loss_fn(call(self.net, x), y)
        slopes = _filled(grad(loss, values, create_graph=True, allow_unused=True), values)

        def product(vector: Tensor) -> Tensor:
            pieces = split(vector, self.params).values()
            terms = [slope * piece for slope, piece in zip(slopes, pieces, strict=True) if slope.requires_grad]
            if not terms:  # the loss is linear in all of them
                return torch.zeros_like(vector)
            along = sum((term.sum() for term in terms), start=loss.new_zeros(()))
            return flatten(_filled(grad(along, values, retain_graph=True, allow_unused=True), values))

        return product


class GaussNewton(Curvature):
    """The generalised Gauss-Newton matrix of the loss; arguments as of `Curvature`.

    Never negative for a loss that is convex in the output. For cross-entropy and squared error it is the Fisher
    information of the model, so its products with a vector are those of the true Fisher.
    """

    def _products(self, batch: Batch) -> Product:
        x, y = batch
        values = list(self.params.values())
        output = call(self.net, x)
        if not output.requires_grad:
            return torch.zeros_like
        dual = torch.zeros_like(output, requires_grad=True)
        back = grad(output, values, dual, create_graph=True, allow_unused=True)
        leaf = output.detach().requires_grad_()
        (slope,) = grad(self.loss_fn(leaf, y), leaf, create_graph=True)

        def product(vector: Tensor) -> Tensor:
            pieces = split(vector, self.params).values()
            used = [(b, piece) for b, piece in zip(back, pieces, strict=True) if b is not None]
            (forward,) = grad([b for b, _ in used], dual, [piece for _, piece in used], retain_graph=True)
            if not slope.requires_grad:  # a loss that is linear in the output
                return torch.zeros_like(vector)
            (bent,) = grad(slope, leaf, forward, retain_graph=True)
            return flatten(_filled(grad(output, values, bent, retain_graph=True, allow_unused=True), values))

        return product


def _filled(found: Sequence[Tensor | None], like: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(value) if slope is None else slope for slope, value in zip(found, like, strict=True)]


def hvp(
    net: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    vector: Float[Tensor, "size *columns"],
    *,
    params: Sequence[str] | None = None,
) -> Float[Tensor, "size *columns"]:
    """Multiply the Hessian of the loss with one or several vectors; arguments as of `Curvature`."""
    return Hessian(net, batches, loss_fn, params=params) @ vector


def ggn(
    net: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    vector: Float[Tensor, "size *columns"],
    *,
    params: Sequence[str] | None = None,
) -> Float[Tensor, "size *columns"]:
    """Multiply the Gauss-Newton matrix of the loss with one or several vectors; arguments as of `Curvature`."""
    return GaussNewton(net, batches, loss_fn, params=params) @ vector
