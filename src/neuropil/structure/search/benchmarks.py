"""Tabular benchmarks: every architecture of a space was trained once, a search only looks up.

A table has one row an architecture and seed, in any order:

    one column a decision, with the option's name | seed | validation loss <length> ... | test loss | anything else

where lengths are epochs or steps of training. Searched is minus the validation loss, averaged over the seeds: on small
validation sets accuracies tie. Of codes that are the same network a table may hold one: all are looked up there.

Source: White et al. 2023 (arXiv 2301.08727), section 7. The shipped table is ours (see `digits_cells`).
"""

import argparse
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import pandas as pd

from neuropil.structure.search.correlation import kendall_tau
from neuropil.structure.search.digits_cells import DigitsTraining, digits_space, train_cells
from neuropil.structure.search.spaces import Architecture, Space

__all__ = ["TabularBenchmark", "nb_digits", "read_benchmark", "write_nb_digits"]

LOSS, TEST = "validation loss", "test loss"


class TabularBenchmark:
    """Values of architectures that were trained before.

    Args:
        space: of the architectures.
        table: with the columns "architecture" (codes), "seed", "validation loss <length>" and, if known, "test loss".
        seeds: that count; None takes all.

    Attributes:
        lengths: of the trainings that the table knows, ascending.
        seeds: that count.

    Raises:
        ValueError: if a column is missing, a seed is not in the table, an architecture is no network of the space,
            stands twice for a seed or lacks one, or a loss is NaN.
    """

    def __init__(self, space: Space, table: pd.DataFrame, *, seeds: Sequence[int] | None = None):
        self.space = space
        self.lengths = sorted(int(name.split()[-1]) for name in map(str, table) if name.startswith(f"{LOSS} "))
        missing = [name for name in ("architecture", "seed") if name not in table]
        if missing or not self.lengths:
            raise ValueError(f"The table lacks {missing or f'columns {LOSS!r} with a length'}; it has {list(table)}.")
        found = table["seed"].tolist()
        chosen = sorted(set(found)) if seeds is None else list(seeds)
        if not chosen or set(chosen) - set(found) or len(set(chosen)) < len(chosen):
            raise ValueError(f"seeds {list(seeds or [])} wanted, the table has {sorted(set(found))}.")
        self.seeds = chosen
        columns = [*map(self._loss, self.lengths), *([TEST] if TEST in table else [])]
        # Losses of an architecture, (seeds, lengths), the test loss last.
        self._losses: dict[Architecture, np.ndarray] = {}
        numbers = table[columns].to_numpy(dtype=float)
        for code, seed, row in zip(table["architecture"].tolist(), found, numbers, strict=True):
            if seed not in chosen:
                continue
            canonical = space.canonical(space.check(code))
            entry = self._losses.setdefault(canonical, np.full((len(chosen), len(columns)), np.nan))
            if np.isnan(row).any() or not np.isnan(entry[chosen.index(seed)]).all():
                raise ValueError(f"Architecture {code} has NaN or a second row for seed {seed}.")
            entry[chosen.index(seed)] = row
        for code, losses in self._losses.items():
            if np.isnan(losses).any():
                raise ValueError(f"Architecture {code} lacks a row for one of the seeds {chosen}.")
        values = {code: -losses.mean(axis=0) for code, losses in self._losses.items()}
        self._values = {
            length: {code: float(value[at]) for code, value in values.items()} for at, length in enumerate(self.lengths)
        }
        self._test = {code: float(value[-1]) for code, value in values.items()} if TEST in table else {}

    def __len__(self) -> int:
        return len(self._losses)

    def value(self, architecture: Architecture, length: int | None = None) -> float:
        """Minus the mean validation loss after a training.

        Args:
            architecture: its code.
            length: of the training; None is the longest.

        Raises:
            ValueError: if the table has no such architecture or length.
        """
        length = self.lengths[-1] if length is None else length
        if length not in self._values:
            raise ValueError(f"The table has trainings of the lengths {self.lengths}, got {length}.")
        return self._values[length][self._key(architecture)]

    def test_value(self, architecture: Architecture) -> float:
        """Minus the mean test loss after the longest training.

        Raises:
            ValueError: if the table has no test loss, or no such architecture.
        """
        if not self._test:
            raise ValueError("The table has no test loss.")
        return self._test[self._key(architecture)]

    @cached_property
    def architectures(self) -> list[Architecture]:
        """Canonical codes, the best first."""
        values = self._values[self.lengths[-1]]
        return sorted(values, key=values.__getitem__, reverse=True)

    @property
    def optimum(self) -> float:
        """The highest value after the longest training."""
        return self.value(self.architectures[0])

    @cached_property
    def test_optimum(self) -> float:
        """The highest test value.

        Raises:
            ValueError: if the table has no test loss.
        """
        if not self._test:
            raise ValueError("The table has no test loss.")
        return max(self._test.values())

    @property
    def spread(self) -> float:
        """Distance between the quartiles of the values after the longest training."""
        low, high = np.quantile(list(self._values[self.lengths[-1]].values()), [0.25, 0.75])
        return float(high - low)

    def top(self, share: float) -> float:
        """Value that a share of the networks reach, at least one.

        Raises:
            ValueError: if the share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}.")
        return self.value(self.architectures[max(1, round(share * len(self))) - 1])

    def agreement(self) -> float:
        """Mean Kendall tau between two seeds of the table, of validation losses after the longest training.

        It bounds what a predictor of one seed's ranking can reach. NaN where there is one seed.
        """
        columns = np.stack([losses[:, len(self.lengths) - 1] for losses in self._losses.values()], axis=1)
        pairs = [(i, j) for j in range(len(columns)) for i in range(j)]
        taus = [kendall_tau(columns[i], columns[j]) for i, j in pairs]
        return float(np.mean(taus)) if taus else float("nan")

    def _key(self, architecture: Architecture) -> Architecture:
        if architecture in self._losses:
            return architecture
        canonical = self.space.canonical(architecture)
        if canonical not in self._losses:
            raise ValueError(f"The table has no architecture {architecture} (canonical {canonical}).")
        return canonical

    @staticmethod
    def _loss(length: int) -> str:
        return f"{LOSS} {length}"


def read_benchmark(
    path: str | Path | Traversable, space: Space, *, seeds: Sequence[int] | None = None
) -> TabularBenchmark:
    """Read a table from a CSV file, as this module's head describes it.

    Args:
        path: of the file.
        space: whose decisions name its columns.
        seeds: that count; None takes all.

    Raises:
        ValueError: if a decision has no column, an option is unknown, or the table is not whole.
        OSError: if the file cannot be read.
    """
    place = Path(path) if isinstance(path, str) else path
    with place.open(encoding="utf-8") as stream:
        table = pd.read_csv(stream, keep_default_na=False, na_values=[""])
    missing = [name for name in (*space.names, "seed") if name not in table]
    if missing:
        raise ValueError(f"{place.name} lacks the columns {missing}; it has {list(table)}.")
    columns = []
    for name, options in zip(space.names, space.options, strict=True):
        numbers = {str(option): number for number, option in enumerate(options)}
        unknown = sorted(set(table[name].astype(str)) - set(numbers))
        if unknown:
            raise ValueError(f"{place.name} has the options {unknown} for {name}, the space {options}.")
        columns.append([numbers[option] for option in table[name].astype(str)])
    codes = list(zip(*columns, strict=True))
    table = table.drop(columns=list(space.names)).assign(architecture=codes)
    return TabularBenchmark(space, table, seeds=seeds)


def nb_digits(*, seeds: Sequence[int] | None = None) -> TabularBenchmark:
    """The shipped table: 480 networks (625 codes), three seeds, 4, 12, 36 and 108 steps; see `digits_cells`.

    Args:
        seeds: that count, of 0 to 2; None takes all.
    """
    table = files("neuropil.structure.search") / "tables" / "nb_digits.csv"
    return read_benchmark(table, digits_space(), seeds=seeds)


def write_nb_digits(path: Path, seeds: int = 3, training: DigitsTraining | None = None) -> None:
    """Train every network of NB-digits and write the table: about a minute a seed on one core.

    Args:
        path: of the CSV file.
        seeds: number of them, from 0 on.
        training: its length and rate; the shipped table has the defaults.
    """
    space = digits_space()
    codes = list(space.all())
    names = pd.DataFrame([space.describe(code) for code in codes])
    parts = [
        pd.concat([names, train_cells(codes, seed, training).drop(columns="architecture")], axis=1)
        for seed in range(seeds)
    ]
    temporary = path.with_suffix(".part")
    pd.concat(parts).to_csv(temporary, index=False, float_format="%.4f", lineterminator="\n")
    temporary.replace(path)


def main(arguments: Sequence[str]) -> None:
    """Command line of the generator."""
    parser = argparse.ArgumentParser(description="Train all cells of NB-digits and write the table.")
    parser.add_argument("output", type=Path, help="CSV file to write")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(arguments)
    write_nb_digits(given.output, given.seeds)


if __name__ == "__main__":
    main(sys.argv[1:])
