"""Pictures of evolution, of lives, and of what a population of neurons knows, and when."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.learning.evolution.tasks import TrialSchedule
from neuropil.plotting import COLOURS, GREY, canvas

__all__ = ["plot_cross_temporal", "plot_generations", "plot_lives"]

CHANCE = 0.5


def plot_generations(
    table: pd.DataFrame, columns: Mapping[str, str], ax: Axes | None = None, title: str = ""
) -> Figure:
    """Success over generations: the mean, seeds behind it; the last column, a control, in grey.

    Args:
        table: one row a seed and generation, with "seed", "generation" and the columns to draw, fractions.
        columns: their names in the legend, by column.
        ax: where to draw; None makes a figure.
        title: of the panel.

    Returns:
        The figure.
    """
    curves = {
        label: table.pivot_table(index="generation", columns="seed", values=key) for key, label in columns.items()
    }
    return _draw({label: (curve.index, curve.to_numpy()) for label, curve in curves.items()}, ax, title, "generation")


def plot_lives(
    trials: Float[np.ndarray, " bins"],
    curves: Mapping[str, Float[np.ndarray, "seeds bins"]],
    ax: Axes | None = None,
    title: str = "",
) -> Figure:
    """Success in the course of a life: the mean, seeds behind it; the last curve, a control, in grey.

    Args:
        trials: where each bin lies.
        curves: by label, fractions.
        ax: where to draw; None makes a figure.
        title: of the panel.

    Returns:
        The figure.
    """
    return _draw({label: (trials, curve.T) for label, curve in curves.items()}, ax, title, "trial of the life")


def _draw(curves: Mapping[str, tuple], ax: Axes | None, title: str, across: str) -> Figure:
    figure, ax = canvas(ax)
    colours = [*COLOURS[: len(curves) - 1], GREY]
    for colour, (label, (at, values)) in zip(colours, curves.items(), strict=True):
        ax.plot(at, values, color=colour, lw=0.6, alpha=0.35)
        ax.plot(at, values.mean(axis=1), color=colour, lw=1.6, label=label)
    ax.axhline(CHANCE, color="black", lw=0.5, ls=":")
    ax.set_ylim(0.35, 1)
    ax.set_xlabel(across)
    ax.set_ylabel("success")
    ax.set_title(title)
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def plot_cross_temporal(
    matrix: Float[np.ndarray, "time time"],
    ax: Axes | None = None,
    *,
    dt: float = 20.0,
    schedule: TrialSchedule | None = None,
    title: str = "",
    bar: bool = True,
) -> Figure:
    """Decoding accuracy by the time of training and of testing: white at chance, red above, blue below.

    Args:
        matrix: from `cross_temporal_decoding`.
        ax: where to draw; None makes a figure.
        dt: step, ms.
        schedule: of the trial, whose periods are ruled off.
        title: of the panel.
        bar: whether a colour bar stands beside it.

    Returns:
        The figure.
    """
    figure, ax = canvas(ax)
    schedule = TrialSchedule() if schedule is None else schedule
    end = len(matrix) * dt
    image = ax.imshow(matrix, origin="lower", extent=(0, end, 0, end), cmap="RdBu_r", vmin=0, vmax=1)
    for edge in (schedule.stimulus_2[0], schedule.response[0], schedule.reward[0]):
        ax.axvline(edge * dt, color="black", lw=0.5, ls=":")
        ax.axhline(edge * dt, color="black", lw=0.5, ls=":")
    ax.set_xlabel("test time (ms)")
    ax.set_ylabel("training time (ms)")
    ax.set_title(title)
    if bar:
        figure.colorbar(image, ax=ax, shrink=0.8, label="fraction decoded")
    return figure
