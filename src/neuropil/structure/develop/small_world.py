"""Small worlds: clustered like a lattice, short paths like a random graph (Watts & Strogatz 1998).

    C = mean over nodes of   triangles at the node / pairs of its neighbours       0 for fewer than two neighbours
    L = mean over pairs of   hops between them
    sigma = (C / C_random) / (L / L_random)                                         (Humphries & Gurney 2008)

The random graphs are uniform among those with as many nodes and edges (Erdos & Renyi's G(n, m)), and connected. Self
loops and directions are left out.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.structure.develop.growing import hop_distances
from neuropil.structure.develop.networks import GrownNetwork, Networks

__all__ = ["SmallWorldTask", "clustering", "path_length", "random_graphs", "small_world"]

TRIES = 20  # draws for each random graph that is wanted: sparse ones are seldom connected


def _simple(edges: Tensor) -> Tensor:
    """Without self loops and directions."""
    itself = torch.eye(edges.shape[-1], dtype=torch.bool, device=edges.device)
    return (edges | edges.mT) & ~itself


def clustering(edges: Bool[Tensor, "graphs nodes nodes"], sizes: Int[Tensor, " graphs"]) -> Float[Tensor, " graphs"]:
    """Mean clustering coefficient of each graph, in [0, 1].

    Args:
        edges: which exist.
        sizes: nodes of each graph, the first ones.
    """
    a = _simple(edges).double()
    degree = a.sum(2)
    triangles = (torch.bmm(a, a) * a).sum(2)
    local = triangles / (degree * (degree - 1)).clamp(min=1)
    return local.sum(1) / sizes.clamp(min=1)


def path_length(edges: Bool[Tensor, "graphs nodes nodes"], sizes: Int[Tensor, " graphs"]) -> Float[Tensor, " graphs"]:
    """Mean number of hops between two nodes of each graph: infinite if it is not connected, 0 for a single node.

    Args:
        edges: which exist.
        sizes: nodes of each graph, the first ones.
    """
    distances = hop_distances(edges, sizes).clamp(min=0)
    pairs = (sizes * (sizes - 1)).double()
    connected = (distances > 0).flatten(1).sum(1) == pairs
    mean = distances.flatten(1).sum(1) / pairs.clamp(min=1)
    return torch.where(connected, mean, torch.inf)


def random_graphs(
    nodes: int, edges: int, count: int, generator: torch.Generator | None = None
) -> Bool[Tensor, "graphs nodes nodes"]:
    """Connected graphs, uniform among those of as many nodes and edges.

    Args:
        nodes: of each graph.
        edges: of each graph, self loops left out.
        count: how many are wanted. Fewer come back if few of 20 times as many draws are connected.
        generator: source of the draws; None is a generator of seed 0.

    Raises:
        ValueError: if a number is out of range.
    """
    pairs = nodes * (nodes - 1) // 2
    if nodes < 1 or count < 1 or not 0 <= edges <= pairs:
        raise ValueError(f"{nodes} nodes have 0 to {pairs} edges, got {edges}; count must be at least 1, got {count}.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    row, column = torch.triu_indices(nodes, nodes, 1)
    sizes = torch.full((count,), nodes)
    found = torch.zeros(0, nodes, nodes, dtype=torch.bool)
    for _ in range(TRIES):
        chosen = torch.rand(count, pairs, generator=generator, device=generator.device).cpu().argsort(1)[:, :edges]
        drawn = torch.zeros(count, nodes, nodes, dtype=torch.bool)
        drawn[torch.arange(count)[:, None], row[chosen], column[chosen]] = True
        drawn = drawn | drawn.mT
        found = torch.cat([found, drawn[path_length(drawn, sizes).isfinite()]])
        if len(found) >= count:
            break
    return found[:count]


def small_world(network: GrownNetwork, references: int = 10, seed: int = 0) -> float:
    """Small-worldness of a network against random graphs of its size: above 1 for a small world.

    Args:
        network: of at least two nodes.
        references: number of random graphs.
        seed: of their draws.

    Returns:
        sigma; 0 where there is nothing to compare: if the network or (by 20 tries for each) every random graph is not
        connected, or no random graph has a triangle.
    """
    return float(SmallWorldTask(2, references, seed).sigmas(network.batch())[0])


class SmallWorldTask:
    """Score networks by their small-worldness, as a fitness to be maximised; too small ones by what they lack.

    Args:
        minimum: nodes; a network of n < minimum scores n - minimum.
        references: random graphs that each is compared with.
        seed: of the random graphs; they depend on it and on the numbers of nodes and edges alone.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, minimum: int = 50, references: int = 10, seed: int = 0):
        if minimum < 2 or references < 1:
            raise ValueError(f"minimum must be at least 2 and references 1, got {minimum} and {references}.")
        self.minimum, self.references, self.seed = minimum, references, seed
        self._known: dict[tuple[int, int], tuple[float, float]] = {}

    def reference(self, nodes: int, edges: int) -> tuple[float, float]:
        """Mean clustering and mean path length of the random graphs; (0, inf) if none is connected."""
        if (nodes, edges) not in self._known:
            mixed = ((self.seed * 1_000_003 + nodes) * 1_000_003 + edges) % 2**63
            graphs = random_graphs(nodes, edges, self.references, torch.Generator().manual_seed(mixed))
            sizes = torch.full((len(graphs),), nodes)
            pair = (float(clustering(graphs, sizes).mean()), float(path_length(graphs, sizes).mean()))
            self._known[nodes, edges] = pair if len(graphs) else (0.0, torch.inf)
        return self._known[nodes, edges]

    def sigmas(self, networks: Networks) -> Float[Tensor, " networks"]:
        """Small-worldness of each network, whatever its size; see `small_world`."""
        edges, sizes = _simple(networks.graphs.edges), networks.sizes
        counts = edges.flatten(1).sum(1) // 2
        c, length = clustering(edges, sizes), path_length(edges, sizes)
        found = [self.reference(n, m) for n, m in zip(sizes.tolist(), counts.tolist(), strict=True)]
        c_random, length_random = torch.tensor(found, dtype=c.dtype, device=c.device).reshape(-1, 2).T
        sigma = (c / c_random) / (length / length_random)
        comparable = length.isfinite() & length_random.isfinite() & (c_random > 0) & (length > 0)
        return torch.where(comparable, sigma, 0.0)

    def __call__(self, networks: Networks) -> Float[Tensor, " networks"]:
        """The score of each network."""
        scores = (networks.sizes - self.minimum).double()
        able = networks.sizes >= self.minimum
        return scores.masked_scatter(able, self.sigmas(networks.select(able))) if bool(able.any()) else scores
