"""Spaces of cells: small directed acyclic graphs with operations on their edges, or on their nodes.

Edges (NAS-Bench-201, DARTS): a node is the sum of its incoming edges, each an operation on the node that it leaves,

    h_j = sum_{i -> j} o_ij(h_i),      h_0 the input, the last node the output.

Nodes (NAS-Bench-101): every node but the ends has an operation, which sees the sum of the nodes with an edge to it.

Source: White et al. 2023 (arXiv 2301.08727), section 2.3; Ying et al., ICML 2019; Dong & Yang, ICLR 2020. The path
encoding: White, Neiswanger & Savani, AAAI 2021 (BANANAS).
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.structure.search.spaces import Architecture, Space

__all__ = ["NASBENCH_201", "CellSpace", "GraphSpace", "nasbench101_space", "nasbench201_space"]

Edge = tuple[int, int]

NASBENCH_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
"""Operations of NAS-Bench-201, by the names of its own table."""


class CellSpace(Space):
    """Cells with an operation on every edge; a decision is called "i->j".

    Args:
        edges: pairs (from, to) with from < to; node 0 is the input, the largest the output.
        ops: names of the operations.
        zero: the operation that gives 0: it cuts the edge. None where there is none.
        preserving: operations that give 0 where they get 0 (skip, pooling): behind a dead node they are cuts too.
        fixed: edges that are not searched, and their operations.

    Attributes:
        nodes: number of nodes, both ends included.

    Raises:
        ValueError: if there are no edges, one does not go upwards or stands twice, an operation is unknown, or nothing
            leads from the input to the output.
    """

    def __init__(
        self,
        edges: Sequence[Edge],
        ops: Sequence[str],
        *,
        zero: str | None = "zero",
        preserving: Sequence[str] = ("skip",),
        fixed: Mapping[Edge, str] | None = None,
    ):
        self.edges, self.ops, self.zero = tuple(edges), tuple(ops), zero
        self.preserving, self.fixed = tuple(preserving), dict(fixed or {})
        every = [*self.edges, *self.fixed]
        bad = [edge for edge in every if not 0 <= edge[0] < edge[1] or every.count(edge) > 1]
        if not self.edges or bad:
            raise ValueError(f"edges must be different pairs (i, j) with 0 <= i < j, got {bad or self.edges}.")
        if zero is not None and zero not in self.ops:
            raise ValueError(f"zero must be one of the operations {self.ops} or None, got {zero!r}.")
        self.nodes = 1 + max(to for _, to in every)
        ends = (0, self.nodes - 1)
        if ends[0] not in self._reaching(every, ends[1]):
            raise ValueError(f"Nothing leads from node 0 to node {ends[1]}: edges {every}.")
        super().__init__({f"{i}->{j}": self.ops for i, j in self.edges})

    def operations(self, architecture: Architecture) -> dict[Edge, str]:
        """The operation of every edge, fixed ones included."""
        chosen = (self.ops[number] for number in architecture)
        return dict(zip(self.edges, chosen, strict=True)) | self.fixed

    def canonical(self, architecture: Architecture) -> Architecture:
        """The code in which every edge that moves nothing is cut.

        An edge moves nothing if it leads to no output, or brings the zero of a dead node through an operation that
        keeps it. Isomorphic cells stay apart: their edges have initial weights of their own.
        """
        if self.zero is None:
            return architecture
        operations, before = self.operations(architecture), None
        while operations != before:
            before = dict(operations)
            open_edges = [edge for edge, name in operations.items() if name != self.zero]
            useful = self._reaching(open_edges, self.nodes - 1)
            alive = {0}
            for source, to in sorted(open_edges, key=lambda edge: edge[1]):
                if source in alive or operations[source, to] not in self.preserving:
                    alive.add(to)
            for edge in self.edges:
                if edge[1] not in useful or (edge[0] not in alive and operations[edge] in self.preserving):
                    operations[edge] = self.zero
        return tuple(self.ops.index(operations[edge]) for edge in self.edges)

    def encode(self, architecture: Architecture, kind: str = "onehot") -> Float[Tensor, " features"]:
        """Numbers that a surrogate can learn from.

        Args:
            architecture: the code.
            kind: "onehot", an operation of every edge; "path", for every sequence of operations that some path from
                input to output can have, whether one has it.

        Raises:
            ValueError: if the kind is unknown.
        """
        if kind == "onehot":
            return super().encode(architecture)
        if kind != "path":
            raise ValueError(f'kind must be "onehot" or "path", got {kind!r}.')
        features = torch.zeros(len(self._sequences))
        operations = self.operations(self.canonical(architecture))
        for path in self._paths:
            sequence = tuple(operations[edge] for edge in path)
            if self.zero not in sequence:
                features[self._sequences[sequence]] = 1
        return features

    @cached_property
    def _paths(self) -> list[tuple[Edge, ...]]:
        every, finished = [*self.edges, *self.fixed], []
        growing: list[tuple[Edge, ...]] = [(edge,) for edge in every if edge[0] == 0]
        while growing:
            path = growing.pop()
            if path[-1][1] == self.nodes - 1:
                finished.append(path)
            growing += [(*path, edge) for edge in every if edge[0] == path[-1][1]]
        return sorted(finished, key=lambda path: (len(path), path))

    @cached_property
    def _sequences(self) -> dict[tuple[str, ...], int]:
        moving = [name for name in self.ops if name != self.zero]
        found: dict[tuple[str, ...], int] = {}
        for path in self._paths:
            for sequence in itertools.product(*([self.fixed[e]] if e in self.fixed else moving for e in path)):
                found.setdefault(sequence, len(found))
        return found

    @staticmethod
    def _reaching(edges: Sequence[Edge], target: int) -> set[int]:
        """Nodes from which a path leads to the target, itself included."""
        found = {target}
        for source, to in sorted(edges, key=lambda edge: -edge[1]):
            if to in found:
                found.add(source)
        return found


class GraphSpace(Space):
    """Cells with an operation on every node but the ends, and any edges up to a number.

    Decisions: "i->j" for every pair i < j (0 or 1), then "node k". Nodes that no path from input to output crosses are
    no part of the cell; two cells are the same if a renaming of the inner nodes makes them so.

    Args:
        nodes: at most, both ends included, at least 2.
        ops: names of the operations.
        max_edges: of the cell without the nodes that are no part of it.

    Raises:
        ValueError: if a number is out of range or there are no operations.
    """

    def __init__(self, nodes: int, ops: Sequence[str], *, max_edges: int = 9):
        if nodes < 2 or max_edges < 1 or not ops:
            raise ValueError(f"nodes >= 2, max_edges >= 1 and ops wanted, got {nodes}, {max_edges} and {list(ops)}.")
        self.nodes, self.ops, self.max_edges = nodes, tuple(ops), max_edges
        self.pairs = tuple(itertools.combinations(range(nodes), 2))
        choices: dict[str, Sequence] = {f"{i}->{j}": (0, 1) for i, j in self.pairs}
        super().__init__(choices | {f"node {k}": self.ops for k in range(1, nodes - 1)})

    def edges(self, architecture: Architecture) -> list[Edge]:
        """Edges on some path from input to output."""
        every = [pair for pair, there in zip(self.pairs, architecture, strict=False) if there]
        reached, useful = {0}, {self.nodes - 1}
        for source, to in every:  # in the order of their sources, which is that of the nodes
            if source in reached:
                reached.add(to)
        for source, to in sorted(every, key=lambda edge: -edge[1]):
            if to in useful:
                useful.add(source)
        kept = reached & useful
        return [(source, to) for source, to in every if source in kept and to in kept]

    def valid(self, architecture: Architecture) -> bool:
        """Whether the output hears of the input, over few enough edges."""
        return 0 < len(self.edges(architecture)) <= self.max_edges

    def canonical(self, architecture: Architecture) -> Architecture:
        """The smallest code of all cells that a renaming of the inner nodes makes of this one."""
        edges, last = self.edges(architecture), self.nodes - 1
        inner = sorted({node for edge in edges for node in edge} - {0, last})
        ops = dict(zip(range(1, last), architecture[len(self.pairs) :], strict=True))
        return min(self._renamed(edges, ops, inner))

    def encode(self, architecture: Architecture, kind: str = "onehot") -> Float[Tensor, " features"]:
        """Numbers that a surrogate can learn from.

        Args:
            architecture: the code.
            kind: "onehot", the edges and operations of the canonical code; "path", for every sequence of operations,
                the empty one first, whether a path from input to output has it.

        Raises:
            ValueError: if the kind is unknown.
        """
        if kind == "onehot":
            return super().encode(architecture)
        if kind != "path":
            raise ValueError(f'kind must be "onehot" or "path", got {kind!r}.')
        edges, inner = self.edges(architecture), architecture[len(self.pairs) :]
        count = len(self.ops)
        # Sequences in order of their length, those of one length as numbers in base `count`.
        features = torch.zeros(sum(count**length for length in range(self.nodes - 1)))
        growing: list[tuple[int, tuple[int, ...]]] = [(0, ())]
        while growing:
            node, sequence = growing.pop()
            if node == self.nodes - 1:
                place = sum(count**shorter for shorter in range(len(sequence)))
                features[place + sum(op * count**at for at, op in enumerate(sequence))] = 1
                continue
            for _, to in (edge for edge in edges if edge[0] == node):
                growing.append((to, sequence if to == self.nodes - 1 else (*sequence, inner[to - 1])))
        return features

    def _renamed(self, edges: list[Edge], ops: dict[int, int], inner: list[int]) -> Iterator[Architecture]:
        last = self.nodes - 1
        for order in itertools.permutations(range(1, len(inner) + 1)):
            name = dict(zip(inner, order, strict=True)) | {0: 0, last: last}
            renamed = {(name[source], name[to]) for source, to in edges}
            if all(source < to for source, to in renamed):
                numbers = dict.fromkeys(range(1, last), 0) | {name[node]: ops[node] for node in inner}
                yield (*(int(pair in renamed) for pair in self.pairs), *(numbers[k] for k in range(1, last)))


def nasbench201_space() -> CellSpace:
    """The cells of NAS-Bench-201: four nodes, all six edges, five operations, 15,625 codes."""
    edges = [(i, j) for j in range(1, 4) for i in range(j)]
    return CellSpace(edges, NASBENCH_201, zero="none", preserving=("skip_connect", "avg_pool_3x3"))


def nasbench101_space(nodes: int = 7) -> GraphSpace:
    """The cells of NAS-Bench-101: at most seven nodes and nine edges, three operations, 423,624 networks.

    Args:
        nodes: at most; fewer give its smaller cells.
    """
    return GraphSpace(nodes, ("conv3x3-bn-relu", "conv1x1-bn-relu", "maxpool3x3"))
