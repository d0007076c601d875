"""The phase diagram of pruning: load (how sparse) against temperature (how noisily the dense net was trained).

    regime I      LMC < -tolerance                       badly connected                     train hotter
    regime II-A   connected, CKA < cut * largest CKA     connected, but not alike            train colder
    regime II-B   connected and alike                                                        keep

of nets that were pruned and retrained twice or more from the same weights (Zhou et al. 2023). The cut-offs are ours;
the paper reads its regimes off the diagrams. Advice holds within a load: connectivity at different densities is not to
be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from neuropil.neurons.ranges import require
from neuropil.statistics import above, t_interval

__all__ = ["COLUMNS", "Advice", "By", "PhaseDiagram", "Table"]

COLUMNS = ("seed", "temperature", "heat", "density", "dense_error", "error", "lmc", "cka")
DIRECTIONS = {"I": "hotter", "II-A": "colder", "II-B": "keep"}
By = Literal["lmc", "cka", "dense_error", "error"]
Table = Any  # a pandas DataFrame; pandas' own types say too little of what grouping gives


@dataclass(frozen=True)
class Advice:
    """Which way to change the temperature of dense training, at one density.

    Attributes:
        direction: "hotter", "colder" or "keep".
        regime: "I", "II-A" or "II-B".
        evidence: what it rests on: "lmc", "cka", "cka cut", and the measured "error" here, "error hotter" and
            "error colder" one step away, NaN where there is none.
    """

    direction: str
    regime: str
    evidence: dict[str, float]

    @property
    def slope(self) -> float:
        """Error one step hotter minus error one step colder; at an edge, one of the two is the error here."""
        here = self.evidence["error"]
        hotter, colder = (self.evidence[f"error {side}"] for side in ("hotter", "colder"))
        return (here if np.isnan(hotter) else hotter) - (here if np.isnan(colder) else colder)

    @property
    def confirmed(self) -> bool | None:
        """Whether the measured error falls in this direction ("keep": in none); None where it was not measured."""
        here = self.evidence["error"]
        measured = {side: self.evidence[f"error {side}"] for side in ("hotter", "colder")}
        if self.direction != "keep":
            other = measured[self.direction]
            return None if np.isnan(other) else bool(other < here)
        return bool(all(not other < here for other in measured.values()))


@dataclass(frozen=True, eq=False)
class PhaseDiagram:
    """Measurements over load and temperature.

    Args:
        table: one row a dense seed, temperature and density, with the columns "seed", "temperature" (any label), "heat"
            (its rank, 0 the coldest), "density", "dense_error" and "error" (test error before pruning and after
            retraining), "lmc" and "cka" (means over pairs of retrainings), and any others.

    Raises:
        ValueError: if a column is missing, a row comes twice, or seeds do not all have the same cells.
    """

    table: Table

    def __post_init__(self) -> None:
        missing = [column for column in COLUMNS if column not in self.table.columns]
        if missing or not len(self.table):
            raise ValueError(f"table lacks {missing}." if missing else "table has no rows.")
        cells = self.table.groupby(["temperature", "density"])["seed"]
        seeds = self.table["seed"].nunique()
        whole = len(self.temperatures) * len(self.densities)
        if (cells.nunique() != seeds).any() or (cells.size() != seeds).any() or len(cells) != whole:
            raise ValueError("Every seed needs every temperature at every density, once.")

    @classmethod
    def joined(cls, diagrams: Sequence["PhaseDiagram"]) -> "PhaseDiagram":
        """Put diagrams of different dense seeds together."""
        if not diagrams:
            raise ValueError("diagrams is empty.")
        return cls(pd.concat([diagram.table for diagram in diagrams], ignore_index=True))

    @property
    def temperatures(self) -> list[Any]:
        """Labels, the hottest first."""
        return list(self.table.sort_values("heat", ascending=False)["temperature"].unique())

    @property
    def densities(self) -> list[float]:
        """The largest first: from the lowest load to the highest."""
        return sorted(self.table["density"].unique().tolist(), reverse=True)

    def grid(self, column: str) -> pd.DataFrame:
        """Means of a column over seeds: temperatures down, the hottest first, densities across."""
        wide = self.table.pivot_table(index="temperature", columns="density", values=column, aggfunc="mean")
        return wide.reindex(index=self.temperatures, columns=self.densities)  # a column may be NaN throughout

    def effects(self, confidence: float = 0.95) -> pd.DataFrame:
        """Give the effect of every step of temperature at every density: error hotter minus error colder.

        Args:
            confidence: of the interval over dense seeds, paired.

        Returns:
            One row a step and density: "density", "hotter", "colder", "effect", "low", "high", "hotter_helps" (True,
            False, or None where the interval covers 0), "by_seed".
        """
        wide = self.table.pivot_table(index="seed", columns=["density", "temperature"], values="error")
        rows = []
        for density in self.densities:
            for hotter, colder in zip(self.temperatures[:-1], self.temperatures[1:], strict=True):
                change = (wide[density, hotter] - wide[density, colder]).to_numpy(dtype=float)
                low, high = t_interval(change, confidence)
                worse = above((low, high), 0.0)
                rows.append(
                    {
                        "density": density,
                        "hotter": hotter,
                        "colder": colder,
                        "effect": float(change.mean()),
                        "low": low,
                        "high": high,
                        "hotter_helps": None if worse is None else not worse,
                        "by_seed": tuple(change.tolist()),
                    }
                )
        return pd.DataFrame(rows)

    def regimes(self, lmc_tol: float = 1.0, cka_cut: float = 0.9) -> pd.DataFrame:
        """Give the regime of every cell, from means over seeds.

        Args:
            lmc_tol: a barrier counts from this size on, in the unit of the errors.
            cka_cut: fraction of the diagram's largest CKA from which two nets count as alike.

        Returns:
            One row a cell: "density", "temperature", "heat", "error", "lmc", "cka", "regime".

        Raises:
            ValueError: if a cut-off is out of range.
        """
        require("lmc_tol", lmc_tol, 0.0, np.inf)
        require("cka_cut", cka_cut, 0.0, 1.0)
        columns = ["heat", "dense_error", "error", "lmc", "cka"]
        means = self.table.groupby(["density", "temperature"])[columns].mean().reset_index()
        # A net whose outputs never change has no CKA: it is like no other.
        alike = (means["cka"] >= cka_cut * means["cka"].max()).to_numpy()
        connected = (means["lmc"] >= -lmc_tol).to_numpy()
        names = np.where(connected, np.where(alike, "II-B", "II-A"), "I")
        return means.assign(regime=names).sort_values(["density", "heat"], ascending=False, ignore_index=True)

    def advice(self, density: float, temperature: Any, lmc_tol: float = 1.0, cka_cut: float = 0.9) -> Advice:
        """Say which way to change the temperature, and what was measured there.

        Args:
            density: one of the diagram's.
            temperature: one of its labels.
            lmc_tol: see `regimes`.
            cka_cut: see `regimes`.

        Raises:
            ValueError: if there is no such cell, or a cut-off is out of range.
        """
        labels = self.temperatures
        if density not in self.densities or temperature not in labels:
            raise ValueError(
                f"There is no cell at density {density}, temperature {temperature!r}: densities are {self.densities}, "
                f"temperatures {labels}."
            )
        cells: Table = self.regimes(lmc_tol, cka_cut)
        here = cells[cells["density"] == density].set_index("temperature")
        at = labels.index(temperature)
        near = {"hotter": at - 1, "colder": at + 1}
        errors = {
            f"error {side}": float(here.loc[labels[k], "error"]) if 0 <= k < len(labels) else np.nan
            for side, k in near.items()
        }
        row = here.loc[temperature]
        evidence = {"lmc": float(row["lmc"]), "cka": float(row["cka"]), "cka cut": cka_cut * float(cells["cka"].max())}
        regime = str(row["regime"])
        return Advice(DIRECTIONS[regime], regime, evidence | {"error": float(row["error"])} | errors)

    def choices(self, by: By) -> pd.DataFrame:
        """Choose one temperature for every seed and density: the model to prune.

        Args:
            by: "lmc" or "cka" take the largest, "dense_error" the smallest; "error" takes the smallest error after
                pruning and retraining, the best that any choice can do.

        Returns:
            One row a seed and density: "seed", "density", "temperature", "error". Ties go to the hotter.

        Raises:
            ValueError: if `by` is none of these.
        """
        if by not in ("lmc", "cka", "dense_error", "error"):
            raise ValueError(f'by must be "lmc", "cka", "dense_error" or "error", got {by!r}.')
        ascending = by in ("dense_error", "error")
        ordered = self.table.sort_values([by, "heat"], ascending=[ascending, False], kind="stable")
        first = ordered.groupby(["seed", "density"], as_index=False).first()
        return first[["seed", "density", "temperature", "error"]].sort_values(
            ["seed", "density"], ascending=[True, False], ignore_index=True
        )
