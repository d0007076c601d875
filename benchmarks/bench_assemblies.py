"""What a projection costs, in time and memory, beside a matrix of weights; and that all storages tell the same story.

python benchmarks/bench_assemblies.py
"""

import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
from timing import medians

from neuropil.learning.assemblies import Brain, ProjectionTrace, project
from neuropil.learning.assemblies.brain import Storage
from neuropil.learning.plasticity import HebbMultiplicative

LARGE, HUGE, SMALL = (100_000, 316, 0.05), (1_000_000, 1000, 0.05), (2_000, 50, 0.05)
STEPS = 40
STORAGES: tuple[Storage, ...] = ("sparse", "lazy", "forgetful")


def made(size: tuple[int, int, float], storage: Storage, seed: int = 0) -> Brain:
    """One area and one stimulus."""
    n, k, p = size
    brain = Brain(p, torch.Generator().manual_seed(seed), storage=storage)
    brain.add_stimulus("x", k)
    brain.add_area("A", n, k, HebbMultiplicative(0.05))
    return brain


def peak() -> float:
    """Largest memory of this process so far, MB; Linux keeps it by program, not by the process that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def large(size: tuple[int, int, float], storage: Storage, steps: int) -> None:
    """Project once, in a process of its own: its peak memory is that of the projection."""
    project(made((500, 20, 0.1), storage), "x", "A", 6)  # compile
    before, brain, seconds = peak(), made(size, storage), []
    for step in range(steps):
        start = time.perf_counter()
        brain.step({"A": ["x", "A"] if step else ["x"]})
        seconds.append(time.perf_counter() - start)
    stored, dense = brain.stored_bytes / 1e6, brain.dense_bytes / 1e9
    print(
        f"{'n {}, k {}, p {:g}'.format(*size)}, {storage:<9} {stored:7.1f} MB stored, peak {peak() - before:6.1f} MB "
        f"above {before:.0f} MB of libraries; dense: {dense:.0f} GB ({dense * 1e3 / stored:.0f} x). {steps} steps "
        f"{sum(seconds):6.2f} s, median step {1e3 * statistics.median(seconds):.1f} ms, "
        f"longest {1e3 * max(seconds):.0f} ms"
    )


def projection(storage: Storage, seed: int = 0) -> ProjectionTrace:
    """A small one."""
    return project(made(SMALL, storage, seed), "x", "A", 20)


def against_dense() -> None:
    """Sparse and dense give the same winners; how long each takes where both fit."""
    names: tuple[Storage, ...] = ("dense", "sparse", "lazy")
    calls = {name: partial(projection, name) for name in names}
    same = torch.equal(calls["dense"]().winners, calls["sparse"]().winners)
    times = medians(calls, rounds=7)
    print("n {}, k {}, p {:g}, a graph and 20 steps of projection".format(*SMALL))
    for storage in ("sparse", "lazy"):
        print(
            f"    dense matrix / {storage:<7} {times['dense'] / times[storage]:6.1f} x   {1e3 * times[storage]:.0f} ms"
        )
    print(f"    the same winners in dense and sparse storage: {same}")


def support(seeds: int = 60) -> None:
    """Support after 20 steps: the exact graph, and neurons drawn late."""
    print("n {}, k {}, p {:g}: neurons that fired in 20 steps, mean of {} graphs".format(*SMALL, seeds))
    for storage in STORAGES:
        found = [int(projection(storage, seed).support[-1]) for seed in range(seeds)]
        error = statistics.stdev(found) / seeds**0.5
        print(f"    {storage:<9} {statistics.mean(found):6.1f} +- {error:.1f}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        by_name: dict[str, Storage] = {name: name for name in STORAGES}
        large({"large": LARGE, "huge": HUGE}[sys.argv[1]], by_name[sys.argv[2]], int(sys.argv[3]))
    else:
        print(f"{torch.get_num_threads()} threads, float64, multiplicative Hebb, beta 0.05")
        against_dense()
        support()
        runs = [("large", name, STEPS) for name in STORAGES] + [("huge", "lazy", STEPS), ("huge", "sparse", 10)]
        for arguments in runs:
            subprocess.run([sys.executable, __file__, *map(str, arguments)], check=True)
