"""Nowcasting in training: every so often the weights jump to where a nowcaster says they will be.

    every d = period / context steps     keep a state of the weights
    with `context` states                theta <- theta_hat(k),  forget the states, keep the optimizer's moments
    call n of N = max_steps / period     k_n = round((sqrt(K) + (1 - sqrt(K)) (n - 1) / (N - 1))^2),  K horizons

k counts states, d steps each: early calls look far ahead, late ones next to nothing. A power other than 2 takes the
place of the square and its root.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.learning.nowcast.forecasts import Nowcaster
from neuropil.learning.nowcast.graph import NeuralGraph, neural_graph, weight_table

__all__ = ["Jump", "Nowcasting", "jump_schedule", "refresh_statistics", "weight_vector"]


class Jump(NamedTuple):
    """One call of the nowcaster.

    Attributes:
        step: of the optimizer after which it came.
        k: states that it looked ahead.
        kept: whether the forecast was kept; False where the guard reverted it.
        before: loss at the old weights; None without a guard.
        after: loss at the forecast; None without a guard.
    """

    step: int
    k: int
    kept: bool = True
    before: float | None = None
    after: float | None = None


def jump_schedule(horizons: int, calls: int, power: float = 2.0) -> list[int]:
    """How far each call looks ahead: from all horizons down to 1.

    Args:
        horizons: at the first call, at least 1.
        calls: how many there will be; the first has the full horizon even where it is the only one.
        power: of the decay, above 0; 1 is a straight line.

    Raises:
        ValueError: if a number is out of range.
    """
    if horizons < 1 or calls < 1 or power <= 0:
        raise ValueError(
            f"horizons and calls must be at least 1 and power above 0, got {horizons}, {calls} and {power}."
        )
    return [int(k) for k in (np.linspace(horizons ** (1 / power), 1, calls) ** power).round()]


def weight_vector(net: nn.Module) -> Float[Tensor, " weights"]:
    """A copy of all parameters as one vector, in the order of `named_parameters`, on the CPU."""
    return torch.cat([parameter.detach().reshape(-1).cpu() for parameter in net.parameters()])


class Nowcasting:
    """Lets the weights of any training jump ahead; stepped after the optimizer.

    Args:
        net: the network in training.
        optimizer: that trains it.
        nowcaster: forecasts the weights.
        period: optimizer steps a call, a multiple of the nowcaster's context.
        max_steps: optimizer steps of the whole training: sets the schedule. Later calls look one state ahead.
        power: of the schedule's decay.
        horizons: of the first call; None takes all that the nowcaster has.
        guard: the loss at the present weights; a jump that raises it, or makes it other than a number, is taken back.
        reset_moments: whether the optimizer forgets its state at a jump.
        batches: inputs by which batch norms renew their running statistics after a jump; None leaves them.
        graph: of the network; None makes it.

    Attributes:
        steps: of the optimizer so far.
        jumps: what was done at each call.

    Raises:
        TypeError: as `neural_graph`, for nowcasters that need one.
        ValueError: if the period is no multiple of the context, or a number is out of range.

    Source: Knyazev et al. 2025, sec. 3. There the states are taken before the optimizer's step, and the step of a call
        has none; here both come after it.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        nowcaster: Nowcaster,
        *,
        period: int = 1000,
        max_steps: int = 10_000,
        power: float = 2.0,
        horizons: int | None = None,
        guard: Callable[[], Tensor | float] | None = None,
        reset_moments: bool = False,
        batches: Iterable[Tensor] | None = None,
        graph: NeuralGraph | None = None,
    ):
        context = nowcaster.context
        if period < context or period % context:
            raise ValueError(f"period must be a multiple of the nowcaster's context of {context} states, got {period}.")
        if horizons is not None and not 1 <= horizons <= nowcaster.horizons:
            raise ValueError(f"horizons must lie in 1..{nowcaster.horizons}, got {horizons}.")
        if isinstance(batches, Iterator):
            raise ValueError("batches are used at every jump: pass a list or a loader, not an iterator.")
        self.net, self.optimizer, self.nowcaster = net, optimizer, nowcaster
        self.schedule = jump_schedule(horizons or nowcaster.horizons, max(1, max_steps // period), power)
        self.every = period // context
        self.guard, self.reset_moments, self.batches = guard, reset_moments, batches
        make = neural_graph if nowcaster.connected else weight_table
        self.graph = make(net) if graph is None else graph
        self.steps = 0
        self.states: list[Tensor] = []
        self.jumps: list[Jump] = []

    @torch.no_grad()
    def step(self) -> bool:
        """Count a step of the optimizer; keep a state or jump where it is time.

        Returns:
            Whether the weights are now those of a forecast.

        Raises:
            FloatingPointError: if the forecast is not finite; the weights stay as they were.
            ValueError: if the network's parameters are no longer those of the graph.
        """
        self.steps += 1
        if self.steps % self.every:
            return False
        self.states.append(weight_vector(self.net))
        if len(self.states) < self.nowcaster.context:
            return False
        states, self.states = self.states, []
        call = len(self.jumps)
        k = self.schedule[call] if call < len(self.schedule) else 1
        forecast = self._forecast(states, k)
        jump = Jump(self.steps, k)
        if self.guard is None:
            self._write(forecast)
        else:
            before = float(self.guard())
            self._write(forecast)
            after = float(self.guard())
            jump = Jump(self.steps, k, after <= before, before, after)  # NaN is not kept
            if not jump.kept:
                self._write(states[-1])
        self.jumps.append(jump)
        if jump.kept:
            self._settle()
        return jump.kept

    def _forecast(self, states: list[Tensor], k: int) -> Tensor:
        device = next(self.nowcaster.parameters(), next(self.net.parameters())).device
        forecast = self.nowcaster(torch.stack(states, dim=1).to(device), self.graph, k)
        if not bool(forecast.isfinite().all()):
            raise FloatingPointError(
                f"{type(self.nowcaster).__name__} forecasts {int((~forecast.isfinite()).sum())} weights that are not "
                f"finite, {k} states ahead of step {self.steps}; the weights are left as they were."
            )
        return forecast

    def _write(self, vector: Tensor) -> None:
        parts = vector.split([parameter.numel() for parameter in self.net.parameters()])
        for parameter, part in zip(self.net.parameters(), parts, strict=True):
            if parameter.requires_grad:  # what is frozen stays
                parameter.copy_(part.view_as(parameter))

    def _settle(self) -> None:
        if self.reset_moments:
            for parameter in self.net.parameters():
                self.optimizer.state.pop(parameter, None)
        if self.batches is not None:
            refresh_statistics(self.net, self.batches)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training needs: tensors and plain numbers."""
        return {"steps": self.steps, "states": list(self.states), "jumps": [tuple(jump) for jump in self.jumps]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        self.steps = int(state["steps"])
        self.states = list(state["states"])
        self.jumps = [Jump(*jump) for jump in state["jumps"]]


@torch.no_grad()
def refresh_statistics(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Compute the running statistics of batch norms anew, as means over batches; nothing else of the net changes.

    Args:
        net: any network; dropout is off meanwhile.
        batches: inputs.
    """
    kinds = nn.modules.batchnorm._BatchNorm
    norms = [module for module in net.modules() if isinstance(module, kinds) and module.track_running_stats]
    if not norms:
        return
    modes = {module: module.training for module in net.modules()}
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    try:
        for batch in batches:
            net(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
