"""Progress of nested loops, for places that are no terminal: in silence, or as a line now and then."""

import operator
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TextIO, TypeVar

__all__ = ["Lines", "Progress", "Silence", "length"]

Item = TypeVar("Item")


class Progress(Protocol):
    """What shows how far a study is."""

    def start(self) -> None:
        """The study is about to run."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items, and show how many are done. Loops may be nested."""
        ...

    def stop(self) -> None:
        """The study has ended, however it did."""


class Silence:
    """Shows nothing."""

    def start(self) -> None:
        """Nothing to do."""

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items."""
        yield from items

    def stop(self) -> None:
        """Nothing to do."""


@dataclass(eq=False)
class _Loop:
    label: str
    total: int | None
    done: int = 0

    def __str__(self) -> str:
        return f"{self.label} {self.done}/{self.total}" if self.total else f"{self.label} {self.done}"


class Lines(Silence):
    """Writes where all loops stand, at most once in a while.

    Args:
        stream: where to.
        every: seconds from one line to the next.
        clock: tells the time in seconds.
    """

    def __init__(self, stream: TextIO, every: float = 10.0, clock: Callable[[], float] = time.monotonic):
        self.stream = stream
        self.every = every
        self.clock = clock
        self._loops: list[_Loop] = []
        self._told = clock()

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items, and write a line if the last one is long ago."""
        loop = _Loop(label, length(items) if total is None else total)
        self._loops.append(loop)
        try:
            for item in items:
                yield item
                loop.done += 1
                if self.clock() - self._told >= self.every:
                    self._told = self.clock()
                    print(", ".join(map(str, self._loops)), file=self.stream, flush=True)
        finally:
            self._loops.remove(loop)


def length(items: Iterable[object]) -> int | None:
    """Number of items, None if they do not know it."""
    return operator.length_hint(items, 0) or None
