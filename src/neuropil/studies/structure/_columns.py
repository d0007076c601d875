"""Columns of long tables, as numbers."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

__all__ = ["means", "numbers"]


def numbers(table: pd.DataFrame, value: str, **where: object) -> np.ndarray:
    """One column of the rows where others have the given values, in the order of their seeds."""
    chosen = np.ones(len(table), dtype=bool)
    for name, wanted in where.items():
        chosen &= (table[name] == wanted).to_numpy()
    seeds = table["seed"].to_numpy()[chosen]
    return table[value].to_numpy(dtype=float)[chosen][np.argsort(seeds, kind="stable")]


def means(table: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """Means of some columns over the rows that are alike in others, which come in their first order."""
    rows = []
    for key in dict.fromkeys(table[list(by)].itertuples(index=False, name=None)):
        where = dict(zip(by, key, strict=True))
        rows.append(where | {value: float(numbers(table, value, **where).mean()) for value in values})
    return pd.DataFrame(rows)
