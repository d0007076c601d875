"""Predictive coding beside the libraries that do nothing else, in one run; and what a batch costs.

python benchmarks/bench_energy.py            peers are optional: pip install -r benchmarks/requirements.txt

A step of inference is timed as (40 steps - 20 steps) / 20, so that starting and learning drop out; "weights too" takes
a weight step for each: together in iPC, one after the other in the peers, which have no iPC. All run the same sizes,
tanh units and squared error on the same batch; each library predicts in the direction that it predicts in.
"""

import importlib.metadata
import io
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from typing import Any

import torch
from timing import medians
from torch import Tensor, nn
from torch.nn.functional import one_hot

from neuropil.learning import Backpropagation, mlp
from neuropil.learning.energy import IncrementalPredictiveCoding, PredictiveCoding, squared_energy

SHORT, LONG = 20, 40
WEIGHTS = ", weights too"
PROBLEMS = {"784-512-512-10, batch 128": ((784, 512, 512, 10), 128), "64-64-64-10, batch 64": ((64, 64, 64, 10), 64)}
Work = Callable[[int], Callable[[], object]]
"""Number of steps -> a call that relaxes one batch so often."""


def ours(sizes: tuple[int, ...], x: Tensor, y: Tensor) -> dict[str, Work]:
    """Both rules in closed form, predictive coding through autograd too."""
    generator = torch.Generator().manual_seed(0)
    net = mlp(*sizes, activation=nn.Tanh, generator=generator)
    observed = mlp(*sizes, activation=nn.Tanh, generator=generator)
    observed[1].register_forward_hook(lambda *args: None)  # with a hook it is no plain chain

    def incremental(steps: int) -> Callable[[], object]:
        rule = IncrementalPredictiveCoding(net, squared_energy, steps=steps, rate=0.1)
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-5)
        return partial(rule.learn, x, y, optimizer)

    def predictive(model: nn.Module, steps: int) -> Callable[[], object]:
        return partial(
            PredictiveCoding(model, squared_energy, steps=steps, rate_own=0.1, rate_above=0.1).backward, x, y
        )

    return {
        "PC": partial(predictive, net),
        "PC by autograd": partial(predictive, observed),
        f"iPC{WEIGHTS}": incremental,
    }


def pclib(sizes: tuple[int, ...], x: Tensor, y: Tensor) -> dict[str, Work]:
    """Inference of pclib with input and target pinned; the rule has no weight step of its own."""
    from pclib.nn.models import FCPCN  # type: ignore[import-not-found]  # noqa: PLC0415

    model = FCPCN(sizes=list(sizes), actv_fn=torch.nn.functional.tanh, gamma=0.1)
    target = one_hot(y, sizes[-1]).float()
    return {"": lambda steps: partial(model.forward, x, target, pin_obs=True, pin_target=True, steps=steps)}


def pcn_torch(sizes: tuple[int, ...], x: Tensor, y: Tensor) -> dict[str, Work]:
    """Inference of pcn-torch: an epoch of one batch, with one learning step or as many."""
    from pcn_torch.network import PredictiveCodingNetwork  # type: ignore[import-not-found]  # noqa: PLC0415
    from pcn_torch.trainer import TrainCallback, TrainConfig, train_pcn  # type: ignore[import-not-found]  # noqa: PLC0415

    model = PredictiveCodingNetwork(list(sizes[:-1]), activation="tanh", output_dim=sizes[-1])
    rates = {"lr_infer": 0.1, "lr_learn": 1e-5, "num_epochs": 1, "T_infer_test": 1}

    def work(steps: int, learning: int) -> Callable[[], object]:
        config = TrainConfig(T_infer=steps, T_learn=learning, callback=TrainCallback(), **rates)
        return partial(train_pcn, model, [(x, y)], config)

    return {"": lambda steps: work(steps, 1), WEIGHTS: lambda steps: work(steps, steps)}


def torch_pc(sizes: tuple[int, ...], x: Tensor, y: Tensor) -> dict[str, Work]:
    """Inference of torch-pc: an epoch of one batch, with one learning step or as many."""
    from torch_pc import PCNetwork  # type: ignore[import-not-found]  # noqa: PLC0415
    from torch_pc.training import train_pcn  # type: ignore[import-not-found]  # noqa: PLC0415

    model = PCNetwork(list(sizes[:-1]), sizes[-1], torch.tanh, lambda a: 1 - torch.tanh(a).square())
    loader: Any = [(x, y)]

    def work(steps: int, learning: int) -> Callable[[], object]:
        return lambda: train_pcn(model, loader, 1, 0.1, 1e-5, steps, learning, device="cpu")

    return {"": lambda steps: work(steps, 1), WEIGHTS: lambda steps: work(steps, steps)}


def silent(call: Callable[[], object]) -> Callable[[], object]:
    """Without progress bars and warnings."""

    def quiet() -> object:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()

    return quiet


def peers(sizes: tuple[int, ...], x: Tensor, y: Tensor) -> dict[str, Work]:
    """What is installed of the peers; the others are named."""
    found: dict[str, Work] = {}
    for package, make in {"pclib": pclib, "pcn-torch": pcn_torch, "torch-pc": torch_pc}.items():
        try:
            version = importlib.metadata.version(package)
            found |= {f"{package} {version}{suffix}": work for suffix, work in make(sizes, x, y).items()}
        except ImportError as error:
            print(f"    {package} is not measured: {error}")
    return found


def inference() -> None:
    """Time of a step of inference, and its ratio to the fastest peer's."""
    for title, (sizes, batch) in PROBLEMS.items():
        print(f"A step of inference, {title}")
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(batch, sizes[0], generator=generator)
        y = torch.randint(sizes[-1], (batch,), generator=generator)
        own, others = ours(sizes, x, y), peers(sizes, x, y)
        calls = {
            (name, steps): silent(work(steps)) for name, work in {**own, **others}.items() for steps in (SHORT, LONG)
        }
        names = {f"{name}|{steps}": call for (name, steps), call in calls.items()}
        times = medians(names, rounds=15)
        step = {
            name: (times[f"{name}|{LONG}"] - times[f"{name}|{SHORT}"]) / (LONG - SHORT) for name in {**own, **others}
        }
        for kind in ("", WEIGHTS):
            alike = {name: value for name, value in step.items() if name.endswith(WEIGHTS) == bool(kind)}
            fastest = min((value for name, value in alike.items() if name in others), default=None)
            for name, seconds in alike.items():
                ratio = "" if fastest is None else f"   {seconds / fastest:5.2f} x the fastest peer"
                target = "   (target <= 1)" if fastest is not None and name in ("PC", f"iPC{WEIGHTS}") else ""
                print(f"    {name:<32} {1e6 * seconds:8.0f} us{ratio}{target}")


def batches() -> None:
    """A whole batch beside backpropagation."""
    for title, (sizes, batch) in PROBLEMS.items():
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(batch, sizes[0], generator=generator)
        y = torch.randint(sizes[-1], (batch,), generator=generator)
        net = mlp(*sizes, activation=nn.Tanh, generator=generator)
        rules = {
            "backpropagation": Backpropagation(net, squared_energy),
            "PC, 25 steps": PredictiveCoding(net, squared_energy),
            "iPC, 8 steps": IncrementalPredictiveCoding(net, squared_energy),
        }
        times = medians({name: partial(rule.backward, x, y) for name, rule in rules.items()}, rounds=30)
        ratios = ", ".join(f"{name} {times[name] / times['backpropagation']:.1f} x" for name in list(rules)[1:])
        print(f"A batch / backpropagation, {title}: {ratios}")


if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, float32, medians of alternating calls")
    inference()
    batches()
