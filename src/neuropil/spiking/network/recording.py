"""What a run of a network returns: every spike, and the values that were asked for.

A spike of step k is an event at k dt milliseconds. Steps are whole numbers counted from the beginning of the network's
life, so a run that goes on where another ended can be joined to it, and times never lose digits.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from neuropil.spiking import statistics

__all__ = ["DENSE_BYTES", "Recording", "whole_steps"]

DENSE_BYTES = 2**30
"""`Recording.to_dense` refuses to make anything larger."""

Steps = Int[np.ndarray, "_"]
Neurons = slice | Int[np.ndarray, "_"]


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """Spikes of one or more populations during a run.

    Where a method takes a population, it may be left out if there is only one.

    Args:
        dt: ms a step.
        start: first step of the run.
        steps: how many steps it took.
        sizes: neurons in each population, by name.
        times: steps of the spikes of each population, int64, in order.
        neurons: neuron of each spike, int32, as long.
        values: recorded values by key, (samples, ...). A key is sampled at the end of those steps that are multiples of
            its interval, so that runs which follow each other keep its spacing.
        intervals: steps between samples, for every key of values.

    Raises:
        ValueError: if the parts do not fit together, or a spike lies outside the run or its population.
        TypeError: if times are not int64 or neurons not int32.
    """

    dt: float
    start: int
    steps: int
    sizes: Mapping[str, int]
    times: Mapping[str, np.ndarray]
    neurons: Mapping[str, np.ndarray]
    values: Mapping[str, Tensor] = field(default_factory=dict)
    intervals: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise ValueError(f"dt must be finite and positive, got {self.dt}.")
        if self.start < 0 or self.steps < 0:
            raise ValueError(f"start and steps must be at least 0, got {self.start} and {self.steps}.")
        if not set(self.sizes) == set(self.times) == set(self.neurons):
            lists = ", ".join(str(sorted(part)) for part in (self.sizes, self.times, self.neurons))
            raise ValueError(f"sizes, times and neurons must name the same populations, got {lists}.")
        if set(self.values) != set(self.intervals):
            raise ValueError(f"values and intervals differ in keys: {sorted(self.values)}, {sorted(self.intervals)}.")
        for name, size in self.sizes.items():
            _check_spikes(name, size, self.times[name], self.neurons[name], self.start, self.end)
        for key, interval in self.intervals.items():
            if interval < 1:
                raise ValueError(f"intervals[{key!r}] must be at least 1 step, got {interval}.")
            wanted = len(self._samples(key))
            if self.values[key].ndim == 0 or len(self.values[key]) != wanted:
                shape = tuple(self.values[key].shape)
                raise ValueError(f"values[{key!r}] must have {wanted} samples of {interval} steps each, got {shape}.")

    @property
    def end(self) -> int:
        """The step after the last one."""
        return self.start + self.steps

    @property
    def duration_ms(self) -> float:
        """Length of the run."""
        return self.steps * self.dt

    def rate(self, population: str | None = None, *, since_ms: float = 0.0, neurons: Neurons | None = None) -> float:
        """Mean firing rate over neurons and time, Hz.

        Args:
            population: its name.
            since_ms: what to leave out at the beginning of the recording, a multiple of dt.
            neurons: which of them, indices or a slice; None: all.

        Raises:
            ValueError: if the population is unknown, or no time or neuron is left.
        """
        rates = self.rates(population, since_ms=since_ms)
        rates = rates if neurons is None else rates[neurons]
        if len(rates) == 0:
            raise ValueError("neurons selects nobody: there is no mean rate.")
        return float(rates.mean())

    def rates(self, population: str | None = None, *, since_ms: float = 0.0) -> Float[np.ndarray, " n"]:
        """Firing rate of every neuron, Hz; arguments as in `rate`."""
        name = self._population(population)
        _, fired, since = self._from(name, since_ms)
        counts = np.bincount(fired, minlength=self.sizes[name])
        return counts * (1000.0 / ((self.end - since) * self.dt))

    def binned_rate(
        self, population: str | None = None, *, bin_ms: float, smooth_ms: float | None = None
    ) -> tuple[Float[np.ndarray, " bins"], Float[np.ndarray, " bins"]]:
        """Rate of the population over time.

        Args:
            population: its name.
            bin_ms: a multiple of dt; an incomplete last bin is left out.
            smooth_ms: standard deviation of a Gaussian to smooth with, mirrored at both ends; None: none.

        Returns:
            Middles of the bins in ms, and rates in Hz.

        Raises:
            ValueError: if the population is unknown, there is no whole bin, or bin_ms is no multiple of dt.
        """
        name = self._population(population)
        width, bins = self._windows("bin_ms", bin_ms)
        index = (self.times[name] - self.start) // width
        counts = np.bincount(index[index < bins], minlength=bins)
        rate = counts * (1000.0 / (self.sizes[name] * width * self.dt))
        if smooth_ms is not None:
            if not (math.isfinite(smooth_ms) and smooth_ms > 0):
                raise ValueError(f"smooth_ms must be finite and positive, got {smooth_ms}.")
            rate = gaussian_filter1d(rate, smooth_ms / bin_ms, mode="reflect")
        return (self.start + (np.arange(bins) + 0.5) * width) * self.dt, rate

    def raster(self, population: str | None = None) -> tuple[Float[np.ndarray, " spikes"], Int[np.ndarray, " spikes"]]:
        """Time of every spike in ms, counted from step 0, and its neuron."""
        name = self._population(population)
        return self.times[name] * self.dt, self.neurons[name]

    def spike_trains(self, population: str | None = None) -> list[Float[np.ndarray, "_"]]:
        """Times of the spikes of every neuron, ms counted from step 0."""
        name = self._population(population)
        order = np.argsort(self.neurons[name], kind="stable")
        borders = np.cumsum(np.bincount(self.neurons[name], minlength=self.sizes[name]))
        return np.split(self.times[name][order] * self.dt, borders[:-1])

    def isi_cv(self, population: str | None = None, *, min_spikes: int = 3, since_ms: float = 0.0) -> float:
        """Coefficient of variation of the inter-spike intervals, the mean over neurons.

        Args:
            population: its name.
            min_spikes: neurons with fewer are left out; at least 3.
            since_ms: what to leave out at the beginning of the recording, a multiple of dt.

        Returns:
            The mean; NaN if no neuron fired often enough.

        Raises:
            ValueError: if the population is unknown, or an argument out of its range.
        """
        each = self.isi_cvs(population, min_spikes=min_spikes, since_ms=since_ms)
        known = each[~np.isnan(each)]
        return float(known.mean()) if len(known) else math.nan

    def isi_cvs(
        self, population: str | None = None, *, min_spikes: int = 3, since_ms: float = 0.0
    ) -> Float[np.ndarray, " n"]:
        """Coefficient of variation of every neuron's intervals, NaN where spikes are too few; as in `isi_cv`."""
        name = self._population(population)
        steps, fired, _ = self._from(name, since_ms)
        return statistics.isi_cv(steps, fired, self.sizes[name], min_spikes=min_spikes)

    def counts(self, population: str | None = None, *, window_ms: float) -> Int[np.ndarray, "windows n"]:
        """Spikes of every neuron in windows that follow each other; an incomplete last one is left out.

        Args:
            population: its name.
            window_ms: a multiple of dt.

        Raises:
            ValueError: if the population is unknown, there is no whole window, or window_ms is no multiple of dt.
        """
        name = self._population(population)
        width, _ = self._windows("window_ms", window_ms)
        return statistics.spike_counts(
            self.times[name], self.neurons[name], self.sizes[name], start=self.start, stop=self.end, window=width
        )

    def to_dense(self, population: str | None = None) -> Bool[Tensor, "steps n"]:
        """Spikes as a matrix, True where a neuron fired.

        Raises:
            ValueError: if the population is unknown, or the matrix would be larger than `DENSE_BYTES`.
        """
        name = self._population(population)
        needed = self.steps * self.sizes[name]
        if needed > DENSE_BYTES:
            size = f"{needed / 2**20:.0f} MiB, more than {DENSE_BYTES / 2**20:.0f}"
            raise ValueError(f"{self.steps} steps of {self.sizes[name]} neurons make {size}: use counts() or raster().")
        dense = torch.zeros(self.steps, self.sizes[name], dtype=torch.bool)
        index = torch.from_numpy(self.times[name] - self.start), torch.tensor(self.neurons[name], dtype=torch.int64)
        dense[index] = True
        return dense

    def trace(self, key: str) -> tuple[Float[np.ndarray, " samples"], Tensor]:
        """Times in ms, counted from step 0, and values of what was recorded under a key, (samples, ...).

        Raises:
            ValueError: if nothing was recorded under it.
        """
        if key not in self.values:
            raise ValueError(f"Nothing was recorded as {key!r}; there is {sorted(self.values) or 'nothing'}.")
        return self._samples(key) * self.dt, self.values[key]

    def concatenate(self, other: "Recording") -> "Recording":
        """This run and the one that went on from its end, as one.

        Raises:
            ValueError: if the other starts elsewhere, or is not of the same network and the same values.
        """
        if other.start != self.end:
            raise ValueError(f"The other recording must start where this one ended, step {self.end}: {other.start}.")
        for name in ("dt", "sizes", "intervals"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"Recordings of one network have one {name}, got {mine} and {theirs}.")
        return Recording(
            self.dt,
            self.start,
            self.steps + other.steps,
            self.sizes,
            {name: np.concatenate([steps, other.times[name]]) for name, steps in self.times.items()},
            {name: np.concatenate([fired, other.neurons[name]]) for name, fired in self.neurons.items()},
            {key: torch.cat([value, other.values[key]]) for key, value in self.values.items()},
            self.intervals,
        )

    def save(self, path: str | Path) -> None:
        """Write an .npz file, without pickles, at once or not at all.

        Raises:
            ValueError: if the name does not end in .npz.
            TypeError: if a value has a type that NumPy lacks (bfloat16).
            OSError: if the disk refuses; what was there before is untouched.
        """
        path = _npz(path)
        about = {name: getattr(self, name) for name in ("dt", "start", "steps")}
        tables = {name: dict(getattr(self, name)) for name in ("sizes", "intervals")}
        arrays: dict[str, Any] = {"about": np.array(json.dumps(about | tables | {"values": list(self.values)}))}
        for i, name in enumerate(self.sizes):
            arrays |= {f"times_{i}": self.times[name], f"neurons_{i}": self.neurons[name]}
        arrays |= {f"value_{i}": value.detach().cpu().numpy() for i, value in enumerate(self.values.values())}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> "Recording":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file is none of ours, or broken.
            FileNotFoundError: if there is none.
        """
        path = _npz(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = dict(file)
            about = json.loads(arrays["about"].item())
            names, keys = list(about["sizes"]), about.pop("values")
            times = {name: arrays[f"times_{i}"] for i, name in enumerate(names)}
            neurons = {name: arrays[f"neurons_{i}"] for i, name in enumerate(names)}
            values = {key: torch.from_numpy(arrays[f"value_{i}"]) for i, key in enumerate(keys)}
            return cls(**about, times=times, neurons=neurons, values=values)
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, zlib, numpy and json each have errors of their own
            raise ValueError(f"{path} is no recording, or broken: {error}") from error

    def _population(self, name: str | None) -> str:
        if not self.sizes:
            raise ValueError("No spikes were recorded in this run.")
        if name is None and len(self.sizes) == 1:
            return next(iter(self.sizes))
        if name is None:
            raise ValueError(f"There is more than one population, name one: {list(self.sizes)}.")
        if name not in self.sizes:
            raise ValueError(f"No population named {name!r}; the recording has {list(self.sizes)}.")
        return name

    def _samples(self, key: str) -> Steps:
        """Steps at which a value was sampled."""
        interval = self.intervals[key]
        return np.arange(-(-self.start // interval) * interval, self.end, interval)

    def _from(self, name: str, since_ms: float) -> tuple[Steps, Steps, int]:
        """Spikes that are at least since_ms after the start, and the step where that is."""
        since = self.start + whole_steps("since_ms", since_ms, self.dt, least=0)
        if since >= self.end:
            raise ValueError(f"since_ms={since_ms:g} leaves nothing of a recording of {self.duration_ms:g} ms.")
        at = np.searchsorted(self.times[name], since)
        return self.times[name][at:], self.neurons[name][at:], since

    def _windows(self, argument: str, ms: float) -> tuple[int, int]:
        """Steps in a window, and the whole windows there are."""
        width = whole_steps(argument, ms, self.dt, least=1)
        if width > self.steps:
            raise ValueError(f"{argument}={ms:g} is longer than the recording, {self.duration_ms:g} ms.")
        return width, self.steps // width


def whole_steps(argument: str, ms: float, dt: float, *, least: int) -> int:
    """Steps in a time of ms milliseconds, which must be whole and not fewer than `least`.

    Raises:
        ValueError: if they are not.
    """
    steps = round(ms / dt) if math.isfinite(ms) else -1
    if steps < least or abs(steps * dt - ms) > 1e-6 * dt:
        raise ValueError(f"{argument} must be a multiple of dt={dt:g} ms, {least} or more times, got {ms:g}.")
    return steps


def _check_spikes(name: str, size: int, times: Any, neurons: Any, start: int, end: int) -> None:
    if size < 1:
        raise ValueError(f"sizes[{name!r}] must be at least 1, got {size}.")
    for what, array, dtype in (("times", times, np.int64), ("neurons", neurons, np.int32)):
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            kind = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"{what}[{name!r}] must be an array of {np.dtype(dtype)}, got {kind}.")
    if times.ndim != 1 or times.shape != neurons.shape:
        shapes = f"{times.shape} and {neurons.shape}"
        raise ValueError(f"times and neurons of {name!r} must be lists of one length, got {shapes}.")
    if len(times) == 0:
        return
    if (np.diff(times) < 0).any():
        raise ValueError(f"times[{name!r}] must be in order.")
    if times[0] < start or times[-1] >= end:
        raise ValueError(f"times[{name!r}] must lie in {start}..{end - 1}, got {times[0]} to {times[-1]}.")
    if neurons.min() < 0 or neurons.max() >= size:
        raise ValueError(f"neurons[{name!r}] must lie in 0..{size - 1}, got {neurons.min()} to {neurons.max()}.")


def _npz(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"A recording's file ends in .npz, got {path.name!r}.")
    return path
