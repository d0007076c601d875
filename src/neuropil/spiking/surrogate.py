"""Spikes that have a gradient: a step forward, a smooth derivative backward.

    s = H(x) = 1 where x >= 0, else 0                 forward, x = potential - threshold
    ds/dx := g(x), the derivative of a sigmoid G(x)   backward

Each surrogate is the pair (G, g) in closed form (Neftci, Mostafa & Zenke 2019), G rising from 0 to 1 unless said:

    atan          G = arctan(pi/2 a x) / pi + 1/2           g = a/2 / (1 + (pi/2 a x)^2)       (Fang et al. 2021)
    sigmoid       G = 1 / (1 + exp(-a x))                   g = a G (1 - G)
    fast sigmoid  G = x / (1 + k|x|)                        g = 1 / (1 + k|x|)^2               (Zenke & Ganguli 2018)
    triangle      g = max(0, 1 - |x|/w) / w                 G its integral                     (Bellec et al. 2018)
    rectangle     g = 1/w where |x| <= w/2, else 0          G its integral                     (Wu et al. 2018)
    clamped tanh  g = k (1 - tanh^2(k x)) / (2 tanh(k/2)) where |x| <= 1/2, else 0             (Guo et al. 2023)

The fast sigmoid rises by 2/k from -1/k, since its derivative is 1 at the threshold.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.neurons.ranges import require_positive

__all__ = [
    "SURROGATES",
    "Atan",
    "ClampedTanh",
    "FastSigmoid",
    "Rectangle",
    "Sigmoid",
    "Smooth",
    "Surrogate",
    "Triangle",
    "as_surrogate",
]


class Surrogate(ABC):
    """A spike function: called with potential - threshold, it returns 0 or 1 and hides its derivative at that step.

    `code` and `parameter` name the derivative to the compiled kernels; a surrogate of your own leaves `code` at -1 and
    is called back instead.
    """

    code: ClassVar[int] = -1

    @property
    def parameter(self) -> float:
        """The number that the kernels need besides the code."""
        return 0.0

    @abstractmethod
    def value(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The smooth function G whose derivative stands for that of the step."""

    @abstractmethod
    def derivative(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The derivative g of G."""

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """1 where x >= 0, else 0, in x's type; its gradient is g(x)."""
        return _Fire.apply(x, self)


class _Fire(torch.autograd.Function):
    """A step forward, the surrogate's derivative backward."""

    @staticmethod
    def forward(x: Tensor, surrogate: Surrogate) -> Tensor:
        return (x >= 0).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Surrogate], output: Tensor) -> None:
        x, ctx.surrogate = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.surrogate.derivative(x), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Tensor, int | None]:
        x, surrogate = args
        return surrogate(x), in_dims[0]


class _OneNumber(Surrogate):
    """A surrogate of one number, positive and finite: the first field of the dataclass."""

    def __post_init__(self) -> None:
        require_positive(**vars(self))

    @property
    def parameter(self) -> float:
        """The number."""
        (number,) = vars(self).values()
        return number


@dataclass(frozen=True)
class Atan(_OneNumber):
    """Derivative a/2 / (1 + (pi/2 a x)^2).

    Args:
        alpha: a, twice the slope at the threshold, positive.

    Raises:
        ValueError: if alpha is not positive and finite.

    Source: Fang et al., ICCV 2021 (parametric LIF).
    """

    alpha: float = 2.0
    code: ClassVar[int] = 0

    def value(self, x: Tensor) -> Tensor:
        """G at x."""
        return torch.atan(x * (math.pi / 2 * self.alpha)) / math.pi + 0.5

    def derivative(self, x: Tensor) -> Tensor:
        """The slope g at x."""
        z = x * (math.pi / 2 * self.alpha)
        return (self.alpha / 2) / (1 + z * z)


@dataclass(frozen=True)
class Sigmoid(_OneNumber):
    """Derivative of the logistic function of slope alpha.

    Args:
        alpha: four times the slope at the threshold, positive.

    Raises:
        ValueError: if alpha is not positive and finite.
    """

    alpha: float = 4.0
    code: ClassVar[int] = 1

    def value(self, x: Tensor) -> Tensor:
        """G at x."""
        return torch.sigmoid(x * self.alpha)

    def derivative(self, x: Tensor) -> Tensor:
        """The slope g at x."""
        g = torch.sigmoid(x * self.alpha)
        return self.alpha * (g * (1 - g))


@dataclass(frozen=True)
class FastSigmoid(_OneNumber):
    """Derivative 1 / (1 + k|x|)^2: 1 at the threshold, with long tails.

    Args:
        slope: k, how fast it falls, positive.

    Raises:
        ValueError: if slope is not positive and finite.

    Source: Zenke & Ganguli, Neural Computation 30 (2018).
    """

    slope: float = 25.0
    code: ClassVar[int] = 2

    def value(self, x: Tensor) -> Tensor:
        """G at x."""
        return x / (1 + self.slope * x.abs())

    def derivative(self, x: Tensor) -> Tensor:
        """The slope g at x."""
        z = 1 + self.slope * x.abs()
        return 1 / (z * z)


@dataclass(frozen=True)
class Triangle(_OneNumber):
    """Derivative max(0, 1 - |x|/w) / w.

    Args:
        width: w, half the base, positive.

    Raises:
        ValueError: if width is not positive and finite.

    Source: Bellec et al., NeurIPS 2018.
    """

    width: float = 1.0
    code: ClassVar[int] = 3

    def value(self, x: Tensor) -> Tensor:
        """G at x."""
        z = (x / self.width).clamp(-1, 1)
        return 0.5 + z - 0.5 * z * z.abs()

    def derivative(self, x: Tensor) -> Tensor:
        """The slope g at x."""
        return torch.relu(1 - x.abs() / self.width) / self.width


@dataclass(frozen=True)
class Rectangle(_OneNumber):
    """Derivative 1/w within w/2 of the threshold, edges included.

    Args:
        width: w, positive.

    Raises:
        ValueError: if width is not positive and finite.

    Source: Wu et al., Frontiers in Neuroscience 12 (2018).
    """

    width: float = 1.0
    code: ClassVar[int] = 4

    def value(self, x: Tensor) -> Tensor:
        """G at x."""
        return (x / self.width + 0.5).clamp(0, 1)

    def derivative(self, x: Tensor) -> Tensor:
        """The slope g at x."""
        return (x.abs() <= self.width / 2).to(x.dtype) / self.width


@dataclass(frozen=True)
class ClampedTanh(_OneNumber):
    """Derivative of a tanh of slope k that is cut off 1/2 away from the threshold.

    Args:
        slope: k, positive.

    Raises:
        ValueError: if slope is not positive and finite.

    Source: Guo et al., ICCV 2023 (membrane potential batch normalisation).
    """

    slope: float = 3.0
    code: ClassVar[int] = 5

    def value(self, x: Tensor) -> Tensor:
        """G at x."""
        return torch.tanh(self.slope * x.clamp(-0.5, 0.5)) / (2 * math.tanh(self.slope / 2)) + 0.5

    def derivative(self, x: Tensor) -> Tensor:
        """The slope g at x."""
        z = torch.tanh(self.slope * x)
        inside = (x.abs() <= 0.5).to(x.dtype)
        return inside * ((self.slope / (2 * math.tanh(self.slope / 2))) * (1 - z * z))


@dataclass(frozen=True)
class Smooth(Surrogate):
    """The smooth function itself in place of the step: what the surrogate gradient is the true gradient of.

    For checking gradients by finite differences, and for annealing from graded to all-or-none spikes.

    Args:
        surrogate: whose function replaces the step.
    """

    surrogate: Surrogate

    def value(self, x: Tensor) -> Tensor:
        """G at x."""
        return self.surrogate.value(x)

    def derivative(self, x: Tensor) -> Tensor:
        """The slope g at x."""
        return self.surrogate.derivative(x)

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The smooth value at x."""
        return self.surrogate.value(x)


SURROGATES: dict[str, type[Surrogate]] = {
    "atan": Atan,
    "sigmoid": Sigmoid,
    "fast_sigmoid": FastSigmoid,
    "triangle": Triangle,
    "rectangle": Rectangle,
    "clamped_tanh": ClampedTanh,
}
"""Surrogates by name, with their customary widths."""


def as_surrogate(surrogate: str | Surrogate) -> Surrogate:
    """A surrogate as it is, or the one of that name.

    Raises:
        ValueError: if no surrogate has the name.
        TypeError: if it is neither a name nor a surrogate.
    """
    if isinstance(surrogate, Surrogate):
        return surrogate
    if not isinstance(surrogate, str):
        raise TypeError(f"surrogate must be a name or a Surrogate, got {type(surrogate).__name__}.")
    if surrogate not in SURROGATES:
        raise ValueError(f"No surrogate is named {surrogate!r}; there are {', '.join(SURROGATES)}.")
    return SURROGATES[surrogate]()
