"""What a network consists of, and its state by name: shared by the compiled engine and the one in torch."""

from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from neuropil.spiking.kernels import poisson
from neuropil.spiking.neurons import LIFNeuron, NeuronModel

from .astrocytes import AstrocyteDomain
from .populations import Group, PoissonInput, PoissonSource, Population, SpikeSource
from .projections import Gate, Projection
from .receptors import Receptor
from .synapses import COBA, NMDA, Delta, Output, Synapse

__all__ = ["Drive", "Wiring"]


@dataclass
class Drive:
    """Poisson arrivals from outside at the neurons of a group."""

    post: Group
    source: PoissonInput
    weight: float | Tensor
    receptor: Receptor
    seed: np.uint64

    def table(self, dt: float) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
        """Mean of each neuron, or None with a table for all; see `kernels.poisson`."""
        mean = torch.as_tensor(self.source.rate, dtype=torch.float64) * (dt * 1e-3)
        if mean.ndim == 0:
            return None, *poisson.poisson_table(float(mean))
        return np.ascontiguousarray(mean.cpu().numpy()), np.zeros(1, np.uint32), np.zeros(1, np.uint32)


@dataclass
class Wiring:
    """Populations, projections and state of a network.

    The state holds one tensor for each name, without a batch dimension; `step` counts the steps that were run. The
    history of a population, (delays, n), says who fired in the last steps, the last one first; `kinds` holds the named
    tuple in which each model keeps its state.
    """

    dt: float
    dtype: torch.dtype
    device: torch.device
    populations: dict[str, Population | PoissonSource | SpikeSource] = field(default_factory=dict)
    seeds: dict[str, np.uint64] = field(default_factory=dict)
    projections: list[Projection] = field(default_factory=list)
    receptors: dict[str, list[Receptor]] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    drives: list[Drive] = field(default_factory=list)
    domains: list[AstrocyteDomain] = field(default_factory=list)
    kinds: dict[str, type] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0

    def require_unrun(self, what: str) -> None:
        """Refuse to change what has run.

        Raises:
            RuntimeError: if it has.
        """
        if self.step:
            raise RuntimeError(
                f"{what} comes before the first run: this network has run for {self.step * self.dt:g} ms."
            )

    def add(self, name: str, population: Population | PoissonSource | SpikeSource, seed: np.uint64) -> None:
        """Enter a population; its model takes the network's step and type.

        Raises:
            ValueError: if the name is taken or odd, or a source would fire more than once a step.
        """
        self.require_unrun("add")
        if name in self.populations or any(mark in name for mark in "./[] "):
            raise ValueError(f"A population needs a name of its own without . / [ ] or blanks, got {name!r}.")
        if isinstance(population, PoissonSource):
            highest = float(torch.as_tensor(population.rate).max()) * self.dt * 1e-3
            if highest > 1:
                raise ValueError(
                    f"A source fires at most once a step, but its rate asks for {highest:g}; see PoissonInput."
                )
        if isinstance(population, Population):
            population = replace(population, model=self._adapted(population.model))
        self.populations[name], self.seeds[name] = population, seed
        self.receptors[name] = []

    def _adapted(self, model: NeuronModel) -> NeuronModel:
        """The model with the network's step, its tensors in the network's type."""
        tensors = {
            f.name: value.detach().to(self.device, self.dtype)
            for f in fields(model)  # pyright: ignore[reportArgumentType]
            if isinstance(value := getattr(model, f.name), Tensor)
        }
        return replace(model, dt=self.dt, **tensors)  # pyright: ignore[reportArgumentType]

    def receptor(self, post: Group, synapse: Synapse, output: Output, scale: str | None, gated: bool) -> Receptor:
        """The receptor of a population with these dynamics, a new one if there is none."""
        # What gates add up to is made anew in every step, which is what Delta dynamics do to g.
        linear = Delta() if gated else synapse
        own = self.receptors[post.population]
        for receptor in own:
            alike = (receptor.synapse, receptor.output, receptor.gated) == (linear, output, gated)
            if alike and scale is None and receptor.scale is None:
                return receptor
        name = f"{post.population}/receptor{len(own)}"
        own.append(Receptor(name, self.populations[post.population].n, linear, output, scale=scale, gated=gated))  # pyright: ignore[reportArgumentType]
        return own[-1]

    def gate(self, pre: Group, synapse: NMDA, delay: int) -> Gate:
        """The gates that a group opens after a delay."""
        for gate in self.gates:
            if (gate.pre, gate.synapse, gate.delay) == (pre, synapse, delay):
                return gate
        self.gates.append(Gate(f"gate{len(self.gates)}", pre, synapse, delay))
        return self.gates[-1]

    def connect(self, projection: Projection) -> None:
        """Enter a projection.

        Raises:
            ValueError: if its name is taken.
        """
        if any(projection.name == other.name for other in self.projections):
            raise ValueError(f"There is a projection named {projection.name!r} already.")
        self.projections.append(projection)

    def depth(self, name: str) -> int:
        """Steps of history that projections and gates of a population look back."""
        lags = [p.lag for p in self.projections if p.pre.population == name]
        return max([1, *lags, *(gate.delay for gate in self.gates if gate.pre.population == name)])

    def membrane(self, name: str) -> float | None:
        """Time constant by which linear receptors act exactly on a population, or None."""
        model = self.populations[name].model  # pyright: ignore[reportAttributeAccessIssue]
        conductances = any(isinstance(r.output, COBA) for r in self.receptors[name])
        if type(model) is not LIFNeuron or conductances or model.gain is not None or model.integration != "exact":
            return None
        return float(model.tau) if isinstance(model.tau, int | float) else None

    def initialise(self) -> None:
        """Make the state variables that are not there yet."""
        like = torch.zeros((), dtype=self.dtype, device=self.device)
        wanted: dict[str, Tensor] = {}
        for name, population in self.populations.items():
            wanted[f"{name}.history"] = like.new_zeros((self.depth(name), population.n), dtype=torch.bool)
            if isinstance(population, Population):
                rest = population.model.init_state((population.n,), like)
                self.kinds[name] = type(rest)
                wanted |= {f"{name}.{k}": v for k, v in rest._asdict().items() if v is not None}
        shapes = [r.initial() for own in self.receptors.values() for r in own]
        for shape in [*shapes, *(gate.initial() for gate in self.gates), *(p.initial() for p in self.projections)]:
            wanted |= {name: like.new_zeros(size, dtype=_type_of(name, self.dtype)) for name, size in shape.items()}
        for p in self.projections:
            if p.plasticity is not None:
                wanted[f"{p.name}.weight"] = (
                    torch.as_tensor(p.weight, dtype=like.dtype, device=like.device).expand(p.stored().nnz).clone()
                )
            if p.short_term is not None:
                wanted[f"{p.name}.recovered"].fill_(1.0)
            if p.receptor.scale is not None:
                wanted[p.receptor.scale] = like.new_ones(p.receptor.n)
        for domain in self.domains:
            wanted |= domain.initial(like)
        for name, value in wanted.items():
            if name not in self.state or self.state[name].shape != value.shape:
                self.state[name] = value.contiguous()

    def bias(self, name: str) -> float | Tensor:
        """Constant input of a population, with what astrocytes add."""
        population = self.populations[name]
        assert isinstance(population, Population)
        bias = population.bias
        for domain in self.domains:
            post = domain.projection.post
            if domain.coupling.acts == "current" and post.population == name:
                like = self.state[f"{domain.name}.glia_current"]
                bias = torch.as_tensor(bias, dtype=like.dtype, device=like.device).expand(population.n).clone()
                bias[post.start : post.stop] += like
        return bias


def _type_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """Steps are integers, all else is of the network's type."""
    kinds = {"last": torch.int64, "changed": torch.int32}
    return kinds.get(name.rsplit(".", 1)[-1], dtype)
