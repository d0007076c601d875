"""A claim: what the paper says, what was measured, and the rule that decided between them."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Claim"]


@dataclass(frozen=True)
class Claim:
    """One claim of a paper, decided.

    Attributes:
        text: the claim in one sentence.
        paper: the paper's figure, as text.
        measured: ours; None where nothing could be measured.
        interval: for `measured`, over seeds; an end that is None is unbounded.
        unit: of `measured` and its interval.
        threshold: the rule that decided, in words.
        baseline: what the measurement is compared with, as text.
        holds: True, False, or None for undecided.
        note: what a reader must know, and for a claim that does not hold the reason.
    """

    text: str
    paper: str | None = None
    measured: float | None = None
    interval: tuple[float | None, float | None] | None = None
    unit: str = ""
    threshold: str = ""
    baseline: str | None = None
    holds: bool | None = None
    note: str | None = None

    @classmethod
    def checked(
        cls,
        text: str,
        *,
        holds: Any,
        measured: Any = None,
        interval: Sequence[Any] | None = None,
        unit: str = "",
        threshold: str = "",
        paper: Any = None,
        baseline: Any = None,
        note: str | None = None,
    ) -> "Claim":
        """Make a claim of plain Python values from what a study has at hand (NumPy and torch scalars too).

        Infinities are stored as None: a sample of one seed has an unbounded interval.

        Raises:
            ValueError: if the text is empty, a number is NaN, or the interval is not (low, high).
            TypeError: if `holds` is not True, False or None, or a number is not one.
        """
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"A claim needs a sentence, got {text!r}.")
        return cls(
            text=text,
            paper=_text(paper, text, "paper"),
            measured=_number(measured, text, "measured"),
            interval=_interval(interval, text),
            unit=unit,
            threshold=threshold,
            baseline=_text(baseline, text, "baseline"),
            holds=_verdict(holds, text),
            note=note,
        )

    def to_json(self) -> dict[str, Any]:
        """The claim as result.json has it."""
        return {**asdict(self), "interval": None if self.interval is None else list(self.interval)}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _number(value: Any, text: str, name: str) -> float | None:
    value = _plain(value)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"Claim {text!r}: {name} must be a number or None, got {value!r}.")
    if math.isnan(value):
        raise ValueError(f"Claim {text!r}: {name} is NaN. Pass None, and say in note why it could not be measured.")
    return float(value) if math.isfinite(value) else None


def _interval(interval: Sequence[Any] | None, text: str) -> tuple[float | None, float | None] | None:
    if interval is None:
        return None
    if len(interval) != 2:
        raise ValueError(f"Claim {text!r}: interval must be (low, high), got {len(interval)} numbers.")
    low, high = (_number(end, text, "interval") for end in interval)
    if low is not None and high is not None and low > high:
        raise ValueError(f"Claim {text!r}: interval must be (low, high), got ({low}, {high}).")
    return low, high


def _verdict(holds: Any, text: str) -> bool | None:
    holds = _plain(holds)
    if holds is not None and not isinstance(holds, bool):
        raise TypeError(f"Claim {text!r}: holds must be True, False or None (undecided), got {holds!r}.")
    return holds


def _text(value: Any, text: str, name: str) -> str | None:
    """What the paper or the baseline has: words as they are, a number to three digits."""
    if value is None or isinstance(value, str):
        return value
    number = _number(value, text, name)
    return None if number is None else f"{number:.3g}"
