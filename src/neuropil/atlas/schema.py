"""The schema of result.json: what a file must hold before anything is made of it.

Results travel between versions, machines and hands. A file is therefore read with suspicion, and what is wrong is named
with its place.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["SCHEMA", "STATUSES", "load"]

SCHEMA = 1
STATUSES = ("running", "complete", "interrupted", "failed")
NUMBER = (int, float)
TEXT = (str, type(None))

RESULT = {
    "slug": str,
    "title": str,
    "scale": str,
    "seed": (int, type(None)),
    "status": str,
    "error": TEXT,
    "started": TEXT,
    "seconds": (*NUMBER, type(None)),
    "settings": dict,
    "claims": list,
    "tables": dict,
    "figures": list,
    "data": list,
    "environment": dict,
}
CLAIM = {
    "text": str,
    "paper": TEXT,
    "measured": (*NUMBER, type(None)),
    "interval": (list, type(None)),
    "unit": TEXT,
    "threshold": TEXT,
    "baseline": TEXT,
    "holds": (bool, type(None)),
    "note": TEXT,
}
TABLE = {"columns": list, "rows": list}
DATA = {"name": str, "source": TEXT, "citation": TEXT}
NAMES = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", type(None): "null"}


def load(path: Path) -> tuple[dict[str, Any], Path]:
    """Read and check a result.

    Args:
        path: the folder of a run, or the JSON file.

    Returns:
        The parsed result, and the file it came from.

    Raises:
        ValueError: if there is neither, or the JSON is broken, incomplete or of another schema. The message names the
            file and the place in it.
    """
    file = path / "result.json" if path.is_dir() else path
    if not file.is_file():
        wanted = "it has no result.json" if path.is_dir() else "it does not exist"
        raise ValueError(f"{path} is neither a run folder nor a result file: {wanted}.")
    result = _parse(file)
    _check_result(result, file)
    return result, file


def _parse(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"), parse_int=_integer)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{file} is not valid JSON: {error}") from error


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= 40 else float(digits)  # Python refuses thousands of digits; no seed has them


def _check_result(result: Any, file: Path) -> None:
    if not isinstance(result, dict):
        raise ValueError(f"{file} holds {_name(type(result))}, not a result.")
    if result.get("schema") != SCHEMA:
        raise ValueError(f"{file} has schema {result.get('schema')!r}; this version reads schema {SCHEMA}.")
    _check(result, RESULT, "", file)
    if result["status"] not in STATUSES:
        raise ValueError(f"{file}: status is {result['status']!r}, expected one of {', '.join(STATUSES)}.")
    for index, claim in enumerate(result["claims"]):
        _check(claim, CLAIM, f"claims[{index}]", file)
        _check_interval(claim["interval"], f"claims[{index}].interval", file)
    for name, table in result["tables"].items():
        _check(table, TABLE, f"tables[{name!r}]", file)
        _check_rows(table, f"tables[{name!r}]", file)
    for index, entry in enumerate(result["data"]):
        _check(entry, DATA, f"data[{index}]", file)
    for name in result["figures"]:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".svg"):
            raise ValueError(f"{file}: figures holds {name!r}, expected the plain name of an SVG file.")


def _check(value: Any, shape: Mapping[str, Any], where: str, file: Path) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{file}: {where} is {_name(type(value))}, expected an object with {', '.join(shape)}.")
    for key, kinds in shape.items():
        place = f"{where}.{key}" if where else key
        if key not in value:
            raise ValueError(f"{file} lacks {place}.")
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        if not _is(value[key], allowed):
            expected = " or ".join(dict.fromkeys(map(_name, allowed)))
            raise ValueError(f"{file}: {place} is {_name(type(value[key]))}, expected {expected}.")


def _check_interval(interval: Any, where: str, file: Path) -> None:
    if interval is None:
        return
    if len(interval) != 2 or not all(_is(end, (*NUMBER, type(None))) for end in interval):
        raise ValueError(f"{file}: {where} must be two numbers, null where unbounded.")


def _check_rows(table: Mapping[str, Any], where: str, file: Path) -> None:
    for index, row in enumerate(table["rows"]):
        if not isinstance(row, list) or len(row) != len(table["columns"]):
            wanted = len(table["columns"])
            raise ValueError(f"{file}: {where}.rows[{index}] must be a list of {wanted} cells, one a column.")


def _is(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)  # True is no number


def _name(kind: type) -> str:
    return "a number" if kind is float else NAMES.get(kind, kind.__name__)
