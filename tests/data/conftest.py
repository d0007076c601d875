import gzip
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from neuropil.data import fetching
from neuropil.data.idx import DTYPES
from neuropil.data.readers import read_idx_images
from neuropil.data.records import Record, RemoteFile
from neuropil.data.registry import RECORDS

SHARED = os.environ.get("NEUROPIL_DATA", "")
NAMES = [f"{part}-{what}-ubyte.gz" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]


@pytest.fixture(autouse=True)
def own_folders(monkeypatch, tmp_path):
    """Every test has an empty cache, no $NEUROPIL_DATA, and no proxy between itself and its server."""
    monkeypatch.delenv("NEUROPIL_DATA", raising=False)
    monkeypatch.setenv("NEUROPIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetching, "PAUSE", 0.0)


@pytest.fixture
def shared(monkeypatch) -> Callable[[str], Path]:
    """Give back $NEUROPIL_DATA for real files; skip where they are not at hand."""

    def require(name: str) -> Path:
        folder = Path(SHARED) / name
        if not SHARED or not all((folder / file.name).is_file() for file in RECORDS[name].files):
            pytest.skip(f"no files of {name} in $NEUROPIL_DATA")
        monkeypatch.setenv("NEUROPIL_DATA", SHARED)
        return folder

    return require


@pytest.fixture(scope="session")
def encode_idx() -> Callable[[np.ndarray], bytes]:
    """Write an array in the IDX format."""
    codes = {np.dtype(dtype).newbyteorder("="): code for code, dtype in DTYPES.items()}

    def encode(array: np.ndarray) -> bytes:
        header = bytes([0, 0, codes[array.dtype.newbyteorder("=")], array.ndim])
        return header + np.array(array.shape, ">u4").tobytes() + array.astype(array.dtype.newbyteorder(">")).tobytes()

    return encode


@dataclass
class Server:
    """A server on this machine, and what it answers: {path: (status, body, promised length)}."""

    address: str
    answers: dict[str, tuple[int, bytes, int]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def put(self, path: str, body: bytes, *, status: int = 200, promise: int | None = None) -> str:
        self.answers[path] = status, body, len(body) if promise is None else promise
        return self.address + path


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            state.requests.append(self.path)
            status, body, promise = state.answers.get(self.path, (404, b"", 0))
            self.send_response(status)
            self.send_header("Content-Length", str(promise))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        http.shutdown()
        thread.join()


@dataclass
class Tiny:
    """A data set of 6 + 4 images in two classes: its arrays, its compressed files, its record."""

    arrays: dict[str, np.ndarray]
    files: dict[str, bytes]
    record: Record

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True)
        for name, packed in self.files.items():
            (folder / name).write_bytes(packed)
        return folder

    def served_from(self, *addresses: str) -> Record:
        """The record, with every file at these addresses."""
        files = tuple(
            replace(file, addresses=tuple(f"{address}/{file.name}" for address in addresses))
            for file in self.record.files
        )
        RECORDS["tiny"] = replace(self.record, files=files)  # undone by the fixture
        return RECORDS["tiny"]


@pytest.fixture
def tiny(encode_idx, monkeypatch) -> Tiny:
    generator = np.random.default_rng(0)
    arrays, files, remote = {}, {}, []
    for name, count in zip(NAMES, (6, 6, 4, 4), strict=True):
        images = "images" in name
        array = generator.integers(256, size=(count, 3, 2)) if images else np.arange(count) % 2
        arrays[name] = array.astype(np.uint8)
        content = encode_idx(arrays[name])
        files[name] = gzip.compress(content)
        remote.append(RemoteFile(name, hashlib.sha256(content).hexdigest(), len(content), len(files[name]), ()))
    record = Record("tiny", "Tiny", "", "", "", 10, ("even", "odd"), read_idx_images, tuple(remote))
    monkeypatch.setitem(RECORDS, "tiny", record)
    return Tiny(arrays, files, record)
