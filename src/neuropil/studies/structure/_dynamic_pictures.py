"""Figures of the study on dynamic channels."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.ticker import MaxNLocator

from neuropil.atlas import Run
from neuropil.plotting import GREY, panels
from neuropil.studies.structure._columns import numbers

__all__ = ["draw_accuracy", "draw_needs"]


def draw_accuracy(table: pd.DataFrame, arms: Sequence[str], masses: Sequence[float], epochs: int, run: Run) -> None:
    """Accuracy over the share of multiply-accumulates, as masks are put on and after training under them."""
    stages = [("accuracy", "macs", "as the masks are put on")]
    stages += [("tuned", "tuned_macs", f"after {epochs} epochs under them")] if epochs else []
    drawn, axes = panels(len(stages))
    whole = float(numbers(table, "accuracy", arm="whole").mean())
    for ax, (value, cost, title) in zip(axes, stages, strict=True):
        for number, arm in enumerate(arms):
            y = np.array([numbers(table, value, arm=arm, mass=mass) for mass in masses])
            if not y.size or np.isnan(y).any():
                continue
            x = [float(numbers(table, cost, arm=arm, mass=mass).mean()) for mass in masses]
            color = GREY if arm == "shuffled" else f"C{number}"
            ax.plot(x, y.mean(axis=1), marker="o", markersize=4, color=color, label=arm)
            ax.fill_between(x, y.min(axis=1), y.max(axis=1), color=color, alpha=0.15, lw=0)
        ax.axhline(whole, color=GREY, lw=0.8, ls=":", label="whole net")
        ax.set(title=title, xlabel="multiply-accumulates (%)")
    lines = {str(line.get_label()): line for ax in axes for line in ax.lines}
    drawn.legend([*lines.values()], [*lines], frameon=False, loc="outside right center")
    axes[0].set_ylabel("test accuracy (%)")
    run.figure("accuracy", drawn)


def draw_needs(layers: dict[str, list[list[int]]], mass: float, run: Run) -> None:
    """How many channels carry the mass, by class and dynamic layer, in the whole net of the first seed."""
    drawn, axes = panels(len(layers))
    for ax, (name, rows) in zip(axes, layers.items(), strict=True):
        counts = np.array(rows, dtype=float)
        classes, top = counts.shape
        image = ax.imshow(
            100 * counts / counts.sum(1, keepdims=True).clip(1),
            aspect="auto",
            origin="lower",
            extent=(0.5, top + 0.5, -0.5, classes - 0.5),
            cmap="Blues",
            interpolation="nearest",
        )
        busy = np.flatnonzero(counts.sum(0))
        ax.set(
            title=f"layer {name}, mass {mass:g}",
            xlabel=f"channels that carry the mass, of {top}",
            xlim=(busy[0] - 0.5, busy[-1] + 2.5),
            yticks=range(classes),
        )
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        drawn.colorbar(image, ax=ax, label="images of the class (%)")
    axes[0].set_ylabel("class")
    run.figure("needs", drawn)
