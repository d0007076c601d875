"""A network as a graph of its neurons: what a nowcaster reads.

    node                 a neuron (a channel, an attention dimension, a word, a position), a head, or the constant 1
                         that feeds a bias or a norm's weight
    edge i -> j          the weights by which i drives j: one, or up to 9 of a convolution's kernel
    edges of structure   no weights, a constant instead: 1 for a residual branch and for an attention head, 2 for every
                         node to itself

The flat vector of weights is the concatenation of `net.named_parameters()`; `edge_weights` says where in it an edge's
weights are, so that one gather writes a state of the network into the graph and one scatter reads it back. Kinds of
edges have the numbers of Knyazev et al.'s files, so that their embeddings fit.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

__all__ = ["EDGE_TYPES", "NODE_KINDS", "NeuralGraph", "loose_weights", "neural_graph", "weight_table"]

EDGE_TYPES = {
    "linear": 1,
    "bias": 2,
    "convolution": 3,
    "norm": 4,
    "word": 5,
    "position": 6,
    "query": 7,
    "key": 8,
    "value": 9,
    "residual": 10,
    "head": 11,
    "self": 13,
}
"""Kinds of edges; 0, 12 and 14 are reserved in the official files."""

NODE_KINDS = {"input": 0, "hidden": 1, "output": 2, "constant": 3, "head": 4}

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)


# eq=False: tensors do not compare to one truth value.
@dataclass(frozen=True, eq=False)
class NeuralGraph:
    """The neurons of a network and the weights between them.

    Attributes:
        param_slices: by the parameter's name, where it lies in the flat vector of weights.
        weight_type: kind of each weight, numbers of `EDGE_TYPES`.
        edge_index: source and target node of each edge.
        edge_type: kind of each edge.
        edge_weights: places of its weights in the flat vector, -1 where it has fewer than the widest edge.
        edge_constant: what an edge without weights carries; 0 for the others.
        node_kind: kind of each node, numbers of `NODE_KINDS`.
        node_word: 1 + index of a word of the first embedding, 0 for any other node.
        node_pos: first eigenvectors of the graph's Laplacian.
    """

    param_slices: dict[str, slice]
    weight_type: Int64[Tensor, " weights"]
    edge_index: Int64[Tensor, "2 edges"]
    edge_type: Int64[Tensor, " edges"]
    edge_weights: Int64[Tensor, "edges features"]
    edge_constant: Float[Tensor, " edges"]
    node_kind: Int64[Tensor, " nodes"]
    node_word: Int64[Tensor, " nodes"]
    node_pos: Float[Tensor, "nodes eigenvectors"]

    @property
    def weights(self) -> int:
        """Number of weights of the network."""
        return len(self.weight_type)

    @property
    def nodes(self) -> int:
        """Number of nodes; 0 for a table of weights without connections."""
        return len(self.node_kind)

    @property
    def features(self) -> int:
        """Weights on the widest edge."""
        return self.edge_weights.shape[1]

    def to(self, device: torch.device | str) -> "NeuralGraph":
        """The graph on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)

    def only(self, chosen: Int64[Tensor, " chosen"]) -> "NeuralGraph":
        """Table of some of the weights without connections, for nowcasters that look at each weight alone."""
        return _table({}, self.weight_type[chosen])

    def flipped(self, generator: torch.Generator | None = None) -> "NeuralGraph":
        """The graph with random signs of its eigenvectors."""
        signs = torch.randint(2, (self.node_pos.shape[1],), generator=generator) * 2 - 1
        return replace(self, node_pos=self.node_pos * signs.to(self.node_pos))

    def on_edges(self, values: Float[Tensor, "*batch weights states"]) -> Float[Tensor, "*batch edges features states"]:
        """Write values of the weights on the edges, constants on the edges of structure, 0 where there is no weight."""
        placed = values[..., self.edge_weights.clamp(min=0), :]
        placed = placed * (self.edge_weights >= 0).unsqueeze(-1)
        constant = torch.zeros_like(self.edge_weights, dtype=values.dtype)
        constant[:, 0] = self.edge_constant.to(values.dtype)
        return placed + constant.unsqueeze(-1)

    def on_weights(
        self, values: Float[Tensor, "*batch edges features states"]
    ) -> Float[Tensor, "*batch weights states"]:
        """Read what stands on the edges back into the order of the weights."""
        held = self.edge_weights >= 0
        places = self.edge_weights[held]
        found = values.new_zeros(*values.shape[:-3], self.weights, values.shape[-1])
        return found.index_copy(found.dim() - 2, places, values[..., held, :])


def neural_graph(net: nn.Module, *, features: int = 9, eigenvectors: int = 8) -> NeuralGraph:
    """Trace a network with torch.fx and connect its neurons.

    It knows Linear, Conv, batch, instance, layer, group and RMS norms, Embedding, MultiheadAttention, parameters that
    are added to or multiplied with the channels, sums and products of branches (the edges of a residual), and any layer
    without parameters that keeps the channels or flattens them. Weights that are used twice (tied embeddings, shared
    layers) appear once, and their second use joins the neurons at both ends.

    Inside attention, query i drives dimension d of head h, which drives key i; the dimensions of a head drive the
    head's node, and that node drives the head's values: queries and keys meet within a head only.

    Args:
        net: any network that torch.fx can trace; no example input is needed.
        features: at most so many weights on one edge; larger kernels lie on parallel edges.
        eigenvectors: of the Laplacian, for `node_pos`; 0 leaves them out.

    Raises:
        TypeError: if the net cannot be traced, or a parameter stands in a module or function that the graph does not
            know; both are named.
        ValueError: if the net has no parameters, or a number is out of range.

    Source: Knyazev et al. 2025, sec. 3; Kofinas et al. 2024. The layout inside attention is ours: the paper's text
        leaves it open.
    """
    # Here, because tracing needs the dataclass above.
    from neuropil.learning.nowcast.positions import laplacian_positions  # noqa: PLC0415
    from neuropil.learning.nowcast.tracing import trace  # noqa: PLC0415

    if features < 1 or eigenvectors < 0:
        raise ValueError(f"features must be at least 1 and eigenvectors at least 0, got {features} and {eigenvectors}.")
    graph = trace(net, weight_table(net), features)
    return replace(graph, node_pos=laplacian_positions(graph.edge_index, graph.nodes, eigenvectors))


def weight_table(net: nn.Module) -> NeuralGraph:
    """The weights of any network, their places and kinds, without connections: no tracing, no node, no edge.

    Kinds come from the module that owns a parameter; a parameter of no known module counts as a bias.

    Raises:
        ValueError: if the net has no parameters.
    """
    slices, kinds, start, words = {}, [], 0, False
    for name, parameter in net.named_parameters():
        owner, _, own = name.rpartition(".")
        module = net.get_submodule(owner)
        slices[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
        kind = torch.full((parameter.numel(),), EDGE_TYPES[_kind(module, own, words)])
        if own == "in_proj_weight" and isinstance(module, nn.MultiheadAttention):
            for part, which in zip(kind.chunk(3), ("query", "key", "value"), strict=True):
                part.fill_(EDGE_TYPES[which])
        words = words or isinstance(module, nn.Embedding)
        kinds.append(kind)
    if not kinds:
        raise ValueError(f"{type(net).__name__} has no parameters: there is nothing to forecast.")
    return _table(slices, torch.cat(kinds))


def _kind(module: nn.Module, own: str, words: bool) -> str:
    if "weight" not in own:
        return "bias"
    if isinstance(module, nn.MultiheadAttention):
        return {"q": "query", "k": "key", "v": "value"}.get(own[0], "query")
    if isinstance(module, nn.Embedding):
        return "position" if words else "word"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if isinstance(module, NORMS):
        return "norm"
    return "linear" if isinstance(module, nn.Linear) else "bias"


def loose_weights(kinds: Int64[Tensor, " weights"]) -> NeuralGraph:
    """Weights of some kinds that belong to no parameter: what a batch of weights of several networks is."""
    return _table({}, kinds)


def _table(slices: dict[str, slice], kinds: Tensor) -> NeuralGraph:
    empty = kinds.new_zeros(0)
    return NeuralGraph(
        param_slices=slices,
        weight_type=kinds,
        edge_index=kinds.new_zeros(2, 0),
        edge_type=empty,
        edge_weights=kinds.new_zeros(0, 1),
        edge_constant=torch.zeros(0, device=kinds.device),
        node_kind=empty,
        node_word=empty,
        node_pos=torch.zeros(0, 0, device=kinds.device),
    )
