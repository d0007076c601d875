"""One search for all strategies: the same budget of queries, the same cache, the same record.

`search` drives any strategy and counts a query for every network that was not evaluated before; a network met again (by
its canonical form) costs nothing, and a strategy is told its value as if it were new.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd
import torch

from neuropil.structure.search.spaces import Architecture, Space
from neuropil.structure.search.strategies import RandomSearch, Strategy

__all__ = ["Evaluate", "SearchResult", "search"]

Evaluate = Callable[[Architecture], float]
"""The value of an architecture, in its canonical form; bigger is better."""

PATIENCE = 1_000  # networks met again in a row, after which a space counts as exhausted


@dataclass(frozen=True)
class SearchResult:
    """What a search found, and what it paid.

    Attributes:
        trace: one row a query: "query" (from 1), "architecture", "value", "best" so far, "seconds" of the evaluation;
            where evaluations have a length also "epochs" and the "cost" so far.
        best: the architecture with the highest value; among searches of several fidelities, at the longest evaluation.
        value: its value.
        seconds: wall time of everything, evaluations and the strategy's own thinking.
        exhausted: whether the search ended because it met no new network any more.
    """

    trace: pd.DataFrame
    best: Architecture
    value: float
    seconds: float
    exhausted: bool = False

    @property
    def queries(self) -> int:
        """Number of evaluations."""
        return len(self.trace)

    @property
    def overhead(self) -> float:
        """Seconds that were not spent on evaluations: training of predictors, choice of candidates."""
        return self.seconds - float(self.trace["seconds"].to_numpy().sum())


@dataclass
class Ledger:
    """Evaluations made so far; calls the user's function once a network and checks what it returns."""

    space: Space
    evaluate: Callable[..., float]
    cache: dict[tuple, float] = field(default_factory=dict)
    rows: list[dict] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def value(self, architecture: Architecture, *length: int) -> tuple[float, bool]:
        """The value of an architecture (after so many epochs), and whether it had to be evaluated.

        Raises:
            ValueError: if the value is NaN.
        """
        canonical = self.space.canonical(architecture)
        key = (canonical, *length)
        if key in self.cache:
            return self.cache[key], False
        begun = time.perf_counter()
        value = float(self.evaluate(canonical, *length))
        if math.isnan(value):
            raise ValueError(f"evaluate returned NaN for {self.space.describe(canonical)}, code {canonical}.")
        self.cache[key] = value
        row = {"query": len(self.rows) + 1, "architecture": canonical, "value": value}
        best = max(value, self.rows[-1]["best"]) if self.rows else value
        self.rows.append({**row, "best": best, "seconds": time.perf_counter() - begun})
        return value, True


def search(
    space: Space, evaluate: Evaluate, budget: int, strategy: Strategy | None = None, seed: int = 0
) -> SearchResult:
    """Look for the best architecture of a space.

    Args:
        space: where.
        evaluate: value of an architecture, bigger is better.
        budget: evaluations; a network met again is none.
        strategy: how; None draws at random, the baseline of every other.
        seed: of all draws of the strategy.

    Returns:
        The trace and the best; fewer queries than the budget where the strategy met no new network any more.

    Raises:
        ValueError: if the budget is less than 1 or than the strategy's initial sample, or `evaluate` returns NaN (the
            architecture is named).

    Source: White et al. 2023 (arXiv 2301.08727), sections 3 and 8.
    """
    strategy = RandomSearch() if strategy is None else strategy
    if budget < strategy.warm_up():
        raise ValueError(f"budget must be at least {strategy.warm_up()}, the first sample of {strategy}; got {budget}.")
    ledger = Ledger(space, evaluate)
    proposals = strategy.propose(space, torch.Generator().manual_seed(seed))
    architecture, again = next(proposals, None), 0
    while architecture is not None and len(ledger.rows) < budget and again < PATIENCE:
        value, fresh = ledger.value(architecture)
        again = 0 if fresh else again + 1
        if len(ledger.rows) < budget:
            try:
                architecture = proposals.send(value)
            except StopIteration:
                architecture = None
    proposals.close()
    return summary(ledger, exhausted=len(ledger.rows) < budget)


def summary(ledger: Ledger, *, exhausted: bool = False) -> SearchResult:
    """The result of the evaluations in a ledger; the longest ones decide where they have a length."""
    length = max(row.get("epochs", 0) for row in ledger.rows)
    row = max((row for row in ledger.rows if row.get("epochs", 0) == length), key=lambda row: row["value"])
    seconds = time.perf_counter() - ledger.started
    return SearchResult(pd.DataFrame(ledger.rows), row["architecture"], row["value"], seconds, exhausted)
