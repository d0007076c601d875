"""Files that are there whole or not at all, and names that are safe as file names."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["WriteError", "check_name", "replacing", "write_json", "writing"]

NAME = re.compile(r"[a-z0-9]+([-_][a-z0-9]+)*")


class WriteError(OSError):
    """A file of a run could not be written: disk full, folder gone or not ours. What was there before is untouched."""


def check_name(name: str, what: str) -> None:
    """Refuse what is no plain file name.

    Raises:
        ValueError: if the name is not made of small letters, digits and single - or _ between them.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"{what} must be small letters and digits with - or _ between them, got {name!r}.")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file when the disk refuses.

    Raises:
        WriteError: in place of any other OSError of the block.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"Cannot write {path}: {error.strerror or error}.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write to a temporary name in the same folder, and rename when the block is done.

    Yields:
        The temporary path. If the block raises, `path` stays as it was.

    Raises:
        WriteError: if the disk refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with writing(path):
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON (no NaN) at once or not at all.

    Raises:
        WriteError: if the disk refuses.
        ValueError: if a number is not finite.
    """
    text = json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
