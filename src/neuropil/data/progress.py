"""A rich progress bar in the shape that pooch's downloaders drive."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["DownloadBar", "download_bar"]


class DownloadBar:
    """One bar of a rich display.

    Args:
        display: what shows the bar.
        task: which of its bars.
    """

    def __init__(self, display: Progress, task: TaskID):
        self.display = display
        self.task = task

    @property
    def total(self) -> float | None:
        """Bytes to come; None while the server has not said."""
        return self.display.tasks[self.display.task_ids.index(self.task)].total

    @total.setter
    def total(self, value: int) -> None:
        self.display.update(self.task, total=value or None)

    def update(self, count: int) -> None:
        """Count bytes that arrived."""
        self.display.advance(self.task, count)

    def reset(self) -> None:
        """Start again from nothing: pooch does so to round the count off at the end."""
        self.display.update(self.task, completed=0)

    def close(self) -> None:
        """Nothing to do: the display closes its bars."""


@contextmanager
def download_bar(label: str) -> Iterator[DownloadBar]:
    """Show a bar on standard error while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as display:
        yield DownloadBar(display, display.add_task(label, total=None))
