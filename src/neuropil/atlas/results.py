"""The result of a run, and result.json: written while the run goes on, read with suspicion."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from neuropil.atlas import schema
from neuropil.atlas.claims import Claim
from neuropil.atlas.files import write_json

__all__ = ["Result", "Status", "record"]

Status = Literal["running", "complete", "interrupted", "failed"]


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
        values = {name: getattr(self, name) for name in schema.RESULT}
        return {"schema": schema.SCHEMA, **values, "claims": [claim.to_json() for claim in self.claims]}

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
        values, file = schema.load(path)
        claims = []
        for index, entry in enumerate(values["claims"]):
            try:
                claims.append(Claim.checked(**entry))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{file}: claims[{index}] is no claim: {error}") from error
        folder = file.parent if file.name == "result.json" else None
        return cls(**{**{name: values[name] for name in schema.RESULT}, "claims": claims}, folder=folder)


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
