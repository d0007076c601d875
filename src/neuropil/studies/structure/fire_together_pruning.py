"""Do masks that follow the input keep more accuracy than fixed ones that leave as many channels, and is it cheaper?

Fire together, wire together (Elkerdawy et al. 2022) puts a head before every layer. It predicts from the maxima of the
layer's input which channels will carry most of the activation, and only those are computed. Heads learn that target
alone, and what the net will cost is counted before they are trained. Every other way to choose channels keeps as many
of them in every layer as the heads do: the heads' own masks with channels exchanged at random, the largest weights, the
largest mean activations; the target itself, which a perfect head would meet, stands beside. Speed is measured for one
sample.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from neuropil.atlas import Run
from neuropil.data import Dataset, load
from neuropil.parallel import parallel
from neuropil.statistics import above, t_interval
from neuropil.structure.dynamic.channels import dynamic_layers, set_mode, using
from neuropil.structure.dynamic.counting import estimate_macs
from neuropil.structure.dynamic.heads import calibrate_heads, gathered, train_heads
from neuropil.structure.dynamic.inference import infer_sparse
from neuropil.structure.dynamic.wrapping import make_dynamic
from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.speed import latency
from neuropil.studies.structure._columns import means as mean_rows
from neuropil.studies.structure._columns import numbers
from neuropil.studies.structure._dynamic_arms import (
    Course,
    accuracy,
    hit_rates,
    joint,
    layer_speed,
    mask_rules,
    spent,
    train_,
    tuned,
)
from neuropil.studies.structure._dynamic_pictures import draw_accuracy, draw_needs
from neuropil.studies.structure._units_zoo import ResidualNet, convolution

STATIC = ("L1", "mean activation")
ARMS = ("heads", "heads, calibrated", "target", "shuffled", *STATIC)
JUDGED = 45.0  # percent of the multiply-accumulates: claims are made at the mass that comes nearest


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths. Learning rates are of Adam."""

    data: str = "digits"
    train: int | None = None
    test: int | None = None
    net: str = "plain"
    widths: tuple[int, ...] = (24, 48, 48)
    blocks: int = 1
    epochs: int = 10
    rate: float = 2e-3
    batch_size: int = 64
    masses: tuple[float, ...] = (0.5, 0.6, 0.7, 0.9)
    head_epochs: int = 6
    head_rate: float = 1e-2
    calibration: int = 8
    tuning: int = 4
    tuning_rate: float = 5e-4
    tuned: tuple[str, ...] = ("heads", *STATIC)
    joint: bool = True
    seeds: int = 3
    timed: tuple[tuple[int, float], ...] = ((128, 0.5), (128, 0.7), (64, 0.5), (64, 0.7))
    side: int = 14
    runs: int = 100


SCALES = {
    "smoke": Settings(
        masses=(0.7,),
        tuning=0,
        joint=False,
        seeds=1,
        timed=(),
    ),
    "default": Settings(),
    "paper": Settings(
        data="fashion-mnist",
        net="residual",
        widths=(16, 32, 64),
        blocks=9,
        epochs=200,
        head_epochs=30,
        tuning=200,
        masses=(0.7, 0.8, 0.9, 0.95),
        tuned=("heads", "target", "shuffled", *STATIC),
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    run.uses(load(settings.data))
    calls: list[Callable[[], dict[str, Any]]] = [
        partial(one_seed, settings, seed) for seed in range(run.seed, run.seed + settings.seeds)
    ]
    found = run.checkpoint("arms", lambda: list(parallel(calls, jobs=run.jobs, track=run.track, label="trained nets")))
    table = pd.DataFrame(row for one in found for row in one["rows"])
    run.metrics("arms", table)
    run.table("accuracy", means(table))
    mass = judged(table, settings.masses)
    hits(table, mass, run)
    before(table, mass, run)
    if settings.tuning:
        after(table, mass, settings, run)
    costs(table, mass, settings.masses, run)
    if settings.timed:
        clock(settings, run)
    draw_accuracy(table, (*ARMS, "joint"), settings.masses, settings.tuning, run)
    draw_needs(found[0]["needs"][settings.masses.index(mass)], mass, run)


def judged(table: pd.DataFrame, masses: Sequence[float]) -> float:
    """The mass at which the heads spend nearest to 45% of the multiply-accumulates."""
    return min(masses, key=lambda mass: abs(numbers(table, "macs", arm="heads", mass=mass).mean() - JUDGED))


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, a row a mass and arm."""
    wanted = ("macs", "estimated", "accuracy", "tuned_macs", "tuned", "hits", "majority")
    values = [name for name in wanted if name in table.columns]
    return mean_rows(table, ("mass", "arm"), values).round(2)


def images(settings: Settings, seed: int) -> Dataset:
    """The data of a seed, standardised."""
    data = load(settings.data, seed=seed).subset(settings.train, settings.test, seed=seed)
    mean, scale = data.x_train.mean(), data.x_train.std()
    x, test = ((part - mean) / scale for part in (data.x_train, data.x_test))
    return Dataset(data.name, x, data.y_train, test, data.y_test, data.class_names)


def make_net(settings: Settings, data: Dataset, seed: int) -> nn.Module:
    """Convolutions with batch norm, the third and later ones halving the image; or a residual net."""
    widths = settings.widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.net == "residual":
            return ResidualNet(data.shape[0], data.classes, widths[0], widths, settings.blocks)
        pairs = zip((data.shape[0], *widths), widths, strict=False)
        layers = [convolution(a, b, stride=2 if k > 1 else 1) for k, (a, b) in enumerate(pairs)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], data.classes))


def in_batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Data in order, cut to batches."""
    return list(zip(x.split(size), y.split(size), strict=True))


def dense(settings: Settings, seed: int) -> tuple[Dataset, nn.Module, UnitGraph]:
    """Train the whole net."""
    data = images(settings, seed)
    net = make_net(settings, data, seed)
    train_(net, data, Course(settings.epochs, settings.rate, settings.batch_size, seed))
    return data, net, trace_units(net, data.x_train[:1])


def with_heads(
    settings: Settings, data: Dataset, net: nn.Module, graph: UnitGraph, mass: float, seed: int
) -> nn.Module:
    """Make the net dynamic and train its heads alone."""
    made = make_dynamic(net, data.x_train[:1], mass, graph=graph, generator=torch.Generator().manual_seed(seed))
    train_heads(
        made,
        in_batches(data.x_train, data.y_train, 500),
        epochs=settings.head_epochs,
        lr=settings.head_rate,
        batch_size=settings.batch_size,
        generator=torch.Generator().manual_seed(seed),
    )
    return made


def one_seed(settings: Settings, seed: int) -> dict[str, Any]:
    """All masses and arms on one trained net."""
    data, net, graph = dense(settings, seed)
    train, test = in_batches(data.x_train, data.y_train, 500), in_batches(data.x_test, data.y_test, 500)
    promised = estimate_macs(net, train, settings.masses, graph=graph)
    tuning = Course(settings.tuning, settings.tuning_rate, settings.batch_size, seed)
    rows: list[dict[str, Any]] = [_row(seed, 1.0, "whole", 100.0) | {"accuracy": accuracy(net, data)}]
    needed = []
    for mass in settings.masses:
        here = (promised["mass"] == mass).to_numpy()
        estimated = 100 * float(promised["macs"].to_numpy(dtype=float)[here].sum()) / graph.macs()
        wanted = dict(
            zip(promised["layer"].to_numpy()[here], promised["density"].to_numpy(dtype=float)[here], strict=True)
        )
        made = with_heads(settings, data, net, graph, mass, seed)
        needed.append(needs_of(made, data, test))
        met, common = hit_rates(made, train, test)
        _, densities = spent(made, graph, train)
        for arm in ARMS:
            if arm == "heads, calibrated":
                calibrate_heads(made, train_part(settings, data), {name: float(wanted[name]) for name in densities})
            rules = mask_rules(arm, made, train, densities, seed)
            macs, _ = spent(made, graph, test, rules)
            row = _row(seed, mass, arm, 100 * macs / graph.macs()) | {"accuracy": accuracy(made, data, rules)}
            if arm in settings.tuned and settings.tuning:
                after_ = tuned(made, rules, data, tuning)
                row["tuned"] = accuracy(after_, data, rules)
                row["tuned_macs"] = 100 * spent(after_, graph, test, rules)[0] / graph.macs()
            if arm.startswith("heads"):
                row |= {"hits": met, "majority": common, "estimated": estimated}
            rows.append(row)
            if arm == "heads, calibrated":
                for layer in dynamic_layers(made).values():
                    layer.threshold.zero_()
        if settings.joint and settings.tuning:
            fresh = make_dynamic(
                net, data.x_train[:1], mass, graph=graph, generator=torch.Generator().manual_seed(seed)
            )
            course = Course(settings.head_epochs + settings.tuning, settings.tuning_rate, settings.batch_size, seed)
            fresh = joint(fresh, data, course, settings.head_rate)
            macs, _ = spent(fresh, graph, test)
            row = _row(seed, mass, "joint", 100 * macs / graph.macs())
            rows.append(row | {"tuned": accuracy(fresh, data), "tuned_macs": row["macs"], "estimated": estimated})
    return {"rows": rows, "needs": needed}


def _row(seed: int, mass: float, arm: str, macs: float) -> dict[str, Any]:
    return {"seed": seed, "mass": mass, "arm": arm, "macs": macs}


def needs_of(net: nn.Module, data: Dataset, batches: list[tuple[Tensor, Tensor]]) -> dict[str, list[list[int]]]:
    """How many test images of every class need how many channels, by layer: lists from 1 channel to all."""
    with using(net, "record"):
        targets = gathered(net, batches, lambda seen: seen.target, "The study")
    return {
        name: [
            torch.bincount(target[data.y_test == label].sum(1), minlength=target.shape[1] + 1)[1:].tolist()
            for label in range(data.classes)
        ]
        for name, target in targets.items()
    }


def train_part(settings: Settings, data: Dataset) -> list[tuple[Tensor, Tensor]]:
    """The training batches that thresholds are set on."""
    size = settings.batch_size
    return in_batches(data.x_train, data.y_train, size)[: settings.calibration]


def beyond_static(table: pd.DataFrame, value: str, mass: float) -> np.ndarray:
    """What the heads' masks have over the better of two fixed ones, by seed."""
    fixed = np.stack([numbers(table, value, arm=arm, mass=mass) for arm in STATIC]).max(axis=0)
    return numbers(table, value, arm="heads", mass=mass) - fixed


def hits(table: pd.DataFrame, mass: float, run: Run) -> None:
    """Whether heads predict more than how often a channel counts."""
    met, common = (numbers(table, value, arm="heads", mass=mass) for value in ("hits", "majority"))
    gain = met - common
    run.claim(
        "heads predict which channels count, beyond how often each does",
        measured=float(gain.mean()),
        interval=t_interval(gain),
        unit="points",
        threshold="at least 5 in each seed",
        holds=bool((gain >= 5).all()),
        baseline=f"commoner answer of each channel {common.mean():.1f}%, heads {met.mean():.1f}%",
        note=f"At mass {mass:g}; seed by seed: {_listed(gain)}.",
    )


def before(table: pd.DataFrame, mass: float, run: Run) -> None:
    """Masks at equal densities, nothing trained under them."""
    static = beyond_static(table, "accuracy", mass)
    heads, shuffled = (numbers(table, "accuracy", arm=arm, mass=mass) for arm in ("heads", "shuffled"))
    over = heads - shuffled
    run.claim(
        "before any training under them, the heads' masks keep more than the better of two fixed ones",
        measured=float(static.mean()),
        interval=t_interval(static),
        unit="points",
        threshold="mean at least 5",
        holds=bool(static.mean() >= 5),
        baseline=_found(table, "accuracy", ARMS, mass),
        note=f"Seed by seed: {_listed(static)}. The calibrated heads spend {_spent(table, 'heads, calibrated', mass)} "
        f"of the multiply-accumulates, the others {_spent(table, 'heads', mass)}.",
    )
    run.claim(
        "before any training under them, the heads' masks keep more than the same with channels exchanged",
        measured=float(over.mean()),
        interval=t_interval(over),
        unit="points",
        threshold="mean at least 15",
        holds=bool(over.mean() >= 15),
        note=f"Seed by seed: {_listed(over)}.",
    )


def after(table: pd.DataFrame, mass: float, settings: Settings, run: Run) -> None:
    """The same after equal training under the masks."""
    gain = beyond_static(table, "tuned", mass)
    interval = t_interval(gain)
    arms = [*settings.tuned, *(["joint"] if settings.joint else [])]
    run.claim(
        f"after {settings.tuning} epochs under the masks, the heads' still beat the better of two fixed ones",
        paper="CIFAR: the accuracy of other methods at 15 and 24% fewer operations",
        measured=float(gain.mean()),
        interval=interval,
        unit="points",
        threshold="interval above 0",
        holds=above(interval, 0),
        baseline=_found(table, "tuned", arms, mass),
        note=f"Seed by seed: {_listed(gain)}. Training under them wins back most of what fixed masks lose. "
        f"The tuned heads spend {numbers(table, 'tuned_macs', arm='heads', mass=mass).mean():.0f}% of the "
        f"multiply-accumulates, fixed masks {numbers(table, 'tuned_macs', arm='L1', mass=mass).mean():.0f}%.",
    )


def costs(table: pd.DataFrame, mass: float, masses: Sequence[float], run: Run) -> None:
    """What was promised before training, and what was spent on test images."""
    off = {arm: [missed(table, arm, one) for one in masses] for arm in ("heads", "heads, calibrated")}
    plain, set_ = (values[masses.index(mass)] for values in off.values())
    run.claim(
        "the cost that was counted before any head was trained is met on test images, with calibrated thresholds",
        paper="the saving is known before training",
        measured=float(set_.max()),
        unit="% of what was spent, worst seed",
        threshold="at most 10",
        holds=bool(set_.max() <= 10),
        baseline=f"thresholds of 0: {_listed(plain)} by seed",
        note=f"Seed by seed: {_listed(set_)}. Worst over masses {', '.join(f'{one:g}' for one in masses)}: "
        f"{_listed([values.max() for values in off['heads, calibrated']])}, with thresholds of 0 "
        f"{_listed([values.max() for values in off['heads']])}.",
    )


def missed(table: pd.DataFrame, arm: str, mass: float) -> np.ndarray:
    """By how many percent of what was spent the estimate is off, by seed."""
    macs, estimated = (numbers(table, value, arm=arm, mass=mass) for value in ("macs", "estimated"))
    return 100 * abs(estimated - macs) / macs


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in values)


def _found(table: pd.DataFrame, value: str, arms: Iterable[str], mass: float) -> str:
    return "; ".join(f"{arm} {numbers(table, value, arm=arm, mass=mass).mean():.1f}%" for arm in arms)


def _spent(table: pd.DataFrame, arm: str, mass: float) -> str:
    return f"{numbers(table, 'macs', arm=arm, mass=mass).mean():.0f}%"


def clock(settings: Settings, run: Run) -> None:
    """Seconds, one sample on one thread."""
    rows: list[dict[str, Any]] = []
    for width, density in settings.timed:
        gathered_, whole = layer_speed(width, density, settings.side, settings.runs, run.seed)
        rows.append(
            {"what": f"{width} channels", "density": density, "channels given": gathered_, "whole layer": whole}
        )
    listed = [f"{row['what']}, {row['density']:.0%}" for row in rows]
    mass = settings.masses[0]
    data, net, graph = dense(replace(settings, epochs=1), run.seed)
    made = with_heads(settings, data, net, graph, mass, run.seed)
    set_mode(made, "infer")
    nets = {"dense": net, "sparse": infer_sparse(made, graph)}
    timings = latency(nets, data.x_test[:1], runs=settings.runs, threads=1)
    macs, _ = spent(made, graph, in_batches(data.x_test, data.y_test, 500))
    share, ratio = macs / graph.macs(), timings["dense"].ratio(timings["sparse"])
    rows.append({"what": f"small net, mass {mass:g}", "density": share, "channels given": None, "whole layer": ratio})
    run.table("speed", pd.DataFrame(rows).round(2))
    for column, text in (("channels given", "the channels given, gathering counted"), ("whole layer", "all counted")):
        speed = float(rows[0][column])
        others = [f"{name}: {row[column]:.2f}x" for name, row in zip(listed[1:], rows[1:-1], strict=True)]
        run.claim(
            f"one sample is faster through a convolution with {listed[0]} of inputs and outputs, {text}",
            measured=speed,
            unit="x",
            threshold="at least 1.5",
            holds=speed >= 1.5,
            baseline="; ".join(others) or None,
            note=f"All: the head, the search for zero inputs, the laying out of the result. The small net, at "
            f"{share:.0%} of the multiply-accumulates: {ratio:.2f}x. It depends on the machine.",
        )
