"""Prune and regrow while a network trains: one stepper for GMP, SET, RigL, GraNet and what lies between.

    sparsifier = granet(net, optimizer, total_steps=40_000, density=0.05)
    loss.backward(); optimizer.step(); event = sparsifier.step()

At an event, at steps t that are multiples of `every`:

    1  of all scored entries only the best density(t) N stay        (schedule; within the live ones)
    2  in every parameter the ceil(zeta(t) n) worst of n live entries are exchanged for as many closed ones
                                                                    (growth; zeta is `regrow_fraction`)

    GMP      1 alone, cubic                 Zhu & Gupta 2017
    SET      2 alone, random growth         Mocanu et al. 2018
    RigL     2 alone, growth by gradient    Evci et al. 2020
    GraNet   1, then 2 by gradient          Liu et al. 2021

Opened entries start at 0 with an optimizer that knows nothing of them. An entry that 2 closes and opens again at once
was never closed: it keeps its value.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.structure.allocation import Scope, allocate
from neuropil.structure.criteria import Criterion, Magnitude, Random
from neuropil.structure.criterion import Batches, LossFunction, checked_scores
from neuropil.structure.growth import GradientGrowth, Growth, RandomGrowth, regrow
from neuropil.structure.maintenance import Maintenance
from neuropil.structure.masks import Masks, attach, prunable_parameters
from neuropil.structure.optimizers import Fill
from neuropil.structure.schedules import Constant, CosineDecay, Cubic, Schedule

__all__ = ["Event", "Sparsifier", "gmp", "granet", "rigl", "set_"]

Start = Literal["erk", "uniform", "dense"] | Masks


@dataclass(frozen=True)
class Event:
    """What one call of `step` changed.

    Attributes:
        step: number of the optimizer's step, from 1.
        density: after the event, over the scored parameters.
        pruned: entries that the schedule closed.
        grown: entries that growth opened, and as many it closed.
        per_layer: densities by parameter, after the event.
    """

    step: int
    density: float
    pruned: int
    grown: int
    per_layer: dict[str, float]


class Sparsifier(Maintenance):
    """Keep a network sparse while it trains.

    Args:
        net: any module.
        optimizer: holds the parameters that are made sparse.
        schedule: densities over steps.
        criterion: what live entries are worth; None is `Magnitude()`. One that needs a gradient takes `.grad`, others
            look at `batches`.
        grow: how closed entries are chosen to grow; None grows nothing.
        regrow_fraction: share of live entries exchanged at an event, in [0, 1), or a function of the step.
        every: steps between events.
        scope: how the live entries are shared between parameters, as in `allocate`.
        min_per_layer: of each parameter at least so many entries live.
        include: which parameters, as in `prunable_parameters`; sparsity is counted over these alone.
        init: masks before the first step, at the schedule's initial density: "erk" or "uniform" at random places,
            "dense", or masks.
        state_fill: what the optimizer knows of opened entries, as in `attach`.
        batches: a function that gives batches of (x, y), or the batches, for a criterion that needs them.
        loss_fn: mean-reduced loss, likewise.
        generator: source of the initial places, on the CPU; None is one of seed 0.

    Attributes:
        history: all events.
        steps: calls of `step` so far.

    Raises:
        ValueError: if `every` is less than 1, a parameter is missing from the optimizer, no parameter is scored,
            something else is out of range, or the criterion needs batches and there are none.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        *,
        schedule: Schedule,
        criterion: Criterion | None = None,
        grow: Growth | None = None,
        regrow_fraction: float | Callable[[int], float] = 0.0,
        every: int = 1000,
        scope: Scope = "global",
        min_per_layer: int = 0,
        include: Callable[[str, nn.Parameter], bool] | Iterable[str] | None = None,
        init: Start = "erk",
        state_fill: Fill = "zero",
        batches: Callable[[], Batches] | Batches | None = None,
        loss_fn: LossFunction | None = None,
        generator: torch.Generator | None = None,
    ):
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}.")
        self.net, self.optimizer, self.schedule = net, optimizer, schedule
        self.criterion = Magnitude() if criterion is None else criterion
        if self.criterion.needs in ("outputs", "curvature") and batches is None:
            raise ValueError(f"{self.criterion!r} needs batches: give batches and loss_fn.")
        self.grow, self.every = grow, every
        self.regrow_fraction = regrow_fraction
        self.scope, self.min_per_layer = scope, min_per_layer
        self.batches, self.loss_fn = batches, loss_fn
        self.names = prunable_parameters(net, include)
        if not self.names:
            raise ValueError("The network has no parameters to make sparse: say which by include.")
        self.steps = 0
        self.history: list[Event] = []
        self.handle = attach(self._start(init, generator), net, optimizer, fill=state_fill)

    @property
    def masks(self) -> Masks:
        """The masks in force."""
        return self.handle.masks

    def density(self) -> float:
        """Share of live entries, over the scored parameters."""
        return self.masks.density()

    def step(self) -> Event | None:
        """Count a step of the optimizer and, where one is due, prune and regrow.

        Returns:
            What has changed; None between events.

        Raises:
            ValueError: if growth or criterion needs a gradient and `.grad` is None or NaN, or a score is NaN; the
                message names criterion and parameter.
        """
        self.steps += 1
        if self.grow is not None:
            self.grow.observe(self._gradients())
        if not self.schedule.is_event(self.steps, self.every):
            return None
        density = self.schedule.density(self.steps)
        fraction = self._fraction()
        closes = density is not None and round(density * self.masks.total()) < self.masks.kept()
        pruned = grown = 0
        if closes or fraction:
            worth = self._worth()
            if closes:
                pruned = self._prune(worth, density)
            if fraction:
                grown = self._regrow(worth, fraction)
        event = Event(self.steps, self.density(), pruned, grown, self.masks.densities())
        self.history.append(event)
        return event

    def remove(self) -> None:
        """Enforce nothing from now on."""
        self.handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Masks, steps, history and random states: all that is needed to go on as if nothing had happened."""
        state: dict[str, Any] = {
            "steps": self.steps,
            "masks": {name: mask.clone() for name, mask in self.masks.items()},
            "history": [asdict(event) for event in self.history],
            "grow": {} if self.grow is None else self.grow.state_dict(),
        }
        generator = getattr(self.criterion, "generator", None)
        if isinstance(generator, torch.Generator):
            state["criterion"] = generator.get_state()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state. Load network and optimizer after making the sparsifier, in any order with this.

        Raises:
            ValueError: if the masks are of other parameters or shapes.
        """
        masks = Masks({name: state["masks"][name] for name in state["masks"]})
        if set(masks) != set(self.names):
            raise ValueError(f"The state has masks of {', '.join(masks)}, wanted {', '.join(self.names)}.")
        self.handle.restore(Masks({name: masks[name] for name in self.names}, self.masks.fill))
        self.steps = int(state["steps"])
        self.history = [Event(**event) for event in state["history"]]
        if self.grow is not None:
            self.grow.load_state_dict(state["grow"])
        generator = getattr(self.criterion, "generator", None)
        if isinstance(generator, torch.Generator) and "criterion" in state:
            generator.set_state(state["criterion"])

    def _start(self, init: Start, generator: torch.Generator | None) -> Masks:
        if isinstance(init, Masks):
            if set(init) != set(self.names):
                raise ValueError(f"init has masks of {', '.join(init)}, wanted {', '.join(self.names)}.")
            return init
        if init not in ("erk", "uniform", "dense"):
            raise ValueError(f'init must be "erk", "uniform", "dense" or masks, got {init!r}.')
        if init == "dense" or self.schedule.initial == 1:
            return Masks.full(self.net, self.names)
        places = Random(generator)(self.net, params=self.names)
        return allocate(places, self.schedule.initial, "erk" if init == "erk" else "layer", self.min_per_layer)

    def _weights(self) -> dict[str, nn.Parameter]:
        return {name: self.net.get_parameter(name) for name in self.names}

    def _gradients(self) -> dict[str, Tensor | None]:
        return {name: weight.grad for name, weight in self._weights().items()}

    def _fraction(self) -> float:
        if self.grow is None:
            return 0.0
        return self.regrow_fraction(self.steps) if callable(self.regrow_fraction) else self.regrow_fraction

    def _worth(self) -> Mapping[str, Tensor]:
        """Scores of the criterion, from `.grad` where that is enough."""
        if self.criterion.needs != "gradient":
            batches = self.batches() if callable(self.batches) else self.batches
            return self.criterion(self.net, () if batches is None else batches, self.loss_fn, self.names)
        weights, gradients = self._weights(), {}
        for name, gradient in self._gradients().items():
            if gradient is None:
                raise ValueError(
                    f"{self.criterion!r} needs a gradient of {name!r}: step after loss.backward(), before zero_grad()."
                )
            gradients[name] = gradient
        return checked_scores(self.criterion, self.criterion.from_gradients(weights, gradients), weights)

    def _prune(self, worth: Mapping[str, Tensor], density: float | None) -> int:
        before = self.masks.kept()
        masks = allocate(worth, density, self.scope, self.min_per_layer, within=self.masks)
        self.handle.masks = masks.filled(self.masks.fill)
        return before - self.masks.kept()

    def _regrow(self, worth: Mapping[str, Tensor], fraction: float) -> int:
        assert self.grow is not None
        before = self.masks
        self.handle.masks = regrow(before, worth, self.grow.scores(self._gradients(), self._weights()), fraction)
        return (self.masks & ~before).kept()


def granet(
    net: nn.Module,
    optimizer: Optimizer,
    total_steps: int,
    density: float,
    initial: float = 0.5,
    *,
    start: int = 0,
    end: int | None = None,
    fraction: float = 0.5,
    **options: Any,
) -> Sparsifier:
    """Gradual pruning with zero-cost regeneration.

    Args:
        net: any module.
        optimizer: holds its weights.
        total_steps: length of training; the exchanged fraction falls to 0.005 over it.
        density: at the end of pruning.
        initial: at the start; 1 trains dense to sparse.
        start: first step of pruning.
        end: last step of pruning; None is half of training.
        fraction: exchanged at first.
        options: of `Sparsifier`.

    Source: Liu et al., NeurIPS 2021, algorithm 1.
    """
    schedule = Cubic(start, total_steps // 2 if end is None else end, initial, density)
    given: dict[str, Any] = {"grow": GradientGrowth(), "regrow_fraction": CosineDecay(fraction, 0.005, total_steps)}
    return _made(net, optimizer, total_steps, schedule, given | options)


def gmp(
    net: nn.Module,
    optimizer: Optimizer,
    total_steps: int,
    density: float,
    initial: float = 1.0,
    *,
    start: int = 0,
    end: int | None = None,
    **options: Any,
) -> Sparsifier:
    """Gradual magnitude pruning; arguments as in `granet`.

    Source: Zhu & Gupta 2017.
    """
    schedule = Cubic(start, total_steps // 2 if end is None else end, initial, density)
    return _made(net, optimizer, total_steps, schedule, options)


def rigl(
    net: nn.Module,
    optimizer: Optimizer,
    total_steps: int,
    density: float,
    *,
    fraction: float = 0.3,
    stop: float = 0.75,
    **options: Any,
) -> Sparsifier:
    """One density throughout; the weakest are exchanged for those of the steepest gradient.

    Args:
        net: any module.
        optimizer: holds its weights.
        total_steps: length of training.
        density: throughout.
        fraction: exchanged at first; it falls to 0 along half a cosine.
        stop: share of training after which nothing is exchanged.
        options: of `Sparsifier`.

    Source: Evci, Gale, Menick, Castro & Elsen, ICML 2020.
    """
    decay = CosineDecay(fraction, 0.0, max(1, round(stop * total_steps)))
    given: dict[str, Any] = {"grow": GradientGrowth(), "regrow_fraction": decay}
    return _made(net, optimizer, total_steps, Constant(density), given | options)


def set_(
    net: nn.Module,
    optimizer: Optimizer,
    total_steps: int,
    density: float,
    *,
    fraction: float = 0.3,
    generator: torch.Generator | None = None,
    **options: Any,
) -> Sparsifier:
    """One density throughout; a constant fraction of the weakest is exchanged for random ones.

    Args:
        net: any module.
        optimizer: holds its weights.
        total_steps: length of training.
        density: throughout.
        fraction: exchanged at every event.
        generator: source of initial places and of growth; None is one of seed 0.
        options: of `Sparsifier`.

    Source: Mocanu et al., Nature Communications 9 (2018).
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    given: dict[str, Any] = {"grow": RandomGrowth(generator), "regrow_fraction": fraction, "generator": generator}
    return _made(net, optimizer, total_steps, Constant(density), given | options)


def _made(
    net: nn.Module, optimizer: Optimizer, total_steps: int, schedule: Schedule, options: dict[str, Any]
) -> Sparsifier:
    every = options.get("every", 1000)
    if every > total_steps:
        raise ValueError(f"There is no event in {total_steps} steps: every is {every}.")
    return Sparsifier(net, optimizer, schedule=schedule, **options)
