"""Statistics of spikes: how irregular neurons fire, and how much together.

Spikes are two arrays, `times` (any unit, any order) and `neurons` (index of each), so that a million spikes of ten
thousand neurons cost one sort. With intervals I_1, I_2, ... between the spikes of one neuron,

    CV = std(I) / mean(I)                                                       1 for a Poisson process, 0 for a clock
    LV = 3 / (n - 1) sum_k ((I_k - I_{k+1}) / (I_k + I_{k+1}))^2                likewise; deaf to slow changes of rate

and with counts c_i of neuron i in windows of time,

    Fano factor = var(c_i) / mean(c_i)                                          1 for a Poisson process
    chi^2 = var(mean over i of c_i) / mean over i of var(c_i)                   1 in synchrony, 1/N if independent

Variances divide by the number of values, not by one less.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from scipy.signal import welch

__all__ = [
    "Intervals",
    "Spectrum",
    "count_correlations",
    "fano_factor",
    "isi",
    "isi_cv",
    "local_variation",
    "rate_spectrum",
    "spike_counts",
    "synchrony_index",
]

Times = Num[np.ndarray, " spikes"]
Neurons = Int[np.ndarray, " spikes"]
Counts = Num[np.ndarray, "windows neurons"]


class Intervals(NamedTuple):
    """Intervals between successive spikes, in the unit of the times, and the neuron of each; neuron after neuron."""

    lengths: np.ndarray
    neurons: np.ndarray


def isi(times: Times, neurons: Neurons | None = None) -> Intervals:
    """Intervals between successive spikes of each neuron.

    Args:
        times: of the spikes, in any order.
        neurons: index of each spike's neuron; None: one neuron fired them all.

    Raises:
        ValueError: if a time is not finite.
    """
    if not np.isfinite(times).all():
        raise ValueError("times must be finite.")
    owners = np.zeros(len(times), np.int64) if neurons is None else neurons
    order = np.lexsort((times, owners))
    times, owners = times[order], owners[order]
    same = owners[1:] == owners[:-1]
    return Intervals(np.diff(times)[same], owners[1:][same])


def isi_cv(times: Times, neurons: Neurons, n: int, *, min_spikes: int = 3) -> Float[np.ndarray, " n"]:
    """Coefficient of variation of every neuron's inter-spike intervals.

    Args:
        times: of the spikes.
        neurons: index of each spike's neuron, below n.
        n: number of neurons.
        min_spikes: neurons with fewer spikes have no CV; at least 3.

    Returns:
        Standard deviation over mean, (n,); NaN where there are too few spikes.

    Raises:
        ValueError: if an index is not below n, a time is not finite, or min_spikes is too small.
    """
    lengths, owners = _enough(times, neurons, n, min_spikes)
    count = np.bincount(owners, minlength=n)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(owners, lengths, n) / count
        variance = np.bincount(owners, (lengths - mean[owners]) ** 2, n) / count
        return np.sqrt(variance) / mean


def local_variation(times: Times, neurons: Neurons, n: int, *, min_spikes: int = 3) -> Float[np.ndarray, " n"]:
    """Local variation LV of every neuron's intervals: irregularity between neighbours, whatever the rate does slowly.

    Args:
        times: of the spikes.
        neurons: index of each spike's neuron, below n.
        n: number of neurons.
        min_spikes: neurons with fewer spikes have no LV; at least 3.

    Returns:
        LV, (n,); NaN where there are too few spikes. A pair of intervals that are both 0 counts as equal.

    Raises:
        ValueError: if an index is not below n, a time is not finite, or min_spikes is too small.

    Source: Shinomoto, Shima & Tanji, Neural Comput. 15 (2003), eq. 2.1.
    """
    lengths, owners = _enough(times, neurons, n, min_spikes)
    pair = owners[1:] == owners[:-1]
    first, second, owners = lengths[:-1][pair], lengths[1:][pair], owners[1:][pair]
    both = first + second
    contrast = np.divide(first - second, both, out=np.zeros(len(both)), where=both > 0)
    with np.errstate(invalid="ignore"):
        return 3.0 * np.bincount(owners, contrast**2, n) / np.bincount(owners, minlength=n)


def spike_counts(
    times: Times, neurons: Neurons, n: int, *, start: float, stop: float, window: float
) -> Int[np.ndarray, "windows n"]:
    """Spikes of every neuron in windows that follow each other from start; what is left before stop is dropped.

    Args:
        times: of the spikes; a time on the border of two windows belongs to the later one.
        neurons: index of each spike's neuron, below n.
        n: number of neurons.
        start: of the first window, in the unit of the times.
        stop: at or after the last window's end.
        window: length, positive.

    Returns:
        Counts, (windows, n). For times that are not whole numbers, windows whose borders are not exact in binary
        (0.1 ms) can take a spike on the border for one before it: count steps, not milliseconds.

    Raises:
        ValueError: if there is no whole window, or an index is not below n.
    """
    _check_indices(neurons, n)
    if not (window > 0 and math.isfinite(window)):
        raise ValueError(f"window must be finite and positive, got {window:g}.")
    windows = int((stop - start) // window)
    if windows < 1:
        raise ValueError(f"There is no whole window of {window:g} between {start:g} and {stop:g}.")
    index = np.floor_divide(times - start, window).astype(np.int64)
    inside = (index >= 0) & (index < windows)
    flat = index[inside] * n + neurons[inside]
    return np.bincount(flat, minlength=windows * n).reshape(windows, n)


def fano_factor(counts: Counts) -> Float[np.ndarray, " neurons"]:
    """Variance over mean of every neuron's spike counts.

    Args:
        counts: spikes in windows, (windows, neurons), from `spike_counts`.

    Returns:
        (neurons,); NaN for neurons that are silent.

    Raises:
        ValueError: if there are fewer than two windows.
    """
    _check_counts(counts)
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    return np.divide(variance, mean, out=np.full(len(mean), np.nan), where=mean > 0)


def synchrony_index(counts: Counts) -> float:
    """How much neurons fluctuate together: variance of the population's mean over the mean of the variances, chi^2.

    Args:
        counts: spikes in windows, or any signals such as potentials, (windows, neurons).

    Returns:
        Between 0 and 1: 1 if all neurons do the same, about 1/neurons if they are independent; NaN if none varies.

    Raises:
        ValueError: if there are fewer than two windows.

    Source: Golomb & Rinzel, Physica D 72 (1994); Golomb, Scholarpedia 2(1) (2007), whose chi is the square root.
    """
    _check_counts(counts)
    single = float(counts.var(axis=0).mean())
    return float(counts.mean(axis=1).var()) / single if single > 0 else math.nan


class Spectrum(NamedTuple):
    """Frequencies in Hz and the power spectral density of a rate at each, Hz^2/Hz; (frequencies,)."""

    frequencies: np.ndarray
    power: np.ndarray


def rate_spectrum(rate: Float[np.ndarray, " bins"], bin_ms: float, *, segment_ms: float | None = None) -> Spectrum:
    """Power spectrum of a population rate, by Welch's method: Hann windows that overlap by half, means taken out.

    Args:
        rate: Hz, (bins,).
        bin_ms: length of a bin, positive.
        segment_ms: length of the windows, at least two bins; the resolution is its inverse. None: an eighth of the
            rate, and no less than 8 bins.

    Returns:
        One-sided density. Its integral over frequency is the variance; n independent Poisson neurons of rate r have a
        mean rate of density 2 r / n.

    Raises:
        ValueError: if a rate is not finite, or the bins are too few for a segment.

    Source: Welch, IEEE Trans. Audio Electroacoust. 15 (1967).
    """
    if not (bin_ms > 0 and math.isfinite(bin_ms)):
        raise ValueError(f"bin_ms must be finite and positive, got {bin_ms:g}.")
    if not np.isfinite(rate).all():
        raise ValueError("rate must be finite.")
    length = max(len(rate) // 8, 8) if segment_ms is None else round(segment_ms / bin_ms)
    if not 2 <= length <= len(rate):
        raise ValueError(f"A segment must have 2 to {len(rate)} bins, all there are; it has {length}.")
    frequencies, power = welch(rate, fs=1000.0 / bin_ms, nperseg=length, detrend="constant")
    return Spectrum(frequencies, power)


def count_correlations(
    counts: Counts, *, pairs: int = 1000, generator: torch.Generator | None = None
) -> Float[np.ndarray, " pairs"]:
    """Pearson correlations between the spike counts of pairs of different neurons, drawn with replacement.

    Args:
        counts: spikes in windows, (windows, neurons); neurons whose count never changes are left out.
        pairs: how many, at least 1.
        generator: draws the pairs; None is a generator of seed 0.

    Returns:
        One correlation a pair, in [-1, 1].

    Raises:
        ValueError: if there are fewer than two windows, or fewer than two neurons whose counts vary.
    """
    _check_counts(counts)
    if pairs < 1:
        raise ValueError(f"pairs must be at least 1, got {pairs}.")
    spread = counts.std(axis=0)
    varying = np.flatnonzero(spread > 0)
    if len(varying) < 2:
        raise ValueError(f"Correlations need two neurons whose counts vary, got {len(varying)}.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    first = torch.randint(len(varying), (pairs,), generator=generator, device=generator.device).cpu().numpy()
    ahead = torch.randint(1, len(varying), (pairs,), generator=generator, device=generator.device).cpu().numpy()
    a, b = varying[first], varying[(first + ahead) % len(varying)]
    mean, windows = counts.mean(axis=0), len(counts)
    found = np.empty(pairs)
    block = max(1, 2**22 // windows)  # pairs at a time: 32 MiB an array
    for at in range(0, pairs, block):
        i, j = a[at : at + block], b[at : at + block]
        product = ((counts[:, i] - mean[i]) * (counts[:, j] - mean[j])).mean(axis=0)
        found[at : at + block] = product / (spread[i] * spread[j])
    return np.clip(found, -1.0, 1.0)


def _enough(times: Times, neurons: Neurons, n: int, min_spikes: int) -> Intervals:
    """Intervals of the neurons that fired often enough."""
    if min_spikes < 3:
        raise ValueError(f"min_spikes must be at least 3, two intervals, got {min_spikes}.")
    _check_indices(neurons, n)
    lengths, owners = isi(times, neurons)
    enough = np.bincount(neurons, minlength=n)[owners] >= min_spikes
    return Intervals(lengths[enough], owners[enough])


def _check_indices(neurons: Neurons, n: int) -> None:
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    if len(neurons) and (neurons.min() < 0 or neurons.max() >= n):
        raise ValueError(f"neurons must lie in 0..{n - 1}, got {neurons.min()} to {neurons.max()}.")


def _check_counts(counts: Counts) -> None:
    if len(counts) < 2 or counts.shape[1] < 1:
        raise ValueError(f"counts must have two windows and a neuron at least, got {counts.shape}.")
