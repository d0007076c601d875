"""How sharp a minimum is, and how the eigenvalues of the Hessian are spread.

Sharpness is the largest eigenvalue of the Hessian of the loss: gradient descent with step eta is stable along its
eigenvector below 2/eta. The spectral radius is the largest in magnitude, which differs where the loss bends downwards.

The density of all eigenvalues is estimated by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017; Ghorbani,
Krishnan & Xiao 2019): Lanczos from a random unit vector v gives Ritz values theta_i and the first entries s_i of the
eigenvectors of T, and

    v^T f(H) v  ~  sum_i s_i^2 f(theta_i),      exact for polynomials f of degree up to 2 m - 1

whose mean over v is tr f(H) / size: nodes theta_i with weights s_i^2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.neurons.ranges import require_positive
from neuropil.probes.curvature.inputs import Batches, Loss, drawing
from neuropil.probes.curvature.lanczos import lanczos, top_eigenvalues
from neuropil.probes.curvature.operators import Curvature, GaussNewton, Hessian, Symmetric

__all__ = ["Density", "Kind", "density", "hessian_density", "sharpness", "spectral_radius"]

Kind = Literal["hessian", "ggn"]


def _curvature(kind: Kind, net: nn.Module, batches: Batches, loss_fn: Loss, params: Sequence[str] | None) -> Curvature:
    if kind not in ("hessian", "ggn"):
        raise ValueError(f'kind must be "hessian" or "ggn", got {kind!r}.')
    return (Hessian if kind == "hessian" else GaussNewton)(net, batches, loss_fn, params=params)


def sharpness(
    net: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    iters: int = 100,
    tol: float = 1e-3,
    kind: Kind = "hessian",
    params: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Find the largest eigenvalue of the curvature of a loss, by Lanczos.

    Args:
        net: any module that returns one tensor.
        batches: one (x, y), or several that can be gone through again.
        loss_fn: mean-reduced loss of (output, target).
        iters: products at most, each a pass over the data.
        tol: of the residual, relative.
        kind: "hessian" or "ggn" (Gauss-Newton).
        params: qualified names; None: all that require a gradient.
        generator: of the start; None is seed 0.

    Warns:
        RuntimeWarning: if the tolerance is not reached.
    """
    matrix = _curvature(kind, net, batches, loss_fn, params)
    return float(top_eigenvalues(matrix, which="largest", iters=iters, tol=tol, generator=generator).values[0])


def spectral_radius(
    net: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    iters: int = 100,
    tol: float = 1e-3,
    kind: Kind = "hessian",
    params: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> float:
    """Find the largest magnitude of an eigenvalue of the curvature of a loss; arguments as of `sharpness`."""
    matrix = _curvature(kind, net, batches, loss_fn, params)
    found = top_eigenvalues(matrix, which="magnitude", iters=iters, tol=tol, generator=generator)
    return float(found.values[0].abs())


@dataclass(frozen=True)
class Density:
    """An estimate of the density of eigenvalues.

    Attributes:
        nodes: Ritz values, (probes, steps), float64.
        weights: of each node, (probes, steps), float64; they sum to 1 for every probe.
        size: how many eigenvalues there are.
    """

    nodes: Float[Tensor, "probes steps"]
    weights: Float[Tensor, "probes steps"]
    size: int

    def moment(self, power: int) -> float:
        """Mean of the eigenvalues to a power: of 1, trace / size."""
        return float((self.weights * self.nodes**power).sum(1).mean())

    def cumulative(self, grid: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
        """Fraction of the eigenvalues at or below each point."""
        nodes, weights = self.nodes.flatten(), self.weights.flatten() / len(self.nodes)
        order = nodes.argsort()
        steps = torch.cat([weights.new_zeros(1), weights[order].cumsum(0)])
        return steps[torch.searchsorted(nodes[order], grid.to(nodes), right=True)]

    def smooth(
        self, grid: Float[Tensor, " points"] | None = None, *, width: float | None = None
    ) -> tuple[Float[Tensor, " points"], Float[Tensor, " points"]]:
        """Blur the nodes by a Gaussian.

        Args:
            grid: where; None: 512 points a little beyond the ends of the spectrum.
            width: standard deviation; None: 1% of the spectrum's range.

        Returns:
            The grid and the density on it.
        """
        low, high = float(self.nodes.min()), float(self.nodes.max())
        # Where all eigenvalues are alike there is no range: their own size, or 1, sets the scale.
        reach = max(high - low, 1e-6 * max(abs(low), abs(high))) or 1.0
        width = 0.01 * reach if width is None else width
        require_positive(width=width)
        if grid is None:
            grid = torch.linspace(low - 5 * width, high + 5 * width, 512, dtype=torch.float64)
        nodes, weights = self.nodes.flatten(), self.weights.flatten() / len(self.nodes)
        bells = torch.exp(-0.5 * ((grid.double()[:, None] - nodes) / width).square())
        return grid, bells @ weights / (width * (2 * torch.pi) ** 0.5)


def density(
    matrix: Symmetric | Float[Tensor, "size size"],
    *,
    steps: int = 80,
    probes: int = 8,
    generator: torch.Generator | None = None,
) -> Density:
    """Estimate the density of a symmetric matrix's eigenvalues by stochastic Lanczos quadrature.

    Args:
        matrix: symmetric: a `Hessian`, a `GaussNewton`, or a tensor.
        steps: of Lanczos, each a product; the density's 2 steps - 1 first moments are exact but for the probes.
        probes: random vectors; the error of a moment falls as one over the root of probes times size.
        generator: of the probes; None is seed 0.

    Raises:
        ValueError: if steps or probes is less than 1.
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, got {probes}.")
    operator = Symmetric.dense(matrix) if isinstance(matrix, Tensor) else matrix
    source = drawing(generator)
    nodes, weights = [], []
    for _ in range(probes):
        values, vectors = lanczos(operator, steps, generator=source).ritz()
        nodes.append(values)
        weights.append(vectors[0].square())
    return Density(torch.stack(nodes), torch.stack(weights), operator.size)


def hessian_density(
    net: nn.Module,
    batches: Batches,
    loss_fn: Loss,
    *,
    steps: int = 80,
    probes: int = 8,
    kind: Kind = "hessian",
    params: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Density:
    """Estimate the density of the eigenvalues of a loss's curvature; arguments as of `sharpness` and `density`."""
    matrix = _curvature(kind, net, batches, loss_fn, params)
    return density(matrix, steps=steps, probes=probes, generator=generator)
