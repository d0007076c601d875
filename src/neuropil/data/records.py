"""What is known of a data set before it is loaded: one frozen record each, no classes to derive from.

A file is known by the SHA-256 of its *content*: its bytes, decompressed where the name ends in ".gz". The compressed
bytes are no identity: mirrors and packages repack (Debian strips name and time from the gzip headers of Fashion-MNIST,
the npm copy of MNIST is compressed anew), so that copies of the same data differ from the published MD5. One hash
then covers downloads and whatever lies in $NEUROPIL_DATA, and it is checked at every load: the content is in memory
anyway, and hashing it costs a fifth of decompressing it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from neuropil.data.readers import Splits

__all__ = ["Reader", "Record", "RemoteFile"]

Reader = Callable[[Mapping[str, bytes], int], Splits]


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes:
        name: in every folder, the last part of a path.
        sha256: of the content (see the module), hexadecimal.
        content_bytes: length of the content.
        download_bytes: length of the file as its publisher has it.
        addresses: where to get it, tried in order.
    """

    name: str
    sha256: str
    content_bytes: int
    download_bytes: int
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """One data set.

    Attributes:
        name: what `load` is asked for; also the folder's name.
        title: as people call it.
        description: one sentence.
        licence: short name.
        citation: authors, title, where, year.
        samples: training and test samples together.
        class_names: one a class, in the order of the labels.
        read: turns ({file name: content}, seed) into arrays; a set with an official split leaves the seed unused.
        files: what it is made of; none where the data lie inside a package that neuropil needs anyway.
        embedded_in: that package.
    """

    name: str
    title: str
    description: str
    licence: str
    citation: str
    samples: int
    class_names: tuple[str, ...]
    read: Reader
    files: tuple[RemoteFile, ...] = ()
    embedded_in: str = ""
