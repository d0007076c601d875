"""Mean, variance, skew and kurtosis of every unit in one pass.

    delta = mean_b - mean_a,   n = n_a + n_b
    mean  = mean_a + delta n_b / n
    M2    = M2_a + M2_b + delta^2 n_a n_b / n
    M3    = M3_a + M3_b + delta^3 n_a n_b (n_a - n_b) / n^2 + 3 delta (n_a M2_b - n_b M2_a) / n
    M4    = M4_a + M4_b + delta^4 n_a n_b (n_a^2 - n_a n_b + n_b^2) / n^3
            + 6 delta^2 (n_a^2 M2_b + n_b^2 M2_a) / n^2 + 4 delta (n_a M3_b - n_b M3_a) / n

Mp = sum (x - mean)^p, in float64; a chunk is centred at its own mean first, so nothing large is ever subtracted.

Source: Chan, Golub & LeVeque 1979 (M2); Pebay, SAND2008-6212 (higher moments).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.probes.reducers.base import Reducer, RowNumbers

__all__ = ["MomentStatistics", "Moments", "centred"]


@dataclass(frozen=True, eq=False)
class MomentStatistics:
    """Moments of every unit.

    Attributes:
        count: rows.
        mean: of each unit, float64 as all below.
        variance: divided by the count.
        skew: third standardised moment, M3 / n / variance^1.5; NaN for a unit that never changed.
        kurtosis: fourth standardised moment, 3 for a Gaussian; NaN for a unit that never changed.
        minimum: the least value.
        maximum: the largest.
    """

    count: int
    mean: Float[Tensor, " units"]
    variance: Float[Tensor, " units"]
    skew: Float[Tensor, " units"]
    kurtosis: Float[Tensor, " units"]
    minimum: Float[Tensor, " units"]
    maximum: Float[Tensor, " units"]

    @property
    def std(self) -> Float[Tensor, " units"]:
        """Standard deviation, the root of the variance."""
        return self.variance.sqrt()


def centred(rows: Tensor) -> tuple[Float[Tensor, " units"], Float[Tensor, "rows units"]]:
    """Give the mean and the deviations from it, in float64; those of a unit that does not change are exactly 0."""
    shift = rows[0].double()
    deviations = rows.double() - shift
    mean = deviations.mean(0)
    return shift + mean, deviations.sub_(mean)


class Moments(Reducer):
    """Count, mean, variance, skew, kurtosis, minimum and maximum of every unit.

    Args:
        dim: the axis of the units; all others are samples.

    Source: see the module.
    """

    state = ("mean", "m2", "m3", "m4", "minimum", "maximum")

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        zeros = torch.zeros(self.units[0], dtype=torch.float64, device=device)
        self.mean, self.m2, self.m3, self.m4 = (zeros.clone() for _ in range(4))
        self.minimum, self.maximum = zeros + torch.inf, zeros - torch.inf

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        x = rows[0]
        mean, d = centred(x)
        squares = d.square()
        m2, m4 = squares.sum(0), squares.square().sum(0)
        m3 = squares.mul_(d).sum(0)
        low, high = torch.aminmax(x, dim=0) if x.dtype != torch.bool else torch.aminmax(x.byte(), dim=0)
        self._combine(len(x), mean, m2, m3, m4, low.double(), high.double())

    def _join(self, other: "Moments") -> None:
        self._combine(other.count, *(getattr(other, name).to(self.mean.device) for name in self.state))

    def _combine(self, rows: int, mean: Tensor, m2: Tensor, m3: Tensor, m4: Tensor, low: Tensor, high: Tensor) -> None:
        n_a, n_b = float(self.count), float(rows)
        if not n_b:
            return
        n = n_a + n_b
        a, b = n_a / n, n_b / n
        delta = mean - self.mean if n_a else torch.zeros_like(mean)
        self.m4 = (
            self.m4
            + m4
            + delta**4 * (n_a * b * (a * a - a * b + b * b))
            + 6 * delta**2 * (a * a * m2 + b * b * self.m2)
            + 4 * delta * (a * m3 - b * self.m3)
        )
        self.m3 = self.m3 + m3 + delta**3 * (n_a * b * (a - b)) + 3 * delta * (a * m2 - b * self.m2)
        self.m2 = self.m2 + m2 + delta**2 * (n_a * b)
        self.mean = self.mean + delta * b if n_a else mean
        self.minimum, self.maximum = torch.minimum(self.minimum, low), torch.maximum(self.maximum, high)

    def result(self) -> MomentStatistics:
        """Give the moments.

        Raises:
            ValueError: if nothing was seen.
        """
        self._require_rows()
        variance = self.m2 / self.count
        skew, kurtosis = self.m3 / self.count / variance**1.5, self.m4 / self.count / variance**2
        still = self.minimum == self.maximum
        return MomentStatistics(
            self.count,
            self.mean.clone(),
            variance,
            skew.masked_fill(still, torch.nan),
            kurtosis.masked_fill(still, torch.nan),
            self.minimum.clone(),
            self.maximum.clone(),
        )
