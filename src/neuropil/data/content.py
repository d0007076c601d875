"""The content of a file: its bytes, decompressed where the name ends in ".gz", checked against its SHA-256."""

import gzip
import hashlib
import zlib
from pathlib import Path

from neuropil.data.errors import DataError
from neuropil.data.records import RemoteFile

__all__ = ["read_content"]


def read_content(path: Path, file: RemoteFile) -> bytes:
    """Read a file and make sure that it is the one.

    Args:
        path: where it lies, under any name.
        file: what it should hold.

    Raises:
        DataError: if it is truncated, cannot be decompressed or holds something else; the message says what is wrong,
            the caller adds what to do.
        OSError: if it cannot be read.
    """
    try:
        # Never more than is needed to see that it is too long: a small file may decompress to a huge one.
        with gzip.open(path) if file.name.endswith(".gz") else path.open("rb") as stream:
            content = stream.read(file.content_bytes + 1)
    except EOFError as error:
        raise DataError(f"{file.name} is truncated: compressed data end early, after {_size(path)} bytes.") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file.name} ({_size(path)} bytes) cannot be decompressed: {error}.") from error
    if len(content) < file.content_bytes:
        raise DataError(f"{file.name} is truncated: {len(content)} bytes of content, {file.content_bytes} wanted.")
    if len(content) > file.content_bytes:
        raise DataError(f"{file.name} is too long: more than the {file.content_bytes} bytes of content wanted.")
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(f"{file.name} holds something else: its content has SHA-256 {found}, wanted {file.sha256}.")
    return content


def _size(path: Path) -> int:
    return path.stat().st_size
