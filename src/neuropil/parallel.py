"""Many calls over processes, each computed on one thread, so that the number of processes changes no number."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import joblib
import torch

__all__ = ["Track", "parallel"]

Value = TypeVar("Value")
Track = Callable[..., Iterable[Any]]
"""Shows progress: called with items, a label and `total=`, yields the same items (`Run.track` is one)."""


def parallel(
    calls: Sequence[Callable[[], Value]], *, jobs: int = 1, track: Track | None = None, label: str = "runs"
) -> list[Value]:
    """Call every function without arguments, and return the values in order.

    Args:
        calls: the functions; what they close over is sent along (cloudpickle).
        jobs: processes; 1 stays in this one.
        track: shows progress.
        label: what one call is.

    Raises:
        ValueError: if jobs is less than 1.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}.")
    with warnings.catch_warnings():
        # joblib renews a worker whose memory has grown, as it does over large data sets, and need not tell.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
        return list(_shown(calls, jobs, track, label))


def _shown(calls: Sequence[Callable[[], Value]], jobs: int, track: Track | None, label: str) -> Iterable[Value]:
    finished = joblib.Parallel(n_jobs=jobs, return_as="generator")(
        joblib.delayed(_on_one_thread)(call) for call in calls
    )
    values = cast("Iterable[Value]", finished)
    return track(values, label, total=len(calls)) if track else values


def _on_one_thread(call: Callable[[], Value]) -> Value:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(threads)
