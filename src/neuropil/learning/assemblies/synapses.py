"""The plastic synapses from one source to one area, as a matrix or as a list of those that can have changed.

Both give the same weights. The list rests on what every rule of `plasticity` has in common: synapses onto a neuron that
never fired keep their first weight, and all synapses onto neuron j from sources that never fired share one weight s_j,
because they share their history. So it is enough to store

    w_ij    where i has fired and j has fired        s_j    for every neuron j        nothing else

and the graph itself is asked for the others: an input from them is s_j times a number of synapses.
"""

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.learning.assemblies.graph import Graph, RandomGraph
from neuropil.learning.plasticity import PlasticityRule, Traces

__all__ = ["DenseSynapses", "SparseSynapses", "Synapses"]

Ids = Int[Tensor, "_"]


class Synapses(ABC):
    """Synapses from the rows of a graph to its columns.

    Args:
        graph: which synapses exist.
        rule: how they change.
        initial_weight: of all of them.
        dtype: of the weights.
    """

    def __init__(self, graph: Graph, rule: PlasticityRule, initial_weight: float, dtype: torch.dtype):
        self.graph = graph
        self.rule = rule
        self.initial_weight = initial_weight
        self.dtype = dtype
        self.fired = torch.zeros(graph.columns, dtype=torch.bool)
        self.traces = rule.start(torch.zeros(graph.rows, dtype=dtype), torch.zeros(graph.columns, dtype=dtype))

    @abstractmethod
    def drive(self, active: Ids) -> Float[Tensor, " columns"]:
        """Input of every column from the rows that fire."""

    def learn(self, pre: Ids, post: Ids, *, open: bool = True) -> None:
        """Change the weights after a step.

        Args:
            pre: rows that fired at t.
            post: columns that fire at t+1.
            open: whether the synapses transmitted in this step; if not, only the traces go on.
        """
        x, y = self.traces.pre.new_zeros(self.graph.rows), self.traces.post.new_zeros(self.graph.columns)
        x[pre] = 1
        y[post] = 1
        self._admit(post[~self.fired[post]])
        self.fired[post] = True
        if open:
            self._change(x, y)
        self.traces = self.rule.advance(self.traces, x, y)

    def _admit(self, new: Ids) -> None:  # noqa: B027 - a matrix has room for all
        """Make room for columns that fire for the first time."""

    @abstractmethod
    def _change(self, x: Tensor, y: Tensor) -> None: ...

    def rest(self) -> None:
        """Forget spikes, not weights."""
        self.traces = self.rule.rest(self.traces)

    @abstractmethod
    def sums(self) -> Float[Tensor, " columns"]:
        """Sum of the weights onto every column."""

    @abstractmethod
    def scale(self, factors: Float[Tensor, " columns"]) -> None:
        """Multiply the weights onto every column."""

    @abstractmethod
    def matrix(self) -> Float[Tensor, "rows columns"]:
        """All weights, absent synapses 0: for looking, at small sizes."""

    @abstractmethod
    def largest(self) -> float:
        """Largest weight of a synapse between neurons that fired; the first weight if there is none."""

    @property
    @abstractmethod
    def stored_bytes(self) -> int:
        """Memory of weights, masks, indices and traces."""


class DenseSynapses(Synapses):
    """A matrix of weights and a mask: the plain form, for small areas."""

    def __init__(self, graph: RandomGraph, rule: PlasticityRule, initial_weight: float, dtype: torch.dtype):
        super().__init__(graph, rule, initial_weight, dtype)
        self.mask = torch.from_numpy(graph.matrix())
        self.weights = initial_weight * self.mask.to(dtype)

    def drive(self, active: Ids) -> Float[Tensor, " columns"]:
        """Input of every column from the rows that fire."""
        return self.weights[active].sum(0)

    def _change(self, x: Tensor, y: Tensor) -> None:
        columns = self.fired.nonzero()[:, 0]
        seen = Traces(self.traces.pre[:, None], self.traces.post[columns], self.traces.last[columns])
        changed = self.rule.update(self.weights[:, columns], x[:, None], y[columns], seen)
        self.weights[:, columns] = torch.where(self.mask[:, columns], changed, 0.0)

    def sums(self) -> Float[Tensor, " columns"]:
        """Sum of the weights onto every column."""
        return self.weights.sum(0)

    def scale(self, factors: Float[Tensor, " columns"]) -> None:
        """Multiply the weights onto every column."""
        self.weights *= factors

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """All weights, absent synapses 0."""
        return self.weights.clone()

    def largest(self) -> float:
        """Largest weight onto a neuron that fired; the first weight if there is none."""
        weights = self.weights[:, self.fired]
        return float(weights.max()) if weights.numel() else self.initial_weight

    @property
    def stored_bytes(self) -> int:
        """Memory of weights, masks and traces."""
        return _bytes(self.weights, self.mask, self.fired, *self.traces)


class SparseSynapses(Synapses):
    """A list of the synapses between neurons that fired, and one weight a column for all others."""

    def __init__(self, graph: Graph, rule: PlasticityRule, initial_weight: float, dtype: torch.dtype):
        super().__init__(graph, rule, initial_weight, dtype)
        self.sent = torch.zeros(graph.rows, dtype=torch.bool)
        self.silent = torch.full((graph.columns,), initial_weight, dtype=dtype)
        self.sources, self.targets = torch.empty(0, dtype=torch.int32), torch.empty(0, dtype=torch.int32)
        self.weights = torch.empty(0, dtype=dtype)

    def drive(self, active: Ids) -> Float[Tensor, " columns"]:
        """Input of every column from the rows that fire."""
        self._fit()
        # First the count: a lazy graph draws the synapses of sources that are new to it.
        inputs = self.silent * torch.from_numpy(self.graph.count(active.numpy()))
        self._add(active[~self.sent[active]], self.fired.nonzero()[:, 0])
        self.sent[active] = True
        firing = torch.zeros_like(self.sent)
        firing[active] = True
        now = firing[self.sources]
        changed = torch.zeros_like(inputs).index_add_(0, self.targets[now], self.weights[now])
        return torch.where(self.fired, changed, inputs)

    def _admit(self, new: Ids) -> None:
        self._add(self.sent.nonzero()[:, 0], new)

    def _change(self, x: Tensor, y: Tensor) -> None:
        pre_trace, post_trace, last = self.traces
        seen = Traces(pre_trace[self.sources], post_trace[self.targets], last[self.targets])
        self.weights = self.rule.update(self.weights, x[self.sources], y[self.targets], seen)
        columns = self.fired.nonzero()[:, 0]
        never = Traces(x.new_zeros(()), post_trace[columns], last[columns])
        self.silent[columns] = self.rule.update(self.silent[columns], x.new_zeros(()), y[columns], never)

    def learn(self, pre: Ids, post: Ids, *, open: bool = True) -> None:
        """Change the weights after a step; as `Synapses.learn`."""
        self._fit()
        super().learn(pre, post, open=open)

    def sums(self) -> Float[Tensor, " columns"]:
        """Sum of the weights onto every column."""
        if not isinstance(self.graph, RandomGraph):
            raise ValueError("Sums over all weights need a graph that is wholly drawn, which lazy storage never has.")
        stored = torch.zeros_like(self.silent).index_add_(0, self.targets, self.weights)
        listed = torch.bincount(self.targets, minlength=self.graph.columns)
        return stored + self.silent * (torch.from_numpy(self.graph.in_degrees()) - listed)

    def scale(self, factors: Float[Tensor, " columns"]) -> None:
        """Multiply the weights onto every column."""
        self.weights *= factors[self.targets]
        self.silent *= factors

    def matrix(self) -> Float[Tensor, "rows columns"]:
        """All weights, absent synapses 0."""
        self._fit()
        rows, columns = np.arange(self.graph.rows), np.arange(self.graph.columns)
        sources, targets = (torch.from_numpy(ids).long() for ids in self.graph.pairs(rows, columns))
        matrix = torch.zeros(self.graph.rows, self.graph.columns, dtype=self.dtype)
        matrix[sources, targets] = self.silent[targets]
        matrix[self.sources.long(), self.targets.long()] = self.weights
        return matrix

    def largest(self) -> float:
        """Largest weight of a synapse between neurons that fired; the first weight if there is none."""
        return float(self.weights.max()) if len(self.weights) else self.initial_weight

    @property
    def stored_bytes(self) -> int:
        """Memory of weights, indices and traces."""
        return _bytes(self.weights, self.sources, self.targets, self.silent, self.sent, self.fired, *self.traces)

    def _add(self, rows: Ids, columns: Ids) -> None:
        """List the synapses between some rows and some columns."""
        sources, targets = (torch.from_numpy(ids) for ids in self.graph.pairs(rows.numpy(), columns.numpy()))
        self.sources = torch.cat([self.sources, sources])
        self.targets = torch.cat([self.targets, targets])
        self.weights = torch.cat([self.weights, self.silent[targets]])

    def _fit(self) -> None:
        """Make room for neurons that a lazy graph has met since: they have not fired."""
        self.sent = _longer(self.sent, self.graph.rows, 0)
        self.fired = _longer(self.fired, self.graph.columns, 0)
        self.silent = _longer(self.silent, self.graph.columns, self.initial_weight)
        pre, post, last = self.traces
        columns = self.graph.columns
        self.traces = Traces(_longer(pre, self.graph.rows, 0), _longer(post, columns, 0), _longer(last, columns, 0))


def _longer(array: Tensor, size: int, value: float) -> Tensor:
    missing = size - len(array)
    return torch.cat([array, array.new_full((missing,), value)]) if missing else array


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
