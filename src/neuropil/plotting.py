"""The look of the house's figures: a few panels, thin lines, colours that the colour-blind tell apart."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "canvas", "panels"]

# Okabe & Ito (2008), darkest first, yellow left out: it does not read as a thin line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#222222")
GREY = "#8A8A8A"

PANEL = (3.4, 2.7)  # inches


def panels(columns: int = 1, rows: int = 1, *, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """A figure with a grid of panels, outside pyplot: nothing to close, safe in threads.

    Args:
        columns: panels a row, at least 1.
        rows: at least 1.
        size: of one panel, inches.

    Returns:
        The figure and its axes, row by row.

    Raises:
        ValueError: if there are no panels.
    """
    if columns < 1 or rows < 1:
        raise ValueError(f"A figure needs panels, got {columns} columns and {rows} rows.")
    figure = Figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    axes: list[Axes] = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(labelsize=8)
        for text, points in ((ax.xaxis.label, 9), (ax.yaxis.label, 9), (ax.title, 10)):
            text.set_fontsize(points)
        ax.set_prop_cycle(color=COLOURS)
    return figure, axes


def canvas(ax: Axes | None) -> tuple[Figure, Axes]:
    """The axes to draw on with their figure; a figure of one panel where there are none."""
    if ax is None:
        figure, (ax,) = panels()
        return figure, ax
    figure = ax.get_figure(root=True)
    if not isinstance(figure, Figure):
        raise ValueError("The axes belong to no figure.")
    return figure, ax
