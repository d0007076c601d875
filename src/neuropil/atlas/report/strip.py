"""The interval strip: an interval against the threshold it was judged by, on an axis as wide as a word.

Drawn only where the threshold is one number ("interval above 0", "below 5 points"): without it the picture would have
no scale to be read on.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["WIDTH", "Strip", "strip", "threshold_of"]

WIDTH = 120.0
MARGIN = 12.0
SIDES = {"above": 1, "at least": 1, ">": 1, "≥": 1, ">=": 1, "below": -1, "at most": -1, "<": -1, "≤": -1, "<=": -1}
THRESHOLD = re.compile(
    rf"(?:(?:the )?(?:whole )?interval )?(?P<side>{'|'.join(sorted(SIDES, key=len, reverse=True))})"
    r"\s*(?P<number>[+\u2212-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(?P<unit>.*)"
)


class Strip(NamedTuple):
    """Horizontal positions, from 0 to `WIDTH`.

    Attributes:
        low: where the interval starts.
        high: where it ends.
        measured: the estimate, None if there is none.
        threshold: the threshold.
        passing: start and width of the side on which the claim holds.
        open_low: True if the interval has no lower bound.
        open_high: True if it has no upper bound.
    """

    low: float
    high: float
    measured: float | None
    threshold: float
    passing: tuple[float, float]
    open_low: bool
    open_high: bool


def threshold_of(text: str | None, unit: str | None) -> tuple[float, int] | None:
    """The number in a threshold and the side that passes (1 above, -1 below); None if the text says more than that."""
    match = THRESHOLD.fullmatch((text or "").strip())
    if match is None or match["unit"].strip() not in ("", unit or ""):
        return None
    return float(match["number"].replace("\u2212", "-")), SIDES[match["side"]]


def strip(
    measured: float | None, interval: Sequence[float | None] | None, threshold: str | None, unit: str | None
) -> Strip | None:
    """Place an interval, its estimate and the threshold on one axis; None where that says nothing."""
    judged = threshold_of(threshold, unit)
    if judged is None or interval is None:
        return None
    limit, side = judged
    low, high = interval
    bounded = [x for x in (low, high) if x is not None and math.isfinite(x)]
    shown = [x for x in (*bounded, measured, limit) if x is not None and math.isfinite(x)]
    first, last = min(shown), max(shown)
    if not bounded or first == last or not math.isfinite(last - first):
        return None

    def place(x: float | None, unbounded: float) -> float:
        if x is None or not math.isfinite(x):
            return unbounded
        return round(MARGIN + (x - first) / (last - first) * (WIDTH - 2 * MARGIN), 1)

    at = place(limit, 0.0)
    open_low, open_high = (x is None or not math.isfinite(x) for x in (low, high))
    return Strip(
        low=place(low, 0.0),
        high=place(high, WIDTH),
        measured=None if measured is None or not math.isfinite(measured) else place(measured, 0.0),
        threshold=at,
        passing=(at, WIDTH - at) if side > 0 else (0.0, at),
        open_low=open_low,
        open_high=open_high,
    )
