"""The edge of chaos: at which random weights a signal neither fades nor explodes on its way through a deep net.

A wide feed-forward net at its random start, y^l = W^l phi(y^{l-1}) + b^l with W^l_ij ~ N(0, sigma_w^2 / fan-in) and
b ~ N(0, sigma_b^2), maps the variance of its pre-activations from layer to layer (Z a standard normal):

    q^l = sigma_b^2 + sigma_w^2 E[phi(sqrt(q^{l-1}) Z)^2]          fixed point q
    chi = sigma_w^2 E[phi'(sqrt(q) Z)^2]                           gain of a squared gradient per layer

chi < 1: ordered, gradients fade; chi > 1: chaotic, they explode; chi = 1: the edge. For ReLU the edge is one point,
(sigma_b, sigma_w) = (0, sqrt 2); for tanh it is a curve.

In a residual net the variance grows by a factor of 1 + sigma_w^2 / 2 a block (ReLU). A branch that is divided by the
square root of the number of blocks keeps it below exp(sigma_w^2 / 2) at any depth.

Source: Hayou, Ton, Doucet & Teh, ICLR 2021 (arXiv 2002.08797); Schoenholz et al., ICLR 2017, for the edge itself.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from neuropil.neurons.ranges import require, require_positive

__all__ = ["MeanField", "StableResidual", "edge_of_chaos", "init_edge_of_chaos_", "init_gaussian_", "mean_field"]

Activation = str | Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "erf": torch.erf,
    "gelu": nn.functional.gelu,
    "identity": lambda y: y,
    "leaky_relu": nn.functional.leaky_relu,
    "relu": torch.relu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
}
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

START = 1.0  # variance from which the fixed point is sought: that of standardised inputs
NONE, LARGE, ENDLESS = 1e-12, 1e9, 1e12  # variances taken for 0, for no working point, and for infinity
NODES, TAIL = 160, 10.0  # of the quadrature on either side of 0, and where it ends, in standard deviations
NEAR = 1e-3  # |log chi| below which a net is called at the edge: it takes a thousand layers to lose a factor of e


@dataclass(frozen=True)
class MeanField:
    """What a very wide random net does to a signal.

    Attributes:
        q: variance of the pre-activations deep in the net; 0 where the signal dies, infinite where it grows for ever.
        chi: factor by which a squared gradient grows with every layer that it goes back.
    """

    q: float
    chi: float

    @property
    def phase(self) -> str:
        """The phase: "ordered", "edge" (|log chi| below 0.001) or "chaotic"."""
        return "edge" if abs(math.log(self.chi)) < NEAR else "ordered" if self.chi < 1 else "chaotic"

    @property
    def depth_scale(self) -> float:
        """Layers over which a squared gradient changes by a factor of e; infinite exactly at the edge."""
        return 1 / abs(math.log(self.chi)) if self.chi != 1 else math.inf


def mean_field(activation: Activation, sigma_w: float, sigma_b: float = 0.0) -> MeanField:
    """Variance and gradient gain deep in a wide random net.

    Args:
        activation: "relu", "leaky_relu", "tanh", "erf", "gelu", "silu", "identity", or an elementwise function of
            tensors that autograd can differentiate; a kink is integrated exactly if it lies at 0.
        sigma_w: standard deviation of a weight times the square root of the fan-in, above 0.
        sigma_b: standard deviation of a bias, at least 0.

    Returns:
        The fixed point that the variance reaches from 1, and chi there. Where every variance is a fixed point (ReLU at
        its edge) q is 1.

    Raises:
        ValueError: if a number is out of range, the activation is unknown, or chi is not a positive finite number.
    """
    require_positive(sigma_w=sigma_w)
    require("sigma_b", sigma_b, 0.0, math.inf, ends=(True, False))
    phi = _function(activation)
    q = _fixed_point(lambda q: sigma_b**2 + sigma_w**2 * _gaussian(phi, q)[0])
    chi = sigma_w**2 * _gaussian(phi, min(max(q, 1e-20), ENDLESS))[1]  # at 0 itself ReLU has no slope
    if not 0 < chi < math.inf:
        raise ValueError(f"chi is {chi} for {activation!r} at sigma_w = {sigma_w:g} and sigma_b = {sigma_b:g}.")
    return MeanField(q, chi)


def edge_of_chaos(activation: Activation, sigma_b: float = 0.0) -> float:
    """The sigma_w with which chi is 1 (`mean_field`): sqrt 2 for ReLU without biases, a curve of sigma_b for tanh.

    Raises:
        ValueError: if there is none between 0.01 and 100 with a finite variance (ReLU with biases has none).
    """
    require("sigma_b", sigma_b, 0.0, math.inf, ends=(True, False))
    none = f"{activation!r} has no edge of chaos at sigma_b = {sigma_b:g}"
    low, high = (mean_field(activation, end, sigma_b).chi - 1 for end in (1e-2, 1e2))
    if low * high > 0:
        raise ValueError(f"{none}: chi goes from {low + 1:g} to {high + 1:g} as sigma_w goes from 0.01 to 100.")
    sigma_w = _root(lambda sigma_w: mean_field(activation, sigma_w, sigma_b).chi - 1, 1e-2, 1e2)
    found = mean_field(activation, sigma_w, sigma_b)
    if found.q > LARGE:
        raise ValueError(f"{none}: where chi is 1 the variance grows without end. Use sigma_b = 0.")
    if abs(found.chi - 1) > NEAR:
        raise ValueError(f"{none}: chi jumps over 1 at sigma_w = {sigma_w:.4f}, where the fixed point is not stable.")
    return sigma_w


def init_edge_of_chaos_(
    net: nn.Module,
    activation: Activation = "relu",
    sigma_b: float = 0.0,
    generator: torch.Generator | None = None,
) -> float:
    """Draw the weights of all linear and convolutional layers at the edge of chaos, in place.

    Args:
        net: any module; see `init_gaussian_` for what is drawn.
        activation: as in `mean_field`.
        sigma_b: standard deviation of the biases.
        generator: source of the draws, on the CPU; None is a fresh one with seed 0.

    Returns:
        The sigma_w that was used.

    Raises:
        ValueError: as in `edge_of_chaos` and `init_gaussian_`.
    """
    sigma_w = edge_of_chaos(activation, sigma_b)
    init_gaussian_(net, sigma_w, sigma_b, generator)
    return sigma_w


@torch.no_grad()
def init_gaussian_(
    net: nn.Module, sigma_w: float, sigma_b: float = 0.0, generator: torch.Generator | None = None
) -> None:
    """Draw weights from N(0, sigma_w^2 / fan-in) and biases from N(0, sigma_b^2), in place.

    Args:
        net: any module; its nn.Linear and nn.Conv1d to nn.Conv3d are drawn in the order of `net.modules()`, a weight
            that two of them share once; all else stays as it is.
        sigma_w: above 0.
        sigma_b: at least 0.
        generator: source of the draws, on the CPU, so that a seed means the same on every device; None is a fresh one
            with seed 0.

    Raises:
        ValueError: if a number is out of range, or the net has no such layer.
    """
    require_positive(sigma_w=sigma_w)
    require("sigma_b", sigma_b, 0.0, math.inf, ends=(True, False))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    layers = [module for module in net.modules() if isinstance(module, LAYERS)]
    if not layers:
        raise ValueError(f"{type(net).__name__} has no linear or convolutional layer to draw.")
    done: set[int] = set()
    for layer in layers:
        scales = [(layer.weight, sigma_w / math.sqrt(layer.weight[0].numel()))]
        scales += [(layer.bias, sigma_b)] if layer.bias is not None else []
        for parameter, scale in scales:
            if id(parameter) not in done:
                drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.copy_(scale * drawn)
                done.add(id(parameter))


class StableResidual(nn.Module):
    """A residual block whose branch is divided by the square root of the number of blocks: x + F(x) / sqrt(L).

    Args:
        branch: F, a module that keeps the shape of its input.
        depth: L, the number of such blocks in the net.

    Raises:
        ValueError: if there is no block, or a branch changes the shape.

    Source: Hayou et al., ICLR 2021, section 4 (stable ResNet).
    """

    def __init__(self, branch: nn.Module, depth: int):
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}.")
        self.branch = branch
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that the branch takes and gives."""
        out = self.branch(x)
        if out.shape != x.shape:
            raise ValueError(f"The branch makes {tuple(out.shape)} of {tuple(x.shape)}: nothing to add it to.")
        return x + out / math.sqrt(self.depth)

    def extra_repr(self) -> str:
        """The number of blocks."""
        return f"depth={self.depth}"


def _function(activation: Activation) -> Callable[[Tensor], Tensor]:
    if not isinstance(activation, str):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown; known are {', '.join(sorted(ACTIVATIONS))}.")
    return ACTIVATIONS[activation]


def _gaussian(phi: Callable[[Tensor], Tensor], q: float) -> tuple[float, float]:
    """E[phi(sqrt(q) Z)^2] and E[phi'(sqrt(q) Z)^2]."""
    nodes, weights = _quadrature()
    with torch.enable_grad():
        y = (math.sqrt(q) * nodes).requires_grad_()
        out = phi(y)
        (slope,) = torch.autograd.grad(out.sum(), y)
    return float(weights @ out.detach() ** 2), float(weights @ slope**2)


@cache
def _quadrature() -> tuple[Tensor, Tensor]:
    """Nodes and weights of the standard normal: Gauss-Legendre on each side of 0, where activations have their kink.

    Gauss-Hermite would see the kink in the middle of its nodes, and steep functions between them.
    """
    half, weights = np.polynomial.legendre.leggauss(NODES)
    half, weights = TAIL * (half + 1) / 2, TAIL * weights / 2
    weights = weights * np.exp(-(half**2) / 2)
    weights /= 2 * weights.sum()  # of each side a half, to the last bit
    return torch.from_numpy(np.r_[-half[::-1], half]), torch.from_numpy(np.r_[weights[::-1], weights])


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    return float(np.asarray(brentq(function, low, high, xtol=1e-14, rtol=np.float64(1e-13), maxiter=1000)))


def _fixed_point(step: Callable[[float], float]) -> float:
    """Where q -> step(q) leads from START. The map increases, so it is the first fixed point in that direction."""

    def drift(q: float) -> float:
        return step(q) - q

    here = START
    if abs(drift(here)) <= 1e-12 * here:
        return here
    up = drift(here) > 0
    while NONE < here < ENDLESS:
        there = 2 * here if up else here / 2
        if not math.isfinite(there_drift := drift(there)):
            return math.inf
        if there_drift == 0 or (there_drift > 0) != up:
            low, high = sorted((here, there))
            return _root(drift, low, high)
        here = there
    return math.inf if up else 0.0
