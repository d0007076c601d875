"""Pictures of lines between networks: the loss along them, and how high it rises as networks grow wider."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, GREY, panels

__all__ = ["LOOKS", "draw"]

Table = Any  # a pandas DataFrame; pandas' own types say too little of what grouping gives

# By arm: label, colour, line.
LOOKS = {
    "naive": ("as trained", "#222222", "-"),
    "random": ("random order", GREY, "--"),
    "activations": ("activation matching", COLOURS[1], "-"),
    "weights": ("weight matching", COLOURS[0], "-"),
    "straight-through": ("straight-through", COLOURS[2], "-"),
}


def draw(lines: Table, barriers: Table, shown: int) -> Figure:
    """Left the loss on the line at one width, in the middle barriers by width if there are several, right by epoch."""
    several = barriers["width"].nunique() > 1
    figure, axes = panels(3 if several else 2)
    draw_lines(lines[lines["width"] == shown], axes[0], shown)
    if several:
        draw_widths(barriers[barriers["epoch"] == barriers["epoch"].max()], axes[1])
    draw_epochs(barriers[barriers["width"] == shown], axes[-1], shown)
    return figure


def draw_lines(lines: Table, ax: Axes, width: int) -> None:
    """Loss on the way from A to B, mean over pairs."""
    for arm, (label, colour, style) in LOOKS.items():
        mean = lines[lines["arm"] == arm].groupby("at")["loss"].mean()
        if len(mean):
            ax.plot(mean.index, mean, color=colour, ls=style, lw=1.4, label=label)
    ax.set_xlabel("place on the line from A to B")
    ax.set_ylabel("training loss (nats)")
    ax.set_title(f"width {width}, after training")
    ax.set_ylim(0, 1.4 * lines["loss"].max())  # room for the legend
    ax.legend(frameon=False, fontsize=7, ncols=2, loc="upper center", borderaxespad=0.1)


def draw_widths(barriers: Table, ax: Axes) -> None:
    """Barriers of every pair, relative to the line as trained."""
    naive = barriers[barriers["arm"] == "naive"].set_index(["width", "pair"])["barrier"]
    for arm in ("activations", "weights"):
        label, colour, _ = LOOKS[arm]
        ratio = barriers[barriers["arm"] == arm].set_index(["width", "pair"])["barrier"] / naive
        mean = ratio.groupby(level="width").mean()
        ax.plot(mean.index, 100 * mean, color=colour, lw=1.4, label=label)
        ax.plot(ratio.index.get_level_values("width"), 100 * ratio, "o", color=colour, ms=3, alpha=0.7)
    widths = np.unique(barriers["width"])
    ax.set_xscale("log", base=2)
    ax.set_xticks(widths, [f"{width}" for width in widths])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.set_xlabel("width")
    ax.set_ylabel("barrier (% of that as trained)")
    ax.set_title("every pair, after training")
    ax.legend(frameon=False, fontsize=7)


def draw_epochs(barriers: Table, ax: Axes, width: int) -> None:
    """Barriers of one width after every epoch, before training too: mean over pairs."""
    for arm in ("naive", "activations", "weights"):
        label, colour, style = LOOKS[arm]
        mean = barriers[barriers["arm"] == arm].groupby("epoch")["barrier"].mean()
        ax.plot(mean.index, mean, color=colour, ls=style, lw=1.4, marker=".", label=label)
    epochs = np.unique(barriers["epoch"])
    if len(epochs) < 12:
        ax.set_xticks(epochs)
    ax.set_ylim(bottom=0)
    ax.set_xlabel("epochs of training")
    ax.set_ylabel("barrier (nats)")
    ax.set_title(f"width {width}, during training")
    ax.legend(frameon=False, fontsize=7)
