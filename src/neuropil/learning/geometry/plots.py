"""Pictures of weights and their changes: distances from normal, distributions, log-normal magnitudes."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from scipy import stats

from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import t_interval

__all__ = ["plot_changes", "plot_distances", "plot_log_weights"]

BINS = np.linspace(-5, 5, 41)


def plot_distances(table: pd.DataFrame, floor: Mapping[int, float] | None = None, *, title: str = "") -> Figure:
    """Distance from normal against the number of weights; a panel a potential of learning, a line a candidate.

    Args:
        table: one row a run and candidate: trained, tested, features, seed, cdf_distance.
        floor: by number of weights, the distance of as many normal numbers.
        title: of the figure.

    Returns:
        The figure: means and 95% t intervals over seeds, the true potential drawn thick.
    """
    trained, tested = list(dict.fromkeys(table["trained"])), list(dict.fromkeys(table["tested"]))
    figure, axes = panels(len(trained), size=(3.3, 2.8))
    sizes = sorted(dict.fromkeys(table["features"]))
    sizes = sorted({sizes[0], sizes[len(sizes) // 2], sizes[-1]})
    for ax, own in zip(axes, trained, strict=True):
        for colour, candidate in zip(COLOURS, tested, strict=False):
            rows = table.query("trained == @own and tested == @candidate")
            by_size = rows.pivot_table(index="seed", columns="features", values="cdf_distance")
            means = by_size.to_numpy(dtype=float).mean(axis=0)
            ends = np.array([t_interval(values) for values in by_size.to_numpy(dtype=float).T])
            ends = np.where(np.isfinite(ends), ends, means[:, None])
            error = np.abs(ends - means[:, None]).T
            error[0] = np.minimum(error[0], 0.9 * means)  # the axis is logarithmic
            ax.errorbar(
                list(by_size.columns),
                means,
                yerr=error,
                color=colour,
                marker="o",
                ms=3.5,
                lw=2.2 if candidate == own else 1.0,
                capsize=2.5,
                label=candidate,
            )
        if floor:
            ax.plot(list(floor), list(floor.values()), color=GREY, ls="--", lw=1.2, label="normal numbers")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(0.006, 1.2)
        ax.set_xticks(sizes, [f"{size:g}" for size in sizes])
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(f"learnt in the {own}")
        ax.set_xlabel("number of weights D")
    axes[0].set_ylabel("distance of the change from normal")
    _legend(figure, axes[0])
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def plot_changes(changes: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Distributions of standardised changes of dual variables against the normal density.

    Args:
        changes: by the potential of learning, then by the candidate: the change, any shape.

    Returns:
        The figure, a panel a potential of learning.
    """
    figure, axes = panels(len(changes), size=(3.3, 2.6))
    x = np.linspace(-5, 5, 201)
    for ax, (own, by_candidate) in zip(axes, changes.items(), strict=True):
        ax.fill_between(x, stats.norm.pdf(x), color=GREY, alpha=0.3, lw=0, label="normal density")
        for colour, (candidate, change) in zip(COLOURS, by_candidate.items(), strict=False):
            standard = (change.ravel() - change.mean()) / change.std()
            density, _ = np.histogram(standard, BINS, density=True)
            width = 2.0 if candidate == own else 1.0
            ax.stairs(density, BINS, color=colour, lw=width, label=candidate)
        ax.set_title(f"learnt in the {own}")
        ax.set_xlabel("standardised change of dual variables")
        ax.set_ylim(0, 1.5)
    axes[0].set_ylabel("density")
    _legend(figure, axes[0])
    return figure


def plot_log_weights(before: np.ndarray, after: Mapping[str, np.ndarray]) -> Figure:
    """Distributions of log magnitudes after learning, with the log-normal of the same mean and spread, and the start.

    Args:
        before: initial weights, any shape.
        after: weights by the potential they were trained in.

    Returns:
        The figure, a panel a potential, with a logarithmic axis of magnitudes.
    """
    figure, axes = panels(len(after), size=(3.3, 2.6))
    start = _log_magnitudes(before)
    low = min(start.min(), *(_log_magnitudes(w).min() for w in after.values()))
    high = max(start.max(), *(_log_magnitudes(w).max() for w in after.values()))
    bins = np.linspace(max(low, start.mean() - 8 * start.std()), high, 81)
    for ax, colour, (name, weights) in zip(axes, COLOURS, after.items(), strict=False):
        logs = _log_magnitudes(weights)
        first = stats.norm.pdf(bins, start.mean(), start.std())
        ax.fill_between(10**bins, first, color=GREY, alpha=0.3, lw=0, label="log-normal start")
        density, _ = np.histogram(logs, bins, density=True)
        ax.stairs(density, 10**bins, color=colour, lw=1.4, label="after learning")
        ax.plot(
            10**bins,
            stats.norm.pdf(bins, logs.mean(), logs.std()),
            color=COLOURS[-1],
            lw=0.9,
            ls="--",
            label="log-normal fit",
        )
        ax.set_xscale("log")
        ax.set_title(f"learnt in the {name}")
        ax.set_xlabel("magnitude of a weight")
    axes[0].set_ylabel("density of log10 magnitude")
    axes[0].legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def _legend(figure: Figure, ax: Axes) -> None:
    named = list(zip(*ax.get_legend_handles_labels(), strict=True))
    named.sort(key=lambda pair: pair[1].startswith("normal"))  # candidates first, the reference last
    handles, labels = zip(*named, strict=True)
    options = {"frameon": False, "fontsize": 8, "title": "seen in the", "title_fontsize": 8}
    figure.legend(handles, labels, loc="outside right center", **options)


def _log_magnitudes(weights: np.ndarray) -> np.ndarray:
    magnitudes = np.abs(weights).ravel()
    return np.log10(magnitudes[magnitudes > 0])
