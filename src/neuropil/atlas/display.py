"""What a terminal shows of a run: the paper, how far it is, and a table of claims.

Words say what colours say, so nothing is lost in a pipe or with NO_COLOR.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from neuropil.atlas.claims import Claim
from neuropil.atlas.library import Paper
from neuropil.atlas.progress import Lines, Progress, length
from neuropil.atlas.report.numbers import DASH, aligned, duration, interval, with_unit
from neuropil.atlas.results import Result

__all__ = ["Bars", "Display", "claims_table", "one_line", "progress_on"]

Item = TypeVar("Item")

VERDICTS = {
    True: Text("holds", "green"),
    False: Text("does not hold", "red"),
    None: Text("undecided", "yellow"),
}
FRAME = 13  # what the borders and paddings of four columns take
STYLES = {"complete": "green", "interrupted": "yellow", "failed": "red", "running": ""}


class Bars:
    """Progress bars with label, count, percentage and time left; they vanish when they are done.

    Args:
        console: a terminal.
    """

    def __init__(self, console: Console):
        self._bars = RichProgress(
            TextColumn("{task.description}", markup=False),
            MofNCompleteColumn(),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            refresh_per_second=4,
            speed_estimate_period=3600,  # an outer loop may need minutes a step
        )

    def start(self) -> None:
        """Show the bars to come."""
        self._bars.start()

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items, with a bar for as long as there are some."""
        task = self._bars.add_task(label, total=length(items) if total is None else total)
        try:
            for item in items:
                yield item
                self._bars.advance(task)
        finally:
            self._bars.remove_task(task)

    def stop(self) -> None:
        """Take the bars away."""
        self._bars.stop()


def progress_on(console: Console) -> Progress:
    """Bars on a terminal, elsewhere plain lines now and then on standard error."""
    return Bars(console) if console.is_terminal else Lines(sys.stderr)


class Display:
    """One study in a terminal: a header, then progress, then what was found.

    Args:
        paper: of the study.
        console: receives header and claims.
        errors: receives what went wrong, and progress; without a terminal, as plain lines now and then.
    """

    def __init__(self, paper: Paper, console: Console, errors: Console):
        self.paper = paper
        self.console = console
        self.errors = errors
        self._progress = progress_on(errors)

    def start(self) -> None:
        """Print the header, and be ready for progress."""
        self.console.print(_header(self.paper))
        self._progress.start()

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items and show how many are done."""
        return self._progress.track(items, label, total)

    def stop(self) -> None:
        """End the progress."""
        self._progress.stop()

    def finish(self, result: Result, report: Path | None = None) -> None:
        """Print the claims, the reasons of those that do not hold, and where everything is."""
        if result.claims:
            self.console.print(claims_table(result.claims, self.console.width))
        for claim in result.claims:
            if claim.holds is not True and claim.note:
                self.console.print(Text.assemble(f"{claim.text}: ", VERDICTS[claim.holds], f". {claim.note}"))
        if result.status != "complete":
            self.errors.print(_status(result), soft_wrap=True)
        if result.status == "interrupted":
            self._line(f"to go on, repeat the command with --resume {result.folder}")
        self._line(f"figures and report: {report}" if report else f"folder: {result.folder}")

    def _line(self, text: str) -> None:
        """A line that is never wrapped: paths are there to be copied."""
        self.console.print(Text(text), soft_wrap=True)


def claims_table(claims: Iterable[Claim], width: int = 80) -> Table:
    """The claims: what the paper has, what was measured, and the verdict; as wide as the terminal."""
    table = Table(box=box.ROUNDED, header_style="bold", show_lines=True)
    # The sentence gets what the others leave it: rich, left alone, would give it least.
    verdict = max(len(text.plain) for text in VERDICTS.values())
    room = width - FRAME - verdict
    paper, measured = min(28, max(14, room // 5)), min(26, max(16, room // 5))
    table.add_column("claim", overflow="fold", width=max(16, room - paper - measured))
    table.add_column("paper", overflow="fold", width=paper)
    table.add_column("measured", overflow="fold", width=measured)
    table.add_column("verdict", no_wrap=True, width=verdict)
    for claim in claims:
        table.add_row(Text(claim.text), Text(claim.paper or DASH), Text(_measured(claim)), VERDICTS[claim.holds])
    return table


def one_line(result: Result) -> Text:
    """A result in one line, for runs of many studies."""
    counts = Counter(claim.holds for claim in result.claims)
    told = [f"{counts[holds]} {word}" for holds, word in VERDICTS.items() if counts[holds]]
    claims = f"claims: {', '.join(told) or 'none'}"
    return Text.assemble(
        f"{result.slug:<28} ",
        (f"{result.status:<11}", STYLES[result.status]),
        f" {duration(result.seconds):>12}  {claims}",
        f"  {result.error}" if result.error else "",
    )


def _header(paper: Paper) -> Table:
    header = Table.grid(padding=(0, 3))
    header.add_column()
    header.add_column(no_wrap=True)
    header.add_row(Text(paper.title, "bold"), Text(paper.citation))
    return header


def _measured(claim: Claim) -> str:
    """Value and unit, the interval below; the bracket of an unbounded end is round."""
    ends = claim.interval or (None, None)
    value, *printed = aligned([claim.measured, *ends], distinct=True)
    value = with_unit(value, claim.unit)
    return f"{value}\n{interval(ends, printed)}" if claim.interval else value


def _status(result: Result) -> Text:
    return Text.assemble((result.status, STYLES[result.status]), f": {result.error}" if result.error else "")
