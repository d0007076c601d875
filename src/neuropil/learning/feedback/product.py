"""Feedback through an extra population: fixed B, then plastic R; only their product aligns with the forward weights.

With n outputs, an extra population of m = k n units (k the expansion), B (n, m) fixed and R (m, fan-in) plastic:

    eps         =  B^T delta                     activity of the extra population
    error of h  =  R^T * eps
    grad W      =  delta h^T
    grad R      =  eps h^T  =  B^T grad W

so a step with weight decay moves  B R  by  -eta (B B^T) grad W - eta lambda B R.  With B B^T close to I the product
follows the recursion of W, and weight decay forgets the difference: no pair of neurons has symmetric synapses, yet
B R -> W. Entries of B with variance 1/m give E[B B^T] = I; its eigenvalues spread by Marchenko-Pastur with ratio 1/k,
which leaves an angle near atan(1/sqrt(k)) between W and B R (45 degrees for k = 1, 17.5 for 10); B with orthonormal
rows leaves none. In a convolution R is a kernel and B a 1x1 kernel; groups have a B each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from neuropil.learning.feedback.maps import WeightLayer, pull_back, weight_gradient
from neuropil.learning.feedback.rule import FeedbackRule, own_name, xavier_uniform
from neuropil.learning.rule import Loss

__all__ = ["ProductFeedbackAlignment"]


class ProductFeedbackAlignment(FeedbackRule):
    """Carry errors back through fixed random, then plastic weights, without weight symmetry.

    Give the optimizer the net's and the rule's parameters with the same settings, and weight decay:
    `SGD([*net.parameters(), *rule.parameters()], weight_decay=...)`; plan for three time constants 1 / (rate x decay)
    (times 1 - momentum). The guarantee is for SGD with or without momentum; Adam breaks it.

    Args:
        net: any module of Linear and Conv layers.
        loss_fn: mean-reduced loss of (output, target).
        expansion: k, units of the extra population per output, at least 1.
        orthogonal: draw B with orthonormal rows; with an expansion of 1 this is the paper's PFA-o.
        density: fraction of the entries of B and R that exist, in (0, 1]; the others stay zero.
        layers: as in `FeedbackRule`.
        generator: source of B, of the first R (Xavier uniform) and of the masks; None is one of seed 0, never the
            global state.

    Raises:
        TypeError: as in `FeedbackRule`.
        ValueError: as in `FeedbackRule`, or if expansion or density is out of range, or a sparse B is to be orthogonal.

    Source: Li Ji-An & Benna, arXiv:2405.20594 (2024).
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        expansion: float = 10,
        orthogonal: bool = False,
        density: float = 1.0,
        layers: Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__(net, loss_fn, layers=layers)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        if not expansion >= 1:
            raise ValueError(f"expansion must be at least 1, got {expansion}.")
        if not 0 < density <= 1:
            raise ValueError(f"density must lie in (0, 1], got {density}.")
        if orthogonal and density < 1:
            raise ValueError(f"orthogonal rows have no zeros to spare: density must be 1, got {density}.")
        self.density = density
        for name, layer in self.layers.items():
            weight, groups = layer.weight.detach(), _groups(layer)
            outputs = weight.shape[0] // groups
            width = round(expansion * outputs)
            plastic = xavier_uniform((groups * width, *weight.shape[1:]), generator, weight)
            if orthogonal:
                drawn = torch.randn(groups, width, outputs, generator=generator, dtype=torch.float64)
                fixed = torch.linalg.qr(drawn)[0].mT
            else:
                fixed = torch.empty(groups, outputs, width)
                fixed.uniform_(-1, 1, generator=generator).mul_((3 / (width * density)) ** 0.5)
                if density < 1:
                    fixed *= torch.rand(fixed.shape, generator=generator) < density
                    mask = (torch.rand(plastic.shape, generator=generator) < density).to(weight)
                    plastic *= mask
                    self.register_buffer(f"mask {own_name(name)}", mask)
            self.register_buffer(f"B {own_name(name)}", fixed.to(weight))
            self.register_parameter(f"R {own_name(name)}", nn.Parameter(plastic))

    def fixed(self, name: str) -> Tensor:
        """B of a layer, (groups, outputs a group, width a group)."""
        return self.get_buffer(f"B {own_name(name)}").to(self.layers[name].weight)

    def plastic(self, name: str) -> nn.Parameter:
        """R of a layer, like its weight but with the extra population in the place of the outputs."""
        return self.get_parameter(f"R {own_name(name)}")

    def back_weight(self, name: str) -> Tensor:
        """B R of a layer."""
        fixed, plastic = self.fixed(name), self.plastic(name)
        product = fixed @ plastic.detach().view(fixed.shape[0], fixed.shape[2], -1)
        return product.view_as(self.layers[name].weight)

    def own(self) -> dict[str, list[Tensor]]:
        """R of every layer."""
        return {name: [self.plastic(name)] for name in self.layers}

    def send_back(
        self, name: str, delta: Tensor, h: Tensor, wanted: bool
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """R^T * (B^T delta), and (B^T delta) h^T for R."""
        layer, plastic = self.layers[name], self.plastic(name).detach()
        eps = _population(layer, self.fixed(name), delta)
        error = pull_back(layer, plastic, eps, h) if wanted else None
        gradient = weight_gradient(layer, plastic, eps, h)
        if self.density < 1:
            gradient = gradient * self.get_buffer(f"mask {own_name(name)}").to(gradient)
        return error, [gradient]


def _groups(layer: WeightLayer) -> int:
    return 1 if isinstance(layer, nn.Linear) else layer.groups


def _population(layer: WeightLayer, fixed: Tensor, delta: Tensor) -> Tensor:
    """Activity of the extra population, B^T delta in every group, with its units where delta has the outputs."""
    axis = -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)
    grouped = delta.movedim(axis, -1).unflatten(-1, fixed.shape[:2])
    return torch.einsum("...go,gom->...gm", grouped, fixed).flatten(-2).movedim(-1, axis)
