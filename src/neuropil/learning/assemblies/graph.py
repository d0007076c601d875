"""A random graph that is computed whenever it is needed, and never stored.

Every synapse from row i to column j exists with probability p, independently. Row i has a stream of random numbers of
its own, a function of (seed, i); its targets are reached by skipping over absent synapses,

    j <- j + 1 + floor(log(u) / log(1 - p)),      u uniform in (0, 1]

so that a row costs n p numbers instead of n, and the same seed gives the same graph in any order of asking, dense or
not. An area of 10^5 neurons with p = 0.05 has 5 10^8 synapses onto itself: as a list they would take 6 GB.
"""

from abc import ABC, abstractmethod

import numpy as np
from jaxtyping import Bool, Int

from neuropil.learning.assemblies import kernels

__all__ = ["Graph", "RandomGraph"]

Ids = Int[np.ndarray, "_"]


class Graph(ABC):
    """What synapses ask of the graph that they lie on."""

    rows: int
    columns: int
    p: float

    @abstractmethod
    def count(self, active: Ids) -> Int[np.ndarray, " columns"]:
        """Synapses onto every column from the active rows."""

    @abstractmethod
    def pairs(self, rows: Ids, columns: Ids) -> tuple[Ids, Ids]:
        """The synapses between some rows and some columns: row and column of each."""


class RandomGraph(Graph):
    """Directed Bernoulli graph, regenerated row by row.

    Args:
        seed: at least 0, below 2^63.
        rows: number of sources.
        columns: number of targets.
        p: probability of a synapse, in (0, 1].

    Source: procedural connectivity as in Knight & Nowotny, Nat. Comput. Sci. 1 (2021); skipping as in Batagelj &
        Brandes, Phys. Rev. E 71 (2005).
    """

    def __init__(self, seed: int, rows: int, columns: int, p: float):
        self.seed = np.uint64(seed)
        self.rows = rows
        self.columns = columns
        self.p = p
        self._active = np.empty(0, np.int64)
        self._counts = np.zeros(columns, np.int32)

    def count(self, active: Ids) -> Int[np.ndarray, " columns"]:
        """Synapses onto every column from the active rows.

        Only the rows that changed since the last call are regenerated.

        Args:
            active: rows, without repetition.
        """
        left = np.setdiff1d(self._active, active, assume_unique=True)
        entered = np.setdiff1d(active, self._active, assume_unique=True)
        if len(left) + len(entered) >= len(active):
            self._counts[:] = 0
            left, entered = left[:0], active
        for rows, step in ((left, -1), (entered, 1)):
            kernels.count_targets(self.seed, rows, self.p, step, self._counts)
        self._active = active.copy()
        return self._counts.copy()

    def pairs(self, rows: Ids, columns: Ids) -> tuple[Ids, Ids]:
        """The synapses between some rows and some columns.

        Returns:
            Row and column of each, sorted by row in the order given, then by column.
        """
        if len(rows) == 0 or len(columns) == 0:
            return np.empty(0, np.int32), np.empty(0, np.int32)
        marked = np.zeros(self.columns, bool)
        marked[columns] = True
        size = 16 + int(1.1 * self.p * len(rows) * len(columns))
        return kernels.find_pairs(self.seed, rows, self.p, marked, size)

    def matrix(self) -> Bool[np.ndarray, "rows columns"]:
        """The whole graph as a matrix."""
        matrix = np.zeros((self.rows, self.columns), bool)
        sources, targets = self.pairs(np.arange(self.rows), np.arange(self.columns))
        matrix[sources, targets] = True
        return matrix

    def in_degrees(self) -> Int[np.ndarray, " columns"]:
        """Synapses onto every column, from all rows."""
        counts = np.zeros(self.columns, np.int32)
        kernels.count_targets(self.seed, np.arange(self.rows), self.p, 1, counts)
        return counts
