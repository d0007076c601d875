"""Claims as a Markdown table, and the place in a README that holds it.

python -m neuropil.atlas.markdown README.md results/*.json
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from neuropil.atlas.claims import Claim
from neuropil.atlas.report.numbers import aligned, interval, with_unit
from neuropil.atlas.results import Result

__all__ = ["claims_table", "updated"]

BEGIN, END = "<!-- claims: written by `make readme` -->", "<!-- end of claims -->"
VERDICTS = {True: "holds", False: "**does not hold**", None: "undecided"}


def claims_table(results: Sequence[Result]) -> str:
    """One Markdown table a result: claim, paper, measured, verdict."""
    parts = []
    for result in results:
        rows = [
            f"| {_cell(claim.text)} | {_cell(claim.paper or '')} | {_measured(claim)} | {VERDICTS[claim.holds]} |"
            for claim in result.claims
        ]
        head = ["| claim | paper | measured | verdict |", "| --- | --- | --- | --- |"]
        parts.append("\n".join([f"**{result.title}** (`{result.slug}`, scale {result.scale})", "", *head, *rows]))
    return "\n\n".join(parts)


def updated(text: str, results: Sequence[Result]) -> str:
    """The text with the tables between its two marks replaced.

    Raises:
        ValueError: if the marks are not there, in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"The text needs the marks {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{claims_table(results)}\n{END}{after}"


def _measured(claim: Claim) -> str:
    ends = claim.interval or (None, None)
    value, *printed = aligned([claim.measured, *ends], distinct=True)
    text = with_unit(value, claim.unit)
    return _cell(f"{text} {interval(ends, printed)}" if claim.interval else text)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def main(arguments: Sequence[str]) -> None:
    """Rewrite a README in place."""
    readme, *files = map(Path, arguments)
    results = sorted((Result.read(file) for file in files), key=lambda result: result.slug)
    readme.write_text(updated(readme.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
