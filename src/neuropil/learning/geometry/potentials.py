"""Potentials: what a distance between synaptic states is derived from.

A potential phi is summed over weights and convex in each. Its gradient leads from the weights to dual variables, in
which mirror descent takes plain steps; its Bregman divergence is the distance that such steps keep small:

    grad phi(w_{t+1}) = grad phi(w_t) - lr g_t
    D(w1, w2) = phi(w1) - phi(w2) - <grad phi(w2), w1 - w2>

                      phi(w)               grad phi(w)              its inverse                     one step
    p-norm            sum |w|^p / p        sign(w) |w|^(p-1)        sign(y) |y|^(1/(p-1))           through the dual
    negative entropy  sum |w| log |w|      sign(w) (log |w| + 1)    s exp(s y - 1), s = sign(w)     w exp(-lr s g)

The 2-norm is ordinary gradient descent. The negative entropy is convex on either side of zero only, so its weights keep
the sign they have (Dale's law), and zero is a state that they neither reach nor leave.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["EUCLIDEAN", "NegativeEntropy", "PNorm", "Potential"]


class Potential(ABC):
    """A function of the weights that defines a geometry; a subclass gives its values, gradient and inverse gradient.

    Attributes:
        crosses_zero: whether a weight may change its sign, or leave zero.
        reach: largest change of a dual variable that one step may take; beyond it the inverse gradient overflows.

    Source: Pogodin, Cornford, Ghosh, Gidel, Lajoie & Richards, ICLR 2024 (arXiv 2305.19394).
    """

    crosses_zero: bool = True
    reach: float = math.inf

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables and stored states call it."""

    @abstractmethod
    def values(self, w: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Each weight's part of the potential."""

    @abstractmethod
    def grad(self, w: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Dual variables of the weights."""

    @abstractmethod
    def inverse_grad(self, y: Float[Tensor, "*shape"], sign: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Weights of dual variables.

        Args:
            y: dual variables.
            sign: signs of the weights, -1, 0 or 1, for potentials whose dual variables do not tell.
        """

    def __call__(self, w: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """The potential phi(w), summed over the weights."""
        return self.values(w).sum()

    def step_(self, w: Float[Tensor, "*shape"], direction: Float[Tensor, "*shape"], lr: float) -> None:
        """Take one mirror step in place.

        Args:
            w: weights; they change.
            direction: gradient, or its momentum average.
            lr: learning rate.
        """
        w.copy_(self.inverse_grad(self.grad(w).sub_(direction, alpha=lr), w.sign()))

    def bregman(self, w1: Float[Tensor, "*shape"], w2: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """Divergence D(w1, w2) of w1 from w2, zero where they are equal."""
        return (self.values(w1) - self.values(w2) - self.grad(w2) * (w1 - w2)).sum()


@dataclass(frozen=True)
class PNorm(Potential):
    """The p-th power of the p-norm, over p.

    Near zero its metric vanishes for p > 2: weights leave zero in leaps, and in float32 duals below 1e-38 are lost.

    Args:
        p: exponent, above 1; 2 is the Euclidean geometry of gradient descent.

    Raises:
        ValueError: if p is not a finite number above 1: the potential would not be strictly convex.
    """

    p: float = 2.0

    def __post_init__(self) -> None:
        if not 1 < self.p < math.inf:
            raise ValueError(f"p must be a finite number above 1, got {self.p}.")

    @property
    def name(self) -> str:
        """Such as "3-norm"."""
        return f"{self.p:g}-norm"

    def values(self, w: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Powers |w|^p / p."""
        return w.abs().pow(self.p) / self.p

    def grad(self, w: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Dual variables sign(w) |w|^(p-1)."""
        return _signed_power(w, self.p - 1)

    def inverse_grad(
        self, y: Float[Tensor, "*shape"], sign: Float[Tensor, "*shape"] | None = None
    ) -> Float[Tensor, "*shape"]:
        """Weights sign(y) |y|^(1/(p-1)); `sign` is not needed."""
        return _signed_power(y, 1 / (self.p - 1))

    def step_(self, w: Float[Tensor, "*shape"], direction: Float[Tensor, "*shape"], lr: float) -> None:
        """Take one mirror step in place; for p = 2 it is that of gradient descent, to the last bit."""
        if self.p == 2:
            w.add_(direction, alpha=-lr)
        else:
            super().step_(w, direction, lr)


@dataclass(frozen=True)
class NegativeEntropy(Potential):
    """Negative entropy of the weights' magnitudes; its mirror descent is the exponentiated gradient."""

    crosses_zero = False
    reach = 40.0  # a factor of 2e17 in one step: no learning rate that needs it learns

    @property
    def name(self) -> str:
        """Always "negative entropy"."""
        return "negative entropy"

    def values(self, w: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Terms |w| log |w|, which end at 0 for w = 0."""
        return torch.xlogy(w.abs(), w.abs())

    def grad(self, w: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Dual variables sign(w) (log |w| + 1); 0 at w = 0, where there is no gradient."""
        # A 1 in place of the 0, whose logarithm times its sign would be NaN.
        return w.sign() * w.abs().where(w != 0, torch.ones_like(w)).log_().add_(1)

    def inverse_grad(self, y: Float[Tensor, "*shape"], sign: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Weights s exp(s y - 1), where s is the sign; 0 where the sign is 0."""
        return sign * (sign * y - 1).exp()

    def step_(self, w: Float[Tensor, "*shape"], direction: Float[Tensor, "*shape"], lr: float) -> None:
        """Multiply the weights by exp(-lr sign(w) direction), in place."""
        w.mul_((w.sign() * direction).mul_(-lr).exp_())

    def bregman(self, w1: Float[Tensor, "*shape"], w2: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """Generalised Kullback-Leibler divergence of the magnitudes; infinite across a sign or from zero."""
        a, b = w1.abs(), w2.abs()
        apart = (w1.sign() != w2.sign()) & (w1 != 0)
        terms = torch.xlogy(a, a / b.where(b > 0, torch.ones_like(b))) - a + b
        return terms.masked_fill(apart, math.inf).sum()


EUCLIDEAN = PNorm(2.0)


def _signed_power(w: Float[Tensor, "*shape"], exponent: float) -> Float[Tensor, "*shape"]:
    if exponent == 1:
        return w.clone()
    return torch.copysign(w.abs().pow_(exponent), w)
