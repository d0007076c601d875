"""One cycle of growth, for a population of graphs at once: look around, think, divide, weigh.

Graph p has nodes 0..n_p-1, edges A (bool), weights W and embeddings E; all are padded to the largest. The undirected
neighbourhood of a node is N(i) = {j : A_ij or A_ji}. In a cycle

    tau = diameter + extra                       hops; floor(sqrt n) where the graph is not connected
    E <- transform(W^T E)      tau times         or transform(E + W^T E), "additive"
    node i with growth(E_i) > 0 divides:         its child v is joined to N(i) and i, both ways, and
        E_v = mean of E over N(i) and i              N and E as they were before any division
    W_ij = weight([E_i, E_j])                    for every edge, i <= j and W_ji = W_ij if undirected

Children come last, in the order of their parents, and two children of one cycle are never joined. Growth by pairs lets
every edge (i, j), i <= j, with growth([E_i, E_j]) > 0 have a child, joined to i and j, with the mean embedding of N(i)
and N(j). All is differentiable but the decision to divide.

Growth by nodes never loses the seed: a child of the seed is joined to it, a child of another node to all that this node
is joined to. So, where nothing is pruned, the seed is joined to every node and the diameter is at most 2.

Source: Najarro, Sudhakaran & Risi 2023 (arXiv 2307.08197).
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["Graphs", "Perceptrons", "diameters", "divide", "hop_distances", "think", "weigh"]

UNREACHED = -1


class Graphs(NamedTuple):
    """A population of graphs, padded to the largest.

    Attributes:
        weights: from row to column, (graphs, nodes, nodes), 0 where there is no edge.
        edges: which exist, (graphs, nodes, nodes).
        embeddings: (graphs, nodes, features).
        sizes: nodes of each graph, (graphs,).
    """

    weights: Float[Tensor, "graphs nodes nodes"]
    edges: Bool[Tensor, "graphs nodes nodes"]
    embeddings: Float[Tensor, "graphs nodes features"]
    sizes: Int[Tensor, " graphs"]


class Perceptrons(NamedTuple):
    """One perceptron with a hidden layer of tanh units for each graph.

    Attributes:
        hidden: weights, (graphs, hidden, inputs).
        hidden_bias: (graphs, hidden).
        output: weights, (graphs, outputs, hidden).
        output_bias: (graphs, outputs).
    """

    hidden: Float[Tensor, "graphs hidden inputs"]
    hidden_bias: Float[Tensor, "graphs hidden"]
    output: Float[Tensor, "graphs outputs hidden"]
    output_bias: Float[Tensor, "graphs outputs"]

    def __call__(self, x: Float[Tensor, "graphs nodes inputs"]) -> Float[Tensor, "graphs nodes outputs"]:
        """Apply each graph's perceptron to its nodes; the output is not squashed."""
        hidden = torch.tanh(torch.baddbmm(self.hidden_bias[:, None], x, self.hidden.mT))
        return torch.baddbmm(self.output_bias[:, None], hidden, self.output.mT)

    def of_pairs(
        self,
        x: Float[Tensor, "graphs nodes features"],
        graph: Int[Tensor, " pairs"],
        first: Int[Tensor, " pairs"],
        second: Int[Tensor, " pairs"],
    ) -> Float[Tensor, " pairs"]:
        """Apply a perceptron of one output to [x_first, x_second] of chosen pairs of nodes.

        The two halves of the hidden layer are computed once a node, not once a pair.
        """
        features = x.shape[-1]
        one = torch.baddbmm(self.hidden_bias[:, None], x, self.hidden[..., :features].mT)
        other = torch.bmm(x, self.hidden[..., features:].mT)
        hidden = torch.tanh(one[graph, first] + other[graph, second])
        return (hidden * self.output[graph, 0]).sum(-1) + self.output_bias[graph, 0]


def _alive(sizes: Tensor, nodes: int) -> Tensor:
    return torch.arange(nodes, device=sizes.device) < sizes[:, None]


def hop_distances(
    edges: Bool[Tensor, "graphs nodes nodes"], sizes: Int[Tensor, " graphs"]
) -> Int[Tensor, "graphs nodes nodes"]:
    """Steps from node to node, whichever way the edges point: -1 where there is no path, or no node.

    Args:
        edges: which exist.
        sizes: nodes of each graph, the first ones.
    """
    either = (edges | edges.mT).float()
    reached = torch.diag_embed(_alive(sizes, edges.shape[-1]))
    distances = reached.long() - 1
    step = 0
    while True:
        step += 1
        wider = (torch.bmm(reached.float(), either) > 0) | reached
        fresh = wider & ~reached
        if not fresh.any():
            return distances
        distances = torch.where(fresh, step, distances)
        reached = wider


def diameters(edges: Bool[Tensor, "graphs nodes nodes"], sizes: Int[Tensor, " graphs"]) -> Int[Tensor, " graphs"]:
    """Longest shortest path of each graph, in hops, the edges taken as undirected.

    Args:
        edges: which exist.
        sizes: nodes of each graph, the first ones.

    Returns:
        Diameters; floor(sqrt(nodes)) for a graph that is not connected. A single node has 0.
    """
    distances = hop_distances(edges, sizes)
    alive = _alive(sizes, edges.shape[-1])
    pairs = alive[:, :, None] & alive[:, None, :]
    apart = (pairs & (distances == UNREACHED)).flatten(1).any(1)
    return torch.where(apart, sizes.double().sqrt().long(), distances.flatten(1).amax(1).clamp(min=0))


def think(graphs: Graphs, transform: Perceptrons, extra: int, additive: bool) -> Graphs:
    """Let embeddings flow along the edges, for as many steps as the diameter of each graph, and `extra` more."""
    steps = diameters(graphs.edges, graphs.sizes) + extra
    x, along = graphs.embeddings, graphs.weights.mT
    for step in range(int(steps.max()) if len(steps) else 0):
        gathered = torch.baddbmm(x, along, x) if additive else torch.bmm(along, x)
        x = torch.where((step < steps)[:, None, None], torch.tanh(transform(gathered)), x)
    return graphs._replace(embeddings=x)


def divide(graphs: Graphs, growth: Perceptrons, by: str, max_nodes: int) -> tuple[Graphs, Bool[Tensor, " graphs"]]:
    """Add the children of all nodes (or edges) that divide; their edges have weight 1 until they are weighed.

    Args:
        graphs: after they have thought.
        growth: decides: above 0 divides.
        by: "node" or "pair".
        max_nodes: a graph that would exceed it does not divide.

    Returns:
        The grown graphs, and which of them would have exceeded `max_nodes`.
    """
    nodes = graphs.edges.shape[-1]
    around = graphs.edges | graphs.edges.mT
    itself = torch.eye(nodes, dtype=torch.bool, device=around.device)
    with torch.no_grad():
        if by == "node":
            splits = (growth(graphs.embeddings)[..., 0] > 0) & _alive(graphs.sizes, nodes)
            graph, parent = splits.nonzero(as_tuple=True)
            joined = around[graph, parent] | itself[parent]
            pooled = joined
        else:
            graph, first, second = torch.triu(around).nonzero(as_tuple=True)
            splits = growth.of_pairs(graphs.embeddings, graph, first, second) > 0
            graph, first, second = graph[splits], first[splits], second[splits]
            joined = itself[first] | itself[second]
            pooled = around[graph, first] | around[graph, second]
        children = torch.bincount(graph, minlength=len(graphs.sizes))
        exceeds = graphs.sizes + children > max_nodes
        keep = ~exceeds[graph]
        graph, joined, pooled = graph[keep], joined[keep], pooled[keep]
        children = torch.where(exceeds, 0, children)
    return _add(graphs, graph, joined, pooled, children), exceeds


def _add(graphs: Graphs, graph: Tensor, joined: Tensor, pooled: Tensor, children: Tensor) -> Graphs:
    """Append children, given by the graph that each is of, whom it is joined to, and whose embeddings it averages."""
    old = graphs.edges.shape[-1]
    sizes = graphs.sizes + children
    new = int(sizes.max()) if len(sizes) else old
    rank = torch.arange(len(graph), device=graph.device) - (children.cumsum(0) - children)[graph]
    place = graphs.sizes[graph] + rank

    share = pooled.to(graphs.embeddings) / pooled.sum(1, keepdim=True)
    means = torch.einsum("cn,cnf->cf", share, graphs.embeddings[graph])
    pad = max(new - old, 0)
    embeddings = torch.nn.functional.pad(graphs.embeddings, (0, 0, 0, pad)).index_put((graph, place), means)

    child, other = joined.nonzero(as_tuple=True)
    at, v = graph[child], place[child]
    edges = torch.nn.functional.pad(graphs.edges, (0, pad, 0, pad))
    edges[at, v, other] = True
    edges[at, other, v] = True
    one = graphs.weights.new_ones(())
    weights = torch.nn.functional.pad(graphs.weights, (0, pad, 0, pad))
    weights = weights.index_put((at, v, other), one).index_put((at, other, v), one)
    return Graphs(weights, edges, embeddings, sizes)


def weigh(graphs: Graphs, weight: Perceptrons | None, directed: bool, prune: float) -> Graphs:
    """Give every edge the weight that its ends ask for, and cut what is weak.

    Args:
        graphs: after they have divided.
        weight: of two embeddings; None keeps the weights, all 1 (binary edges).
        directed: whether the two directions of an edge are weighed apart.
        prune: edges of at most this absolute weight go, where it is above 0.
    """
    if weight is None:
        return graphs
    chosen = graphs.edges if directed else torch.triu(graphs.edges)
    chosen = chosen & (graphs.sizes > 1)[:, None, None]  # a lone seed keeps the weight it came with
    at = chosen.nonzero(as_tuple=True)
    values = torch.tanh(weight.of_pairs(graphs.embeddings, *at))
    weights = graphs.weights.index_put(at, values)
    if not directed:
        weights = weights.index_put((at[0], at[2], at[1]), values)
    edges = graphs.edges
    if prune > 0:
        edges = edges & (weights.detach().abs() > prune)
        weights = torch.where(edges, weights, 0)
    return graphs._replace(weights=weights, edges=edges)
