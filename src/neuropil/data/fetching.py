"""Downloads: verified under a temporary name, then renamed, so that no half file ever has a real name."""

import time
from contextlib import nullcontext
from pathlib import Path

import filelock
import pooch
import requests

from neuropil.data.content import read_content
from neuropil.data.errors import DataError
from neuropil.data.folders import AtHand, at_hand, cache_folder
from neuropil.data.progress import download_bar
from neuropil.data.records import Record, RemoteFile
from neuropil.data.registry import find_record

__all__ = ["fetch", "obtain"]

ROUNDS = 2  # how often the addresses are gone through
PAUSE = 1.0  # seconds between rounds
TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds of silence
CHUNK = 1 << 16  # bytes read at a time
GONE = range(400, 500)  # HTTP status of what another try does not change


def fetch(name: str, *, progress: bool = False) -> Path:
    """Folder that has the files of a data set; what is missing is downloaded into the cache.

    Processes that want the same set at the same time wait for the first one.

    Args:
        name: of the data set.
        progress: show a bar on standard error.

    Raises:
        ValueError: if there is no such data set, or it is embedded in a package and has no files.
        DataError: if no address has a file with the right content, or the cache cannot be written.
    """
    record = find_record(name)
    if not record.files:
        raise ValueError(
            f"{record.name!r} lies inside {record.embedded_in}, which is installed: there is nothing to fetch."
        )
    return obtain(record, progress=progress).folder


def obtain(record: Record, *, progress: bool = False) -> AtHand:
    """Find the files of a data set, or download them; see `fetch`."""
    return at_hand(record) or AtHand(_fill_cache(record, progress=progress), "cache")


def _fill_cache(record: Record, *, progress: bool) -> Path:
    folder = cache_folder() / record.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_name(f"{record.name}.lock")):
            for file in record.files:
                # Another process may have brought it while this one waited for the lock.
                if not (folder / file.name).is_file():
                    _download(file, record, folder, progress=progress)
    except (OSError, NotImplementedError) as error:  # the latter from filelock, where a file system cannot lock
        raise DataError(
            f"Cannot write {record.name} into the cache {folder}: {error}. "
            f"Set NEUROPIL_CACHE to a folder that can be written, or {_elsewhere(record)}."
        ) from error
    return folder


def _download(file: RemoteFile, record: Record, folder: Path, *, progress: bool) -> None:
    faults: dict[str, str] = {}
    waiting = list(file.addresses)
    for attempt in range(ROUNDS):
        if attempt and waiting:
            time.sleep(PAUSE)
        for address in tuple(waiting):
            try:
                _download_from(address, file, folder, progress=progress)
            except requests.RequestException as error:
                faults[address] = str(error)
                if error.response is not None and error.response.status_code in GONE:
                    waiting.remove(address)
            except DataError as error:
                faults[address] = str(error)
                waiting.remove(address)
            else:
                return
    tried = "\n".join(f"  {address}: {fault}" for address, fault in faults.items())
    raise DataError(f"Cannot download {file.name}. Tried\n{tried}\nTry again later, or {_elsewhere(record)}.")


def _elsewhere(record: Record) -> str:
    names = ", ".join(file.name for file in record.files)
    return f"set NEUROPIL_DATA to a folder whose subfolder {record.name} has {names}"


def _download_from(address: str, file: RemoteFile, folder: Path, *, progress: bool) -> None:
    # The name is fixed, so that the leftover of a process that was killed is overwritten by the next; the lock keeps
    # others off it.
    part = folder / f".{file.name}.part"
    try:
        with download_bar(file.name) if progress else nullcontext(False) as bar:
            # Without "identity" a server may compress once more, or have requests decompress what should stay a .gz.
            download = pooch.HTTPDownloader(
                progressbar=bar,  # pyright: ignore[reportArgumentType] - any bar will do, says pooch's manual
                chunk_size=CHUNK,
                timeout=TIMEOUT,
                headers={"Accept-Encoding": "identity"},
            )
            download(address, str(part), None)
        read_content(part, file)
        part.replace(folder / file.name)
    finally:
        part.unlink(missing_ok=True)
