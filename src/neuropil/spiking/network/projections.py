"""Projections: synapses from a group of neurons onto a receptor of another, with delays, plasticity and depression.

As receptors, they state their step twice: in torch, and as structures for the compiled engine.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from neuropil.spiking.exponential import exp
from neuropil.spiking.kernels import delivery, plasticity, presynaptic
from neuropil.spiking.kernels.engine import Spikes

from .connectivity import SparseConnectivity
from .plasticity import Plasticity
from .populations import Group
from .receptors import Receptor, State
from .rules import JustInTimeRows
from .short_term import ShortTermPlasticity
from .synapses import NMDA

__all__ = ["Gate", "Projection"]


class Edges(NamedTuple):
    """Source and target of every synapse within their groups, and its delay, as tensors of one device."""

    sources: Tensor
    targets: Tensor
    delays: Tensor | None


@dataclass
class Gate:
    """Gating variables of the NMDA receptors that a group opens, shared by its projections of one delay."""

    name: str
    pre: Group
    synapse: NMDA
    delay: int

    def initial(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the state variables; all begin at 0."""
        return {f"{self.name}.g": (len(self.pre),), f"{self.name}.x": (len(self.pre),)}

    def step(self, state: State, dt: float) -> None:
        """Gates move by a step, then take the arrivals of this one in."""
        g, x, s = state[f"{self.name}.g"], state[f"{self.name}.x"], self.synapse
        opening = s.alpha * x
        rate = 1.0 / s.tau_decay + opening
        steady = opening / rate
        state[f"{self.name}.g"] = steady + (g - steady) * exp(-dt * rate)
        arrived = state[f"{self.pre.population}.history"][:, self.delay - 1, self.pre.start : self.pre.stop]
        state[f"{self.name}.x"] = float(np.exp(-dt / s.tau_rise)) * x + arrived

    def structure(self, arrays: dict[str, np.ndarray], spikes: Spikes, dt: float) -> Any:
        """The structure for the compiled engine."""
        g, x, s = arrays[f"{self.name}.g"], arrays[f"{self.name}.x"], self.synapse
        numbers = (g.dtype.type(v) for v in (1.0 / s.tau_decay, s.alpha, -dt, np.exp(-dt / s.tau_rise)))
        return presynaptic.GateStep(spikes, self.pre.start, self.delay, g, x, *numbers)


@dataclass
class Projection:
    """Synapses of one rule from one group onto one receptor of another.

    Attributes:
        name: prefix of its state variables.
        pre: the group that sends.
        post: the group that receives.
        connectivity: who is joined to whom, within the groups.
        receptor: where arrivals go.
        weight: one number, or that of each synapse, (synapses,).
        delay: steps, where all synapses have the same.
        delays: steps of each synapse, (synapses,), otherwise.
        plasticity: how its weights change, or None.
        short_term: how its release changes, or None.
        gate: the gating variables whose weighted sum it delivers, for NMDA receptors.
    """

    name: str
    pre: Group
    post: Group
    connectivity: SparseConnectivity | JustInTimeRows
    receptor: Receptor
    weight: float | Tensor
    delay: int
    delays: Tensor | None = None
    plasticity: Plasticity | None = None
    short_term: ShortTermPlasticity | None = None
    gate: Gate | None = None
    _edges: dict[tuple[torch.device, torch.dtype], Edges] = field(default_factory=dict, repr=False)
    _cuts: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)

    def stored(self) -> SparseConnectivity:
        """The synapses; rows that are made just in time are made for good."""
        c = self.connectivity
        return c.materialise() if isinstance(c, JustInTimeRows) else c

    @property
    def lag(self) -> int:
        """Steps between a spike and the step that delivers it, to receptors or to slots."""
        return self.delay if self.delays is None else 1

    def initial(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the state variables that begin at 0; weights and x of short-term plasticity begin otherwise."""
        shapes: dict[str, tuple[int, ...]] = {}
        n_pre, n_post = len(self.pre), len(self.post)
        if self.plasticity is not None:
            shapes |= {f"{self.name}.r1": (n_pre,), f"{self.name}.o1": (n_post,)}
            if self.plasticity.triplet is not None:
                shapes |= {f"{self.name}.r2": (n_pre,), f"{self.name}.o2": (n_post,)}
            if self.plasticity.tau_eligibility is not None:
                synapses = self.stored().nnz
                shapes |= {f"{self.name}.eligibility": (synapses,), f"{self.name}.changed": (synapses,)}
        if self.short_term is not None:
            shapes |= {f"{self.name}.{v}": (n_pre,) for v in ("u", "recovered", "last", "release")}
        return shapes

    def edges(self, like: Tensor) -> Edges:
        """Its synapses as tensors on a device, made once."""
        key = (like.device, like.dtype)
        if key not in self._edges:
            c = self.stored()
            sources = torch.from_numpy(c.sources()).long().to(like.device)
            targets = torch.from_numpy(c.indices).long().to(like.device) + self.post.start
            delays = None if self.delays is None else self.delays.long().to(like.device)
            self._edges[key] = Edges(sources, targets, delays)
        return self._edges[key]

    def deliver(self, state: State, weight: Tensor | float, k: int) -> None:
        """Add the arrivals of step k to the receptor, or what will arrive later to its slots."""
        history = state[f"{self.pre.population}.history"]
        spikes = history[:, self.lag - 1, self.pre.start : self.pre.stop]
        if self.gate is not None:
            spikes = state[f"{self.gate.name}.g"]
        edges = self.edges(history)
        values = spikes[:, edges.sources]
        if self.short_term is not None:
            self._release(state, spikes, k)
            values = values * (weight * state[f"{self.name}.release"][:, edges.sources])
        else:
            values = values * weight
        target = self.receptor.arrival
        if edges.delays is None:
            state[target] = state[target].index_add(1, edges.targets, values)
            return
        name = f"{self.receptor.name}.slots"
        slots = state[name]
        places = ((k - 1 + edges.delays) % slots.shape[1]) * slots.shape[2] + edges.targets
        state[name] = slots.flatten(1).index_add(1, places, values).unflatten(1, slots.shape[1:])

    def _release(self, state: State, spikes: Tensor, k: int) -> None:
        """Short-term plasticity of the sources whose spikes are delivered now."""
        s = self.short_term
        assert s is not None
        names = [f"{self.name}.{v}" for v in ("u", "recovered", "last", "release")]
        u, x, last, release = (state[name] for name in names)
        passed = (k - last).to(u.dtype)
        now_u = u * exp((-self.dt / s.tau_facilitation) * passed)
        now_x = 1.0 + (x - 1.0) * exp((-self.dt / s.tau_recovery) * passed)
        now_u = now_u + s.utilisation * (1.0 - now_u)
        released = now_u * now_x
        fired = spikes.detach() > 0
        after = (now_u, now_x - released, torch.full_like(last, k), released)
        for name, new, old in zip(names, after, (u, x, last, release), strict=True):
            state[name] = torch.where(fired, new, old)

    dt: float = 0.1

    def offsets(self, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the threads within the group that receives, and where each row passes them."""
        within = np.clip(bounds - self.post.start, 0, len(self.post))
        c = self.connectivity
        if isinstance(c, JustInTimeRows):
            return within, np.empty((0, within.size), np.int64)
        key = within.tobytes()
        if key not in self._cuts:
            self._cuts[key] = c.split(within)
        return within, self._cuts[key]

    def structures(
        self, arrays: dict[str, np.ndarray], spikes: dict[str, Spikes], weight: np.ndarray | np.generic
    ) -> tuple[list[Any], list[Any]]:
        """Structures for the phases "before" and "arrive" of the compiled engine."""
        pre, number = spikes[self.pre.population], weight.dtype.type
        within, offsets = self.offsets(spikes[self.post.population].bounds)
        before, factor = [], None
        if self.short_term is not None:
            s = self.short_term
            u, x, last, factor = (arrays[f"{self.name}.{v}"] for v in ("u", "recovered", "last", "release"))
            numbers = (s.utilisation, -self.dt / s.tau_facilitation, -self.dt / s.tau_recovery)
            before = [
                presynaptic.ShortTermStep(
                    pre, self.pre.start, self.lag, u, x, last, factor, *(number(v) for v in numbers)
                )
            ]
        target = arrays[self.receptor.arrival][self.post.start : self.post.stop]
        c = self.connectivity
        if isinstance(c, JustInTimeRows):
            shape = (c.n_pre, c.n_post, c.seed, c.scale, c.without_self)
            row = delivery.RowDelivery(pre, self.pre.start, self.delay, *shape, within, weight, factor, target)
            return before, [row]
        if self.gate is not None:
            gates = arrays[f"{self.gate.name}.g"]
            return before, [presynaptic.GradedDelivery(gates, offsets, c.indices, weight, target)]
        if self.delays is None:
            arrive = delivery.Delivery(pre, self.pre.start, self.delay, offsets, c.indices, weight, factor, target)
            return before, [arrive]
        slots = arrays[f"{self.receptor.name}.slots"][:, self.post.start : self.post.stop]
        delays = self.delays.numpy()
        return before, [delivery.SlotDelivery(pre, self.pre.start, delays, offsets, c.indices, weight, factor, slots)]

    def plastic_structures(
        self, arrays: dict[str, np.ndarray], spikes: dict[str, Spikes], weight: np.ndarray
    ) -> tuple[list[Any], list[Any]]:
        """Structures for the phases "weights" and "after", of a plastic projection."""
        rule, c, number = self.plasticity, self.stored(), weight.dtype.type
        assert rule is not None
        pre, post = spikes[self.pre.population], spikes[self.post.population]
        triplet = rule.triplet
        taus = {"r1": rule.tau_plus, "o1": rule.tau_minus}
        if triplet is not None:
            taus |= {"r2": triplet[2], "o2": triplet[3]}
        traces = {key: arrays[f"{self.name}.{key}"] for key in taus}
        eligibility = None
        if rule.tau_eligibility is not None:
            value, changed = arrays[f"{self.name}.eligibility"], arrays[f"{self.name}.changed"]
            eligibility = plasticity.Eligibility(value, changed, number(-self.dt / rule.tau_eligibility))
        incoming = c.incoming
        amplitudes = (
            rule.potentiation,
            triplet[0] if triplet else 0.0,
            rule.depression,
            triplet[1] if triplet else 0.0,
        )
        update = plasticity.WeightUpdate(
            *(pre, post, self.pre.start, self.post.start, self.delay, self.offsets(post.bounds)[1], c.indices),
            *(incoming.indptr, incoming.rows, incoming.order, weight, eligibility),
            *(traces["r1"], traces.get("r2"), traces["o1"], traces.get("o2")),
            *(number(v) for v in (*amplitudes, rule.low, rule.high)),
        )
        after = []
        for key, tau in taus.items():
            group, fired, lag = (self.pre, pre, self.delay) if key[0] == "r" else (self.post, post, 0)
            decay = number(np.exp(-self.dt / tau))
            after.append(plasticity.TraceStep(fired, group.start, lag, traces[key], decay, rule.nearest))
        return [update], after

    def learn(self, state: State, weight: Tensor, spikes: Tensor, k: int) -> Tensor:
        """Plasticity of step k, after its spikes (1, n_post of the population): the weights afterwards.

        `state` still holds the history before this step.
        """
        rule = self.plasticity
        assert rule is not None
        edges = self.edges(spikes)
        sources, targets = edges.sources, edges.targets - self.post.start
        arrived = state[f"{self.pre.population}.history"][0, self.delay - 1, self.pre.start : self.pre.stop]
        fired = spikes[0, self.post.start : self.post.stop]
        r1, o1 = state[f"{self.name}.r1"][0], state[f"{self.name}.o1"][0]
        down, up = rule.depression * o1[targets], rule.potentiation * r1[sources]
        if rule.triplet is not None:
            r2, o2 = state[f"{self.name}.r2"][0], state[f"{self.name}.o2"][0]
            down = o1[targets] * (rule.depression + rule.triplet[1] * r2[sources])
            up = r1[sources] * (rule.potentiation + rule.triplet[0] * o2[targets])
        for happened, by in ((arrived[sources] > 0, -down), (fired[targets] > 0, up)):
            weight = self._change(state, weight, happened, by, k)
        for key, tau, events in self._traces(arrived, fired):
            trace = state[f"{self.name}.{key}"][0]
            trace = torch.where(events > 0, 1.0, trace) if rule.nearest else trace + events
            decayed = float(np.exp(-self.dt / tau)) * trace
            state[f"{self.name}.{key}"] = torch.where(decayed >= 1e-30, decayed, 0.0)[None]
        return weight

    def _traces(self, arrived: Tensor, fired: Tensor) -> list[tuple[str, float, Tensor]]:
        rule = self.plasticity
        assert rule is not None
        traces = [("r1", rule.tau_plus, arrived), ("o1", rule.tau_minus, fired)]
        if rule.triplet is not None:
            traces += [("r2", rule.triplet[2], arrived), ("o2", rule.triplet[3], fired)]
        return traces

    def _change(self, state: State, weight: Tensor, happened: Tensor, by: Tensor, k: int) -> Tensor:
        rule = self.plasticity
        assert rule is not None
        if rule.tau_eligibility is None:
            return torch.where(happened, (weight + by).clamp(rule.low, rule.high), weight)
        names = f"{self.name}.eligibility", f"{self.name}.changed"
        value, changed = (state[name][0] for name in names)
        passed = (k - changed).to(value.dtype)
        new = value * exp((-self.dt / rule.tau_eligibility) * passed) + by
        state[names[0]] = torch.where(happened, new, value)[None]
        state[names[1]] = torch.where(happened, k, changed)[None]
        return weight
