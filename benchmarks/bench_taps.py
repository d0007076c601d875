"""What it costs to look: a forward pass with taps and reducers, as a ratio to the plain one.

python benchmarks/bench_taps.py    the GPT-2 needs pip install transformers; it is built from a configuration

The yardstick is a plain hook that does nothing, put once at the same modules. A tap is entered and left in every call,
as one would write it; "kept installed" is entered once. Reducers look at every neuron of every layer, in float64.
"""

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from itertools import cycle

import torch
from timing import medians
from torch import Tensor, nn

from neuropil.learning.networks import mlp
from neuropil.probes.streams import Moments, Quantile, Reducer, TopK, stream
from neuropil.probes.taps import Site, record, sites, tap

BATCH, TOKENS = 4, 128
PASSES = 3
"""Forward passes to an installation, where it is kept."""


def nothing(tensor: Tensor, context: object) -> None: ...


def hook(module: nn.Module, args: tuple, kwargs: dict) -> None: ...


@contextmanager
def hooked(net: nn.Module, places: list[Site]):
    """Do nothing by hand, at the inputs of the modules."""
    with ExitStack() as stack:
        for place in places:
            module = net.get_submodule(place.module)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def candidates(net: nn.Module, batches: list[Tensor], places: list[Site]) -> dict[str, Callable[[], object]]:
    x, fresh = batches[0], cycle(batches)  # the largest values of a batch that comes again would be ties

    def tapped() -> None:
        with tap(net, dict.fromkeys(places, nothing)):
            net(x)

    def recorded() -> None:
        with record(net, places):
            net(x)

    def reduced(reducer: Callable[[], Reducer]) -> Callable[[], object]:
        running = {place: reducer() for place in places}
        return lambda: stream(net, [next(fresh)], running)

    def installed(manager: Callable[[], object]) -> Callable[[], object]:
        def call() -> None:
            with manager():  # type: ignore[attr-defined]
                for _ in range(PASSES):
                    net(x)

        return call

    return {
        "plain": installed(ExitStack),
        "plain hook, kept installed": installed(lambda: hooked(net, places)),
        "tap, kept installed": installed(lambda: tap(net, dict.fromkeys(places, nothing))),
        "tap": tapped,
        "record": recorded,
        "Moments": reduced(Moments),
        "TopK(15)": reduced(lambda: TopK(15)),
        "Quantile(0.99)": reduced(lambda: Quantile(0.99)),
    }


def compare(title: str, net: nn.Module, batches: list[Tensor], places: list[Site], rounds: int) -> None:
    with torch.no_grad():
        seconds = medians(candidates(net.eval(), batches, places), rounds=rounds)
    for name in seconds:
        if name == "plain" or name.endswith("kept installed"):
            seconds[name] /= PASSES
    plain = seconds["plain"]
    print(f"\n{title}, {len(places)} sites: plain forward pass {1e3 * plain:.3f} ms")
    for name, value in seconds.items():
        micro = 1e6 * (value - plain) / len(places)
        print(f"  {name:28s} {value / plain:7.3f} times   {micro:9.1f} microseconds a site")


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    net = mlp(64, *[64] * 8, 10, generator=generator)
    compare(
        "MLP of nine small layers",
        net,
        list(torch.randn(99, 32, 64, generator=generator)),
        sites(net, "*", io="in"),
        99,
    )
    try:
        from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415
    except ImportError:
        print("transformers is not installed: GPT-2 left out")
        return
    net = GPT2LMHeadModel(
        GPT2Config(n_layer=6, n_head=6, n_embd=384, vocab_size=1000, n_positions=TOKENS, bos_token_id=0, eos_token_id=0)
    )
    batches = list(torch.randint(1000, (40, BATCH, TOKENS), generator=generator))
    compare("GPT-2, 6 layers of 1,536 neurons", net, batches, sites(net, "*.mlp.c_proj", io="in"), 11)


if __name__ == "__main__":
    main()
