"""What the loss loses with a unit, by the Kronecker factors of its layer's curvature.

A layer s = W abar whose curvature is taken as A (x) G (see `neuropil.probes.curvature`) has, with D = dL/dW and w_i the
row of unit i with its bias, the rise of the loss when the row is set to zero, all else held,

    dL_i = - D_i . w_i + 1/2 G_ii w_i^T A w_i

The first term may be left out only where training has converged. If the other units of the layer are changed at once as
suits best, they take over what they can of the removed unit's pre-activation (see `neuropil.structure.compensation`):

    dL_i = 1/2 w_i^T A w_i / [G^-1]_ii

Where a layer reads a unit, column j of its W, called v_j, goes as well, and its rise is

    dL_j = - D_:j . v_j + 1/2 A_jj v_j^T G v_j

A unit that is silenced at its producer is silenced for its readers: rows and columns are two estimates of one event,
not two events, and their sum would count it twice.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.neurons.ranges import require
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.probes.curvature.layers import Layer, to_matrix
from neuropil.structure.criterion import (
    Batches,
    Criterion,
    LossFunction,
    Needs,
    Scores,
    call,
    mean_gradients,
    undisturbed,
)
from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.graph.units import UnitGroup

__all__ = [
    "KroneckerNeuron",
    "Side",
    "column_rises",
    "consumers",
    "damped_inverse",
    "layer_matrices",
    "producers",
    "row_rises",
]

Side = Literal["out", "in"]
Rows = Int[Tensor, "units rows_of_unit"]


def producers(group: UnitGroup, layers: Mapping[str, Layer]) -> list[tuple[str, Rows]]:
    """Find the layers that produce a group's units, and the rows of W of every unit."""
    found = []
    for member in group.producing():
        name, _, kind = member.parameter.rpartition(".")
        if kind == "weight" and member.axis == 0 and name in layers:
            found.append((name, member.index))
    return found


def consumers(group: UnitGroup, layers: Mapping[str, Layer]) -> list[tuple[str, Rows]]:
    """Find the layers that read a group's units, and the columns of W of every unit."""
    found = []
    for member in group.reading():
        name, _, kind = member.parameter.rpartition(".")
        if kind == "weight" and member.axis == 1 and name in layers:
            kernel = layers[name].weight[0, 0].numel()
            columns = member.index[:, :, None] * kernel + torch.arange(kernel, device=member.index.device)
            found.append((name, columns.flatten(1)))
    return found


def row_rises(
    weight: Float[Tensor, "rows columns"],
    a: Float[Tensor, "columns columns"],
    g: Float[Tensor, "rows rows"],
    index: Rows,
    slope: Float[Tensor, "rows columns"] | None = None,
) -> Float[Tensor, " units"]:
    """Rise of the loss when the rows of a unit are set to zero, all else held.

    Args:
        weight: W.
        a: factor of the inputs.
        g: factor of the gradients.
        index: rows of every unit.
        slope: D = dL/dW; None leaves the first-order term out.
    """
    gram = weight @ a @ weight.T
    left, right = index[:, :, None], index[:, None, :]
    rises = 0.5 * (g[left, right] * gram[left, right]).sum((1, 2))
    return rises if slope is None else rises - (slope * weight).sum(1)[index].sum(1)


def column_rises(
    weight: Float[Tensor, "rows columns"],
    a: Float[Tensor, "columns columns"],
    g: Float[Tensor, "rows rows"],
    index: Rows,
    slope: Float[Tensor, "rows columns"] | None = None,
) -> Float[Tensor, " units"]:
    """Rise of the loss when the columns of a unit are set to zero; arguments as of `row_rises`."""
    return row_rises(weight.T, g, a, index, None if slope is None else slope.T)


def damped_inverse(g: Float[Tensor, "rows rows"], damping: float, name: str) -> Float[Tensor, "rows rows"]:
    """Invert G (or A) with a multiple of its mean diagonal added to the diagonal; float64.

    Raises:
        ValueError: if it is not positive definite, with the layer's name.
    """
    g = g.double()
    mean = g.diagonal().mean()
    # A layer that no gradient reaches costs nothing to cut, but its factor, all zero, has no inverse.
    added = damping * (mean if float(mean) > 0 else torch.ones_like(mean))
    lower, info = torch.linalg.cholesky_ex(g + added * torch.eye(len(g), dtype=g.dtype, device=g.device))
    if int(info):
        raise ValueError(
            f"A factor of {name or 'net'} is not positive definite after damping: raise damping (now {damping:g})."
        )
    return torch.cholesky_inverse(lower)


class KroneckerNeuron(Criterion):
    """Predicted rise of the loss for every unit of linear layers and convolutions; bigger is kept.

    As scores of weights, each unit's is spread evenly over its row, whose sum it is; `unit_scores` gives them for the
    groups of a unit graph.

    Args:
        factors: of the network's layers; None takes them from the batches of every call, all examples alike.
        compensate: rise after the layer's other units have taken over what they can; False: with all else held.
        first_order: whether the term in the gradient counts. None: with all else held it does; after compensation it
            does not, as it then speaks of a step of the other weights that is not taken for its own sake.
        damping: added to G before it is inverted, in mean diagonals of G; for compensation alone.

    Raises:
        ValueError: if damping is negative; on call, if a parameter is no weight of a factored layer.

    Source: Ebrahimi & Klabjan 2021, arXiv 2111.08577; Hassibi & Stork, NeurIPS 1992, for the compensated form.
    """

    needs: Needs = "curvature"

    def __init__(
        self,
        factors: KroneckerFactors | None = None,
        *,
        compensate: bool = True,
        first_order: bool | None = None,
        damping: float = 0.01,
    ):
        require("damping", damping, 0.0, float("inf"), ends=(True, False))
        self.factors = factors
        self.compensate = compensate
        self.first_order = not compensate if first_order is None else first_order
        self.damping = damping

    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """See `Criterion`."""
        layers = [name.removesuffix(".weight") if name != "weight" else "" for name in names]
        factors, slopes = self._looked(net, batches, loss_fn, layers)
        found = {}
        for name, layer in zip(names, layers, strict=True):
            if layer not in factors.layers:
                raise ValueError(f"KroneckerNeuron scores weights of layers with factors; {name!r} is none.")
            weight = factors.layers[layer].weight
            rows = torch.arange(len(weight), device=weight.device)[:, None]
            each = self._layer(factors, layer, rows, slopes)
            spread = (each / weight[0].numel()).view(-1, *[1] * (weight.dim() - 1))
            found[name] = spread.expand(weight.shape).contiguous()
        return found

    def unit_scores(
        self,
        net: nn.Module,
        batches: Batches,
        loss_fn: LossFunction | None,
        graph: UnitGraph,
        *,
        side: Side = "out",
    ) -> dict[str, Float[Tensor, " units"]]:
        """Score the units of every prunable group.

        Args:
            net: the network of the graph.
            batches: of (x, y), for the gradient and, without factors, for these.
            loss_fn: mean-reduced loss, for the gradient; not needed without the first-order term.
            graph: of the network.
            side: "out" by the rows that produce a unit, summed over the layers that do; "in" by the columns that read
                it, to be taken where a norm or an activation without a zero at zero lies between. A group without the
                one is scored by the other; without both, left out.

        Returns:
            By group, predicted rises of the loss, float64.
        """
        if side not in ("out", "in"):
            raise ValueError(f'side must be "out" or "in", got {side!r}.')
        factors, slopes = self._looked(net, batches, loss_fn, None)
        found = {}
        for group in graph.prunable(inexact=True):
            rows, columns = producers(group, factors.layers), consumers(group, factors.layers)
            made = [self._layer(factors, name, index, slopes) for name, index in rows]
            read = [self._columns(factors, name, index, slopes) for name, index in columns]
            parts = (made or read) if side == "out" else (read or made)
            if parts:
                found[group.name] = torch.stack(parts).sum(0)
        return found

    def _looked(
        self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, modules: list[str] | None
    ) -> tuple[KroneckerFactors, dict[str, Tensor]]:
        """The factors, and D of every layer if the first-order term counts."""
        factors = self.factors
        looking = factors is None or not factors.A
        if looking or self.first_order:
            batches = list(batches)
        if factors is None:
            factors = KroneckerFactors(net, modules, decay=None)
        if looking:
            with undisturbed(net), torch.enable_grad():
                for x, _ in batches:
                    with factors:
                        output = call(net, x)
                    factors.update(output)
            if not factors.A:
                raise ValueError(
                    "KroneckerNeuron needs batches of (x, y) or factors that were updated: there were none."
                )
        if not self.first_order:
            return factors, {}
        names = [f"{name}.{kind}".lstrip(".") for name, layer in factors.layers.items() for kind in _kinds(layer)]
        slopes = mean_gradients(net, batches, loss_fn, names, reader="KroneckerNeuron")
        return factors, {
            name: to_matrix(
                layer, slopes[f"{name}.weight".lstrip(".")], slopes.get(f"{name}.bias".lstrip("."))
            ).double()
            for name, layer in factors.layers.items()
        }

    def _layer(self, factors: KroneckerFactors, name: str, index: Tensor, slopes: Mapping[str, Tensor]) -> Tensor:
        weight, a, g = layer_matrices(factors, name)
        slope = slopes.get(name)
        if not self.compensate:
            return row_rises(weight, a, g, index, slope)
        inverse = damped_inverse(g, self.damping, name)
        return _compensated(weight, a, inverse, index, slope)

    def _columns(self, factors: KroneckerFactors, name: str, index: Tensor, slopes: Mapping[str, Tensor]) -> Tensor:
        weight, a, g = layer_matrices(factors, name)
        slope = slopes.get(name)
        if not self.compensate:
            return column_rises(weight, a, g, index, slope)
        inverse = damped_inverse(a, self.damping, name)
        return _compensated(weight.T, g, inverse, index, None if slope is None else slope.T)


def _kinds(layer: Layer) -> tuple[str, ...]:
    return ("weight",) if layer.bias is None else ("weight", "bias")


def layer_matrices(factors: KroneckerFactors, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """W, A and G in float64."""
    layer = factors.layers[name]
    weight = to_matrix(layer, layer.weight.detach(), None if layer.bias is None else layer.bias.detach())
    if name not in factors.A:
        raise ValueError(f"There are no factors of {name!r} yet: call update after a forward pass inside `with`.")
    a, g = factors.A[name], factors.G[name]
    if weight.shape != (len(g), len(a)):
        raise ValueError(
            f"{name or 'net'} has {weight.shape[0]} units and {weight.shape[1]} columns, its factors are of "
            f"{len(g)} and {len(a)}: call keep after surgery."
        )
    return weight.double(), a.double(), g.double()


def _compensated(weight: Tensor, a: Tensor, inverse: Tensor, index: Tensor, slope: Tensor | None) -> Tensor:
    """Rises when the other rows take over what they can: 1/2 tr([G^-1]_II^-1 W_I A W_I^T)."""
    gram = weight @ a @ weight.T
    left, right = index[:, :, None], index[:, None, :]
    block = inverse[left, right]
    rises = 0.5 * torch.linalg.solve(block, gram[left, right]).diagonal(dim1=1, dim2=2).sum(1)
    if slope is None:
        return rises
    # The step is -G^-1 E_I [G^-1]_II^-1 W_I, along which the loss slopes by D.
    cross = (inverse @ slope @ weight.T)[left, right]
    return rises - torch.linalg.solve(block, cross).diagonal(dim1=1, dim2=2).sum(1)
