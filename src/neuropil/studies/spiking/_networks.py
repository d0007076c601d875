"""The networks of the study, and the same dynamics written plainly in numpy and torch, to compare with.

Brunel (2000): N_E excitatory and N_E/4 inhibitory neurons, of which each neuron hears C_E and C_E/4 by delta synapses
of J and -g J after 1.5 ms, and Poisson spikes from outside at eta times the rate that alone would take it to threshold.

Vogels & Abbott (2005), as in Brette et al. (2007): 80 inputs per neuron, four fifths of the neurons excitatory,

    CUBA    20 dv/dt = -(v + 49) + g_e + g_i                                  g_e += 1.62 mV,  g_i += -9 mV
    COBA    20 dv/dt = -(v + 60) + 20 + g_e (0 - v) + g_i (-80 - v)           g_e += 0.6,      g_i += 6.7

with synapses of 5 and 10 ms, threshold -50, reset -60 mV, refractory for 5 ms (COBA with the constant drive of
BrainPy's example, in place of a kick).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import fsolve
from torch import Tensor

from neuropil.spiking import LIFNeuron
from neuropil.spiking.network import (
    COBA,
    CUBA,
    Delta,
    Exponential,
    FixedIndegree,
    FixedProbability,
    JustInTime,
    Network,
    PoissonInput,
    Population,
    brunel_rate,
    siegert_rate,
    threshold_rate,
)

__all__ = ["BrunelNetwork", "dense_loop", "random_delays", "torch_loop", "vogels_abbott"]

TAU, THETA, RESET, REFRACTORY = 20.0, 20.0, 10.0, 2.0
DT, REST, THRESHOLD, FLOOR, HELD = 0.1, -49.0, -50.0, -60.0, 50  # of CUBA, HELD in steps
TAUS, JUMPS = (5.0, 10.0), (1.62, -9.0)
GAINS = [t / (t - TAU) * (math.exp(-DT / t) - math.exp(-DT / TAU)) for t in TAUS]
"""What g_e and g_i of 1 mV add to v in a step, exactly."""
KEPT = math.exp(-DT / TAU)
INPUTS = 80


@dataclass(frozen=True)
class BrunelNetwork:
    """Brunel's model A: delta synapses, excitatory and inhibitory neurons alike.

    Args:
        excitatory: N_E.
        in_degree: C_E.
        weight: J, mV.
        g: inhibition relative to excitation.
        eta: external rate relative to the one that takes the mean potential to threshold.
    """

    excitatory: int
    in_degree: int
    weight: float
    g: float
    eta: float

    def build(self, seed: int, *, fixed: bool = True) -> Network:
        """The network, silent.

        Args:
            seed: of synapses and Poisson spikes.
            fixed: whether every neuron has exactly C_E + C_I inputs, each drawn independently of the others as theory
                has it (so a few pairs have two synapses); else pairs are joined with probability C_E/N_E.
        """
        n_e, n_i = self.excitatory, self.excitatory // 4
        net = Network(dt=0.1, seed=seed, threads=1)
        neuron = LIFNeuron(tau=TAU, v_threshold=THETA, v_reset=RESET, refractory=REFRACTORY)
        cells = net.add(Population(n_e + n_i, neuron, "cells"))
        for pre, inputs, weight in (
            (cells[:n_e], self.in_degree, self.weight),
            (cells[n_e:], self.in_degree // 4, -self.g * self.weight),
        ):
            rule = FixedIndegree(inputs, multapses=True) if fixed else FixedProbability(inputs / len(pre))
            net.connect(pre, cells, rule, weight, 1.5, synapse=Delta())
        threshold = threshold_rate(weight=self.weight, in_degree=self.in_degree, tau=TAU, theta=THETA)
        net.drive(cells, PoissonInput(self.eta * threshold * self.in_degree), self.weight, synapse=Delta())
        return net

    def theory(self) -> float:
        """Rate of the mean field with fixed in-degrees, Hz."""
        return brunel_rate(
            g=self.g,
            eta=self.eta,
            weight=self.weight,
            in_degree=self.in_degree,
            inhibitory_in_degree=self.in_degree // 4,
            tau=TAU,
            theta=THETA,
            v_reset=RESET,
            t_ref=REFRACTORY,
        )

    def theory_at_random(self) -> tuple[float, float]:
        """Mean and standard deviation over neurons of the rate, Hz, where pairs are joined with a probability p.

        The mean inputs of neurons then differ, by a Gaussian of variance J^2 tau^2 (1 - p) (C_E + g^2 C_I) q, where
        q = <nu^2> must come out of the rates that it makes; nu = <nu> as before.

        Source: van Vreeswijk & Sompolinsky, Neural Comput. 10 (1998), for this neuron.
        """
        c_e, c_i = self.in_degree, self.in_degree // 4
        away = 1.0 - c_e / self.excitatory
        outside = self.eta * THETA
        nodes, weights = np.polynomial.hermite_e.hermegauss(201)
        weights = weights / weights.sum()

        def rates(nu: float, q: float) -> np.ndarray:
            mean = self.weight * TAU * nu * (c_e - self.g * c_i) + outside
            spread = self.weight * TAU * math.sqrt(away * q * (c_e + self.g**2 * c_i))
            noise = math.sqrt(self.weight**2 * TAU * nu * (c_e + self.g**2 * c_i) + self.weight * outside)
            return siegert_rate(mean + spread * nodes, noise, TAU, THETA, RESET, REFRACTORY) / 1000.0

        def surplus(x: np.ndarray) -> list[float]:
            found = rates(*np.abs(x))
            return [weights @ found - x[0], weights @ found**2 - x[1]]

        first = self.theory() / 1000.0
        nu, q = np.abs(np.asarray(fsolve(surplus, [first, 1.3 * first**2], xtol=1e-10)))
        return 1000.0 * float(nu), 1000.0 * math.sqrt(q - nu**2)


def random_delays(number: int, generator: torch.Generator) -> Tensor:
    """Delays of 0.1 to 2 ms, in steps of 0.1."""
    return torch.randint(1, 21, (number,), generator=generator) * 0.1


def vogels_abbott(
    kind: Literal["CUBA", "COBA"],
    n: int,
    seed: int,
    *,
    random: bool = False,
    stored: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Network:
    """CUBA or COBA at random potentials, each pair joined with probability 80/n.

    Args:
        kind: of the synapses.
        n: neurons.
        seed: of synapses, delays and potentials.
        random: whether delays are 0.1 to 2 ms instead of 0.1.
        stored: whether synapses are stored, or made again whenever a neuron fires.
        dtype: of the state.
    """
    current = kind == "CUBA"
    net = Network(dt=DT, seed=seed, dtype=dtype, threads=1)
    neuron = LIFNeuron(
        tau=TAU, v_rest=REST if current else FLOOR, v_threshold=THRESHOLD, v_reset=FLOOR, refractory=HELD * DT
    )
    cells = net.add(Population(n, neuron, "cells", bias=0.0 if current else 20.0))
    rule = (FixedProbability if stored else JustInTime)(min(INPUTS / n, 1.0))
    split = 4 * n // 5
    outputs = (CUBA(), CUBA()) if current else (COBA(0.0), COBA(-80.0))
    jumps = JUMPS if current else (0.6, 6.7)
    for pre, weight, tau, output in zip((cells[:split], cells[split:]), jumps, TAUS, outputs, strict=True):
        delay = random_delays if random else DT
        net.connect(pre, cells, rule, weight, delay, synapse=Exponential(tau), output=output)
    generator = torch.Generator().manual_seed(seed)
    start = FLOOR + 10.0 * torch.rand(n, generator=generator)
    net.set(cells, v=start if current else -55.0 + 2.0 * torch.randn(n, generator=generator))
    return net


def dense_loop(net: Network, duration: float) -> tuple[np.ndarray, np.ndarray]:
    """CUBA with matrices of weights and delays, in numpy and float64: independent of the engine.

    Args:
        net: made by `vogels_abbott("CUBA", ...)`, not yet run.
        duration: ms.

    Returns:
        Step and neuron of every spike.
    """
    v = net.state()["cells.v"].double().numpy().copy()
    n = v.size
    weights, delays = [], []
    for p in net.wiring.projections:
        synapses = p.stored()
        each = torch.full((synapses.nnz,), p.delay) if p.delays is None else p.delays
        weights.append(synapses.to_dense(torch.full((synapses.nnz,), float(p.weight), dtype=torch.float64)).numpy())
        delays.append(synapses.to_dense(each.double()).numpy().astype(int))
    w, d = np.concatenate(weights), np.concatenate(delays)
    receptor = (np.arange(n) >= len(weights[0])).astype(int)
    slots = int(d.max()) + 1
    coming, g, held = np.zeros((slots, 2, n)), np.zeros((2, n)), np.zeros(n, int)
    decay = np.exp(-DT / np.array(TAUS))[:, None]
    times, neurons = [], []
    for k in range(round(duration / DT)):
        g += coming[k % slots]
        coming[k % slots] = 0.0
        v = REST + (v - REST) * KEPT + GAINS[0] * g[0] + GAINS[1] * g[1]
        v = np.where(held > 0, FLOOR, v)
        held = np.maximum(held - 1, 0)
        g *= decay
        fired = np.flatnonzero(v >= THRESHOLD)
        v[fired], held[fired] = FLOOR, HELD
        for i in fired:
            targets = np.flatnonzero(d[i])
            coming[(k + d[i, targets]) % slots, receptor[i], targets] += w[i, targets]
        times.append(np.full(fired.size, k))
        neurons.append(fired)
    return np.concatenate(times), np.concatenate(neurons)


def torch_loop(net: Network, product: Literal["event", "csr"]) -> Callable[[float], Tensor]:
    """CUBA with delays of a step as a fast loop in torch, float32, updated in place.

    Args:
        net: made by `vogels_abbott("CUBA", ...)`, not yet run.
        product: "event" adds the rows of the neurons that fired, cut out beforehand, all in one `index_add_`;
            "csr" multiplies both matrices, transposed as torch likes them, in every step.

    Returns:
        A function that runs so many ms from the beginning, and returns the neurons of all spikes in order.
    """
    start = net.state()["cells.v"]
    n = len(start)
    excitatory, inhibitory = (p.stored() for p in net.wiring.projections)
    split, decay, gain = excitatory.n_pre, torch.exp(-DT / torch.tensor(TAUS))[:, None], torch.tensor(GAINS)
    targets, jumps = [], []
    for synapses, offset, jump in ((excitatory, 0, JUMPS[0]), (inhibitory, n, JUMPS[1])):
        rows = torch.from_numpy(synapses.indices.astype(np.int64) + offset)
        targets += rows.tensor_split(torch.from_numpy(synapses.indptr[1:-1]))
        jumps += [torch.full((count,), jump) for count in np.diff(synapses.indptr).tolist()]
    to_e = excitatory.to_torch_csr(JUMPS[0], transposed=True)
    to_i = inhibitory.to_torch_csr(JUMPS[1], transposed=True)

    def arrive(g: Tensor, flat: Tensor, fired: Tensor, spikes: Tensor) -> None:
        if product == "csr":
            spikes.zero_()
            spikes[fired] = 1.0
            g[0] += to_e @ spikes[:split]
            g[1] += to_i @ spikes[split:]
        elif len(fired):
            who = fired.tolist()
            flat.index_add_(0, torch.cat([targets[i] for i in who]), torch.cat([jumps[i] for i in who]))

    def loop(duration: float) -> Tensor:
        v, g, spikes, held = start.clone(), torch.zeros(2, n), torch.zeros(n), torch.zeros(n, dtype=torch.int32)
        flat, fired, kept = g.view(-1), torch.zeros(0, dtype=torch.int64), []
        for _ in range(round(duration / DT)):
            arrive(g, flat, fired, spikes)
            v.mul_(KEPT).add_((1.0 - KEPT) * REST).add_(gain @ g)
            v.masked_fill_(held > 0, FLOOR)
            held.sub_(1).clamp_(min=0)
            g.mul_(decay)
            fired = (v >= THRESHOLD).nonzero().squeeze(1)
            v[fired], held[fired] = FLOOR, HELD
            kept.append(fired)
        return torch.cat(kept)

    return loop
