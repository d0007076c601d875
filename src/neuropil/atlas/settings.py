"""Settings of a study: changed field by field, converted by the field's type, written as JSON."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from typing import Any

__all__ = ["as_json", "override"]

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def override(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Replace fields of a dataclass.

    Args:
        settings: the dataclass.
        changes: new values by field. Text is converted to the field's type (whole number, number, text, true or false,
            a choice, or several of them with commas between); anything else is taken as it is.

    Raises:
        ValueError: if there is no such field, with those there are; if a text does not fit, with the type wanted.
    """
    kinds = typing.get_type_hints(type(settings))
    names = [field.name for field in dataclasses.fields(settings)]
    values = {}
    for name, value in changes.items():
        if name not in names:
            raise ValueError(f"There is no setting {name!r}; the settings are {', '.join(names)}.")
        try:
            values[name] = _convert(value, kinds[name]) if isinstance(value, str) else value
        except ValueError as error:
            wanted = getattr(kinds[name], "__name__", str(kinds[name]))
            if typing.get_origin(kinds[name]) is not None:
                wanted = str(kinds[name]).replace("typing.", "")
            raise ValueError(f"Setting {name} must be {wanted}, got {value!r}.") from error
    return dataclasses.replace(settings, **values)


def as_json(settings: Any) -> dict[str, Any]:
    """A dataclass as JSON gives it back: tuples are lists, what JSON does not know is text."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def _convert(text: str, kind: Any) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _first(text, inner)
    if origin is typing.Literal:
        return {str(choice): choice for choice in inner}[text] if text in map(str, inner) else _refuse(text)
    if origin in (tuple, list):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        one = origin is list or inner[-1] is Ellipsis
        if not one and len(parts) != len(inner):
            _refuse(text)
        return origin(_convert(part, inner[0] if one else inner[i]) for i, part in enumerate(parts))
    if kind is bool:
        return TRUTH[text.lower()] if text.lower() in TRUTH else _refuse(text)
    if kind is types.NoneType:
        return None if text.lower() == "none" else _refuse(text)
    return kind(text) if kind in (int, float, str) else _refuse(text)


def _first(text: str, kinds: tuple[Any, ...]) -> Any:
    """The first type of a union that takes the text; str, which takes anything, is asked last."""
    for kind in sorted(kinds, key=lambda kind: kind is str):
        try:
            return _convert(text, kind)
        except ValueError:
            continue
    return _refuse(text)


def _refuse(text: str) -> typing.NoReturn:
    raise ValueError(text)
