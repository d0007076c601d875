"""Remove units one at a time, and let the others take over what they can (optimal brain surgeon).

With the curvature A (x) G of a layer s = W abar, the change of W that sets row i to zero at least cost is, whatever A,

    W <- W - G^-1 e_i / [G^-1]_ii  w_i^T,      rise = 1/2 w_i^T A w_i / [G^-1]_ii

The layer's other units take over the pre-activation that is lost, as far as it matters to the loss. For the units that
are left G^-1 <- G^-1 - G^-1 e_i e_i^T G^-1 / [G^-1]_ii, the inverse of G without i. Only products of rows are needed to
go on, M = W A W^T, which change as W does: removing all units of a layer costs its width cubed, however many inputs it
has. A unit of several rows goes as a block.

A and G, rows and columns exchanged, the layer that reads a unit loses column j and draws what it had from it from its
other inputs and its bias, as a regression would; this is the one to take where a norm follows the producer, whose
output is not zero when its input is.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuropil.neurons.ranges import require
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.probes.curvature.layers import Layer, from_matrix, to_matrix
from neuropil.structure.curvature import Rows, Side, consumers, damped_inverse, layer_matrices, producers
from neuropil.structure.graph.units import UnitGroup

__all__ = ["Compensation", "Elimination", "compensated_cut", "natural_side"]


class Elimination:
    """Removal of the units of one layer, one at a time, in the space of its rows.

    Args:
        gram: M = W A W^T, (rows, rows).
        inverse: G^-1, (rows, rows).
        index: rows of every unit.

    Attributes:
        transform: T; the repaired weights are T W, and rows of removed units zero.
        alive: which units are left.
    """

    def __init__(self, gram: Float[Tensor, "rows rows"], inverse: Float[Tensor, "rows rows"], index: Rows):
        self.gram = gram.double().clone()
        self.inverse = inverse.double().clone()
        self.index = index.to(gram.device)
        self.transform = torch.eye(len(gram), dtype=torch.float64, device=gram.device)
        self.alive = torch.ones(len(index), dtype=torch.bool, device=gram.device)

    def rises(self) -> Float[Tensor, " units"]:
        """Rise of the loss by the removal of each unit now; infinite for those that are gone."""
        index = self.index[self.alive]
        left, right = index[:, :, None], index[:, None, :]
        solved = torch.linalg.solve(self.inverse[left, right], self.gram[left, right])
        found = torch.full((len(self.index),), float("inf"), dtype=torch.float64, device=self.gram.device)
        found[self.alive] = 0.5 * solved.diagonal(dim1=1, dim2=2).sum(1)
        return found

    def remove(self, unit: int) -> None:
        """Remove a unit and let the others take over.

        Raises:
            ValueError: if it is gone already.
        """
        if not bool(self.alive[unit]):
            raise ValueError(f"unit {unit} was removed before.")
        rows = self.index[unit]
        block = self.inverse[rows][:, rows]
        # (rows, rows of the unit): what each row takes over; 1 at the unit's own, which becomes zero.
        share = torch.linalg.solve(block, self.inverse[rows]).T
        self.transform = self.transform - share @ self.transform[rows]
        left = self.gram - share @ self.gram[rows]
        self.gram = left - left[:, rows] @ share.T
        self.inverse = self.inverse - share @ self.inverse[rows]
        for matrix in (self.transform, self.gram, self.inverse):
            matrix[rows] = 0.0  # exactly, not up to rounding
        for matrix in (self.gram, self.inverse):
            matrix[:, rows] = 0.0
        self.alive[unit] = False


def natural_side(group: UnitGroup, layers: Mapping[str, Layer]) -> Side:
    """Tell where the removal of a group's units is best compensated.

    "out", at the layers that produce them, if these are linear layers or convolutions and nothing but an activation
    follows; "in", at those that read them, if a norm is among the producers.
    """
    normed = {member.parameter.rpartition(".")[0] for member in group.producing()} - set(layers)
    return "out" if producers(group, layers) and not normed else "in"


class Compensation:
    """Removal of the units of one group, one at a time, with every layer that produces (or reads) them compensated.

    Nothing changes in the network before `repair_`.

    Args:
        factors: of the network's layers, up to date.
        group: of the network's unit graph.
        damping: added to the factor that is inverted, in its mean diagonals; not negative.
        side: "out" for the layers that produce the units, "in" for those that read them.

    Attributes:
        removed: units so far, in their order.
        rise: predicted, of all that are removed.

    Raises:
        ValueError: if no layer with factors is on that side.

    Source: Hassibi & Stork, NeurIPS 1992, eq. 5, with A (x) G for the Hessian.
    """

    def __init__(self, factors: KroneckerFactors, group: UnitGroup, *, damping: float = 0.01, side: Side = "out"):
        require("damping", damping, 0.0, float("inf"), ends=(True, False))
        self.factors = factors
        self.group = group
        self.removed: list[int] = []
        self.rise = 0.0
        self._layers: list[tuple[str, Elimination]] = []
        self.side: Side = side
        for name, index in (producers if side == "out" else consumers)(group, factors.layers):
            weight, a, g = layer_matrices(factors, name)
            if side == "in":
                weight, a, g = weight.T, g, a
            inverse = damped_inverse(g, damping, name)
            self._layers.append((name, Elimination(weight @ a @ weight.T, inverse, index)))
        if not self._layers:
            verb = "produces" if side == "out" else "reads"
            raise ValueError(f"No layer with Kronecker factors {verb} the units of {group.name!r}.")

    @property
    def keep(self) -> Bool[Tensor, " units"]:
        """Which units are left."""
        return self._layers[0][1].alive.clone()

    def rises(self) -> Float[Tensor, " units"]:
        """Predicted rise of the loss by the removal of each unit now, summed over layers; infinite for those gone."""
        return torch.stack([elimination.rises() for _, elimination in self._layers]).sum(0)

    def remove(self, unit: int) -> None:
        """Remove a unit.

        Raises:
            ValueError: if it is gone already.
        """
        self.rise += float(self.rises()[unit])
        for _, elimination in self._layers:
            elimination.remove(unit)
        self.removed.append(unit)

    def shrink_to(self, width: int) -> None:
        """Remove the cheapest unit, again and again, until `width` are left.

        Raises:
            ValueError: if width is less than 1.
        """
        if width < 1:
            raise ValueError(f"width must be at least 1, got {width}.")
        while int(self.keep.sum()) > width:
            self.remove(int(self.rises().argmin()))

    @torch.no_grad()
    def repair_(self) -> None:
        """Write the repaired weights and biases of the layers on that side; those of removed units become zero."""
        for name, elimination in self._layers:
            layer = self.factors.layers[name]
            bias = None if layer.bias is None else layer.bias
            matrix = to_matrix(layer, layer.weight, bias)
            turned = matrix.double() if self.side == "out" else matrix.double().T
            repaired = elimination.transform @ turned
            repaired = (repaired if self.side == "out" else repaired.T).to(matrix)
            new_weight, new_bias = from_matrix(layer, repaired)
            layer.weight.copy_(new_weight)
            if bias is not None and new_bias is not None:
                bias.copy_(new_bias)


def compensated_cut(
    factors: KroneckerFactors,
    groups: Mapping[str, UnitGroup],
    widths: Mapping[str, int],
    *,
    damping: float = 0.01,
    side: Side | None = None,
) -> dict[str, Bool[Tensor, " units"]]:
    """Choose and compensate the units to remove, down to given widths; the weights are repaired, nothing is cut yet.

    Args:
        factors: of the network's layers, up to date.
        groups: by name.
        widths: units to leave, by group.
        damping: as of `Compensation`.
        side: as of `Compensation`; None: for each group the one that suits it.

    Returns:
        By group, which units stay: for `shrink`.
    """
    found = {}
    for name, width in widths.items():
        here = natural_side(groups[name], factors.layers) if side is None else side
        compensation = Compensation(factors, groups[name], damping=damping, side=here)
        compensation.shrink_to(width)
        compensation.repair_()
        found[name] = compensation.keep
    return found
