"""Coordinate ascent over the orders of units: one group at a time is put where it fits best, all others held.

    f(P) = sum_w <A_w, P(B)_w>                            w the parameters that groups of units touch

of one group is linear in its order, f = <M, P> + constant, so that its best order is a linear assignment:

    M_ij = sum over (w, axis) of the group <A's rows of unit i, B's rows of unit j>

with the present order of all groups applied to B. Where a group lies on several axes of one tensor (a recurrent weight,
W -> P W P^T), f is quadratic in its order and M its slope only. There an assignment counts if f itself has risen; else
the best exchange of two units is made, whose gain is known exactly:

    gain_rs = M_rs + M_sr - M_rr - M_ss + q^A_rs q^B_rs,         q_rs = w_rr + w_ss - w_rs - w_sr

So f never falls, whatever the network. (Ainsworth et al. 2022, algorithm 1; the exchanges are an addition of ours.)
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.graph.units import Member, UnitGroup
from neuropil.structure.surgery.permuting import permuted
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.structure.weightspace.states import Weights, check_alike, check_finite, named_tensors

__all__ = ["Ascent", "assigned", "counted", "movable", "rows_first"]

TOLERANCE = 1e-12  # of the largest possible objective: below it, a rise is rounding
STATISTICS = ("running_mean", "running_var")


class Ascent:
    """The state of a coordinate ascent: the target A, and B in the present order of its units.

    Args:
        a: weights to be met, a network or a state dict.
        b: weights whose units are reordered; neither is changed.
        graph: their units.
        start: orders to begin with; groups that it does not name begin as they are.
        groups: names of those that may move; None: all that can be permuted.

    Attributes:
        a: parameters of A that count, float64.
        b: those of B in the present order.

    Raises:
        ValueError: if names or shapes differ, a weight is not finite, or no group can be permuted.
    """

    def __init__(
        self,
        a: Weights,
        b: Weights,
        graph: UnitGraph,
        start: Mapping[str, Tensor] | None = None,
        groups: Iterable[str] | None = None,
    ):
        free = {group.name: group for group in movable(graph)}
        self.graph = graph
        self.groups = free if groups is None else {name: free[name] for name in groups}
        names = counted((a, b), graph)
        first, second = _checked(a, b)
        _require_members(names, first)
        self.a = {name: first[name].double() for name in names}
        self.b = {name: second[name].to(self.a[name].device).double() for name in names}
        self.order = Permutation.identity(graph)
        if start:
            self.move(Permutation(start, graph))

    @property
    def objective(self) -> float:
        """f: the inner product of A and B in its present order, over the parameters that groups touch."""
        return sum(float((self.a[name] * self.b[name]).sum()) for name in self.a)

    @property
    def bound(self) -> float:
        """What f cannot exceed, and reaches only where B in its present order is A: (|A|^2 + |B|^2) / 2."""
        return sum(float(x.square().sum()) for side in (self.a, self.b) for x in side.values()) / 2

    def met(self) -> bool:
        """Tell whether B in its present order is A, but for rounding."""
        return self.bound - self.objective <= TOLERANCE * self.bound

    def aim(self, a: Mapping[str, Tensor]) -> None:
        """Change the target: new values of some of its parameters."""
        for name in self.a:
            if name in a:
                self.a[name] = a[name].detach().to(self.a[name])

    def move(self, relative: Mapping[str, Tensor]) -> None:
        """Reorder B further, from its present order."""
        self.b = permuted(self.b, relative, self.graph)
        self.order = Permutation(dict(relative), self.graph) @ self.order

    def climb(self, max_iter: int, generator: torch.Generator | None = None) -> bool:
        """Sweep over the groups until none moves; tell whether that came about within the allowed sweeps."""
        return any(not self.sweep(generator) for _ in range(max_iter))

    def sweep(self, generator: torch.Generator | None = None) -> bool:
        """Visit every group once, in the graph's order or a random one; tell whether one moved."""
        names = list(self.groups)
        if generator is not None:
            shuffled = torch.randperm(len(names), generator=generator, device=generator.device)
            names = [names[k] for k in shuffled.tolist()]
        tolerance = TOLERANCE * self.bound
        return max([self.visit(name, tolerance) for name in names])  # all of them, whatever the first did

    def visit(self, name: str, tolerance: float) -> bool:
        """Put the units of one group where they fit best; tell whether they moved."""
        group = self.groups[name]
        folded = _folded(group, self.a)
        table = self.table(group)
        order = assigned(table)
        gain = float(table.gather(1, order[:, None].to(table.device)).sum() - table.trace())
        if not folded:
            if gain > tolerance:
                self.move({name: order})
            return gain > tolerance
        if gain > tolerance and self._rise(group, order) > tolerance:
            self.move({name: order})
            return True
        return self._exchange(group, folded, tolerance)

    def table(self, group: UnitGroup) -> Float[Tensor, "units units"]:
        """M: what it is worth to put B's unit j, in the present order, to the place of unit i."""
        pairs = [
            (rows_first(self.a[m.parameter], m), rows_first(self.b[m.parameter], m))
            for m in group.members
            if m.parameter in self.a
        ]
        return sum(
            (x.flatten(1) @ y.flatten(1).T for x, y in pairs[1:]), pairs[0][0].flatten(1) @ pairs[0][1].flatten(1).T
        )

    def _rise(self, group: UnitGroup, relative: Tensor) -> float:
        touched = {m.parameter: self.b[m.parameter] for m in group.members if m.parameter in self.b}
        after = permuted(touched, {group.name: relative}, self.graph)
        return sum(float((self.a[name] * (after[name] - before)).sum()) for name, before in touched.items())

    def _exchange(self, group: UnitGroup, folded: Sequence[tuple[Member, Member]], tolerance: float) -> bool:
        """Exchange pairs of units, the best first, while f rises; at most as often as there are units."""
        moved = False
        for _ in range(group.size):
            table = self.table(group)
            own = table.diagonal()
            gains = table + table.T - own[:, None] - own
            for first, second in folded:
                gains += _crossed(self.a, first, second, self.b)
            gains = gains.triu(1)
            best = int(gains.argmax())
            i, j = divmod(best, group.size)
            swap = torch.arange(group.size)
            swap[[i, j]] = swap[[j, i]]
            # A group on three axes of a tensor has gains of higher order: f itself is the judge.
            if float(gains.flatten()[best]) <= tolerance or self._rise(group, swap) <= tolerance:
                break
            self.move({group.name: swap})
            moved = True
        return moved


def assigned(table: Float[Tensor, "units units"]) -> Tensor:
    """Give the order of columns that makes the diagonal's sum largest."""
    _, columns = linear_sum_assignment(table.detach().cpu().numpy(), maximize=True)
    return torch.from_numpy(np.asarray(columns, dtype=np.int64))


def movable(graph: UnitGraph) -> list[UnitGroup]:
    """Give the groups whose order may change.

    Raises:
        ValueError: if there are none.
    """
    free = [group for group in graph if group.permutable]
    if not free:
        reasons = sorted({f"{group.name} ({group.reason})" for group in graph})
        raise ValueError(f"No group of units can be permuted, so there is nothing to match: {', '.join(reasons)}.")
    return free


def counted(weights: Sequence[Weights], graph: UnitGraph) -> list[str]:
    """Name the parameters that a matching compares: those of groups that can be permuted, without buffers.

    Of state dicts, which do not tell buffers from parameters, running statistics are known by their names.
    """
    touched = dict.fromkeys(m.parameter for group in movable(graph) for m in group.members)
    buffers = {name for one in weights if isinstance(one, nn.Module) for name, _ in one.named_buffers()}
    return [name for name in touched if name not in buffers and name.rsplit(".", 1)[-1] not in STATISTICS]


def rows_first(tensor: Tensor, member: Member) -> Float[Tensor, "units rows *rest"]:
    """Give a member's rows by unit: its axis first, all other axes after it."""
    return tensor.movedim(member.axis, 0)[member.index.to(tensor.device)]


def _checked(a: Weights, b: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    first, second = named_tensors(a), named_tensors(b)
    check_alike(first, second)
    check_finite(first, "a")
    check_finite(second, "b")
    return first, second


def _require_members(names: Iterable[str], tensors: Mapping[str, Tensor]) -> None:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"The graph is of another network: a and b have no {', '.join(missing[:6])}.")


def _folded(group: UnitGroup, tensors: Mapping[str, Tensor]) -> list[tuple[Member, Member]]:
    """Pairs of axes of one tensor that the group lies on both of."""
    members = [m for m in group.members if m.parameter in tensors]
    return list(_pairs(members))


def _pairs(members: Sequence[Member]) -> Iterator[tuple[Member, Member]]:
    for k, first in enumerate(members):
        for second in members[k + 1 :]:
            if first.parameter == second.parameter:
                yield first, second


def _crossed(a: Mapping[str, Tensor], first: Member, second: Member, b: Mapping[str, Tensor]) -> Float[Tensor, "n n"]:
    """q^A q^B for every two units, summed over their rows and all other axes."""
    product = None
    for side in (a, b):
        tensor = side[first.parameter].movedim((first.axis, second.axis), (0, 1))
        units = len(first.index)
        one, two = first.index.flatten().to(tensor.device), second.index.flatten().to(tensor.device)
        block = tensor[one][:, two].reshape(units, first.index.shape[1], units, second.index.shape[1], -1)
        block = block.transpose(1, 2).flatten(2)  # (unit, unit, entries)
        own = block.diagonal(dim1=0, dim2=1).T
        q = own[:, None] + own[None] - block - block.transpose(0, 1)
        product = q if product is None else product * q
    return product.sum(-1)  # pyright: ignore[reportOptionalMemberAccess]
