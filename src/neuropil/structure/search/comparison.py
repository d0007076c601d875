"""Strategies side by side: one space, one evaluation, one budget, many seeds.

    regret after q queries    optimum - best of the first q; where the optimum is unknown, the best that any run found
    queries to a value        the first query that reached it; a run that never did counts as one that did after its end

The seeds of a strategy are the units of the tests: what is found holds for this landscape, not for others.

Source: White et al. 2023 (arXiv 2301.08727), section 8; Lindauer & Hutter, JMLR 21 (2020).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from neuropil.parallel import Track, parallel
from neuropil.structure.search.searching import Evaluate, SearchResult, search
from neuropil.structure.search.spaces import Space
from neuropil.structure.search.strategies import RandomSearch, Strategy

__all__ = ["FirstReached", "StrategyComparison", "compare"]


@dataclass(frozen=True)
class FirstReached:
    """Whether a strategy needs fewer queries than another.

    Attributes:
        median: queries of the strategy.
        baseline: median of the other.
        p: of the one-sided test of Mann and Whitney, that the strategy needs fewer.
        reached: share of the strategy's runs that got there within the budget.
    """

    median: float
    baseline: float
    p: float
    reached: float


@dataclass(frozen=True)
class StrategyComparison:
    """Traces of several strategies over seeds.

    Attributes:
        traces: one row a query: "strategy", "seed", "query", "architecture", "value", "best", "seconds".
        runs: one row a run: "strategy", "seed", "queries", "seconds", "overhead", "exhausted".
        budget: queries of each run.
        optimum: of the space, None where it is unknown.
        baseline: name of the random search among the strategies, None where there is none.
    """

    traces: pd.DataFrame
    runs: pd.DataFrame
    budget: int
    optimum: float | None = None
    baseline: str | None = None

    @property
    def strategies(self) -> list[str]:
        """Names, in the order given."""
        return list(dict.fromkeys(self.runs["strategy"]))

    def best(self, strategy: str) -> np.ndarray:
        """Best value so far, (seeds, budget); after the end of an exhausted run its last.

        Raises:
            ValueError: if there is no such strategy.
        """
        if strategy not in self.strategies:
            raise ValueError(f"strategy must be one of {self.strategies}, got {strategy!r}.")
        rows = self.traces[self.traces["strategy"] == strategy]
        wide = rows.pivot_table(index="seed", columns="query", values="best")
        return wide.reindex(columns=range(1, self.budget + 1)).ffill(axis=1).to_numpy()

    def regret(self, strategy: str) -> np.ndarray:
        """Distance to the optimum so far, (seeds, budget)."""
        top = float(self.traces["value"].to_numpy().max()) if self.optimum is None else self.optimum
        return top - self.best(strategy)

    def queries_to(self, value: float, strategy: str) -> np.ndarray:
        """The first query that reached a value, (seeds,); budget + 1 where none did."""
        there = self.best(strategy) >= value
        return np.where(there.any(axis=1), there.argmax(axis=1) + 1, self.budget + 1)

    def sooner(self, value: float, strategy: str, than: str | None = None) -> FirstReached:
        """Whether a strategy reaches a value in fewer queries than another, by default random search.

        Raises:
            ValueError: if there is no such strategy, or no random search and no other is named.
        """
        other = self.baseline if than is None else than
        if other is None:
            raise ValueError("There is no random search to compare with: name another strategy in `than`.")
        ours, theirs = self.queries_to(value, strategy), self.queries_to(value, other)
        p = float(mannwhitneyu(ours, theirs, alternative="less").pvalue)
        return FirstReached(float(np.median(ours)), float(np.median(theirs)), p, float((ours <= self.budget).mean()))


def compare(
    strategies: Mapping[str, Strategy],
    space: Space,
    evaluate: Evaluate,
    budget: int,
    seeds: int | Sequence[int],
    *,
    optimum: float | None = None,
    jobs: int = 1,
    track: Track | None = None,
) -> StrategyComparison:
    """Run every strategy on every seed.

    Args:
        strategies: by name. A `RandomSearch` among them is the baseline.
        space: where.
        evaluate: value of an architecture, bigger is better; it must be the same for all, and is called in every run
            anew.
        budget: queries of each run.
        seeds: of the strategies, or how many, from 0 on.
        optimum: of the space, where it is known.
        jobs: processes.
        track: shows progress.

    Raises:
        ValueError: if there are no strategies or seeds, or as `search`.
    """
    chosen = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not strategies or not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"Strategies and different seeds wanted, got {list(strategies)} and {chosen}.")
    # A call a strategy and a tenth of its seeds: a single run may be too short for a process of its own.
    blocks = [chosen[start :: min(10, len(chosen))] for start in range(min(10, len(chosen)))]
    keys = [(name, block) for name in strategies for block in blocks]
    calls = [partial(_runs, space, evaluate, budget, strategies[name], block) for name, block in keys]
    traces, runs = [], []
    for (name, block), results in zip(keys, parallel(calls, jobs=jobs, track=track, label="searches"), strict=True):
        for seed, result in zip(block, results, strict=True):
            trace = result.trace
            trace.insert(0, "seed", seed)
            trace.insert(0, "strategy", name)
            traces.append(trace)
            numbers = {"queries": result.queries, "seconds": result.seconds, "overhead": result.overhead}
            runs.append({"strategy": name, "seed": seed, **numbers, "exhausted": result.exhausted})
    table = pd.concat(traces, ignore_index=True)
    baseline = next((name for name, one in strategies.items() if isinstance(one, RandomSearch)), None)
    return StrategyComparison(table, pd.DataFrame(runs), budget, optimum, baseline)


def _runs(
    space: Space, evaluate: Evaluate, budget: int, strategy: Strategy, seeds: Sequence[int]
) -> list[SearchResult]:
    return [search(space, evaluate, budget, strategy, seed) for seed in seeds]
