"""Numbers as they are printed: three significant digits, a true minus sign, no noise.

Numbers that are read together (a mean and its interval, a column) share their decimals, as far as the smallest of them
allows it. |x| < 1e-12 is rounding noise of double precision and is printed as 0; integers keep all their digits; from
1e6 on and below 1e-4 the power of ten is written out. A page that rounds keeps the exact value in a tooltip.
"""

# ruff: noqa: RUF001 - the minus sign, the multiplication sign and the en dash are meant

import math
import statistics
from collections.abc import Sequence

__all__ = ["DASH", "aligned", "duration", "interval", "number", "with_unit"]

DASH = "–"
THIN = "\u202f"  # narrow no-break space
NOISE = 1e-12
FIXED = (1e-4, 1e6)
SPECIAL = {0.0: "0", math.inf: "∞", -math.inf: "−∞"}
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None) -> str:
    """One number to three significant digits, without trailing zeros; an en dash for None."""
    return aligned([value])[0]


def aligned(values: Sequence[float | None], *, distinct: bool = False) -> list[str]:
    """Numbers that are read together, with common decimals where their sizes allow it.

    Args:
        values: the numbers; None is printed as an en dash, infinity as ∞.
        distinct: they are one quantity (an estimate and its interval): the largest sets the decimals, and up to three
            more are added until different numbers look different. Otherwise (a column) the middle one sets them.

    Returns:
        one text a number, in order.
    """
    clean = [None if x is None else 0.0 if abs(x) < NOISE else x for x in values]
    finite = [x for x in clean if x is not None and math.isfinite(x)]
    decimals = _decimals(finite, distinct)
    return [_print(x, decimals) for x in clean]


def interval(ends: Sequence[float | None], printed: Sequence[str]) -> str:
    """An interval from its two ends and their text; an end that is None is unbounded, its bracket round."""
    (low, high), (low_text, high_text) = ends, printed
    left = "(−∞" if low is None or low == -math.inf else f"[{low_text}"
    right = "∞)" if high is None or high == math.inf else f"{high_text}]"
    return f"{left}, {right}"


def with_unit(text: str, unit: str | None) -> str:
    """A printed number and its unit, which never part at the end of a line."""
    return text if not unit or text == DASH else f"{text}{THIN}{unit}"


def duration(seconds: float | None) -> str:
    """Seconds as people say them: 3.2 s, 2 min 41 s, 3 h 5 min."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if seconds < 59.5:
        return with_unit(number(round(seconds, 1) if seconds < 10 else round(seconds)), "s")
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{with_unit(number(hours), 'h')} {with_unit(str(minutes), 'min')}"
    return f"{with_unit(str(minutes), 'min')} {with_unit(str(rest), 's')}"


def _decimals(finite: Sequence[float], distinct: bool) -> int | None:
    """Decimals that suit all of the numbers, None if each must be printed for itself."""
    largest = max(map(abs, finite), default=0.0)
    if all(float(x).is_integer() for x in finite):
        return 0 if largest < 1e15 else None
    if not FIXED[0] <= largest < FIXED[1]:
        return None
    middle = largest if distinct else statistics.median_low(abs(x) for x in finite if x != 0)
    first = max(0, min(_digits(middle), _digits(largest) + 1))
    for decimals in range(first, first + 4):
        texts = [f"{x:.{decimals}f}" for x in finite]
        told_apart = len(set(texts)) == len(set(finite)) or not distinct
        if told_apart and all(float(text) != 0 for text, x in zip(texts, finite, strict=True) if x != 0):
            return _without_shared_zeros(texts, decimals)
    return None if not distinct else _decimals(finite, distinct=False)


def _digits(x: float) -> int:
    """Decimals that give x three significant digits; negative for large x."""
    return 2 - math.floor(math.log10(abs(x)))


def _without_shared_zeros(texts: Sequence[str], decimals: int) -> int:
    while decimals and all(text.endswith("0") for text in texts):
        texts, decimals = [text[:-1] for text in texts], decimals - 1
    return decimals


def _print(x: float | None, decimals: int | None) -> str:
    if x is None:
        return DASH
    if math.isnan(x):
        return "NaN"
    if x in SPECIAL:
        return SPECIAL[x]
    if decimals is None:
        alone = _decimals([x], distinct=False)
        return _scientific(x) if alone is None else _print(x, alone)
    text = f"{x:,.{decimals}f}"
    digits = text.lstrip("-").partition(".")[0]
    return text.replace(",", THIN if len(digits) > len("1,000") else "").replace("-", "−")


def _scientific(x: float) -> str:
    mantissa, _, exponent = f"{x:.2e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".").replace("-", "−")
    return f"{mantissa}{THIN}×{THIN}10{str(int(exponent)).translate(SUPERSCRIPT)}"
