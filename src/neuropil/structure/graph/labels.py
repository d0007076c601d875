"""Labels of tensor axes, and which of them must live and die together.

Every index of a labelled axis carries a label, a whole number. A label is an *atom*, or a *pair* (outer, inner) made
when an axis is reshaped: an axis of H x D entries holds the pairs of H and D labels, so that it offers two kinds of
units, whole blocks and one position of every block. An index disappears when any atom in its label is removed.

    unite(a, b)     index by index, the two labels are one
    pair ~ pair     unites the outers and the inners, if both split their axis into the same sizes; else the outers
                    of one are frozen, and it becomes its inner: 24 channels seen as 3 x 8 and as 4 x 6
    atom ~ pair     binds the atom to the pair: it is no unit of its own
    freeze(a)       nothing below these labels may be removed
    inexact(a)      removing is not the same as masking: something sums or normalises over the axis
    contracted(a)   the units meet one another in a sum of products, as queries and keys do

Edges are collected and solved together: connected components, then one round more for what the pairs of a component
imply, until nothing new is implied (first-order unification by fixed point).
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

__all__ = ["Axis", "Labels", "Solution"]

Axis = np.ndarray | None  # labels of an axis, or None: nothing there is anybody's unit
DEPTH = 12  # pairs within pairs within ...: deeper is a cycle


class Labels:
    """A store of labels and of what was said of them while a network was read."""

    def __init__(self) -> None:
        self._count = 0
        self._edges: list[tuple[np.ndarray, np.ndarray]] = []
        self._pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray, int, int]] = []
        self._frozen: list[tuple[np.ndarray, int]] = []
        self._inexact: list[tuple[np.ndarray, int]] = []
        self._contracted: list[np.ndarray] = []
        self.reasons: list[str] = []
        self._known: dict[tuple, object] = {}

    def fresh(self, size: int) -> np.ndarray:
        """Give new atoms."""
        labels = np.arange(self._count, self._count + size)
        self._count += size
        return labels

    def unite(self, a: np.ndarray, b: np.ndarray) -> None:
        """Make the labels of two axes of one size the same, index by index."""
        if a.shape != b.shape:
            raise AssertionError(f"Two axes of {len(a)} and {len(b)} entries cannot be united.")
        if a is not b and not np.array_equal(a, b):
            self._edges.append((a, b))

    def freeze(self, labels: np.ndarray, reason: str) -> None:
        """Forbid the removal of anything below these labels, and say why."""
        self._frozen.append((labels, self._reason(reason)))

    def inexact(self, labels: np.ndarray, reason: str) -> None:
        """Note that removing these differs from masking them, and say why."""
        self._inexact.append((labels, self._reason(reason)))

    def contracted(self, labels: np.ndarray) -> None:
        """Note that units meet one another in a sum of products before any parameter reads them."""
        self._contracted.append(labels)

    def pairs(self, outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
        """Label an axis that runs over (outer, inner), the inner faster."""
        key = ("pairs", outer.tobytes(), inner.tobytes())
        if key not in self._known:
            made = self.fresh(len(outer) * len(inner))
            self._pairs.append((made, np.repeat(outer, len(inner)), np.tile(inner, len(outer)), len(outer), len(inner)))
            self._known[key] = made
            self._known["split", made.tobytes(), len(outer)] = (outer, inner)
        return self._known[key]  # pyright: ignore[reportReturnType]

    def split(self, labels: np.ndarray, outer: int) -> tuple[Axis, Axis]:
        """See an axis as (outer, inner): its factors' labels; None for a factor along which the labels do not vary."""
        inner = len(labels) // outer
        if outer == 1:
            return None, labels
        if inner == 1:
            return labels, None
        key = ("split", labels.tobytes(), outer)
        if key not in self._known:
            table = labels.reshape(outer, inner)
            if (table == table[:, :1]).all():
                self._known[key] = (table[:, 0].copy(), None)
            elif (table == table[:1]).all():
                self._known[key] = (None, table[0].copy())
            else:
                factors = self.fresh(outer), self.fresh(inner)
                self.unite(labels, self.pairs(*factors))
                self._known[key] = factors
        return self._known[key]  # pyright: ignore[reportReturnType]

    def solve(self) -> "Solution":
        """Find which labels are one, which are bound to pairs, which are frozen and which inexact."""
        if not self._pairs:
            made = outer = inner = high = low = np.empty(0, dtype=np.int64)
        else:
            made, outer, inner = (np.concatenate([block[k] for block in self._pairs]) for k in range(3))
            high, low = (np.concatenate([np.full(len(block[0]), block[k]) for block in self._pairs]) for k in (3, 4))
        left = [np.asarray(a, dtype=np.int64) for a, _ in self._edges]
        right = [np.asarray(b, dtype=np.int64) for _, b in self._edges]
        live = np.ones(len(made), dtype=bool)
        while True:
            classes = self._components(left, right)
            order = np.flatnonzero(live)
            # Of a class's factorisations the one with the most outer units is the first, and stays.
            order = order[np.lexsort((-high[order], classes[made[order]]))]
            _, start, counts = np.unique(classes[made[order]], return_index=True, return_counts=True)
            first = np.repeat(order[start], counts)
            same = (high[order] == high[first]) & (low[order] == low[first])
            for k, kept in zip(order[~same], first[~same], strict=True):
                sizes = f"{high[kept]} x {low[kept]} and {high[k]} x {low[k]}"
                self.freeze(outer[k : k + 1], f"incompatible factorisations {sizes}")
            live[order[~same]] = False
            new = (classes[outer[order]] != classes[outer[first]]) | (classes[inner[order]] != classes[inner[first]])
            new &= same
            if same.all() and not new.any():
                break
            left += [outer[order[new]], inner[order[new]], made[order[~same]]]
            right += [outer[first[new]], inner[first[new]], inner[order[~same]]]
        made, outer, inner = made[live], outer[live], inner[live]
        solution = Solution(classes, list(self.reasons))
        solution.bind(classes[made], classes[outer], classes[inner])
        for labels, reason in self._frozen:
            solution.mark(solution.frozen, labels, reason)
        for labels, reason in self._inexact:
            solution.mark(solution.inexact, labels, reason)
        for labels in self._contracted:
            solution.mark(solution.contracted, labels, 0)
        solution.sink()
        return solution

    def _components(self, left: list[np.ndarray], right: list[np.ndarray]) -> np.ndarray:
        if not left:
            return np.arange(self._count)
        rows, columns = np.concatenate(left), np.concatenate(right)
        links = coo_matrix((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(self._count, self._count))
        return connected_components(links, directed=False)[1].astype(np.int64)

    def _reason(self, text: str) -> int:
        if text not in self.reasons:
            self.reasons.append(text)
        return self.reasons.index(text)


@dataclass
class Solution:
    """Classes of labels: what each label is one with, and what is said of its class.

    Attributes:
        classes: class of every label.
        reasons: texts that `frozen` and `inexact` refer to.
    """

    classes: np.ndarray
    reasons: list[str]

    def __post_init__(self) -> None:
        count = int(self.classes.max()) + 1 if len(self.classes) else 0
        self.frozen = np.full(count, -1)
        self.inexact = np.full(count, -1)
        self.contracted = np.full(count, -1)
        self.outer = np.full(count, -1)
        self.inner = np.full(count, -1)

    def bind(self, made: np.ndarray, outer: np.ndarray, inner: np.ndarray) -> None:
        """Say of which classes a pair is made; what a class holds besides changes nothing."""
        self.outer[made], self.inner[made] = outer, inner
        self._links = made, outer, inner

    def mark(self, marks: np.ndarray, labels: np.ndarray, reason: int) -> None:
        """Mark the classes of labels; the first reason stays."""
        found = np.unique(self.classes[labels])
        marks[found[marks[found] < 0]] = reason

    def sink(self) -> None:
        """Pass marks from pairs to what they are made of; a class that contains itself is frozen."""
        made, outer, inner = self._links
        for marks in (self.frozen, self.inexact, self.contracted):
            for _ in range(DEPTH):
                before = marks.copy()
                for below in (outer, inner):
                    hit = (marks[made] >= 0) & (marks[below] < 0)
                    marks[below[hit]] = marks[made[hit]]
                if np.array_equal(before, marks):
                    break
        self._cut_cycles()

    def _cut_cycles(self) -> None:
        alive = self.outer >= 0
        for _ in range(DEPTH):  # peel off pairs whose parts are all resolved
            parts = alive[self.outer.clip(0)] | alive[self.inner.clip(0)]
            rest = alive & parts
            if not rest.any() or np.array_equal(rest, alive):
                alive = rest
                break
            alive = rest
        if alive.any():
            self.reasons.append("an axis that contains itself")
            for ends in (np.flatnonzero(alive), self.outer[alive], self.inner[alive]):
                self.frozen[ends] = len(self.reasons) - 1
            self.outer[alive] = self.inner[alive] = -1

    def below(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give the unbound classes under every label of an axis: positions and classes, two arrays of one length."""
        positions, classes = np.arange(len(labels)), self.classes[labels]
        done: list[tuple[np.ndarray, np.ndarray]] = []
        while len(classes):
            bound = self.outer[classes] >= 0
            done.append((positions[~bound], classes[~bound]))
            positions, classes = positions[bound], classes[bound]
            positions = np.concatenate([positions, positions])
            classes = np.concatenate([self.outer[classes], self.inner[classes]])
        return np.concatenate([p for p, _ in done]), np.concatenate([c for _, c in done])
