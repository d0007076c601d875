"""A decision by excitatory and inhibitory neurons: evidence comes early, the answer is read from late spikes.

Two noisy currents differ in their means for `early` ms, then stop. A linear readout of the spikes that every neuron
fires in the last `late` ms says which was larger, so the network must hold its opinion in between. Excitatory weights
stay positive and inhibitory ones negative (Dale's law); gradients come through time by surrogates.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from neuropil.spiking import LIFNeuron
from neuropil.spiking.network import Exponential, FixedProbability, Network, NetworkModule, Population

__all__ = ["Evidence", "decide", "decision_network", "trials", "uniform"]


@dataclass(frozen=True)
class Evidence:
    """Two noisy currents, early; their difference is asked for late. Steps are of 1 ms.

    The first third of the excitatory neurons hears one current, the second third the other, all neurons noise.
    """

    excitatory: int = 48
    inhibitory: int = 12
    probability: float = 0.3
    early: int = 30
    late: int = 20
    steps: int = 70
    mean: float = 0.5
    difference: float = 0.25
    noise: float = 1.0
    background: float = 0.5
    batch: int = 32
    iterations: int = 150
    tested: int = 1000


def uniform(scale: float, number: int, generator: torch.Generator) -> Tensor:
    """Weights between 0 and twice the scale."""
    return 2.0 * scale * torch.rand(number, generator=generator)


def decision_network(task: Evidence, seed: int) -> NetworkModule:
    """Excitatory and inhibitory neurons that fire at some 20 Hz by themselves."""
    net = Network(dt=1.0, seed=seed)
    neuron = LIFNeuron(tau=20.0, refractory=2.0, surrogate="atan")
    cells = net.add(Population(task.excitatory + task.inhibitory, neuron, "cells", bias=1.0))
    inputs = task.probability * task.excitatory
    for pre, scale in ((cells[: task.excitatory], 2.88), (cells[task.excitatory :], -11.52)):
        draw = partial(uniform, scale / inputs)
        net.connect(pre, cells, FixedProbability(task.probability), draw, 2.0, synapse=Exponential(5.0))
    return net.as_module()


def trials(task: Evidence, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Currents (steps, number, neurons), answers, and the answers of an observer who sees the currents' difference."""
    answer = torch.randint(2, (number,), generator=generator)
    current = task.background * torch.randn(task.steps, number, task.excitatory + task.inhibitory, generator=generator)
    sign = 2.0 * answer - 1.0
    shift = task.difference * torch.stack((-sign, sign), 1)
    pair = task.mean + shift + task.noise * torch.randn(task.early, number, 2, generator=generator)
    third = task.excitatory // 3
    current[: task.early, :, :third] += pair[..., :1]
    current[: task.early, :, third : 2 * third] += pair[..., 1:]
    return current, answer, (pair[..., 1] - pair[..., 0]).sum(0) > 0


def decide(task: Evidence, seed: int, rate: float, recurrent: bool) -> dict[str, Any]:
    """Train a readout of late spike counts, and the recurrent weights with it or not; signs of weights stay."""
    module = decision_network(task, seed)
    generator = torch.Generator().manual_seed(seed)
    readout = torch.zeros(task.excitatory + task.inhibitory, 2, requires_grad=True)
    bias = torch.zeros(2, requires_grad=True)
    signs = {name: weight.detach().sign() for name, weight in module.weights.items()}
    optimizer = torch.optim.Adam([readout, bias, *(module.parameters() if recurrent else [])], lr=rate)

    def scores(current: Tensor) -> Tensor:
        return module(current)[0][-task.late :].sum(0) @ readout + bias

    curve = []
    for _ in range(task.iterations):
        current, answer, _ = trials(task, task.batch, generator)
        found = scores(current)
        optimizer.zero_grad()
        cross_entropy(found, answer).backward()
        optimizer.step()
        with torch.no_grad():
            for name, weight in module.weights.items():
                weight.copy_(signs[name] * (signs[name] * weight).clamp(min=0.0))
        curve.append(float((found.argmax(1) == answer).float().mean()))
    current, answer, best = trials(task, task.tested, torch.Generator().manual_seed(10_000 + seed))
    with torch.no_grad():
        right = scores(current).argmax(1) == answer
    return {
        "seed": seed,
        "accuracy": float(right.float().mean()),
        "observer": float((best == (answer == 1)).float().mean()),
        "curve": curve,
    }
