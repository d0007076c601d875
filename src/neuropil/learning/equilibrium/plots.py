"""Pictures of equilibrium propagation: orders of the bias, alignment by angle, homeostasis over the epochs."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, GREY, canvas, panels

__all__ = ["plot_bias", "plot_by_angle", "plot_homeostasis"]


def plot_bias(table: pd.DataFrame, ax: Axes | None = None) -> Figure:
    """Relative error of nudged error vectors against the size of the nudge, one line a network.

    Args:
        table: columns seed, points, beta, bias.
        ax: where to draw; None makes a figure.

    Returns:
        The figure.
    """
    figure, ax = canvas(ax)
    betas = np.unique(table["beta"].to_numpy(dtype=float)).tolist()
    largest = betas[-1]
    for colour, (points, own) in zip(COLOURS, table.groupby("points"), strict=False):
        for _, line in own.groupby("seed"):
            ax.loglog(line["beta"], line["bias"], "o-", color=colour, ms=3, lw=1)
        height = float(np.exp(np.log(own["bias"].to_numpy(dtype=float)[own["beta"] == largest]).mean()))
        ax.annotate(f"N = {points}", (1.12 * largest, height), color=colour, fontsize=8, va="center")
    ax.set_xlim(right=1.9 * largest)
    ax.set_xticks(betas, [f"{beta:g}" for beta in betas])
    ax.minorticks_off()
    ax.set_xlabel("size of the nudges")
    ax.set_ylabel("relative error of the error vector")
    return figure


def plot_by_angle(table: pd.DataFrame) -> Figure:
    """Accuracy after learning, and alignment before and after, against the angle of the feedback kernels.

    Args:
        table: columns rule, seed, epoch, angle (degrees), accuracy (fraction), cosine.

    Returns:
        The figure.
    """
    figure, (left, right) = panels(2)
    last, first = table["epoch"].max(), table["epoch"].min()
    for colour, (rule, rows) in zip(COLOURS, table.groupby("rule", sort=False), strict=False):
        end = rows.loc[rows["epoch"] == last]
        _seeds(left, end, "angle", "accuracy", colour, str(rule), factor=100)
        _seeds(right, end, "angle", "cosine", colour, str(rule))
    # Before learning all rules have the same network.
    start = table.loc[(table["epoch"] == first) & (table["rule"] == table["rule"].iloc[0])]
    _seeds(right, start, "angle", "cosine", GREY, "before learning")
    left.set_ylabel("test accuracy (%)")
    right.set_ylabel("cosine of EP's and true errors")
    for ax in (left, right):
        ax.set_xlabel("angle of feedback at the start (degrees)")
        ax.set_xticks(sorted(table["angle"].unique()))
        ax.legend(frameon=False, fontsize=8)
    return figure


def plot_homeostasis(table: pd.DataFrame) -> Figure:
    """Asymmetry, alignment and accuracy over the epochs.

    Args:
        table: columns rule, seed, epoch, asymmetry, cosine, accuracy (fraction).

    Returns:
        The figure.
    """
    figure, axes = panels(3)
    shown = {
        "asymmetry": r"$\|W - W^T\|^2\,/\,2n$",
        "cosine": "cosine of EP's and true errors",
        "accuracy": "test accuracy (%)",
    }
    for ax, (column, label) in zip(axes, shown.items(), strict=True):
        for colour, (rule, rows) in zip(COLOURS, table.groupby("rule", sort=False), strict=False):
            factor = 100 if column == "accuracy" else 1
            _seeds(ax, rows, "epoch", column, colour, str(rule), factor=factor, dots=False)
        ax.set_xlabel("epoch")
        ax.set_ylabel(label)
    axes[0].set_yscale("log")
    axes[-1].legend(frameon=False, fontsize=8)
    return figure


def _seeds(
    ax: Axes, rows: Any, x: str, y: str, colour: str, label: str, *, factor: float = 1.0, dots: bool = True
) -> None:
    """The mean over seeds, and single seeds behind it."""
    wide = factor * rows.pivot_table(index=x, columns="seed", values=y)
    if dots:
        ax.plot(wide.index, wide, "o", color=colour, alpha=0.4, ms=3, mew=0)
    else:
        ax.plot(wide.index, wide, color=colour, alpha=0.4, lw=0.6)
    ax.plot(wide.index, wide.mean(axis=1), color=colour, lw=1.6, label=label)
