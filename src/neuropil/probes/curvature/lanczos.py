"""One Lanczos iteration, for eigenvalues at the ends of a spectrum and for densities.

From a unit vector q_1 it builds an orthonormal basis Q of the Krylov space of a symmetric matrix C,

    C Q = Q T + beta_m q_(m+1) e_m^T,      T tridiagonal: alpha on the diagonal, beta beside it

and the eigenvalues of T (Ritz values) approach the ends of the spectrum first. In floating point the q lose their
orthogonality just when a Ritz value converges, and copies ("ghosts") of it appear; so every new vector is made
orthogonal to all former ones, twice (Parlett 1998, section 6.9). For y = Q s with T s = theta s the error is known
without another product, ||C y - theta y|| = beta_m |s_m|; it is checked by one.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.neurons.ranges import require_positive
from neuropil.probes.curvature.inputs import drawing
from neuropil.probes.curvature.operators import Symmetric

__all__ = ["Eigen", "Krylov", "Which", "lanczos", "top_eigenvalues"]

Which = Literal["largest", "smallest", "magnitude"]


@dataclass(frozen=True)
class Krylov:
    """What Lanczos found.

    Attributes:
        diagonal: alpha, (steps,), float64.
        off_diagonal: beta, (steps - 1,), float64; 0 where the iteration went on from a new vector.
        basis: Q, (steps, size), orthonormal rows.
        residual: beta_m, the norm of what the basis leaves out; 0 if it spans an invariant space.
    """

    diagonal: Float[Tensor, " steps"]
    off_diagonal: Float[Tensor, " pairs"]
    basis: Float[Tensor, "steps size"]
    residual: float

    def tridiagonal(self) -> Float[Tensor, "steps steps"]:
        """T, float64."""
        return torch.diag(self.diagonal) + torch.diag(self.off_diagonal, 1) + torch.diag(self.off_diagonal, -1)

    def ritz(self) -> tuple[Float[Tensor, " steps"], Float[Tensor, "steps steps"]]:
        """Eigenvalues of T in ascending order, and its eigenvectors as columns, float64."""
        return torch.linalg.eigh(self.tridiagonal())


@dataclass(frozen=True)
class Eigen:
    """Eigenvalues with the evidence for them.

    Attributes:
        values: (k,), float64; the most extreme one first.
        vectors: (k, size), unit rows.
        residuals: ||C v - value v||, (k,), measured by one more product each: an eigenvalue lies so close.
        converged: whether each residual is within the tolerance.
        products: products with C that it took.
    """

    values: Float[Tensor, " k"]
    vectors: Float[Tensor, "k size"]
    residuals: Float[Tensor, " k"]
    converged: bool
    products: int


def _fresh(matrix: Symmetric, basis: Tensor, generator: torch.Generator) -> Tensor:
    """A unit vector at random, orthogonal to the rows of a basis."""
    draw = torch.randn(matrix.size, generator=generator, device=generator.device, dtype=torch.float64)
    vector = draw.to(device=matrix.device, dtype=matrix.dtype)
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
        vector = vector / vector.norm()
    return vector


def _iterate(matrix: Symmetric, steps: int, generator: torch.Generator, start: Tensor | None) -> Iterator[Krylov]:
    """Lanczos, one step at a time."""
    # Room for a few vectors at first: most calls converge long before their limit, and a vector is as large as the net.
    basis = torch.zeros(min(steps, 16), matrix.size, device=matrix.device, dtype=matrix.dtype)
    alphas: list[float] = []
    betas: list[float] = []
    basis[0] = _fresh(matrix, basis[:0], generator) if start is None else start / start.norm()
    scale = 0.0  # of the matrix, as far as it was seen
    for step in range(steps):
        found = matrix @ basis[step]
        if not bool(torch.isfinite(found).all()):
            raise FloatingPointError(f"The product with the matrix is not finite at Lanczos step {step + 1}.")
        alphas.append(float(found.double() @ basis[step].double()))
        norm = float(found.norm())
        for _ in range(2):
            found = found - basis[: step + 1].T @ (basis[: step + 1] @ found)
        beta = float(found.norm())
        scale = max(scale, norm)
        exhausted = beta <= 10 * torch.finfo(matrix.dtype).eps * scale or step + 1 == matrix.size
        so_far = torch.tensor(alphas, dtype=torch.float64), torch.tensor(betas, dtype=torch.float64)
        yield Krylov(*so_far, basis[: step + 1], 0.0 if exhausted else beta)
        if step + 1 == steps:
            return
        betas.append(0.0 if exhausted else beta)
        if step + 1 == len(basis):
            basis = torch.cat([basis, torch.zeros_like(basis)])[:steps]
        # An invariant space is complete: go on in what is orthogonal to it, where other copies of an eigenvalue are.
        basis[step + 1] = _fresh(matrix, basis[: step + 1], generator) if exhausted else found / beta


def _steps(matrix: Symmetric, steps: int, name: str) -> int:
    if steps < 1:
        raise ValueError(f"{name} must be at least 1, got {steps}.")
    return min(steps, matrix.size)


def lanczos(
    matrix: Symmetric,
    steps: int,
    *,
    start: Float[Tensor, " size"] | None = None,
    generator: torch.Generator | None = None,
) -> Krylov:
    """Run Lanczos with full re-orthogonalisation.

    Args:
        matrix: symmetric.
        steps: vectors of the basis; no more than the matrix has rows.
        start: first vector, of any length but 0; None draws one.
        generator: of the draws; None is seed 0.

    Raises:
        ValueError: if steps is less than 1, or `start` is zero or of another size.
        FloatingPointError: if a product is not finite.
    """
    steps = _steps(matrix, steps, "steps")
    if start is not None:
        if start.shape != (matrix.size,) or not float(start.norm()) > 0:
            raise ValueError(
                f"start must be a vector of {matrix.size} entries, not all zero, got {tuple(start.shape)}."
            )
        start = start.to(device=matrix.device, dtype=matrix.dtype)
    *_, last = _iterate(matrix, steps, drawing(generator), start)
    return last


def _order(values: Tensor, which: Which) -> Tensor:
    if which == "largest":
        return values.argsort(descending=True)
    return values.argsort() if which == "smallest" else values.abs().argsort(descending=True)


def _rest_is_alike(krylov: Krylov) -> bool:
    """Whether a vector drawn outside an invariant space was an eigenvector: then so is every other one there."""
    alone = len(krylov.off_diagonal) > 0 and float(krylov.off_diagonal[-1]) == 0
    return alone and krylov.residual == 0


def _no_better(value: Tensor, than: Tensor, which: Which) -> bool:
    if which == "magnitude":
        return bool(value.abs() <= than.abs())
    return bool(value <= than) if which == "largest" else bool(value >= than)


def _search(
    matrix: Symmetric, k: int, which: Which, limit: int, tol: float, generator: torch.Generator
) -> tuple[Krylov, Tensor, Tensor]:
    """Run Lanczos until the k best Ritz values have settled; gives all of them and the eigenvectors of T."""
    iteration = _iterate(matrix, limit, generator, None)
    while True:
        krylov = next(iteration)
        if len(krylov.diagonal) < k:
            continue
        values, within = krylov.ritz()
        best = _order(values, which)[:k]
        # Half the tolerance, as rounding adds to what is measured in the end. An invariant space settles nothing: the
        # ends of the spectrum may lie outside.
        estimate = krylov.residual * within[-1, best].abs().max()
        settled = krylov.residual > 0 and bool(estimate <= 0.5 * tol * values.abs().max())
        settled |= _rest_is_alike(krylov) and _no_better(krylov.diagonal[-1], values[best[-1]], which)
        if settled or len(krylov.diagonal) == limit:
            return krylov, values, within


def top_eigenvalues(
    matrix: Symmetric | Float[Tensor, "size size"],
    k: int = 1,
    *,
    which: Which = "largest",
    iters: int = 100,
    tol: float = 1e-3,
    generator: torch.Generator | None = None,
) -> Eigen:
    """Find eigenvalues at an end of a spectrum, and their eigenvectors.

    One start vector sees one direction of every eigenspace: of an eigenvalue that occurs more than once, further copies
    are found only once the rest of the space that the start reaches is exhausted.

    Args:
        matrix: symmetric: a `Hessian`, a `GaussNewton`, or a tensor.
        k: how many.
        which: "largest" or "smallest" value, or largest "magnitude".
        iters: products at most, each a pass over the data; as many vectors are held.
        tol: of the residual relative to the largest eigenvalue in magnitude.
        generator: of the start; None is seed 0.

    Raises:
        ValueError: if k is less than 1 or more than `iters` or the matrix has rows, or tol is not positive.
        FloatingPointError: if a product is not finite.

    Warns:
        RuntimeWarning: if the tolerance is not reached within `iters` products; the residuals tell how close it is.
    """
    operator = Symmetric.dense(matrix) if isinstance(matrix, Tensor) else matrix
    require_positive(tol=tol)
    limit = _steps(operator, iters, "iters")
    if not 1 <= k <= limit:
        raise ValueError(f"k must be at least 1 and at most {limit} (iters, rows of the matrix), got {k}.")
    krylov, values, within = _search(operator, k, which, limit, tol, drawing(generator))
    scale = float(values.abs().max())
    best = _order(values, which)[:k]
    vectors = within[:, best].T.to(krylov.basis) @ krylov.basis
    vectors = vectors / vectors.norm(dim=1, keepdim=True)
    gaps = (operator @ vectors.T).T.double() - values[best].to(vectors.device)[:, None] * vectors.double()
    residuals = gaps.norm(dim=1).cpu()
    # float32 sums of many entries do not come closer than this.
    floor = 100 * torch.finfo(operator.dtype).eps * scale
    converged = bool((residuals <= max(tol * scale, floor)).all())
    products = len(krylov.diagonal) + k
    if not converged:
        warnings.warn(
            f"Lanczos has not converged after {len(krylov.diagonal)} products: residual {float(residuals.max()):.2g} "
            f"of an eigenvalue {float(values[best[0]]):.2g}; raise iters (now {iters}) or tol (now {tol:g}).",
            RuntimeWarning,
            stacklevel=2,
        )
    return Eigen(values[best], vectors, residuals, converged, products)
