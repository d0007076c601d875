"""State of presynaptic neurons: short-term plasticity, and the gating variables of NMDA receptors.

Equations in `network.short_term` and `network.synapses`; both run before arrivals, on one thread.
"""

from typing import Any, NamedTuple

import numpy as np

from .engine import Spikes, at, operation
from .exponential import exp

__all__ = ["GateStep", "GradedDelivery", "ShortTermStep"]


class ShortTermStep(NamedTuple):
    """Facilitation u and depression x (n_pre,) of the sources whose spikes are delivered now; what they release.

    lag: steps between emission and delivery. rates are -dt/tau.
    """

    spikes: Spikes
    first: Any
    lag: Any
    u: np.ndarray
    x: np.ndarray
    last: np.ndarray
    release: np.ndarray
    utilisation: Any
    rate_u: Any
    rate_x: Any


class GateStep(NamedTuple):
    """Gating variables g and x (n_pre,) of saturating receptors; step is -dt."""

    spikes: Spikes
    first: Any
    lag: Any
    g: np.ndarray
    x: np.ndarray
    leak: Any
    alpha: Any
    step: Any
    decay_x: Any


class GradedDelivery(NamedTuple):
    """Every source adds its weights times its value to `target`, in every step."""

    values: np.ndarray
    offsets: np.ndarray
    indices: np.ndarray
    weight: Any
    target: np.ndarray


@operation(ShortTermStep)
def step_short_term(op, k, row, part):
    spikes, one = op.spikes, op.u.dtype.type(1)
    slot = (k - op.lag) % spikes.ring.shape[0]
    for q in range(spikes.counts.shape[1]):
        base = spikes.bounds[q]
        for m in range(base, base + spikes.counts[slot, q]):
            i = spikes.ring[slot, m] - op.first
            if 0 <= i < op.u.size:
                passed = op.u.dtype.type(k - op.last[i])
                u = op.u[i] * exp(op.rate_u * passed)
                x = one + (op.x[i] - one) * exp(op.rate_x * passed)
                u = u + op.utilisation * (one - u)
                released = u * x
                op.u[i], op.x[i], op.last[i], op.release[i] = u, x - released, k, released


@operation(GateStep)
def step_gates(op, k, row, part):
    g, x, one = op.g, op.x, op.g.dtype.type(1)
    for i in range(g.size):
        opening = op.alpha * x[i]
        rate = op.leak + opening
        steady = opening / rate
        g[i] = steady + (g[i] - steady) * exp(op.step * rate)
        x[i] = op.decay_x * x[i]
    spikes = op.spikes
    slot = (k - op.lag) % spikes.ring.shape[0]
    for q in range(spikes.counts.shape[1]):
        base = spikes.bounds[q]
        for m in range(base, base + spikes.counts[slot, q]):
            i = spikes.ring[slot, m] - op.first
            if 0 <= i < x.size:
                x[i] += one


@operation(GradedDelivery)
def deliver_graded(op, k, row, part):
    indices, target = op.indices, op.target
    for i in range(op.offsets.shape[0]):
        value = op.values[i]
        for s in range(op.offsets[i, part], op.offsets[i, part + 1]):
            target[indices[s]] += at(op.weight, s) * value
