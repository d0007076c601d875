"""An area whose neurons come into being when they can win: the cost of a step does not depend on their number.

Before it first fires, a neuron is one of many alike, and the synapses that it receives need not be drawn (deferred
decisions). At a step in which K neurons fire towards the area, the input of such a neuron is w_0 B, B ~ Binomial(K, p),
and only the upper tail of the n draws can hold a winner. Going down from B = K,

    N_c ~ Binomial(n - sum_{b > c} N_b, P(B = c) / P(B <= c))                     candidates with c synapses

each with c of the K synapses, chosen uniformly, and every other synapse with probability p, until k neurons have more
input than the next level could give.

The n draws are not new at every step: the area is the same one. A candidate that would have stood in the tail of an
earlier step (B_s >= the lowest level drawn at step s) is known already, so it is dropped:

    keep v   if   sum_{i fired at s} v_i  <  level_s   for every earlier step s

Were n a Poisson number, the tails of different steps, each without the earlier ones, would be independent Poisson
processes, and this simulation exact in distribution; with n fixed it is so in the first step and up to O(k / n) later.
Published simulations draw every tail afresh ("forgetful"): neurons then win a new lottery at every step, and too many
do.

Neurons of a tail that do not win stay known, for they are as real as the winners. Ties go to the neuron with the lower
priority, a uniform number that it keeps for life, like an index.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import binom

from neuropil.learning.assemblies import kernels
from neuropil.learning.assemblies.graph import Graph

__all__ = ["KnownGraph", "Tail"]

Ids = Int[np.ndarray, "_"]
MARGIN = 1e-6  # inputs closer than this, relatively, may tie
BLOCK = 4096  # candidates drawn at once


class KnownGraph(Graph):
    """The synapses between sources that have fired and neurons that are known; the others are not drawn yet.

    Args:
        rows: number of sources; it may grow.
        p: probability of a synapse.
        rng: draws them.
    """

    def __init__(self, rows: int, p: float, rng: np.random.Generator):
        self.rows = rows
        self.columns = 0
        self.p = p
        self.order = np.empty(0, np.int64)  # sources whose synapses are drawn, in the order of drawing
        self._place = np.full(rows, -1)  # of a source in `order`; -1: not drawn
        self._table = np.zeros((0, 0), bool)  # places x columns, with room to grow
        self._rng = rng

    def add_rows(self, rows: int) -> None:
        """Let the number of sources grow to `rows`."""
        self._place = np.concatenate([self._place, np.full(rows - self.rows, -1)])
        self.rows = rows

    def draw(self, rows: Ids) -> None:
        """Draw the synapses of sources that fire for the first time."""
        new = rows[self._place[rows] < 0]
        drawn = len(self.order)
        self._place[new] = np.arange(drawn, drawn + len(new))
        self.order = np.concatenate([self.order, new])
        self._reserve(len(self.order), self.columns)
        self._table[drawn : len(self.order), : self.columns] = self._rng.random((len(new), self.columns)) < self.p

    def add_columns(self, synapses: Bool[np.ndarray, "new drawn"]) -> None:
        """Make neurons known, by their synapses from the drawn sources in order."""
        known = self.columns + len(synapses)
        self._reserve(len(self.order), known)
        self._table[: len(self.order), self.columns : known] = synapses.T
        self.columns = known

    def places(self, rows: Ids) -> Ids:
        """Where drawn sources stand in `order`."""
        return self._place[rows]

    def count(self, active: Ids) -> Int[np.ndarray, " columns"]:
        """Synapses onto every known neuron from the active sources; those that fire for the first time are drawn."""
        self.draw(active)
        return self._table[self._place[active], : self.columns].sum(0, dtype=np.int32)

    def pairs(self, rows: Ids, columns: Ids) -> tuple[Ids, Ids]:
        """The drawn synapses between some sources and some known neurons: source and neuron of each."""
        rows = rows[self._place[rows] >= 0]
        sources, targets = self._table[self._place[rows]][:, columns].nonzero()
        return rows[sources].astype(np.int32), columns[targets].astype(np.int32)

    @property
    def stored_bytes(self) -> int:
        """Memory of the table, the room to grow included."""
        return self._table.nbytes + self._place.nbytes + self.order.nbytes

    def _reserve(self, rows: int, columns: int) -> None:
        have = self._table.shape
        if rows > have[0] or columns > have[1]:
            size = [
                old if need <= old else max(need, old + old // 4)
                for need, old in zip((rows, columns), have, strict=True)
            ]
            table = np.zeros(size, bool)
            table[: have[0], : have[1]] = self._table
            self._table = table


class Tail:
    """The neurons of an area that are not known yet, and how the best of them become known.

    Args:
        n: neurons of the area, known or not.
        k: winners of a step.
        initial_weight: w_0 of all synapses onto them.
        rng: draws candidates.
        remember: whether candidates of earlier tails are dropped; False is the published shortcut.

    Source: lazy drawing as in Papadimitriou, Vempala, Mitropolsky, Collins & Maass, PNAS 117 (2020), SI; the memory is
        ours.
    """

    def __init__(self, n: int, k: int, initial_weight: float, rng: np.random.Generator, *, remember: bool = True):
        self.n = n
        self.k = k
        self.initial_weight = initial_weight
        self.priority = np.empty(0)
        self.remember = remember
        self._rng = rng
        self._levels: dict[tuple[bytes, ...], tuple[dict[str, Ids], int]] = {}

    def recruit(
        self, graphs: dict[str, KnownGraph], active: dict[str, Ids], inputs: Float[np.ndarray, " known"]
    ) -> Float[np.ndarray, " new"]:
        """Make all neurons known that are among the k best of this step, or tie with them.

        Args:
            graphs: all synapses into the area, by source; new neurons are added to each.
            active: neurons that fire towards the area now, by source; their synapses are drawn.
            inputs: of the neurons that are known.

        Returns:
            Inputs of the new neurons.
        """
        places = {name: graphs[name].places(rows) for name, rows in active.items()}
        firing = sum(len(rows) for rows in active.values())
        p = next(iter(graphs.values())).p
        levels = np.arange(firing + 1)
        mass, below = binom.pmf(levels, firing, p), binom.cdf(levels, firing, p)
        found: list[np.ndarray] = []
        best, left, lowest = np.sort(inputs)[-self.k :], self.n, firing + 1
        for level in range(firing, -1, -1):
            value = self.initial_weight * level
            if len(best) == self.k and value < best[0] * (1 - MARGIN):
                break
            lowest = level
            number = int(self._rng.binomial(left, min(1.0, mass[level] / below[level]) if mass[level] > 0 else 0.0))
            left -= number
            kept = sum(
                self._meet(min(BLOCK, number - start), level, graphs, places) for start in range(0, number, BLOCK)
            )
            if kept:
                found.append(np.full(kept, value))
                best = np.sort(np.concatenate([best, found[-1]]))[-self.k :]
        self._note(places, lowest, firing)
        new = np.concatenate(found) if found else np.empty(0)
        self.priority = np.concatenate([self.priority, self._rng.random(len(new))])
        return new

    def _meet(self, number: int, level: int, graphs: dict[str, KnownGraph], places: dict[str, Ids]) -> int:
        """Draw candidates with `level` synapses from the firing neurons, make those known that are new: how many."""
        drawn = {name: self._rng.random((number, len(graph.order))) < graph.p for name, graph in graphs.items()}
        firing = sum(map(len, places.values()))
        subsets = kernels.random_subsets(np.uint64(self._rng.integers(2**63)), number, firing, level)
        start = 0
        for name, at in places.items():
            drawn[name][:, at] = subsets[:, start : start + len(at)]
            start += len(at)
        new = np.ones(number, bool)
        for earlier, floor in self._levels.values() if self.remember else ():
            counts = sum(drawn[name][:, at].sum(1) for name, at in earlier.items())
            new &= counts < floor
        chosen = np.flatnonzero(new)[: self.n - next(iter(graphs.values())).columns]
        for name, graph in graphs.items():
            graph.add_columns(drawn[name][chosen])
        return len(chosen)

    def _note(self, places: dict[str, Ids], lowest: int, firing: int) -> None:
        """Remember that of all neurons with `lowest` or more synapses from these sources none is unknown."""
        if lowest <= firing:
            key = tuple(part for name, at in sorted(places.items()) for part in (name.encode(), np.sort(at).tobytes()))
            known = self._levels.get(key)
            self._levels[key] = (places, min(lowest, known[1]) if known else lowest)
