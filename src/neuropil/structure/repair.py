"""Repair of the layers that read pruned units: the weights that stay take over what the others gave.

For a layer with weight W (outputs x columns) and inputs X (columns x samples; a convolution's columns are channel x
kernel positions), pruning the columns P leaves K. With

    H = 2 X X^T + lambda I,      lambda = damping x the mean of H's diagonal

the repaired weight is the one that changes the layer's outputs least,

    W'_K = W H_{.,K} (H_{K,K})^-1,        W'_P = 0

which is what eliminating the columns one after the other by the optimal brain surgeon's step
W <- W - W_P ([H^-1]_PP)^-1 [H^-1]_P,. arrives at. With a bias, a row of ones is one more input that always stays: then
what pruned units gave on average goes into the bias. A unit's score is what its removal alone costs,

    sum over its columns p of |W_p|^2 / (2 [H^-1]_pp)

Source: Wang et al. 2024, arXiv 2403.18955 (OBSPA); Hassibi & Stork 1992; Frantar & Alistarh 2022, arXiv 2208.11580.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, unfold

from neuropil.neurons.ranges import require
from neuropil.structure.criterion import as_batches, call, undisturbed
from neuropil.structure.graph.unit_graph import Keep, UnitGraph
from neuropil.structure.weightspace.interpolation import reset_norm_

__all__ = ["OptimalBrainRepair", "noise_like"]

Moments = dict[str, Float[Tensor, "columns columns"]]


@dataclass(frozen=True)
class OptimalBrainRepair:
    """Refit what reads pruned units, from the inputs that it gets on some batches, without training.

    Linear layers and convolutions with one group are refitted; others lose their columns and are left alone.

    Args:
        batches: inputs, or pairs that start with them: the training data, other data, or noise (`noise_like`).
        damping: lambda as a fraction of the mean diagonal of H; it must be above 0 where there are fewer samples than
            columns.
        sequential: collect the inputs of each layer from the network as pruned and repaired so far, not from the whole
            one: slower, and errors of earlier layers are repaired too.
        reset_norm: recompute the running statistics of batch norms on the batches afterwards.

    Raises:
        ValueError: if damping is negative.
    """

    batches: Iterable[Any]
    damping: float = 0.01
    sequential: bool = False
    reset_norm: bool = True

    def __post_init__(self) -> None:
        require("damping", self.damping, 0.0, float("inf"), ends=(True, False))

    def apply_(self, net: nn.Module, keep: Keep, graph: UnitGraph) -> list[str]:
        """Refit the layers that read pruned units, in the whole network: columns of pruned units become 0.

        Args:
            net: still whole; changed in place.
            keep: by group, which units stay.
            graph: the network's units.

        Returns:
            Names of the layers that were refitted.

        Raises:
            ValueError: if there are no batches, or H is not positive definite (raise the damping).
        """
        layers = _readers(net, graph, keep)
        batches = [x for x, _ in as_batches([_pair(batch) for batch in self.batches])]
        if not batches:
            raise ValueError("OptimalBrainRepair needs batches: there were none.")
        moments = {} if self.sequential else _moments(net, layers, batches)
        done = []
        for name in layers:
            layer = net.get_submodule(name)
            gone = _gone_columns(f"{name}.weight", layer, graph, keep)
            if not bool(gone.any()):
                continue
            H = (_moments(net, {name: layer}, batches) if self.sequential else moments)[name]
            _refit_(layer, _damped(2 * H, self.damping, layer), gone, name)
            done.append(name)
        return done

    def finish_(self, net: nn.Module) -> None:
        """Recompute the statistics of batch norms, after the surgery."""
        if self.reset_norm:
            reset_norm_(net, [_pair(batch)[0] for batch in self.batches])

    def scores(self, net: nn.Module, graph: UnitGraph) -> dict[str, Float[Tensor, " units"]]:
        """Score units by what the removal of each alone would cost the layers that read it; bigger is kept.

        Args:
            net: any module.
            graph: its units.

        Returns:
            By prunable group that has such readers, float64.

        Raises:
            ValueError: as `apply_`.
        """
        groups = graph.prunable(inexact=True)
        layers = _readers(net, graph, {group.name: torch.zeros(group.size, dtype=torch.bool) for group in groups})
        moments = _moments(net, layers, [_pair(batch)[0] for batch in self.batches])
        costs = {}
        for name, layer in layers.items():
            H = _damped(2 * moments[name], self.damping, layer)
            inverse = torch.linalg.inv(H).diagonal()[: _matrix(layer).shape[1]]
            columns = _matrix(layer).double().square().sum(dim=0) / (2 * inverse)
            costs[f"{name}.weight"] = columns.reshape(layer.weight.shape[1], -1).sum(dim=1)
        found = {}
        for group in groups:
            parts = [costs[m.parameter][m.index].sum(dim=1) for m in _read_by(group, costs)]
            if parts:
                found[group.name] = torch.stack(parts).sum(dim=0)
        return found


def noise_like(
    example: Float[Tensor, "batch *features"], count: int, *, low: float, high: float, generator: torch.Generator
) -> list[Float[Tensor, "batch *features"]]:
    """Draw batches of uniform noise of an example's shape: what to repair on where there is no data.

    Args:
        example: gives shape, device and dtype.
        count: number of batches.
        low: lower end of the range of the inputs.
        high: upper end.
        generator: draws them.

    Raises:
        ValueError: if the range is empty or not finite, or count is below 1.
    """
    require("count", count, 1, float("inf"))
    require("high", high, low, float("inf"), ends=(False, False))
    drawn = (torch.rand(example.shape, generator=generator, dtype=torch.float64) for _ in range(count))
    return [(low + (high - low) * one).to(example) for one in drawn]


def _pair(batch: Any) -> tuple[Any, Any]:
    return (batch[0], None) if isinstance(batch, tuple | list) else (batch, None)


def _readers(net: nn.Module, graph: UnitGraph, keep: Keep) -> dict[str, Any]:
    """Find the layers that read units of groups of which some go, in the network's order."""
    names = {
        member.parameter.removesuffix(".weight")
        for name, kept in keep.items()
        if not bool(kept.all())
        for member in graph[name].reading()
        if member.parameter.endswith(".weight") and member.axis == 1
    }
    known = {}
    for name, module in net.named_modules():
        fits = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
        if name in names and fits and not (isinstance(module, nn.Conv2d) and module.padding_mode != "zeros"):
            known[name] = module
    return known


def _read_by(group: Any, costs: dict[str, Tensor]) -> list[Any]:
    return [member for member in group.reading() if member.parameter in costs and member.axis == 1]


def _moments(net: nn.Module, layers: dict[str, Any], batches: list[Any]) -> Moments:
    """Accumulate the mean of x x^T over every layer's inputs, float64; a bias counts as an input of 1."""
    sums: Moments = {}
    counts: dict[str, int] = {}

    def collect(name: str, layer: Any, x: Tensor) -> None:
        columns = _columns(layer, x.detach()).double()
        sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=x.device)) + columns @ columns.T
        counts[name] = counts.get(name, 0) + columns.shape[1]

    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: collect(name, module, args[0]))
        for name, layer in layers.items()
    ]
    try:
        with undisturbed(net, evaluate=True), torch.no_grad():
            for x in batches:
                call(net, x)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in layers if name not in sums]
    if missing:
        raise ValueError(f"No batch reached {', '.join(missing)}: there is nothing to repair them with.")
    return {name: total / counts[name] for name, total in sums.items()}


def _columns(layer: Any, x: Tensor) -> Tensor:
    """Arrange a layer's inputs as (columns, samples); a last row of ones where there is a bias."""
    if isinstance(layer, nn.Linear):
        columns = x.reshape(-1, x.shape[-1]).T
    else:
        sides = layer._reversed_padding_repeated_twice if isinstance(layer.padding, str) else ()
        padded = pad(x, sides) if sides else x
        padding = 0 if sides or isinstance(layer.padding, str) else layer.padding
        patches = unfold(padded, layer.kernel_size, layer.dilation, padding, layer.stride)
        columns = patches.transpose(0, 1).reshape(patches.shape[1], -1)
    if layer.bias is None:
        return columns
    return torch.cat([columns, torch.ones_like(columns[:1])])


def _matrix(layer: Any) -> Tensor:
    return layer.weight.detach().flatten(1)


def _damped(H: Tensor, damping: float, layer: Any) -> Tensor:
    size = _matrix(layer).shape[1]
    added = damping * H.diagonal()[:size].mean()
    H = H.clone()
    H.diagonal()[:size] += added
    if layer.bias is not None:
        H[size, size] += 1e-12
    return H


def _gone_columns(parameter: str, layer: Any, graph: UnitGraph, keep: Keep) -> Tensor:
    """Mark the columns of pruned units, of the weight as a matrix."""
    gone = torch.zeros(layer.weight.shape[1], dtype=torch.bool)
    for name, kept in keep.items():
        for member in graph[name].reading():
            if member.parameter == parameter and member.axis == 1:
                gone[member.index[~kept.cpu()].flatten()] = True
    return gone.repeat_interleave(_matrix(layer).shape[1] // len(gone)).to(layer.weight.device)


def _refit_(layer: Any, H: Tensor, gone: Tensor, name: str) -> None:
    weight = _matrix(layer).double()
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.detach().double()[:, None]], dim=1)
        gone = torch.cat([gone, gone.new_zeros(1)])
    kept = ~gone
    try:
        factor = torch.linalg.cholesky(H[kept][:, kept])
    except RuntimeError as error:
        raise ValueError(f"The inputs of {name} are degenerate: raise the damping.") from error
    made = torch.zeros_like(weight)
    made[:, kept] = torch.cholesky_solve(H[kept] @ weight.T, factor).T
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias.copy_(made[:, -1])
            made = made[:, :-1]
        layer.weight.copy_(made.reshape(layer.weight.shape))
