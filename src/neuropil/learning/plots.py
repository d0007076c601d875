"""Pictures of comparisons between learning rules."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, GREY, canvas, panels
from neuropil.statistics import t_interval

__all__ = ["plot_final_accuracies", "plot_learning_curves", "rule_colours"]


def plot_learning_curves(table: pd.DataFrame, ax: Axes | None = None, *, value: str = "accuracy") -> Figure:
    """Mean over seeds against epochs, one line a rule, single seeds behind it.

    Args:
        table: from `compare`.
        ax: where to draw; None makes a figure.
        value: column; "accuracy" is drawn in percent.

    Returns:
        The figure.
    """
    figure, ax = canvas(ax)
    factor = 100 if value == "accuracy" else 1
    for colour, (rule, rows) in zip(rule_colours(table), table.groupby("rule", sort=False), strict=True):
        by_seed = rows.pivot_table(index="epoch", columns="seed", values=value) * factor
        ax.plot(by_seed.index, by_seed, color=colour, lw=0.6, alpha=0.3)
        ax.plot(by_seed.index, by_seed.mean(axis=1), color=colour, lw=1.6, label=str(rule))
    ax.set_xlabel("epoch")
    ax.set_ylabel("test accuracy (%)" if value == "accuracy" else value)
    ax.legend(frameon=False, fontsize=8)
    return figure


def plot_final_accuracies(tables: dict[str, pd.DataFrame], axes: Sequence[Axes] | None = None) -> Figure:
    """Accuracy after the last epoch: a dot a seed, the mean and its 95% t interval; one panel a table.

    Args:
        tables: by the title of the panel, from `compare`.
        axes: where to draw; None makes a figure.

    Returns:
        The figure.

    Raises:
        ValueError: if there are fewer axes than tables, or no tables.
    """
    if not tables:
        raise ValueError("There are no tables to draw.")
    figure, own = panels(len(tables), size=(3.2, 2.9)) if axes is None else (canvas(axes[0])[0], list(axes))
    if len(own) < len(tables):
        raise ValueError(f"{len(own)} axes for {len(tables)} tables.")
    for ax, (title, table) in zip(own, tables.items(), strict=False):
        last = table[table["epoch"] == table["epoch"].max()]
        rules = list(dict.fromkeys(table["rule"]))
        for place, (colour, rule) in enumerate(zip(rule_colours(table), rules, strict=True)):
            values = 100 * last.loc[last["rule"] == rule, "accuracy"].to_numpy(dtype=float)
            spread = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
            ax.plot(place + np.asarray(spread), values, "o", ms=3, color=colour, alpha=0.5, mew=0)
            low, high = t_interval(values)
            mean = values.mean()
            ends = [[mean - max(low, 0)], [min(high, 100) - mean]] if np.isfinite(low) else None
            ax.errorbar([place], [mean], yerr=ends, fmt="_", ms=14, color=colour, lw=1.4, capsize=3)
        ax.set_xticks(range(len(rules)), rules, rotation=35, ha="right", fontsize=8)
        ax.set_ylabel("test accuracy (%)")
        ax.set_title(title)
        ax.grid(axis="y", color=GREY, alpha=0.25, lw=0.5)
    return figure


def rule_colours(table: pd.DataFrame) -> list[Any]:
    """A colour for each rule of a table, in the order in which they come."""
    count = len(set(table["rule"]))
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))
