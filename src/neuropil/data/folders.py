"""Where files lie: `$NEUROPIL_DATA/<name>/` first, then the cache."""

import os
from pathlib import Path
from typing import Literal, NamedTuple

import pooch

from neuropil.data.records import Record
from neuropil.data.registry import find_record

__all__ = ["AtHand", "at_hand", "cache_folder", "is_at_hand", "locate"]


class AtHand(NamedTuple):
    """A folder that has every file of a data set.

    Attributes:
        folder: where.
        where: which of the two places it is.
    """

    folder: Path
    where: Literal["$NEUROPIL_DATA", "cache"]


def cache_folder() -> Path:
    """Folder of downloads: $NEUROPIL_CACHE if set, else the system's cache folder. It need not exist."""
    return _from_environment("NEUROPIL_CACHE") or Path(pooch.os_cache("neuropil"))


def at_hand(record: Record) -> AtHand | None:
    """Find the first folder that has every file of a data set; what is in the files is not looked at."""
    shared = _from_environment("NEUROPIL_DATA")
    places = [AtHand(cache_folder() / record.name, "cache")]
    if shared:
        places.insert(0, AtHand(shared / record.name, "$NEUROPIL_DATA"))
    for place in places:
        if record.files and all((place.folder / file.name).is_file() for file in record.files):
            return place
    return None


def is_at_hand(name: str) -> bool:
    """Whether a data set can be loaded without a download: it is embedded, or its files are here.

    Raises:
        ValueError: if there is no such data set.
    """
    record = find_record(name)
    return not record.files or at_hand(record) is not None


def locate(name: str) -> Path | None:
    """Folder that has the files of a data set, without a download.

    Args:
        name: of the data set.

    Returns:
        `$NEUROPIL_DATA/<name>`, else the folder in the cache, else None; None also for sets that have no files
        because they are embedded in a package.

    Raises:
        ValueError: if there is no such data set.
    """
    found = at_hand(find_record(name))
    return found.folder if found else None


def _from_environment(variable: str) -> Path | None:
    # An empty value counts as none: that is how a shell unsets for one command.
    value = os.environ.get(variable, "").strip()
    return Path(value).expanduser() if value else None
