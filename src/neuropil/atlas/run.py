"""What a study gets: where it runs, and where it puts claims, tables, figures and checkpoints."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from neuropil.atlas import checkpoints
from neuropil.atlas.claims import Claim
from neuropil.atlas.files import check_name, replacing, writing
from neuropil.atlas.metrics import Metrics
from neuropil.atlas.progress import Progress, Silence
from neuropil.atlas.results import Result
from neuropil.data import is_at_hand

__all__ = ["Run"]

Item = TypeVar("Item")
Value = TypeVar("Value")

MAX_ROWS = 2000
# Text as paths: the look does not depend on the reader's fonts. A fixed salt and no date: the same figure gives the
# same file.
SVG: Any = {"svg.fonttype": "path", "svg.hashsalt": "neuropil"}


class Run:
    """A run of a study, which is a folder.

    Args:
        result: what is filled in while the study runs; result.json is written after every claim.
        folder: of the run; it exists. What it holds from an earlier session is taken up: checkpoints, metrics.
        jobs: processes that the study may use.
        device: on which it computes.
        progress: shows how far the loops are; nothing by default.

    Attributes:
        scale: "smoke", "default" or "paper".
        seed: from which the study makes all its generators.
    """

    def __init__(
        self,
        result: Result,
        folder: Path,
        *,
        jobs: int = 1,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ):
        self.result = result
        self.folder = folder
        self.scale = result.scale
        self.seed = result.seed
        self.jobs = jobs
        self.device = torch.device(device)
        self._progress = progress or Silence()
        self._metrics = Metrics(folder / "metrics.csv")
        self._checkpoints: set[str] = set()
        self._clock = time.monotonic() - result.seconds

    def claim(
        self,
        text: str,
        *,
        holds: Any,
        measured: Any = None,
        interval: Sequence[Any] | None = None,
        unit: str = "",
        threshold: str = "",
        paper: Any = None,
        baseline: Any = None,
        note: str | None = None,
    ) -> Claim:
        """State what the paper claims, what was measured and whether it holds.

        Args:
            text: the claim, one sentence; two claims of a run never have the same.
            holds: True, False, or None for undecided.
            measured: a number; None where nothing could be measured, with a note.
            interval: (low, high) over seeds; infinite ends are unbounded.
            unit: of `measured` and `interval`.
            threshold: the rule that decided, in words, set before the run.
            paper: the paper's figure, words or a number.
            baseline: what a rival reaches, tuned as hard; words or a number.
            note: what a reader must know; where the claim does not hold, the reason.

        Raises:
            ValueError: if the text came before, a number is NaN, or the interval is upside down.
            TypeError: if `holds` is no truth value, or a number is none.
            WriteError: if the disk refuses.
        """
        if any(claim.text == text for claim in self.result.claims):
            raise ValueError(f"The claim {text!r} was made before; two claims need two sentences.")
        claim = Claim.checked(
            text,
            holds=holds,
            measured=measured,
            interval=interval,
            unit=unit,
            threshold=threshold,
            paper=paper,
            baseline=baseline,
            note=note,
        )
        self.result.claims.append(claim)
        self.write()
        return claim

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Put a small table into the result; a table of the same name is replaced.

        Args:
            name: of the table, a plain name.
            frame: at most 2000 rows. An index of its own becomes columns; NaN and infinities become null.

        Raises:
            ValueError: if it has more rows, or the name is not plain.
        """
        check_name(name, "name of a table")
        if len(frame) > MAX_ROWS:
            raise ValueError(f"Table {name!r} has {len(frame)} rows, at most {MAX_ROWS} fit a result: use metrics.")
        if not frame.index.equals(pd.RangeIndex(len(frame))):
            frame = frame.reset_index()
        cells = frame.astype(object).where(frame.notna() & ~frame.isin([float("inf"), -float("inf")]), None)
        rows = [[_cell(value) for value in row] for row in cells.to_numpy().tolist()]
        self.result.tables[name] = {"columns": [str(column) for column in frame.columns], "rows": rows}
        self.write()

    def metrics(self, name: str, frame: pd.DataFrame | None = None, **row: Any) -> None:
        """Append rows to metrics.csv, where `name` is the first column.

        Args:
            name: what the rows are about, e.g. "training".
            frame: the rows.
            row: or one row, by column.

        Raises:
            ValueError: if there are neither or both, or a column is called "name".
            WriteError: if the disk refuses.
        """
        if (frame is None) == (not row):
            raise ValueError(f"metrics {name!r} needs either a DataFrame or the columns of one row.")
        self._metrics.append(name, pd.DataFrame([row]) if frame is None else frame)

    def figure(self, name: str, figure: Figure) -> Path:
        """Write figures/<name>.svg and close the figure; a figure of the same name is replaced.

        Raises:
            ValueError: if the name is not plain.
            WriteError: if the disk refuses.
        """
        check_name(name, "name of a figure")
        file = self.folder / "figures" / f"{name}.svg"
        with writing(file.parent):
            file.parent.mkdir(exist_ok=True)
        with replacing(file) as temporary, mpl.rc_context(SVG):
            figure.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
        if file.name not in self.result.figures:
            self.result.figures.append(file.name)
        self.write()
        return file

    def track(self, items: Iterable[Item], label: str, total: int | None = None) -> Iterator[Item]:
        """Yield the items and show how many are done; tracked loops may be nested.

        Args:
            items: what is looped over.
            label: what one item is: "seed", "epoch".
            total: how many there are, where `items` does not know.
        """
        return self._progress.track(items, label, total)

    def checkpoint(self, name: str, compute: Callable[[], Value]) -> Value:
        """Compute a value once: a resumed run reads it instead.

        Either way the value has been through its file, so tuples are lists and tensors are on the CPU.

        Args:
            name: of the checkpoint, plain; each is used once in a run.
            compute: makes a DataFrame, JSON values, or dicts and lists of tensors.

        Raises:
            ValueError: if the name was used before or is not plain, or the stored file is broken.
            TypeError: if the value cannot be kept.
            WriteError: if the disk refuses.
        """
        check_name(name, "name of a checkpoint")
        if name in self._checkpoints:
            raise ValueError(f"The checkpoint {name!r} was used before; every one needs a name of its own.")
        self._checkpoints.add(name)
        file = checkpoints.find(self.folder / "checkpoints", name)
        return checkpoints.read(file or checkpoints.keep(self.folder / "checkpoints", name, compute()))

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Keep the state of a long training, in place of the one before.

        Args:
            name: of the state, plain.
            state: tensors and plain values, e.g. {"epoch": 3, "net": net.state_dict()}.

        Raises:
            ValueError: if the name is not plain.
            TypeError: if the state holds anything else.
            WriteError: if the disk refuses.
        """
        check_name(name, "name of a state")
        checkpoints.keep_tensors(self.folder / "states", name, state)

    def load(self, name: str) -> dict[str, Any] | None:
        """The state that `save` kept last, in this session or an earlier one; None if there is none.

        Tensors are on the CPU: `load_state_dict` moves them.

        Raises:
            ValueError: if the name is not plain, or the stored file is broken.
        """
        check_name(name, "name of a state")
        file = checkpoints.find(self.folder / "states", name)
        return None if file is None else checkpoints.read(file)

    def uses(self, dataset: Any) -> None:
        """Say in the result which data set was used: its name, source and citation."""
        entry = {key: str(getattr(dataset, key, "") or "") for key in ("name", "source", "citation")}
        if entry not in self.result.data:
            self.result.data.append(entry)
            self.write()

    def lacks(self, name: str, text: str) -> bool:
        """Whether a data set is not on this machine; then a claim is left undecided, saying how to get it.

        Args:
            name: of the data set, as `load` knows it.
            text: the claim that needs it.

        Raises:
            ValueError: if there is no such data set, or the claim was made before.
        """
        if is_at_hand(name):
            return False
        self.claim(text, holds=None, note=f"{name} is not on this machine: `neuropil data fetch {name}` gets it.")
        return True

    def write(self) -> None:
        """Write result.json as things stand."""
        self.result.seconds = round(time.monotonic() - self._clock, 1)
        self.result.write(self.folder / "result.json")


def _cell(value: Any) -> Any:
    """A cell as JSON has it; what JSON does not know is text."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
