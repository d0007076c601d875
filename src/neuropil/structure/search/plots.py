"""Pictures of searches: regret against queries, and rank correlations."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import COLOURS, GREY, canvas
from neuropil.structure.search.comparison import StrategyComparison

__all__ = ["plot_correlations", "plot_regret"]


def plot_regret(comparison: StrategyComparison, ax: Axes | None = None) -> Figure:
    """Mean regret against queries, with the 95% interval of the mean; random search is grey.

    Args:
        comparison: from `compare`.
        ax: where to draw; None makes a figure.

    Returns:
        The figure.
    """
    figure, ax = canvas(ax)
    queries = np.arange(1, comparison.budget + 1)
    others = iter(COLOURS * len(comparison.strategies))
    for name in comparison.strategies:
        regret = comparison.regret(name)
        mean = regret.mean(axis=0)
        half = 1.96 * regret.std(axis=0) / np.sqrt(len(regret))
        colour = GREY if name == comparison.baseline else next(others)
        ax.plot(queries, mean, color=colour, lw=1.4, label=name)
        low = np.maximum(mean - half, regret.min(axis=0))  # of few seeds the interval may reach below all of them
        ax.fill_between(queries, low, mean + half, color=colour, alpha=0.2, lw=0)
    ax.set_xlabel("queries")
    ax.set_ylabel("regret")
    ax.legend(frameon=False, fontsize=7, loc="upper right")  # where curves that fall leave room
    return figure


def plot_correlations(table: pd.DataFrame, ax: Axes | None = None, *, ceiling: float | None = None) -> Figure:
    """Rank correlation of every predictor with its interval.

    Args:
        table: from `rank_table`.
        ax: where to draw; None makes a figure.
        ceiling: agreement of two seeds of the benchmark, drawn as a line.

    Returns:
        The figure.
    """
    figure, ax = canvas(ax)
    places = np.arange(len(table))[::-1]
    values = table["correlation"].to_numpy(dtype=float)
    ax.barh(places, values, color=COLOURS[0], alpha=0.35, height=0.6)
    # A percentile interval may leave out the value itself: ends, not errors.
    ax.hlines(places, table["low"], table["high"], color=COLOURS[0], lw=1.5)
    ax.plot(values, places, "o", color=COLOURS[0], ms=3.5)
    ax.axvline(0, color=GREY, lw=0.8)
    if ceiling is not None:
        ax.axvline(ceiling, color=COLOURS[1], lw=1, ls="--", label="seed against seed")
        ax.legend(frameon=False, fontsize=7, loc="lower right", bbox_to_anchor=(1, 1))
    ax.set_yticks(places, [str(name) for name in table["predictor"]], fontsize=8)
    ax.set_xlabel("rank correlation")
    return figure
