"""Pictures of projections: how many neurons took part, and how fast it was over."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, canvas

__all__ = ["plot_steps", "plot_support"]


def plot_support(table: pd.DataFrame, ax: Axes | None = None, *, arms: Sequence[str] | None = None) -> Figure:
    """Neurons that have fired, in multiples of k, against time: the mean over seeds, single seeds behind it.

    Args:
        table: columns arm, seed, step, support.
        ax: where to draw; None makes a figure.
        arms: which to draw, in order; None: all.

    Returns:
        The figure.

    Raises:
        ValueError: if an arm is not in the table.
    """
    figure, ax = canvas(ax)
    for index, arm in enumerate(dict.fromkeys(table["arm"]) if arms is None else arms):
        rows = table[table["arm"] == arm]
        if rows.empty:
            raise ValueError(f"No arm named {arm!r}; the table has {sorted(table['arm'].unique())}.")
        colour = COLOURS[index % len(COLOURS)]
        by_seed = rows.pivot_table(index="step", columns="seed", values="support")
        ax.plot(by_seed.index, by_seed, color=colour, lw=0.6, alpha=0.3)
        ax.plot(by_seed.index, by_seed.mean(axis=1), color=colour, lw=1.6, label=str(arm))
    ax.set_xlabel("step")
    ax.set_ylabel("neurons that have fired / k")
    lines = len(ax.get_legend_handles_labels()[0])
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.1 * lines * (high - low))  # room for the legend above the lines
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def plot_steps(table: pd.DataFrame, ax: Axes | None = None, *, title: str = "") -> Figure:
    """Steps to convergence over k and p, the mean over seeds in every cell.

    Args:
        table: columns k, p, steps.
        ax: where to draw; None makes a figure.
        title: of the panel.

    Returns:
        The figure.
    """
    figure, ax = canvas(ax)
    cells = table.pivot_table(index="k", columns="p", values="steps", aggfunc="mean")
    most = float(cells.to_numpy().max())
    ax.imshow(cells.to_numpy(), cmap="viridis_r", vmin=1, vmax=1.3 * most, origin="lower", aspect="auto")
    ax.set_xticks(range(cells.shape[1]), [f"{p:g}" for p in cells.columns])
    ax.set_yticks(range(cells.shape[0]), [str(k) for k in cells.index])
    for row in range(cells.shape[0]):
        for column in range(cells.shape[1]):
            value = float(cells.to_numpy()[row, column])
            shade = "white" if value > 0.7 * most else "black"
            ax.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=shade)
    ax.set_xlabel("p")
    ax.set_ylabel("k")
    ax.set_title(title)
    return figure
