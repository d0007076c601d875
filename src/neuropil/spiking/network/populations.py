"""What a network is made of: neurons, sources of spikes, and groups of either."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from neuropil.spiking.neurons import NeuronModel

__all__ = ["Group", "PoissonInput", "PoissonSource", "Population", "SpikeSource"]


@dataclass(frozen=True, eq=False)
class Population:
    """Neurons of one model.

    Args:
        n: how many, at least 1.
        model: the neuron, times in ms; the network sets its dt.
        name: by which recordings and states call it.
        bias: constant input in the unit of the model's current (mV for `LIFNeuron`), a number or one for each, (n,).
    """

    n: int
    model: NeuronModel
    name: str | None = None
    bias: float | Tensor = 0.0

    def __post_init__(self) -> None:
        _require_size(self.n)
        if not isinstance(self.model, NeuronModel):
            raise TypeError(f"model must be a NeuronModel, got {type(self.model).__name__}.")
        require_values("bias", self.bias, self.n)


@dataclass(frozen=True, eq=False)
class PoissonSource:
    """Sources that fire independently at random, at most once a step.

    Args:
        n: how many, at least 1.
        rate: Hz, not negative, a number or one for each, (n,).
        name: by which recordings and states call it.
    """

    n: int
    rate: float | Tensor
    name: str | None = None

    def __post_init__(self) -> None:
        _require_size(self.n)
        require_values("rate", self.rate, self.n, low=0.0)


@dataclass(frozen=True, eq=False)
class SpikeSource:
    """Sources that fire when they are told.

    Args:
        times: ms, of each source; rounded to steps.
        name: by which recordings and states call it.
    """

    times: Sequence[Sequence[float] | Tensor]
    name: str | None = None

    def __post_init__(self) -> None:
        _require_size(self.n)
        for i, times in enumerate(self.times):
            values = torch.as_tensor(times, dtype=torch.float64)
            if values.ndim != 1 or not bool((values.isfinite() & (values >= 0)).all()):
                raise ValueError(f"times of source {i} must be a sequence of finite times, 0 or later.")

    @property
    def n(self) -> int:
        """Number of sources."""
        return len(self.times)

    def events(self, dt: float) -> tuple[Tensor, Tensor]:
        """Steps and sources of all spikes, sorted by both; two in one step are one."""
        steps = [(torch.as_tensor(t, dtype=torch.float64) / dt).round().long() for t in self.times]
        pairs = [torch.stack((s, torch.full_like(s, i))) for i, s in enumerate(steps)]
        joined = torch.unique(torch.cat(pairs, dim=1), dim=1) if pairs else torch.zeros(2, 0, dtype=torch.long)
        return joined[0].contiguous(), joined[1].contiguous()


@dataclass(frozen=True)
class PoissonInput:
    """Poisson spikes from outside onto every neuron of a group, independent ones, any number in a step.

    Args:
        rate: Hz of all arrivals at a neuron together, not negative, a number or one for each neuron of the group.
    """

    rate: float | Tensor

    def __post_init__(self) -> None:
        require_values("rate", self.rate, None, low=0.0)


@dataclass(frozen=True)
class Group:
    """Neurons start, ..., stop - 1 of a population of a network; slices give smaller groups."""

    population: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, part: slice) -> "Group":
        if not isinstance(part, slice):
            raise TypeError(f"A group is cut by slices, got {type(part).__name__}.")
        start, stop, step = part.indices(len(self))
        if step != 1 or stop <= start:
            raise ValueError(f"A group must keep consecutive neurons, at least one; got {part} of {len(self)}.")
        return Group(self.population, self.start + start, self.start + stop)


def _require_size(n: int) -> None:
    if not 1 <= n < 2**31:
        raise ValueError(f"A population has 1 to 2^31 - 1 neurons, got {n}.")


def require_values(
    name: str, values: float | Tensor, n: int | None, *, low: float = -math.inf, high: float = math.inf
) -> None:
    """Refuse what is not a finite number, or n of them, within bounds.

    Raises:
        ValueError: in words that name the argument.
    """
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim and n is not None and tuple(tensor.shape) != (n,):
        raise ValueError(f"{name} must be a number or of shape ({n},), got {tuple(tensor.shape)}.")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite.")
    if not bool(((tensor >= low) & (tensor <= high)).all()):
        bounds = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
        raise ValueError(f"{name} must be {bounds}, got {tensor.min():g} to {tensor.max():g}.")
