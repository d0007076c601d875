"""Folders of runs: made new, found again, and held by one process at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from neuropil.atlas.results import Result

__all__ = ["differences", "held", "made", "new_folder", "now", "unfinished"]


def now() -> str:
    """The moment, ISO 8601 in UTC to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_folder(output: Path, slug: str) -> Path:
    """Make `<output>/<slug>/<time in UTC>`, with a number behind it if a run began in the same second.

    Raises:
        OSError: if the folder cannot be made.
    """
    stamp = now().removesuffix("+00:00").replace(":", "-")
    parent = made(output / slug)
    number = 1
    while True:
        folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
        number += 1
        with _making(folder), suppress(FileExistsError):
            folder.mkdir()
            return folder


def made(folder: Path) -> Path:
    """Make a folder with all its parents, unless it is there.

    Raises:
        OSError: if it cannot be made, with the reason.
    """
    with _making(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _making(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"Cannot make the folder {folder}: {error.strerror or error}.") from error


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder.

    Raises:
        ValueError: if another run is in it.
    """
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise ValueError(f"Another run is going on in {folder}.") from error


def unfinished(output: Path, slug: str, like: Result) -> Result:
    """The latest run of a study that has not come to its end and can be gone on with.

    Args:
        output: folder of all runs.
        slug: of the study.
        like: has the scale, seed and settings that are wanted.

    Raises:
        ValueError: if there is none; if there are, but with another scale, seed or settings, with the difference.
    """
    files = sorted((output / slug).glob("*/result.json"), reverse=True)
    results = [result for result in map(Result.read, files) if result.status != "complete"]
    if not results:
        raise ValueError(f"No unfinished run of {slug} in {output / slug}: nothing to resume.")
    fitting = [result for result in results if not differences(result, like)]
    if not fitting:
        raise ValueError(f"Cannot resume {results[0].folder}: {differences(results[0], like)}.")
    return fitting[0]


def differences(found: Result, wanted: Result) -> str:
    """In what two runs differ, so that one cannot go on with the other; empty if in nothing."""
    pairs = {name: (getattr(found, name), getattr(wanted, name)) for name in ("slug", "scale", "seed")}
    for name in sorted({*found.settings, *wanted.settings}):
        pairs[name] = (found.settings.get(name), wanted.settings.get(name))
    told = [f"its {name} is {there}, not {here}" for name, (there, here) in pairs.items() if there != here]
    return ", ".join(told)
