"""Layers of spiking neurons whose spikes are fed back, and layers in a row.

x[t] + recurrent(s[t-1])                 current of a recurrent layer at step t
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as forget

from neuropil.spiking.kernels.dispatch import check_finite, loop
from neuropil.spiking.layers import Spiking
from neuropil.spiking.neurons import LIFNeuron, NeuronModel

__all__ = ["RecurrentLIF", "RecurrentSpiking", "RecurrentState", "SpikingSequential", "checkpoint_sequence"]


class RecurrentState(NamedTuple):
    """The neurons' own state, and the spikes that are fed back at the next step, (B, *)."""

    neuron: Any
    spikes: Tensor


class RecurrentSpiking(Spiking):
    """A layer whose last spikes are fed back: x[t] + recurrent(s[t-1]) is the current of step t.

    The matrix product at every step keeps this a plain loop over time.

    Args:
        neuron: the model.
        recurrent: from spikes (B, *) to currents (B, *).
        checkpoint, return_potential: see `Spiking`.
    """

    recurrent: nn.Module

    def __init__(
        self, neuron: NeuronModel, recurrent: nn.Module, *, checkpoint: bool = False, return_potential: bool = False
    ) -> None:
        super().__init__(neuron, backend="torch", checkpoint=checkpoint, return_potential=return_potential)
        self.recurrent = recurrent

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> RecurrentState:
        """At rest, and no spike before."""
        return RecurrentState(self.neuron.init_state(shape, like), like.new_zeros(shape))

    def _sequence(self, current: Tensor, state: Any, potential: bool) -> tuple[Tensor, Any, Any]:
        neuron, shape = self.neuron, tuple(current.shape[1:])
        state = self.init_state(shape, current) if state is None else state
        if state.spikes.shape != shape:
            raise ValueError(f"state.spikes must be of shape {shape}, got {tuple(state.spikes.shape)}.")
        if len(current) == 0:
            return current.clone(), state, current.clone() if potential else None

        def step(x: Tensor, state: RecurrentState) -> tuple[Tensor, RecurrentState, Tensor]:
            spikes, own, h = neuron.step(x + self.recurrent(state.spikes), state.neuron)
            return spikes, RecurrentState(own, spikes), h

        found = loop(step, current, state, self.checkpoint, potential)
        check_finite(step, current, state, found[1])
        return found


class RecurrentLIF(RecurrentSpiking):
    """Leaky integrate-and-fire neurons, all connected to all: `RecurrentSpiking` with a linear map without bias.

    Args:
        size: number of neurons.
        generator: draws the weights, uniform within 1/sqrt(size); None is a generator of seed 0.
        checkpoint, return_potential: see `Spiking`.
        options: of `LIFNeuron`; tau is taken by forward Euler unless integration says otherwise.
    """

    def __init__(
        self,
        size: int,
        *,
        generator: torch.Generator | None = None,
        checkpoint: bool = False,
        return_potential: bool = False,
        **options: Any,
    ) -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}.")
        neuron = LIFNeuron(**{"integration": "euler", **options})
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        # An empty linear map, since torch's own initial values would move the global random state.
        recurrent: Any = nn.utils.skip_init(nn.Linear, size, size, bias=False)
        with torch.no_grad():
            recurrent.weight.uniform_(-1 / math.sqrt(size), 1 / math.sqrt(size), generator=generator)
        super().__init__(neuron, recurrent, checkpoint=checkpoint, return_potential=return_potential)


class SpikingSequential(nn.Sequential):
    """Layers in a row, some with a state, some without: linear maps, convolutions, normalisations.

    A layer has a state if it has `init_state`; it is called as layer(x, state) and returns its output, its next state
    and possibly more, which is dropped: potentials are had through `potential_hooks`.

    Args:
        modules: in order.
        flatten: whether layers without a state see time and batch as one batch, (T B, *), as convolutions and batch
            normalisation need; otherwise they see (T, B, *).
    """

    def __init__(self, *modules: nn.Module, flatten: bool = True) -> None:
        super().__init__(*modules)
        self.flatten = flatten

    def init_state(self, shape: tuple[int, ...], like: Tensor) -> tuple[Any, ...]:
        """None for every layer with a state: each begins at rest when it sees its input."""
        return tuple(None for module in self if hasattr(module, "init_state"))

    def forward(self, input: Float[Tensor, "time batch *inputs"], state: Any = None) -> tuple[Tensor, tuple[Any, ...]]:
        """Run over a sequence.

        Args:
            input: (T, B, *).
            state: a tuple with the state of each layer that has one, in order; None is at rest.

        Returns:
            The last layer's output (T, B, *), and the states after the last step.

        Raises:
            ValueError: if there is not one state for each layer that has one.
        """
        stateful = [module for module in self if hasattr(module, "init_state")]
        states = [None] * len(stateful) if state is None else list(state)
        if len(states) != len(stateful):
            raise ValueError(f"state must hold one entry for each of {len(stateful)} layers, got {len(states)}.")
        x, after = input, []
        for module in self:
            if hasattr(module, "init_state"):
                x, next_state, *_ = module(x, states[len(after)])
                after.append(next_state)
            elif self.flatten:
                out = module(x.flatten(0, 1))
                x = out.view(*x.shape[:2], *out.shape[1:])
            else:
                x = module(x)
        return x, tuple(after)


def checkpoint_sequence(
    module: nn.Module, current: Float[Tensor, "time batch *inputs"], state: Any = None, chunks: int | None = None
) -> tuple[Any, ...]:
    """Run a module chunk by chunk, keep only the states between chunks, and run each again for the gradient.

    The result and its gradients are exact; with about sqrt(T) chunks memory grows as sqrt(T), at the price of a second
    forward pass. What a module does besides its result, as counting in a batch normalisation, it does twice.

    Args:
        module: from (current, state) to outputs, all time first but for the second, which is the next state.
        current: (T, B, *).
        state: to begin with; None is the module's own.
        chunks: number of them, at most T; None is about sqrt(T).

    Returns:
        What the module returns for the whole sequence.

    Raises:
        ValueError: if chunks is below 1.

    Source: Chen et al., arXiv:1604.06174 (2016).
    """
    if chunks is not None and chunks < 1:
        raise ValueError(f"chunks must be at least 1, got {chunks}.")
    steps = len(current)
    if steps == 0:
        return module(current, state)
    length = math.ceil(steps / (chunks or math.ceil(math.sqrt(steps))))
    parts = []
    for part in current.split(length):
        out, state, *more = forget(module, part, state, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
        parts.append((out, *more))
    out, *more = (torch.cat(each) for each in zip(*parts, strict=True))
    return out, state, *more
