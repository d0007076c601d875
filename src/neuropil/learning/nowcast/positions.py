"""Where a neuron stands in its graph, as eigenvectors of the normalised Laplacian.

    L = I - D^-1/2 A D^-1/2          A symmetric adjacency, 1 where any edge joins two different nodes
    L v_0 = 0 (left out),  L v_m = lambda_m v_m,  lambda_1 <= lambda_2 <= ...

An eigenvector's sign is arbitrary: its largest entry is made positive here, and training flips signs at random. Where
an eigenvalue repeats, as it does for the interchangeable neurons of a hidden layer, so is the basis: these features
break the exchange of neurons, and a nowcaster that must keep it does without them.
"""

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy.sparse import coo_array, csr_array, diags_array
from scipy.sparse.linalg import eigsh
from torch import Tensor

__all__ = ["laplacian_positions"]

DENSE = 600  # nodes up to which the full decomposition is quicker than Lanczos


def laplacian_positions(
    edge_index: Int64[Tensor, "2 edges"], nodes: int, eigenvectors: int
) -> Float[Tensor, "nodes eigenvectors"]:
    """First eigenvectors of the graph's Laplacian after the constant one.

    Args:
        edge_index: source and target of each edge; directions, repetitions and loops do not count.
        nodes: how many there are.
        eigenvectors: how many are wanted; columns of zeros fill up where the graph has too few nodes.

    Returns:
        One row a node.
    """
    found = np.zeros((nodes, eigenvectors), dtype=np.float32)
    wanted = min(eigenvectors, nodes - 1)
    if wanted > 0:
        found[:, :wanted] = _smallest(_normalised_adjacency(edge_index.cpu().numpy(), nodes), nodes, wanted)
    return torch.from_numpy(found).to(edge_index.device)


def _normalised_adjacency(edges: np.ndarray, nodes: int) -> csr_array:
    source, target = edges[:, edges[0] != edges[1]]
    pairs = np.unique(np.concatenate([source * nodes + target, target * nodes + source]))
    adjacency = coo_array((np.ones(len(pairs)), (pairs // nodes, pairs % nodes)), shape=(nodes, nodes))
    degree = np.maximum(np.asarray(adjacency.sum(axis=1)), 1)  # a node without a neighbour keeps its row of zeros
    root = diags_array(degree**-0.5)
    return csr_array(root @ adjacency @ root)


def _smallest(adjacency: csr_array, nodes: int, wanted: int) -> np.ndarray:
    """Eigenvectors 1 to `wanted` of I - adjacency: those of the adjacency with the largest eigenvalues."""
    if nodes <= max(DENSE, 3 * wanted):
        vectors = np.linalg.eigh(adjacency.toarray())[1]
    else:
        start = np.random.default_rng(0).normal(size=nodes)  # given, so that the global state is left alone
        values, vectors = eigsh(adjacency, k=wanted + 1, which="LA", v0=start)
        vectors = vectors[:, np.argsort(values)]
    vectors = vectors[:, ::-1][:, 1 : wanted + 1]
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.where(vectors[largest, np.arange(wanted)] < 0, -1.0, 1.0)
