"""Three ways of getting labels wrong.

symmetric   with probability r, one of the other classes, all alike
pair        with probability r, the next class: y + 1 (mod classes)
instance    with probability q_i of the sample's own, q_i ~ Normal(r, spread^2) cut at 0 and 1; the wrong class is
            drawn from softmax(x_i W_y) over the others, W_y ~ Normal(0, 1), (features, classes), one a true class
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from scipy import stats
from torch import Tensor

__all__ = ["NoisyLabels"]


class NoisyLabels(NamedTuple):
    """Labels of which some were flipped.

    Attributes:
        labels: the noisy labels.
        flipped: where they are wrong.

    Source: the noise models of Huang et al. 2023; instance-dependent noise by Xia et al., NeurIPS 2020, algorithm 2.
    """

    labels: Int64[Tensor, " samples"]
    flipped: Bool[Tensor, " samples"]

    @classmethod
    def symmetric(
        cls, y: Int64[Tensor, " samples"], rate: float, n_classes: int, generator: torch.Generator | None = None
    ) -> "NoisyLabels":
        """Flip labels to any other class.

        Args:
            y: true classes, 0 to n_classes - 1.
            rate: probability that a label is flipped, in [0, 1).
            n_classes: number of classes, at least 2.
            generator: source of the draws; None is torch's default generator.

        Raises:
            ValueError: if the rate is not in [0, 1), there are fewer than two classes, or a label is out of range.
        """
        _check(y, rate, n_classes)
        shift = torch.randint(1, n_classes, y.shape, generator=generator, device=_source(generator)).to(y.device)
        return cls._of(y, torch.where(_coin(y, rate, generator), (y + shift) % n_classes, y))

    @classmethod
    def pair(
        cls, y: Int64[Tensor, " samples"], rate: float, n_classes: int, generator: torch.Generator | None = None
    ) -> "NoisyLabels":
        """Flip labels to the next class.

        Args:
            y: true classes, 0 to n_classes - 1.
            rate: probability that a label is flipped, in [0, 1).
            n_classes: number of classes, at least 2.
            generator: source of the draws; None is torch's default generator.

        Raises:
            ValueError: as `symmetric`.
        """
        _check(y, rate, n_classes)
        return cls._of(y, torch.where(_coin(y, rate, generator), (y + 1) % n_classes, y))

    @classmethod
    def instance(
        cls,
        x: Float[Tensor, " _ *shape"],
        y: Int64[Tensor, " samples"],
        rate: float,
        n_classes: int,
        generator: torch.Generator | None = None,
        *,
        spread: float = 0.1,
    ) -> "NoisyLabels":
        """Flip labels to the class that the sample looks like, in random directions of its features.

        Args:
            x: samples, in the units in which the noise is meant to see them: the larger their norm, the more the wrong
                class is decided by the sample.
            y: true classes, 0 to n_classes - 1.
            rate: mean of the normal of which the samples' own rates are drawn, in [0, 1); cutting it off at 0 and 1
                moves the mean of the drawn rates inwards (from 0 to 0.08).
            n_classes: number of classes, at least 2.
            generator: source of the draws; None is torch's default generator.
            spread: its standard deviation, at least 0.

        Raises:
            ValueError: as `symmetric`; also if the spread is negative, lengths differ, or samples are not finite.
        """
        _check(y, rate, n_classes)
        if not 0 <= spread < float("inf"):
            raise ValueError(f"spread must be at least 0 and finite, got {spread}.")
        if len(x) != len(y) or not bool(x.isfinite().all()):
            raise ValueError(f"x must be {len(y)} finite samples, as many as labels; got shape {tuple(x.shape)}.")
        uniform = torch.rand(len(y), generator=generator, device=_source(generator), dtype=torch.float64)
        q = _rates(uniform, rate, spread).to(y.device)
        samples = x.reshape(len(x), -1).to(torch.float64)
        labels = y.clone()
        for true in range(n_classes):
            drawn = torch.randn(samples.shape[1], n_classes, generator=generator, device=_source(generator))
            chosen = (y == true).nonzero().squeeze(1)
            logits = samples[chosen] @ drawn.to(samples)
            logits[:, true] = -float("inf")
            p = q[chosen, None] * torch.softmax(logits, 1)
            p[:, true] = 1 - q[chosen]
            if len(chosen):
                # By the inverse distribution function, so that the draw is the generator's on any device.
                u = torch.rand(len(chosen), generator=generator, device=_source(generator), dtype=torch.float64)
                edges = p.cumsum(1)
                labels[chosen] = (u.to(y.device)[:, None] * edges[:, -1:] >= edges).sum(1)
        return cls._of(y, labels)

    @classmethod
    def _of(cls, y: Tensor, labels: Tensor) -> "NoisyLabels":
        return cls(labels, labels != y)


def _rates(uniform: Tensor, rate: float, spread: float) -> Tensor:
    if spread == 0:
        return torch.full_like(uniform, rate)
    normal = stats.truncnorm(-rate / spread, (1 - rate) / spread, loc=rate, scale=spread)
    return torch.from_numpy(normal.ppf(uniform.cpu().numpy())).clamp(0, 1)


def _coin(y: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    return torch.rand(y.shape, generator=generator, device=_source(generator)).to(y.device) < rate


def _source(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _check(y: Tensor, rate: float, n_classes: int) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}.")
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2: there is no wrong class among {n_classes}.")
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < n_classes):
        raise ValueError(f"Labels must be 0 to {n_classes - 1}, got {int(y.min())} to {int(y.max())}.")
