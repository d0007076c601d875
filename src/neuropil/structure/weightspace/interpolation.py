"""The line between two nets, and the loss on it.

    theta(l) = (1 - l) theta_a + l theta_b,     l in [0, 1], both ends among the points

Barrier of the loss L over the line, by one of two definitions:

    "ends"      max_l L(theta(l)) - (L(theta_a) + L(theta_b)) / 2                 (Ainsworth et al. 2022, section 2)
    "linear"    max_l [L(theta(l)) - (1 - l) L(theta_a) - l L(theta_b)]           (Entezari et al. 2022)

They agree where both ends have the same loss. "linear" is never negative; nor is "ends", which is at least half the
difference of the ends' losses.

Running statistics of batch norm belong to the ends and not to the line: between two nets the variance of a layer's sums
collapses, and statistics that were averaged along with the weights look like a barrier that is none. `reset_norm_`
recomputes them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from neuropil.neurons.ranges import require
from neuropil.structure.weightspace.states import (
    Bench,
    Weights,
    check_alike,
    check_finite,
    copied_mode,
    named_tensors,
    wide,
)

__all__ = ["Barrier", "Batches", "interpolate", "loss_barrier", "on_the_line", "reset_norm_"]

Batches = Iterable[Any]
"""Batches of inputs: each a tensor, or a sequence that starts with it, such as (input, target)."""

KINDS = ("ends", "linear")


@overload
def interpolate(a: nn.Module, b: Weights, lam: float) -> nn.Module: ...
@overload
def interpolate(a: Mapping[str, Tensor], b: Weights, lam: float) -> dict[str, Tensor]: ...
def interpolate(a: Weights, b: Weights, lam: float) -> nn.Module | dict[str, Tensor]:
    """Give the weights at a place on the line from a to b; neither is changed.

    Args:
        a: a net or its state dict; what comes back is of its kind, dtype and device.
        b: weights of the same architecture, a net or a state dict.
        lam: 0 gives a, 1 gives b; in [0, 1].

    Returns:
        A new net without gradients, in the mode of a; or a dict. Running statistics are interpolated like weights (see
        `reset_norm_`), whole numbers come from the nearer end. Halves are computed in float32.

    Raises:
        ValueError: if names or shapes differ (all are listed), a weight is not finite, or lam is outside [0, 1].
    """
    require("lam", lam, 0.0, 1.0)
    start, end = _ends(a, b)
    bench = Bench(a)
    return copied_mode(bench.set(_between(start, end, lam)), a)


def on_the_line(a: Weights, b: Weights, lams: Sequence[float], reset_norm: Batches | None = None) -> Iterator[Weights]:
    """Walk along the line from a to b, in one copy that is overwritten at every step.

    Args:
        a: a net or its state dict; the copy is of its kind, a net in evaluation mode.
        b: weights of the same architecture.
        lams: the places, each in [0, 1].
        reset_norm: batches for `reset_norm_` at every place, the ends too; they are gone through again each time, so no
            iterator will do.

    Yields:
        The copy, at the places in their order.

    Raises:
        ValueError: if names or shapes differ, a weight is not finite, or a place is outside [0, 1].
        TypeError: if `reset_norm` is an iterator, or `a` is no net and there is nothing to run.
    """
    for lam in lams:
        require("lam", lam, 0.0, 1.0)
    if reset_norm is not None and not isinstance(a, nn.Module):
        raise TypeError("reset_norm needs a net that can be run: pass a as a module, not as a state dict.")
    if isinstance(reset_norm, Iterator):
        raise TypeError(f"reset_norm is gone through at every point: pass a list or a loader, not {type(reset_norm)}.")
    start, end = _ends(a, b)
    bench = Bench(a)
    return _walk(bench, start, end, lams, reset_norm)


def _walk(
    bench: Bench, start: dict[str, Tensor], end: dict[str, Tensor], lams: Sequence[float], reset_norm: Batches | None
) -> Iterator[Weights]:
    for lam in lams:
        point = bench.set(_between(start, end, lam))
        if reset_norm is not None and isinstance(point, nn.Module):
            reset_norm_(point, reset_norm)
        yield point


def _ends(a: Weights, b: Weights) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    start, end = named_tensors(a), named_tensors(b)
    check_alike(start, end)
    check_finite(start, "a")
    check_finite(end, "b")
    return start, end


def _between(start: dict[str, Tensor], end: dict[str, Tensor], lam: float) -> Iterator[tuple[str, Tensor]]:
    for name, from_a in start.items():
        from_b = end[name].to(from_a.device)
        if not from_a.is_floating_point():
            yield name, from_a if lam < 0.5 else from_b
        else:  # both products are exact at the ends, so that the ends are the two nets themselves
            yield name, (1 - lam) * wide(from_a) + lam * wide(from_b)


@dataclass(frozen=True)
class Barrier:
    """Losses on a line between two nets.

    Attributes:
        lams: places on the line, from 0 to 1.
        losses: one a place; the first and the last are the ends'.
        kind: "ends" or "linear", the definition of the barrier.
    """

    lams: tuple[float, ...]
    losses: tuple[float, ...]
    kind: Literal["ends", "linear"] = "ends"

    @property
    def excess(self) -> Float[np.ndarray, " points"]:
        """Loss at each place above that of the two ends: above their mean, or above the straight line between them."""
        lams, losses = np.asarray(self.lams), np.asarray(self.losses)
        first, last = losses[0], losses[-1]
        return losses - ((first + last) / 2 if self.kind == "ends" else (1 - lams) * first + lams * last)

    @property
    def barrier(self) -> float:
        """The largest excess, in the loss's unit."""
        return float(self.excess.max())

    @property
    def at(self) -> float:
        """Where on the line the excess is largest; the first place if there are several."""
        return self.lams[int(self.excess.argmax())]


@torch.no_grad()
def loss_barrier(
    a: Weights,
    b: Weights,
    evaluate: Callable[[Any], float],
    points: int = 25,
    kind: Literal["ends", "linear"] = "ends",
    reset_norm: Batches | None = None,
) -> Barrier:
    """Measure the loss on the line between two nets, and how far it rises above the ends.

    Args:
        a: a net or its state dict.
        b: weights of the same architecture.
        evaluate: loss or error of what it is given: a net in evaluation mode where a is a net, else a dict; called
            without gradients. It is the same object at every point, overwritten in between: keep nothing of it.
        points: on the line, both ends included.
        kind: "ends" measures from the mean of the ends' losses, "linear" from the straight line between them.
        reset_norm: batches with which the statistics of batch norm are recomputed at every point, the ends too; None
            interpolates them.

    Raises:
        ValueError: if names or shapes differ, a weight is not finite, there are fewer than 2 points, or the kind is
            unknown.
        TypeError: if `reset_norm` is an iterator, or is given where a is no net.
        FloatingPointError: if a loss is not finite, with the place.

    Source: Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836), section 2; Entezari, Sedghi, Saukh & Neyshabur 2022
        (arXiv 2110.06296), for "linear".
    """
    if points < 2:
        raise ValueError(f"points must be at least 2, the two ends, got {points}.")
    if kind not in KINDS:
        raise ValueError(f'kind must be "ends" or "linear", got {kind!r}.')
    lams = tuple(i / (points - 1) for i in range(points))
    losses = []
    for lam, point in zip(lams, on_the_line(a, b, lams, reset_norm), strict=True):
        loss = float(evaluate(point))
        if not np.isfinite(loss):
            raise FloatingPointError(f"The loss is {loss} at {lam:g} of the way from a to b.")
        losses.append(loss)
    return Barrier(lams, tuple(losses), kind)


@torch.no_grad()
def reset_norm_(net: nn.Module, batches: Batches) -> nn.Module:
    """Recompute the running statistics of all batch norms of a net from data, in place.

    The mean of the batches' statistics, each counted by its number of samples and positions. Norms are in training mode
    meanwhile and everything else in evaluation mode, so that dropout neither draws nor disturbs; afterwards every mode
    is as before.

    Args:
        net: any net; without running statistics nothing happens, and a norm that the inputs never reach keeps its own.
        batches: inputs, or sequences that start with them.

    Returns:
        The net.

    Raises:
        ValueError: if there is no batch, or one is empty.
        TypeError: if a batch is neither a tensor nor a sequence that starts with one.
        FloatingPointError: if a statistic comes out not finite.

    Source: Jordan, Sedghi, Saukh, Entezari & Neyshabur 2022 (arXiv 2211.08403), on why merged nets need it.
    """
    norms = {
        name: norm
        for name, norm in net.named_modules()
        if isinstance(norm, _NormBase) and norm.running_mean is not None
    }
    if not norms:
        return net
    empty = True
    with _averaging(net, list(norms.values())):
        for batch in batches:
            net(_inputs(batch))
            empty = False
    if empty:
        raise ValueError("batches is empty: statistics need data.")
    for name, norm in norms.items():
        for statistic in (norm.running_mean, norm.running_var):
            if statistic is not None and not bool(statistic.isfinite().all()):
                raise FloatingPointError(f"The statistics of {name or 'the net'} are not finite on these batches.")
    return net


def _inputs(batch: Any) -> Tensor:
    x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(x, Tensor):
        raise TypeError(f"A batch must be a tensor or a sequence that starts with one, got {type(batch).__name__}.")
    if not x.ndim or not x.numel():
        raise ValueError(f"A batch must have samples, got shape {tuple(x.shape)}.")
    return x


@contextmanager
def _averaging(net: nn.Module, norms: Sequence[_NormBase]) -> Iterator[None]:
    """Norms train on running means, all else evaluates; modes and momenta are given back whatever happens."""
    modes = [(module, module.training) for module in net.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    seen: dict[nn.Module, int] = {}

    def weigh(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        # Norms count for themselves, since one module may stand at several places of a net.
        if isinstance(norm, _NormBase):
            if norm not in seen:
                norm.reset_running_stats()  # old statistics that are NaN would survive a weight of 0
            seen[norm] = seen.get(norm, 0) + args[0].numel()
            norm.momentum = args[0].numel() / seen[norm]

    hooks = [norm.register_forward_pre_hook(weigh) for norm in norms]
    net.eval()
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
        for norm, momentum in momenta:
            norm.momentum = momentum
