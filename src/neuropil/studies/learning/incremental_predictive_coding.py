"""Does moving weights and activities together at every step make predictive coding better, steadier and cheaper?

Incremental predictive coding (Salvatori et al. 2024) does away with the two phases of predictive coding. It makes as
many weight updates as steps of inference, so that at one small learning rate it must look better; the study therefore
gives both, and backpropagation, the same wide range of rates and picks on a validation split. Robustness is measured as
the paper means it: over the step size of inference, its number of steps, and the learning rate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torch.optim.lr_scheduler import LambdaLR

from neuropil.atlas import Run
from neuropil.data import Dataset, load, locate
from neuropil.learning import (
    Backpropagation,
    Contender,
    LearningRule,
    compare,
    final_accuracies,
    mlp,
    plot_learning_curves,
    tune_rates,
)
from neuropil.learning.energy import (
    Backpropagating,
    Incremental,
    IncrementalPredictiveCoding,
    Inferring,
    PredictiveCoding,
    Replicas,
    StackedAdam,
    plot_curves,
    plot_grid,
    squared_energy,
    sweep,
)
from neuropil.parallel import parallel
from neuropil.statistics import Comparison, compare_paired


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the reference configuration is in the scale "paper"."""

    hidden: tuple[int, ...] = (64, 64)
    batch: int = 64
    epochs: int = 8
    small_rate: float = 1e-3
    small_gamma: float = 0.5
    small_steps: int = 8
    seeds: int = 5
    grid_seeds: int = 5
    gammas: tuple[float, ...] = (0.1, 0.5, 1.0)
    steps: tuple[int, ...] = (3, 8, 16)
    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    images: tuple[str, ...] = ()
    image_hidden: tuple[int, ...] = (128, 128, 128)
    image_epochs: int = 25
    image_batch: int = 128
    image_seeds: int = 5
    image_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    image_tuning_epochs: int = 5
    image_train: int | None = None
    image_test: int | None = None


SCALES = {
    "smoke": Settings(epochs=5, small_steps=5, grid_seeds=0),
    "default": Settings(),
    "paper": Settings(seeds=10, images=("fashion-mnist",)),
}

GOAL = 0.1  # training loss, half the squared error summed over classes
LOOKS = 4  # an epoch
LONGER = 4  # times as many epochs where products to the goal are counted
CLOSE = 5  # points from a method's own best that count as good
Cell = dict[str, float]


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    energy_falls(run)
    same_small_rate(settings, run)
    if settings.grid_seeds:
        along = run.checkpoint("grid", lambda: measured_grid(settings, run))
        run.metrics("grid", along)
        grid = along.query("step == step.max()")
        robustness(grid, settings, run)
        best_cells(grid, settings, run)
        products(along, settings, run)
    for name in settings.images:
        reference(name, settings, run)


def energy_falls(run: Run) -> None:
    """Small steps on the whole batch: every one lowers the free energy."""
    data = load("digits", seed=run.seed).flat()
    run.uses(data)
    net = mlp(
        data.features, 32, 32, data.classes, activation=nn.Tanh, generator=torch.Generator().manual_seed(run.seed)
    )
    rule = IncrementalPredictiveCoding(net.double(), squared_energy, steps=300, rate=0.05)
    rule.learn(data.x_train.double(), data.y_train, torch.optim.SGD(net.parameters(), lr=0.01))
    assert rule.last is not None
    energy = rule.last.energy.sum(1)
    rise = float(energy.diff().max() / energy[0])
    run.claim(
        "on the whole batch with small steps the free energy never rises: largest relative change",
        paper="each step is a partial step of expectation or maximisation on one bound",
        measured=rise,
        threshold="< 0 in all of 300 steps",
        holds=rise < 0,
        note=f"It falls from {float(energy[0]):.3f} to {float(energy[-1]):.3f}.",
    )


def same_small_rate(settings: Settings, run: Run) -> None:
    """Equal epochs at one small learning rate: more weight updates win."""
    cell = {"gamma": settings.small_gamma, "T": settings.small_steps, "rate": settings.small_rate}
    table = run.checkpoint("small-rate", lambda: raced(dict.fromkeys(("BP", "PC", "iPC"), cell), settings, run))
    run.metrics("small-rate", table)
    lead = paired_end(table, "iPC", "PC")
    run.claim(
        f"at equal epochs and the same small rate ({settings.small_rate:g}) iPC is ahead of PC",
        paper="more accurate on nearly all models and data (table; values not known)",
        measured=lead.mean,
        interval=lead.interval,
        unit="points",
        threshold="interval above 0",
        baseline=f"PC {end(table, 'PC'):.1f}%, BP {end(table, 'BP'):.1f}%, iPC {end(table, 'iPC'):.1f}%",
        holds=lead.above(0),
        note=f"By the number of updates alone: iPC makes {settings.small_steps} times as many. gamma "
        f"{settings.small_gamma:g}, T {settings.small_steps}, {settings.epochs} epochs.",
    )


def arm(name: str, steps: int) -> Callable[[dict[str, Tensor]], Backpropagating | Inferring | Incremental]:
    """Makes the rule of a name from the columns of a sweep."""
    if name == "BP":
        return lambda columns: Backpropagating()
    if name == "PC":
        return lambda columns: Inferring(steps, columns["gamma"], columns["gamma"])
    return lambda columns: Incremental(steps, columns["gamma"])


def swept(
    name: str,
    cells: list[Cell],
    seeds: range,
    data: Callable[[int], Dataset],
    epochs: int,
    settings: Settings,
    device: torch.device,
    probe: bool = False,
) -> pd.DataFrame:
    """One rule on cells that share T, all seeds at once; `probe` measures calibration and turned images too."""
    features, classes = data(seeds[0]).features, data(seeds[0]).classes
    a_pass = len(data(seeds[0]).x_train) // settings.batch
    table = sweep(
        cells,
        arm(name, int(cells[0]["T"])),
        lambda columns: StackedAdam(columns["rate"]),
        data,
        lambda generator: mlp(features, *settings.hidden, classes, activation=nn.Tanh, generator=generator),
        seeds=seeds,
        steps=epochs * a_pass,
        batch_size=settings.batch,
        every=max(1, a_pass // LOOKS),
        loss="squared",
        measure=rotated if probe else None,
        device=device,
    )
    return table.assign(rule=name)


def raced(
    cells: dict[str, Cell], settings: Settings, run: Run, *, epochs: dict[str, int] | None = None
) -> pd.DataFrame:
    """One cell a rule on the test split."""
    seeds = range(run.seed, run.seed + settings.seeds)
    calls = [
        partial(
            swept, name, [cell], seeds, digits, (epochs or {}).get(name, settings.epochs), settings, run.device, True
        )
        for name, cell in cells.items()
    ]
    return pd.concat(parallel(calls, jobs=run.jobs, track=run.track, label="rules"), ignore_index=True)


def digits(seed: int) -> Dataset:
    """Digits as vectors; the seed draws the split."""
    return load("digits", seed=seed).flat()


def validation(seed: int) -> Dataset:
    """The same without the test part."""
    return digits(seed).holdout(0.2, seed=seed)


def measured_grid(settings: Settings, run: Run) -> pd.DataFrame:
    """Every rule at every cell, on validation splits and seeds of their own."""
    seeds = range(run.seed + 1000, run.seed + 1000 + settings.grid_seeds)
    grids: list[tuple[str, list[Cell]]] = [("BP", [{"gamma": 0.0, "T": 0, "rate": rate} for rate in settings.rates])]
    for name, steps in product(("PC", "iPC"), settings.steps):
        cells = [{"gamma": gamma, "T": steps, "rate": rate} for gamma in settings.gammas for rate in settings.rates]
        grids.append((name, cells))
    calls = [
        partial(swept, name, cells, seeds, validation, settings.epochs, settings, run.device) for name, cells in grids
    ]
    return pd.concat(parallel(calls, jobs=run.jobs, track=run.track, label="parts of the grid"), ignore_index=True)


def robustness(grid: pd.DataFrame, settings: Settings, run: Run) -> None:
    """How much of the grid is good."""
    shares: dict[str, list[float]] = {}
    for name in ("PC", "iPC"):
        own = 100 * grid.query("rule == @name").pivot_table(
            index=["gamma", "T", "rate"], columns="seed", values="accuracy"
        ).to_numpy(dtype=float)
        shares[name] = (own >= own.max(axis=0) - CLOSE).mean(axis=0).tolist()
    lead = compare_paired(shares["iPC"], shares["PC"], scale=100)
    spreads = {name: spread_at_best_rate(grid, name) for name in ("PC", "iPC")}
    run.claim(
        "iPC is robust to gamma, T and the learning rate: its lead in the share of good settings",
        paper="robust, PC is not (heat maps)",
        measured=lead.mean,
        interval=lead.interval,
        unit="% of the settings",
        threshold=f"interval above 0; close: within {CLOSE} points of the method's best",
        baseline=f"PC: {100 * np.mean(shares['PC']):.0f}% of {len(settings.gammas) * len(settings.steps)} x "
        f"{len(settings.rates)} settings, iPC: {100 * np.mean(shares['iPC']):.0f}%",
        holds=lead.above(0),
        note="Spread over gamma and T at each one's best rate: "
        + ", ".join(f"{name} {spread:.1f} points at {rate:g}" for name, (rate, spread) in spreads.items())
        + ".",
    )
    run.table("grid", grid.pivot_table(index=["rule", "gamma", "T", "rate"], values="accuracy").reset_index())
    run.figure("grid", plot_grid(grid.query("rule != 'BP'"), rows="gamma", columns="T", panel="rate"))


def spread_at_best_rate(grid: pd.DataFrame, name: str) -> tuple[float, float]:
    """The rate of a rule's best cell, and the range of accuracy over gamma and T there, in points."""
    means = grid.query("rule == @name").pivot_table(index=["gamma", "T"], columns="rate", values="accuracy")
    values = 100 * means.to_numpy(dtype=float)
    column = int(values.max(axis=0).argmax())
    return float(means.columns[column]), float(np.ptp(values[:, column]))


def picked(grid: pd.DataFrame, name: str) -> Cell:
    """The cell with the best mean accuracy on validation."""
    settings = ["gamma", "T", "rate"]
    means = grid.query("rule == @name").pivot_table(index=settings, values="accuracy").reset_index()
    best = int(np.argmax(np.asarray(means["accuracy"])))
    return {setting: float(np.asarray(means[setting])[best]) for setting in settings}


def best_cells(grid: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Each rule at its own best cell, on fresh seeds and the test split."""
    cells = {name: picked(grid, name) for name in ("BP", "PC", "iPC")}
    table = run.checkpoint("best", lambda: raced(cells, settings, run))
    longer = run.checkpoint(
        "best-equal-updates",
        lambda: raced({"PC": cells["PC"]}, settings, run, epochs={"PC": settings.epochs * int(cells["iPC"]["T"])}),
    )
    run.metrics("best", pd.concat([table, longer.assign(rule="PC, as many updates")], ignore_index=True))
    shown = "; ".join(f"{name} {_words(name, cell)}: {end(table, name):.1f}%" for name, cell in cells.items())
    for label, rival in (("equal epochs", table), ("equal numbers of weight updates", longer)):
        both = pd.concat([table.query("rule == 'iPC'"), rival.query("rule == 'PC'")], ignore_index=True)
        lead = paired_end(both, "iPC", "PC")
        run.claim(
            f"at each one's best settings and {label} iPC is ahead of PC",
            paper="more accurate on nearly all models and data (table; values not known)",
            measured=lead.mean,
            interval=lead.interval,
            unit="points",
            threshold="interval above 0",
            baseline=f"PC: {end(rival, 'PC'):.1f}%",
            holds=lead.above(0),
            note=shown
            if rival is table
            else f"{shown}. PC then sees the samples {int(cells['iPC']['T'])} times as often.",
        )
    gap = paired_end(table, "BP", "iPC")
    run.claim(
        "at best settings iPC is close to backpropagation: its lag",
        paper="close to BP, better on small MLPs (table; values not known)",
        measured=gap.mean,
        interval=gap.interval,
        unit="points",
        threshold="interval below 1",
        baseline=f"BP: {end(table, 'BP'):.1f}%",
        holds=gap.below(1),
        note=shown,
    )
    last = pd.concat([last_rows(table), last_rows(longer).assign(rule="PC, as many updates")])
    columns = ["accuracy", "loss", "rotated", "ece", "ece_rotated"]
    run.table("best", last.pivot_table(index="rule", values=columns).reset_index())


def products(along: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Sequential matrix products to a training loss, each rule at the cell that needs fewest on validation seeds."""
    keys = ["rule", "gamma", "T", "rate", "seed"]
    groups = counted(along, settings).groupby(keys, sort=False)
    runs = groups.head(1).assign(
        products=[products_to_goal(rows) for _, rows in groups], missed=[not there(rows) for _, rows in groups]
    )
    mean = runs.pivot_table(index=keys[:-1], values=["products", "missed"]).reset_index()
    cells = {name: cheapest(mean.query("rule == @name")) for name in ("BP", "PC", "iPC")}
    longer = dict.fromkeys(cells, LONGER * settings.epochs)
    table = counted(run.checkpoint("cheapest", lambda: raced(cells, settings, run, epochs=longer)), settings)
    run.metrics("cheapest", table)
    seeds = sorted(set(table["seed"]))
    needed: dict[str, list[float]] = {name: [] for name in cells}
    for name, seed in product(cells, seeds):
        needed[name].append(products_to_goal(table.query(f"rule == '{name}' and seed == {seed}")))
    shown = "; ".join(f"{name} {_words(name, cell)}: {np.mean(needed[name]):.0f}" for name, cell in cells.items())
    for rival in ("PC", "BP"):
        saved = compare_paired(needed[rival], needed["iPC"])
        run.claim(
            f"iPC needs fewer sequential matrix products than {rival} to a training loss of {GOAL}: products saved",
            paper="fewer than PC and, with layers in parallel, than BP (figure)",
            measured=saved.mean,
            interval=saved.interval,
            unit="products",
            threshold="interval above 0",
            baseline=shown,
            holds=saved.above(0),
            note=f"With {len(settings.hidden) + 1} layers a batch costs BP 2 a layer, PC and iPC 2 a step, for "
            "their layers work in parallel; the forward start is not counted. Each rule at the settings that got there "
            "in most validation runs, with fewest; a test run that does not counts whole. Every batch starts anew: the "
            "error climbs down one layer a step, so the first layer has nothing to learn from in the first two steps.",
        )
    labels = {"x": "products", "value": "loss", "xlabel": "sequential matrix products", "ylabel": "training loss"}
    run.figure("matrix-products", plot_curves(table, goal=GOAL, log=True, **labels))


def counted(table: pd.DataFrame, settings: Settings) -> pd.DataFrame:
    """The table with the sequential matrix products so far."""
    layers = len(settings.hidden) + 1
    each = np.where(np.asarray(table["rule"]) == "BP", 2 * layers, 2 * np.asarray(table["T"], dtype=float))
    return table.assign(products=each * np.asarray(table["step"], dtype=float))


def cheapest(means: pd.DataFrame) -> Cell:
    """The cell that misses the goal in fewest runs; of those the one with the fewest products."""
    best = int(np.lexsort((np.asarray(means["products"]), np.asarray(means["missed"])))[0])
    return {setting: float(np.asarray(means[setting])[best]) for setting in ("gamma", "T", "rate")}


def products_to_goal(rows: pd.DataFrame) -> float:
    """Products of one run up to its first look below the goal; all of them where it never gets there."""
    counts, losses = (np.asarray(rows[name], dtype=float) for name in ("products", "loss"))
    return float(counts[losses <= GOAL].min(initial=counts.max()))


def there(rows: pd.DataFrame) -> bool:
    """Whether a run gets to the goal."""
    return bool(np.asarray(rows["loss"], dtype=float).min() <= GOAL)


def rotated(replicas: Replicas, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Calibration on the test part, and accuracy and calibration where the images are turned by 20 degrees."""
    angle = math.radians(20)
    turn = x.new_tensor([[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0]])
    side = math.isqrt(x.shape[-1])
    images = x.reshape(-1, 1, side, side)
    grid = affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    turned = grid_sample(images, grid, align_corners=False).reshape(x.shape)
    return {
        "ece": calibration_error(replicas.outputs(x), y),
        "rotated": replicas.accuracies(turned, y),
        "ece_rotated": calibration_error(replicas.outputs(turned), y),
    }


def calibration_error(outputs: Tensor, y: Tensor, bins: int = 10) -> Tensor:
    """Expected calibration error of every replica; outputs are taken as unnormalised probabilities, below 0 as 0."""
    positive = outputs.nan_to_num(0.0, 0.0, 0.0).clamp(min=1e-6)
    confidence, answer = (positive / positive.sum(-1, keepdim=True)).max(-1)
    right = (answer == y).to(outputs.dtype)
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = torch.zeros(len(outputs), bins, dtype=outputs.dtype, device=outputs.device)
    return gaps.scatter_add(1, place, right - confidence).abs().sum(1) / y.shape[-1]


def reference(name: str, settings: Settings, run: Run) -> None:
    """The reference configuration on images: leaky ReLU, squared error, AdamW, momentum on the activities."""
    if locate(name) is None:
        run.claim(
            f"on {name} iPC is close to backpropagation: its lag",
            holds=None,
            note=f"{name} is not on this machine: `neuropil data fetch {name}` gets it.",
        )
        return
    data = load(name).flat()
    run.uses(data)
    data = replace(data, x_train=2 * data.x_train - 1, x_test=2 * data.x_test - 1)
    subset = data.subset(settings.image_train, settings.image_test, seed=run.seed)
    makers: dict[str, Callable[..., LearningRule]] = {
        "BP": Backpropagation,
        "PC": partial(PredictiveCoding, steps=8, rate_own=0.5, rate_above=0.5),
        "iPC": partial(IncrementalPredictiveCoding, steps=8, rate=0.8, momentum=0.25),
    }
    sizes = (data.features, *settings.image_hidden, data.classes)
    arms = {
        name: Contender(
            lambda generator: mlp(*sizes, activation=nn.LeakyReLU, generator=generator),
            maker,
            optimizer=partial(torch.optim.AdamW, weight_decay=0.0116),
            schedule=partial(LambdaLR, lr_lambda=partial(warm_up_cosine, epochs=settings.image_epochs)),
        )
        for name, maker in makers.items()
    }
    options = {"loss_fn": squared_energy, "batch_size": settings.image_batch, "jobs": run.jobs, "track": run.track}
    arms = tune_rates(arms, subset, settings.image_rates, epochs=settings.image_tuning_epochs, **options)
    seeds = range(run.seed, run.seed + settings.image_seeds)
    table = run.checkpoint(name, lambda: compare(arms, subset, epochs=settings.image_epochs, seeds=seeds, **options))
    run.metrics(name, table)
    run.table(name, final_accuracies(table))
    for first, second, text, limit in (
        ("BP", "iPC", "iPC is close to backpropagation: its lag", 1.0),
        ("PC", "iPC", "iPC is not behind PC: its lag", 0.0),
    ):
        gap = compare_paired(_ends(table, first), _ends(table, second), scale=100)
        run.claim(
            f"on {name} {text}",
            paper="close to BP, ahead of PC (table; values not known)",
            measured=gap.mean,
            interval=gap.interval,
            unit="points",
            threshold=f"interval below {limit:g}",
            baseline=f"{first}: {100 * np.mean(_ends(table, first)):.1f}%",
            holds=gap.below(limit),
        )
    run.figure(name, plot_learning_curves(table))


def warm_up_cosine(epoch: int, epochs: int) -> float:
    """Factor on the rate: up over the first tenth, then a half cosine down to a tenth."""
    warm = max(1, epochs // 10)
    if epoch < warm:
        return (epoch + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (epoch - warm) / max(1, epochs - warm)))


def last_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Where every rule ends."""
    return table.sort_values(by="step").groupby(["rule", "seed"], sort=False, as_index=False).last()


def end(table: pd.DataFrame, name: str) -> float:
    """Mean accuracy of a rule at the end, percent."""
    return 100 * float(np.mean(last_rows(table).query("rule == @name")["accuracy"].to_numpy(dtype=float)))


def paired_end(table: pd.DataFrame, first: str, second: str) -> Comparison:
    """Two rules at the end, seed by seed, in points."""
    last = last_rows(table).sort_values(by="seed")
    columns = [last.query("rule == @name")["accuracy"].to_numpy(dtype=float) for name in (first, second)]
    return compare_paired(*columns, scale=100)


def _ends(table: pd.DataFrame, name: str) -> np.ndarray:
    last = table.query("rule == @name and epoch == epoch.max()").sort_values(by="seed")
    return last["accuracy"].to_numpy(dtype=float)


def _words(name: str, cell: Cell) -> str:
    inference = "" if name == "BP" else f"gamma {cell['gamma']:g}, T {cell['T']:g}, "
    return f"({inference}rate {cell['rate']:g})"
