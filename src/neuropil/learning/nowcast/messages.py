"""Forecasts by a graph network over the neurons: a weight hears from the weights around it.

    e_ij = W h_ij + type_ij          h_ij: the scaled states of the weights on edge i -> j
    x_i  = W pos_i + kind_i + word_i

    round:  m_ij = scale(e_ij) (U [x_j, x_i]) + shift(e_ij)                 at the receiver j, from the sender i
            x_j <- SiLU(V V' [x_j, mean over incoming m_ij])
            e_ij <- W' SiLU(W_e e_ij + W_s x_i + W_t x_j)

    forecast:  a = MLP_2(e_ij), one number a horizon and weight of the edge

Neurons with only outgoing edges (inputs) never hear anything that way; with `both_ways` every neuron also gets the mean
of messages along its outgoing edges, by weights of their own. Neurons have no names here, so that permuting the hidden
neurons in all states permutes the forecast: exactly without positions, to their signs and multiplicities with them.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import linear as apply_linear
from torch.nn.functional import silu

from neuropil.learning.networks import linear
from neuropil.learning.nowcast.forecasts import KINDS, Nowcaster, embedding, zero_linear
from neuropil.learning.nowcast.graph import NODE_KINDS, NeuralGraph

__all__ = ["GraphNowcaster"]


class Round(nn.Module):
    """One exchange: edges to neurons, neurons to edges.

    Args:
        hid: features of a neuron and of an edge.
        both_ways: whether messages also run against the edges.
        generator: source of the initial weights.
    """

    def __init__(self, hid: int, both_ways: bool, generator: torch.Generator | None):
        super().__init__()
        ways = 2 if both_ways else 1
        self.messages = nn.ModuleList([linear(2 * hid, hid, generator=generator) for _ in range(ways)])
        self.modulations = nn.ModuleList([linear(hid, 2 * hid, generator=generator) for _ in range(ways)])
        self.update = linear(2 * hid, hid, generator=generator)
        self.mix = linear(hid, hid, generator=generator)
        self.edge_own = linear(hid, hid, generator=generator)
        self.edge_source = linear(hid, hid, generator=generator)
        self.edge_target = linear(hid, hid, generator=generator)
        self.edge_out = linear(hid, hid, generator=generator)

    def forward(
        self, x: Float[Tensor, "nodes hid"], e: Float[Tensor, "edges hid"], ends: Int64[Tensor, "2 edges"]
    ) -> tuple[Float[Tensor, "nodes hid"], Float[Tensor, "edges hid"]]:
        """Neurons and edges after the exchange."""
        source, target = ends
        heard = torch.zeros_like(x)
        ways = ((target, source), (source, target))
        for (receiver, sender), message, modulation in zip(ways, self.messages, self.modulations, strict=False):
            weight, bias = message.parameters()
            at_receiver, at_sender = weight.chunk(2, dim=1)  # before the edges: there are fewer neurons
            sent = apply_linear(x, at_receiver, bias)[receiver] + apply_linear(x, at_sender)[sender]
            scale, shift = modulation(e).chunk(2, dim=-1)
            heard = heard + mean_at(receiver, scale * sent + shift, len(x))
        x = silu(self.mix(self.update(torch.cat([x, heard], dim=-1))))
        mixed = self.edge_own(e) + self.edge_source(x)[source] + self.edge_target(x)[target]
        return x, self.edge_out(silu(mixed))


def mean_at(
    receiver: Int64[Tensor, " edges"], messages: Float[Tensor, "edges hid"], nodes: int
) -> Float[Tensor, "nodes hid"]:
    """Mean of the messages at every node, 0 where there are none."""
    count = torch.bincount(receiver, minlength=nodes).clamp(min=1).to(messages)
    return messages.new_zeros(nodes, messages.shape[1]).index_add(0, receiver, messages) / count[:, None]


class GraphNowcaster(Nowcaster):
    """A graph network that looks at all weights and how their neurons are connected (NiNo).

    It starts as the forecast that nothing moves.

    Args:
        hid: features of a neuron and of an edge.
        layers: exchanges between edges and neurons. The official net of "3 layers" has 2: no edge reads the neurons
            after its third.
        horizons: as `Nowcaster`.
        context: as `Nowcaster`.
        features: at most so many weights on an edge: 9 of a 3x3 kernel.
        eigenvectors: columns of `node_pos` that a neuron starts from; 0 leaves positions out.
        kinds: whether a neuron starts from its kind too (input, hidden, output, constant, head).
        words: size of the vocabulary whose words have features of their own; 0 leaves them out.
        both_ways: whether messages also run against the edges.
        generator: source of the initial weights.

    Raises:
        ValueError: if a size is out of range.

    Source: Knyazev et al. 2025, sec. 3 and 4; Kofinas et al. 2024 for the exchange; both directions and kinds of
        neurons are ours.
    """

    connected = True

    def __init__(
        self,
        hid: int = 128,
        layers: int = 2,
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
        super().__init__(context, horizons)
        if layers < 1 or features < 1 or eigenvectors < 0 or words < 0:
            sizes = f"layers {layers}, features {features}, eigenvectors {eigenvectors}, words {words}"
            raise ValueError(f"layers and features must be at least 1, eigenvectors and words at least 0; got {sizes}.")
        self.hid = hid
        self.features = features
        self.eigenvectors = eigenvectors
        self.history = linear(features * context, hid, generator=generator)
        self.types = embedding(KINDS, hid, generator)
        self.positions = linear(eigenvectors, hid, generator=generator) if eigenvectors else None
        self.kinds = embedding(len(NODE_KINDS), hid, generator) if kinds else None
        self.words = embedding(words + 1, hid, generator) if words else None
        self.rounds = nn.ModuleList([Round(hid, both_ways, generator) for _ in range(layers)])
        self.body = nn.Sequential(linear(hid, hid, generator=generator), nn.SiLU())
        self.out = zero_linear(hid, features * horizons)

    def changes(
        self, scaled: Float[Tensor, "weights {self.context}"], graph: NeuralGraph, k: int | None = None
    ) -> Float[Tensor, "weights ahead"]:
        """See `Nowcaster.changes`.

        Raises:
            ValueError: if the graph has no edges, wider ones than `features`, or fewer eigenvectors than wanted.
        """
        self._check(graph)
        graph = graph.to(scaled.device)
        on_edges = graph.on_edges(scaled)  # (edges, features, states)
        used = on_edges.shape[1]
        weight = self.history.weight[:, : used * self.context]  # what the graph lacks is 0
        e = apply_linear(on_edges.flatten(1), weight, self.history.bias) + self.types(graph.edge_type)
        x = self._start(graph, scaled)
        for exchange in self.rounds:
            x, e = exchange(x, e, graph.edge_index)
        ahead = slice(None) if k is None else slice(k - 1, k)
        out = self.out.weight.view(self.features, self.horizons, self.hid)[:used, ahead].flatten(0, 1)
        bias = self.out.bias.view(self.features, self.horizons)[:used, ahead].flatten()
        return graph.on_weights(apply_linear(self.body(e), out, bias).unflatten(1, (used, -1)))

    def _start(self, graph: NeuralGraph, like: Tensor) -> Tensor:
        x = like.new_zeros(graph.nodes, self.hid)
        if self.positions is not None:
            x = x + self.positions(graph.node_pos[:, : self.eigenvectors].to(like))
        if self.kinds is not None:
            x = x + self.kinds(graph.node_kind)
        if self.words is not None:
            known = graph.node_word < self.words.num_embeddings
            x = x + self.words(graph.node_word * known)
        return x

    def _check(self, graph: NeuralGraph) -> None:
        if not graph.nodes:
            raise ValueError("GraphNowcaster needs connections: make the graph with neural_graph(net).")
        if graph.features > self.features:
            raise ValueError(
                f"The graph has up to {graph.features} weights an edge, the nowcaster takes {self.features}: "
                f"neural_graph(net, features={self.features})."
            )
        if graph.node_pos.shape[1] < self.eigenvectors:
            raise ValueError(
                f"The graph has {graph.node_pos.shape[1]} eigenvectors, the nowcaster wants {self.eigenvectors}: "
                f"neural_graph(net, eigenvectors={self.eigenvectors})."
            )
