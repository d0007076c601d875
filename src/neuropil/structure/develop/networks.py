"""Networks that were grown, or written down weight by weight: one, or a padded population."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import networkx as nx
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.structure.develop.growing import Graphs, diameters
from neuropil.structure.develop.policy import GraphPolicy

__all__ = ["GrownNetwork", "Networks", "direct_networks", "direct_size"]


@dataclass(frozen=True)
class GrownNetwork:
    """A weighted graph, its nodes' embeddings, and how it came to be.

    Attributes:
        weights: the adjacency matrix, from row to column, (nodes, nodes).
        edges: which edges exist, (nodes, nodes); both directions of an undirected one.
        embeddings: (nodes, features).
        history: the network after each cycle, from the seed on; empty where it was not recorded.
        directed: whether the two directions of an edge differ.
    """

    weights: Float[Tensor, "nodes nodes"]
    edges: Bool[Tensor, "nodes nodes"]
    embeddings: Float[Tensor, "nodes features"]
    history: tuple["GrownNetwork", ...] = field(default=(), repr=False)
    directed: bool = False

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return len(self.edges)

    @property
    def edge_count(self) -> int:
        """Number of edges, self loops among them; a pair of opposite directions is one if undirected."""
        return int(self.edges.sum() if self.directed else torch.triu(self.edges).sum())

    @property
    def diameter(self) -> int:
        """Longest shortest path in hops; floor(sqrt(nodes)) where the graph is not connected."""
        return int(diameters(self.edges[None], torch.tensor([self.nodes], device=self.edges.device))[0])

    def batch(self) -> "Networks":
        """A population of this one network."""
        sizes = torch.tensor([self.nodes], device=self.edges.device)
        return Networks(Graphs(self.weights[None], self.edges[None], self.embeddings[None], sizes), self.directed)

    def policy(self, observations: int, actions: int, extra: int = 0) -> GraphPolicy:
        """Use the first nodes as inputs and the last as outputs.

        Args:
            observations: number of inputs.
            actions: number of outputs.
            extra: steps beyond the diameter that activity flows for one answer.

        Raises:
            ValueError: if there are fewer nodes than inputs and outputs, or a number is out of range.
        """
        sizes = torch.tensor(self.nodes, device=self.weights.device)
        return GraphPolicy(self.weights, sizes, torch.tensor(self.diameter + extra), observations, actions)

    def to_networkx(self) -> nx.Graph:
        """The graph with edge attribute "weight" and node attribute "embedding", a list."""
        graph = nx.DiGraph() if self.directed else nx.Graph()
        for node, values in enumerate(self.embeddings.detach().tolist()):
            graph.add_node(node, embedding=values)
        edges = self.edges if self.directed else torch.triu(self.edges)
        for i, j in edges.nonzero().tolist():
            graph.add_edge(i, j, weight=float(self.weights[i, j].detach()))
        return graph


class Networks(Sequence[GrownNetwork]):
    """A population of networks in padded tensors; indexing gives one, without its padding.

    Args:
        graphs: the padded tensors.
        directed: whether the two directions of an edge differ.
        exceeded: which of them were kept from growing beyond the largest size; None for none.
    """

    def __init__(self, graphs: Graphs, directed: bool = False, exceeded: Tensor | None = None):
        self.graphs = graphs
        self.directed = directed
        self.exceeded = torch.zeros_like(graphs.sizes, dtype=torch.bool) if exceeded is None else exceeded

    def __len__(self) -> int:
        return len(self.graphs.sizes)

    def __getitem__(self, index: int) -> GrownNetwork:  # pyright: ignore[reportIncompatibleMethodOverride]
        n = int(self.graphs.sizes[index])
        weights, edges, embeddings = (part[index] for part in self.graphs[:3])
        return GrownNetwork(weights[:n, :n], edges[:n, :n], embeddings[:n], directed=self.directed)

    def __iter__(self) -> Iterator[GrownNetwork]:
        return (self[index] for index in range(len(self)))

    @property
    def sizes(self) -> Int[Tensor, " networks"]:
        """Nodes of each network."""
        return self.graphs.sizes

    @property
    def edge_counts(self) -> Int[Tensor, " networks"]:
        """Edges of each network, as `GrownNetwork.edge_count`."""
        edges = self.graphs.edges if self.directed else torch.triu(self.graphs.edges)
        return edges.flatten(1).sum(1)

    def select(self, which: Bool[Tensor, " networks"]) -> "Networks":
        """The networks where `which` is true, padded no more than they need."""
        weights, edges, embeddings, sizes = (part[which] for part in self.graphs)
        n = int(sizes.max()) if len(sizes) else 0
        graphs = Graphs(weights[:, :n, :n], edges[:, :n, :n], embeddings[:, :n], sizes)
        return Networks(graphs, self.directed, self.exceeded[which])

    def policy(self, observations: int, actions: int, extra: int = 0) -> GraphPolicy:
        """All networks as one policy with a leading axis; see `GrownNetwork.policy`.

        Raises:
            ValueError: if one has fewer nodes than inputs and outputs, or a number is out of range.
        """
        steps = diameters(self.graphs.edges, self.graphs.sizes) + extra
        return GraphPolicy(self.graphs.weights, self.graphs.sizes, steps, observations, actions)


def direct_size(nodes: int, directed: bool = False) -> int:
    """Numbers that `direct_networks` wants: one for each edge of the complete graph, self loops among them."""
    return nodes * nodes if directed else nodes * (nodes + 1) // 2


def direct_networks(vectors: Float[Tensor, "networks numbers"], nodes: int, directed: bool = False) -> Networks:
    """The direct encoding, to compare with: every weight of a complete graph is a number of the genome.

    Args:
        vectors: one row a network; of length `direct_size(nodes, directed)`.
        nodes: of each network.
        directed: whether the two directions of an edge have a number each.

    Raises:
        ValueError: if the length does not fit, or there are no nodes.
    """
    if nodes < 1:
        raise ValueError(f"nodes must be at least 1, got {nodes}.")
    wanted = direct_size(nodes, directed)
    if vectors.shape[1] != wanted:
        raise ValueError(f"vectors have {vectors.shape[1]} numbers, {nodes} nodes want {wanted}.")
    count, device = len(vectors), vectors.device
    if directed:
        weights = vectors.reshape(count, nodes, nodes)
    else:
        row, column = torch.triu_indices(nodes, nodes, device=device)
        place = torch.empty(nodes, nodes, dtype=torch.long, device=device)
        place[row, column] = place[column, row] = torch.arange(wanted, device=device)
        weights = vectors[:, place]
    edges = torch.ones(count, nodes, nodes, dtype=torch.bool, device=device)
    sizes = torch.full((count,), nodes, device=device)
    return Networks(Graphs(weights, edges, vectors.new_zeros(count, nodes, 0), sizes), directed)
