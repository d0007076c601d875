"""Reading what a run left on disk: its result, checked, and the figures beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuropil.atlas import schema

__all__ = ["Recorded", "read"]


@dataclass(frozen=True)
class Recorded:
    """One result and the figures that lie beside it.

    Attributes:
        result: the parsed result.json.
        figures: SVG source by file name, in the result's order; None where the file is missing.
        in_folder: True for a run folder, False for a lone result file, which never has figures.
    """

    result: Mapping[str, Any]
    figures: Mapping[str, bytes | None]
    in_folder: bool


def read(path: Path) -> Recorded:
    """Read a run folder (result.json and figures/) or a lone result file.

    Args:
        path: the folder, or the JSON file. A file named result.json stands for its folder.

    Raises:
        ValueError: as `neuropil.atlas.schema.load`.
    """
    result, file = schema.load(Path(path))
    in_folder = file.name == "result.json"
    folder = file.parent / "figures"
    figures = {name: _figure(folder / name) if in_folder else None for name in result["figures"]}
    return Recorded(result, figures, in_folder)


def _figure(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None
