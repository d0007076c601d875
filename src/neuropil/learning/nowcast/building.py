"""Nodes and edges of a neural graph, added layer by layer."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from neuropil.learning.nowcast.graph import EDGE_TYPES, NODE_KINDS, NeuralGraph

__all__ = ["Builder"]


class Edges(NamedTuple):
    """Edges of one kind: their ends, the places of their weights (edges, features), and their constant."""

    source: Tensor
    target: Tensor
    kind: int
    weights: Tensor
    constant: float


class Builder:
    """Nodes and edges as they come.

    Args:
        table: places and kinds of the weights.
        places: by the parameter's id, where it lies in the flat vector.
        features: at most so many weights on one edge.
    """

    def __init__(self, table: NeuralGraph, places: dict[int, slice], features: int):
        self.table, self.places, self.features = table, places, features
        self.kinds: list[Tensor] = []
        self.words: list[Tensor] = []
        self.nodes = 0
        self.edges: list[Edges] = []
        self.ends: dict[int, tuple[Tensor, Tensor]] = {}
        self.weight_type = torch.zeros_like(table.weight_type)

    def new(self, count: int, kind: str, words: bool = False) -> Tensor:
        """Add nodes."""
        ids = torch.arange(self.nodes, self.nodes + count)
        self.nodes += count
        self.kinds.append(torch.full((count,), NODE_KINDS[kind]))
        self.words.append(torch.arange(1, count + 1) if words else torch.zeros(count, dtype=torch.int64))
        return ids

    def place(self, parameter: Tensor, where: str) -> Tensor:
        """Where a parameter's entries lie in the flat vector, in the parameter's shape."""
        span = self.places.get(id(parameter))
        if span is None:
            raise TypeError(f"A weight of {where} is computed from other parameters: neural_graph does not know that.")
        return torch.arange(span.start, span.stop).reshape(parameter.shape)

    def connect(self, source: Tensor, target: Tensor, kind: str, weights: Tensor) -> None:
        """Add edges with weights: source and target broadcast to the leading axes, the last axis is the kernel's."""
        shape = weights.shape[:-1]
        source, target = source.expand(shape).reshape(-1), target.expand(shape).reshape(-1)
        self.weight_type[weights.reshape(-1)] = EDGE_TYPES[kind]
        for part in weights.reshape(len(source), -1).split(self.features, dim=1):
            self.edges.append(Edges(source, target, EDGE_TYPES[kind], part, 0.0))

    def structure(self, source: Tensor, target: Tensor, kind: str, constant: float = 1.0) -> None:
        """Add edges without weights."""
        none = torch.full((len(source), 1), -1)
        self.edges.append(Edges(source, target, EDGE_TYPES[kind], none, constant))

    def join(self, one: Tensor, other: Tensor) -> Tensor:
        """Where two branches meet: the earlier one's channels drive the later one's, which go on."""
        if torch.equal(one, other):
            return one
        earlier, later = (one, other) if int(one.max()) < int(other.max()) else (other, one)
        self.structure(earlier, later, "residual")
        return later

    def constant(self, parameter: Tensor | None, target: Tensor, kind: str, where: str, rows: int = 1) -> None:
        """Connect constants to channels by a parameter: a bias, a norm's weight, embeddings of positions."""
        if parameter is None:
            return
        weights = self.place(parameter, where).reshape(rows, len(target), 1)
        if id(parameter) not in self.ends:
            source = self.new(rows, "constant")
            self.ends[id(parameter)] = (source, target)
            self.connect(source[:, None], target[None], kind, weights)
        else:
            self.join(self.ends[id(parameter)][1], target)

    def matrix(self, parameter: Tensor, source: Tensor, where: str) -> Tensor:
        """Connect by a linear layer's weight (targets, sources) and return the targets.

        A weight that was used before joins the neurons it stands between instead.
        """
        if id(parameter) in self.ends:
            first, target = self.ends[id(parameter)]
            self.join(first, source)
            return target
        target = self.new(len(parameter), "hidden")
        self.ends[id(parameter)] = (source, target)
        self.connect(source[None], target[:, None], "linear", self.place(parameter, where)[..., None])
        return target

    def finish(self, outputs: Iterable[Tensor]) -> NeuralGraph:
        """The graph of all that was added, with a loop at every node."""
        every = torch.arange(self.nodes)
        self.structure(every, every, "self", 2.0)
        kinds = torch.cat(self.kinds)
        for ids in outputs:
            kinds[ids] = torch.where(kinds[ids] == NODE_KINDS["hidden"], NODE_KINDS["output"], kinds[ids])
        width = max(edges.weights.shape[1] for edges in self.edges)
        weights = [
            nn.functional.pad(edges.weights, (0, width - edges.weights.shape[1]), value=-1) for edges in self.edges
        ]
        counts = torch.tensor([len(edges.source) for edges in self.edges])
        return replace(
            self.table,
            weight_type=self.weight_type,
            edge_index=torch.stack(
                [torch.cat([edges.source for edges in self.edges]), torch.cat([edges.target for edges in self.edges])]
            ),
            edge_type=torch.tensor([edges.kind for edges in self.edges]).repeat_interleave(counts),
            edge_weights=torch.cat(weights),
            edge_constant=torch.tensor([edges.constant for edges in self.edges]).repeat_interleave(counts),
            node_kind=kinds,
            node_word=torch.cat(self.words),
            node_pos=torch.zeros(self.nodes, 0),
        )
