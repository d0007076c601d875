"""Do gates trained alone, on a frozen net and for part of an epoch, find the channels that a budget should be spent on?

AutoBot (Castells & Yeom 2021) puts one gate on every channel of a trained net and trains nothing else: the loss, a
budget of multiply-accumulates and a term that drives gates to 0 or 1. Here gates sit on the unit graph, so any net has
them, and a residual stream shares one. What counts is the accuracy right after the cut, at equal multiply-accumulates,
beside the best of four other scores: random, L1 with one ratio in all layers, L1 compared across layers, and the Taylor
score of the same gates on the same batches. Statistics of norms, recomputed, tell broken statistics from lost channels.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.atlas import Run
from neuropil.data import Dataset, load
from neuropil.parallel import parallel
from neuropil.plotting import GREY, panels
from neuropil.statistics import t_interval
from neuropil.structure.bottleneck import learn_bottleneck, select_by_macs
from neuropil.structure.criteria import Magnitude
from neuropil.structure.gates import expected_macs, gate_sensitivity
from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.profile import compare_profiles
from neuropil.structure.prune import remove_units, select_units
from neuropil.structure.weightspace.interpolation import reset_norm_
from neuropil.studies.structure._images import accuracy, pooled_images
from neuropil.studies.structure._units_zoo import ResidualNet, convolution

SHUFFLING, DRAWING = 0x5EED, 0xD0A7
RIVALS = ("random", "L1, one ratio", "L1, across layers", "Taylor gates")
ARMS = ("AutoBot", *RIVALS)
Net = Literal["plain", "residual"]


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own for CIFAR-10 are in the scale "paper"."""

    data: str = "mnist"
    train: int | None = 6000
    test: int | None = 5000
    pool: int = 2
    nets: tuple[Net, ...] = ("plain", "residual")
    widths: tuple[int, ...] = (24, 48, 48)
    blocks: int = 1
    epochs: int = 4
    rate: float = 0.05
    batch_size: int = 64
    budgets: tuple[float, ...] = (0.5, 0.3)
    arms: tuple[str, ...] = ARMS
    steps: int = 200
    gate_rate: float = 0.6
    beta: float = 6.0
    gamma: float = 0.4
    tuning: int = 2
    tuning_rate: float = 0.02
    seeds: int = 3
    timed_batch: int = 64
    threads: int = 2


SCALES = {
    "smoke": Settings(
        data="digits",
        train=None,
        test=None,
        pool=1,
        nets=("plain",),
        widths=(12, 24, 24),
        epochs=6,
        budgets=(0.3,),
        arms=("AutoBot", "random", "L1, one ratio"),
        steps=60,
        tuning=0,
        seeds=3,
        timed_batch=0,
    ),
    "default": Settings(),
    "paper": Settings(
        data="fashion-mnist",
        train=None,
        test=None,
        pool=1,
        widths=(16, 32, 64),
        blocks=9,
        epochs=200,
        tuning=200,
        nets=("residual",),
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    run.uses(load(settings.data))
    planted(settings, run)
    calls: list[Callable[[], list[dict]]] = [
        partial(prune_every_way, settings, net, seed)
        for net in settings.nets
        for seed in range(run.seed, run.seed + settings.seeds)
    ]
    table = run.checkpoint(
        "cuts",
        lambda: pd.DataFrame(
            row for rows in parallel(calls, jobs=run.jobs, track=run.track, label="trained nets") for row in rows
        ),
    )
    run.metrics("cuts", table)
    run.table("accuracy", means(table))
    claims(table, settings, run)
    if settings.timed_batch:
        clock(settings, run)
    figure(table, settings, run)


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, a row a net, budget and arm."""
    columns = [name for name in ("macs", "accuracy", "statistics", "tuned") if name in table.columns]
    return table.pivot_table(index=["net", "budget", "arm"], values=columns, sort=False)[columns].round(3).reset_index()


def make_net(settings: Settings, kind: Net, data: Dataset, seed: int) -> nn.Module:
    """A plain net of convolutions with batch norm, each but the first halving the image; or a residual one."""
    widths = settings.widths
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "residual":
            return ResidualNet(data.shape[0], data.classes, widths[0], widths[:2] if settings.blocks == 1 else widths,
                               settings.blocks)  # fmt: skip
        channels = (data.shape[0], *widths)
        layers = [
            convolution(a, b, stride=2 if k else 1) for k, (a, b) in enumerate(zip(channels, widths, strict=False))
        ]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], data.classes))


def train_(net: nn.Module, data: Dataset, epochs: int, rate: float, settings: Settings, seed: int) -> nn.Module:
    """Train in place, with momentum and a cosine to 0."""
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    steps = epochs * -(-len(data.x_train) // settings.batch_size)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    generator = torch.Generator().manual_seed(seed ^ SHUFFLING)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data.x_train), generator=generator).split(settings.batch_size):
            optimizer.zero_grad()
            cross_entropy(net(data.x_train[batch]), data.y_train[batch]).backward()
            optimizer.step()
            falling.step()
    return net.eval()


def planted(settings: Settings, run: Run) -> None:
    """What is known beforehand: the count of open gates, and a channel that is silent."""
    data = pooled_images(settings.data, settings.train, settings.test, settings.pool, run.seed)
    small = SCALES["smoke"]
    net = make_net(small, "plain", data, run.seed)
    net = train_(net, data.subset(min(2000, len(data.x_train)), seed=run.seed), 2, settings.rate, settings, run.seed)
    graph = trace_units(net, data.x_train[:1])
    open_ = {group.name: torch.ones(group.size) for group in graph.prunable()}
    gap = abs(float(expected_macs(graph, open_)) - graph.macs())
    run.claim(
        "open gates cost what the whole net costs: difference in multiply-accumulates",
        measured=gap,
        threshold="exactly 0",
        holds=gap == 0,
    )
    layer = net.get_submodule("1.1")
    assert isinstance(layer, nn.BatchNorm2d)
    with torch.no_grad():
        layer.weight[0] = layer.bias[0] = 0
    batches = batches_of(data, settings, run.seed)
    learned = learn_bottleneck(
        net, batches, cross_entropy, data.x_train[:1], 0.5 * graph.macs(), steps=min(settings.steps, 60)
    )
    name = next(g.name for g in graph.prunable() if any(m.parameter == "1.1.weight" for m in g.members))
    gate = float(learned.lambdas[name][0])
    run.claim(
        "the gate of a channel that was silenced by hand closes",
        measured=gate,
        threshold="below 0.5",
        holds=gate < 0.5,
        baseline=f"the other gates of its layer: {float(learned.lambdas[name][1:].mean()):.2f} on average",
    )


def batches_of(data: Dataset, settings: Settings, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The batches on which gates are trained and Taylor scores taken."""
    generator = torch.Generator().manual_seed(seed ^ DRAWING)
    order = torch.randperm(len(data.x_train), generator=generator).split(settings.batch_size)
    return [(data.x_train[batch], data.y_train[batch]) for batch in order[: settings.steps]]


def prune_every_way(settings: Settings, kind: Net, seed: int) -> list[dict]:
    """Train once; for every budget, cut by every score, recompute statistics, tune."""
    data = pooled_images(settings.data, settings.train, settings.test, settings.pool, seed)
    net = train_(make_net(settings, kind, data, seed), data, settings.epochs, settings.rate, settings, seed)
    graph = trace_units(net, data.x_train[:1])
    batches = batches_of(data, settings, seed)
    row = {"net": kind, "seed": seed}
    rows = [{**row, "budget": 1.0, "arm": "whole", "macs": 1.0, "accuracy": accuracy(net, data)}]
    for budget in settings.budgets:
        for arm in settings.arms:
            keep = chosen(arm, net, graph, budget, batches, settings, seed)
            small = copy.deepcopy(net)
            report = remove_units(small, keep, graph)
            after = {"accuracy": accuracy(small, data)}
            after["statistics"] = accuracy(reset_norm_(copy.deepcopy(small), batches[:16]), data)
            if settings.tuning and budget == settings.budgets[-1]:
                tuned = train_(small, data, settings.tuning, settings.tuning_rate, settings, seed + 1)
                after["tuned"] = accuracy(tuned, data)
            rows.append({**row, "budget": budget, "arm": arm, "macs": report.macs_after / report.macs_before, **after})
    return rows


def chosen(
    arm: str,
    net: nn.Module,
    graph: UnitGraph,
    budget: float,
    batches: Sequence[tuple[Tensor, Tensor]],
    settings: Settings,
    seed: int,
) -> dict[str, Tensor]:
    """Choose the units that stay within a budget."""
    groups, target = graph.prunable(), budget * graph.macs()
    if arm == "AutoBot":
        learned = learn_bottleneck(
            net, batches, cross_entropy, batches[0][0][:1], target, graph=graph, steps=settings.steps,
            lr=settings.gate_rate, beta=settings.beta, gamma=settings.gamma,
        )  # fmt: skip
        return select_by_macs(learned.lambdas, graph, target)
    if arm == "Taylor gates":
        return select_by_macs(gate_sensitivity(net, graph, batches, cross_entropy), graph, target)
    if arm == "random":
        generator = torch.Generator().manual_seed(seed ^ DRAWING)
        return select_by_macs({g.name: torch.rand(g.size, generator=generator) for g in groups}, graph, target)
    weights = [name for name, value in net.named_parameters() if value.ndim > 1]
    entries = Magnitude()(net, params=weights)
    if arm == "L1, across layers":
        return select_by_macs(graph.reduce(entries, norm="none"), graph, target)
    return select_units(graph, groups, graph.reduce(entries), "macs", budget, scope="group")


def claims(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Budgets met, accuracy right after the cut, and after tuning."""
    cut = table.loc[table["arm"] == "AutoBot", ["macs", "budget"]].to_numpy(dtype=float)
    off = float(100 * abs(cut[:, 0] - cut[:, 1]).max())
    run.claim(
        "the budget is met: largest distance, in hundredths of the full count",
        measured=off,
        unit="%",
        threshold="at most 1, or one channel",
        holds=off <= max(1.0, one_channel(settings, run)),
    )
    budget = settings.budgets[-1]
    for kind in settings.nets:
        gap("accuracy", f"right after the cut, {kind} net", table, kind, budget, 5.0, run)
        if settings.tuning:
            gap("tuned", f"after {settings.tuning} epochs of tuning, {kind} net", table, kind, budget, -0.5, run)


def one_channel(settings: Settings, run: Run) -> float:
    """The largest share of the full count that a single channel has, in percent."""
    data = pooled_images(settings.data, settings.train, settings.test, settings.pool, run.seed)
    largest = 0.0
    for kind in settings.nets:
        graph = trace_units(make_net(settings, kind, data, run.seed), data.x_train[:1])
        for group in graph.prunable():
            keep = {group.name: torch.arange(group.size) > 0}
            largest = max(largest, 100 * (1 - graph.macs(keep) / graph.macs()))
    return largest


def gap(value: str, when: str, table: pd.DataFrame, kind: str, budget: float, bound: float, run: Run) -> None:
    """AutoBot minus the best rival of each seed."""
    rows = table[(table["net"] == kind) & (table["budget"] == budget)]
    by_seed = rows.pivot_table(index="seed", columns="arm", values=value)
    rivals = by_seed.drop(columns="AutoBot")
    difference = (by_seed["AutoBot"] - rivals.max(axis=1)).to_numpy()
    best = rivals.mean().idxmax()
    whole = table[(table["net"] == kind) & (table["arm"] == "whole")]["accuracy"].mean()
    note = f"Seed by seed: {', '.join(f'{one:.1f}' for one in difference)}."
    if value == "accuracy":
        other = rows.pivot_table(index="seed", columns="arm", values="statistics")
        lead = (other["AutoBot"] - other.drop(columns="AutoBot").max(axis=1)).to_numpy()
        note += (
            f" With the statistics of norms recomputed: {', '.join(f'{one:.1f}' for one in lead)}; where the first is "
            "small and the second is not, the channels were well chosen and the statistics broken."
        )
    run.claim(
        f"gates choose better than the best other score at {budget:.0%} of the multiply-accumulates, {when}",
        paper="ResNet-56, CIFAR-10, 44%: 85.6 right after the cut, 93.8 tuned" if kind == "residual" else None,
        measured=float(difference.mean()),
        interval=t_interval(difference),
        unit="points",
        threshold=f"at least {bound:g} in each seed",
        holds=bool((difference >= bound).all()),
        baseline=f"{best} {rivals[best].mean():.1f}%, AutoBot {by_seed['AutoBot'].mean():.1f}%, whole net {whole:.1f}%",
        note=note,
    )


def clock(settings: Settings, run: Run) -> None:
    """The clock, on the plain net cut to the smallest budget."""
    data = pooled_images(settings.data, settings.train, settings.test, settings.pool, run.seed)
    net = make_net(settings, settings.nets[0], data, run.seed)
    graph = trace_units(net, data.x_train[:1])
    small = copy.deepcopy(net)
    remove_units(small, chosen("L1, one ratio", net, graph, settings.budgets[-1], [], settings, run.seed), graph)
    batch = settings.timed_batch
    costs = compare_profiles(net, small, data.x_train[:2], batches=(batch,), threads=settings.threads)
    run.claim(
        f"cut to {settings.budgets[-1]:.0%} of its work, a net is faster at batch {batch}: before over after",
        measured=costs.speedup(batch),
        threshold="above 1",
        holds=costs.speedup(batch) > 1,
        note=f"{costs.macs_ratio:.2f} x fewer multiply-accumulates. It depends on the machine.",
    )


def figure(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Accuracy right after the cut over the share of multiply-accumulates, one panel a net; dots after tuning."""
    drawn, axes = panels(len(settings.nets))
    for ax, kind in zip(axes, settings.nets, strict=True):
        rows = table.loc[table["net"] == kind]
        whole = float(rows.loc[rows["arm"] == "whole", "accuracy"].mean())
        for arm in settings.arms:
            x, y = [100.0], [(whole, whole, whole)]
            for budget in settings.budgets:
                points = rows.loc[(rows["arm"] == arm) & (rows["budget"] == budget), ["macs", "accuracy"]].to_numpy(
                    float
                )
                x.append(100 * float(points[:, 0].mean()))
                y.append((float(points[:, 1].min()), float(points[:, 1].mean()), float(points[:, 1].max())))
            low, middle, high = zip(*y, strict=True)
            (line,) = ax.plot(x, middle, marker="o", markersize=4, label=arm)
            if arm == "random":
                line.set_color(GREY)
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
            if settings.tuning:
                last = rows.loc[(rows["arm"] == arm) & (rows["budget"] == settings.budgets[-1]), "tuned"]
                ax.plot(
                    [x[-1]], [float(last.mean())], marker="D", markersize=5, mfc="none", color=line.get_color(), ls=""
                )
        ax.set(title=f"{kind} net", xlabel="multiply-accumulates left (%)", ylim=(0, 102))
        ax.invert_xaxis()
    axes[0].set_ylabel("test accuracy after the cut (%)")
    if settings.tuning:
        axes[-1].plot([], [], marker="D", markersize=5, mfc="none", color=GREY, ls="", label="after tuning")
    axes[-1].legend(frameon=False, loc="center left", fontsize=7)
    run.figure("accuracy", drawn)
