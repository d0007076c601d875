"""Running a network: the program for the compiled loop, or steps in torch, with what is given and what is recorded."""

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuropil.spiking.kernels import cells, poisson, recorders
from neuropil.spiking.kernels.barrier import new_barrier
from neuropil.spiking.kernels.engine import Program, Spikes, phase, run
from neuropil.spiking.kernels.membranes import COMPILED
from neuropil.spiking.neurons import LIFNeuron

from .module import source_probability, step_network
from .populations import Population, SpikeSource
from .recording import Recording
from .synapses import COBA
from .wiring import Wiring

__all__ = ["GivenInputs", "Monitors", "run_compiled", "run_torch"]

ENTRIES = 2**25
"""Entries of the record of spikes that a call of the loop could fill: what bounds the steps of a call."""
SMALL = 2000
"""Neurons below which a second thread costs more than it brings."""
cells.ADVANCE.update({arrays: advance for _, arrays, advance in COMPILED.values()})
RESETS = {"hard": 0, "soft": 1, "none": 2}


class GivenInputs:
    """Currents besides the bias: sequences, functions of the step, or none; checked before they are used.

    Raises:
        ValueError: if they do not fit the network or are not finite.
    """

    def __init__(self, wiring: Wiring, inputs: Any, steps: int) -> None:
        names = [name for name, p in wiring.populations.items() if isinstance(p, Population)]
        if inputs is not None and not isinstance(inputs, Mapping):
            if len(names) != 1:
                raise ValueError(f"Give inputs by name of the population: {', '.join(names)}.")
            inputs = {names[0]: inputs}
        self.inputs: dict[str, Any] = dict(inputs or {})
        self.wiring = wiring
        for name, given in self.inputs.items():
            if name not in names:
                raise ValueError(f"No neurons are named {name!r}; there are {', '.join(names)}.")
            if isinstance(given, Tensor):
                wanted = (steps, wiring.populations[name].n)
                if tuple(given.shape) != wanted:
                    raise ValueError(f"inputs of {name} must have shape {wanted}, got {tuple(given.shape)}.")
                if not bool(given.isfinite().all()):
                    raise ValueError(f"inputs of {name} hold NaN or infinite values.")
            elif not callable(given):
                raise ValueError(f"inputs of {name} must be a tensor or a function, got {type(given).__name__}.")

    def part(self, start: int, stop: int) -> dict[str, Tensor]:
        """Currents of steps start, ..., stop - 1 of the run, (steps, n) each."""
        found = {}
        for name, given in self.inputs.items():
            n = self.wiring.populations[name].n
            if isinstance(given, Tensor):
                rows = given[start:stop]
            else:
                rows = torch.stack([torch.as_tensor(given(k)) for k in range(start, stop)])
                if tuple(rows.shape) != (stop - start, n) or not bool(rows.isfinite().all()):
                    raise ValueError(f"inputs of {name} must return ({n},) finite values.")
            found[name] = rows.to(self.wiring.device, self.wiring.dtype).contiguous()
        return found

    @property
    def stepwise(self) -> bool:
        """Whether functions are called."""
        return any(not isinstance(given, Tensor) for given in self.inputs.values())


@dataclass(frozen=True)
class Sampled:
    """A state variable whose values are kept."""

    key: str
    variable: str
    index: np.ndarray


class Monitors:
    """What a run keeps.

    Raises:
        ValueError: if a monitor names nothing.
    """

    def __init__(self, wiring: Wiring, monitors: Sequence[str], every: int) -> None:
        if every < 1:
            raise ValueError("every must be at least one step.")
        self.every = every
        self.spikes, self.rate = "spikes" in monitors, "rate" in monitors
        self.samples = [self._find(wiring, m) for m in monitors if m not in ("spikes", "rate")]

    @staticmethod
    def _find(wiring: Wiring, monitor: str) -> Sampled:
        match = re.fullmatch(r"([^\[\]]+)(?:\[(-?\d*):(-?\d*)(?::(-?\d*))?\])?", monitor)
        names = [] if match is None else [match[1]]
        neurons = [name for name, p in wiring.populations.items() if isinstance(p, Population)]
        if match is not None and len(neurons) == 1:
            names.append(f"{neurons[0]}.{match[1]}")
        found = [
            n for n in names if n in wiring.state and wiring.state[n].ndim == 1 and wiring.state[n].is_floating_point()
        ]
        if match is None or not found:
            known = sorted(n for n, v in wiring.state.items() if v.ndim == 1 and v.is_floating_point())
            raise ValueError(f"No state variable for monitor {monitor!r}; there are spikes, rate, {', '.join(known)}.")
        part = slice(*(int(g) if g else None for g in match.groups()[1:]))
        return Sampled(monitor, found[0], np.arange(wiring.state[found[0]].numel())[part])


class Record:
    """What was kept so far."""

    def __init__(self, wiring: Wiring, monitors: Monitors) -> None:
        self.wiring, self.monitors, self.start = wiring, monitors, wiring.step
        self.times: dict[str, list[np.ndarray]] = {name: [] for name in wiring.populations}
        self.neurons: dict[str, list[np.ndarray]] = {name: [] for name in wiring.populations}
        self.counts: dict[str, list[np.ndarray]] = {name: [] for name in wiring.populations}
        self.values: dict[str, list[Tensor]] = {s.key: [] for s in monitors.samples}

    def add(self, start: int, counts: Mapping[str, np.ndarray], neurons: Mapping[str, np.ndarray]) -> None:
        """Spikes of the steps from `start` on: numbers in each step, and neurons in order."""
        for name, number in counts.items():
            self.counts[name].append(number)
            if self.monitors.spikes:
                self.times[name].append(np.repeat(np.arange(start, start + len(number)), number))
                self.neurons[name].append(neurons[name])

    def finish(self) -> Recording:
        """The recording."""
        wiring, kept = self.wiring, self.monitors.spikes
        steps = wiring.step - self.start
        join = lambda parts, dtype: np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)  # noqa: E731
        values = {}
        for s in self.monitors.samples:
            empty = wiring.state[s.variable].new_zeros(0, s.index.size)
            values[s.key] = torch.cat([empty, *self.values[s.key]]).cpu()
        intervals = dict.fromkeys(values, self.monitors.every)
        if self.monitors.rate:
            for name, parts in self.counts.items():
                values[f"{name}.count"] = torch.from_numpy(join(parts, np.int64))
                intervals[f"{name}.count"] = 1
        return Recording(
            dt=wiring.dt,
            start=self.start,
            steps=steps,
            sizes={name: p.n for name, p in wiring.populations.items()} if kept else {},
            times={name: join(parts, np.int64) for name, parts in self.times.items()} if kept else {},
            neurons={name: join(parts, np.int32) for name, parts in self.neurons.items()} if kept else {},
            values=values,
            intervals=intervals,
        )


def _chunks(wiring: Wiring, steps: int, longest: int) -> list[int]:
    """Lengths of the calls of the loop: bounded, and ending where astrocytes act."""
    lengths, k, end = [], wiring.step, wiring.step + steps
    while k < end:
        stop = min([k + longest, end, *((k // d.steps + 1) * d.steps for d in wiring.domains)])
        lengths.append(stop - k)
        k = stop
    return lengths


def _after_chunk(wiring: Wiring, neurons: Mapping[str, np.ndarray]) -> None:
    """Astrocytes read, and act where their time has come."""
    for domain in wiring.domains:
        domain.observe(wiring.state, dict(neurons))
        if wiring.step % domain.steps == 0:
            domain.act(wiring.state)


def _require_finite(wiring: Wiring) -> None:
    for name, population in wiring.populations.items():
        if isinstance(population, Population) and not bool(wiring.state[f"{name}.v"].isfinite().all()):
            raise FloatingPointError(
                f"A potential of {name} became NaN or infinite before {wiring.step * wiring.dt:g} ms."
            )


def run_torch(wiring: Wiring, steps: int, given: GivenInputs, monitors: Monitors, threads: int | None) -> Recording:
    """Run step by step in torch."""
    record, done = Record(wiring, monitors), 0
    weights = {p.name: torch.as_tensor(p.weight, dtype=wiring.dtype, device=wiring.device) for p in wiring.projections}
    for length in _chunks(wiring, steps, 1000):
        rows = given.part(done, done + length)
        state = {name: value[None] for name, value in wiring.state.items()}
        for name in wiring.populations:
            state[f"{name}.history"] = state[f"{name}.history"].to(wiring.dtype)
        counts: dict[str, list[int]] = {name: [] for name in wiring.populations}
        neurons: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.int32)] for name in wiring.populations}
        with torch.no_grad():
            for row in range(length):
                now = {name: r[row][None] for name, r in rows.items()}
                spikes, state = step_network(wiring, weights, state, now, wiring.step + row)
                for name, s in spikes.items():
                    fired = s[0].nonzero()[:, 0].cpu().numpy().astype(np.int32)
                    counts[name].append(len(fired))
                    neurons[name].append(fired)
                for m in monitors.samples:
                    if (wiring.step + row) % monitors.every == 0:
                        record.values[m.key].append(state[m.variable][:, m.index].clone())
        for name, value in wiring.state.items():
            value.copy_(state[name][0])
        record.add(
            wiring.step,
            {name: np.array(c, np.int64) for name, c in counts.items()},
            joined := {name: np.concatenate(parts) for name, parts in neurons.items()},
        )
        wiring.step, done = wiring.step + length, done + length
        _after_chunk(wiring, joined)
        _require_finite(wiring)
    return record.finish()


def run_compiled(wiring: Wiring, steps: int, given: GivenInputs, monitors: Monitors, threads: int | None) -> Recording:
    """Run in the compiled loop, on one thread or several."""
    total = sum(p.n for p in wiring.populations.values())
    parts = threads or (1 if total < SMALL else torch.get_num_threads())
    arrays = {name: value.numpy() for name, value in wiring.state.items()}
    spikes = {name: _ring(wiring, name, parts) for name in wiring.populations}
    record, done = Record(wiring, monitors), 0
    longest = max(1, ENTRIES // total) if not given.stepwise else min(1000, max(1, ENTRIES // total))
    with ThreadPoolExecutor(max(parts - 1, 1)) as pool:
        for length in _chunks(wiring, steps, longest):
            rows = {name: value.numpy() for name, value in given.part(done, done + length).items()}
            program, kept = _program(wiring, arrays, spikes, rows, monitors, length)
            barrier = new_barrier()
            others = [pool.submit(run, program, wiring.step, length, q, parts, barrier) for q in range(1, parts)]
            run(program, wiring.step, length, 0, parts, barrier)
            for other in others:
                other.result()
            for m in monitors.samples:
                record.values[m.key].append(torch.from_numpy(kept[m.key]))
            neurons = {
                n: kept[f"{n}/neurons"][: kept[f"{n}/filled"][0]].copy() for n in spikes if f"{n}/neurons" in kept
            }
            record.add(wiring.step, {name: kept[f"{name}/counts"] for name in spikes}, neurons)
            wiring.step, done = wiring.step + length, done + length
            _after_chunk(wiring, neurons)
            _require_finite(wiring)
    for name, s in spikes.items():
        _unroll(wiring, name, s)
    return record.finish()


def _bounds(n: int, parts: int) -> np.ndarray:
    """First neuron of each thread: multiples of 64, so that threads share no cache line."""
    return np.array([(n * q // parts) // 64 * 64 for q in range(parts)] + [n], np.int64)


def _ring(wiring: Wiring, name: str, parts: int) -> Spikes:
    """The ring of a population, filled from its history."""
    history = wiring.state[f"{name}.history"].numpy()
    depth, n = history.shape
    bounds = _bounds(n, parts)
    spikes = Spikes(np.empty((depth + 2, n), np.int32), np.zeros((depth + 2, parts), np.int64), bounds)
    for back in range(depth):
        row = (wiring.step - 1 - back) % (depth + 2)
        for q in range(parts):
            fired = np.flatnonzero(history[back, bounds[q] : bounds[q + 1]]) + bounds[q]
            spikes.ring[row, bounds[q] : bounds[q] + fired.size] = fired
            spikes.counts[row, q] = fired.size
    return spikes


def _unroll(wiring: Wiring, name: str, spikes: Spikes) -> None:
    """Write the ring back into the history."""
    history = wiring.state[f"{name}.history"].numpy()
    history[:] = False
    for back in range(len(history)):
        row = (wiring.step - 1 - back) % len(spikes.ring)
        for q, base in enumerate(spikes.bounds[:-1]):
            history[back, spikes.ring[row, base : base + spikes.counts[row, q]]] = True


def _program(
    wiring: Wiring,
    arrays: dict[str, np.ndarray],
    spikes: dict[str, Spikes],
    rows: dict[str, np.ndarray],
    monitors: Monitors,
    length: int,
) -> tuple[Program, dict[str, np.ndarray]]:
    """Structures of all phases for the next `length` steps, and the arrays into which they record."""
    number = np.float32 if wiring.dtype == torch.float32 else np.float64
    before: list[Any] = [g.structure(arrays, spikes[g.pre.population], wiring.dt) for g in wiring.gates]
    arrive, weights, after = [], [], []
    for p in wiring.projections:
        weight = _weight(p.weight, number) if p.plasticity is None else arrays[f"{p.name}.weight"]
        first, then = p.structures(arrays, spikes, weight)
        before += first
        arrive += then
        if p.plasticity is not None:
            updates, traces = p.plastic_structures(arrays, spikes, weight)
            weights += updates
            after += traces
    for d in wiring.drives:
        within = np.clip(spikes[d.post.population].bounds - d.post.start, 0, len(d.post))
        target = arrays[d.receptor.arrival][d.post.start : d.post.stop]
        arrive.append(poisson.PoissonArrivals(d.seed, *d.table(wiring.dt), _weight(d.weight, number), target, within))
    advance = [_population(wiring, name, arrays, s, rows.get(name), number) for name, s in spikes.items()]
    record, kept = _recorders(wiring, spikes, monitors, length)
    for m in monitors.samples:
        first = -(-wiring.step // monitors.every)
        last = -(-(wiring.step + length) // monitors.every)
        kept[m.key] = np.empty((last - first, m.index.size), arrays[m.variable].dtype)
        after.append(recorders.Sample(arrays[m.variable], m.index, monitors.every, -first, kept[m.key]))
    return Program(*(phase(part) for part in (before, arrive, advance, record, weights, after))), kept


def _recorders(
    wiring: Wiring, spikes: dict[str, Spikes], monitors: Monitors, length: int
) -> tuple[list[Any], dict[str, np.ndarray]]:
    """Structures that record who fired, or how many."""
    record, kept = [], {}
    for name, s in spikes.items():
        counts = kept[f"{name}/counts"] = np.empty(length, np.int64)
        if monitors.spikes or wiring.domains:
            neurons = kept[f"{name}/neurons"] = np.empty(length * s.ring.shape[1], np.int32)
            filled = kept[f"{name}/filled"] = np.zeros(1, np.int64)
            record.append(recorders.RecordSpikes(s, neurons, counts, filled))
        else:
            record.append(recorders.RecordCounts(s, counts))
    return record, kept


def _population(
    wiring: Wiring, name: str, arrays: dict[str, np.ndarray], spikes: Spikes, given: np.ndarray | None, number: Any
) -> Any:
    """The structure of a population of neurons or sources."""
    population = wiring.populations[name]
    if isinstance(population, SpikeSource):
        steps, neurons = population.events(wiring.dt)
        return cells.GivenCells(steps.numpy(), neurons.numpy().astype(np.int32), spikes)
    if not isinstance(population, Population):
        return poisson.PoissonCells(wiring.seeds[name], source_probability(population, wiring.dt), spikes)
    dtype = np.dtype(number)
    receptors = wiring.receptors[name]
    conductances = any(isinstance(r.output, COBA) for r in receptors)
    structures = tuple(r.structure(arrays, wiring.dt, wiring.membrane(name)) for r in receptors)
    scratch = np.zeros((spikes.counts.shape[1], 3, cells.TILE), dtype)
    fired = np.zeros(-(-population.n // 8) * 8, np.uint8)
    kind: Any = wiring.kinds[name]
    state = kind(*(arrays.get(f"{name}.{key}") for key in kind._fields))
    model = _model(population, state, number, conductances)
    return cells.Cells(model, structures, _weight(wiring.bias(name), number), given, scratch, fired, spikes)


def _model(population: Population, state: Any, number: Any, conductances: bool) -> Any:
    """The arrays of a neuron model, on its state, for its compiled step."""
    m = population.model
    if type(m) in COMPILED:
        return COMPILED[type(m)][0](m, state, np.dtype(number))
    if type(m) is not LIFNeuron or m.normalizer is not None or m.polarity is not None:
        raise ValueError(
            f"The compiled engine does not know {type(m).__name__} as it is set; run with backend='torch'."
        )
    n, v = population.n, state.v
    threshold, amount = _spread(m.v_threshold, n, number), m.v_threshold if m.reset_amount is None else m.reset_amount
    last: list[Any] = [threshold, number(m.floor), np.int32(m.held_steps), _spread(amount, n, number), RESETS[m.reset]]
    if conductances:
        assert m.tau is not None
        return cells.LIFConductanceArrays(
            v, state.refractory, _spread(-(m.dt / m.tau), n, number), number(m.v_rest), *last
        )
    rest = (1.0 - m.a) * m.v_rest
    return cells.LIFArrays(v, state.refractory, *(_spread(p, n, number) for p in (m.a, m.k, rest)), *last)


def _weight(value: float | Tensor, number: Any) -> Any:
    """A number of the engine's type, or an array."""
    if isinstance(value, Tensor) and value.ndim:
        return np.ascontiguousarray(value.detach().cpu().numpy(), np.dtype(number))
    return number(float(value))


def _spread(value: float | Tensor, n: int, number: Any) -> Any:
    """A parameter of the model: a number, or one for each of n neurons."""
    return _weight(value.expand(n) if isinstance(value, Tensor) and value.ndim else value, number)
