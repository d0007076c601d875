"""A layer of leaky integrate-and-fire neurons, forward and backward, beside the libraries that are made for it.

python benchmarks/bench_spiking_layers.py    peers are optional: pip install --no-deps -r benchmarks/requirements.txt

All integrate h = v + (x - v) / 2, fire at 1 and are set to 0. The yardstick copies the sequence three times: input,
spikes and gradient have to be moved at least once each. Where a peer's spikes or gradients are other ones, as under
another surrogate or a reset that passes no gradient, the difference says so; it costs about the same.
"""

import importlib.metadata
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from timing import medians
from torch import Tensor

from neuropil.spiking.layers import LIF
from neuropil.spiking.surrogate import Atan

SHAPES = ((500, 16, 512), (100, 16, 4096))
ROUNDS = 5
OURS, YARDSTICK = "neuropil", "three copies"
Layer = Callable[[Tensor], Tensor]
"""Currents -> spikes, both (time, batch, neurons)."""


def ours() -> Layer:
    layer = LIF(tau=2.0, surrogate="atan")
    return lambda x: layer(x)[0]


def loop() -> Layer:
    """As one writes it by hand in torch."""
    spike = Atan(2.0)

    def forward(x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x[0]), []
        for current in x:
            h = v + (current - v) / 2
            s = spike(h - 1)
            v = h * (1 - s)
            spikes.append(s)
        return torch.stack(spikes)

    return forward


def spikingjelly() -> Layer:
    from spikingjelly.activation_based import neuron, surrogate  # type: ignore[import-not-found]  # noqa: PLC0415

    node = neuron.LIFNode(tau=2.0, step_mode="m", surrogate_function=surrogate.ATan(alpha=2.0))

    def forward(x: Tensor) -> Tensor:
        node.reset()
        return node(x)

    return forward


def spikingjelly_loop() -> Layer:
    """Its loop over steps in torch: what also serves neurons for which it has no compiled code."""
    from spikingjelly.activation_based import neuron, surrogate  # type: ignore[import-not-found]  # noqa: PLC0415

    node = neuron.LIFNode(tau=2.0, step_mode="s", surrogate_function=surrogate.ATan(alpha=2.0))

    def forward(x: Tensor) -> Tensor:
        node.reset()
        return torch.stack([node(current) for current in x])

    return forward


def snntorch() -> Layer:
    import snntorch as snn  # type: ignore[import-not-found]  # noqa: PLC0415
    from snntorch import surrogate  # type: ignore[import-not-found]  # noqa: PLC0415

    cell = snn.Leaky(beta=0.5, reset_mechanism="zero", spike_grad=surrogate.atan(alpha=2.0))

    def forward(x: Tensor) -> Tensor:
        v, spikes = torch.zeros_like(x[0]), []
        for current in 0.5 * x:
            s, v = cell(current, v)
            spikes.append(s)
        return torch.stack(spikes)

    return forward


def norse() -> Layer:
    from norse.torch import LIFBoxCell, LIFBoxParameters  # type: ignore[import-not-found]  # noqa: PLC0415

    cell = LIFBoxCell(LIFBoxParameters(tau_mem_inv=torch.tensor(500.0)), dt=0.001)

    def forward(x: Tensor) -> Tensor:
        state, spikes = None, []
        for current in x:
            s, state = cell(current, state)
            spikes.append(s)
        return torch.stack(spikes)

    return forward


def trained(layer: Layer, x: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
    """Spikes, and the gradient of their sum weighted by `slope` with respect to the currents."""
    x = x.detach().requires_grad_()
    spikes = layer(x)
    spikes.backward(slope)
    assert x.grad is not None
    return spikes.detach(), x.grad


def copied(x: Tensor) -> Tensor:
    return x.clone().clone().clone()


def installed() -> dict[str, Layer]:
    """Layers by name; what is missing is said."""
    layers: dict[str, Layer] = {OURS: ours(), "loop in torch": loop()}
    peers = (
        ("spikingjelly", "SpikingJelly", spikingjelly),
        ("spikingjelly", "SpikingJelly, steps", spikingjelly_loop),
        ("snntorch", "snnTorch", snntorch),
        ("norse", "Norse", norse),
    )
    for package, name, make in peers:
        try:
            layers[name] = make()
        except ImportError as error:
            print(f"{name}: not installed ({error})")
        else:
            print(f"{name}: {package} {importlib.metadata.version(package)}")
    return layers


def compared(layers: dict[str, Layer], shape: tuple[int, int, int]) -> None:
    """One shape, at one thread and at two."""
    generator = torch.Generator().manual_seed(0)
    x, slope = 2 * torch.rand(shape, generator=generator), torch.randn(shape, generator=generator)
    reference = "SpikingJelly" if "SpikingJelly" in layers else "loop in torch"
    spikes, gradient = trained(layers[reference], x, slope)
    others = {name: trained(layer, x, slope) for name, layer in layers.items()}
    apart = {name: (int((s != spikes).sum()), float((g - gradient).abs().max())) for name, (s, g) in others.items()}
    calls: dict[str, Callable[[], object]] = {name: partial(trained, f, x, slope) for name, f in layers.items()}
    calls[YARDSTICK] = partial(copied, x)
    times: dict[int, dict[str, float]] = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times[threads] = medians(calls, rounds=ROUNDS, warm=1)
    steps, batch, neurons = shape
    print(f"\n{steps} steps, batch {batch}, {neurons} neurons; {float(spikes.mean()):.2f} spikes a step")
    head = "".join(f"{f'{threads} thr. ms':>14}{'ratio':>8}" for threads in times)
    print(f"    {'':<20}{head}   spikes, largest gradient apart from {reference}")
    for name in calls:
        row = "".join(f"{1e3 * t[name]:14.1f}{t[name] / t[OURS]:8.2f}" for t in times.values())
        print(f"    {name:<20}{row}   " + ("{}, {:.1e}".format(*apart[name]) if name in apart else ""))


def first() -> None:
    """Import and the first call of this process."""
    start = time.perf_counter()
    layer = ours()
    x, slope = 2 * torch.rand(SHAPES[0]), torch.ones(SHAPES[0])
    trained(layer, x, slope)
    called = time.perf_counter() - start
    start = time.perf_counter()
    trained(layer, x, slope)
    print(f"first call {called:.2f} s, second {time.perf_counter() - start:.3f} s")


if __name__ == "__main__":
    if sys.argv[1:] == ["first"]:
        first()
    else:
        print(f"float32, medians of {ROUNDS} in turns, load of the machine {os.getloadavg()[0]:.1f}")
        peers = installed()
        for size in SHAPES:
            compared(peers, size)
        with tempfile.TemporaryDirectory() as cache:
            for title in ("without compiled code on disk", "in the next process"):
                print(f"{title}: ", end="", flush=True)
                environment = os.environ | {"NUMBA_CACHE_DIR": cache}
                subprocess.run([sys.executable, __file__, "first"], check=True, env=environment)
