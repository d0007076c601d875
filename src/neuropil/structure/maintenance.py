"""What is stepped beside an optimizer: pruning, growth, renewal, protection, in the user's own loop.

    keep = Chain(granet(net, optimizer, ...), ...)
    for x, y in batches:
        optimizer.zero_grad()
        (loss_fn(net(x), y) + keep.penalty()).backward()
        keep.before_step()
        optimizer.step()
        keep.step()
    keep.end_task(data)

Every method does nothing by default: an object implements those that it needs, and the loop can call all of them.
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Chain", "Maintenance"]


class Maintenance:
    """The protocol, doing nothing."""

    def penalty(self) -> Float[Tensor, ""]:
        """A term to add to the loss; a zero of no device in particular if there is none."""
        return torch.zeros(())

    def before_step(self) -> None:
        """Called after `backward` and before the optimizer: edits gradients, or keeps what `step` compares with."""

    def step(self) -> Any:
        """Called after the optimizer's step."""

    def end_task(self, data: Iterable[Any] | None = None) -> None:
        """Called when a task is over.

        Args:
            data: batches of (x, y) of that task, for those that look back at it.
        """

    def state_dict(self) -> dict[str, Any]:
        """What must be saved to go on later: tensors, numbers, strings, and lists and dicts of those."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave.

        Raises:
            ValueError: if it belongs to something else.
        """
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, got {', '.join(map(str, state))}.")


class Chain(Maintenance):
    """Several as one: penalties add up, calls go in the order given.

    What restores entries (masks, frozen weights) comes last, so that nothing moves them afterwards.
    """

    def __init__(self, *parts: Maintenance):
        self.parts = parts

    def penalty(self) -> Float[Tensor, ""]:
        """The sum of all penalties."""
        total = torch.zeros(())
        for part in self.parts:
            total = total + part.penalty()
        return total

    def before_step(self) -> None:
        """Call that of every part."""
        for part in self.parts:
            part.before_step()

    def step(self) -> list[Any]:
        """Call that of every part; returns what they return, in order."""
        return [part.step() for part in self.parts]

    def end_task(self, data: Iterable[Any] | None = None) -> None:
        """Call that of every part; data that can be read only once are read into a list first."""
        if data is not None and iter(data) is data:
            data = list(data)
        for part in self.parts:
            part.end_task(data)

    def state_dict(self) -> dict[str, Any]:
        """Those of the parts, by their places."""
        return {str(place): part.state_dict() for place, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Give every part its own.

        Raises:
            ValueError: if the number of parts differs.
        """
        if set(state) != {str(place) for place in range(len(self.parts))}:
            raise ValueError(f"The state is of {len(state)} parts, this chain has {len(self.parts)}.")
        for place, part in enumerate(self.parts):
            part.load_state_dict(state[str(place)])
