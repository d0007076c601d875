"""Does decaying the neurons that the outputs do not feel leave fewer neurons than decaying all alike?

SeReNe (Tartaglione et al. 2021) measures how much the outputs change with each neuron's drive, decays the weights of
the others, and cuts by thresholds what the validation loss does not miss. Every arm here has the same threshold stage,
so that only the decay differs: sensitivity normalised in each layer (exact, and its lower bound), the form as
published, plain weight decay, L1 by its proximal step, and no decay. Each decay has a grid of strengths, lambda x steps
alike; for every arm and seed the fewest neurons count that keep validation accuracy within half a point of the dense
net.
"""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.atlas import Run
from neuropil.data import Dataset, load
from neuropil.learning.networks import mlp
from neuropil.parallel import parallel
from neuropil.plotting import GREY, panels
from neuropil.statistics import Comparison, compare_paired, t_interval
from neuropil.structure.profile import compare_profiles
from neuropil.structure.sensitivity import InsensitivityDecay, neuron_sensitivity
from neuropil.structure.serene import SeReNe
from neuropil.structure.surgery.proof import outputs
from neuropil.studies.structure._images import accuracy

SHUFFLING = 0x5EED
Arm = Literal["normalised, lower", "normalised, full", "as published", "weight decay", "L1", "no decay", "dense"]
GRID: tuple[Arm, ...] = ("normalised, lower", "as published", "weight decay", "L1")


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the scale "paper" has LeNet-300-100 on all of MNIST."""

    data: str = "digits"
    train: int | None = None
    test: int | None = None
    validation: float = 0.25
    hidden: tuple[int, ...] = (128, 64)
    epochs: int = 20
    rate: float = 0.05
    batch_size: int = 20
    tolerance: float = 0.1
    decays: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    every: int = 2
    slack: float = 0.5
    seeds: int = 5
    full_seeds: int = 3
    wide: bool = True
    wide_train: int = 10_000
    wide_epochs: int = 4
    wide_seeds: int = 2
    timed_batch: int = 64
    threads: int = 2


SCALES = {
    "smoke": Settings(hidden=(32, 16), epochs=6, decays=(4.0,), seeds=2, full_seeds=0, wide=False, timed_batch=0),
    "default": Settings(),
    "paper": Settings(
        data="mnist",
        validation=0.1,
        hidden=(300, 100),
        epochs=100,
        rate=0.1,
        batch_size=100,
        every=1,
        wide=False,
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    limits(run)
    run.uses(load(settings.data))
    seeds = range(run.seed, run.seed + settings.seeds)
    plain: list[tuple[Arm, float]] = [("no decay", 0.0), ("dense", 0.0)]
    arms = [*((arm, decay) for arm in GRID for decay in settings.decays), *plain]
    calls: list[Callable[[], dict]] = [
        partial(train_arm, settings, arm, decay, seed) for seed in seeds for arm, decay in arms
    ]
    rows = run.checkpoint("arms", lambda: parallel(calls, jobs=run.jobs, track=run.track, label="trainings"))
    chosen = best(rows, settings)
    if settings.full_seeds:
        strength = most_common([row["decay"] for row in chosen["normalised, lower"].values() if row["decay"]])
        full: list[Callable[[], dict]] = [
            partial(train_arm, settings, "normalised, full", strength, seed)
            for seed in list(seeds)[: settings.full_seeds]
        ]
        rows += run.checkpoint("full", lambda: parallel(full, jobs=run.jobs, track=run.track, label="exact trainings"))
    table = pd.DataFrame([{key: value for key, value in row.items() if key != "state"} for row in rows])
    run.metrics("arms", table)
    run.table("neurons", means(table))
    claims(rows, chosen, settings, run)
    if settings.wide:
        wide(settings, run)
    figure(table, settings, run)


def limits(run: Run) -> None:
    """What is exact: a linear readout, and insensitivity of one."""
    generator = torch.Generator().manual_seed(run.seed)
    net = mlp(6, 5, 3, generator=generator)
    V = torch.randn(3, 5, generator=generator)
    linear = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    with torch.no_grad():
        linear.get_parameter("1.weight").copy_(V)
    x = torch.randn(8, 6, generator=generator)
    gap = max(
        float((neuron_sensitivity(linear, x, kind="full")["0"] - V.abs().mean(dim=0)).abs().max()),
        float((neuron_sensitivity(linear, x, kind="lower")["0"] - V.sum(dim=0).abs() / 3).abs().max()),
    )
    run.claim(
        "sensitivity of a linear readout is its closed form: largest difference",
        measured=gap,
        threshold="below 1e-6",
        holds=gap < 1e-6,
    )
    last = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.zero_()
    decay = InsensitivityDecay(net, torch.optim.SGD(net.parameters(), 0.1), 0.25)
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    observe(decay, x)
    decay.step()
    hidden = next(name for name in before if name.endswith("weight"))
    same = torch.equal(net.get_parameter(hidden), 0.75 * before[hidden])
    run.claim(
        "where no output feels any neuron the decay is weight decay to the bit",
        measured=float(same),
        threshold="1: equal",
        holds=same,
    )


def observe(decay: InsensitivityDecay, x: Tensor) -> None:
    """Measure; the warning that this is plain weight decay is what these studies expect."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="neuropil: insensitivities")
        decay.observe(x)


def prepared(settings: Settings, seed: int) -> tuple[Dataset, Dataset]:
    """Training data with its validation part as test part; and the set with the real test part."""
    data = load(settings.data, seed=seed).subset(settings.train, settings.test, seed=seed).flat()
    mean, scale = data.x_train.mean(), data.x_train.std()
    data = Dataset(
        data.name, (data.x_train - mean) / scale, data.y_train, (data.x_test - mean) / scale, data.y_test,
        data.class_names,
    )  # fmt: skip
    return data.holdout(settings.validation, seed=seed), data


def train_arm(settings: Settings, arm: Arm, decay: float, seed: int) -> dict[str, Any]:
    """Train with one decay, cut by thresholds from half of the run on, and count what is left."""
    data, whole = prepared(settings, seed)
    net = mlp(data.features, *settings.hidden, data.classes, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.SGD(net.parameters(), settings.rate)
    steps = settings.epochs * -(-len(data.x_train) // settings.batch_size)
    strength = decay / steps

    def evaluate() -> float:
        with torch.no_grad():
            return float(cross_entropy(net(data.x_test), data.y_test))

    sensitive = arm in {"normalised, lower", "normalised, full", "as published"}
    serene = SeReNe(
        net,
        optimizer,
        evaluate,
        data.x_train[:2],
        strength=0.0,
        tolerance=settings.tolerance,
        patience=0,
    )
    keeper = InsensitivityDecay(
        net,
        optimizer,
        strength if sensitive else 0.0,
        kind="full" if arm == "normalised, full" else "lower",
        normalise=None if arm == "as published" else "layer",
        every=settings.every,
        modules=serene.hidden,
    )
    weights = [net.get_parameter(f"{name}.weight") for name in serene.hidden]
    sizes = [float(weight.detach().abs().mean()) for weight in weights]
    generator = torch.Generator().manual_seed(seed ^ SHUFFLING)
    for epoch in range(settings.epochs):
        for batch in torch.randperm(len(data.x_train), generator=generator).split(settings.batch_size):
            optimizer.zero_grad()
            cross_entropy(net(data.x_train[batch]), data.y_train[batch]).backward()
            optimizer.step()
            if sensitive:
                observe(keeper, data.x_train[batch])
                keeper.step()
            elif arm in {"weight decay", "L1"}:
                plain_step(weights, sizes, strength, proximal=arm == "L1")
        if arm != "dense":
            serene.epoch(threshold=2 * (epoch + 1) >= settings.epochs)
    alive = serene.alive()
    return {
        "arm": arm,
        "decay": decay,
        "seed": seed,
        "neurons": sum(alive.values()),
        "layers": " ".join(str(count) for count in alive.values()),
        "density": serene.masks.density(),
        "validation": accuracy(net, data),
        "accuracy": accuracy(net, whole),
        "loss": evaluate(),
        "state": {name: value.clone() for name, value in net.state_dict().items()},
    }


def plain_step(weights: list[nn.Parameter], sizes: list[float], strength: float, *, proximal: bool) -> None:
    """Decay all weights alike: by a share of themselves, or (L1) by a share of the layer's first mean size."""
    with torch.no_grad():
        for weight, size in zip(weights, sizes, strict=True):
            if proximal:
                weight.copy_(weight.sign() * (weight.abs() - strength * size).clamp(min=0))
            else:
                weight.mul_(1 - strength)


def best(rows: list[dict], settings: Settings) -> dict[str, dict[int, dict]]:
    """For every arm and seed, the run of fewest neurons within the slack of the dense net; without one, all neurons."""
    chosen: dict[str, dict[int, dict]] = {}
    dense = {row["seed"]: row for row in rows if row["arm"] == "dense"}
    for arm in dict.fromkeys(row["arm"] for row in rows):
        for seed, whole in dense.items():
            enough = whole["validation"] - settings.slack - 1e-9
            passing = [r for r in rows if r["arm"] == arm and r["seed"] == seed and r["validation"] >= enough]
            fewest = min(passing, key=lambda row: (row["neurons"], row["loss"]), default={**whole, "decay": 0.0})
            chosen.setdefault(arm, {})[seed] = fewest
    return chosen


def most_common(values: list[float]) -> float:
    """The value that occurs most, of equals the smallest; 1 of nothing."""
    return min(set(values), key=lambda value: (-values.count(value), value)) if values else 1.0


def means(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds, a row an arm and strength."""
    columns = ["neurons", "density", "validation", "accuracy", "loss"]
    return table.pivot_table(index=["arm", "decay"], values=columns, sort=False)[columns].round(3).reset_index()


def claims(rows: list[dict], chosen: dict[str, dict[int, dict]], settings: Settings, run: Run) -> None:
    """Who leaves fewest neurons."""
    seeds = sorted(chosen["dense"])
    pruned = [row for row in rows if row["arm"] == "normalised, lower" and row["seed"] == seeds[0]]
    shrunk(min(pruned, key=lambda row: row["neurons"]), settings, run)
    if len(seeds) < 3:
        return  # too few to compare

    def compared(arm: str, rival: str) -> Comparison:
        return compare_paired(*([chosen[name][seed]["neurons"] for seed in seeds] for name in (arm, rival)))

    def left(arm: str) -> str:
        return f"{arm} {sum(chosen[arm][seed]['neurons'] for seed in seeds) / len(seeds):.0f}"

    void = (
        "No strength of either arm stays within the slack, so both keep all neurons: ten threshold stages, each of "
        "which may raise the validation loss by a tenth, cost more than half a point. "
    )
    for rival in ("weight decay", "L1"):
        difference = compared("normalised, lower", rival)
        left_over = {chosen[arm][seed]["neurons"] for arm in ("normalised, lower", rival) for seed in seeds}
        nobody = left_over == {sum(settings.hidden)}
        run.claim(
            f"decay by normalised insensitivity leaves fewer neurons than {rival}",
            measured=difference.mean,
            interval=difference.interval,
            unit="neurons",
            threshold="interval below 0",
            holds=difference.below(0),
            baseline=f"{left(rival)}, {left('normalised, lower')} of {sum(settings.hidden)}",
            note=f"{void if nobody else ''}{difference.seed_by_seed(0)}",
        )
    same_strength(rows, seeds, settings, run)
    gaps = []
    for seed in seeds:
        left_at = {
            (row["arm"], row["decay"]): row["neurons"]
            for row in rows
            if row["seed"] == seed and row["arm"] in {"as published", "weight decay"}
        }
        by_decay = [left_at["as published", d] - left_at["weight decay", d] for d in settings.decays]
        gaps.append(sum(by_decay) / len(by_decay))
    low, high = t_interval(gaps)
    run.claim(
        "as published the decay is weight decay: difference in neurons, mean over strengths",
        measured=sum(gaps) / len(gaps),
        interval=(low, high),
        unit="neurons",
        threshold="at most 2, either way",
        holds=abs(sum(gaps) / len(gaps)) <= 2,
        note="Sensitivities of logits are a few thousandths to hundredths, so that 1 - S hardly differs from 1. Seed "
        f"by seed: {', '.join(f'{gap:.1f}' for gap in gaps)}.",
    )
    exact = [row for row in rows if row["arm"] == "normalised, full"]
    if exact:
        pairs = [
            (row["neurons"], other["neurons"])
            for row in exact
            for other in rows
            if (other["arm"], other["seed"], other["decay"]) == ("normalised, lower", row["seed"], row["decay"])
        ]
        shares = compare_paired(
            [100 * a / sum(settings.hidden) for a, _ in pairs], [100 * b / sum(settings.hidden) for _, b in pairs]
        )
        run.claim(
            "the lower bound does for the exact sensitivity: difference in neurons, exact minus bound",
            paper="close curves",
            measured=shares.mean,
            interval=shares.interval,
            unit="% of all",
            threshold="at most 10 either way",
            holds=abs(shares.mean) <= 10,
            note=f"At the strength that most seeds choose. {shares.seed_by_seed()}",
        )
    kept = {chosen["normalised, lower"][seed]["neurons"] for seed in seeds}
    empty = kept == {sum(settings.hidden)}
    drop = compare_paired(
        *([chosen[name][seed]["accuracy"] for seed in seeds] for name in ("normalised, lower", "dense"))
    )
    run.claim(
        "the pruned net tests as the dense one",
        paper="LeNet-300-100: about 1.65% error (unverified)",
        measured=None if empty else drop.mean,
        interval=None if empty else drop.interval,
        unit="points",
        threshold="interval above -1",
        holds=None if empty else drop.above(-1),
        note=f"{void}Nothing is left to test." if empty else drop.seed_by_seed(),
    )


def same_strength(rows: list[dict], seeds: list[int], settings: Settings, run: Run) -> None:
    """Compare at the strongest decay: neurons and accuracy, arm against plain weight decay."""
    strongest = settings.decays[-1]

    def values(arm: str, value: str) -> list[float]:
        at = {row["seed"]: row[value] for row in rows if row["arm"] == arm and row["decay"] == strongest}
        return [at[seed] for seed in seeds]

    arms = ("normalised, lower", "weight decay")
    pairs = {value: [values(arm, value) for arm in arms] for value in ("neurons", "accuracy")}
    neurons, points = (compare_paired(*pairs[value]) for value in ("neurons", "accuracy"))
    run.claim(
        f"at the same strength, {strongest:g} in all, normalised insensitivity leaves fewer neurons than weight decay",
        measured=neurons.mean,
        interval=neurons.interval,
        unit="neurons",
        threshold="interval below 0, and that of the accuracy above -0.5",
        holds=bool(neurons.below(0) and points.above(-0.5)) or (None if neurons.below(0) is None else False),
        baseline=f"weight decay {sum(pairs['neurons'][1]) / len(seeds):.0f}, normalised "
        f"{sum(pairs['neurons'][0]) / len(seeds):.0f} of {sum(settings.hidden)}",
        note=f"Set after the comparison within half a point had turned out void. Accuracy {points.mean:+.1f} "
        f"[{points.interval[0]:.1f}, {points.interval[1]:.1f}] points. {neurons.seed_by_seed(0)}",
    )


def shrunk(row: dict, settings: Settings, run: Run) -> None:
    """Remove dead neurons for real."""
    data, _ = prepared(settings, row["seed"])
    net = mlp(data.features, *settings.hidden, data.classes, generator=torch.Generator().manual_seed(row["seed"]))
    net.load_state_dict(row["state"])
    whole = copy.deepcopy(net)
    keeper = SeReNe(net, torch.optim.SGD(net.parameters(), 0.1), lambda: 0.0, data.x_train[:8], strength=0.0)
    report = keeper.shrink()
    (a,), (b,) = outputs(net, data.x_test), outputs(whole, data.x_test)
    gap = float((a - b).abs().max() / (1 + b.abs().max()))
    run.claim(
        "removing dead neurons leaves the function: largest relative difference",
        measured=gap,
        threshold="below 1e-5",
        holds=gap < 1e-5,
        note=f"{report.parameters_before:,} -> {report.parameters_after:,} parameters.",
    )
    if settings.timed_batch:
        batch = settings.timed_batch
        costs = compare_profiles(whole, net, data.x_train[:2], batches=(batch,), runs=60, threads=settings.threads)
        run.claim(
            f"the shrunk net is faster at batch {batch}: before over after",
            measured=costs.speedup(batch),
            threshold="above 1",
            holds=costs.speedup(batch) > 1,
            note=f"{costs.macs_ratio:.2f} x fewer multiply-accumulates. It depends on the machine; nets so small spend "
            "most of their time in calls.",
        )


def wide(settings: Settings, run: Run) -> None:
    """LeNet-300-100 on a part of MNIST, at one strength: reported, nothing is decided by it."""
    larger = Settings(
        data="mnist",
        train=settings.wide_train,
        test=2000,
        validation=0.2,
        hidden=(300, 100),
        epochs=settings.wide_epochs,
        rate=0.1,
        batch_size=80,
        every=settings.every,
    )
    calls: list[Callable[[], dict]] = [
        partial(train_arm, larger, arm, 4.0, seed)
        for seed in range(run.seed, run.seed + settings.wide_seeds)
        for arm in ("normalised, lower", "as published", "weight decay")
    ]
    rows = run.checkpoint("mnist", lambda: parallel(calls, jobs=run.jobs, track=run.track, label="MNIST trainings"))
    table = pd.DataFrame([{key: value for key, value in row.items() if key != "state"} for row in rows])
    run.metrics("mnist", table)
    run.table("lenet-300-100", means(table))


def figure(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Neurons left against validation accuracy and loss, along the strengths."""
    drawn, axes = panels(2)
    present = set(table["arm"])
    arms = [arm for arm in (*GRID, "no decay", "normalised, full") if arm in present]
    for ax, value, label in zip(axes, ("accuracy", "loss"), ("test accuracy (%)", "validation loss"), strict=True):
        for arm in arms:
            rows = table.loc[table["arm"] == arm]
            points = rows.pivot_table(index="decay", values=["neurons", value])
            (line,) = ax.plot(points["neurons"], points[value], marker="o", markersize=4, label=arm)
            ax.scatter(rows["neurons"], rows[value], s=6, color=line.get_color(), alpha=0.4, lw=0)
        dense = table.loc[table["arm"] == "dense", value].mean()
        ax.axhline(dense, color=GREY, lw=0.8, ls="--", label="dense")
        ax.set(xlabel="hidden neurons left", ylabel=label)
    axes[1].legend(frameon=False, fontsize=7)
    run.figure("neurons", drawn)
