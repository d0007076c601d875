"""Do synaptic weights, before and after learning, betray the geometry in which plasticity moved them?

Mirror descent takes its steps in the dual variables of a potential; gradient descent is the 2-norm's. Theory says that
the change of the dual variables is Gaussian in the potential that learning used, and in no other, where weights are
many more than samples (Pogodin et al. 2024). The study looks at the exact property behind it (the change lies in the
span of the inputs), at interpolating regression with more and more weights, at which geometry keeps the weights of a
multi-layer network log-normal, as they are in cortex, and at a recurrent network on the rows of MNIST, fine-tuned on
few images. The paper's scale adds, where files are given, a pretrained residual network on ImageNet.
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.atlas import Run
from neuropil.data import Dataset, load
from neuropil.learning import Backpropagation, evaluate, mlp, train_epoch
from neuropil.learning.geometry import (
    EUCLIDEAN,
    MirrorDescent,
    NegativeEntropy,
    PNorm,
    Potential,
    RegressionTask,
    ResidualNet,
    RowRecurrent,
    WeightGeometry,
    cdf_distance,
    image_folder,
    interpolate,
    lognormal_init_,
    parameter_groups,
    plot_changes,
    plot_distances,
    plot_log_weights,
    row_space_residual,
)
from neuropil.learning.training import adam
from neuropil.parallel import parallel
from neuropil.statistics import compare_paired, t_interval


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper"."""

    exact_features: int = 500
    exact_samples: int = 20
    exact_seeds: int = 3
    features: tuple[int, ...] = (200, 1000, 4000)
    exponents: tuple[float, ...] = (0.5,)  # samples are features to this power
    powers: tuple[float, ...] = (1.0,)  # fall-off of the inputs' correlation
    seeds: int = 10
    epochs: int = 100
    rates: tuple[float, ...] = tuple(10.0**e for e in np.arange(-7, 1.01, 0.5))
    hidden: int = 256
    layer_epochs: int = 20
    layer_seeds: int = 5
    layer_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
    recurrent: str | None = "mnist"  # data set whose rows a recurrent network reads
    recurrent_hidden: int = 64
    recurrent_epochs: int = 2
    tuned_epochs: int = 600  # of fine-tuning, at most
    tuned_seeds: int = 5
    tuned_rates: tuple[float, ...] = tuple(10.0**e for e in np.arange(-5, 0.51, 0.5))
    network: str | None = None  # torchvision's file of a ResNet-18 or -34
    images: str | None = None  # folder of ImageNet's validation images, a subfolder a class
    image_size: int = 224


SCALES = {
    "smoke": Settings(features=(), layer_seeds=0, recurrent=None),
    "default": Settings(),
    "paper": Settings(
        features=tuple(int(d) for d in np.logspace(2, math.log10(20_000), 10).round()),
        exponents=(0.5, 0.75),
        powers=(1.0, 2.0),
        seeds=30,
        layer_seeds=10,
        recurrent_hidden=256,
        recurrent_epochs=10,
        tuned_seeds=10,
    ),
}

POTENTIALS: tuple[Potential, ...] = (EUCLIDEAN, PNorm(3.0), NegativeEntropy())
NAMES = [potential.name for potential in POTENTIALS]
APART = 1_000_003  # added to a seed: draws on which rates are chosen
HIDDEN_SIDE = ("0.weight", "2.weight")


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    exact(settings, run)
    for power in settings.powers if settings.features else ():
        for exponent in settings.exponents:
            regression(power, exponent, settings, run)
    if settings.layer_seeds:
        layers(settings, run)
    if settings.recurrent:
        recurrent(settings.recurrent, settings, run)
    if settings.network or run.scale == "paper":
        residual(settings, run)


def task(samples: int, features: int, power: float, seed: int, device: torch.device) -> RegressionTask:
    """The same draw for every potential, on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return RegressionTask.draw(samples, features, power=power, generator=generator).to(device)


def best_rate(
    potential: Potential, samples: int, features: int, power: float, seed: int, settings: Settings, device: torch.device
) -> float:
    """The rate of the grid that leaves the smallest loss after the first try, on a draw apart."""
    problem = task(samples, features, power, seed + APART, device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the largest rates are cut: they lose
        losses = [interpolate(problem, potential, r, epochs=settings.epochs, tries=1).loss for r in settings.rates]
    return settings.rates[int(np.argmin(losses))]


def exact(settings: Settings, run: Run) -> None:
    """The property that no other optimizer has: the change of its own dual variables is a sum of inputs."""
    rows, shown = [], {}
    sizes = settings.exact_samples, settings.exact_features, 1.0
    for potential in POTENTIALS:
        rate = best_rate(potential, *sizes, run.seed, settings, run.device)
        for seed in range(run.seed, run.seed + settings.exact_seeds):
            problem = task(*sizes, seed, run.device)
            end = interpolate(problem, potential, rate, epochs=settings.epochs)
            changes = {tested.name: tested.grad(end.weights) - tested.grad(problem.w) for tested in POTENTIALS}
            shown.setdefault(potential.name, {name: change.cpu().numpy() for name, change in changes.items()})
            for name, change in changes.items():
                residual = row_space_residual(change, problem.x)
                row = {"trained": potential.name, "tested": name, "seed": seed, "residual": residual}
                rows.append({**row, "rate": rate, "loss": end.loss, "steps": end.steps})
    run.table("row-space", pd.DataFrame(rows))
    run.figure("changes", plot_changes(shown))
    own = [row for row in rows if row["trained"] == row["tested"]]
    inside = max(row["residual"] for row in own)
    outside = min(row["residual"] for row in rows if row["trained"] != row["tested"])
    loss = max(row["loss"] for row in own)
    run.claim(
        f"mirror descent learns {sizes[0]} samples with {sizes[1]} weights in every geometry: largest loss",
        measured=loss,
        unit="",
        threshold="< 1e-3",
        holds=loss < 1e-3,
        note=f"In {max(row['steps'] for row in own)} steps at most.",
    )
    run.claim(
        "the change of the dual variables lies in the span of the inputs: largest part outside it (of its norm)",
        paper="exactly (theory)",
        measured=inside,
        unit="",
        threshold="< 1e-8 in the potential of learning",
        baseline=f"in another potential: {outside:.2f} at least",
        holds=inside < 1e-8,
    )
    run.claim(
        "seen in any other potential it does not: smallest part outside (of its norm)",
        measured=outside,
        unit="",
        threshold="> 0.3",
        baseline=f"in its own: {inside:.1g}",
        holds=outside > 0.3,
    )


def compared(before: Any, after: Any) -> list[dict[str, Any]]:
    """Distances under every candidate, a row each; how far the weights went stands in the rows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        table = WeightGeometry(POTENTIALS).fit(before, after).distance_
    return [{"tested": name, **row} for name, row in zip(table["potential"], table.to_dict("records"), strict=True)]


def regressed(
    potential: Potential,
    samples: int,
    features: int,
    power: float,
    rate: float,
    seed: int,
    epochs: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """One run of the regression and its distances under every candidate."""
    problem = task(samples, features, power, seed, device)
    end = interpolate(problem, potential, rate, epochs=epochs)
    if not math.isfinite(end.loss):
        raise FloatingPointError(f"{potential.name}, D = {features}, seed {seed}: diverged at the rate {rate:g}.")
    run = {"features": features, "samples": samples, "trained": potential.name, "seed": seed}
    end_of = {"rate": rate, "loss": end.loss, "steps": end.steps}
    return [{**run, **row, **end_of} for row in compared(problem.w, end.weights)]


def regression_table(power: float, exponent: float, settings: Settings, run: Run) -> pd.DataFrame:
    """Every geometry on every number of weights, at its tuned rate."""
    arms = [(p, int(features**exponent), features) for features in settings.features for p in POTENTIALS]
    tuning = [partial(best_rate, *arm, power, run.seed, settings, run.device) for arm in arms]
    rates = parallel(tuning, jobs=run.jobs, track=run.track, label="tuning rates")
    calls = [
        partial(regressed, *arm, power, rate, seed, settings.epochs, run.device)
        for arm, rate in zip(arms, rates, strict=True)
        for seed in range(run.seed, run.seed + settings.seeds)
    ]
    runs = parallel(calls, jobs=run.jobs, track=run.track, label="regressions")
    return pd.DataFrame([row for rows in runs for row in rows])


def regression(power: float, exponent: float, settings: Settings, run: Run) -> None:
    """Interpolating regression with more and more weights."""
    where = f"N = D^{exponent:g}, correlation ~ 1/distance{'' if power == 1 else f'^{power:g}'}"
    name = f"regression-{exponent:g}-{power:g}".replace(".", "")
    table = run.checkpoint(name, lambda: regression_table(power, exponent, settings, run))
    run.metrics(name, table)
    keys = ["features", "trained", "tested"]
    values = ["cdf_distance", "cdf_distance_uncentred", "relative_change", "loss", "rate"]
    run.table(name, means(table, keys, values))
    floor = {features: normal_distance(features, run.seed) for features in settings.features}
    run.figure(f"distances-{name.removeprefix('regression-')}", plot_distances(table, floor, title=where))
    few, many = min(settings.features), max(settings.features)
    for potential in POTENTIALS:
        own_is_nearest(table.query("features == @many"), potential, f"D = {many}, {where}", run)
    for potential in POTENTIALS:
        rows = table.query("trained == @potential.name")
        own, rivals = rows.query("tested == trained"), rows.query("tested != trained")
        ends = {d: own.query("features == @d")["cdf_distance"].to_numpy(dtype=float) for d in (few, many)}
        others = [np.mean(list(rivals.query("features == @d")["cdf_distance"])) for d in (few, many)]
        low, high = t_interval(ends[few]), t_interval(ends[many])
        run.claim(
            f"changes learnt in the {potential.name} come nearer to normal in it as D grows to {many} ({where})",
            paper="distances fall with D (figures; their numbers are not known to us)",
            measured=float(ends[many].mean()),
            interval=high,
            unit="distance",
            threshold=f"interval below that at D = {few}",
            baseline=f"at D = {few}: {ends[few].mean():.3f} [{low[0]:.3f}, {low[1]:.3f}]; "
            f"in the other geometries {others[0]:.3f} at D = {few}, {others[1]:.3f} at D = {many}",
            holds=True if high[1] < low[0] else False if high[0] > low[1] else None,
            note=f"Independent normal numbers have {floor[few]:.3f} at D = {few} and {floor[many]:.3f} at D = {many}: "
            "a distance at that floor cannot be told from normal, and falls as the floor does.",
        )


def normal_distance(features: int, seed: int, draws: int = 100) -> float:
    """Mean distance of so many normal numbers from normal: what a finite sample cannot go below."""
    rng = np.random.default_rng(seed)
    return float(np.mean([cdf_distance(rng.normal(size=features)) for _ in range(draws)]))


def own_is_nearest(table: pd.DataFrame, potential: Potential, where: str, run: Run, note: str = "") -> None:
    """Claim that changes learnt in a potential are nearest to normal in it."""
    rows = table.query("trained == @potential.name")
    rows = rows.pivot_table(index="seed", columns="tested", values="cdf_distance", dropna=False)
    by_candidate = {name: rows[name].to_numpy(dtype=float) for name in NAMES}
    rivals = [values for name, values in by_candidate.items() if name != potential.name]
    lead = compare_paired(np.nanmin(rivals, axis=0), by_candidate[potential.name])
    wins = sum(difference > 0 for difference in lead.differences)
    run.claim(
        f"changes learnt in the {potential.name} are nearest to normal in it: its lead on the next ({where})",
        paper="the true geometry is nearest (figures; their numbers are not known to us)",
        measured=lead.mean,
        interval=lead.interval,
        unit="distance",
        threshold="nearest in every seed but one at most",
        baseline=", ".join(f"in the {name} {values.mean():.3f}" for name, values in by_candidate.items()),
        holds=None if len(rows) < 3 else wins >= len(rows) - 1,
        note=f"Nearest in {wins} of {len(rows)} seeds. {note}".rstrip(),
    )


@dataclass(frozen=True, eq=False)
class Learnt:
    """One network before and after learning."""

    before: dict[str, Tensor]
    after: dict[str, Tensor]
    loss: float
    accuracy: float


def learn(
    make: Callable[[int], nn.Module],
    data: Callable[[int], Dataset],
    seed: int,
    epochs: int,
    potential: Potential,
    rate: float,
    *,
    enough: float = 0.0,
) -> Learnt:
    """Train a network by mirror descent, until an epoch's mean loss is small enough; one that diverges is infinite."""
    split = data(seed)
    net = make(seed).to(split.x_train.device)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    rule = Backpropagation(net, cross_entropy)
    optimizer = MirrorDescent(parameter_groups(net, potential), rate, momentum=0.9)
    generator, loss = torch.Generator().manual_seed(seed), math.inf
    try:
        for _ in range(epochs):
            loss = train_epoch(rule, optimizer, split, generator=generator)
            if loss < enough:
                break
    except FloatingPointError:
        loss = math.inf
    return Learnt(before, net.state_dict(), loss, evaluate(rule, split))


def tuned(once: Callable[..., Learnt], rates: Sequence[float], run: Run) -> dict[str, float]:
    """For every potential, the rate with the smallest training loss on a draw apart."""
    seed = run.seed + APART  # not from within: a run does not travel to other processes

    def loss(potential: Potential, rate: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return once(seed=seed, potential=potential, rate=rate).loss

    calls = [partial(loss, potential, rate) for potential in POTENTIALS for rate in rates]
    losses = np.reshape(parallel(calls, jobs=run.jobs, track=run.track, label="tuning rates"), (-1, len(rates)))
    for potential, row in zip(POTENTIALS, losses, strict=True):
        if not np.isfinite(row).any():
            raise FloatingPointError(f"{potential.name} diverges at every rate of {list(rates)}.")
    return {p.name: rates[int(np.argmin(row))] for p, row in zip(POTENTIALS, losses, strict=True)}


def log_normal_mlp(data: Dataset, hidden: int, seed: int) -> nn.Module:
    """Two hidden layers whose weights have log-normal magnitudes, random signs and He's variance 2 / fan-in."""
    generator = torch.Generator().manual_seed(seed)
    net = mlp(data.features, hidden, hidden, data.classes, generator=generator)
    for layer in net:
        if isinstance(layer, nn.Linear):
            lognormal_init_(layer.weight, math.log(2 / layer.in_features) / 2 - 1, 1.0, generator=generator)
    return net


def layers(settings: Settings, run: Run) -> None:
    """Which geometry keeps log-normal weights log-normal while a network learns digits."""
    data = load("digits").flat().to(run.device)
    run.uses(data)
    once = partial(learn, partial(log_normal_mlp, data, settings.hidden), lambda _: data, epochs=settings.layer_epochs)
    rates = tuned(once, settings.layer_rates, run)
    arms = [(p, seed) for p in POTENTIALS for seed in range(run.seed, run.seed + settings.layer_seeds)]
    calls = [partial(once, seed=seed, potential=p, rate=rates[p.name]) for p, seed in arms]
    results = parallel(calls, jobs=run.jobs, track=run.track, label="networks")

    rows, changes = [], []
    for (potential, seed), end in zip(arms, results, strict=True):
        run_of = {"trained": potential.name, "seed": seed, "rate": rates[potential.name], "loss": end.loss}
        for name, weight in end.after.items():
            if weight.dim() > 1:
                away = {"start": _log_distance(end.before[name]), "log_distance": _log_distance(weight)}
                rows.append({**run_of, "tensor": name, **away, "accuracy": end.accuracy})
        changes += [{**run_of, **row} for row in compared(end.before, end.after)]
    table, change = pd.DataFrame(rows), pd.DataFrame(changes)
    run.metrics("layers", table)
    run.metrics("layers-changes", change)
    values = ["rate", "loss", "accuracy", "start", "log_distance"]
    run.table("log-normality", means(table, ["trained", "tensor"], values))
    values = ["cdf_distance", "relative_change", "impossible"]
    run.table("layers-changes", means(change, ["trained", "tensor", "tested"], values))
    log_normal_claim(table, change, run)
    first = {p.name: end for (p, seed), end in zip(arms, results, strict=True) if seed == run.seed}
    shown = {name: end.after["2.weight"].cpu().numpy() for name, end in first.items()}
    run.figure("log-weights", plot_log_weights(results[0].before["2.weight"].cpu().numpy(), shown))


def log_normal_claim(table: pd.DataFrame, change: pd.DataFrame, run: Run) -> None:
    """Claim that the entropy keeps log-normality and the 2-norm destroys it, by the worse matrix of either."""
    hidden = table[[name in HIDDEN_SIDE for name in table["tensor"]]]
    by_seed = hidden.pivot_table(index="seed", columns=["trained", "tensor"], values="log_distance")
    distances = {name: by_seed[name].to_numpy(dtype=float) for name in NAMES}
    entropy, euclidean = distances["negative entropy"].max(axis=1), distances["2-norm"].min(axis=1)
    gap = compare_paired(euclidean, entropy)
    apart = bool((entropy < 0.04).all() and (euclidean > 0.06).all())
    scores = {name: np.mean(list(table.query("trained == @name")["accuracy"])) for name in NAMES}
    moved = change.query("tested == '2-norm' and tensor in @HIDDEN_SIDE")
    moves = {name: np.mean(list(moved.query("trained == @name")["relative_change"])) for name in NAMES}
    start = float(np.mean(list(hidden["start"])))
    after = ", ".join(f"{name} {values.mean():.3f}" for name, values in distances.items())
    run.claim(
        "log-normal weights stay so under negative entropy, the 2-norm destroys it: gap in the distance of log |w|",
        paper="log-normal only under negative entropy (histograms)",
        measured=gap.mean,
        interval=gap.interval,
        unit="distance (2-norm's nearer matrix minus entropy's farther one)",
        threshold="entropy < 0.04 and 2-norm > 0.06 in every seed, interval above 0",
        baseline=f"before learning {start:.3f}; after, {after}",
        holds=False if not apart or gap.above(0) is False else gap.above(0),
        note=f"Entropy at most {entropy.max():.3f}, 2-norm at least {euclidean.min():.3f}. "
        f"Test accuracy: {', '.join(f'{name} {100 * score:.1f}%' for name, score in scores.items())}. "
        f"Hidden weights moved by {', '.join(f'{100 * move:.0f}% ({name})' for name, move in moves.items())} "
        "of their Euclidean norm.",
    )


def recurrent(name: str, settings: Settings, run: Run) -> None:
    """A recurrent network, trained on an image's rows and fine-tuned on few unseen samples: its recurrent weights."""
    if run.lacks(name, "fine-tuned recurrent weights name their geometry"):
        return
    data = load(name).to(run.device)
    run.uses(data)
    size = data.shape[-1]
    generator = torch.Generator().manual_seed(run.seed)
    net = RowRecurrent(size, settings.recurrent_hidden, data.classes, generator=generator).to(run.device)
    rule, optimizer = Backpropagation(net, cross_entropy), adam(net.parameters(), 1e-3)
    rows = replace(data, x_train=data.x_train.reshape(-1, size, size), x_test=data.x_test.reshape(-1, size, size))
    for _ in run.track(range(settings.recurrent_epochs), "training the recurrent network"):
        train_epoch(rule, optimizer, rows, generator=generator)
    few = int(sum(parameter.numel() for parameter in net.parameters()) ** 0.5)
    # Half of what the network has not seen teaches, the other half judges.
    unseen = replace(rows, x_train=rows.x_test, y_train=rows.y_test)

    def split(seed: int) -> Dataset:
        half = unseen.holdout(0.5, seed=seed)
        return half.subset(min(few, len(half.y_train)), seed=seed)

    fine_tuning("recurrent weights", lambda _: copy.deepcopy(net), split, lambda t: t == "recur.weight", settings, run)


def residual(settings: Settings, run: Run) -> None:
    """A pretrained residual network, fine-tuned on few images: the weights of its convolutions."""
    if not (settings.network and settings.images):
        note = "Weights and images are not shipped: give torchvision's resnet18 file and a folder of ImageNet's "
        note += "validation images, a subfolder a class: --set network=FILE --set images=FOLDER."
        run.claim("fine-tuned convolutions name their geometry", holds=None, note=note)
        return
    state = torch.load(settings.network, map_location="cpu", weights_only=True)
    net = ResidualNet.from_state(state)
    few, device = int(sum(parameter.numel() for parameter in net.parameters()) ** 0.5), run.device

    def split(seed: int) -> Dataset:
        return image_folder(str(settings.images), few, settings.image_size, seed=seed).to(device)

    fine_tuning("convolutions", lambda _: copy.deepcopy(net), split, lambda t: t != "fc.weight", settings, run)


def fine_tuning(
    what: str,
    make: Callable[[int], nn.Module],
    data: Callable[[int], Dataset],
    counts: Callable[[str], bool],
    settings: Settings,
    run: Run,
) -> None:
    """Fine-tune to interpolation in every geometry, and claim that the change of some weights names it."""
    once = partial(learn, make, data, epochs=settings.tuned_epochs, enough=1e-3)

    def distances(potential: Potential, rate: float, seed: int) -> list[dict[str, Any]]:
        end = once(seed=seed, potential=potential, rate=rate)
        states = [{name: value for name, value in state.items() if counts(name)} for state in (end.before, end.after)]
        run_of = {"trained": potential.name, "seed": seed, "rate": rate, "loss": end.loss, "accuracy": end.accuracy}
        return [{**run_of, **row} for row in compared(*states)]

    def measured() -> pd.DataFrame:
        rates = tuned(once, settings.tuned_rates, run)
        seeds = range(run.seed, run.seed + settings.tuned_seeds)
        calls = [partial(distances, p, rates[p.name], seed) for p in POTENTIALS for seed in seeds]
        runs = parallel(calls, jobs=run.jobs, track=run.track, label=f"fine-tuning, {what}")
        return pd.DataFrame([row for rows in runs for row in rows])

    name = f"fine-tuning-{what.replace(' ', '-')}"
    table = run.checkpoint(name, measured)
    run.metrics(name, table)
    values = ["cdf_distance", "cdf_distance_uncentred", "relative_change", "loss", "accuracy"]
    run.table(name, means(table, ["trained", "tested", "tensor"], values))
    for potential in POTENTIALS:
        ends = table.query("trained == @potential.name")
        loss, accuracy = (float(np.mean(list(ends[column]))) for column in ("loss", "accuracy"))
        note = f"Training loss {loss:.2g}, test accuracy {100 * accuracy:.0f}%."
        own_is_nearest(table, potential, f"fine-tuned {what}", run, note)


def _log_distance(weights: Tensor) -> float:
    """Distance of log magnitudes from normal; weights that reached exactly 0 have none."""
    return cdf_distance(weights[weights != 0].abs().log())


def means(table: pd.DataFrame, keys: list[str], values: list[str]) -> pd.DataFrame:
    """Means over what the keys leave open, such as seeds."""
    return table.pivot_table(index=keys, values=values, sort=False)[values].reset_index()
