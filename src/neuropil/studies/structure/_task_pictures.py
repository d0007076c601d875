"""Pictures of edits with task vectors: forgetting along the factor, sums of pairs, angles."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, GREY, panels

__all__ = ["draw_edits"]

Table = Any  # a pandas DataFrame; pandas' own types say too little of what grouping gives


def draw_edits(tables: Mapping[str, Table]) -> Figure:
    """One figure of all: left subtraction, in the middle sums, right the angles that explain both."""
    figure, (left, middle, right) = panels(3, size=(3.6, 3.2))
    draw_forgetting(tables["curves"], left)
    draw_pairs(tables["sums"], middle)
    draw_cosines(tables["cosines"], right)
    return figure


def draw_forgetting(curves: Table, ax: Axes) -> None:
    """Accuracy on the task and on all others as the factor grows, mean over seeds, one line a task."""
    negated = curves[curves["arm"] == "negation"].groupby("task", sort=False)
    for colour, (task, own) in zip(COLOURS, negated, strict=False):
        path = own.groupby("scale")[["target", "controls"]].mean()
        ax.plot(path["controls"], path["target"], color=colour, lw=1.4, label=str(task), marker=".", ms=3)
    random = curves[curves["arm"] == "random"].groupby(["task", "scale"])[["target", "controls"]].mean()
    for number, (_, path) in enumerate(random.groupby(level="task", sort=False)):
        ax.plot(path["controls"], path["target"], color=GREY, lw=1, label=None if number else "random vector")
    ax.margins(x=0.06)
    ax.set_ylim(0, 100)
    ax.set_xlabel("accuracy on the other tasks (%)")
    ax.set_ylabel("accuracy on the task (%)")
    ax.set_title("vector subtracted, factor 0 to 1")
    ax.legend(frameon=False, fontsize=7, ncols=2, loc="lower left", borderaxespad=0.2)


def draw_pairs(table: Table, ax: Axes) -> None:
    """Normalised accuracies of the two tasks of every pair, mean over seeds, before and after."""
    pairs = table[table["sum"] != "all"]
    means = pairs.groupby(["sum", "task"], sort=False)[["normalised before", "normalised"]].mean()
    points = np.array([pair.to_numpy() for _, pair in means.groupby(level="sum", sort=False)])  # (pair, task, time)
    for pair in points:
        ax.plot(pair[0], pair[1], color=GREY, lw=0.6)
    for time, colour, label in ((0, GREY, "before"), (1, COLOURS[0], "vectors of both added")):
        ax.plot(points[:, 0, time], points[:, 1, time], "o", ms=4, color=colour, label=label)
    for line in (ax.axhline, ax.axvline):
        line(1, color="black", lw=0.5, ls=":")
    ax.set_xlabel("first task: accuracy / that of its own net")
    ax.set_ylabel("second task")
    ax.set_title("two vectors added")
    ax.legend(frameon=False, fontsize=8, loc="lower right")


def draw_cosines(table: Table, ax: Axes) -> None:
    """Cosines between vectors, mean over seeds; on the diagonal between two tunings of one task."""
    names = list(dict.fromkeys([*table["first"], *table["second"]]))
    mean = table.groupby(["first", "second"])["cosine"].mean().to_dict()
    matrix = np.array([[mean.get((a, b), mean.get((b, a), np.nan)) for b in names] for a in names])
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    for i, row in enumerate(matrix):
        for j, cosine in enumerate(row):
            shade = "white" if abs(cosine) > 0.5 else "black"
            ax.text(j, i, f"{cosine:.2f}", ha="center", va="center", fontsize=6, color=shade)
    ax.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
    ax.set_yticks(range(len(names)), names, fontsize=7)
    ax.set_title("cosines (diagonal: one task, other images)", fontsize=9)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
