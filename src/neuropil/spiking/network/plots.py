"""Pictures of network activity: rasters, population rates, and what a simulation costs."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import EngFormatter, NullLocator

from neuropil.plotting import COLOURS, GREY, canvas, panels
from neuropil.spiking.network.recording import Recording

__all__ = ["plot_crossover", "plot_raster", "plot_scaling", "plot_states"]

BINS = 400  # in the window of a rate panel, at most
FINEST_MS, COARSEST_MS = 0.1, 1.0
TICKS_IN_PATHS = 8000  # spikes of a figure; more become pixels at the dpi of saving, or the file grows beyond reason


def plot_raster(
    recording: Recording,
    population: str | None = None,
    ax: Axes | None = None,
    *,
    window_ms: float | None = None,
    neurons_shown: int = 50,
    title: str = "",
) -> Figure:
    """Spikes of the first neurons of a population, a tick each.

    Args:
        recording: what a run returned.
        population: its name; None: the only one.
        ax: where to draw; None makes a figure.
        window_ms: how much of the end of the recording to show; None: all of it.
        neurons_shown: how many neurons, counted from the first, at least 1.
        title: of the panel.

    Returns:
        The figure.

    Raises:
        ValueError: if the population is unknown, or the window empty or longer than the recording.
    """
    begin, end = _window(recording, window_ms)
    times, neurons = _visible(recording, population, begin, neurons_shown)
    figure, ax = canvas(ax)
    _draw_ticks(ax, times, neurons, as_path=len(times) <= TICKS_IN_PATHS)
    ax.set_xlim(begin, end)
    ax.set_xlabel("time (ms)")
    ax.set_ylabel("neuron")
    ax.set_title(title, fontsize=10)
    return figure


def plot_states(
    recordings: Mapping[str, Recording],
    *,
    window_ms: float,
    population: str | None = None,
    neurons_shown: int = 50,
    theory: Mapping[str, float] | None = None,
) -> Figure:
    """States of a network: for each a raster above the rate of the population.

    Args:
        recordings: by title, up to four a row of two.
        window_ms: how much of the end of each recording to show; the mean rates written there are of this window.
        population: which to show; None: the first of each recording.
        neurons_shown: how many neurons are in the rasters, counted from the first, at least 1.
        theory: rates by title, Hz, drawn as dashed lines.

    Returns:
        The figure: two panels a state, two states a row.

    Raises:
        ValueError: if there are no recordings, a window is empty or longer than its recording, or theory has a title
            that no recording has.

    Source: in the manner of Brunel, J. Comput. Neurosci. 8 (2000), fig. 8.
    """
    if not recordings:
        raise ValueError("There are no recordings to draw.")
    if unknown := set(theory or {}) - set(recordings):
        raise ValueError(f"theory names {sorted(unknown)}, no title of a recording; there is {list(recordings)}.")
    if silent := [title for title, recording in recordings.items() if not recording.sizes]:
        raise ValueError(f"No spikes were recorded in {silent}.")
    shown = {title: population or next(iter(recording.sizes)) for title, recording in recordings.items()}
    windows = {title: _window(recording, window_ms) for title, recording in recordings.items()}
    spikes = {t: _visible(recordings[t], shown[t], windows[t][0], neurons_shown) for t in recordings}
    as_path = sum(len(times) for times, _ in spikes.values()) <= TICKS_IN_PATHS
    columns = min(2, len(recordings))
    rows = -(-len(recordings) // columns)
    figure, axes = panels(columns, 2 * rows, size=(3.8, 1.5))
    _share_heights(axes[0], [1.5, 1.0] * rows)
    for number, (title, recording) in enumerate(recordings.items()):
        at = 2 * columns * (number // columns) + number % columns
        raster, rate = axes[at], axes[at + columns]
        _draw_ticks(raster, *spikes[title], as_path=as_path)
        raster.set_title(title, fontsize=10)
        raster.set_ylim(-0.7, min(neurons_shown, recording.sizes[shown[title]]) - 0.3)
        raster.tick_params(labelbottom=False)
        _draw_rate(rate, recording, shown[title], windows[title], (theory or {}).get(title))
        for ax in (raster, rate):
            ax.set_xlim(*windows[title])
        if number % columns == 0:
            raster.set_ylabel("neuron")
            rate.set_ylabel("rate (Hz)")
            figure.align_ylabels([raster, rate])
        if number + columns >= len(recordings):
            rate.set_xlabel("time (ms)")
    for row in range(2 * rows):
        if len(recordings) % columns and row >= 2 * rows - 2:
            axes[row * columns + columns - 1].set_visible(False)
    return figure


def plot_scaling(
    n: Sequence[int],
    seconds: Mapping[str, Sequence[float] | np.ndarray],
    exponents: Mapping[str, float],
    ax: Axes | None = None,
    *,
    title: str = "",
) -> Figure:
    """Time of a simulation against the size of the network, both logarithmic.

    Args:
        n: neurons, positive.
        seconds: by label, one time for each size.
        exponents: by label, of the power law that is drawn through the middle of the times and written in the legend.
        ax: where to draw; None makes a figure.
        title: of the panel.

    Returns:
        The figure; the dashed line grows in proportion to the size.

    Raises:
        ValueError: if the lengths differ, or a number is not positive.
    """
    figure, ax = canvas(ax)
    sizes = _positive("n", n)
    middle = np.exp(np.log(sizes).mean())
    lowest = math.inf
    for index, (label, times) in enumerate(seconds.items()):
        measured = _positive(f"seconds[{label!r}]", times, len(sizes))
        colour = COLOURS[index % len(COLOURS)]
        ax.plot(sizes, measured, "o", color=colour, ms=4)
        level = np.exp(np.log(measured).mean())
        line = level * (sizes / middle) ** exponents[label]
        ax.plot(sizes, line, color=colour, lw=1.2, label=f"{label}: N$^{{{exponents[label]:.2f}}}$")
        lowest = min(lowest, float((measured / sizes).min()))
    ax.plot(sizes, 0.6 * lowest * sizes, color=GREY, lw=0.9, ls="--", label="in proportion")
    _dress(ax, "neurons N", title)
    ax.set_xticks(sizes[:: -(-len(sizes) // 7)])
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.xaxis.set_minor_locator(NullLocator())
    return figure


def plot_crossover(
    rates: Sequence[float],
    seconds: Mapping[str, Sequence[float] | np.ndarray],
    ax: Axes | None = None,
    *,
    title: str = "",
) -> Figure:
    """Time of a simulation against the firing rate, both logarithmic; where the first line meets another is marked.

    Args:
        rates: Hz, positive, in ascending order.
        seconds: by label, one time for each rate.
        ax: where to draw; None makes a figure.
        title: of the panel.

    Returns:
        The figure.

    Raises:
        ValueError: if the lengths differ, a number is not positive, or the rates do not ascend.
    """
    x = _positive("rates", rates)
    if (np.diff(x) <= 0).any():
        raise ValueError("rates must ascend.")
    figure, ax = canvas(ax)
    first: np.ndarray | None = None
    for index, (label, times) in enumerate(seconds.items()):
        measured = _positive(f"seconds[{label!r}]", times, len(x))
        colour = COLOURS[index % len(COLOURS)]
        ax.plot(x, measured, "o-", color=colour, ms=3.5, lw=1.4, label=label)
        if first is None:
            first = measured
            continue
        for rate, time in _crossings(x, first, measured):
            ax.plot([rate], [time], "o", mfc="none", mec="black", ms=9, zorder=5)
            ax.annotate(f"{float(f'{rate:.3g}'):g} Hz", (rate, time), (6, -12), textcoords="offset points", fontsize=8)
    ax.margins(x=0.1)  # for the numbers at the marks
    _dress(ax, "firing rate (Hz)", title)
    return figure


def _window(recording: Recording, window_ms: float | None) -> tuple[float, float]:
    """First and last millisecond to show."""
    whole = recording.duration_ms
    width = whole if window_ms is None else window_ms
    if not 0 < width <= whole * (1 + 1e-9):
        raise ValueError(f"window_ms must be positive and at most the recording's {whole:g} ms, got {width:g}.")
    end = recording.end * recording.dt
    return end - width, end


def _visible(
    recording: Recording, population: str | None, begin: float, neurons_shown: int
) -> tuple[Float[np.ndarray, " spikes"], np.ndarray]:
    if neurons_shown < 1:
        raise ValueError(f"neurons_shown must be at least 1, got {neurons_shown}.")
    times, neurons = recording.raster(population)
    seen = (times >= begin) & (neurons < neurons_shown)
    return times[seen], neurons[seen]


def _draw_ticks(ax: Axes, times: np.ndarray, neurons: np.ndarray, *, as_path: bool) -> None:
    """All ticks as one line that is lifted between them: the smallest way to write them."""
    x = np.repeat(times, 3)
    y = np.repeat(neurons.astype(float), 3)
    y[0::3] -= 0.4
    y[1::3] += 0.4
    y[2::3] = np.nan
    ax.plot(x, y, color="black", lw=0.7, solid_capstyle="butt", rasterized=not as_path)


def _draw_rate(
    ax: Axes, recording: Recording, population: str, window: tuple[float, float], theory: float | None
) -> None:
    begin, end = window
    width = min(max((end - begin) / BINS, FINEST_MS), COARSEST_MS)
    width = max(round(width / recording.dt), 1) * recording.dt
    times, rate = recording.binned_rate(population, bin_ms=width)
    seen = times > begin
    edges = np.append(times[seen] - width / 2, times[seen][-1] + width / 2)
    ax.stairs(rate[seen], edges, fill=True, color=COLOURS[0], lw=0)
    mean = float(rate[seen].mean())
    words = f"{mean:.1f} Hz"
    if theory is not None:
        ax.axhline(theory, color=COLOURS[1], lw=1.1, ls=(0, (4, 2)))
        words += f", theory {theory:.1f} Hz"
    top = max(float(rate[seen].max()), theory or 0.0, 1e-9)
    ax.set_ylim(0, 1.35 * top)  # room for the words above the rate
    ax.text(1.0, 1.0, words, transform=ax.transAxes, ha="right", va="top", fontsize=8)


def _share_heights(ax: Axes, heights: Sequence[float]) -> None:
    grid = ax.get_gridspec()
    assert isinstance(grid, GridSpec)
    grid.set_height_ratios(heights)


def _dress(ax: Axes, x_label: str, title: str) -> None:
    """Logarithmic axes of time against something, with room for the legend above the lines."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    lines = len(ax.get_legend_handles_labels()[0])
    ax.set_ylim(low, high * (high / low) ** (0.13 * lines))
    ax.set_xlabel(x_label)
    ax.set_ylabel("time (s)")
    ax.set_title(title, fontsize=10)
    ax.legend(frameon=False, fontsize=8, loc="upper left")


def _crossings(x: np.ndarray, a: np.ndarray, b: np.ndarray) -> list[tuple[float, float]]:
    """Where two lines cross, both axes logarithmic."""
    u, gap, level = np.log(x), np.log(a) - np.log(b), np.log(a)
    found = []
    for i in np.flatnonzero(gap[:-1] * gap[1:] < 0):
        part = gap[i] / (gap[i] - gap[i + 1])
        place = u[i] + part * (u[i + 1] - u[i])
        found.append((math.exp(place), math.exp(level[i] + part * (level[i + 1] - level[i]))))
    found += [(float(x[i]), float(a[i])) for i in np.flatnonzero(gap == 0)]
    return found


def _positive(name: str, values: Sequence[float] | np.ndarray, length: int | None = None) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim != 1 or len(array) == 0 or (length is not None and len(array) != length):
        wanted = "a list of numbers" if length is None else f"{length} numbers, one for each place on the axis"
        raise ValueError(f"{name} must be {wanted}, got shape {array.shape}.")
    if not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(f"{name} must be finite and positive, got {array.tolist()}.")
    return array
