"""The engine beside two solutions that share nothing with it: a dense one in NumPy, and Brian2's.

Brian2 takes part where the environment variable BRIAN2_PYTHON names an interpreter that has it.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from neuropil.spiking.network.network import Network
from neuropil.spiking.network.populations import Population
from neuropil.spiking.network.rules import Explicit
from neuropil.spiking.network.synapses import COBA, CUBA, Exponential
from neuropil.spiking.neurons import LIFNeuron

DT, TAU, TAU_E, TAU_I, V_TH, V_R = 0.1, 20.0, 5.0, 10.0, -50.0, -60.0
HELD = 50
JUMPS = {"cuba": (1.62, -9.0), "coba": (0.6, 6.7)}
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "peers" / "brian2_networks.py"


class Drawn(NamedTuple):
    """Edges (source, target), their delays in steps, and initial potentials."""

    source: np.ndarray
    target: np.ndarray
    delay: np.ndarray
    v: np.ndarray

    @property
    def n_e(self) -> int:
        return 4 * len(self.v) // 5


class Spikes(NamedTuple):
    step: np.ndarray
    neuron: np.ndarray


def drawn(n: int, seed: int, longest: int) -> Drawn:
    generator = np.random.default_rng(seed)
    source, target = np.nonzero(generator.random((n, n)) < 80 / n)
    return Drawn(
        source, target, generator.integers(1, longest + 1, len(source)), V_R + (V_TH - V_R) * generator.random(n)
    )


def dense(network: str, graph: Drawn, steps: int) -> Spikes:
    """Every pair of neurons in two matrices; a step in the order of the engine."""
    n, slots = len(graph.v), int(graph.delay.max()) + 1
    weights, delays = np.zeros((n, n)), np.zeros((n, n), dtype=np.int64)
    weights[graph.source, graph.target] = np.where(graph.source < graph.n_e, *JUMPS[network])
    delays[graph.source, graph.target] = graph.delay
    arrivals, g = np.zeros((slots, 2, n)), np.zeros((2, n))
    taus = np.array([[TAU_E], [TAU_I]])
    decay, leak = np.exp(-DT / taus), np.exp(-DT / TAU)
    reach = taus / (taus - TAU) * (decay - leak)
    v, held, everyone, found = graph.v.copy(), np.zeros(n, dtype=np.int64), np.arange(n), []
    for step in range(steps):
        g += arrivals[step % slots]
        arrivals[step % slots] = 0.0
        if network == "cuba":
            v = -49.0 + (v + 49.0) * leak + (reach * g).sum(0)
        else:
            total = 1.0 + g.sum(0)
            target = (-60.0 + 20.0 + g[1] * -80.0) / total
            v = target + (v - target) * np.exp(-DT / TAU * total)
        v = np.where(held > 0, V_R, v)
        held = np.maximum(held - 1, 0)
        g *= decay
        fired = np.flatnonzero(v >= V_TH)
        v[fired], held[fired] = V_R, HELD
        for s in fired:
            arrivals[(step + delays[s]) % slots, int(s >= graph.n_e), everyone] += weights[s]
        found.append(fired)
    return Spikes(np.repeat(np.arange(steps), [len(f) for f in found]), np.concatenate(found))


def engine(network: str, graph: Drawn, steps: int) -> Spikes:
    rest, bias = (-49.0, 0.0) if network == "cuba" else (-60.0, 20.0)
    neuron = LIFNeuron(tau=TAU, v_rest=rest, v_threshold=V_TH, v_reset=V_R, refractory=HELD * DT)
    net = Network(dt=DT, seed=0, dtype=torch.float64)
    cells = net.add(Population(len(graph.v), neuron, name="cells", bias=bias))
    outputs = (CUBA(), CUBA()) if network == "cuba" else (COBA(reversal=0.0), COBA(reversal=-80.0))
    parts = ((0, graph.n_e, TAU_E), (graph.n_e, len(graph.v), TAU_I))
    for (low, high, tau), weight, output in zip(parts, JUMPS[network], outputs, strict=True):
        mine = (graph.source >= low) & (graph.source < high)
        edges = torch.tensor(np.stack([graph.source[mine] - low, graph.target[mine]]))
        net.connect(
            cells[low:high],
            cells,
            Explicit(edges),
            weight=weight,
            delay=torch.tensor(graph.delay[mine] * DT),
            synapse=Exponential(tau),
            output=output,
        )
    net.set("cells", v=torch.tensor(graph.v))
    recording = net.run(steps * DT, monitors=("spikes",))
    return Spikes(recording.times["cells"], recording.neurons["cells"])


@pytest.fixture(scope="module")
def brian2_python() -> str:
    python = os.environ.get("BRIAN2_PYTHON")
    if not python:
        pytest.skip("BRIAN2_PYTHON names no interpreter that has Brian2")
    if subprocess.run([python, "-c", "import brian2"], capture_output=True, check=False).returncode:
        pytest.skip(f"{python} cannot import brian2")
    return python


def brian2(python: str, network: str, graph: Drawn, steps: int, folder: Path) -> Spikes:
    np.savez(folder / "edges.npz", **graph._asdict())
    order = {
        "network": network,
        "n": len(graph.v),
        "seconds": steps * DT / 1000,
        "dtype": "float64",
        "edges": str(folder / "edges.npz"),
        "spikes": str(folder / "spikes.npz"),
    }
    subprocess.run([python, str(SCRIPT), json.dumps(order)], check=True, capture_output=True)
    with np.load(folder / "spikes.npz") as spikes:
        return Spikes(spikes["step"], spikes["index"])


def assert_same(ours: Spikes, theirs: Spikes) -> None:
    assert len(theirs.step) > 100
    assert np.array_equal(ours.step, theirs.step)
    assert np.array_equal(ours.neuron, theirs.neuron)


@pytest.mark.parametrize(("n", "longest", "steps"), [(1000, 1, 1000), (800, 1, 2000), (800, 20, 2000)])
def test_the_engine_fires_the_spikes_of_a_dense_solution(n, longest, steps):
    graph = drawn(n, 1, longest)
    assert_same(engine("cuba", graph, steps), dense("cuba", graph, steps))


def test_the_engine_fires_the_spikes_of_a_dense_solution_under_conductances():
    graph = drawn(1000, 2, 20)
    assert_same(engine("coba", graph, 1000), dense("coba", graph, 1000))


@pytest.mark.parametrize("longest", [1, 20])
@pytest.mark.parametrize("network", ["cuba", "coba"])
def test_engine_and_dense_solution_fire_the_spikes_of_brian2(network, longest, brian2_python, tmp_path):
    graph = drawn(1000, 3, longest)
    theirs = brian2(brian2_python, network, graph, 1000, tmp_path)
    assert_same(dense(network, graph, 1000), theirs)
    assert_same(engine(network, graph, 1000), theirs)


@pytest.mark.parametrize("change", ["refractory", "delay"])
def test_a_step_more_of_refractoriness_or_delay_is_seen(change, monkeypatch):
    graph = drawn(800, 4, 1)
    found = engine("cuba", graph, 500)
    if change == "refractory":
        monkeypatch.setitem(globals(), "HELD", HELD - 1)
    else:
        graph = graph._replace(delay=graph.delay + 1)
    other = dense("cuba", graph, 500)
    assert not (np.array_equal(found.step, other.step) and np.array_equal(found.neuron, other.neuron))
