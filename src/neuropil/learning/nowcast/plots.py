"""Figures of nowcast trainings: loss curves with their jumps, and the steps that were saved."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, GREY, canvas

__all__ = ["plot_jumps", "plot_savings"]


def plot_jumps(
    curves: Mapping[str, pd.DataFrame], ax: Axes | None = None, *, period: int, title: str = "", legend: bool = True
) -> Figure:
    """Loss over steps; the first curve is the rival's, whose last loss is the target.

    Args:
        curves: by name, tables with the columns step and loss.
        ax: where; None makes a figure.
        period: steps between two jumps, at which a thin line stands.
        title: of the panel.
        legend: whether to name the curves.

    Raises:
        ValueError: if there are no curves.
    """
    if not curves:
        raise ValueError("There are no curves to draw.")
    figure, ax = canvas(ax)
    last = 0
    for index, (name, curve) in enumerate(curves.items()):
        steps, losses = (curve[column].to_numpy(dtype=float) for column in ("step", "loss"))
        ax.plot(steps, losses, color=COLOURS[index] if index else GREY, lw=1.2, label=name)
        last = max(last, int(steps[-1]))
        if not index:
            ax.axhline(losses[-1], color=GREY, lw=0.6, ls=":")
    for jump in range(period, last + 1, period):
        ax.axvline(jump, color=GREY, lw=0.4, alpha=0.4)
    ax.set_yscale("log")
    ax.set_xlabel("step")
    ax.set_ylabel("training loss")
    ax.set_title(title)
    if legend:
        ax.legend(fontsize=7, frameon=False)
    return figure


def plot_savings(savings: Mapping[str, Mapping[str, np.ndarray]], ax: Axes | None = None) -> Figure:
    """Bars of medians with a point a seed.

    Args:
        savings: by arm and condition, %, one number a seed.
        ax: where; None makes a figure.

    Raises:
        ValueError: if there are no arms.
    """
    if not savings:
        raise ValueError("There are no savings to draw.")
    figure, ax = canvas(ax)
    width = 0.8 / len(savings)
    conditions = list(next(iter(savings.values())))
    for index, (arm, found) in enumerate(savings.items()):
        places = np.arange(len(conditions)) + (index - (len(savings) - 1) / 2) * width
        medians = [float(np.median(found[condition])) for condition in conditions]
        ax.bar(places, medians, 0.9 * width, color=COLOURS[index + 1], alpha=0.6, label=arm)
        for place, condition in zip(places, conditions, strict=True):
            ax.plot(np.full(len(found[condition]), place), found[condition], ".", color="black", ms=3)
    ax.axhline(0, color=GREY, lw=0.6)
    ax.set_xticks(range(len(conditions)), conditions)
    ax.set_ylabel("steps saved (%)")
    ax.legend(fontsize=7, frameon=False, ncols=len(savings), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
