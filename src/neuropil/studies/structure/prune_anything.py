"""Can the units of any network be found without hand-written rules, scored together, and cut without training?

Structurally Prune Anything (Wang et al. 2024) marks which entries of which parameters must go together and scores those
groups; without fine-tuning, what is left is refitted to give the layers' old outputs (OBSPA). Here units come from a
recording of the network's operations. A cut is right if the small network computes what the large one does with the
same units masked; so that is asked first, of networks of every kind. Then a residual net is trained once a seed and cut
by every score with every repair; the running statistics of its norms are a repair by themselves, so each comparison has
them recomputed in both arms or in none. At last the clock: an untrained wide net, half of its units.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from matplotlib.typing import ColorType
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.atlas import Run
from neuropil.data import Dataset, load
from neuropil.parallel import parallel
from neuropil.plotting import GREY, panels
from neuropil.statistics import Comparison, paired
from neuropil.structure.criteria import SNIP, Magnitude
from neuropil.structure.graph import UnitGraph, trace_units, unit_scores
from neuropil.structure.profile import compare_profiles
from neuropil.structure.prune import prune_units
from neuropil.structure.repair import OptimalBrainRepair, noise_like
from neuropil.structure.surgery import cut, discover, mask_units, shrink
from neuropil.structure.surgery.proof import drawn_copy, outputs
from neuropil.structure.weightspace.interpolation import reset_norm_
from neuropil.studies.structure._images import accuracy, pooled_images
from neuropil.studies.structure._units_zoo import FAMILIES, HOUSE, Member, ResidualNet

SHUFFLING, CUTTING = 0x5EED, 0xC07
TIGHT = 1e-9  # two float64 forwards of the same function
COARSE = 1e-5  # the same, where a model's own code computes in float32
BATCH = 256  # images a batch of calibration

SCORES = ("random", "one producer's L1", "grouped L1", "grouped SNIP")
REPAIRS = ("none", "statistics", "refit", "refit on noise", "refit on normal noise")


@dataclass(frozen=True)
class Settings:
    """Sizes; the scale "paper" has the paper's nets and, for CIFAR-10 that is not at hand, Fashion-MNIST."""

    data: str = "mnist"
    train: int | None = 12000
    test: int | None = 6000
    pool: int = 2
    stem: int = 12
    widths: tuple[int, ...] = (12, 24, 48)
    blocks: int = 1
    epochs: int = 2
    rate: float = 0.05
    batch_size: int = 64
    cuts: tuple[float, ...] = (0.3, 0.5)
    scores: tuple[str, ...] = SCORES
    repairs: tuple[str, ...] = REPAIRS
    calibration: int = 1024
    seeds: int = 5
    families: bool = True
    timed_width: int = 64
    timed_side: int = 32
    timed_batch: int = 64
    threads: int = 2


SCALES = {
    "smoke": Settings(
        data="digits",
        train=None,
        test=None,
        pool=1,
        stem=8,
        widths=(8, 16),
        epochs=4,
        cuts=(0.3,),
        scores=("random", "grouped L1"),
        repairs=("statistics",),
        calibration=256,
        seeds=6,
        families=False,
        timed_width=0,
    ),
    "default": Settings(),
    "paper": Settings(
        data="fashion-mnist",
        train=None,
        test=None,
        pool=1,
        stem=64,
        widths=(64, 128, 256, 512),
        blocks=2,
        epochs=200,
        batch_size=128,
        calibration=10_000,
        seeds=3,
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    zoo(settings, run)
    run.uses(load(settings.data))
    calls: list[Callable[[], list[dict]]] = [
        partial(cut_every_way, settings, seed) for seed in range(run.seed, run.seed + settings.seeds)
    ]
    table = run.checkpoint(
        "cuts",
        lambda: pd.DataFrame(
            row for rows in parallel(calls, jobs=run.jobs, track=run.track, label="seeds") for row in rows
        ),
    )
    run.metrics("cuts", table)
    run.table("accuracy", means(table))
    claims(table, settings, run)
    if settings.timed_width:
        clock(settings, run)
    figure(table, settings, run)


def zoo(settings: Settings, run: Run) -> None:
    """Half of every exact group goes: the cut network beside the masked one."""
    members = (*HOUSE, *(FAMILIES if settings.families else ()))
    rows = [exactness(member) for member in run.track(members, "networks", total=len(members))]
    table = pd.DataFrame(rows)
    run.table("networks", table)
    note = None if FAMILIES or not settings.families else "The families need transformers, which is not installed."
    unknown = sum(row["unknown"] for row in rows)
    run.claim(
        "networks of every kind are read without a rule of their own: operations unknown",
        paper="8 architectures and more, no rules by hand",
        measured=unknown,
        threshold="0",
        holds=unknown == 0,
        note=note,
    )
    worst = max(row["gap"] / row["allowed"] for row in rows)
    effect = min(row["effect"] for row in rows)
    run.claim(
        "cut equals masked on every exact group: largest difference over the tolerance",
        measured=worst,
        threshold=f"below 1 ({TIGHT:g} in float64, {COARSE:g} where the model rounds), cuts that change something",
        holds=worst < 1 and effect > 1e-3,
        note=f"The masks themselves change the outputs by at least {effect:.2g}.",
    )


def exactness(member: Member) -> dict:
    """Cut half of every exact group in the recorded graph, and in the module as far as its code allows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = drawn_copy(member.make().double().eval())
    example = member.example()
    graph = trace_units(net, example)
    groups = graph.prunable()
    keep = halves(graph)
    masked = copy.deepcopy(net)
    mask_units(masked, keep, graph).apply_(masked)
    whole, wanted = outputs(net, example), outputs(masked, example)
    gap = distance(outputs(shrink(net, keep, graph, backend="graph"), example), wanted)
    found = discover(net, graph, groups)
    able = {name: kept for name, kept in keep.items() if not isinstance(found[name], str)}
    masked = copy.deepcopy(net)
    mask_units(masked, able, graph).apply_(masked)
    small = copy.deepcopy(net)
    cut(small, able, graph, known=found)
    return {
        "network": member.name,
        "groups": len(groups),
        "units": sum(group.size for group in groups),
        "by code": len(groups) - len(able),
        "unknown": len(graph.unknown),
        "effect": distance(wanted, whole),
        "gap": max(gap, distance(outputs(small, example), outputs(masked, example))),
        "allowed": COARSE if "Llama" in member.name else TIGHT,
    }


def halves(graph: UnitGraph) -> dict[str, Tensor]:
    """Keep a random half of every exact group."""
    generator = torch.Generator().manual_seed(CUTTING)
    keep = {}
    for group in graph.prunable():
        keep[group.name] = torch.ones(group.size, dtype=torch.bool)
        keep[group.name][torch.randperm(group.size, generator=generator)[: group.size // 2]] = False
    return keep


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Largest difference of two runs, relative to the largest output."""
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x.is_floating_point()]
    return max(float((x - y).abs().max() / (1 + y.abs().max())) for x, y in pairs)


def trained(settings: Settings, data: Dataset, seed: int) -> nn.Module:
    """Train the residual net."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResidualNet(data.shape[0], data.classes, settings.stem, settings.widths, settings.blocks)
    optimizer = torch.optim.SGD(net.parameters(), settings.rate, momentum=0.9)
    generator = torch.Generator().manual_seed(seed ^ SHUFFLING)
    for _ in range(settings.epochs):
        for batch in torch.randperm(len(data.x_train), generator=generator).split(settings.batch_size):
            optimizer.zero_grad()
            cross_entropy(net(data.x_train[batch]), data.y_train[batch]).backward()
            optimizer.step()
    return net.eval()


def cut_every_way(settings: Settings, seed: int) -> list[dict]:
    """Train once, then cut by every score, at every fraction, with every repair."""
    data = pooled_images(settings.data, settings.train, settings.test, settings.pool, seed)
    net = trained(settings, data, seed)
    example = data.x_train[:2]
    graph = trace_units(net, example)
    rows = [
        {"seed": seed, "score": "whole", "cut": 0.0, "repair": "none", "accuracy": accuracy(net, data), "macs": 1.0}
    ]
    x, y = data.x_train[: settings.calibration], data.y_train[: settings.calibration]
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    for name in settings.scores:
        scores = scored(name, net, graph, batches, seed)
        for fraction in settings.cuts:
            for repair in settings.repairs:
                small, macs = repaired(net, graph, scores, fraction, repair, batches, seed)
                rows.append(
                    {
                        "seed": seed,
                        "score": name,
                        "cut": fraction,
                        "repair": repair,
                        "accuracy": accuracy(small, data),
                        "macs": macs,
                    }
                )
    return rows


def scored(
    name: str, net: nn.Module, graph: UnitGraph, batches: Sequence[tuple[Tensor, Tensor]], seed: int
) -> dict[str, Tensor]:
    """Score the units of every group."""
    groups = graph.prunable()
    if name == "random":
        generator = torch.Generator().manual_seed(seed ^ CUTTING)
        return {group.name: torch.rand(group.size, generator=generator) for group in groups}
    weights = [p for p, value in net.named_parameters() if value.ndim > 1]
    criterion = SNIP() if name == "grouped SNIP" else Magnitude()
    entries = criterion(net, batches, cross_entropy, weights)
    if name != "one producer's L1":
        return graph.reduce(entries)
    chosen = {}
    for group in groups:
        first = next(member.parameter for member in group.producing() if member.parameter in entries)
        score = unit_scores(group, {first: entries[first]})
        assert score is not None
        chosen[group.name] = score
    return chosen


def repaired(
    net: nn.Module,
    graph: UnitGraph,
    scores: Mapping[str, Tensor],
    fraction: float,
    repair: str,
    batches: Sequence[tuple[Tensor, Tensor]],
    seed: int,
) -> tuple[nn.Module, float]:
    """Cut a copy, and repair it; also the share of multiply-accumulates left."""
    refit = None
    if repair == "refit":
        refit = OptimalBrainRepair(batches)
    elif repair == "refit on normal noise":
        x = torch.cat([x for x, _ in batches])
        generator = torch.Generator().manual_seed(seed ^ CUTTING)
        noise = [x.mean() + x.std() * torch.randn(b.shape, generator=generator) for b, _ in batches]
        refit = OptimalBrainRepair(noise, reset_norm=False)
    elif repair == "refit on noise":
        low, high = (float(end) for end in torch.cat([x.flatten() for x, _ in batches]).aminmax())
        generator = torch.Generator().manual_seed(seed ^ CUTTING)
        noise = noise_like(batches[0][0], len(batches), low=low, high=high, generator=generator)
        refit = OptimalBrainRepair(noise, reset_norm=False)
    small = copy.deepcopy(net)
    report = prune_units(small, batches[0][0][:2], scores, keep=1 - fraction, scope="group", repair=refit, graph=graph)
    if repair == "statistics":
        reset_norm_(small, batches)
    return small.eval(), report.macs_after / report.macs_before


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by score and repair, mean over seeds, one column a fraction."""
    return table.pivot_table(index=["score", "repair"], columns="cut", values="accuracy").round(1).reset_index()


def gain(table: pd.DataFrame, cut_: float, better: tuple[str, str], than: tuple[str, str]) -> Comparison:
    """Compare two arms (score, repair) at one fraction, over seeds."""
    rows = table[table["cut"] == cut_].assign(arm=lambda frame: frame["score"] + " / " + frame["repair"])
    return paired(rows, " / ".join(better), " / ".join(than), arm="arm")


def claims(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """What the scores and repairs are worth."""
    grouped, whole = "grouped L1", table[table["score"] == "whole"]["accuracy"].mean()
    low, high = settings.cuts[0], settings.cuts[-1]

    def state(
        text: str, cut_: float, better: tuple[str, str], than: tuple[str, str], bound: float, note: str = ""
    ) -> None:
        if not ({better[0], than[0]} <= set(settings.scores) and {better[1], than[1]} <= set(settings.repairs)):
            return
        compared = gain(table, cut_, better, than)
        rows = table[table["cut"] == cut_]
        reached = [rows[(rows["score"] == s) & (rows["repair"] == r)]["accuracy"].mean() for s, r in (better, than)]
        run.claim(
            text,
            measured=compared.mean,
            interval=compared.interval,
            unit="points",
            threshold=f"interval above {bound:g}",
            holds=compared.above(bound),
            baseline=f"{reached[1]:.1f}% against {reached[0]:.1f}% (whole net {whole:.1f}%)",
            note=f"{note} {compared.seed_by_seed()}".strip(),
        )

    state(
        f"grouped L1 beats random units at {low:.0%}, statistics recomputed in both",
        low, (grouped, "statistics"), ("random", "statistics"), 0,
    )  # fmt: skip
    state(
        f"scores of whole groups beat those of one producer at {low:.0%}, statistics recomputed in both",
        low, (grouped, "statistics"), ("one producer's L1", "statistics"), 0,
    )  # fmt: skip
    state(
        f"refitting on data beats recomputed statistics alone at {high:.0%}, the same units cut",
        high, (grouped, "refit"), (grouped, "statistics"), 5,
    )  # fmt: skip
    rows = table[(table["cut"] == high) & (table["score"] == grouped) & (table["repair"] == "refit on normal noise")]
    moments = (
        "Uniform noise over the range of the inputs has another mean than they have (most pixels are black); normal "
        f"noise of their mean and variance, tried after this verdict was known, reaches {rows['accuracy'].mean():.1f}%."
    )
    state(
        f"refitting without data beats cutting alone at {high:.0%}, the same units cut, no statistics recomputed",
        high, (grouped, "refit on noise"), (grouped, "none"), 10, moments,
    )  # fmt: skip


def clock(settings: Settings, run: Run) -> None:
    """Half of the units of a wide, untrained net: multiply-accumulates beside the clock."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        width = settings.timed_width
        net = ResidualNet(3, 10, width, (width, 2 * width, 4 * width, 8 * width), 2)
    example = torch.randn(2, 3, settings.timed_side, settings.timed_side, generator=torch.Generator().manual_seed(0))
    small = prune_units(copy.deepcopy(net), example, Magnitude(), keep=0.5, scope="group").net
    batch = settings.timed_batch
    costs = compare_profiles(net, small, example, batches=(batch,), threads=settings.threads)
    share = (costs.speedup(batch) - 1) / (costs.macs_ratio - 1)
    run.claim(
        f"half of the units cut: of the gain that multiply-accumulates promise, the clock shows, at batch {batch}",
        measured=100 * share,
        unit="%",
        threshold="at least 60",
        holds=share >= 0.6,
        note=f"{costs.macs_ratio:.2f} x fewer multiply-accumulates, {costs.parameter_ratio:.2f} x fewer parameters, "
        f"{costs.speedup(batch):.2f} x faster on {settings.threads} threads (median of 30 in turns, after 10). The "
        "only figure here that depends on the machine.",
    )


def figure(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Accuracy after the cut, one panel a repair."""
    drawn, axes = panels(len(settings.repairs))
    titles = {
        "none": "cut, nothing else",
        "statistics": "statistics recomputed",
        "refit": "refitted on data",
        "refit on noise": "refitted on uniform noise",
        "refit on normal noise": "refitted on normal noise",
    }
    colours: dict[str, ColorType] = {"random": GREY}
    whole = table[table["score"] == "whole"]["accuracy"]
    for ax, repair in zip(axes, settings.repairs, strict=True):
        for name in settings.scores:
            rows = table[(table["score"] == name) & (table["repair"] == repair)]
            points = rows.groupby("cut")["accuracy"].agg(["mean", "min", "max"])
            x = [0.0, *(100 * points.index)]
            y = [whole.mean(), *points["mean"]]
            (line,) = ax.plot(x, y, marker="o", markersize=4, label=name, color=colours.get(name))
            colours[name] = line.get_color()
            low, high = ([end, *points[side]] for end, side in ((whole.min(), "min"), (whole.max(), "max")))
            ax.fill_between(x, low, high, color=line.get_color(), alpha=0.15, lw=0)
        ax.set(title=titles[repair], xlabel="units cut of every group (%)", ylim=(0, 102))
    axes[0].set_ylabel("test accuracy (%)")
    axes[min(2, len(axes) - 1)].legend(frameon=False, loc="lower left")
    run.figure("accuracy", drawn)
