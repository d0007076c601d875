import hashlib
import os
import pickle
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from neuropil.data import DataError
from neuropil.data.graphs import CORA, GRAPHS, graph_is_at_hand, load_graph
from neuropil.data.records import RemoteFile
from tests.data.conftest import SHARED


@pytest.fixture
def cora(monkeypatch) -> Path:
    folder = Path(SHARED) / "cora"
    if not SHARED or not all((folder / file.name).is_file() for file in CORA.files):
        pytest.skip("no files of cora in $NEUROPIL_DATA")
    monkeypatch.setenv("NEUROPIL_DATA", SHARED)
    return folder


def old_array(array: np.ndarray) -> bytes:
    """What Python 2 pickled of an array of numpy 1: byte strings, and numpy's names of then."""
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    code = array.dtype.str[1:].encode()
    dtype = b"cnumpy\ndtype\nU\x02" + code + b"K\x00K\x01\x87R(K\x03U\x01<NNN" + 2 * b"J\xff\xff\xff\xff" + b"K\x00tb"
    content = array.tobytes()
    return (
        empty + b"(K\x01" + old_shape(array) + dtype + b"\x89T" + len(content).to_bytes(4, "little") + content + b"tb"
    )


def old_shape(array: np.ndarray) -> bytes:
    sizes = b"".join(b"J" + size.to_bytes(4, "little") for size in array.shape)
    return sizes + (b"\x85" if array.ndim == 1 else b"\x86")


def old_sparse(dense: np.ndarray) -> bytes:
    """What Python 2 pickled of a csr_matrix."""
    rows, columns = dense.nonzero()
    state = {
        b"data": old_array(dense[rows, columns]),
        b"indices": old_array(columns.astype(np.int32)),
        b"indptr": old_array(np.concatenate([[0], (dense != 0).sum(1).cumsum()]).astype(np.int32)),
        b"_shape": old_shape(dense),
    }
    items = b"".join(b"U" + bytes([len(key)]) + key + value for key, value in state.items())
    return b"cscipy.sparse.csr\ncsr_matrix\n)\x81}(" + items + b"ub"


def pickled(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """A graph of five nodes in a path with one self-loop; the test nodes 4 and 3, stored in this order."""
    words = np.eye(5, 3, dtype=np.float32) + np.ones((5, 3), dtype=np.float32)
    classes = np.eye(3, dtype=np.int32)[[0, 1, 2, 0, 1]]
    citations = defaultdict(list, {0: [1, 0], 1: [0, 2], 2: [1, 3], 3: [2, 4, 4], 4: [3]})
    graph = pickle.dumps(citations, protocol=2)
    contents = {
        "allx": pickled(old_sparse(words[:3])),
        "ally": pickled(old_array(classes[:3])),
        "graph": graph,
        "test.index": b"4\n3\n",
        "tx": pickled(old_sparse(words[[4, 3]])),
        "ty": pickled(old_array(classes[[4, 3]])),
        "x": pickled(old_sparse(words[:1])),
        "y": pickled(old_array(classes[:1])),
    }

    def put(**changes: bytes):
        files = []
        folder = tmp_path / "given" / "tiny"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for suffix, content in {**contents, **changes}.items():
            name = f"ind.tiny.{suffix}"
            (folder / name).write_bytes(content)
            files.append(RemoteFile(name, hashlib.sha256(content).hexdigest(), len(content), len(content), ()))
        monkeypatch.setitem(GRAPHS, "tiny", replace(CORA, name="tiny", files=tuple(files)))
        monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path / "given"))
        return folder

    put.words, put.classes = words, classes
    return put


def test_a_small_graph_comes_back_as_it_was(tiny):
    tiny()
    graph = load_graph("tiny")
    assert_close(graph.features, torch.from_numpy(tiny.words))
    assert graph.labels.tolist() == tiny.classes.argmax(1).tolist()
    assert graph.edges.T.tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2], [3, 4], [4, 3]]
    assert graph.train.tolist() == [True, False, False, False, False]
    assert graph.test.tolist() == [False, False, False, True, True]
    assert graph.source == "$NEUROPIL_DATA/tiny"
    assert repr(graph).startswith("Graph('tiny', 5 nodes, 8 directed edges, 1 train")
    assert graph.to("meta").labels.device.type == "meta"


def test_propagation_is_the_normalised_adjacency_with_self_loops(tiny):
    tiny()
    graph = load_graph("tiny")
    adjacency = torch.eye(5)
    adjacency[graph.edges[0], graph.edges[1]] = 1
    half = adjacency.sum(1).rsqrt().diag()
    assert_close(graph.propagation().to_dense(), half @ adjacency @ half)


def test_other_content_is_refused_before_it_is_read(tiny):
    folder = tiny()
    file = folder / "ind.tiny.graph"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"ind\.tiny\.graph cannot be used: .*SHA-256"):
        load_graph("tiny")


class Attack:
    def __reduce__(self):
        return os.system, ("true",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps(Attack(), protocol=2), r"ind\.tiny\.graph cannot be read: (posix|nt)\.system has no place"),
        (b"\x80\x02cbuiltins\neval\n.", r"builtins\.eval has no place"),
        (b"\x80\x02cnumpy\nload\n.", r"numpy\.load has no place"),
        (b"\x80\x02", "cannot be read"),
        (b"not a pickle", "cannot be read"),
    ],
)
def test_pickles_that_hold_anything_but_arrays_are_refused(tiny, content, words):
    tiny(graph=content)
    with pytest.raises(DataError, match=words):
        load_graph("tiny")


def test_names_that_nobody_knows_and_files_that_are_not_there():
    with pytest.raises(ValueError, match=r"No graph is named 'karate'\. There are: cora"):
        load_graph("karate")
    with pytest.raises(ValueError, match="No graph is named"):
        graph_is_at_hand("karate")
    assert not graph_is_at_hand("cora")


def test_well_known_numbers_of_cora(cora):
    assert graph_is_at_hand("cora")
    graph = load_graph("cora")
    assert graph.features.shape == (2708, 1433)
    assert graph.edges.shape == (2, 2 * 5278)
    assert set(graph.features.unique().tolist()) == {0, 1}
    sizes = dict(zip(graph.class_names, graph.labels.bincount().tolist(), strict=True))
    assert (sizes["Neural networks"], sizes["Rule learning"], sizes["Theory"]) == (818, 180, 351)
    assert [int(mask.sum()) for mask in (graph.train, graph.validation, graph.test)] == [140, 500, 1000]
    assert not (graph.train & graph.validation | graph.train & graph.test | graph.validation & graph.test).any()
    assert graph.labels[graph.train].bincount().tolist() == [20] * 7
    linked = graph.labels[graph.edges[0]] == graph.labels[graph.edges[1]]
    assert float(linked.float().mean()) == pytest.approx(0.81, abs=0.005)  # citations stay within a field
    splits = CORA.read({file.name: (cora / file.name).read_bytes() for file in CORA.files}, 0)
    assert (splits.x_train.shape, splits.x_test.shape) == ((140, 1433), (1000, 1433))
    assert_close(torch.from_numpy(splits.x_test), graph.features[graph.test])
