"""The page: results in, one HTML file out.

The page asks for nothing: style and figures are inside it, it runs no script, and its content security policy forbids
both to whatever text a result may hold. Figures are embedded as images, not inlined, because the ids of several
matplotlib figures (clip paths) would clash in one document.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from neuropil.atlas.files import replacing
from neuropil.atlas.report.reading import read
from neuropil.atlas.report.strip import WIDTH
from neuropil.atlas.report.view import VERDICTS, System, look

__all__ = ["render", "write"]

Papers = Mapping[str, Mapping[str, Any]]


def write(results: Sequence[Path], output: Path, *, papers: Papers | None = None) -> Path:
    """Write one self-contained HTML page on one or several runs.

    Args:
        results: run folders (with result.json and figures/) or lone result files, in the order of the page.
        output: the HTML file; it is replaced at once or not at all.
        papers: title, authors, year, link, chapter, summary and reading of the paper by slug, as in papers.toml; any
            may be missing.

    Returns:
        output.

    Raises:
        ValueError: if there is nothing to report, a path is neither a run folder nor a result file, or a result is
            broken; if output is a folder.
    """
    output = Path(output)
    if output.is_dir():
        raise ValueError(f"output is the folder {output}, expected the name of an HTML file.")
    page = render(results, papers=papers)
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")  # lone surrogates of JSON have no UTF-8
    return output


def render(results: Sequence[Path], *, papers: Papers | None = None) -> str:
    """The page that `write` writes, as text. The same results give the same text.

    Args:
        results: as in `write`.
        papers: as in `write`.

    Raises:
        ValueError: as in `write`.
    """
    if not results:
        raise ValueError("results is empty: there is nothing to report.")
    systems: list[System] = []
    for path in results:
        recorded = read(Path(path))
        paper = (papers or {}).get(recorded.result["slug"], {})
        systems.append(look(recorded, paper, _anchor(recorded.result["slug"], systems)))
    return _environment().get_template("page.html.jinja").render(systems=systems, verdicts=VERDICTS, strip_width=WIDTH)


def _anchor(slug: str, taken: Sequence[System]) -> str:
    """An id that is unique on the page; the same system may be there at several scales and seeds."""
    anchor = name = re.sub(r"[^a-z0-9-]+", "-", slug.lower()).strip("-") or "system"
    number = 1
    while anchor in {system.anchor for system in taken} | {"overview"}:
        number += 1
        anchor = f"{name}-{number}"
    return anchor


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["web_address"] = lambda text: re.fullmatch(r"https?://\S+", text) is not None
    return environment
