"""Checkpoints: values kept as tables, JSON or tensors, never as pickles.

What comes back is the same whether it was just computed or read again: both have been through the file.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from neuropil.atlas.files import replacing, writing

__all__ = ["find", "keep", "keep_tensors", "read"]

FRAME, JSON, TENSORS = ".frame.json", ".json", ".pt"
PLAIN = (bool, int, float, str, type(None))


def find(folder: Path, name: str) -> Path | None:
    """File of a checkpoint, None if there is none."""
    files = (folder / f"{name}{suffix}" for suffix in (FRAME, JSON, TENSORS))
    return next((file for file in files if file.is_file()), None)


def keep(folder: Path, name: str, value: Any) -> Path:
    """Write a value, at once or not at all.

    Args:
        folder: made if it is missing.
        name: of the checkpoint.
        value: a DataFrame, anything JSON knows (NumPy scalars too), or dicts and lists with tensors in them.

    Returns:
        The file.

    Raises:
        TypeError: if the value is none of these.
        ValueError: if a DataFrame has an index or column names that would be lost.
        WriteError: if the disk refuses.
    """
    if isinstance(value, pd.DataFrame):
        return _write(folder, name + FRAME, _frame_text(name, value).encode())
    if _has_tensor(value):
        return keep_tensors(folder, name, value)
    return _write(folder, name + JSON, json.dumps(value, default=_plain).encode())


def keep_tensors(folder: Path, name: str, value: Any) -> Path:
    """Write tensors and plain values in dicts, lists and tuples, at once or not at all.

    Returns:
        The file.

    Raises:
        TypeError: if something else is among them, with its place.
        WriteError: if the disk refuses.
    """
    _check_loadable(value, name)
    buffer = io.BytesIO()  # torch.save into a file says nothing useful when the disk is full
    torch.save(value, buffer)
    return _write(folder, name + TENSORS, buffer.getvalue())


def read(file: Path) -> Any:
    """Read a value back; tensors on the CPU.

    Raises:
        ValueError: if the file is broken.
    """
    try:
        if file.name.endswith(TENSORS):
            return torch.load(file, map_location="cpu", weights_only=True)
        value = json.loads(file.read_text(encoding="utf-8"))
        return _frame(value) if file.name.endswith(FRAME) else value
    except Exception as error:  # torch, json and pandas each have errors of their own, and torch's give bad advice
        problem = f"The checkpoint {file} cannot be read ({type(error).__name__})"
        raise ValueError(f"{problem}: delete it, and it is computed anew.") from error


def _write(folder: Path, name: str, content: bytes) -> Path:
    file = folder / name
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with replacing(file) as temporary:
        temporary.write_bytes(content)
    return file


def _check_loadable(value: Any, place: str) -> None:
    """Refuse now what `weights_only=True` would refuse when the file is read."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_loadable(inner, f"{place}[{key!r}]")
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            _check_loadable(inner, f"{place}[{index}]")
    elif not isinstance(value, Tensor) and type(value) not in PLAIN:  # NumPy's float64 is a float, but not loadable
        raise TypeError(f"{place} is {type(value).__name__}: only tensors and plain Python values can be kept.")


def _has_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_tensor, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_tensor, value))
    return isinstance(value, Tensor)


def _frame_text(name: str, frame: pd.DataFrame) -> str:
    if not frame.index.equals(pd.RangeIndex(len(frame))):
        raise ValueError(f"The DataFrame of checkpoint {name!r} has an index of its own: call reset_index() first.")
    if not all(isinstance(column, str) for column in frame.columns) or not frame.columns.is_unique:
        raise ValueError(f"The DataFrame of checkpoint {name!r} must have different texts as column names.")
    columns = {column: [str(frame[column].dtype), frame[column].astype(object).tolist()] for column in frame.columns}
    return json.dumps(columns, default=_plain)


def _frame(columns: dict[str, list[Any]]) -> pd.DataFrame:
    return pd.DataFrame({name: pd.Series(cells, dtype=dtype) for name, (dtype, cells) in columns.items()})


def _plain(value: Any) -> Any:
    if value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, pd.Timestamp):
        return value.isoformat()
    if getattr(value, "ndim", None) == 0:  # a NumPy scalar
        return value.item()
    raise TypeError(
        f"A checkpoint keeps a DataFrame, JSON values, or dicts and lists of tensors; it cannot keep {type(value)}."
    )
