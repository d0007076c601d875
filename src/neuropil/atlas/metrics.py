"""metrics.csv: rows of any number of tables, appended while a study runs, one `name` column first.

Tables with different columns share the file: its columns are the union, cells that a table does not have are empty. A
resumed run goes through its loops again: a row that an earlier session wrote already is not written twice.
"""

from pathlib import Path

import pandas as pd

from neuropil.atlas.files import replacing, writing

__all__ = ["Metrics"]


class Metrics:
    """The file of a run.

    Args:
        file: metrics.csv; it need not exist.

    Raises:
        ValueError: if it exists and is not a table.
    """

    def __init__(self, file: Path):
        self.file = file
        self._columns: list[str] = []
        self._earlier: set[str] = set()
        if file.is_file():
            try:
                table = pd.read_csv(file, dtype=str, keep_default_na=False)
            except ValueError as error:  # of pandas' parser too
                raise ValueError(f"{file} is not a table: {error}") from error
            self._columns = list(table.columns)
            self._earlier = set(_lines(table))

    def append(self, name: str, rows: pd.DataFrame) -> None:
        """Write rows under a name.

        Raises:
            ValueError: if the rows have a column "name".
            WriteError: if the disk refuses.
        """
        if "name" in rows.columns:
            raise ValueError(f'The rows of metrics {name!r} have a column "name", which is where {name!r} goes.')
        rows = rows.rename(columns=str)
        rows.insert(0, "name", name)
        new = [column for column in rows.columns if column not in self._columns]
        if new:
            self._widen(new)
        lines = [line for line in _lines(rows.reindex(columns=self._columns)) if line not in self._earlier]
        if lines:
            with writing(self.file), self.file.open("a", encoding="utf-8", newline="") as file:
                file.write("\n".join(lines) + "\n")

    def _widen(self, new: list[str]) -> None:
        table = pd.read_csv(self.file, dtype=str, keep_default_na=False) if self._columns else pd.DataFrame()
        self._columns += new
        with replacing(self.file) as temporary:
            table.reindex(columns=self._columns).to_csv(temporary, index=False, lineterminator="\n")
        self._earlier = {line + "," * len(new) for line in self._earlier}


def _lines(table: pd.DataFrame) -> list[str]:
    return table.to_csv(index=False, header=False, lineterminator="\n").splitlines()
