"""One table and one figure of a comparison between rules: accuracy, angle to the gradient, time and memory."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.learning.plots import plot_learning_curves, rule_colours
from neuropil.plotting import GREY, panels
from neuropil.statistics import t_interval

__all__ = ["league", "plot_league"]


def league(table: pd.DataFrame) -> pd.DataFrame:
    """Where every rule ends, and at what cost, best first.

    Args:
        table: from `compare`, with `align` and `costs` where the angle and the costs are wanted.

    Returns:
        One row a rule: rule, accuracy, low and high (mean and 95% t interval over seeds after the last epoch, percent),
        angle (degrees between the rule's gradient and that of the loss, mean over layers and seeds, after the last
        epoch), milliseconds and megabytes (of one step), rate, seeds. NaN where something was not measured.
    """
    rows = []
    for rule in dict.fromkeys(table["rule"]):
        own = table.query("rule == @rule")
        last, start = own.query("epoch == epoch.max()"), own.query("epoch == 0")
        reached = [100 * accuracy for accuracy in _known(last, "accuracy")]
        low, high = t_interval(reached)
        row = {"rule": str(rule), "accuracy": float(np.mean(reached)), "low": low, "high": high}
        row["angle"] = _mean(last, "angle")
        row |= {cost: _mean(start, cost) for cost in ("milliseconds", "megabytes")}
        rows.append(row | {"rate": _mean(own, "rate"), "seeds": len(reached)})
    return pd.DataFrame(rows).sort_values(by="accuracy", ascending=False, ignore_index=True)


def plot_league(table: pd.DataFrame) -> Figure:
    """Learning curves, the angle to the gradient layer by layer over training, and what a step costs.

    Args:
        table: from `compare`, with `align` and `costs`.
    """
    figure, (curves, angles, costs) = panels(3, size=(4.0, 3.0))
    plot_learning_curves(table, curves)
    layers = [column for column in table.columns if str(column).startswith("angle ")]
    for colour, rule in zip(rule_colours(table), dict.fromkeys(table["rule"]), strict=True):
        own = table.query("rule == @rule")
        for column in [*layers, "angle"]:
            if _known(own, column):
                mean = own.pivot_table(index="epoch", values=column)
                thick = column == "angle"
                style: dict[str, Any] = {"lw": 1.8, "label": str(rule)} if thick else {"lw": 0.7, "alpha": 0.45}
                angles.plot(mean.index, mean[column], color=colour, **style)
    angles.axhline(90, color=GREY, lw=0.8, ls=":")
    angles.set(xlabel="epoch", ylabel="angle to the gradient (deg)", title="layers thin, their mean thick")
    angles.set_ylim(bottom=-2)
    _plot_costs(costs, table)
    return figure


def _plot_costs(ax: Axes, table: pd.DataFrame) -> None:
    for colour, rule in zip(rule_colours(table), dict.fromkeys(table["rule"]), strict=True):
        own = table.query("rule == @rule")
        time, size = _mean(own, "milliseconds"), _mean(own, "megabytes")
        if np.isfinite(time):
            ax.plot(time, size, "o", color=colour)
            ax.annotate(str(rule), (time, size), (4, 4), textcoords="offset points", fontsize=7)
    ax.set(xscale="log", yscale="log", xlabel="milliseconds a step", ylabel="peak memory of a step (MB)")
    ax.margins(x=0.35, y=0.15)
    ax.set_title("cost")


def _known(rows: pd.DataFrame, column: str) -> list[float]:
    values = rows[column].to_numpy(dtype=float) if column in rows else np.empty(0)
    return values[np.isfinite(values)].tolist()


def _mean(rows: pd.DataFrame, column: str) -> float:
    values = _known(rows, column)
    return float(np.mean(values)) if values else float("nan")
