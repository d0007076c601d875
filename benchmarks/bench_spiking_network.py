"""Recurrent networks of spiking neurons beside Brian2's C++ standalone mode, and what a million neurons take.

BRIAN2_PYTHON=/path/to/python python benchmarks/bench_spiking_network.py

BRIAN2_PYTHON names an interpreter that has Brian2 (benchmarks/requirements-brian2.txt) and a C++ compiler beside it;
without it neuropil's own times are printed. Both run CUBA and COBA (Vogels & Abbott 2005, as in Brette et al. 2007)
with 80 inputs per neuron, steps of 0.1 ms, float32, and record all spikes. Wall time of the simulation alone: Brian2's
making of code and synapses is left out, as are neuropil's synapses and compiled code. Programs run in turns; rates have
to agree, as the networks are drawn by each on its own. Brian2's OpenMP threads spin while they wait: its time at two
threads means nothing on a machine whose cores are not both free.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from neuropil.spiking.network.network import Network
from neuropil.spiking.network.populations import Population
from neuropil.spiking.network.rules import FixedProbability
from neuropil.spiking.network.synapses import COBA, CUBA, Exponential
from neuropil.spiking.neurons import LIFNeuron

IN_DEGREE, ROUNDS, HUGE = 80, 5, 1_000_000
SIZES = {4_000: 10.0, 40_000: 1.0}
"""Neurons, and biological seconds that are run."""
THREADS = (1, 2)
SCRIPT = Path(__file__).parent / "peers" / "brian2_networks.py"
Row = dict[str, Any]


def made(kind: str, n: int, threads: int) -> Network:
    """CUBA or COBA, four fifths of the neurons excitatory."""
    rest, bias = (-49.0, 0.0) if kind == "cuba" else (-60.0, 20.0)
    neuron = LIFNeuron(tau=20.0, v_rest=rest, v_threshold=-50.0, v_reset=-60.0, refractory=5.0)
    net = Network(dt=0.1, seed=0, dtype=torch.float32, threads=threads)
    cells = net.add(Population(n, neuron, name="cells", bias=bias))
    rule, n_e = FixedProbability(IN_DEGREE / n), 4 * n // 5
    weights = (1.62, -9.0) if kind == "cuba" else (0.6, 6.7)
    outputs = (CUBA(), CUBA()) if kind == "cuba" else (COBA(reversal=0.0), COBA(reversal=-80.0))
    for pre, weight, tau, output in zip((cells[:n_e], cells[n_e:]), weights, (5.0, 10.0), outputs, strict=True):
        net.connect(pre, cells, rule, weight=weight, delay=0.1, synapse=Exponential(tau), output=output)
    generator = torch.Generator().manual_seed(1)
    v = torch.rand(n, generator=generator) * 10 - 60 if kind == "cuba" else torch.randn(n, generator=generator) * 2 - 55
    net.set("cells", v=v)
    return net


def ours(kind: str, n: int, seconds: float, threads: int) -> Row:
    """The network, compiled by a step of its own and set back to its beginning."""
    net = made(kind, n, threads)
    start = net.state()
    net.run(0.1)

    def run() -> tuple[float, float]:
        net.load_state(start)
        begin = time.perf_counter()
        recording = net.run(1000.0 * seconds, monitors=("spikes",))
        return time.perf_counter() - begin, recording.rate("cells")

    return {"run": run}


def theirs(python: str, directory: str, kind: str, n: int, seconds: float, threads: int) -> Row:
    """Brian2's program, made and compiled."""
    order = {"network": kind, "n": n, "seconds": seconds, "threads": threads, "directory": directory}
    done = subprocess.run([python, str(SCRIPT), json.dumps(order)], check=True, capture_output=True, text=True)
    built = json.loads(done.stdout.splitlines()[-1])

    def run() -> tuple[float, float]:
        subprocess.run(["./main"], check=True, cwd=directory, capture_output=True)
        info = (Path(directory) / "results" / "last_run_info.txt").read_text()
        return float(info.split()[0]), built["rate"]

    return built | {"run": run}


def compared(kind: str, n: int, seconds: float, python: str | None, folder: str, rounds: int = ROUNDS) -> None:
    """Medians of one network, in turns."""
    rows = {f"neuropil, {threads} thr.": ours(kind, n, seconds, threads) for threads in THREADS}
    for threads in THREADS if python else ():
        directory = f"{folder}/{kind}-{n}-{threads}"
        rows[f"Brian2, {threads} thr."] = theirs(str(python), directory, kind, n, seconds, threads)
    walls: dict[str, list[float]] = {name: [] for name in rows}
    rates: dict[str, float] = {}
    for _ in range(rounds):
        for name, row in rows.items():
            wall, rates[name] = row["run"]()
            walls[name].append(wall / seconds)
    print(f"{kind.upper()}, {n} neurons, {seconds:g} s, load of the machine {os.getloadavg()[0]:.1f}")
    own = statistics.median(walls["neuropil, 1 thr."])
    for name, wall in walls.items():
        median = statistics.median(wall)
        built = rows[name].get("build_seconds")
        print(
            f"    {name:<20} {median:7.3f} s per biological second [{min(wall):.3f}, {max(wall):.3f}]"
            f"{median / own:7.2f} x   {rates[name]:5.1f} Hz" + (f"   built in {built:.0f} s" if built else "")
        )


def peak() -> float:
    """Largest memory of this process so far, GB; Linux keeps it by program, not by the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e6


def alone(kind: str, n: int, threads: int) -> None:
    """What a process of its own takes from the first synapse to the first spikes."""
    before, begin = peak(), time.perf_counter()
    net = made(kind, n, threads)
    built = time.perf_counter() - begin
    begin = time.perf_counter()
    net.run(0.1)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    net.run(100.0)
    print(
        f"{kind.upper()}, {n} neurons, {threads} thr.: synapses made in {built:.1f} s, first step {first:.2f} s, "
        f"then {10 * (time.perf_counter() - begin):.2f} s per biological second; peak {peak():.2f} GB, "
        f"{peak() - before:.2f} above the libraries"
    )


def separately(title: str, cache: str, *arguments: object) -> None:
    """Run `alone` in a new process whose compiled code lies in `cache`."""
    print(f"{title}: ", end="", flush=True)
    environment = os.environ | {"NUMBA_CACHE_DIR": cache}
    subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True, env=environment)


def main() -> None:
    """All comparisons."""
    interpreter = os.environ.get("BRIAN2_PYTHON")
    if not interpreter:
        print("BRIAN2_PYTHON names no interpreter that has Brian2: neuropil alone")
    with tempfile.TemporaryDirectory() as folder:
        for n, seconds in SIZES.items():
            for kind in ("cuba", "coba"):
                compared(kind, n, seconds, interpreter, folder)
        compared("cuba", HUGE, 0.1, interpreter, folder, rounds=3)
        for kind in ("cuba", "coba"):
            for title in ("without compiled code on disk", "in the next process"):
                separately(title, f"{folder}/cache-{kind}", kind, 4_000, 1)
        for threads in THREADS:
            separately("a million", f"{folder}/cache-cuba", "cuba", HUGE, threads)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        alone(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
