"""The networks of bench_spiking_network.py in Brian2; run by an interpreter that has it, in a process of its own.

python benchmarks/peers/brian2_networks.py '{"network": "cuba", "n": 4000, "seconds": 1.0, "directory": "build/cuba"}'

prints one line of JSON. The order, with its defaults:

    network     "cuba" or "coba"
    n           neurons, four fifths of them excitatory
    seconds     biological time
    threads     1 of OpenMP's
    seed        0
    dtype       "float32" or "float64"
    directory   where C++ standalone writes its code, its program `main` and its results; null runs in Brian2's own
                process on its NumPy target, without a compiler
    edges       null draws 80 inputs per neuron; or an .npz with source and target (edges,), delay (edges,) in steps as
                below, and v (n,), the initial potentials in mV
    spikes      null, or an .npz to write: step and index of every spike

What makes Brian2 and neuropil the same system, spike by spike:

- A spike of step k arrives at the start of step k + d. Brian2 integrates before it propagates, so that its delay of 0
  already reaches the next step's potential: its delay is (d - 1) dt.
- The t_ref/dt steps after the step of a spike are held. Brian2 counts the step of the spike among them: its refractory
  time is t_ref + dt.
- A neuron fires at v >= threshold, which Brian2 takes as it is written.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import brian2 as b  # pyright: ignore[reportMissingImports]
import numpy as np

IN_DEGREE = 80
DEFAULTS = {"threads": 1, "seed": 0, "dtype": "float32", "directory": None, "edges": None, "spikes": None}
DT = 0.1 * b.ms
COMMON = {"tau": 20 * b.ms, "tau_e": 5 * b.ms, "tau_i": 10 * b.ms, "v_th": -50 * b.mV, "v_r": -60 * b.mV}
NETWORKS: dict[str, dict[str, Any]] = {
    "cuba": {
        "equations": """dv/dt = (g_e + g_i - (v - e_l)) / tau : volt (unless refractory)
                        dg_e/dt = -g_e / tau_e : volt
                        dg_i/dt = -g_i / tau_i : volt""",
        "method": "exact",
        "constants": {"e_l": -49 * b.mV, "w_e": 1.62 * b.mV, "w_i": -9 * b.mV},
        "v": "v_r + rand() * (v_th - v_r)",
    },
    "coba": {
        "equations": """dv/dt = (e_l - v + drive + g_e * (e_e - v) + g_i * (e_i - v)) / tau : volt (unless refractory)
                        dg_e/dt = -g_e / tau_e : 1
                        dg_i/dt = -g_i / tau_i : 1""",
        "method": "exponential_euler",
        "constants": {
            "e_l": -60 * b.mV,
            "drive": 20 * b.mV,
            "e_e": 0 * b.mV,
            "e_i": -80 * b.mV,
            "w_e": 0.6,
            "w_i": 6.7,
        },
        "v": "-55*mV + 2*mV * randn()",
    },
}


def made(order: dict[str, Any]) -> Any:
    """The network of an order and its spike monitor."""
    spec, n = NETWORKS[order["network"]], order["n"]
    constants = COMMON | spec["constants"]
    cells = b.NeuronGroup(
        n,
        spec["equations"],
        threshold="v >= v_th",
        reset="v = v_r",
        refractory=5 * b.ms + DT,
        method=spec["method"],
        namespace=constants,
    )
    edges = np.load(order["edges"]) if order["edges"] else None
    cells.v = spec["v"] if edges is None else edges["v"] * b.mV
    n_e = 4 * n // 5
    synapses = []
    for group, low, high in (("e", 0, n_e), ("i", n_e, n)):
        synapse = b.Synapses(cells, cells, on_pre=f"g_{group} += w_{group}", namespace=constants)
        if edges is None:
            synapse.connect(f"i >= {low} and i < {high}", p=IN_DEGREE / n)
        else:
            mine = (edges["source"] >= low) & (edges["source"] < high)
            synapse.connect(i=edges["source"][mine], j=edges["target"][mine])
            synapse.delay = (edges["delay"][mine] - 1) * DT
        synapses.append(synapse)
    monitor = b.SpikeMonitor(cells)
    return b.Network(cells, *synapses, monitor), monitor


def report(order: dict[str, Any]) -> dict[str, Any]:
    """Build and run once."""
    b.prefs.core.default_float_dtype = {"float32": np.float32, "float64": np.float64}[order["dtype"]]
    start = time.perf_counter()
    if order["directory"] is None:
        b.prefs.codegen.target = "numpy"
    else:
        b.set_device("cpp_standalone", directory=order["directory"], build_on_run=False)
        # OpenMP takes over from 1 on and then costs its own time: one thread is the plain program.
        b.prefs.devices.cpp_standalone.openmp_threads = order["threads"] if order["threads"] > 1 else 0
    b.defaultclock.dt = DT
    b.seed(order["seed"])
    network, monitor = made(order)
    network.run(order["seconds"] * b.second)
    if order["directory"] is not None:
        b.device.build(directory=order["directory"], compile=True, run=False)
    built = time.perf_counter() - start
    if order["directory"] is not None:
        b.device.run(order["directory"], None, False)
    if order["spikes"]:
        np.savez(order["spikes"], step=np.rint(monitor.t / DT).astype(np.int64), index=np.asarray(monitor.i))
    return {
        "brian2": b.__version__,
        "build_seconds": built if order["directory"] else None,
        "run_seconds": last_run(order["directory"]) if order["directory"] else None,
        "rate": float(monitor.num_spikes / order["n"] / order["seconds"]),
    }


def last_run(directory: str) -> float:
    """Wall seconds that the standalone program says it simulated for, without the making of its synapses."""
    return float((Path(directory) / "results" / "last_run_info.txt").read_text().split()[0])


if __name__ == "__main__":
    print(json.dumps(report(DEFAULTS | json.loads(sys.argv[1]))))
