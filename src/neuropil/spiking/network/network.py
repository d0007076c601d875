"""Networks of spiking neurons: populations, projections, and the run.

    net = Network(dt=0.1, seed=0)
    cells = net.add(Population(4000, LIFNeuron(tau=20.0, v_threshold=20.0, v_reset=10.0, refractory=2.0)))
    net.connect(cells, cells, FixedIndegree(80), weight=0.2, delay=1.5, synapse=Delta())
    net.drive(cells, PoissonInput(9000.0), weight=0.2, synapse=Delta())
    recording = net.run(1000.0)

In step k, at time k dt:

    1. spikes emitted d steps ago reach the receptors (or the slots of the step in which they are due)
    2. receptors act on the neurons, then decay by one step
    3. neurons integrate, are held while refractory, fire where v >= threshold, reset
    4. plastic weights change, traces take the spikes in

so a spike of step k with a delay of d steps acts in step k + d, d >= 1, and a refractory time of t_ref holds the
t_ref/dt steps after that of the spike. Sums over arrivals run in ascending order of the sources, on any number of
threads and in every backend: the same seed gives the same spikes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from neuropil.draws import seed_from
from neuropil.spiking.neurons import LIFNeuron

from . import engine
from .astrocytes import AstrocyteCoupling, AstrocyteDomain
from .connectivity import SparseConnectivity, synapse_values
from .module import NetworkModule
from .plasticity import Plasticity
from .populations import Group, PoissonInput, PoissonSource, Population, SpikeSource, require_values
from .projections import Gate, Projection
from .receptors import Receptor
from .recording import Recording, whole_steps
from .rules import ConnectionRule, Explicit, JustInTimeRows
from .short_term import ShortTermPlasticity
from .synapses import COBA, CUBA, NMDA, Exponential, LinearSynapse, Output, Synapse
from .wiring import Drive, Wiring

__all__ = ["Network"]

Given = Tensor | Callable[[int], Tensor] | Mapping[str, Any]
Weight = float | Tensor | Callable[[int, torch.Generator], Tensor]


class Network:
    """Populations of neurons and the synapses between them.

    Args:
        dt: step, ms, positive.
        seed: of connectivity, weights, delays and Poisson spikes.
        device: of the state; the compiled engine runs on the CPU, others step in torch.
        dtype: torch.float32 or torch.float64.
        threads: of the compiled engine; by default torch's, and one for networks of less than 2,000 neurons.

    Raises:
        ValueError: if a number is out of range.
        TypeError: for another dtype.
    """

    def __init__(
        self,
        dt: float = 0.1,
        seed: int = 0,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
    ) -> None:
        if not (math.isfinite(dt) and dt > 0):
            raise ValueError(f"dt must be positive and finite, got {dt}.")
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}.")
        if threads is not None and threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}.")
        self.generator = torch.Generator().manual_seed(seed)
        self.threads = threads
        self.wiring = Wiring(dt, dtype, torch.device(device))

    @property
    def dt(self) -> float:
        """Step in ms."""
        return self.wiring.dt

    @property
    def time(self) -> float:
        """How long the network has run, ms."""
        return self.wiring.step * self.dt

    def add(self, population: Population | PoissonSource | SpikeSource, *, name: str | None = None) -> Group:
        """Add neurons or sources.

        Args:
            population: what to add.
            name: instead of the population's own; by default population0, population1, ...

        Returns:
            All of them, as a group to connect.

        Raises:
            ValueError: if the name is taken, or has a dot or a slash in it.
            TypeError: if it is no population.
        """
        if not isinstance(population, Population | PoissonSource | SpikeSource):
            raise TypeError(
                f"A network takes Population, PoissonSource or SpikeSource, got {type(population).__name__}."
            )
        name = name or population.name or f"population{len(self.wiring.populations)}"
        self.wiring.add(name, population, seed_from(self.generator))
        return Group(name, 0, population.n)

    def connect(
        self,
        pre: Group,
        post: Group,
        rule: ConnectionRule | SparseConnectivity,
        weight: Weight,
        delay: float | Tensor | Callable[[int, torch.Generator], Tensor] | None = None,
        *,
        synapse: Synapse | None = None,
        output: Output | None = None,
        plasticity: Plasticity | None = None,
        short_term: ShortTermPlasticity | None = None,
        astrocyte: AstrocyteCoupling | None = None,
        round_delays: bool = False,
        name: str | None = None,
    ) -> Projection:
        """Connect two groups.

        Args:
            pre: who sends.
            post: who receives.
            rule: which pairs are joined; self connections are left out by rules where both groups are the same.
            weight: of all synapses, of each, (synapses,), or a function (synapses, generator) that draws them.
            delay: ms, the same three ways; by default one step.
            synapse: dynamics, by default Exponential(5.0).
            output: effect, by default CUBA().
            plasticity: how weights change.
            short_term: how release changes.
            astrocyte: what a glial cell makes of the spikes.
            round_delays: whether delays between steps are rounded, at least to one step.
            name: of the projection; by default projection0, projection1, ...

        Returns:
            The projection.

        Raises:
            ValueError: for weights or delays that are not finite or do not fit, delays shorter than a step or between
                steps, and combinations that the engine does not know.
            RuntimeError: if the network has run already.
        """
        wiring = self.wiring
        wiring.require_unrun("connect")
        self._check_group("pre", pre)
        self._check_group("post", post, neurons=True)
        synapse, output = synapse or Exponential(5.0), output or CUBA()
        rule = Explicit(rule) if isinstance(rule, SparseConnectivity) else rule
        connectivity = rule.build(len(pre), len(post), self.generator, same=pre == post)
        nnz = None if isinstance(connectivity, JustInTimeRows) else connectivity.nnz
        weights = self._values("weight", weight, nnz, self.wiring.dtype)
        steps = self._delays(delay, nnz, round_delays)
        one = int(steps[0]) if isinstance(steps, Tensor) and len(steps) and bool((steps == steps[0]).all()) else steps
        delays = one if isinstance(one, Tensor) and len(one) else None
        number = one if isinstance(one, int) else 1
        name = name or f"projection{len(wiring.projections)}"
        gate = self._gate(pre, synapse, number, delays) if isinstance(synapse, NMDA) else None
        scale = f"{name}.scale" if astrocyte is not None and astrocyte.acts == "gain" else None
        receptor = self._receptor(post, synapse, output, scale, gate is not None)
        projection = Projection(
            *(name, pre, post, connectivity, receptor, weights, number, delays),
            plasticity=plasticity, short_term=short_term, gate=gate, dt=self.dt,
        )  # fmt: skip
        _check_combination(projection, nnz, synapse)
        if delays is not None:
            receptor.slots = max(receptor.slots, int(delays.max()))
        if astrocyte is not None:
            wiring.domains.append(AstrocyteDomain(name, astrocyte, projection, self.dt))
        wiring.connect(projection)
        return projection

    def drive(
        self, post: Group, source: PoissonInput, weight: float | Tensor, *, synapse: Synapse | None = None,
        output: Output | None = None,
    ) -> None:  # fmt: skip
        """Give every neuron of a group Poisson spikes of its own from outside.

        Args:
            post: who receives.
            source: the rate.
            weight: of an arrival, one number or one for each neuron.
            synapse: dynamics, by default Exponential(5.0).
            output: effect, by default CUBA().

        Raises:
            ValueError: if rates or weights do not fit, or a step would bring more than 500 arrivals on average.
        """
        self.wiring.require_unrun("drive")
        self._check_group("post", post, neurons=True)
        require_values("rate", source.rate, len(post), low=0.0, high=500.0 / (self.dt * 1e-3))
        require_values("weight", weight, len(post))
        synapse, output = synapse or Exponential(5.0), output or CUBA()
        if not isinstance(synapse, LinearSynapse):
            raise ValueError("Poisson input needs a linear synapse: NMDA gates belong to presynaptic neurons.")
        receptor = self._receptor(post, synapse, output, None, False)
        self.wiring.drives.append(Drive(post, source, weight, receptor, seed_from(self.generator)))

    def run(
        self,
        duration: float,
        inputs: Given | None = None,
        *,
        monitors: Sequence[str] = ("spikes",),
        every: float | None = None,
        backend: str = "auto",
    ) -> Recording:
        """Go on for some time.

        Args:
            duration: ms, a multiple of dt.
            inputs: currents besides the bias: (steps, neurons) for a network of one neuron population, a function of
                the step within the run that returns (neurons,), or either by name of the population.
            monitors: what to keep: "spikes" of all populations, "rate" (only how many spike in each step), and state
                variables as "v", "v[:10]", "cells.v[5:20]", or any name of `state()`.
            every: ms between samples of state variables, by default a step.
            backend: "numba", "torch", or "auto": numba on the CPU.

        Returns:
            What was recorded. "rate" is kept as values["<population>.count"].

        Raises:
            ValueError: if the duration is negative or between steps, inputs do not fit or are not finite, or no state
                variable has a monitor's name.
            FloatingPointError: if a potential has become infinite or NaN.
        """
        steps = whole_steps("duration", duration, self.dt, least=0)
        wiring = self.wiring
        if backend not in ("auto", "numba", "torch"):
            raise ValueError(f"backend must be 'auto', 'numba' or 'torch', got {backend!r}.")
        compiled = backend == "numba" or (backend == "auto" and wiring.device.type == "cpu")
        if compiled and wiring.device.type != "cpu":
            raise ValueError(f"The compiled engine runs on the CPU, not on {wiring.device}.")
        wiring.initialise()
        given = engine.GivenInputs(wiring, inputs, steps)
        sampling = engine.Monitors(
            wiring, monitors, 1 if every is None else whole_steps("every", every, self.dt, least=1)
        )
        loop = engine.run_compiled if compiled else engine.run_torch
        return loop(wiring, steps, given, sampling, self.threads)

    def set(self, group: Group | str, **values: float | Tensor) -> None:
        """Set state variables of neurons, as v=..., by name.

        Args:
            group: which neurons, or the name of a population.
            values: a number, or one for each neuron.

        Raises:
            ValueError: if there is no such variable, or a value is not finite or does not fit.
        """
        group = self[group] if isinstance(group, str) else group
        self._check_group("group", group)
        self.wiring.initialise()
        for key, value in values.items():
            name = f"{group.population}.{key}"
            if name not in self.wiring.state:
                known = sorted(k.split(".")[1] for k in self.wiring.state if k.startswith(f"{group.population}."))
                raise ValueError(f"{group.population} has no state variable {key!r}; it has {', '.join(known)}.")
            require_values(key, value, len(group))
            target = self.wiring.state[name]
            target[group.start : group.stop] = torch.as_tensor(value, dtype=target.dtype, device=target.device)

    def __getitem__(self, name: str) -> Group:
        if name not in self.wiring.populations:
            raise ValueError(f"No population is named {name!r}; there are {', '.join(self.wiring.populations)}.")
        return Group(name, 0, self.wiring.populations[name].n)

    def weights(self, projection: Projection) -> Tensor:
        """Weights of a projection now, (synapses,), in the order of its connectivity: a copy."""
        self.wiring.initialise()
        name = f"{projection.name}.weight"
        if name in self.wiring.state:
            return self.wiring.state[name].clone()
        return torch.as_tensor(projection.weight).expand(projection.stored().nnz).clone()

    def reward(self, projection: Projection, amount: float) -> None:
        """Turn eligibility into weight: w <- clip(w + amount e), e decayed to now.

        Raises:
            ValueError: if the projection keeps no eligibility, or the amount is not finite.
        """
        if projection.plasticity is None or projection.plasticity.tau_eligibility is None:
            raise ValueError(f"{projection.name} keeps no eligibility; connect it with plasticity=RewardSTDP().")
        if not math.isfinite(amount):
            raise ValueError(f"amount must be finite, got {amount}.")
        self.wiring.initialise()
        state, rule, tau = self.wiring.state, projection.plasticity, projection.plasticity.tau_eligibility
        names = (f"{projection.name}.{key}" for key in ("weight", "eligibility", "changed"))
        weight, value, changed = (state[name] for name in names)
        passed = (self.wiring.step - changed) * self.dt
        weight.add_(amount * value * torch.exp(-passed.to(value) / tau)).clamp_(rule.low, rule.high)

    def state(self) -> dict[str, Tensor]:
        """All that the future depends on besides the wiring: copies, by name. `torch.save` keeps it."""
        self.wiring.initialise()
        copies = {name: value.clone() for name, value in self.wiring.state.items()}
        return copies | {"step": torch.tensor(self.wiring.step)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of a network wired in the same way; runs go on bit by bit.

        Raises:
            ValueError: if names or shapes differ.
        """
        self.wiring.initialise()
        own = self.wiring.state
        if set(state) != {*own, "step"}:
            odd = sorted(set(state) ^ {*own, "step"})
            raise ValueError(f"The state is of another network: it differs in {', '.join(odd)}.")
        for name, value in own.items():
            if state[name].shape != value.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}, wanted {tuple(value.shape)}.")
        for name, value in own.items():
            value.copy_(state[name])
        self.wiring.step = int(state["step"])

    def as_module(
        self,
        *,
        inputs: Group | None = None,
        outputs: Group | None = None,
        trainable: Sequence[Projection] | None = None,
    ) -> NetworkModule:
        """The same network as a differentiable module, unrolled in torch: for some thousand neurons and steps.

        Args:
            inputs: whose current the module takes; by default all neurons, in the order in which they were added.
            outputs: whose spikes it returns; by default the same.
            trainable: projections whose weights become parameters; by default all but plastic ones.

        Returns:
            The module; it starts from the network's state of now, and shares nothing with it.
        """
        self.wiring.initialise()
        return NetworkModule(self.wiring, inputs=inputs, outputs=outputs, trainable=trainable)

    def _check_group(self, role: str, group: Group, *, neurons: bool = False) -> None:
        if not isinstance(group, Group):
            raise TypeError(f"{role} must be a group of this network, got {type(group).__name__}.")
        population = self.wiring.populations.get(group.population)
        if population is None or group.stop > population.n:
            raise ValueError(f"{role} is no group of this network: {group}.")
        if neurons and not isinstance(population, Population):
            raise ValueError(f"{group.population} only sends spikes: connect to a Population.")

    def _values(self, name: str, spec: Any, nnz: int | None, dtype: torch.dtype) -> float | Tensor:
        """A number, or one for each synapse, checked."""
        if nnz is None and (callable(spec) or (isinstance(spec, Tensor) and spec.ndim)):
            raise ValueError(f"{name} must be one number where rows are made just in time.")
        values = synapse_values(spec, nnz or 0, name, dtype, self.generator)
        return values.detach().to(self.wiring.device).clone() if isinstance(values, Tensor) else values

    def _delays(self, spec: Any, nnz: int | None, rounded: bool) -> int | Tensor:
        """Steps of all synapses or of each."""
        spec = self._values("delay", self.dt if spec is None else spec, nnz, torch.float64)
        ratio = torch.as_tensor(spec, dtype=torch.float64) / self.dt
        steps = ratio.round()
        if rounded:
            steps = steps.clamp(min=1)
        elif bool((ratio < 1 - 1e-6).any()):
            raise ValueError(
                f"delay must be at least a step of {self.dt} ms; round_delays=True lengthens shorter ones."
            )
        elif bool(((ratio - steps).abs() > 1e-6 * ratio.abs()).any()):
            raise ValueError(f"delay must be a multiple of dt = {self.dt} ms; round_delays=True rounds others.")
        return steps.to("cpu", torch.int32) if steps.ndim else int(steps)

    def _receptor(self, post: Group, synapse: Synapse, output: Output, scale: str | None, gated: bool) -> Receptor:
        """The receptor of these dynamics on the population, merged with equal ones."""
        if not isinstance(synapse, Synapse) or not isinstance(output, Output):
            raise TypeError(f"synapse and output must be a Synapse and an Output, got {synapse!r} and {output!r}.")
        population = self.wiring.populations[post.population]
        assert isinstance(population, Population)
        model = population.model
        if isinstance(output, COBA) and isinstance(model, LIFNeuron) and (model.tau is None or model.gain is not None):
            raise ValueError("Conductances need LIF neurons with tau, and no gain of their own.")
        return self.wiring.receptor(post, synapse, output, scale, gated)

    def _gate(self, pre: Group, synapse: NMDA, delay: int, delays: Tensor | None) -> Gate:
        if delays is not None:
            raise ValueError("NMDA synapses keep one gate for each source: give all synapses the same delay.")
        return self.wiring.gate(pre, synapse, delay)


def _check_combination(projection: Projection, nnz: int | None, synapse: Synapse) -> None:
    """Refuse what the engine has no meaning for."""
    projection.receptor.check()
    if nnz is None and (projection.plasticity is not None or projection.delays is not None):
        raise ValueError("Rows made just in time store nothing: neither plastic weights nor delays of their own.")
    if nnz is None and isinstance(synapse, NMDA):
        raise ValueError("NMDA gates act in every step: store their synapses, rows made just in time are too slow.")
    if projection.plasticity is not None and projection.delays is not None:
        raise ValueError("Plastic projections need one delay for all synapses; split the projection by delay.")
    if isinstance(synapse, NMDA) and (projection.plasticity is not None or projection.short_term is not None):
        raise ValueError("NMDA synapses take neither plasticity nor short_term here.")
    if projection.plasticity is not None:
        rule = projection.plasticity
        weights = torch.as_tensor(projection.weight)
        if weights.numel() and not rule.low <= float(weights.min()) <= float(weights.max()) <= rule.high:
            raise ValueError(f"weight must lie within the rule's bounds, [{rule.low:g}, {rule.high:g}].")
