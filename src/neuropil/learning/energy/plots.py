"""Pictures of inference learning and predictive coding: steps, step sizes, grids."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import t_interval

__all__ = ["plot_curves", "plot_grid", "plot_step_sizes", "plot_steps"]


def plot_steps(table: pd.DataFrame, *, title: str = "") -> Figure:
    """Cosine and relative distance of steps to the implicit step: mean and 95% t interval over seeds.

    Args:
        table: rule, alpha, seed, cosine, distance; several rows a seed are averaged.
        title: over the first panel.

    Returns:
        The figure.
    """
    figure, axes = panels(2)
    alphas = sorted(set(table["alpha"]))
    rules = list(dict.fromkeys(table["rule"]))
    labels = {"cosine": "cosine to the implicit step", "distance": "distance / its length"}
    for ax, (value, label) in zip(axes, labels.items(), strict=True):
        for place, (colour, rule) in enumerate(zip(COLOURS, rules, strict=False)):
            by_seed = table.query("rule == @rule").pivot_table(index="alpha", columns="seed", values=value)
            values = by_seed.to_numpy(dtype=float)
            mean = values.mean(axis=1)
            low, high = np.array([t_interval(row) for row in values]).T
            x = np.arange(len(alphas)) + 0.12 * (place - (len(rules) - 1) / 2)
            ends = [mean - low, high - mean] if np.isfinite(low).all() else None
            ax.errorbar(x, mean, yerr=ends, fmt="o", ms=4, color=colour, capsize=2, label=str(rule))
        ax.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
        ax.set_xlabel("step size alpha")
        ax.set_ylabel(label)
    axes[1].set_yscale("log")
    axes[1].axhline(1, color=GREY, lw=0.6)
    axes[1].legend(frameon=False, fontsize=7)
    axes[0].set_title(title, fontsize=9)
    return figure


def plot_step_sizes(table: pd.DataFrame) -> Figure:
    """Final accuracy against step size, and learning curves at the largest.

    Args:
        table: from `sweep`, with rule and alpha.

    Returns:
        The figure.
    """
    figure, (left, right) = panels(2)
    end, largest = max(table["step"]), max(table["alpha"])
    for colour, rule in zip(COLOURS, dict.fromkeys(table["rule"]), strict=False):
        last = table.query(f"rule == @rule and step == {end}")
        by_seed = 100 * last.pivot_table(index="alpha", columns="seed", values="accuracy")
        left.plot(by_seed.index, by_seed, "o", ms=2.5, color=colour, alpha=0.4, mew=0)
        left.plot(by_seed.index, by_seed.mean(axis=1), color=colour, lw=1.6, label=str(rule))
        curve = table.query(f"rule == @rule and alpha == {largest}")
        over = 100 * curve.pivot_table(index="step", columns="seed", values="accuracy")
        right.plot(over.index, over.mean(axis=1), color=colour, lw=1.4)
    left.set_xscale("log")
    left.set_xlabel("step size alpha")
    left.set_ylabel("test accuracy (%)")
    left.legend(frameon=False, fontsize=8)
    right.set_xlabel("samples")
    right.set_ylabel("test accuracy (%)")
    right.set_title(f"alpha {largest:g}", fontsize=9)
    return figure


def plot_curves(
    table: pd.DataFrame,
    *,
    x: str = "step",
    value: str = "accuracy",
    xlabel: str = "samples",
    ylabel: str = "test accuracy (%)",
    goal: float | None = None,
    log: bool = False,
) -> Figure:
    """Mean over seeds along learning, one line a rule, single seeds behind it.

    Args:
        table: rule, seed and the columns x and value.
        x: column of the horizontal axis.
        value: column; accuracy is drawn in percent.
        xlabel: its name.
        ylabel: the other's.
        goal: a level to mark, in units of the axis.
        log: whether both axes are logarithmic.

    Returns:
        The figure.
    """
    figure, (ax,) = panels(1, size=(4.6, 3.0))
    factor = 100 if value == "accuracy" else 1
    for colour, rule in zip(COLOURS, dict.fromkeys(table["rule"]), strict=False):
        by_seed = factor * table.query("rule == @rule").pivot_table(index=x, columns="seed", values=value)
        ax.plot(by_seed.index, by_seed, color=colour, lw=0.6, alpha=0.3)
        ax.plot(by_seed.index, by_seed.mean(axis=1), color=colour, lw=1.5, label=str(rule))
    if goal is not None:
        ax.axhline(goal, color=GREY, lw=0.6)
    if log:
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend(frameon=False, fontsize=8)
    return figure


def plot_grid(table: pd.DataFrame, *, rows: str, columns: str, panel: str) -> Figure:
    """Heat maps of accuracy (percent, mean over seeds) over two settings, a panel each value of a third, a row a rule.

    Args:
        table: rule, seed, accuracy and the three settings, at the end of learning.
        rows: setting of the vertical axis.
        columns: of the horizontal axis.
        panel: of the panels.

    Returns:
        The figure.
    """
    rules, values = list(dict.fromkeys(table["rule"])), sorted(set(table[panel]))
    figure, axes = panels(len(values), len(rules), size=(1.9, 1.8))
    for place, ax in enumerate(axes):
        rule, setting = rules[place // len(values)], values[place % len(values)]
        own = table.query(f"rule == @rule and {panel} == {setting}")
        cells = 100 * own.pivot_table(index=rows, columns=columns, values="accuracy")
        ax.imshow(cells.to_numpy(dtype=float), vmin=10, vmax=100, cmap="cividis", aspect="auto", origin="lower")
        for (i, j), accuracy in np.ndenumerate(cells.to_numpy(dtype=float)):
            ax.text(j, i, f"{accuracy:.0f}", ha="center", va="center", fontsize=7, color="w" if accuracy < 65 else "k")
        ax.set_xticks(range(cells.shape[1]), [f"{v:g}" for v in cells.columns])
        ax.set_yticks(range(cells.shape[0]), [f"{v:g}" for v in cells.index])
        ax.set_title(f"{rule}, {panel} {setting:g}", fontsize=8)
        if place % len(values) == 0:
            ax.set_ylabel(rows)
        if place // len(values) == len(rules) - 1:
            ax.set_xlabel(columns)
    return figure
