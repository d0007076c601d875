"""The catalogue: what there is to load, and where each set would come from."""

from dataclasses import dataclass
from typing import Literal

from neuropil.data.folders import at_hand
from neuropil.data.records import Record
from neuropil.data.registry import RECORDS

__all__ = ["DatasetInfo", "catalogue"]

Where = Literal["embedded", "$NEUROPIL_DATA", "cache", "download"]


@dataclass(frozen=True)
class DatasetInfo:
    """One line of the catalogue.

    Attributes:
        name: what `load` is asked for.
        title: as people call it.
        description: one sentence.
        licence: short name.
        citation: what to cite.
        samples: training and test samples together.
        where: "embedded" in an installed package, at hand in "$NEUROPIL_DATA" or the "cache", or still to "download".
        bytes: size of the files as their publisher has them; 0 where the set is embedded.
    """

    name: str
    title: str
    description: str
    licence: str
    citation: str
    samples: int
    where: Where
    bytes: int


def catalogue() -> list[DatasetInfo]:
    """List every data set, in the order of names. Nothing is downloaded or read."""
    return [
        DatasetInfo(
            name=record.name,
            title=record.title,
            description=record.description,
            licence=record.licence,
            citation=record.citation,
            samples=record.samples,
            where=_where(record),
            bytes=sum(file.download_bytes for file in record.files),
        )
        for _, record in sorted(RECORDS.items())
    ]


def _where(record: Record) -> Where:
    if not record.files:
        return "embedded"
    found = at_hand(record)
    return found.where if found else "download"
