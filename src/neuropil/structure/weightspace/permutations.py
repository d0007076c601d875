"""An order of units for every group of a network: another place in weight space, the same function.

    P.apply(net)      unit k of a group becomes what unit P[group][k] was
    P.inverse()       takes it back
    (P @ Q)           first Q, then P: (P @ Q)[group] = Q[group][P[group]]

Groups that an order does not name stay as they are.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import overload

import torch
from jaxtyping import Int
from torch import Tensor, nn

from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.surgery.permuting import check_permutation, permute, permuted
from neuropil.structure.weightspace.states import Weights

__all__ = ["Permutation"]


class Permutation(Mapping[str, Tensor]):
    """Orders of units, by group.

    Args:
        order: by group, a permutation of its units; kept on the CPU, as copies.
        graph: the units of the networks that it is for.

    Raises:
        KeyError: if there is no such group.
        ValueError: if a group cannot be permuted, or an order is no permutation of its units.
    """

    def __init__(self, order: Mapping[str, Int[Tensor, "units"]], graph: UnitGraph):
        check_permutation(graph, order)
        self._order = {name: index.detach().cpu().long().clone() for name, index in order.items()}
        self.graph = graph

    @classmethod
    def identity(cls, graph: UnitGraph) -> "Permutation":
        """Leave every group of a graph that can be permuted as it is."""
        return cls({group.name: torch.arange(group.size) for group in graph if group.permutable}, graph)

    @classmethod
    def random(cls, graph: UnitGraph, generator: torch.Generator) -> "Permutation":
        """Draw an order of every group of a graph that can be permuted, all orders equally likely."""
        drawn = {
            group.name: torch.randperm(group.size, generator=generator, device=generator.device)
            for group in graph
            if group.permutable
        }
        return cls(drawn, graph)

    def __getitem__(self, group: str) -> Tensor:
        return self._order[group]

    def __iter__(self) -> Iterator[str]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)

    def __eq__(self, other: object) -> bool:
        """Tell whether two move the same units, named or not, to the same places."""
        if not isinstance(other, Permutation):
            return NotImplemented
        return self._moves() == other._moves()

    def __hash__(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - mappings have none
        return hash(frozenset(self._moves().items()))

    def __repr__(self) -> str:
        units = sum(len(index) for index in self.values())
        return f"Permutation({len(self)} groups, {self.moved()} of {units} units moved)"

    def _moves(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(index.tolist()) for name, index in self.items() if _moved(index)}

    def moved(self) -> int:
        """Count the units that change their place."""
        return sum(map(_moved, self.values()))

    def inverse(self) -> "Permutation":
        """Give what takes it back."""
        return Permutation({name: index.argsort() for name, index in self.items()}, self.graph)

    def __matmul__(self, first: "Permutation") -> "Permutation":
        """Give one permutation for two in turn: `(P @ Q).apply(net)` is `P.apply(Q.apply(net))`."""
        if not isinstance(first, Permutation):
            return NotImplemented
        both: dict[str, Tensor] = {}
        for name in dict.fromkeys([*first, *self]):
            if name not in self or name not in first:
                both[name] = self[name] if name in self else first[name]
            elif len(self[name]) != len(first[name]):
                raise ValueError(
                    f"Group {name} has {len(self[name])} units in one and {len(first[name])} in the other."
                )
            else:
                both[name] = first[name][self[name]]
        return Permutation(both, self.graph)

    @overload
    def apply(self, target: nn.Module) -> nn.Module: ...
    @overload
    def apply(self, target: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def apply(self, target: Weights) -> nn.Module | dict[str, Tensor]:
        """Give a copy of a network, or of its state dict, with its units in this order.

        Gradients of a network are reordered too. To reorder in place, with an optimizer's state, call
        `neuropil.structure.surgery.permute(net, permutation, graph, optimizer=...)`.
        """
        if isinstance(target, nn.Module):
            copy = deepcopy(target)
            for ours, theirs in zip(copy.parameters(), target.parameters(), strict=True):
                ours.grad = None if theirs.grad is None else theirs.grad.clone()
            return permute(copy, self, self.graph)
        return permuted(target, self, self.graph)


def _moved(index: Tensor) -> int:
    return int((index != torch.arange(len(index))).sum())
