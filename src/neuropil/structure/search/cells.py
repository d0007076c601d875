"""Networks of a cell space: one cell between a stem and a head, as a module of its own.

z = stem(x);   h_0 = z,   h_j = sum_{i -> j} o_ij(h_i);   y = head(h_last)
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from neuropil.structure.search.cell_spaces import CellSpace, Edge
from neuropil.structure.search.spaces import Architecture

__all__ = ["Cell", "CellNetwork", "MakeOperation", "Zero"]

MakeOperation = Callable[[Edge, str], nn.Module]
"""Makes the module of an operation for an edge."""


class Zero(nn.Module):
    """The operation that gives 0."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the input's shape, which still are a function of it."""
        return 0 * x


class Cell(nn.Module):
    """A directed acyclic graph of operations; a node is the sum of its incoming edges.

    Args:
        space: of the cell.
        architecture: its code.
        make: module of an operation by edge and name; all must keep the shape that they get.

    Raises:
        ValueError: if the architecture is none of the space.
    """

    def __init__(self, space: CellSpace, architecture: Architecture, make: MakeOperation):
        super().__init__()
        self.architecture = space.check(architecture)
        self.nodes = space.nodes
        operations = space.operations(architecture)
        # In order of their ends, so that a node is whole before it is read.
        self.wiring = sorted(operations, key=lambda edge: (edge[1], edge[0]))
        self.operations = nn.ModuleDict({_name(edge): make(edge, operations[edge]) for edge in self.wiring})

    def forward(self, x: Tensor) -> Tensor:
        """The last node; shape of the input."""
        return run_graph(x, self.nodes, self.wiring, lambda edge, h: self.operations[_name(edge)](h))


class CellNetwork(nn.Module):
    """Stem, cell, head.

    Args:
        stem: from inputs to the cell's input.
        cell: keeps shapes.
        head: from the cell's output to logits.
    """

    def __init__(self, stem: nn.Module, cell: nn.Module, head: nn.Module):
        super().__init__()
        self.stem, self.cell, self.head = stem, cell, head

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (batch, classes)."""
        return self.head(self.cell(self.stem(x)))


def run_graph(x: Tensor, nodes: int, wiring: list[Edge], operate: Callable[[Edge, Tensor], Tensor]) -> Tensor:
    """Value of the last node; `wiring` in order of the edges' ends. A node that nothing enters is 0."""
    values: dict[int, Tensor] = {0: x}
    for edge in wiring:
        source, to = edge
        moved = operate(edge, values[source] if source in values else torch.zeros_like(x))
        values[to] = values[to] + moved if to in values else moved
    return values[nodes - 1]


def lookup(table: Mapping[str, Callable[[], nn.Module]]) -> MakeOperation:
    """Operations that are alike on every edge, from a table of makers.

    Raises:
        ValueError: from the result, if an operation is not in the table.
    """

    def make(edge: Edge, name: str) -> nn.Module:
        if name not in table:
            raise ValueError(f"No module for operation {name!r} of edge {edge}; the table has {sorted(table)}.")
        return table[name]()

    return make


def _name(edge: Edge) -> str:
    return f"{edge[0]}->{edge[1]}"
