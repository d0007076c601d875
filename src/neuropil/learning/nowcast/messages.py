"""NiNo: a nowcaster whose weights talk to each other through the neurons between them.

    edges   e = W_e [w~ of the edge's weights] + embedding of its kind
    nodes   x = W_p [Laplacian eigenvectors] + embeddings of the node's kind and word

and in every round, over the edges s -> t with (scale, shift) = W e,

    m_e = scale * (A [x_t, x_s]) + shift
    x_t <- SiLU(C (B [x_t, mean over incoming m]))
    e   <- U SiLU(V_e e + V_s x_s + V_t x_t)

Last, a perceptron reads from e the displacement of every weight of the edge at every horizon. With messages along the
arrows alone an input neuron would never hear of the layers above it, so each round also sends messages against them,
with an A of its own, and B reads both means. No round treats one neuron of a layer unlike another: without
eigenvectors, exchanging hidden neurons in all states exchanges the forecast.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import silu

from neuropil.learning.nowcast.forecasts import (
    KINDS,
    Nowcaster,
    check_sizes,
    embedding,
    linear,
    one_horizon,
    perceptron,
    start,
)
from neuropil.learning.nowcast.graph import NODE_KINDS, NeuralGraph

__all__ = ["GraphNowcaster"]


class GraphNowcaster(Nowcaster):
    """Message passing over the neural graph.

    Args:
        hid: width of nodes and edges.
        layers: rounds of messages. The official network's last round updates no edge, so nothing of it reaches the
            forecast: its 3 layers are 2 rounds here.
        context: number of states.
        horizons: number of outputs, the largest k.
        features: weights on one edge, at most.
        eigenvectors: of the Laplacian that a node knows; 0 keeps neurons of a layer exchangeable.
        kinds: whether a node knows its kind (input, hidden, output, constant, head).
        words: size of an embedding of words, for nets with a vocabulary that is always the same; 0 for none.
        both_ways: whether messages also go against the arrows.
        generator: source of the initial weights.

    Raises:
        ValueError: if a size is out of range, or a node would know nothing.

    Source: Knyazev et al. 2025, sec. 3.2; node kinds and messages against the arrows are ours.
    """

    needs_graph = True

    def __init__(
        self,
        hid: int = 128,
        layers: int = 3,
        horizons: int = 40,
        *,
        context: int = 5,
        features: int = 9,
        eigenvectors: int = 8,
        kinds: bool = True,
        words: int = 0,
        both_ways: bool = True,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_sizes(hid=hid, layers=layers, context=context - 1, horizons=horizons, features=features)
        if eigenvectors < 0 or words < 0 or not (eigenvectors or kinds or words):
            raise ValueError(
                f"A node must know something: eigenvectors {eigenvectors}, kinds {kinds} and words {words} given."
            )
        self.context, self.horizons, self.features, self.eigenvectors = context, horizons, features, eigenvectors
        self.edge_kind = embedding(KINDS, hid)
        self.edge_states = linear(features * context, hid)
        self.position = linear(eigenvectors, hid) if eigenvectors else None
        self.node_kind = embedding(len(NODE_KINDS), hid) if kinds else None
        self.word = embedding(words + 1, hid) if words else None
        self.rounds = nn.ModuleList(Round(hid, both_ways) for _ in range(layers))
        self.head = perceptron(hid, hid, features * horizons)
        start(self, self.head[-1], generator)

    def displacements(
        self, scaled: Float[Tensor, "*batch weights context"], graph: NeuralGraph, k: int | None = None
    ) -> Float[Tensor, "*batch weights horizons"]:
        """As `Nowcaster.displacements`.

        Raises:
            ValueError: if the graph has no nodes, wider edges, fewer eigenvectors or more words than the nowcaster.
        """
        self.check(graph)
        used, edge = graph.features, self.edge_states
        placed = graph.on_edges(scaled.to(edge.weight)).flatten(-2)
        edges = nn.functional.linear(placed, edge.weight[:, : used * self.context], edge.bias)
        edges = edges + self.edge_kind(graph.edge_type)
        nodes = self.known(graph).expand(*edges.shape[:-2], graph.nodes, edges.shape[-1])
        means = Means(graph.edge_index, graph.nodes, edges)
        for layer in self.rounds:
            nodes, edges = layer(nodes, edges, means)
        last = self.head[-1]
        assert isinstance(last, nn.Linear) and self.horizons is not None
        moved = one_horizon(last, k, self.horizons, self.features, used)(self.head[:-1](edges))
        return graph.on_weights(moved.unflatten(-1, (used, -1)))

    def known(self, graph: NeuralGraph) -> Float[Tensor, "nodes hid"]:
        """What each node knows before any message."""
        parts: list[Tensor] = []
        if self.position is not None:
            parts.append(self.position(graph.node_pos[:, : self.eigenvectors].to(self.position.weight)))
        if self.node_kind is not None:
            parts.append(self.node_kind(graph.node_kind))
        if self.word is not None:
            parts.append(self.word(graph.node_word))
        return torch.stack(parts).sum(0)

    def check(self, graph: NeuralGraph) -> None:
        """See `displacements`."""
        if not graph.nodes:
            raise ValueError("A GraphNowcaster needs connections: make the graph by neural_graph(net).")
        if graph.features > self.features:
            raise ValueError(
                f"An edge of the graph has {graph.features} weights, the nowcaster takes {self.features}: "
                f"neural_graph(net, features={self.features}) spreads larger kernels."
            )
        if graph.node_pos.shape[1] < self.eigenvectors:
            raise ValueError(f"The graph has {graph.node_pos.shape[1]} eigenvectors, wanted {self.eigenvectors}.")
        if self.word is not None and int(graph.node_word.max()) >= self.word.num_embeddings:
            raise ValueError(
                f"The graph has {int(graph.node_word.max())} words, the nowcaster {self.word.num_embeddings - 1}."
            )


class Means:
    """Means over the edges at each node; a node without an edge has mean 0.

    Args:
        edge_index: source and target of each edge.
        nodes: how many there are.
        like: gives dtype and device.
    """

    def __init__(self, edge_index: Int64[Tensor, "2 edges"], nodes: int, like: Tensor):
        self.source, self.target = edge_index
        self.nodes = nodes
        ones = like.new_ones(edge_index.shape[1], 1)
        self.counts = [like.new_zeros(nodes, 1).index_add(0, end, ones).clamp(min=1) for end in edge_index]

    def at_source(self, messages: Float[Tensor, "*batch edges hid"]) -> Float[Tensor, "*batch nodes hid"]:
        """Mean over the edges that leave a node."""
        return self._mean(messages, self.source) / self.counts[0]

    def at_target(self, messages: Float[Tensor, "*batch edges hid"]) -> Float[Tensor, "*batch nodes hid"]:
        """Mean over the edges that reach a node."""
        return self._mean(messages, self.target) / self.counts[1]

    def _mean(self, messages: Tensor, end: Tensor) -> Tensor:
        sums = messages.new_zeros(*messages.shape[:-2], self.nodes, messages.shape[-1])
        return sums.index_add(sums.dim() - 2, end, messages)


class Round(nn.Module):
    """One round of messages with its edge update; see the module's docstring for the letters.

    Args:
        hid: width.
        both_ways: whether messages also go against the arrows.
    """

    def __init__(self, hid: int, both_ways: bool):
        super().__init__()
        self.both_ways = both_ways
        ways = 2 if both_ways else 1
        self.modulation = linear(hid, 2 * hid)
        self.message = nn.ModuleList(linear(2 * hid, hid) for _ in range(ways))
        self.gather = linear((1 + ways) * hid, hid)
        self.node = linear(hid, hid)
        self.of_edge, self.of_source, self.of_target, self.edge = (linear(hid, hid) for _ in range(4))

    def forward(
        self, nodes: Float[Tensor, "*batch nodes hid"], edges: Float[Tensor, "*batch edges hid"], means: Means
    ) -> tuple[Float[Tensor, "*batch nodes hid"], Float[Tensor, "*batch edges hid"]]:
        """Pass messages, update nodes, then edges."""
        scale, shift = self.modulation(edges).chunk(2, dim=-1)
        ends = (means.target, means.source)
        heard = [nodes, means.at_target(scale * _of_ends(self.message[0], nodes, *ends) + shift)]
        if self.both_ways:
            heard.append(means.at_source(scale * _of_ends(self.message[1], nodes, *ends[::-1]) + shift))
        nodes = silu(self.node(self.gather(torch.cat(heard, dim=-1))))
        source, target = self.of_source(nodes), self.of_target(nodes)
        mixed = self.of_edge(edges) + _at(source, means.source) + _at(target, means.target)
        return nodes, self.edge(silu(mixed))


def _of_ends(layer: nn.Module, nodes: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A linear layer of the pair [x_first, x_second] on every edge, computed once a node instead of once an edge."""
    assert isinstance(layer, nn.Linear)
    one, other = layer.weight.chunk(2, dim=1)
    return _at(nodes @ one.T + layer.bias, first) + _at(nodes @ other.T, second)


def _at(nodes: Tensor, ends: Tensor) -> Tensor:
    return nodes.index_select(nodes.dim() - 2, ends)
