"""Pearson's correlation of every unit of one site with every unit of another, in one pass.

    C   = C_a + C_b + delta_x delta_y^T n_a n_b / n          as the variances in `moments`, chunks centred first
    rho = C_ij / sqrt(M2_i M2_j)

C is (units of x, units of y) in float64: 75 MB for two layers of 3,072. Of all pairs of layers of a model it would be
many gigabytes: take them a few at a time, with keep="max", which forms rho by blocks and keeps what is asked of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.probes.reducers.base import CHUNK, Reducer, RowNumbers
from neuropil.probes.reducers.moments import centred

__all__ = ["Correlation", "CrossCorrelation"]

BINS = 200


@dataclass(frozen=True, eq=False)
class Correlation:
    """How units of x go with units of y; NaN where one of the two never changed.

    Attributes:
        count: rows.
        max: of each unit of x, the largest correlation with any unit of y.
        argmax: which unit that is; -1 where there is none.
        diag: of the units of the same number; None where x and y have not as many.
        edges: of the histogram, from -1 to 1.
        histogram: how many pairs fall between the edges.
        matrix: all correlations, or None with keep="max".
    """

    count: int
    max: Float[Tensor, " x"]
    argmax: Int[Tensor, " x"]
    diag: Float[Tensor, " x"] | None
    edges: Float[Tensor, " edges"]
    histogram: Int[Tensor, " bins"]
    matrix: Float[Tensor, "x y"] | None


class CrossCorrelation(Reducer):
    """Correlations between the units of two sites; `update(x, y)` takes both tensors of a batch.

    Args:
        keep: "max" for the best partners, the diagonal and a histogram, "full" for the matrix as well.
        dim: the axis of the units in both; all others are samples.

    Raises:
        ValueError: if `keep` is neither.

    Source: Gurnee et al., TMLR 2024 (universal neurons); the centred update is Chan, Golub & LeVeque's, 1979.
    """

    arity = 2
    state = ("mean_x", "mean_y", "m2_x", "m2_y", "products")

    def __init__(self, keep: Literal["max", "full"] = "max", *, dim: int = -1):
        super().__init__(dim)
        if keep not in ("max", "full"):
            raise ValueError(f'keep must be "max" or "full", got {keep!r}.')
        self.keep = keep

    def _allocate(self, device: torch.device, dtype: torch.dtype) -> None:
        x, y = (torch.zeros(units, dtype=torch.float64, device=device) for units in self.units)
        self.mean_x, self.m2_x, self.mean_y, self.m2_y = x, x.clone(), y, y.clone()
        self.products = torch.zeros(self.units, dtype=torch.float64, device=device)

    def _absorb(self, rows: list[Tensor], numbers: RowNumbers, context: Mapping[str, Any]) -> None:
        (mean_x, x), (mean_y, y) = map(centred, rows)
        self.products.addmm_(x.T, y)
        self._shift(len(x), mean_x, mean_y, x.square().sum(0), y.square().sum(0))

    def _shift(self, n_b: int, mean_x: Tensor, mean_y: Tensor, m2_x: Tensor, m2_y: Tensor) -> None:
        """Move the means, once the products about their own means are added up."""
        n = self.count + n_b
        if not n_b:
            return
        if not self.count:
            self.mean_x, self.mean_y, self.m2_x, self.m2_y = mean_x, mean_y, m2_x, m2_y
            return
        delta_x, delta_y = mean_x - self.mean_x, mean_y - self.mean_y
        weight = self.count * (n_b / n)
        self.products.addr_(delta_x, delta_y, alpha=weight)
        self.m2_x = self.m2_x + m2_x + delta_x.square() * weight
        self.m2_y = self.m2_y + m2_y + delta_y.square() * weight
        self.mean_x, self.mean_y = self.mean_x + delta_x * (n_b / n), self.mean_y + delta_y * (n_b / n)

    def _join(self, other: "CrossCorrelation") -> None:
        mean_x, mean_y, m2_x, m2_y, products = (getattr(other, name).to(self.mean_x.device) for name in self.state)
        self.products += products
        self._shift(other.count, mean_x.clone(), mean_y.clone(), m2_x.clone(), m2_y.clone())

    def result(self) -> Correlation:
        """Give the correlations.

        Raises:
            ValueError: if nothing was seen.
        """
        self._require_rows()
        # Roots apart: the product of two tiny variances is 0 in float64. A unit that never changed gives 0 / 0.
        root_x, root_y = self.m2_x.sqrt(), self.m2_y.sqrt()
        edges = torch.linspace(-1, 1, BINS + 1, dtype=torch.float64, device=root_x.device)
        histogram = torch.zeros(BINS, dtype=torch.long, device=root_x.device)
        best, partner, matrix = [], [], []
        square = self.units[0] == self.units[1]
        diag = self.products.diagonal() / root_x / root_y if square else None
        size = max(1, CHUNK // self.units[1])
        for products, root in zip(self.products.split(size), root_x.split(size), strict=True):
            rho = (products / root[:, None] / root_y).clamp_(-1, 1)
            places = torch.bucketize(rho[~rho.isnan()], edges, right=True).clamp_(max=BINS) - 1
            histogram += torch.bincount(places, minlength=BINS)
            largest, index = rho.nan_to_num(nan=-torch.inf).max(1)
            nobody = largest.isneginf()
            best.append(largest.masked_fill(nobody, torch.nan))
            partner.append(index.masked_fill(nobody, -1))
            if self.keep == "full":
                matrix.append(rho)
        return Correlation(
            self.count,
            torch.cat(best),
            torch.cat(partner),
            None if diag is None else diag.clamp(-1, 1),
            edges,
            histogram,
            torch.cat(matrix) if matrix else None,
        )
