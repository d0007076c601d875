"""From a result to what the page says of it: every text is made here, the template only places it."""

import base64
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from neuropil.atlas.report.numbers import DASH, aligned, duration, interval, number, with_unit
from neuropil.atlas.report.reading import Recorded
from neuropil.atlas.report.strip import Strip, strip

__all__ = ["VERDICTS", "Claim", "Figure", "Paper", "System", "Table", "Verdict", "look"]


class Verdict(NamedTuple):
    """What was decided: a key for the style, a symbol and a word (also for one and for many claims)."""

    key: str
    symbol: str
    word: str
    counted: tuple[str, str]


VERDICTS = {
    True: Verdict("holds", "✓", "holds", ("holds", "hold")),
    False: Verdict("fails", "✗", "does not hold", ("does not hold", "do not hold")),
    None: Verdict("undecided", "?", "undecided", ("undecided", "undecided")),
}
SCALE_REMARKS = {
    "smoke": "A check that everything runs, on a tiny model: its verdicts say nothing of the paper.",
    "default": "Smaller than the setting of the paper: the verdicts are about this scale.",
}


class Claim(NamedTuple):
    """One row of the claims table."""

    text: str
    baseline: str
    threshold: str
    paper: str
    measured: str
    interval: str
    exact: str
    strip: Strip | None
    verdict: Verdict
    note: str


class Figure(NamedTuple):
    """A figure as a data address; `source` is None where the file was missing, `wide` if it needs the page's width."""

    name: str
    source: str | None
    wide: bool


class Table(NamedTuple):
    """A table of printed cells; `numeric` says which columns hold numbers only."""

    name: str
    columns: Sequence[str]
    numeric: Sequence[bool]
    rows: Sequence[Sequence[str]]


class Paper(NamedTuple):
    """What papers.toml says of the system; empty where it says nothing."""

    title: str
    authors: str
    year: str
    link: str
    chapter: str
    summary: str
    reading: str


@dataclass(frozen=True)
class System:
    """One section of the page."""

    anchor: str
    slug: str
    title: str
    paper: Paper
    scale: str
    scale_remark: str
    seed: str
    status: str
    error: str
    started: str
    took: str
    claims: Sequence[Claim]
    counts: Mapping[str, int]
    tally: Sequence[tuple[Verdict, str]]
    figures: Sequence[Figure]
    in_folder: bool
    tables: Sequence[Table]
    settings: Sequence[tuple[str, str]]
    data: Sequence[tuple[str, str, str]]
    environment: Sequence[tuple[str, str]]
    command: str


def look(recorded: Recorded, paper: Mapping[str, Any], anchor: str) -> System:
    """Make the texts of one section.

    Args:
        recorded: the result and its figures.
        paper: its entry in papers.toml; any of title, authors, year, link, chapter, summary and
            reading ("reconstruction" where the paper's text could not be read).
        anchor: id of the section, unique on the page.
    """
    result = recorded.result
    claims = [_claim(claim) for claim in result["claims"]]
    counts = {verdict.key: sum(claim.verdict is verdict for claim in claims) for verdict in VERDICTS.values()}
    return System(
        anchor=anchor,
        slug=result["slug"],
        title=result["title"] or result["slug"],
        paper=_paper(paper, result["title"]),
        scale=result["scale"],
        scale_remark=SCALE_REMARKS.get(result["scale"], ""),
        seed=_or_dash(result["seed"]),
        status=result["status"],
        error=result["error"] or "",
        started=_moment(result["started"]),
        took=duration(result["seconds"]),
        claims=claims,
        counts=counts,
        tally=_tally(counts),
        figures=[_figure(name, source) for name, source in recorded.figures.items()],
        in_folder=recorded.in_folder,
        tables=[_table(name, table) for name, table in result["tables"].items()],
        settings=[(key, _exact(value)) for key, value in result["settings"].items()],
        data=[(entry["name"], entry["source"] or DASH, entry["citation"] or DASH) for entry in result["data"]],
        environment=_flat(result["environment"]),
        command=_command(result),
    )


def _claim(claim: Mapping[str, Any]) -> Claim:
    ends = claim["interval"] or (None, None)
    measured, *printed = aligned([claim["measured"], *ends], distinct=True)
    return Claim(
        text=claim["text"],
        baseline=claim["baseline"] or "",
        threshold=claim["threshold"] or DASH,
        paper=claim["paper"] or DASH,
        measured=with_unit(measured, claim["unit"]),
        interval=interval(ends, printed) if claim["interval"] else "",
        exact="" if claim["measured"] is None else repr(claim["measured"]),
        strip=strip(claim["measured"], claim["interval"], claim["threshold"], claim["unit"]),
        verdict=VERDICTS[claim["holds"]],
        note=claim["note"] or "",
    )


def _tally(counts: Mapping[str, int]) -> list[tuple[Verdict, str]]:
    """How many claims hold, do not, and are undecided, in words; kinds that do not occur are left out."""
    kinds = [(verdict, counts[verdict.key]) for verdict in VERDICTS.values() if counts[verdict.key]]
    return [(verdict, f"{count} {verdict.counted[count != 1]}") for verdict, count in kinds]


def _figure(name: str, source: bytes | None) -> Figure:
    address = None if source is None else "data:image/svg+xml;base64," + base64.b64encode(source).decode("ascii")
    return Figure(_spoken(Path(name).stem), address, wide=source is not None and _is_wide(source))


def _is_wide(svg: bytes) -> bool:
    """Whether the figure is more than twice as wide as high, by the viewBox that matplotlib writes."""
    box = re.search(rb'<svg[^>]*\sviewBox="[-\d.]+ [-\d.]+ ([\d.]+) ([\d.]+)"', svg)
    return box is not None and float(box[1]) > 2 * float(box[2])


def _table(name: str, table: Mapping[str, Any]) -> Table:
    columns = [[row[index] for row in table["rows"]] for index in range(len(table["columns"]))]
    numeric = [any(map(_is_number, cells)) and all(x is None or _is_number(x) for x in cells) for cells in columns]
    printed = [
        aligned(cells) if right else [_cell(cell) for cell in cells]
        for cells, right in zip(columns, numeric, strict=True)
    ]
    rows = list(zip(*printed, strict=True))
    return Table(_spoken(name), [_cell(column) for column in table["columns"]], numeric, rows)


def _paper(paper: Mapping[str, Any], title: str) -> Paper:
    authors = paper.get("authors") or ""
    listed = authors if isinstance(authors, str) else ", ".join(map(str, authors))
    texts = {key: str(paper.get(key) or "") for key in Paper._fields}
    told = texts["title"].casefold() == title.casefold()  # the heading above says it already
    return Paper(**{**texts, "authors": listed, "title": "" if told else texts["title"]})


def _command(result: Mapping[str, Any]) -> str:
    words = ["neuropil", "run", result["slug"], "--scale", result["scale"]]
    return shlex.join(words if result["seed"] is None else [*words, "--seed", str(result["seed"])])


def _moment(iso: str | None) -> str:
    if not iso:
        return DASH
    try:
        moment = datetime.fromisoformat(iso)
    except ValueError:
        return iso
    if moment.tzinfo is not None:
        moment = moment.astimezone(UTC)
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key and text; an object inside is spread over rows of its own."""
    rows = []
    for key, value in values.items():
        inside = _flat(value) if isinstance(value, dict) and value else None
        rows += [(key, _exact(value))] if inside is None else [(f"{key} {name}", text) for name, text in inside]
    return rows


def _exact(value: Any) -> str:
    """A setting as it was set: never rounded, since it is there to be repeated."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_exact, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{key} = {_exact(inner)}" for key, inner in value.items()) or DASH
    return _or_dash(value)


def _cell(value: Any) -> str:
    return number(value) if _is_number(value) else _exact(value)


def _or_dash(value: Any) -> str:
    return DASH if value is None or value == "" else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _spoken(name: str) -> str:
    return name.replace("_", " ").strip() or DASH
