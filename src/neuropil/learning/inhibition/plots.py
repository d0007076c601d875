"""Pictures of single-neuron plasticity and of teacher-student learning."""

from collections.abc import Mapping

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.learning.inhibition.curves import zero_crossings
from neuropil.learning.inhibition.teacher_student import TeacherStudent
from neuropil.plotting import COLOURS, GREY, canvas, panels

__all__ = ["plot_isolated", "plot_plasticity", "plot_teacher_student"]


def plot_plasticity(
    curves: Mapping[str, pd.DataFrame],
    ax: Axes | None = None,
    *,
    title: str = "",
    targets: Mapping[str, float] | None = None,
) -> Figure:
    """Weight change against the postsynaptic rate.

    Args:
        curves: by label, tables with r_e and dw (from `plasticity_curve` or `rival_curve`).
        ax: where to draw; None makes a figure.
        title: of the panel.
        targets: rates to mark with a tick in the curve's colour, by label.

    Returns:
        The figure.
    """
    figure, ax = canvas(ax)
    ax.axhline(0, color=GREY, lw=0.8, ls="--")
    for colour, (label, table) in zip(COLOURS, curves.items(), strict=False):
        ax.plot(table["r_e"], table["dw"], color=colour, lw=1.6, label=label)
        if targets and label in targets:
            ax.plot([targets[label]], [0], "v", color=colour, ms=6)
    ax.set_xlabel("excitatory rate")
    ax.set_ylabel("weight change")
    ax.set_title(title)
    ax.legend(frameon=False, fontsize=8)
    return figure


def plot_isolated(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "") -> Figure:
    """Weight change against the imposed rate, one line for each imposed inhibition, its threshold marked.

    Args:
        table: from `isolated_curve`.
        ax: where to draw; None makes a figure.
        title: of the panel.

    Returns:
        The figure.
    """
    figure, ax = canvas(ax)
    ax.axhline(0, color=GREY, lw=0.8, ls="--")
    levels = sorted(table["r_i"].unique())
    for index, level in enumerate(levels):
        rows = table[table["r_i"] == level]
        colour = colormaps["viridis"](0.85 * index / max(len(levels) - 1, 1))
        ax.plot(rows["r_e"], rows["dw"], color=colour, lw=1.6, label=f"inhibition {level:.2g}")
        crossings = zero_crossings(rows["r_e"], rows["dw"])
        ax.plot(crossings, [0.0] * len(crossings), "o", color=colour, ms=4)
    ax.set_xlabel("excitatory rate (imposed)")
    ax.set_ylabel("weight change")
    ax.set_title(title)
    ax.legend(frameon=False, fontsize=8)
    return figure


def plot_teacher_student(runs: Mapping[str, list[TeacherStudent]]) -> Figure:
    """Open-loop error and control energy over epochs, and the liveliest output before and after learning.

    Args:
        runs: by label, one run a seed; the traces are the first label's first run.

    Returns:
        The figure, three panels.

    Raises:
        ValueError: if there are no runs.
    """
    first = next((several[0] for several in runs.values() if several), None)
    if first is None:
        raise ValueError("There are no runs to draw.")
    figure, (error, energy, trace) = panels(3)
    for colour, (label, several) in zip(COLOURS, runs.items(), strict=False):
        for index, run in enumerate(several):
            style = {"color": colour, "lw": 1.2, "alpha": 0.8, "label": label if index == 0 else None}
            error.plot(run.table["epoch"], run.table["mse"], **style)
            energy.plot(run.table["epoch"][1:], run.table["energy"][1:], **style)
    for ax, name in ((error, "open-loop squared error"), (energy, "control energy H")):
        ax.set_yscale("log")
        ax.set_xlabel("epoch")
        ax.set_ylabel(name)
    figure.legend(
        *error.get_legend_handles_labels(), loc="outside upper left", ncols=len(runs), frameon=False, fontsize=8
    )
    shown = slice(None, None, max(1, len(first.times) // 1000))
    liveliest = int(first.target.var(axis=0).argmax())
    trace.plot(first.times[shown], first.target[shown, liveliest], color=GREY, lw=2.5, label="teacher")
    trace.plot(first.times[shown], first.before[shown, liveliest], color=COLOURS[5], lw=1, label="student before")
    trace.plot(first.times[shown], first.after[shown, liveliest], color=COLOURS[0], lw=1, label="student after")
    trace.set_xlabel("time (s)")
    trace.set_ylabel("output rate")
    trace.legend(frameon=False, fontsize=8)
    return figure
