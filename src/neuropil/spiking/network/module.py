"""A network as a differentiable module: the reference of the compiled engine, in torch.

Spikes are steps with a surrogate gradient. It flows through arrivals, each with its delay, through receptors, membrane
and reset; holding refractory neurons and comparing with the threshold are constants (Wang et al. 2024). Every sum is in
the order of the compiled engine, so that without a gradient both give the same spikes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from neuropil.draws import mix
from neuropil.spiking.kernels.poisson import poisson_counts, poisson_spikes

from .populations import Group, PoissonSource, Population, SpikeSource
from .projections import Projection
from .receptors import Inputs, State
from .wiring import Wiring

__all__ = ["NetworkModule", "step_network"]


class NetworkModule(nn.Module):
    """A network of neurons and synapses with explicit state, trainable by surrogate gradients.

    Args:
        wiring: of the network.
        inputs: neurons whose current the module takes; None is all neurons.
        outputs: neurons whose spikes it returns; None is all neurons.
        trainable: projections whose weights are parameters; None is all but plastic ones.
        checkpoint_steps: run so many steps at a time and keep only the state between them for the backward pass, which
            then runs them again; 0 keeps everything.

    Raises:
        ValueError: if the network has astrocytes or plastic projections among the trainable ones.
    """

    def __init__(
        self,
        wiring: Wiring,
        *,
        inputs: Group | None = None,
        outputs: Group | None = None,
        trainable: Sequence[Projection] | None = None,
        checkpoint_steps: int = 0,
    ) -> None:
        super().__init__()
        if wiring.domains:
            raise ValueError("Astrocytes act between the steps of Network.run; a module has none.")
        if any(p.plasticity is not None for p in wiring.projections):
            raise ValueError("Plastic projections learn in Network.run; a module learns by gradients: connect without.")
        chosen = wiring.projections if trainable is None else list(trainable)
        if missing := [p.name for p in chosen if all(p is not q for q in wiring.projections)]:
            raise ValueError(f"trainable holds projections of another network: {', '.join(missing)}.")
        self.wiring, self.inputs, self.outputs = wiring, inputs, outputs
        self.checkpoint_steps = checkpoint_steps
        self.start = wiring.step
        self._rest = {name: value.clone() for name, value in wiring.state.items()}
        self.weights = nn.ParameterDict()
        for p in wiring.projections:
            value = torch.as_tensor(p.weight, dtype=wiring.dtype, device=wiring.device).clone()
            self.weights[p.name] = nn.Parameter(value, requires_grad=any(p is q for q in chosen))

    @property
    def neurons(self) -> list[str]:
        """Names of the populations of neurons, in order."""
        return [name for name, p in self.wiring.populations.items() if isinstance(p, Population)]

    def init_state(self, batch: int) -> State:
        """The state from which the network was made a module, for a batch."""
        state = {name: value.expand(batch, *value.shape).clone() for name, value in self._rest.items()}
        for name in self.wiring.populations:
            state[f"{name}.history"] = state[f"{name}.history"].to(self.wiring.dtype)
        state["step"] = torch.full((batch,), self.start)
        return state

    def forward(
        self, current: Float[Tensor, "time batch inputs"], state: State | None = None
    ) -> tuple[Float[Tensor, "time batch outputs"], State]:
        """Run for as many steps as there are currents.

        Args:
            current: besides the bias, (time, batch, inputs).
            state: what the last call returned; by default `init_state`.

        Returns:
            Spikes of the outputs, and the state.

        Raises:
            ValueError: if the current does not fit, or is not finite.
        """
        groups = [Group(n, 0, self.wiring.populations[n].n) for n in self.neurons]
        takes = groups if self.inputs is None else [self.inputs]
        if current.ndim != 3 or current.shape[2] != sum(map(len, takes)):
            raise ValueError(f"current must be (time, batch, {sum(map(len, takes))}), got {tuple(current.shape)}.")
        if not bool(current.isfinite().all()):
            raise ValueError("current holds NaN or infinite values.")
        now: State = dict(self.init_state(current.shape[1]) if state is None else state)
        chunk = self.checkpoint_steps or max(len(current), 1)
        outputs = []
        for part in current.split(chunk) if len(current) else ():
            if self.checkpoint_steps and torch.is_grad_enabled():
                spikes, now = checkpoint(self._steps, part, now, takes, use_reentrant=False)  # pyright: ignore[reportGeneralTypeIssues]
            else:
                spikes, now = self._steps(part, now, takes)
            outputs.append(spikes)
        gives = groups if self.outputs is None else [self.outputs]
        empty = current.new_zeros(0, current.shape[1], sum(map(len, gives)))
        return torch.cat(outputs) if outputs else empty, now

    def _steps(self, current: Tensor, state: State, takes: list[Group]) -> tuple[Tensor, State]:
        gives = [self.outputs] if self.outputs else takes if self.inputs is None else None
        outputs = []
        k = int(state["step"][0])
        for row, x in enumerate(current):
            given, place = {}, 0
            for group in takes:
                whole = x.new_zeros(len(x), self.wiring.populations[group.population].n)
                given[group.population] = torch.cat(
                    (whole[:, : group.start], x[:, place : place + len(group)], whole[:, group.stop :]), 1
                )
                place += len(group)
            spikes, state = step_network(self.wiring, dict(self.weights.items()), state, given, k + row)
            shown = gives or [Group(n, 0, self.wiring.populations[n].n) for n in self.neurons]
            outputs.append(torch.cat([spikes[g.population][:, g.start : g.stop] for g in shown], 1))
        state["step"] = state["step"] + len(current)
        return torch.stack(outputs), state


def step_network(
    wiring: Wiring, weights: Mapping[str, Any], state: State, given: Mapping[str, Tensor], k: int
) -> tuple[dict[str, Tensor], State]:
    """One step of all populations: their spikes, (batch, n) each, and the state afterwards.

    Plastic weights, in the state with a batch of one, change within it.
    """
    state = dict(state)
    for gate in wiring.gates:
        gate.step(state, wiring.dt)
    for p in wiring.projections:
        weight = weights[p.name] if p.plasticity is None else state[f"{p.name}.weight"][0]
        p.deliver(state, weight, k)
    for drive in wiring.drives:
        _arrive(wiring, drive, state, k)
    spikes = {}
    for name, population in wiring.populations.items():
        if isinstance(population, Population):
            spikes[name] = _advance(wiring, name, population, state, given.get(name), k)
        else:
            spikes[name] = _source(wiring, name, population, state, k)
    for p in wiring.projections:
        if p.plasticity is not None:
            weight = state[f"{p.name}.weight"][0]
            state[f"{p.name}.weight"] = p.learn(state, weight, spikes[p.post.population], k)[None]
    for name, s in spikes.items():
        history = state[f"{name}.history"]
        state[f"{name}.history"] = torch.cat((s[:, None], history[:, :-1]), 1)
    return spikes, state


def _advance(wiring: Wiring, name: str, population: Population, state: State, given: Tensor | None, k: int) -> Tensor:
    """Neurons of one population."""
    v = state[f"{name}.v"]
    bias = wiring.bias(name)
    current = torch.as_tensor(bias, dtype=v.dtype, device=v.device).expand(v.shape)
    inputs = Inputs(current if given is None else current + given)
    for receptor in wiring.receptors[name]:
        receptor.contribute(state, inputs, v, k, wiring.dt, wiring.membrane(name))
    kind: Any = wiring.kinds[name]
    before = kind(*(state.get(f"{name}.{key}") for key in kind._fields))
    step = population.model.step(inputs.current, before, conductance=inputs.conductance, jump=inputs.jump)
    for key, value in step.state._asdict().items():
        if value is not None:
            state[f"{name}.{key}"] = value
    return step.spikes


def _source(wiring: Wiring, name: str, source: PoissonSource | SpikeSource, state: State, k: int) -> Tensor:
    """Spikes of sources; the first of a batch are those of `Network.run`, the others draw their own."""
    history = state[f"{name}.history"]
    batch = history.shape[0]
    if isinstance(source, SpikeSource):
        steps, neurons = source.events(wiring.dt)
        row = torch.zeros(source.n, dtype=history.dtype)
        row[neurons[steps == k]] = 1
        return row.to(history.device).expand(batch, source.n)
    probability = source_probability(source, wiring.dt)
    rows = [
        torch.from_numpy(poisson_spikes(_batch_seed(wiring.seeds[name], b), probability, k, source.n))
        for b in range(batch)
    ]
    return torch.stack(rows).to(history)


def source_probability(source: PoissonSource, dt: float) -> Any:
    """Probability of a spike in a step: one number, or an array."""
    p = torch.as_tensor(source.rate, dtype=torch.float64) * (dt * 1e-3)
    return np.ascontiguousarray(p.cpu().numpy()) if p.ndim else float(p)


def _arrive(wiring: Wiring, drive: Any, state: State, k: int) -> None:
    """Poisson arrivals from outside."""
    mean, cumulative, guide = drive.table(wiring.dt)
    target = drive.receptor.arrival
    y = state[target]
    n = len(drive.post)
    rows = [
        torch.from_numpy(poisson_counts(_batch_seed(drive.seed, b), mean, cumulative, guide, k, n))
        for b in range(y.shape[0])
    ]
    counts = torch.stack(rows).to(y)
    weight = torch.as_tensor(drive.weight, dtype=y.dtype, device=y.device)
    place = slice(drive.post.start, drive.post.stop)
    state[target] = torch.cat((y[:, : place.start], y[:, place] + weight * counts, y[:, place.stop :]), 1)


def _batch_seed(seed: np.uint64, b: int) -> np.uint64:
    """The seed of the b-th of a batch."""
    return seed if b == 0 else np.uint64(mix(np.uint64((int(seed) + b) % 2**64)))
