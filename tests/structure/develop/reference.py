"""The growth of a network node by node and edge by edge, on a networkx graph: slow, plain, independent."""

import networkx as nx
import numpy as np
import torch

from neuropil.structure.develop.program import DevelopmentalProgram


def closed(graph: nx.Graph, node: int) -> list[int]:
    return sorted({*nx.all_neighbors(graph, node), node})


def array(graph: nx.Graph) -> np.ndarray:
    return nx.to_numpy_array(graph, nodelist=sorted(graph))


def call(layers: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return layers(torch.from_numpy(x)).numpy()


def diameter(graph: nx.Graph) -> int:
    plain = graph.to_undirected() if graph.is_directed() else graph
    return nx.diameter(plain) if nx.is_connected(plain) else int(np.sqrt(len(graph)))


def grow(program: DevelopmentalProgram, cycles: int) -> tuple[nx.Graph, np.ndarray]:  # noqa: PLR0912 - all kinds
    """The graph and its embeddings, by the program's own genome."""
    graph = nx.DiGraph() if program.directed else nx.Graph()
    graph.add_edge(0, 0, weight=1.0)
    x = program.seed.detach().numpy()[None]
    for _ in range(cycles):
        for _ in range(diameter(graph) + program.thinking_extra):
            flow = array(graph).T @ x
            x = np.tanh(call(program.transform, x + flow if program.additive else flow))
        before, children = graph.copy(), []
        if program.by == "node":
            for node in range(len(before)):
                if call(program.growth, x[node])[0] > 0:
                    children.append((closed(before, node), closed(before, node)))
        else:
            pairs = {tuple(sorted(edge)) for edge in before.edges}
            for i, j in sorted(pairs):
                if call(program.growth, np.concatenate([x[i], x[j]]))[0] > 0:
                    around = sorted({*nx.all_neighbors(before, i), *nx.all_neighbors(before, j)})
                    children.append(([i, j], around))
        rows = [x]
        for joined, pooled in children:
            child = len(graph)
            for other in joined:
                graph.add_edge(other, child, weight=1.0)
                graph.add_edge(child, other, weight=1.0)
            rows.append(x[pooled].mean(0, keepdims=True))
        x = np.concatenate(rows)
        if len(graph) > 1 and program.weight is not None:
            for i, j in graph.edges:
                first, second = (i, j) if program.directed else sorted((i, j))
                graph[i][j]["weight"] = np.tanh(call(program.weight, np.concatenate([x[first], x[second]]))[0])
        if program.prune:
            weak = [(i, j) for i, j, weight in graph.edges(data="weight") if abs(weight) <= program.prune]
            graph.remove_edges_from(weak)
    return graph, x
