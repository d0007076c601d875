"""How far to go along a task vector: the factor that a rule chooses on validation data.

    theta(l) = theta_pre + l tau,   l over a grid

    MaxMean        the l of the best mean over tasks of  accuracy(l) / accuracy of the net tuned on that task alone
    KeepControl    among the l that keep  mean control accuracy >= fraction * that of theta_pre,
                   the one of the lowest mean accuracy on the other tasks

Ties go to the smaller |l|: the shorter edit. (Ilharco et al. 2022, sections 3 and 4.) Choose on data that are not those
on which the result is reported.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from neuropil.neurons.ranges import require, require_finite, require_positive
from neuropil.structure.weightspace.states import Bench, Weights
from neuropil.structure.weightspace.vectors import TaskVector

__all__ = ["GRID", "KeepControl", "MaxMean", "ScaleRule", "ScaleSearch", "choose_scale"]

GRID = tuple(i / 20 for i in range(21))


@runtime_checkable
class ScaleRule(Protocol):
    """What chooses among factors."""

    def judge(self, table: pd.DataFrame) -> tuple[Float[np.ndarray, " scales"], Bool[np.ndarray, " scales"]]:
        """Give every row's score, bigger is better, and whether it may be chosen.

        Args:
            table: "scale" and one column of accuracies a task; the row with scale 0 is the net before the edit.
        """
        ...


@dataclass(frozen=True)
class MaxMean:
    """The best mean accuracy over tasks, each divided by what its own fine-tuned net reaches.

    Args:
        references: accuracy by task, each above 0; empty: accuracies as they are.
    """

    references: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_positive(**{f"the reference of {task}": value for task, value in self.references.items()})

    def judge(self, table: pd.DataFrame) -> tuple[Float[np.ndarray, " scales"], Bool[np.ndarray, " scales"]]:
        """Score by the mean normalised accuracy; every factor may be chosen.

        Raises:
            ValueError: if there are references, but not of exactly the tasks that were measured.
        """
        tasks = _tasks(table)
        if self.references and set(self.references) != set(tasks):
            raise ValueError(f"references are of {sorted(self.references)}, measured were {sorted(tasks)}.")
        divisors = np.array([self.references.get(task, 1.0) for task in tasks])
        return (table[tasks].to_numpy(dtype=float) / divisors).mean(1), np.ones(len(table), dtype=bool)


@dataclass(frozen=True)
class KeepControl:
    """The lowest accuracy on the targets among the factors that keep the control tasks.

    Args:
        fraction: of the control accuracy before the edit that must be kept, in (0, 1].
        control: names of the control tasks; all others are targets.

    Raises:
        ValueError: if there is no control, or the fraction is out of range.
    """

    fraction: float = 0.95
    control: Collection[str] = ("control",)

    def __post_init__(self) -> None:
        require("fraction", self.fraction, 0.0, 1.0, ends=(False, True))
        if not self.control or isinstance(self.control, str):
            raise ValueError(f"control must name one or more tasks in a collection, got {self.control!r}.")

    def judge(self, table: pd.DataFrame) -> tuple[Float[np.ndarray, " scales"], Bool[np.ndarray, " scales"]]:
        """Score by minus the mean target accuracy; a factor may be chosen if the mean control accuracy is kept.

        Raises:
            ValueError: if a control task was not measured, or nothing but controls was.
        """
        tasks = _tasks(table)
        missing = [task for task in self.control if task not in tasks]
        targets = [task for task in tasks if task not in self.control]
        if missing or not targets:
            raise ValueError(
                f"Measured were {tasks}: wanted the controls {list(self.control)} and at least one target."
            )
        kept = table[list(self.control)].to_numpy(dtype=float).mean(1)
        before = kept[(table["scale"] == 0).to_numpy()][0]
        return -table[targets].to_numpy(dtype=float).mean(1), kept >= self.fraction * before


@dataclass(frozen=True)
class ScaleSearch:
    """What a search found.

    Attributes:
        scale: the chosen factor.
        table: one row a factor: "scale", the accuracies by task, "score" of the rule, "allowed".
    """

    scale: float
    table: pd.DataFrame

    @property
    def chosen(self) -> pd.Series:
        """The row of the chosen factor."""
        return self.table[self.table["scale"] == self.scale].iloc[0]


@torch.no_grad()
def choose_scale(
    pre: Weights,
    vector: TaskVector,
    evaluate: Callable[[Any], Mapping[str, float]],
    grid: Sequence[float] = GRID,
    rule: ScaleRule | None = None,
) -> ScaleSearch:
    """Choose the factor on a task vector.

    Args:
        pre: the net before the edit, or its state dict.
        vector: the edit; to forget a task, minus its vector.
        evaluate: validation accuracy by task of what it is given: a net in evaluation mode where `pre` is a net, else a
            dict. It is the same object at every factor, overwritten in between: keep nothing of it.
        grid: the factors; 0 is measured too if it is not among them, and may be chosen.
        rule: `MaxMean()` by default, or `KeepControl(...)`, or any object with their `judge`.

    Raises:
        ValueError: if the grid is empty or not finite, the vector does not fit the net, or the rule names tasks that
            are not measured.
        FloatingPointError: if an accuracy is not finite, with the factor.

    Source: Ilharco et al. 2022 (arXiv 2212.04089), sections 3 and 4.
    """
    if not len(grid):
        raise ValueError("grid is empty: there is nothing to choose from.")
    for scale in grid:
        require_finite(grid=scale)
    scales = sorted({0.0, *(float(scale) for scale in grid)}, key=lambda scale: (abs(scale), scale))
    bench, rows = Bench(pre), []
    for scale in scales:
        measured = dict(evaluate(bench.set(vector.edits(pre, scale))))
        bad = {task: value for task, value in measured.items() if not np.isfinite(value)}
        if bad or not measured:
            raise FloatingPointError(f"Accuracies at scale {scale:g} are not finite, or there are none: {bad}.")
        rows.append({"scale": scale, **measured})
    table = pd.DataFrame(rows)
    score, allowed = (rule or MaxMean()).judge(table)
    table = table.assign(score=score, allowed=allowed)
    if not allowed.any():
        raise ValueError("The rule allows no factor, not even 0.")
    # Sorted by |l|, and argmax takes the first of equals: ties go to the shorter edit.
    best = int(np.where(allowed, score, -np.inf).argmax())
    return ScaleSearch(scales[best], table.sort_values("scale", ignore_index=True))


def _tasks(table: pd.DataFrame) -> list[str]:
    return [str(column) for column in table.columns if column != "scale"]
