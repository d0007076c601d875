"""Wrong labels, made on purpose, with a record of which they are.

symmetric    with probability r a label becomes one of the other classes, each alike
pair         with probability r class c becomes class c + 1 (the last becomes the first)
instance     sample i has a rate of its own, q_i ~ N(r, s^2) cut to [0, 1], and a wrong class that depends on what
             it looks like:   p_i = q_i softmax(x_i W_{y_i})   with the true class left out,   p_i[y_i] = 1 - q_i
             W_c ~ N(0, 1), (features, classes), one for each true class c
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy import stats
from torch import Tensor

__all__ = ["NoisyLabels"]


class NoisyLabels(NamedTuple):
    """Labels of which some are wrong.

    Attributes:
        labels: as given to the learner, int64.
        flipped: which of them are wrong.
    """

    labels: Int[Tensor, " samples"]
    flipped: Bool[Tensor, " samples"]

    @classmethod
    def symmetric(
        cls, y: Int[Tensor, " samples"], rate: float, n_classes: int, generator: torch.Generator | None = None
    ) -> "NoisyLabels":
        """Replace labels by any other class.

        Args:
            y: true classes.
            rate: probability of a wrong label, in [0, 1).
            n_classes: number of classes, at least 2.
            generator: of the draws; None is a generator with seed 0.

        Raises:
            ValueError: if the rate is outside [0, 1), or a label outside 0..n_classes-1, or there are fewer than 2
                classes.
        """
        generator = _checked(y, rate, n_classes, generator)
        wrong = _uniform(y, generator) < rate
        shift = 1 + torch.randint(n_classes - 1, y.shape, generator=generator, device=generator.device).to(y.device)
        return cls._flip(y, wrong, (y + shift) % n_classes)

    @classmethod
    def pair(
        cls, y: Int[Tensor, " samples"], rate: float, n_classes: int, generator: torch.Generator | None = None
    ) -> "NoisyLabels":
        """Replace labels by the next class. Arguments and errors as for `symmetric`."""
        generator = _checked(y, rate, n_classes, generator)
        return cls._flip(y, _uniform(y, generator) < rate, (y + 1) % n_classes)

    @classmethod
    def instance(
        cls,
        x: Float[Tensor, "samples *features"],
        y: Int[Tensor, " labels"],
        rate: float,
        n_classes: int,
        generator: torch.Generator | None = None,
        *,
        spread: float = 0.1,
    ) -> "NoisyLabels":
        """Replace labels by a class that depends on the sample.

        Args:
            x: samples.
            y: true classes.
            rate: mean of the samples' rates before they are cut to [0, 1], in [0, 1); 0 leaves all labels as they are.
            n_classes: number of classes, at least 2.
            generator: of the draws; None is a generator with seed 0.
            spread: standard deviation of the samples' rates, positive.

        Raises:
            ValueError: as `symmetric`, or if there are not as many samples as labels, or the spread is not positive.

        Source: Xia et al., NeurIPS 2020, algorithm 2.
        """
        generator = _checked(y, rate, n_classes, generator)
        if len(x) != len(y):
            raise ValueError(f"{len(x)} samples but {len(y)} labels.")
        if not spread > 0:
            raise ValueError(f"spread must be positive, got {spread}.")
        if rate == 0:
            return cls._flip(y, torch.zeros_like(y, dtype=torch.bool), y)
        # By the inverse of the distribution function, so that the generator is the only source of chance.
        quantiles = _uniform(y, generator).double().cpu().numpy()
        q = torch.from_numpy(
            stats.truncnorm.ppf(quantiles, -rate / spread, (1 - rate) / spread, loc=rate, scale=spread)
        ).to(y.device)
        flat = x.detach().reshape(len(x), -1).double()
        W = torch.randn(
            n_classes, flat.shape[1], n_classes, generator=generator, device=generator.device, dtype=torch.float64
        ).to(y.device)
        scores = flat.new_empty(len(y), n_classes)
        for c in range(n_classes):
            scores[y == c] = flat[y == c] @ W[c]
        others = scores.scatter(1, y[:, None], -torch.inf).softmax(1)
        wrong = _uniform(y, generator).double() < q
        drawn = (others.cumsum(1) < _uniform(y, generator).double()[:, None]).sum(1)
        # Rounding may lead past the last class, or onto the true one where its neighbours have no weight.
        likeliest = others.argmax(1)
        unlikely = (drawn >= n_classes) | (drawn == y)
        return cls._flip(y, wrong, torch.where(unlikely, likeliest, drawn))

    @classmethod
    def _flip(cls, y: Tensor, wrong: Tensor, others: Tensor) -> "NoisyLabels":
        return cls(torch.where(wrong, others, y).long(), wrong)


def _uniform(y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.rand(y.shape, generator=generator, device=generator.device).to(y.device)


def _checked(y: Tensor, rate: float, n_classes: int, generator: torch.Generator | None) -> torch.Generator:
    if not 0 <= rate < 1:
        raise ValueError(f"rate must lie in [0, 1), got {rate}.")
    if n_classes < 2:
        raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
    if y.numel() and not (int(y.min()) >= 0 and int(y.max()) < n_classes):
        wrong = y[(y < 0) | (y >= n_classes)][0]
        raise ValueError(f"class {int(wrong)} among the labels, but there are {n_classes} classes.")
    return torch.Generator().manual_seed(0) if generator is None else generator
