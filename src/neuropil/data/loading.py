"""`load`: from a name to tensors."""

import torch

from neuropil.data.content import read_content
from neuropil.data.dataset import Dataset
from neuropil.data.draws import check_seed
from neuropil.data.errors import DataError
from neuropil.data.fetching import obtain
from neuropil.data.folders import AtHand
from neuropil.data.records import Record
from neuropil.data.registry import find_record

__all__ = ["load"]


def load(name: str, *, seed: int = 0, progress: bool = False) -> Dataset:
    """Load a data set by name, downloading it on first use where it is neither embedded nor at hand.

    Args:
        name: "digits", "iris", "breast-cancer", "mnist" or "fashion-mnist"; `catalogue` has them all.
        seed: of the random split of the embedded sets; unused where the publisher made the split ("mnist",
            "fashion-mnist").
        progress: show a bar on standard error while downloading.

    Returns:
        Samples, float32: images (samples, 1, height, width) from 0 to 1, tables (samples, features) in their own
        units; and classes, int64.

    Raises:
        TypeError: if the seed is no integer.
        ValueError: if there is no such data set (the message lists them), or the seed is negative.
        DataError: if it cannot be downloaded, or a file is not what it should be.
    """
    record = find_record(name)
    seed = check_seed(seed)
    if record.files:
        place = obtain(record, progress=progress)
        contents = _contents(record, place)
        # Reports print the source: the name of the place, never somebody's home folder.
        source = f"$NEUROPIL_DATA/{record.name}" if place.where == "$NEUROPIL_DATA" else "cache"
    else:
        contents, source = {}, record.embedded_in
    splits = record.read(contents, seed)
    return Dataset(
        record.name,
        *(torch.from_numpy(array) for array in splits),
        class_names=record.class_names,
        citation=record.citation,
        source=source,
    )


def _contents(record: Record, place: AtHand) -> dict[str, bytes]:
    contents = {}
    for file in record.files:
        path = place.folder / file.name
        try:
            contents[file.name] = read_content(path, file)
        except (DataError, OSError) as error:
            repair = (
                "Delete it, and the next load downloads it again"
                if place.where == "cache"
                else "Replace it, or unset NEUROPIL_DATA to download the set into the cache"
            )
            raise DataError(f"{path} cannot be used: {error} {repair}.") from error
    return contents
