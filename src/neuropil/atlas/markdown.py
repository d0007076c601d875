"""Claims as Markdown tables, and the places in README and docs that hold them.

python -m neuropil.atlas.markdown README.md docs/claims.md results/*.json

A file says by its marks what it wants: one line a study, or every claim.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from neuropil.atlas.claims import Claim
from neuropil.atlas.report.numbers import aligned, interval, with_unit
from neuropil.atlas.results import Result

__all__ = ["claims_tables", "summary_table", "updated"]

VERDICTS = {True: "holds", False: "**does not hold**", None: "undecided"}


def summary_table(results: Sequence[Result]) -> str:
    """One line a study: how many of its claims hold, are undecided and do not hold."""
    rows = ["| study | paper | holds | undecided | does not hold |", "| --- | --- | ---: | ---: | ---: |"]
    for result in results:
        counts = Counter(claim.holds for claim in result.claims)
        numbers = " | ".join(str(counts[holds] or "") for holds in (True, None, False))
        link = f"[`{result.slug}`](docs/claims.md#{result.slug})"
        rows.append(f"| {link} | {_cell(result.title)} | {numbers} |")
    return "\n".join(rows)


def claims_tables(results: Sequence[Result]) -> str:
    """One section a study: claim, paper, measured, verdict, and below why a claim does not hold."""
    parts = []
    for result in results:
        rows = [
            f"| {_cell(claim.text)} | {_cell(claim.paper or '')} | {_measured(claim)} | {VERDICTS[claim.holds]} |"
            for claim in result.claims
        ]
        head = ["| claim | paper | measured | verdict |", "| --- | --- | --- | --- |"]
        notes = [
            f"- {_cell(claim.text)}: {VERDICTS[claim.holds]}. {_cell(claim.note)}"
            for claim in result.claims
            if claim.holds is not True and claim.note
        ]
        title = [f"## {result.slug}", "", f"{result.title}; scale `{result.scale}`.", ""]
        parts.append("\n".join([*title, *head, *rows, *([""] if notes else []), *notes]))
    return "\n\n".join(parts)


PLACES: dict[str, Callable[[Sequence[Result]], str]] = {"claims": claims_tables, "summary": summary_table}


def updated(text: str, results: Sequence[Result]) -> str:
    """The text with what lies between its marks written anew.

    Raises:
        ValueError: if there are no marks, or a place has no end.
    """
    found = False
    for name, write in PLACES.items():
        begin, end = f"<!-- {name}: written by `make readme` -->", f"<!-- end of {name} -->"
        before, opened, rest = text.partition(begin)
        if opened:
            _, closed, after = rest.partition(end)
            if not closed:
                raise ValueError(f"The text needs the mark {end} behind {begin}.")
            text, found = f"{before}{begin}\n{write(results)}\n{end}{after}", True
    if not found:
        raise ValueError(f"The text needs marks of {' or '.join(PLACES)}: <!-- NAME: written by `make readme` -->.")
    return text


def _measured(claim: Claim) -> str:
    ends = claim.interval or (None, None)
    value, *printed = aligned([claim.measured, *ends], distinct=True)
    text = with_unit(value, claim.unit)
    return _cell(f"{text} {interval(ends, printed)}" if claim.interval else text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str]) -> None:
    """Rewrite Markdown files in place, from recorded results."""
    paths = [Path(argument) for argument in arguments]
    results = sorted((Result.read(path) for path in paths if path.suffix == ".json"), key=lambda result: result.slug)
    for path in paths:
        if path.suffix != ".json":
            path.write_text(updated(path.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
