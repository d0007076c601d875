"""What a report of an architecture search must say, and which of it a comparison shows.

Some items are seen in the comparison itself; others only the authors know, and are open until they are told.

Source: Lindauer & Hutter, JMLR 21 (2020), "Best practices for scientific research on neural architecture search"; White
et al. 2023 (arXiv 2301.08727), section 8.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from neuropil.structure.search.comparison import StrategyComparison

__all__ = ["Checklist", "Practice", "checklist"]

ENOUGH = 5  # seeds: with fewer an interval says little


@dataclass(frozen=True)
class Practice:
    """One item.

    Attributes:
        what: is asked for.
        done: True, False, or None where nobody said.
        evidence: what the answer rests on.
    """

    what: str
    done: bool | None
    evidence: str


@dataclass(frozen=True)
class Checklist:
    """All items.

    Attributes:
        items: in the order of the checklist.
    """

    items: tuple[Practice, ...]

    @property
    def missing(self) -> list[str]:
        """What is not done, or not known to be."""
        return [item.what for item in self.items if not item.done]

    def table(self) -> pd.DataFrame:
        """One row an item: "practice", "done" (yes, no, not stated), "evidence"."""
        words = {True: "yes", False: "no", None: "not stated"}
        rows = [(item.what, words[item.done], item.evidence) for item in self.items]
        return pd.DataFrame(rows, columns=["practice", "done", "evidence"])


def checklist(
    comparison: StrategyComparison,
    *,
    same_training: bool | None = None,
    test_once: bool | None = None,
    hardware: str = "",
    code: str = "",
) -> Checklist:
    """Hold a comparison against the good practice of the field.

    Args:
        comparison: from `compare`, where space, evaluation and budget are shared by construction.
        same_training: whether every evaluation went through the same training pipeline.
        test_once: whether the test part was looked at only after the search.
        hardware: on which the seconds were measured.
        code: where it can be had.
    """
    runs = comparison.runs
    rows = {name: runs[runs["strategy"] == name] for name in comparison.strategies}
    seeds = min(len(set(of["seed"])) for of in rows.values())
    overheads = {name: float(np.mean(list(of["overhead"]))) for name, of in rows.items()}
    slowest = max(overheads, key=overheads.__getitem__)
    queries, seconds = (float(np.sum(list(runs[name]))) for name in ("queries", "seconds"))
    stated = {True: "stated", False: "stated", None: "pass the argument"}
    items = (
        Practice("the same space for all strategies", True, "one space, one evaluation, one budget in `compare`"),
        Practice("the same training for all architectures", same_training, stated[same_training]),
        Practice(
            "random search as a baseline",
            comparison.baseline is not None,
            f"strategies: {', '.join(comparison.strategies)}",
        ),
        Practice("several seeds, with their spread", seeds >= ENOUGH, f"{seeds} a strategy, {ENOUGH} wanted"),
        Practice("number of evaluations", True, f"{queries:.0f}, at most {comparison.budget} a run"),
        Practice(
            "wall time, with what the strategies spend on themselves",
            True,
            f"{seconds:.1f} s; most of its own has {slowest}, {overheads[slowest]:.3g} s a run",
        ),
        Practice(
            "regret to a known optimum",
            comparison.optimum is not None,
            "to the space's" if comparison.optimum is not None else "only to the best that any strategy found",
        ),
        Practice("the test part used once, after the search", test_once, stated[test_once]),
        Practice("hardware", bool(hardware), hardware or "pass the argument"),
        Practice("code and seeds released", bool(code), code or "pass the argument"),
    )
    return Checklist(items)
