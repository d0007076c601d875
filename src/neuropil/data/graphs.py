"""Graphs with features and classes of their nodes.

    graph = load_graph("cora")
    graph.features, graph.edges, graph.labels, graph.train, graph.validation, graph.test

Cora comes as Planetoid has it: eight files, six of them pickles of 2016. They are read after their SHA-256 has been
checked, by an unpickler that makes arrays, lists and sparse matrices and refuses everything else.
"""

import io
import pickle
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from neuropil.data.content import read_content
from neuropil.data.errors import DataError
from neuropil.data.fetching import obtain
from neuropil.data.folders import at_hand
from neuropil.data.readers import Splits
from neuropil.data.records import Record, RemoteFile

__all__ = ["GRAPHS", "Graph", "graph_is_at_hand", "load_graph"]

VALIDATION = 500  # nodes after the training nodes, by Planetoid's convention


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """An undirected graph whose nodes have features and classes.

    Attributes:
        name: as `load_graph` knows it.
        features: of every node.
        edges: pairs of nodes, each edge once in either direction, sorted; no node is its own neighbour.
        labels: class of every node.
        train: mask of the nodes whose class may be learnt.
        validation: mask of the nodes for choosing settings.
        test: mask of the nodes for the verdict.
        class_names: one name a class.
        citation: what to cite.
        source: where the files came from, free of personal paths.
    """

    name: str
    features: Float32[Tensor, "nodes features"]
    edges: Int64[Tensor, "2 edges"]
    labels: Int64[Tensor, " nodes"]
    train: Bool[Tensor, " nodes"]
    validation: Bool[Tensor, " nodes"]
    test: Bool[Tensor, " nodes"]
    class_names: tuple[str, ...]
    citation: str = ""
    source: str = ""

    def __repr__(self) -> str:
        parts = f"{int(self.train.sum())} train, {int(self.validation.sum())} validation, {int(self.test.sum())} test"
        return f"Graph({self.name!r}, {len(self.labels)} nodes, {self.edges.shape[1]} directed edges, {parts})"

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def propagation(self) -> Float32[Tensor, "nodes nodes"]:
        """Normalised adjacency with self-loops, D^-1/2 (A + I) D^-1/2, sparse (Kipf & Welling 2017, eq. 2)."""
        nodes = len(self.labels)
        own = torch.arange(nodes, device=self.edges.device)
        where = torch.cat([self.edges, own.expand(2, -1)], 1)
        degree = where[0].bincount(minlength=nodes).to(self.features)
        weights = (degree[where[0]] * degree[where[1]]).rsqrt()
        return torch.sparse_coo_tensor(where, weights, (nodes, nodes), check_invariants=True).coalesce()

    def to(self, device: torch.device | str) -> "Graph":
        """Return the graph on a device."""
        parts = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **parts)


def load_graph(name: str = "cora", *, progress: bool = False) -> Graph:
    """Load a graph by name, downloading it on first use where it is not at hand.

    Args:
        name: "cora": 2,708 papers, 1,433 words, 5,278 citations, 7 fields; the split of Planetoid, 140 training nodes.
        progress: show a bar on standard error while downloading.

    Raises:
        ValueError: if there is no such graph.
        DataError: if it cannot be downloaded, or a file is not what it should be.
    """
    record = _record(name)
    place = obtain(record, progress=progress)
    contents = {}
    for file in record.files:
        try:
            contents[file.name] = read_content(place.folder / file.name, file)
        except (DataError, OSError) as error:
            raise DataError(f"{place.folder / file.name} cannot be used: {error} Replace or delete it.") from error
    features, edges, labels, masks = _planetoid(contents, name)
    return Graph(
        name,
        torch.from_numpy(features),
        torch.from_numpy(edges),
        torch.from_numpy(labels),
        *(torch.from_numpy(mask) for mask in masks),
        class_names=record.class_names,
        citation=record.citation,
        source=f"$NEUROPIL_DATA/{name}" if place.where == "$NEUROPIL_DATA" else "cache",
    )


def graph_is_at_hand(name: str) -> bool:
    """Whether a graph can be loaded without a download.

    Raises:
        ValueError: if there is no such graph.
    """
    return at_hand(_record(name)) is not None


def _record(name: str) -> Record:
    if name not in GRAPHS:
        raise ValueError(f"No graph is named {name!r}. There are: {', '.join(sorted(GRAPHS))}.")
    return GRAPHS[name]


class _Sparse:
    """What a pickled scipy.sparse.csr_matrix is filled into: its arrays, and none of scipy's code."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    _shape: tuple[int, int]

    def dense(self) -> Float32[np.ndarray, "rows columns"]:
        matrix = np.zeros(self._shape, dtype=np.float32)
        matrix[np.repeat(np.arange(self._shape[0]), np.diff(self.indptr)), self.indices] = self.data
        return matrix


class _Unpickler(pickle.Unpickler):
    """Makes arrays, lists and sparse matrices of old files; everything else is refused by name."""

    ADMITTED: Mapping[tuple[str, str], Any] = {
        # numpy's own function for unpickling arrays; its module has another name since numpy 2.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("scipy.sparse.csr", "csr_matrix"): _Sparse,
        ("collections", "defaultdict"): defaultdict,
        ("__builtin__", "list"): list,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self.ADMITTED:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} has no place in a file of arrays")
        return self.ADMITTED[module_name, global_name]


def _unpickle(contents: Mapping[str, bytes], name: str) -> Any:
    try:
        return _Unpickler(io.BytesIO(contents[name]), encoding="latin1").load()
    except (pickle.UnpicklingError, ValueError, TypeError, EOFError, AttributeError, IndexError) as error:
        raise DataError(f"{name} cannot be read: {error}.") from error


def _planetoid(
    contents: Mapping[str, bytes], name: str
) -> tuple[
    Float32[np.ndarray, "nodes features"],
    Int64[np.ndarray, "2 edges"],
    Int64[np.ndarray, " nodes"],
    list[Bool[np.ndarray, " nodes"]],
]:
    """Features, edges, labels and masks; Planetoid stores the test nodes last, in an order of their own."""

    def part(suffix: str) -> Any:
        return _unpickle(contents, f"ind.{name}.{suffix}")

    order = np.array(contents[f"ind.{name}.test.index"].split(), dtype=np.int64)
    others = part("allx").dense()
    features = np.zeros((len(others) + len(order), others.shape[1]), dtype=np.float32)
    features[: len(others)] = others
    features[order] = part("tx").dense()
    labels = np.zeros(len(features), dtype=np.int64)
    labels[: len(others)] = part("ally").argmax(1)
    labels[order] = part("ty").argmax(1)
    pairs = np.array([(node, other) for node, others in part("graph").items() for other in others], dtype=np.int64)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    edges = np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0).T
    train = len(part("y"))
    nodes = np.arange(len(features))
    masks = [nodes < train, (nodes >= train) & (nodes < train + VALIDATION), np.isin(nodes, order)]
    return features, np.ascontiguousarray(edges), labels, masks


def _words(contents: Mapping[str, bytes], seed: int) -> Splits:
    """Training and test nodes without the graph: a bag of words each."""
    features, _, labels, (train, _, test) = _planetoid(contents, "cora")
    return Splits(features[train], labels[train], features[test], labels[test])


CORA_ADDRESSES = (
    "https://raw.githubusercontent.com/kimiyoung/planetoid/master/data/",
    "https://raw.githubusercontent.com/tkipf/gcn/master/gcn/data/",
)
# Length and SHA-256 of each file.
CORA_FILES = {
    "allx": (257_305, "9419ba2f26f5c35243db64aba110e0f35a04851609e0dc5433450676ca6b8543"),
    "ally": (47_959, "2b998f5cc7fedc86e7f97ca2498f47a1ffc1462c29e2d578b23bf3f62b6e7d71"),
    "graph": (59_847, "58f13302f39dde8852dad6fe6d15b89b077b6d7f837626bce671ef80344b383d"),
    "test.index": (5_000, "297ce89af2b51a6a194181c7dbe1796c6a1cf9cd9349a88383b1b1e227867875"),
    "tx": (148_025, "b9afbaa4a400df991f6f02ef677e1e44da55ffc04801fd02f9e673987829226a"),
    "ty": (28_135, "41f5ac76596a1699cc33f53084a2419e92961c42bb75f36fc38e616d348532ad"),
    "x": (22_119, "23cfa55d91c6f624233f5eb7b6e3f141f1bd2b2ae39608a63cf5d084bb27baab"),
    "y": (4_054, "94465c14eb53e04ca262198dcbb2521ee8af60fb3f3d546cd6ca24a511b0e7d1"),
}

CORA = Record(
    name="cora",
    title="Cora",
    description="Citations among 2,708 papers of seven fields, with 1,433 words; Planetoid's split of 140, 500, 1,000.",
    licence="MIT",
    citation="Sen et al., Collective classification in network data, AI Magazine 29 (2008); split: Yang, Cohen & "
    "Salakhutdinov, Revisiting semi-supervised learning with graph embeddings, ICML 2016.",
    samples=1140,
    class_names=(
        "Theory",
        "Reinforcement learning",
        "Genetic algorithms",
        "Neural networks",
        "Probabilistic methods",
        "Case based",
        "Rule learning",
    ),
    read=_words,
    files=tuple(
        RemoteFile(
            f"ind.cora.{suffix}", sha256, size, size, tuple(f"{address}ind.cora.{suffix}" for address in CORA_ADDRESSES)
        )
        for suffix, (size, sha256) in CORA_FILES.items()
    ),
)

GRAPHS: dict[str, Record] = {"cora": CORA}
