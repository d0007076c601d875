"""Areas of neurons with random synapses, k winners a step and plasticity: the Assembly Calculus.

Every ordered pair of neurons of two areas, or of one, is joined by a synapse with probability p; so is every neuron of
a stimulus with every neuron of an area. In discrete time, for an area that receives from some sources,

    input_j = sum over sources and their firing neurons i of W_ij(t)
    the k neurons with the largest input fire at t+1 (ties: lowest index)
    W_ij(t+1) = rule(W_ij(t), x_i(t), y_j(t+1))          for synapses that exist, of the sources that were open

All areas of a step take their winners from the weights and the activity of t. An area that receives nothing keeps
firing as it does. A stimulus fires whenever it is open.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.learning.assemblies import kernels
from neuropil.learning.assemblies.cap import k_cap
from neuropil.learning.assemblies.graph import RandomGraph
from neuropil.learning.assemblies.lazy import KnownGraph, Tail
from neuropil.learning.assemblies.synapses import DenseSynapses, SparseSynapses, Synapses
from neuropil.learning.plasticity import STDP, HebbMultiplicative, PlasticityRule

__all__ = ["Area", "Brain", "Stimulus", "Storage"]

Storage = Literal["sparse", "dense", "lazy", "forgetful"]
Sources = Mapping[str, Sequence[str]]
STORAGES = ("sparse", "dense", "lazy", "forgetful")
DENSE_NEURONS = 20_000
LAZY_NEURONS = 10  # neurons a winner: fewer leave no tail to draw from


@dataclass
class Stimulus:
    """Neurons outside the brain that all fire at once.

    Attributes:
        name: of the stimulus.
        size: number of neurons.
    """

    name: str
    size: int

    @property
    def winners(self) -> Int[Tensor, " size"]:
        """All its neurons."""
        return torch.arange(self.size)


@dataclass
class Area:
    """Neurons of which k fire at once.

    Attributes:
        name: of the area.
        n: number of neurons.
        k: number of winners.
        rule: of the synapses that it receives.
        initial_weight: of these synapses.
        normalise_every: steps after which each neuron's incoming weights are scaled to the sum they began with; None:
            never.
        winners: neurons that fire now, ascending; None if the area is silent. In lazy storage neurons are numbered as
            they become known.
        steps: how often the area has chosen winners with plasticity on.
        tail: of lazy storage: its neurons that are not known.
    """

    name: str
    n: int
    k: int
    rule: PlasticityRule
    initial_weight: float
    normalise_every: int | None = None
    winners: Int[Tensor, " k"] | None = None
    steps: int = 0
    tail: Tail | None = None

    @property
    def size(self) -> int:
        """Neurons that have an index."""
        return self.n if self.tail is None else len(self.tail.priority)


class Brain:
    """Areas and stimuli, and the synapses between them.

    The graph is a function of the generator, and of the order in which stimuli and areas are added: brains made alike
    have the same synapses, whatever their rules, in sparse and in dense storage.

    Args:
        p: probability of a synapse, in (0, 1].
        generator: gives the seed of the graph.
        storage: "sparse" stores the weights that can have changed, and is exact at any size; "dense" stores matrices,
            and gives the same numbers; "lazy" draws neurons when they can win (see `lazy`), so that a step costs the
            same at any size; "forgetful" is the published form of that, which is biased.
        dtype: of the weights. Multiplicative growth overflows 32 bits after about 900 steps at beta = 0.1.

    Raises:
        ValueError: if p or the storage is out of range.

    Source: Papadimitriou, Vempala, Mitropolsky, Collins & Maass, PNAS 117 (2020).
    """

    def __init__(
        self, p: float, generator: torch.Generator, *, storage: Storage = "sparse", dtype: torch.dtype = torch.float64
    ):
        if storage not in STORAGES:
            raise ValueError(f"storage must be one of {', '.join(STORAGES)}, got {storage!r}.")
        self.p = _probability(p)
        self.storage: Storage = storage
        self.dtype = dtype
        self.seed = int(torch.randint(2**62, (), generator=generator))
        self.sources: dict[str, Stimulus | Area] = {}
        self.synapses: dict[tuple[str, str], Synapses] = {}
        self._rng = np.random.default_rng(self.seed)

    def add_stimulus(self, name: str, size: int) -> Stimulus:
        """Add a stimulus.

        Args:
            name: that no other stimulus or area has.
            size: number of neurons, at least 1.

        Raises:
            ValueError: if the name is taken or the size below 1.
        """
        self._check_name(name)
        if size < 1:
            raise ValueError(f"A stimulus needs at least 1 neuron, got size {size}.")
        stimulus = Stimulus(name, size)
        self.sources[name] = stimulus
        return stimulus

    def add_area(
        self,
        name: str,
        n: int,
        k: int,
        rule: PlasticityRule | None = None,
        *,
        initial_weight: float = 1.0,
        normalise_every: int | None = None,
    ) -> Area:
        """Add an area.

        Args:
            name: that no other stimulus or area has.
            n: number of neurons.
            k: number of winners, from 1 to n; with lazy storage at most n / 10.
            rule: of the synapses it receives; None is `HebbMultiplicative(0.05)`.
            initial_weight: of the synapses it receives, above 0.
            normalise_every: steps after which each neuron's incoming weights are scaled back to the sum they began
                with; None: never.

        Raises:
            ValueError: if an argument is out of range.
        """
        self._check_name(name)
        if not 1 <= k <= n:
            raise ValueError(f"k must lie between 1 and n, got k {k} and n {n}.")
        if not (math.isfinite(initial_weight) and initial_weight > 0):
            raise ValueError(f"initial_weight must be finite and above 0, got {initial_weight}.")
        if normalise_every is not None and normalise_every < 1:
            raise ValueError(f"normalise_every must be at least 1 step, got {normalise_every}.")
        rule = HebbMultiplicative() if rule is None else rule
        if isinstance(rule, STDP) and initial_weight > rule.w_max:
            raise ValueError(f"initial_weight {initial_weight} lies above w_max {rule.w_max} of the rule.")
        area = Area(name, n, k, rule, float(initial_weight), normalise_every)
        if self.storage in ("lazy", "forgetful"):
            if n < LAZY_NEURONS * k:
                raise ValueError(f'Lazy storage needs k <= n / {LAZY_NEURONS}, got k {k} and n {n}: use "sparse".')
            if normalise_every is not None:
                raise ValueError("normalise_every needs all synapses of a neuron, which lazy storage never draws.")
            area.tail = Tail(n, k, area.initial_weight, self._rng, remember=self.storage == "lazy")
        self.sources[name] = area
        return area

    def connect(self, src: str, dst: str, p: float | None = None) -> Synapses:
        """Synapses from a stimulus or an area to an area; they are made when first asked for.

        Args:
            src: stimulus or area.
            dst: area; it may be the source itself.
            p: probability of a synapse; None is the brain's.

        Raises:
            ValueError: if a name is unknown, p lies outside (0, 1], or the two are connected already at another p.
        """
        source, area = self._source(src), self.area(dst)
        p = None if p is None else _probability(p)
        synapses = self.synapses.get((src, dst))
        if synapses is None:
            synapses = self._make(source, area, self.p if p is None else p)
            self.synapses[src, dst] = synapses
        elif p is not None and p != synapses.graph.p:
            raise ValueError(f"{src!r} is connected to {dst!r} already, at p = {synapses.graph.p}.")
        return synapses

    def _make(self, source: Stimulus | Area, area: Area, p: float) -> Synapses:
        parts = (area.rule, area.initial_weight, self.dtype)
        size = source.size
        if area.tail is not None:
            if any(other.graph.p != p for other in self._into(area).values()):
                raise ValueError(f"Lazy storage draws all synapses into an area at one p, got {p} for {area.name!r}.")
            graph = KnownGraph(size, p, self._rng)
            graph.add_columns(np.zeros((area.size, 0), bool))
            return SparseSynapses(graph, *parts)
        graph = RandomGraph(self._graph_seed(source.name, area.name), size, area.n, p)
        if self.storage == "sparse":
            return SparseSynapses(graph, *parts)
        if max(size, area.n) > DENSE_NEURONS:
            gigabytes = size * area.n * (self.dtype.itemsize + 1) / 1e9
            raise ValueError(f'A dense matrix {size} x {area.n} would take {gigabytes:.1f} GB: use storage="sparse".')
        return DenseSynapses(graph, *parts)

    def _graph_seed(self, src: str, dst: str) -> int:
        names = list(self.sources)
        pair = np.array([self.seed, names.index(src), names.index(dst)], np.uint64)
        seed = np.uint64(0)
        for part in pair:
            seed = np.uint64(kernels.mix(seed ^ part))
        return int(seed >> np.uint64(1))

    def step(self, sources: Sources, *, plastic: bool = True) -> dict[str, Tensor]:
        """Let areas choose new winners, all at once.

        Args:
            sources: for every area that does, the stimuli and areas that it receives from.
            plastic: whether synapses change.

        Returns:
            The winners by area, (k,).

        Raises:
            ValueError: if there are no sources, a name is unknown, or a source is silent.
            FloatingPointError: if weights have grown beyond the numbers of their type.
        """
        firing = {dst: {src: self._firing(src) for src in names} for dst, names in self._checked(sources).items()}
        winners = {dst: self._winners(self.area(dst), active) for dst, active in firing.items()}
        for dst, fired in winners.items():
            area = self.area(dst)
            if plastic:
                self._learn(area, firing[dst], fired)
        for dst, fired in winners.items():
            self.area(dst).winners = fired
        return winners

    def _winners(self, area: Area, active: dict[str, Tensor]) -> Int[Tensor, " k"]:
        inputs = torch.stack([self.connect(src, area.name).drive(rows) for src, rows in active.items()]).sum(0)
        if not torch.isfinite(inputs).all():
            raise FloatingPointError(
                f"Inputs of area {area.name!r} are not finite after {area.steps} steps: weights have outgrown "
                f"{self.dtype}. Use a smaller rate, normalise_every, or a rule with a bound."
            )
        if area.tail is None:
            return k_cap(_comparable(inputs), area.k)
        into = {src: synapses.graph for src, synapses in self._into(area).items()}
        graphs = {src: graph for src, graph in into.items() if isinstance(graph, KnownGraph)}
        rows = {src: ids.numpy() for src, ids in active.items()}
        new = area.tail.recruit(graphs, rows, inputs.double().numpy())
        for (src, _), synapses in self.synapses.items():
            if src == area.name and isinstance(synapses.graph, KnownGraph):
                synapses.graph.add_rows(area.size)
        known = torch.cat([inputs, torch.from_numpy(new).to(inputs)])
        order = torch.from_numpy(area.tail.priority.argsort())
        return order[k_cap(_comparable(known)[order], area.k)].sort().values

    def _learn(self, area: Area, active: dict[str, Tensor], fired: Tensor) -> None:
        into = self._into(area)
        for src, synapses in into.items():
            pre = active.get(src)
            synapses.learn(fired[:0] if pre is None else pre, fired, open=pre is not None)
        area.steps += 1
        if area.normalise_every is not None and area.steps % area.normalise_every == 0:
            degrees = torch.stack([_degrees(synapses) for synapses in into.values()]).sum(0)
            sums = torch.stack([synapses.sums() for synapses in into.values()]).sum(0)
            factors = torch.where(sums > 0, area.initial_weight * degrees / sums, 1.0).to(self.dtype)
            for synapses in into.values():
                synapses.scale(factors)

    def reset(self, area: str | None = None) -> None:
        """Silence an area, or all; weights stay.

        Raises:
            ValueError: if the name is unknown.
        """
        for name, source in self.sources.items():
            if isinstance(source, Area) and area in (None, name):
                source.winners = None
                for synapses in self._into(source).values():
                    synapses.rest()
        if area is not None:
            self.area(area)

    def activate(self, area: str, neurons: Int[Tensor, " neurons"]) -> None:
        """Let given neurons of an area fire, e.g. a part of an assembly.

        Args:
            area: name.
            neurons: at least one, none twice.

        Raises:
            ValueError: if the neurons are none, too many, repeated or out of range.
        """
        owner = self.area(area)
        neurons = neurons.sort().values
        if not 1 <= len(neurons) <= owner.size or len(neurons.unique()) < len(neurons):
            raise ValueError(f"Between 1 and {owner.size} neurons can fire, none twice, got {len(neurons)}.")
        if int(neurons[0]) < 0 or int(neurons[-1]) >= owner.size:
            raise ValueError(f"Area {area!r} has {owner.size} neurons, got {int(neurons[0])} to {int(neurons[-1])}.")
        owner.winners = neurons

    def area(self, name: str) -> Area:
        """The area of a name.

        Raises:
            ValueError: if there is none.
        """
        found = self._source(name)
        if not isinstance(found, Area):
            raise ValueError(f"{name!r} is a stimulus, which receives nothing: an area was wanted.")
        return found

    def weights(self, src: str, dst: str) -> Float[Tensor, "sources neurons"]:
        """All weights between two, absent synapses 0: for looking, at small sizes.

        Raises:
            ValueError: if a name is unknown.
        """
        return self.connect(src, dst).matrix()

    @property
    def stored_bytes(self) -> int:
        """Memory of all weights, their indices, traces and, in lazy storage, synapses that are drawn."""
        graphs = {id(s.graph): s.graph.stored_bytes for s in self.synapses.values() if isinstance(s.graph, KnownGraph)}
        return sum(synapses.stored_bytes for synapses in self.synapses.values()) + sum(graphs.values())

    @property
    def dense_bytes(self) -> int:
        """Memory that matrices of weights alone would take."""
        sizes = {name: source.n if isinstance(source, Area) else source.size for name, source in self.sources.items()}
        return sum(sizes[src] * sizes[dst] for src, dst in self.synapses) * self.dtype.itemsize

    def _into(self, area: Area) -> dict[str, Synapses]:
        return {src: synapses for (src, dst), synapses in self.synapses.items() if dst == area.name}

    def _checked(self, sources: Sources) -> dict[str, list[str]]:
        checked = {dst: list(dict.fromkeys(names)) for dst, names in sources.items()}
        if not checked or not all(checked.values()):
            raise ValueError(f"Every area of a step needs at least one source, got {dict(sources)}.")
        for dst, names in checked.items():
            for src in names:
                self.connect(src, dst)
        return checked

    def _firing(self, name: str) -> Int[Tensor, " firing"]:
        winners = self._source(name).winners
        if winners is None:
            raise ValueError(f"Area {name!r} is silent: it cannot project. Project something to it first.")
        return winners

    def _source(self, name: str) -> Stimulus | Area:
        if name not in self.sources:
            raise ValueError(f"No stimulus or area named {name!r}; there are {', '.join(self.sources) or 'none'}.")
        return self.sources[name]

    def _check_name(self, name: str) -> None:
        if name in self.sources:
            raise ValueError(f"There is a stimulus or an area named {name!r} already.")


def _probability(p: float) -> float:
    if not 0 < p <= 1:
        raise ValueError(f"p must lie in (0, 1], got {p}.")
    return float(p)


def _comparable(inputs: Float[Tensor, " neurons"]) -> Float[Tensor, " neurons"]:
    """Inputs in single precision, so that sums which differ only in the order of their terms tie."""
    return (inputs / inputs.max()).float() if float(inputs.max()) > 0 else inputs.float()


def _degrees(synapses: Synapses) -> Tensor:
    graph = synapses.graph
    if not isinstance(graph, RandomGraph):
        raise ValueError("In-degrees need a graph that is wholly drawn, which lazy storage never has.")
    return torch.from_numpy(graph.in_degrees())
