"""What every circuit is: a step from an input and a state to an output and the next state.

    output, state = circuit.step(x_t, state)            x_t (batch, neurons)
    outputs, state = circuit(x, state)                  x (time, batch, neurons): the same, step after step

States are named tuples of tensors, of None where a circuit has no such variable, and of further named tuples. A circuit
never keeps one: what the caller does not pass on is forgotten.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

__all__ = ["Circuit", "detach", "map_state", "stack_states"]

State = TypeVar("State", bound=tuple[Any, ...])


class Circuit(nn.Module, ABC):
    """Anything that has a state and takes a sequence step by step; a subclass gives `init_state` and `step`."""

    @abstractmethod
    def init_state(self, batch: int, *, generator: torch.Generator | None = None) -> Any:
        """The state before the first step, a named tuple.

        Args:
            batch: number of sequences.
            generator: of what is random in it; circuits that begin at rest do not use it.
        """

    @abstractmethod
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Advance by one step.

        Args:
            x: the input of the step, (batch, neurons).
            state: what the last step returned, or `init_state`; it is left as it is.

        Returns:
            The output (batch, outputs), and the next state.
        """

    def forward(
        self, x: Shaped[Tensor, "time batch *neurons"], state: Any = None
    ) -> tuple[Shaped[Tensor, "time batch *outputs"], Any]:
        """Take a whole sequence.

        Args:
            x: inputs, time first; there may be no steps.
            state: to go on from; None is `init_state` without a generator, in the type and on the device of x.

        Returns:
            The outputs of all steps, and the state after the last.
        """
        if state is None:
            state = map_state(lambda part: _like(part, x), self.init_state(x.shape[1]))
        if len(x) == 0:
            # Only a step tells the shape and the type of an output.
            with torch.no_grad():
                output, _ = self.step(x.new_zeros(x.shape[1:]), state)
            return output.new_zeros((0, *output.shape)), state
        outputs = []
        for x_t in x:
            output, state = self.step(x_t, state)
            outputs.append(output)
        return torch.stack(outputs), state


def map_state(fn: Callable[[Tensor], Tensor], state: State) -> State:
    """A state whose tensors are those that fn returns; None stays None.

    Raises:
        TypeError: if a part is neither a tensor, None nor a named tuple.
    """
    parts = (_map_part(fn, name, part) for name, part in zip(_fields(state), state, strict=True))
    return type(state)(*parts)


def detach(state: State) -> State:
    """The state without its history: gradients stop here, as in truncated backpropagation through time."""
    return map_state(Tensor.detach, state)


def stack_states(states: Sequence[State], dim: int = 0) -> State:
    """One state of several, along a new axis: a trajectory of states, or copies of a circuit side by side.

    Args:
        states: at least one, of equal structure and shapes.
        dim: where the new axis stands.

    Raises:
        ValueError: if there is none, or their structures differ.
    """
    if not states:
        raise ValueError("stack_states needs at least one state, got none.")
    first = states[0]
    if any(type(state) is not type(first) for state in states):
        names = ", ".join(sorted({type(state).__name__ for state in states}))
        raise ValueError(f"States to stack must be of one type, got {names}.")
    stacked = []
    for name, *parts in zip(_fields(first), *states, strict=True):
        nothing = [part is None for part in parts]
        if all(nothing):
            stacked.append(None)
        elif any(nothing):
            raise ValueError(f"{name} is None in some of the states to stack, but not in all.")
        else:
            stacked.append(stack_states(parts, dim) if isinstance(parts[0], tuple) else torch.stack(parts, dim))
    return type(first)(*stacked)


def _fields(state: tuple[Any, ...]) -> tuple[str, ...]:
    fields = getattr(state, "_fields", None)
    if fields is None:
        raise TypeError(f"A state must be a named tuple, got {type(state).__name__}.")
    return fields


def _map_part(fn: Callable[[Tensor], Tensor], name: str, part: Any) -> Any:
    if part is None:
        return None
    if isinstance(part, Tensor):
        return fn(part)
    if isinstance(part, tuple):
        return map_state(fn, part)
    raise TypeError(f"{name} of a state must be a tensor, None or a named tuple, got {type(part).__name__}.")


def _like(part: Tensor, x: Tensor) -> Tensor:
    """On the device of x, and in its type where both are real numbers."""
    return part.to(x) if part.is_floating_point() and x.is_floating_point() else part.to(x.device)
