"""Weight sharing: one network that holds every operation of every edge, of which each architecture is a part.

    single path   each step trains the weights of one architecture, drawn uniformly (SPOS); architectures are then
                  ranked by their loss with the inherited weights
    mixture       every edge gives sum_o p_o o(h), p a softmax over operations (DARTS, see `darts`)

Source: Guo et al., ECCV 2020 (arXiv 1904.00420); White et al. 2023 (arXiv 2301.08727), section 4.
"""

import copy
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.structure.search.cell_spaces import CellSpace, Edge
from neuropil.structure.search.cells import Cell, CellNetwork, MakeOperation, run_graph
from neuropil.structure.search.spaces import Architecture

__all__ = ["Supernet"]

Loss = Callable[[Tensor, Tensor], Tensor]


class Supernet(nn.Module):
    """All operations on all edges, between one stem and one head.

    Args:
        space: of the cells.
        stem: from inputs to the cell's input.
        make: makes the module of an operation on an edge; all must keep the shape that they get.
        head: from the cell's output to logits.

    Attributes:
        operations: a list of modules for every searched edge, in the order of `space.ops`.
    """

    def __init__(self, space: CellSpace, stem: nn.Module, make: MakeOperation, head: nn.Module):
        super().__init__()
        self.space, self.stem, self.head = space, stem, head
        self.operations = nn.ModuleList(nn.ModuleList(make(edge, name) for name in space.ops) for edge in space.edges)
        self._place = {edge: at for at, edge in enumerate(space.edges)}
        self._fixed_place = {edge: at for at, edge in enumerate(space.fixed)}
        self.fixed = nn.ModuleList(make(edge, name) for edge, name in space.fixed.items())
        self._wiring = sorted([*space.edges, *space.fixed], key=lambda edge: (edge[1], edge[0]))

    def forward(
        self,
        x: Tensor,
        architecture: Architecture | None = None,
        *,
        mixture: Float[Tensor, "edges operations"] | None = None,
    ) -> Tensor:
        """Logits of one architecture, or of a mixture.

        Args:
            x: inputs, (batch, ...).
            architecture: whose operations are used.
            mixture: share of each operation on each edge, instead.

        Raises:
            ValueError: if neither or both are given, or do not fit the space.
        """
        if (architecture is None) == (mixture is None):
            raise ValueError("Either an architecture or a mixture is wanted.")
        wanted = (len(self.space.edges), len(self.space.ops))
        if architecture is not None:
            self.space.check(architecture)
        elif mixture is not None and mixture.shape != wanted:
            raise ValueError(f"mixture must be of shape {wanted}, got {tuple(mixture.shape)}.")

        def operate(edge: Edge, h: Tensor) -> Tensor:
            if edge in self._fixed_place:
                return self.fixed[self._fixed_place[edge]](h)
            at = self._place[edge]
            operations: Sequence[nn.Module] = list(self.operations[at].children())
            if architecture is not None:
                return operations[architecture[at]](h)
            assert mixture is not None
            return torch.stack([p * o(h) for p, o in zip(mixture[at], operations, strict=True)]).sum(0)

        return self.head(run_graph(self.stem(x), self.space.nodes, self._wiring, operate))

    def train_step(
        self,
        batch: tuple[Tensor, Tensor],
        loss_fn: Loss,
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
    ) -> float:
        """One step on the weights of one architecture, drawn uniformly.

        Weights that it does not use have no gradient: the optimizer leaves them and their state alone.

        Args:
            batch: inputs and targets.
            loss_fn: of (logits, targets).
            optimizer: of the parameters.
            generator: of the draw.

        Returns:
            The loss.

        Raises:
            FloatingPointError: if it is not finite, naming the architecture.
        """
        architecture = self.space.sample(generator)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn(self(batch[0], architecture), batch[1])
        if not loss.isfinite():
            raise FloatingPointError(f"The loss of architecture {architecture} is {loss.item()}.")
        loss.backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def value(self, architecture: Architecture, batch: tuple[Tensor, Tensor], loss_fn: Loss) -> float:
        """Minus the loss with the inherited weights, in the mode in which the network is.

        Args:
            architecture: which.
            batch: inputs and targets, of the validation part.
            loss_fn: of (logits, targets).
        """
        return -float(loss_fn(self(batch[0], architecture), batch[1]))

    def extract(self, architecture: Architecture) -> CellNetwork:
        """The network of one architecture, with copies of its inherited weights."""
        self.space.check(architecture)

        def inherit(edge: Edge, _: str) -> nn.Module:
            if edge in self._fixed_place:
                return copy.deepcopy(self.fixed[self._fixed_place[edge]])
            at = self._place[edge]
            return copy.deepcopy(list(self.operations[at].children())[architecture[at]])

        cell = Cell(self.space, architecture, inherit)
        return CellNetwork(copy.deepcopy(self.stem), cell, copy.deepcopy(self.head))
