"""Learn the order of units by gradients through the matching: the straight-through estimator.

    theta~ starts at theta_A, and in every step
    P      = weight matching of theta_B to theta~                 from the last P, a few sweeps
    pi     = P(theta_B)
    loss   = L_batch( (theta_A + pi + theta~ - stop(theta~)) / 2 )
    theta~ <- theta~ - Adam's step along the gradient

so that the loss is that of the midpoint, and its gradient goes to theta~, which P follows. The best P that was met is
kept. It is the slowest of the three matchings. (Ainsworth et al. 2022, section 3.3.)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from neuropil.neurons.ranges import require_positive
from neuropil.structure.graph.unit_graph import UnitGraph
from neuropil.structure.weightspace.ascent import Ascent
from neuropil.structure.weightspace.matching import match_weights
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.structure.weightspace.states import named_tensors

__all__ = ["match_straight_through"]

Loss = Callable[[Any, Any], Tensor]


def match_straight_through(
    a: nn.Module,
    b: nn.Module,
    batches: Iterable[tuple[Any, Any]],
    loss_fn: Loss,
    graph: UnitGraph,
    *,
    steps: int = 200,
    lr: float = 1e-3,
    sweeps: int = 1,
    init: Mapping[str, Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Permutation:
    """Find the order of b's units by descending the loss of the midpoint.

    Norms that keep running statistics take the batch's own, since the midpoint has none; all else is in evaluation
    mode.

    Args:
        a: a network; neither it nor b is changed.
        b: a network of the same architecture.
        batches: (input, target) pairs, gone through again and again: a list or a loader, no iterator. Inputs are a
            tensor, a tuple of arguments or a mapping of named ones.
        loss_fn: mean loss of (output, target).
        graph: their units.
        steps: gradient steps, one batch each.
        lr: learning rate of Adam.
        sweeps: of the matching in every step.
        init: orders to begin with; None: those of `match_weights`.
        generator: of the order in which sweeps visit the groups; None: the graph's order.

    Returns:
        Of the beginning and of the orders at the end of every pass over the batches, and of the last step, that whose
        midpoint has the smallest mean loss over all batches.

    Raises:
        ValueError: if there are no batches, a number is out of range, names or shapes differ, a weight is not finite,
            or no group can be permuted.
        TypeError: if a or b is no network, or `batches` is an iterator.
        FloatingPointError: if a loss is not finite, with the step.

    Source: Ainsworth, Hayase & Srinivasa 2022 (arXiv 2209.04836), section 3.3 and algorithm 2.
    """
    _check(a, b, batches, steps, lr, sweeps)
    midpoint = _Midpoint(a, b, loss_fn)
    order = match_weights(a, b, graph, generator=generator) if init is None else Permutation(init, graph)
    ascent = Ascent(a, b, graph, order)
    free = {name: value.clone().requires_grad_() for name, value in midpoint.a.items() if name in ascent.a}
    optimizer = torch.optim.Adam(free.values(), lr=lr)
    judged = order
    best = (midpoint.mean(batches, order), order)
    for step, (batch, last) in enumerate(_cycle(batches, steps)):
        ascent.aim(free)
        for _ in range(sweeps):
            ascent.sweep(generator)
        x, y = batch
        loss = midpoint(x, y, ascent.order, free)
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"The loss of the midpoint is {float(loss.detach())} at step {step}.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (last or step == steps - 1) and ascent.order != judged:
            judged = ascent.order
            best = min(best, (midpoint.mean(batches, judged), judged), key=lambda one: one[0])
    return best[1]


class _Midpoint:
    """The network halfway between a and a reordered b, as a function of what moves it."""

    def __init__(self, a: nn.Module, b: nn.Module, loss_fn: Loss):
        self.net = deepcopy(a).eval()
        for module in self.net.modules():
            if isinstance(module, _NormBase):
                module.train()
        self.loss_fn = loss_fn
        self.a = {name: value.detach() for name, value in a.named_parameters()}
        devices = {name: value.device for name, value in a.state_dict().items()}
        self.b = {name: value.to(devices[name]) for name, value in named_tensors(b).items()}

    def __call__(self, x: Any, y: Any, order: Permutation, free: Mapping[str, Tensor] | None = None) -> Tensor:
        moved = order.apply(self.b)
        tensors = {name: (value + moved[name].to(value)) / 2 for name, value in self.a.items()}
        for name, value in (free or {}).items():
            tensors[name] = tensors[name] + (value - value.detach()) / 2
        # Norms in training mode write their statistics: into copies that are dropped.
        tensors |= {name: value.clone() for name, value in self.net.named_buffers()}
        args, keywords = ((), dict(x)) if isinstance(x, Mapping) else (x if isinstance(x, tuple) else (x,), {})
        return self.loss_fn(functional_call(self.net, tensors, args, keywords), y)

    @torch.no_grad()
    def mean(self, batches: Iterable[tuple[Any, Any]], order: Permutation) -> float:
        """Mean loss over all batches."""
        losses = [float(self(x, y, order)) for x, y in batches]
        if not losses:
            raise ValueError("batches is empty: the midpoint's loss needs data.")
        return sum(losses) / len(losses)


def _cycle(batches: Iterable[Any], steps: int) -> Iterator[tuple[Any, bool]]:
    """Give as many batches as there are steps, each with whether it is the last of a pass."""
    given = 0
    while given < steps:
        held = None
        for batch in batches:
            if held is not None:
                yield held[0], False
                given += 1
                if given == steps:
                    return
            held = (batch,)
        assert held is not None  # an empty stream was refused before
        yield held[0], True
        given += 1


def _check(a: nn.Module, b: nn.Module, batches: Iterable[Any], steps: int, lr: float, sweeps: int) -> None:
    for name, net in (("a", a), ("b", b)):
        if not isinstance(net, nn.Module):
            raise TypeError(f"{name} must be a network that can be run, got {type(net).__name__}.")
    if isinstance(batches, Iterator):
        raise TypeError(f"batches are gone through many times: pass a list or a loader, not {type(batches).__name__}.")
    if steps < 0 or sweeps < 1:
        raise ValueError(f"steps must be at least 0 and sweeps at least 1, got {steps} and {sweeps}.")
    require_positive(lr=lr)
