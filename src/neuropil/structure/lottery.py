"""Lottery tickets: sparse nets that train as well as the dense one, found by training, pruning and going back in time.

    W_k    the weights after k of T steps from W_0;  m = 1
    round  W_T <- train m * W_k from step k to T;  of the weights that are left, the smallest |W_T| leave m
    ticket (m, W_k)

Going back to k > 0 instead of to the start is what deeper nets need. Optimizer, schedule, running statistics and the
order of the data restart at k too: the user's `train` makes a new optimizer each time, the rest is put back here.

Two distances say how stable a ticket is, per layer and over the weights in m: between the trained dense net and the
trained ticket (to pruning), and between two trainings of the ticket on the data in two orders (to the order).

Source: Frankle, Dziugaite, Roy & Carbin, "Stabilizing the Lottery Ticket Hypothesis" (arXiv 1903.01611).
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from neuropil.neurons.ranges import require
from neuropil.structure.allocation import allocate
from neuropil.structure.criteria import Criterion, Magnitude
from neuropil.structure.masks import Masks, prunable_parameters

__all__ = ["Stability", "Ticket", "distances", "find_ticket", "stability"]

Train = Callable[[nn.Module, int, int, int], Any]
"""Called with net, first step, last step (not taken) and seed: trains the net in place, with an optimizer of its own, a
schedule by absolute steps, and the data in the seed's order from the first step on."""

ALL = "all"  # the row over all layers


@dataclass(frozen=True, eq=False)
class Ticket:
    """A mask and the weights to start from.

    Attributes:
        masks: True where a weight is left.
        rewind_state: parameters and buffers at step k, unmasked.
        rewind: k.
        total: T.
        seed: of the net, and of the data order it was found with.
        history: one row a round of training: "round", "density" of the net that was trained, "accuracy" (NaN if nothing
            measured it).
        make_net: makes the module from a seed.
    """

    masks: Masks
    rewind_state: Mapping[str, Tensor]
    rewind: int
    total: int
    seed: int
    history: pd.DataFrame
    make_net: Callable[[int], nn.Module]

    def make(self) -> nn.Module:
        """A new net with the masked weights of step k.

        Gradients of its masked weights are 0, so that they stay 0 under any optimizer that is made after this and steps
        by gradients and weight decay.
        """
        return _start(self.make_net, self.seed, self.rewind_state, self.masks)

    def trained(self, train: Train, seed: int | None = None) -> nn.Module:
        """A new net, trained from step k to T with a seed for the data; None is the ticket's own.

        Raises:
            ValueError: if `train` moved a masked weight.
        """
        return _trained(self.make(), self.masks, train, self.rewind, self.total, self.seed if seed is None else seed)

    def dense(self) -> "Ticket":
        """The ticket of the whole net: nothing masked, the same weights of step k."""
        return replace(self, masks=self.masks | ~self.masks)

    def random_reinit(self, seed: int) -> "Ticket":
        """The same mask on a fresh net of another seed, at its step 0: does the mask alone make a ticket?"""
        state = _state(_made(self.make_net, seed))
        return replace(self, rewind_state=state, rewind=0)

    def shuffled(self, seed: int) -> "Ticket":
        """The same weights of step k, the mask permuted within every layer: do the densities alone make a ticket?"""
        generator, masks = torch.Generator().manual_seed(seed), {}
        for name, mask in self.masks.items():
            order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
            masks[name] = mask.flatten()[order].view(mask.shape)
        return replace(self, masks=Masks(masks))


def find_ticket(
    make_net: Callable[[int], nn.Module],
    train: Train,
    *,
    rewind: int,
    total: int,
    rounds: int,
    seed: int,
    fraction: float = 0.2,
    scope: Literal["global", "layer"] = "global",
    per_layer_fraction: Mapping[str, float] | None = None,
    criterion: Criterion | None = None,
    batches: Iterable[tuple[Any, Any]] = (),
    loss_fn: Callable[[Any, Any], Tensor] | None = None,
    evaluate: Callable[[nn.Module], float] | None = None,
) -> Ticket:
    """Train, prune the survivors, rewind; several rounds of it.

    Args:
        make_net: makes the module from a seed.
        train: called as train(net, first, last, seed), from 0 to k and then from k to T; see `Train`.
        rewind: k, at least 0; 0 goes back to the start.
        total: T, more than k.
        rounds: at least 1; one round is one-shot pruning.
        seed: given to make_net and, in every round, to train.
        fraction: of the weights left that every round takes, in (0, 1).
        scope: "global" compares weights of all layers; "layer" takes the fraction from each.
        per_layer_fraction: other fractions for some parameters, by name, with scope "layer" (often half for the last).
        criterion: bigger is kept; None is `Magnitude()`, of the trained weights.
        batches: for a criterion that needs them; gone through in every round.
        loss_fn: for a criterion that needs it.
        evaluate: measures a trained net, for the history.

    Returns:
        The ticket; it is not trained yet.

    Raises:
        ValueError: if a number is out of range, a name is unknown, a round would leave nothing, or `train` moved a
            masked weight.
    """
    _check(rewind, total, rounds, fraction, scope, per_layer_fraction)
    batches = list(batches)
    criterion = Magnitude() if criterion is None else criterion
    net = _made(make_net, seed)
    names = prunable_parameters(net)
    if unknown := sorted(set(per_layer_fraction or ()) - set(names)):
        raise ValueError(f"per_layer_fraction names {unknown[0]!r}; prunable are {', '.join(names)}.")
    if rewind:
        train(net, 0, rewind, seed)
    state, masks, rows = _state(net), Masks.full(net, names), []
    for number in range(rounds):
        net = _trained(_start(make_net, seed, state, masks), masks, train, rewind, total, seed)
        measured = float("nan") if evaluate is None else float(evaluate(net))
        rows.append({"round": number, "density": masks.density(), "accuracy": measured})
        scores = criterion(net, batches, loss_fn, names)
        masks = _pruned(scores, masks, fraction, scope, per_layer_fraction or {})
    return Ticket(masks, state, rewind, total, seed, pd.DataFrame(rows), make_net)


@dataclass(frozen=True, eq=False)
class Stability:
    """How near trained nets end to each other: tables as `distances` gives them.

    Attributes:
        to_pruning: between the trained dense net, restricted to the mask, and the trained ticket.
        to_order: between two trainings of the ticket.
    """

    to_pruning: pd.DataFrame
    to_order: pd.DataFrame


def stability(ticket: Ticket, train: Train, seeds: tuple[int, int]) -> Stability:
    """Train the dense net once and the ticket twice, and compare.

    Args:
        ticket: or its `shuffled` self, to compare with.
        train: as in `find_ticket`.
        seeds: of two data orders; the first is also that of the dense net.

    Raises:
        ValueError: if `train` moved a masked weight.

    Source: Frankle et al. 2019, section 3.
    """
    dense = ticket.dense().trained(train, seeds[0])
    first, second = (ticket.trained(train, seed) for seed in seeds)
    return Stability(distances(dense, first, ticket.masks), distances(first, second, ticket.masks))


@torch.no_grad()
def distances(first: nn.Module, second: nn.Module, masks: Masks) -> pd.DataFrame:
    """How far two nets are apart, over the weights in a mask.

    Returns:
        One row a parameter, and one, "all", over all of them: "layer", "l2" (distance), "angle" (degrees; NaN where a
        norm is 0), "norm" and "other_norm" of the first and the second net.
    """
    pairs = {
        name: tuple(
            net.get_parameter(name).detach().double()[mask.to(net.get_parameter(name).device)].cpu()
            for net in (first, second)
        )
        for name, mask in masks.items()
    }
    pairs[ALL] = (torch.cat([a for a, _ in pairs.values()]), torch.cat([b for _, b in pairs.values()]))
    rows = []
    for name, (a, b) in pairs.items():
        norms = float(a.norm()), float(b.norm())
        angle = float("nan")
        if min(norms) > 0:
            # Exact at 0, where the arc cosine is not.
            u, v = a / norms[0], b / norms[1]
            angle = math.degrees(2 * math.atan2(float((u - v).norm()), float((u + v).norm())))
        rows.append(
            {"layer": name, "l2": float((a - b).norm()), "angle": angle, "norm": norms[0], "other_norm": norms[1]}
        )
    return pd.DataFrame(rows)


def _pruned(scores: dict[str, Tensor], masks: Masks, fraction: float, scope: str, others: Mapping[str, float]) -> Masks:
    """The masks of the next round, within those of this one."""
    if scope == "global":
        left = round((1 - fraction) * masks.kept())
        return allocate(scores, left / masks.total(), within=masks)
    left = {name: round((1 - others.get(name, fraction)) * int(mask.count_nonzero())) for name, mask in masks.items()}
    if empty := [name for name, count in left.items() if count == 0]:
        raise ValueError(f"Another round would leave nothing of {empty[0]!r}: fewer rounds, or a smaller fraction.")
    return allocate(scores, None, {name: left[name] / masks[name].numel() for name in masks}, within=masks)


def _check(
    rewind: int, total: int, rounds: int, fraction: float, scope: str, others: Mapping[str, float] | None
) -> None:
    if not 0 <= rewind < total:
        raise ValueError(f"rewind must be at least 0 and less than total, got {rewind} of {total} steps.")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    if scope not in ("global", "layer"):
        raise ValueError(f'scope must be "global" or "layer", got {scope!r}.')
    if others and scope == "global":
        raise ValueError('per_layer_fraction needs scope "layer": a common threshold has one fraction.')
    require("fraction", fraction, 0.0, 1.0, ends=(False, False))
    for name, other in (others or {}).items():
        require(f"per_layer_fraction of {name!r}", other, 0.0, 1.0, ends=(True, False))


def _made(make_net: Callable[[int], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):  # makers of nets may draw from the global state
        return make_net(seed)


def _state(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def _start(make_net: Callable[[int], nn.Module], seed: int, state: Mapping[str, Tensor], masks: Masks) -> nn.Module:
    """A net at step k, masked, whose masked weights get no gradient."""
    net = _made(make_net, seed)
    net.load_state_dict(dict(state))
    masks.apply_(net)
    for name, mask in masks.items():
        if not bool(mask.all()):
            net.get_parameter(name).register_hook(_without(~mask))
    return net


def _without(hidden: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.masked_fill(hidden.to(gradient.device), 0)


def _trained(net: nn.Module, masks: Masks, train: Train, first: int, last: int, seed: int) -> nn.Module:
    train(net, first, last, seed)
    for name, mask in masks.items():
        weight = net.get_parameter(name).detach()
        if moved := int(weight[~mask.to(weight.device)].count_nonzero()):
            raise ValueError(
                f"train moved {moved} masked entries of {name!r}: it must make an optimizer of its own, and "
                f"step by gradients."
            )
    return net
