"""Nowcasting in training: every so many steps, jump to where the weights are going.

With a period of T steps and c states, a state is kept every d = T/c steps. When c are kept they are forecast k states
ahead, k d steps' worth, the weights jump there, and the states are forgotten. Early jumps reach far, late ones less:

    k_n = round( linspace(sqrt(K), 1, N)_n ^2 ),    N = max_steps / T,    K = 40: 40 33 26 21 16 11 8 5 3 1 for N = 10
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import update_bn

from neuropil.learning.nowcast.forecasts import Nowcaster
from neuropil.learning.nowcast.graph import NeuralGraph, weight_table
from neuropil.learning.nowcast.tracing import neural_graph

__all__ = ["Nowcasting", "jump_schedule"]


def jump_schedule(calls: int, horizon: int = 40, power: float = 2.0) -> list[int]:
    """How many states ahead each jump goes, from `horizon` down to 1.

    Args:
        calls: number of jumps.
        horizon: of the first.
        power: 1 falls on a line, 2 on a parabola.

    Raises:
        ValueError: if calls or horizon is less than 1, or the power is not positive.

    Source: Knyazev et al. 2025, sec. 4.2.
    """
    if calls < 1 or horizon < 1 or power <= 0:
        raise ValueError(f"calls and horizon must be at least 1, power above 0; got {calls}, {horizon} and {power}.")
    return [round(value) for value in (np.linspace(horizon ** (1 / power), 1, calls) ** power).tolist()]


class Nowcasting:
    """Jumps of the weights, stepped after the optimizer.

    ```
    nowcasting = Nowcasting(net, optimizer, nowcaster)
    for x, y in batches:
        rule.learn(x, y, optimizer)        # or zero_grad, backward, step
        nowcasting.step()
    ```

    It reads weights alone, so any learning rule and any optimizer will do. Parameters that need no gradient are seen
    but never moved. Statistics of batch norms are no weights: after a jump they belong to the weights before, until
    `refresh` estimates them anew.

    Args:
        net: the network.
        optimizer: its optimizer; its moments stay as they are after a jump, unless `reset` clears them.
        nowcaster: forecasts the weights.
        period: steps from one jump to the next.
        context: states to look at.
        max_steps: of the training; sets the number of jumps over which the horizon falls.
        power: of the schedule.
        horizon: of the first jump, in states; None is the nowcaster's largest, or 40.
        guard: the loss to watch, without arguments: a jump that raises it, or is not finite, is taken back.
        refresh: makes batches of inputs, from which the running statistics of batch norms are estimated after a jump.
        reset: clear the optimizer's state after a jump.

    Attributes:
        schedule: states ahead, jump by jump; the last one goes on.
        steps: taken so far.
        jumps: steps after which the weights jumped.
        rejected: steps after which the guard took a jump back.

    Raises:
        ValueError: if the period is no multiple of the context, the nowcaster looks at another number of states, or a
            number is out of range.
        TypeError: if the nowcaster needs a graph of a net that `neural_graph` does not know.

    Source: Knyazev et al. 2025, algorithm 1. There the jump takes the place of a gradient step; here it follows one.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        nowcaster: Nowcaster,
        *,
        period: int = 1000,
        context: int = 5,
        max_steps: int = 10_000,
        power: float = 2.0,
        horizon: int | None = None,
        guard: Callable[[], Tensor | float] | None = None,
        refresh: Callable[[], Iterable[Tensor]] | None = None,
        reset: bool = False,
    ):
        if context < 2 or period < context or period % context:
            raise ValueError(f"period must be a multiple of context (at least 2), got {period} and {context}.")
        if nowcaster.context != context:
            raise ValueError(f"The nowcaster looks at {nowcaster.context} states, context is {context}.")
        largest = nowcaster.horizons
        if horizon is not None and largest is not None and horizon > largest:
            raise ValueError(f"The nowcaster's largest horizon is {largest}, got {horizon}.")
        self.net, self.optimizer, self.nowcaster = net, optimizer, nowcaster
        self.period, self.context = period, context
        self.schedule = jump_schedule(max(1, max_steps // period), horizon or largest or 40, power)
        self.guard, self.refresh, self.reset = guard, refresh, reset
        features = getattr(nowcaster, "features", 9)
        self.graph = neural_graph(net, features=features) if nowcaster.needs_graph else weight_table(net)
        self.steps = 0
        self.states: list[Tensor] = []
        self.jumps: list[int] = []
        self.rejected: list[int] = []

    def step(self) -> bool:
        """Count a step, keep a state when one is due, and jump when enough are kept.

        Returns:
            Whether the weights jumped.

        Raises:
            ValueError: if the forecast is not finite and there is no guard; the weights are as they were.
        """
        self.steps += 1
        if self.steps % (self.period // self.context):
            return False
        self.states.append(self.weights())
        if len(self.states) < self.context:
            return False
        call = self.steps // self.period - 1
        return self.jump(self.schedule[min(call, len(self.schedule) - 1)])

    @torch.no_grad()
    def jump(self, k: int) -> bool:
        """Jump k states ahead now, and forget the states.

        Returns:
            Whether the weights jumped: False if the guard took it back.

        Raises:
            ValueError: if fewer than `context` states are kept, k is out of range, or the forecast is not finite and
                there is no guard; the weights are as they were.
        """
        if len(self.states) < self.context:
            raise ValueError(f"A jump needs {self.context} states, {len(self.states)} are kept.")
        history, self.states = torch.stack(self.states, dim=1), []
        before, forecast = history[:, -1], self.forecast(history, k)
        if not bool(forecast.isfinite().all()):
            return self._not_finite(forecast, k)
        watched = None if self.guard is None else float(self.guard())
        self.write(forecast)
        # Not "rises above": a loss that is NaN after the jump compares as neither.
        if self.guard is not None and watched is not None and not float(self.guard()) <= watched:
            self.write(before)
            self.rejected.append(self.steps)
            return False
        self.jumps.append(self.steps)
        if self.reset:
            self.optimizer.state.clear()
        if self.refresh is not None:
            update_bn(self.refresh(), self.net)
        return True

    def forecast(self, history: Tensor, k: int) -> Tensor:
        """Forecast of the flat vector of weights, computed where the nowcaster lives."""
        parameter = next(self.nowcaster.parameters(), None)
        device = history.device if parameter is None else parameter.device
        self.graph: NeuralGraph = self.graph.to(device)
        return self.nowcaster(history.to(device), self.graph, k).to(history)

    @torch.no_grad()
    def weights(self) -> Tensor:
        """The flat vector of weights, on the CPU, in at least single precision."""
        flat = torch.cat([parameter.detach().flatten().cpu() for parameter in self.net.parameters()])
        return flat if flat.dtype == torch.float64 else flat.float()

    @torch.no_grad()
    def write(self, flat: Tensor) -> None:
        """Set the parameters that learn from a flat vector of weights."""
        for parameter, span in zip(self.net.parameters(), self.graph.param_slices.values(), strict=True):
            if parameter.requires_grad:
                parameter.copy_(flat[span].view_as(parameter))

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on: steps, kept states, jumps."""
        return {
            "steps": self.steps,
            "states": list(self.states),
            "jumps": list(self.jumps),
            "rejected": list(self.rejected),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: if a state has another number of weights than the net.
        """
        for kept in state["states"]:
            if kept.shape != (self.graph.weights,):
                raise ValueError(f"A kept state has shape {tuple(kept.shape)}, the net {self.graph.weights} weights.")
        self.steps = int(state["steps"])
        self.states, self.jumps, self.rejected = (list(state[name]) for name in ("states", "jumps", "rejected"))

    def _not_finite(self, forecast: Tensor, k: int) -> bool:
        if self.guard is not None:
            self.rejected.append(self.steps)
            return False
        wrong = [name for name, span in self.graph.param_slices.items() if not bool(forecast[span].isfinite().all())]
        raise ValueError(
            f"The forecast {k} states ahead after step {self.steps} is not finite in {', '.join(wrong)}; "
            "the weights are as they were."
        )
