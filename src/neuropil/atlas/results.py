"""The result of a run, and result.json: written while the run goes on, read with suspicion."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neuropil.atlas.claims import Claim
from neuropil.atlas.files import write_json

__all__ = ["SCHEMA", "STATUSES", "Result", "Status", "record"]

SCHEMA = 1
Status = Literal["running", "complete", "interrupted", "failed"]
STATUSES = ("running", "complete", "interrupted", "failed")

KINDS: dict[str, tuple[type, ...]] = {
    "slug": (str,),
    "title": (str,),
    "scale": (str,),
    "seed": (int,),
    "status": (str,),
    "error": (str, type(None)),
    "started": (str,),
    "seconds": (int, float),
    "settings": (dict,),
    "claims": (list,),
    "tables": (dict,),
    "figures": (list,),
    "data": (list,),
    "environment": (dict,),
}


@dataclass
class Result:
    """What a run has measured so far.

    Attributes:
        slug: of the study.
        title: of the paper.
        scale: "smoke", "default" or "paper".
        seed: given to the study.
        status: "running", "complete", "interrupted" or "failed".
        error: one line, if it failed.
        started: when, ISO 8601 in UTC.
        seconds: spent so far, over all its sessions.
        settings: of the study, as JSON has them.
        claims: in the order in which they were made.
        tables: by name, {"columns": [...], "rows": [[...], ...]}.
        figures: file names in the folder figures/.
        data: name, source and citation of the data sets used.
        environment: versions and processor; nothing personal.
        folder: of the run, None if there is none. Not part of the file.
    """

    slug: str
    title: str
    scale: str
    seed: int
    status: Status = "running"
    error: str | None = None
    started: str = ""
    seconds: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    tables: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    figures: list[str] = field(default_factory=list)
    data: list[dict[str, str]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """The result as result.json has it."""
        values = {name: getattr(self, name) for name in KINDS}
        return {"schema": SCHEMA, **values, "claims": [claim.to_json() for claim in self.claims]}

    def write(self, path: Path) -> None:
        """Write result.json at once or not at all.

        Raises:
            WriteError: if the disk refuses.
        """
        write_json(path, self.to_json())

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Read a result file.

        Args:
            path: the file, or the folder of a run.

        Raises:
            ValueError: if there is no such file, or it is not a result of this schema; with the file and the place.
        """
        file = path / "result.json" if path.is_dir() else path
        values = _parse(file)
        for name, kinds in KINDS.items():
            if name not in values:
                raise ValueError(f"{file} is no result: it lacks {name!r}.")
            _check(values[name], kinds, name, file)
        if values["status"] not in STATUSES:
            raise ValueError(f"{file}: status is {values['status']!r}, expected one of {', '.join(STATUSES)}.")
        claims = [_claim(entry, f"claims[{index}]", file) for index, entry in enumerate(values["claims"])]
        for name, table in values["tables"].items():
            _check_table(table, f"tables[{name!r}]", file)
        for index, name in enumerate(values["figures"]):
            _check(name, (str,), f"figures[{index}]", file)
        for index, entry in enumerate(values["data"]):
            _check(entry, (dict,), f"data[{index}]", file)
        folder = file.parent if file.name == "result.json" else None
        return cls(**{**{name: values[name] for name in KINDS}, "claims": claims}, folder=folder)


def record(result: Result, folder: Path) -> Path:
    """Write `<folder>/<slug>.json`, to be kept under version control.

    Returns:
        The file.

    Raises:
        ValueError: if the run is not complete.
        WriteError: if the disk refuses.
    """
    if result.status != "complete":
        raise ValueError(f"Only complete runs are recorded; this one of {result.slug} is {result.status}.")
    file = folder / f"{result.slug}.json"
    result.write(file)
    return file


def _parse(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"There is no result {file}.") from error
    except (ValueError, OSError) as error:  # broken JSON and broken UTF-8 are ValueErrors
        raise ValueError(f"{file} cannot be read as a result: {error}") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        found = values.get("schema") if isinstance(values, dict) else type(values).__name__
        raise ValueError(f"{file} is no result of schema {SCHEMA}: found {found!r}.")
    return values


def _check(value: Any, kinds: tuple[type, ...], place: str, file: Path) -> None:
    # JSON's true is an int to Python, but no seed
    if not isinstance(value, kinds) or isinstance(value, bool):
        expected = " or ".join(kind.__name__ for kind in kinds).replace("NoneType", "null")
        raise ValueError(f"{file}: {place} is {type(value).__name__}, expected {expected}.")


def _claim(entry: Any, place: str, file: Path) -> Claim:
    _check(entry, (dict,), place, file)
    try:
        return Claim.checked(**entry)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {place} is no claim: {error}") from error


def _check_table(table: Any, place: str, file: Path) -> None:
    _check(table, (dict,), place, file)
    for part in ("columns", "rows"):
        _check(table.get(part), (list,), f"{place}.{part}", file)
    if any(not isinstance(row, list) or len(row) != len(table["columns"]) for row in table["rows"]):
        raise ValueError(f"{file}: {place} must have {len(table['columns'])} cells in every row.")
