"""Phase diagrams as heat maps: error, connectivity and similarity over load and temperature."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from neuropil.plotting import panels
from neuropil.structure.landscape.diagram import PhaseDiagram

__all__ = ["draw_phases"]

MEASURES = (("error", "test error (%)", "viridis_r"), ("lmc", "LMC (points)", "RdBu"), ("cka", "CKA", "viridis"))
SHOWN = 12  # more cells on a side carry no numbers


def draw_phases(diagrams: Mapping[str, PhaseDiagram]) -> Figure:
    """One row a recipe of retraining; each measure has one scale of colours over all rows."""
    figure, axes = panels(len(MEASURES), len(diagrams), size=(3.2, 2.6))
    grids = {key: {name: diagram.grid(key) for name, diagram in diagrams.items()} for key, _, _ in MEASURES}
    for column, (key, title, colours) in enumerate(MEASURES):
        values = np.concatenate([grid.to_numpy(dtype=float).ravel() for grid in grids[key].values()])
        finite = values[np.isfinite(values)]
        low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        if key == "lmc":
            high = max(abs(low), abs(high), 1.0)
            low = -high
        for row, (name, grid) in enumerate(grids[key].items()):
            ax = axes[row * len(MEASURES) + column]
            image = draw_grid(grid, ax, colours, low, high, digits=2 if key == "cka" else 1)
            ax.set_title(title if row == 0 else "")
            ax.set_ylabel(f"{name} retraining\ndense epochs" if column == 0 else "")
            ax.set_xlabel("density" if row == len(diagrams) - 1 else "")
            bar = figure.colorbar(image, ax=ax, shrink=0.8)
            bar.ax.tick_params(labelsize=7)
    return figure


def draw_grid(grid: pd.DataFrame, ax: Axes, colours: str, low: float, high: float, digits: int):
    """A heat map, hot at the top, the load growing to the right."""
    values = grid.to_numpy(dtype=float)
    image = ax.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
    ax.set_xticks(range(values.shape[1]), [f"{density:g}" for density in grid.columns])
    ax.set_yticks(range(values.shape[0]), [str(label) for label in grid.index])
    if max(values.shape) <= SHOWN:
        for (i, j), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.59 * green + 0.11 * blue < 0.5
            text = f"{value:+.{digits}f}" if colours == "RdBu" else f"{value:.{digits}f}"
            ax.text(j, i, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    return image
