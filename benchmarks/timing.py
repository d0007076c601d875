"""Timing in turns: candidates alternate, so that a noisy machine disturbs all of them alike; medians."""

import statistics
import time
from collections.abc import Callable, Mapping

__all__ = ["medians"]


def medians(candidates: Mapping[str, Callable[[], object]], *, rounds: int = 30, warm: int = 3) -> dict[str, float]:
    """Median seconds of a call of each candidate.

    Args:
        candidates: functions by name.
        rounds: how often each is called, in turns.
        warm: calls of each before the clock runs.
    """
    for call in candidates.values():
        for _ in range(warm):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
