"""A study on one screen: its paper, its question, its settings, and what was recorded."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from neuropil.atlas.display import claims_table
from neuropil.atlas.results import Result
from neuropil.atlas.study import Study

__all__ = ["card"]

REMARKS = {
    "full": "",
    "reconstruction": "Reconstruction: the paper could not be read in full, its mechanisms are our reading of it.",
}


def card(study: Study, scales: Mapping[str, Mapping[str, Any]], result: Result | None) -> RenderableType:
    """All there is to know of a study before it runs.

    Args:
        study: imported.
        scales: its settings by scale, as JSON has them.
        result: what was recorded, None if nothing.
    """
    paper = study.paper
    lines: list[RenderableType] = [
        Text(paper.title, "bold"),
        Text(f"{', '.join(paper.authors)} ({paper.year})"),
        Text(paper.link),
        Padding(Text(paper.summary), (1, 0)),
    ]
    if REMARKS[paper.reading]:
        lines.append(Padding(Text(REMARKS[paper.reading], "yellow"), (0, 0, 1, 0)))
    lines += [Text(study.question, "italic"), _settings(scales)]
    if result is None:
        lines.append(Text("Nothing is recorded."))
    else:
        lines += [Text(f"Recorded at scale {result.scale}, seed {result.seed}:"), claims_table(result.claims)]
    return Group(*lines)


def _settings(scales: Mapping[str, Mapping[str, Any]]) -> Table:
    table = Table("setting", *scales, box=box.SIMPLE_HEAD, pad_edge=False)
    # one type for all scales is the rule, but nothing holds a study to it
    for name in dict.fromkeys(name for settings in scales.values() for name in settings):
        table.add_row(name, *(_text(settings.get(name, "")) for settings in scales.values()))
    return table


def _text(value: Any) -> Text:
    return Text(", ".join(map(str, value)) if isinstance(value, list) else str(value))
