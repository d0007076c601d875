"""Rules by which two populations are connected.

    connectivity = FixedIndegree(80).build(n_pre, n_post, generator)

Every rule makes a `SparseConnectivity` out of a seed that it draws from the generator; each row (for in-degrees each
column) has a stream of random numbers of its own, so the same seed gives the same synapses in any order of making. With
`same=True` the two populations are one, and a neuron synapses onto itself only where the rule says so.

    FixedProbability        every pair with probability p                    degrees are binomial
    FixedIndegree           k sources for every target                       what Brunel (2000) assumes
    FixedOutdegree          k targets for every source
    FixedTotal              so many synapses, uniformly over all pairs
    OneToOne, AllToAll, Explicit
    DistanceDependent       P = C exp(-(D / lam)^2)                          Maass, Natschlaeger & Markram (2002)
    JustInTime              FixedProbability whose rows are made again whenever they are needed, and never stored

Memory peaks at the size of the result plus a few numbers per neuron: degrees are counted first, then the same draws are
repeated and written where they belong.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.draws import seed_from
from neuropil.spiking.kernels import connectivity as kernels
from neuropil.spiking.network.connectivity import SparseConnectivity, check_size, check_synapses

__all__ = [
    "AllToAll",
    "ConnectionRule",
    "DistanceDependent",
    "Explicit",
    "FixedIndegree",
    "FixedOutdegree",
    "FixedProbability",
    "FixedTotal",
    "JustInTime",
    "JustInTimeRows",
    "OneToOne",
]

Generator = torch.Generator | None


class ConnectionRule(ABC):
    """How two populations are connected. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> Any:
        """Make the synapses.

        Args:
            n_pre: neurons that send.
            n_post: neurons that receive.
            generator: source of the randomness; None is one of seed 0.
            same: whether the two populations are one and the same.

        Returns:
            A `SparseConnectivity`; of `JustInTime`, its `JustInTimeRows`.

        Raises:
            ValueError: if the rule does not fit the sizes, or makes more than 2^31 - 1 synapses.
        """


def _check_sizes(n_pre: int, n_post: int, same: bool) -> None:
    check_size("n_pre", n_pre)
    check_size("n_post", n_post)
    if same and n_pre != n_post:
        raise ValueError(f"same=True says that the populations are one, but n_pre is {n_pre} and n_post {n_post}.")


def _check_probability(name: str, p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {p}.")


def _begins(counts: np.ndarray) -> np.ndarray:
    """Where rows of so many synapses begin."""
    begins = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=begins[1:])
    check_synapses(int(begins[-1]))
    return begins


@dataclass(frozen=True)
class FixedProbability(ConnectionRule):
    """Every pair is joined with probability p, independently.

    Args:
        p: probability of a synapse, in [0, 1].
        self_connections: whether a neuron may synapse onto itself.

    Source: skips between synapses as in Batagelj & Brandes, Phys. Rev. E 71 (2005).
    """

    p: float
    self_connections: bool = False

    def __post_init__(self) -> None:
        _check_probability("p", self.p)

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> SparseConnectivity:
        """Make the synapses; see `ConnectionRule.build`."""
        return JustInTime(self.p, None, self.self_connections).build(n_pre, n_post, generator, same=same).materialise()


@dataclass(frozen=True)
class _FixedDegree(ConnectionRule):
    k: int
    self_connections: bool = False
    multapses: bool = False

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k must be at least 0, got {self.k}.")

    def _check(self, drawers: int, drawn: int, ends: str) -> None:
        """Whether each of `drawers` can draw k of `drawn` neurons; `ends` names these."""
        if drawers and self.k > drawn and (not self.multapses or drawn <= 0):
            advice = ": lower k or allow multapses." if drawn > 0 else "."
            raise ValueError(f"k = {self.k}, but each neuron has only {max(drawn, 0)} possible {ends}{advice}")
        check_synapses(self.k * drawers)


@dataclass(frozen=True)
class FixedIndegree(_FixedDegree):
    """Every target has k sources, drawn uniformly.

    Args:
        k: synapses onto every target, at least 0.
        self_connections: whether a neuron may synapse onto itself.
        multapses: whether a source may be drawn again, as a parallel synapse.
    """

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> SparseConnectivity:
        """Make the synapses; see `ConnectionRule.build`."""
        _check_sizes(n_pre, n_post, same)
        without_self = same and not self.self_connections
        self._check(n_post, n_pre - without_self, "sources")
        draws = seed_from(generator), self.k, n_post, without_self, not self.multapses
        counts = np.zeros(n_pre, np.int64)
        kernels.indegree_counts(*draws, counts)
        begins = _begins(counts)
        targets = np.empty(begins[-1], np.int32)
        kernels.indegree_fill(*draws, begins[:-1].copy(), targets)
        return SparseConnectivity(n_pre, n_post, begins, targets)


@dataclass(frozen=True)
class FixedOutdegree(_FixedDegree):
    """Every source has k targets, drawn uniformly.

    Args:
        k: synapses of every source, at least 0.
        self_connections: whether a neuron may synapse onto itself.
        multapses: whether a target may be drawn again, as a parallel synapse.
    """

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> SparseConnectivity:
        """Make the synapses; see `ConnectionRule.build`."""
        _check_sizes(n_pre, n_post, same)
        without_self = same and not self.self_connections
        self._check(n_pre, n_post - without_self, "targets")
        targets = np.empty((n_pre, self.k), np.int32)
        kernels.outdegree_fill(seed_from(generator), n_post, without_self, not self.multapses, targets)
        return SparseConnectivity(n_pre, n_post, np.arange(n_pre + 1) * self.k, targets.reshape(-1))


@dataclass(frozen=True)
class FixedTotal(ConnectionRule):
    """So many synapses, uniformly over all pairs of neurons. Memory peaks at some ten times the result.

    Args:
        n: number of synapses, at least 0.
        self_connections: whether a neuron may synapse onto itself.
        multapses: whether a pair may be drawn again, as a parallel synapse.
    """

    n: int
    self_connections: bool = False
    multapses: bool = False

    def __post_init__(self) -> None:
        if self.n < 0:
            raise ValueError(f"n must be at least 0, got {self.n}.")

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> SparseConnectivity:
        """Make the synapses; see `ConnectionRule.build`."""
        _check_sizes(n_pre, n_post, same)
        check_synapses(self.n)
        without_self = same and not self.self_connections
        pairs = n_pre * (n_post - without_self) if n_pre else 0
        if self.n > pairs and (not self.multapses or pairs == 0):
            raise ValueError(f"n = {self.n}, but the populations have only {pairs} pairs.")
        seed = seed_from(generator)

        def draw(first: int, number: int) -> np.ndarray:
            codes = np.empty(number, np.int64)
            kernels.random_pairs(seed, first, n_pre, n_post, without_self, codes)
            return codes

        if self.multapses:
            codes = np.sort(draw(0, self.n))
        elif 2 * self.n <= pairs:
            codes = self._distinct(draw, self.n)
        else:  # drawing the pairs that are left out is quicker
            chosen = np.ones(n_pre * n_post, bool)
            if without_self:
                chosen[:: n_post + 1] = False
            chosen[self._distinct(draw, pairs - self.n)] = False
            codes = np.flatnonzero(chosen)
        counts = np.bincount(codes // max(n_post, 1), minlength=n_pre)
        return SparseConnectivity(n_pre, n_post, _begins(counts), codes % max(n_post, 1))

    @staticmethod
    def _distinct(draw: Any, number: int) -> np.ndarray:
        """The first so many different pairs of a sequence of draws, sorted: a uniform subset."""
        codes, drawn = np.empty(0, np.int64), 0
        while codes.size < number:
            missing = number - codes.size
            codes = np.unique(np.concatenate((codes, draw(drawn, missing))))
            drawn += missing
        return codes


@dataclass(frozen=True)
class OneToOne(ConnectionRule):
    """Neuron i synapses onto neuron i: the populations have one size. Of one population these are self connections."""

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> SparseConnectivity:
        """Make the synapses; see `ConnectionRule.build`."""
        _check_sizes(n_pre, n_post, same)
        if n_pre != n_post:
            raise ValueError(f"OneToOne needs populations of one size, got {n_pre} and {n_post}.")
        return SparseConnectivity(n_pre, n_post, np.arange(n_pre + 1), np.arange(n_post, dtype=np.int32))


@dataclass(frozen=True)
class AllToAll(ConnectionRule):
    """Every pair is joined.

    Args:
        self_connections: whether neurons synapse onto themselves.
    """

    self_connections: bool = False

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> SparseConnectivity:
        """Make the synapses; see `ConnectionRule.build`."""
        _check_sizes(n_pre, n_post, same)
        check_synapses(n_pre * (n_post - (same and not self.self_connections)))
        return JustInTimeRows(n_pre, n_post, 1.0, np.uint64(0), same and not self.self_connections).materialise()


@dataclass(frozen=True, eq=False)
class Explicit(ConnectionRule):
    """Synapses that are given; self connections among them are kept.

    Args:
        synapses: a `SparseConnectivity`; a sparse matrix of scipy; a matrix (n_pre, n_post) of booleans or real numbers
            whose nonzero entries are synapses; or integers (2, edges), an edge index of sources and targets. Weights
            follow the order that `SparseConnectivity.from_dense`, `from_scipy` and `edge_order` say.
    """

    synapses: Any

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> SparseConnectivity:
        """Return the synapses, if they are of these sizes; see `ConnectionRule.build`."""
        _check_sizes(n_pre, n_post, same)
        given = self.synapses
        if isinstance(given, (Tensor, np.ndarray)):
            array = given.detach().cpu().numpy() if isinstance(given, Tensor) else given
            if np.issubdtype(array.dtype, np.integer):
                if array.ndim != 2 or len(array) != 2:
                    raise ValueError(
                        f"synapses of integers are an edge index of shape (2, edges), got {array.shape}; "
                        "a matrix is given as booleans or real numbers."
                    )
                return SparseConnectivity.from_edges(array[0], array[1], n_pre, n_post)
            given = SparseConnectivity.from_dense(array)
        elif not isinstance(given, SparseConnectivity):
            given = SparseConnectivity.from_scipy(given)
        if (given.n_pre, given.n_post) != (n_pre, n_post):
            raise ValueError(
                f"synapses join {given.n_pre} with {given.n_post} neurons; the populations have {n_pre} and {n_post}."
            )
        return given


@dataclass(frozen=True, eq=False)
class DistanceDependent(ConnectionRule):
    """Pairs are joined with a probability that falls with their distance, P = C exp(-(D / lam)^2). Time n_pre n_post.

    Args:
        positions_pre: where the sources lie, (n_pre, axes).
        C: probability at distance 0, in [0, 1]; or a table (types of source, types of target) of it.
        lam: length constant in the unit of the positions, positive.
        positions_post: where the targets lie, (n_post, axes); by default where the sources do.
        types_pre: which row of the table each source reads, (n_pre,).
        types_post: which column each target reads, (n_post,); by default the types of the sources.
        self_connections: whether a neuron may synapse onto itself.

    Source: Maass, Natschlaeger & Markram, Neural Comput. 14 (2002), section 3.
    """

    positions_pre: Float[Tensor, "n_pre axes"]
    C: float | Float[Tensor, "types_pre types_post"]
    lam: float
    positions_post: Float[Tensor, "n_post _"] | None = None
    types_pre: Int[Tensor, " n_pre"] | None = None
    types_post: Int[Tensor, " n_post"] | None = None
    self_connections: bool = False

    def __post_init__(self) -> None:
        if not (self.lam > 0.0 and math.isfinite(self.lam)):
            raise ValueError(f"lam must be positive and finite, got {self.lam}.")
        table = torch.as_tensor(self.C)
        if not bool(((table >= 0.0) & (table <= 1.0)).all()):
            raise ValueError(f"C must lie in [0, 1], got {self.C}.")
        if table.ndim and self.types_pre is None:
            raise ValueError("A table C needs types_pre, the row of the table for every source.")
        if not table.ndim and not (self.types_pre is None and self.types_post is None):
            raise ValueError("types_pre and types_post choose from a table, but C is a number.")
        for name in ("positions_pre", "positions_post"):
            positions = getattr(self, name)
            if positions is not None and not bool(positions.isfinite().all()):
                raise ValueError(f"{name} must be finite.")

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> SparseConnectivity:
        """Make the synapses; see `ConnectionRule.build`."""
        _check_sizes(n_pre, n_post, same)
        table = torch.as_tensor(self.C, dtype=torch.float64)
        table = table if table.ndim else table.reshape(1, 1)
        targets_at = self.positions_pre if self.positions_post is None else self.positions_post
        types_post = self.types_pre if self.types_post is None else self.types_post
        pre, post = self._places("pre", self.positions_pre, n_pre), self._places("post", targets_at, n_post)
        if pre.shape[1] != post.shape[1]:
            raise ValueError(f"positions have {pre.shape[1]} axes before and {post.shape[1]} after the synapse.")
        type_pre = self._types("types_pre", self.types_pre, n_pre, table.shape[0])
        type_post = self._types("types_post", types_post, n_post, table.shape[1])
        without_self = same and not self.self_connections
        pairs = pre, post, table.cpu().numpy(), type_pre, type_post, self.lam**-2, without_self
        draws = seed_from(generator), *pairs
        counts = np.zeros(n_pre, np.int64)
        kernels.distance_counts(*draws, counts)
        begins = _begins(counts)
        targets = np.empty(begins[-1], np.int32)
        kernels.distance_fill(*draws, begins, targets)
        return SparseConnectivity(n_pre, n_post, begins, targets)

    @staticmethod
    def _places(side: str, positions: Tensor, n: int) -> np.ndarray:
        if len(positions) != n:
            raise ValueError(f"positions_{side} are of {len(positions)} neurons, but n_{side} is {n}.")
        return np.ascontiguousarray(positions.detach().cpu().numpy(), np.float64)

    @staticmethod
    def _types(name: str, types: Tensor | None, n: int, number: int) -> np.ndarray:
        if types is None:
            return np.zeros(n, np.int64)
        if types.shape != (n,) or (n and not 0 <= int(types.min()) <= int(types.max()) < number):
            raise ValueError(f"{name} must be {n} integers from 0 to {number - 1}, as C has entries.")
        return np.ascontiguousarray(types.cpu().numpy(), np.int64)


@dataclass(frozen=True)
class JustInTimeRows:
    """A Bernoulli matrix whose rows are made whenever they are asked for: it takes no memory.

    Attributes:
        n_pre: neurons that send.
        n_post: neurons that receive.
        p: probability of a synapse.
        seed: of all rows; with `scale` it is what `kernels.connectivity.row_start` and `row_next` ask for.
        without_self: whether the synapse from a neuron onto itself is left out.
    """

    n_pre: int
    n_post: int
    p: float
    seed: np.uint64
    without_self: bool = False

    @property
    def scale(self) -> float:
        """The factor of geometric skips, 1 / log(1 - p)."""
        return kernels.skip_scale(self.p)

    def row(self, i: int) -> Int[np.ndarray, " targets"]:
        """The targets of neuron i, ascending, int32."""
        if not 0 <= i < self.n_pre:
            raise ValueError(f"i must lie within 0 to {self.n_pre - 1}, got {i}.")
        return self._rows(i, 1)[1]

    def materialise(self) -> SparseConnectivity:
        """The same matrix, stored."""
        return SparseConnectivity(self.n_pre, self.n_post, *self._rows(0, self.n_pre))

    def _rows(self, first: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Where some rows begin, and their targets."""
        args = self.seed, self.scale, self.n_post, self.without_self, first
        counts = np.empty(number, np.int64)
        kernels.bernoulli_counts(*args, counts)
        begins = _begins(counts)
        targets = np.empty(begins[-1], np.int32)
        kernels.bernoulli_fill(*args, begins[:-1], targets)
        return begins, targets


@dataclass(frozen=True)
class JustInTime(ConnectionRule):
    """Every pair is joined with probability p, and rows are made again whenever they are needed: memory O(1).

    Synapses that are not stored have no weights of their own.

    Args:
        p: probability of a synapse, in [0, 1].
        seed: of all rows, from 0 to 2^63 - 1; None draws it from the generator.
        self_connections: whether a neuron may synapse onto itself.

    Source: procedural connectivity as in Knight & Nowotny, Nat. Comput. Sci. 1 (2021).
    """

    p: float
    seed: int | None = None
    self_connections: bool = False

    def __post_init__(self) -> None:
        _check_probability("p", self.p)
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie within 0 to 2^63 - 1, got {self.seed}.")

    def build(self, n_pre: int, n_post: int, generator: Generator = None, *, same: bool = False) -> JustInTimeRows:
        """Return the rows, unmade; see `ConnectionRule.build`."""
        _check_sizes(n_pre, n_post, same)
        seed = seed_from(generator) if self.seed is None else np.uint64(self.seed)
        return JustInTimeRows(n_pre, n_post, self.p, seed, same and not self.self_connections)
