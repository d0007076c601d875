"""Can errors travel back through synapses that mirror no forward synapse, and still teach like backpropagation?

Product feedback alignment sends each layer's error through an extra population: fixed random weights, then plastic ones
(Li Ji-An & Benna 2024). Only the product of the two aligns with the forward weights. The study trains it beside
backpropagation, feedback alignment, Kolen-Pollack, direct feedback and a net of random features, shallow and deep, each
at its own rate; looks at the angle between feedback and forward weights, where weight decay has had time to align them
and where there is none; and thins the feedback out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from torch import nn
from torch.optim.lr_scheduler import MultiStepLR

from neuropil.atlas import Run
from neuropil.data import Dataset, load
from neuropil.learning import (
    Backpropagation,
    Contender,
    LearningRule,
    compare,
    final_accuracies,
    mlp,
    plot_final_accuracies,
    plot_learning_curves,
    tune_rates,
)
from neuropil.learning.feedback import (
    DirectFeedbackAlignment,
    FeedbackAlignment,
    FeedbackRule,
    KolenPollack,
    ProductFeedbackAlignment,
    Shallow,
)
from neuropil.plotting import panels
from neuropil.statistics import compare_paired, paired

ALL = ("backpropagation", "feedback alignment", "direct feedback", "Kolen-Pollack", "PFA", "PFA-o", "last layer only")


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper"."""

    data: str = "digits"
    width: int = 64
    depths: tuple[int, ...] = (2, 6)
    seeds: tuple[int, ...] = (5, 5)
    expansions: tuple[int, ...] = (10, 10)
    epochs: int = 30
    batch_size: int = 32
    decay: float = 1e-3
    rates: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    tuning_epochs: int = 15
    tuning_seeds: int = 2
    aligning_decay: float = 5e-3
    aligning_rate: float = 0.05
    aligning_seeds: int = 5
    densities: tuple[float, ...] = (0.3, 0.1, 0.05)
    density_seeds: int = 5


SCALES = {
    "smoke": Settings(
        depths=(2,), seeds=(2,), expansions=(10,), epochs=10, rates=(0.05,), aligning_seeds=0, densities=()
    ),
    "default": Settings(),
    "paper": Settings(
        data="mnist",
        width=256,
        epochs=50,
        tuning_epochs=10,
        aligning_decay=1e-3,
        densities=(0.5, 0.3, 0.17, 0.1, 0.05),
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    run.uses(load(settings.data))
    tables = {}
    for depth, seeds, expansion in zip(settings.depths, settings.seeds, settings.expansions, strict=True):
        title = f"{depth} hidden layers"
        tables[title] = run.checkpoint(f"depth-{depth}", partial(trained, depth, seeds, expansion, settings, run))
        run.metrics(f"depth-{depth}", tables[title])
        run.table(f"depth-{depth}", final_accuracies(tables[title]))
        accuracy_claims(title, tables[title], settings, run)
    deepest = list(tables)[-1]
    angle_claims(deepest, tables[deepest], settings, run)
    aligned = None
    if settings.aligning_seeds:
        aligned = run.checkpoint("aligning", partial(aligning, settings, run))
        run.metrics("aligning", aligned)
        aligning_claims(aligned, settings, run)
    if settings.densities:
        thinned_out(tables[next(iter(tables))], settings, run)
    run.figure("accuracy", plot_final_accuracies(tables))
    figure, axes = panels(len(tables) + 1, size=(3.6, 2.9))
    for ax, (title, table) in zip(axes, tables.items(), strict=False):
        plot_learning_curves(table, ax)
        ax.set_title(title)
        ax.set_ylim(bottom=max(ax.get_ylim()[0], 60))
    plot_angles(axes[-1], tables[deepest] if aligned is None else aligned)
    run.figure("learning-and-angles", figure)


def digits(name: str, seed: int) -> Dataset:
    """The data of a seed."""
    return load(name, seed=seed).flat()


def sgd(parameters: Sequence[nn.Parameter], lr: float, *, decay: float) -> torch.optim.SGD:
    """The optimizer for which the alignment is proven."""
    return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=decay, fused=True)


def contender(
    rule: Callable[..., LearningRule], data: Dataset, depth: int, decay: float, epochs: int, settings: Settings
) -> Contender:
    """A rule on the study's net, its rate falling tenfold after seven tenths of the epochs."""
    sizes = (data.features, *[settings.width] * depth, data.classes)
    return Contender(
        lambda generator: mlp(*sizes, generator=generator),
        rule,
        max(settings.rates),
        partial(sgd, decay=decay),
        partial(MultiStepLR, milestones=[max(1, 7 * epochs // 10)], gamma=0.1),
    )


def rules(expansion: int) -> dict[str, Callable[..., LearningRule]]:
    """The method, its relatives and its controls."""
    return {
        "backpropagation": Backpropagation,
        "feedback alignment": FeedbackAlignment,
        "direct feedback": DirectFeedbackAlignment,
        "Kolen-Pollack": KolenPollack,
        "PFA": partial(ProductFeedbackAlignment, expansion=expansion),
        "PFA-o": partial(ProductFeedbackAlignment, expansion=1, orthogonal=True),
        "last layer only": Shallow,
    }


def angles(rule: LearningRule, _: Dataset) -> dict[str, float]:
    """Degrees between feedback and forward weights: of every layer, and their mean."""
    if not isinstance(rule, FeedbackRule):
        return {"angle": float("nan")}
    table = rule.weight_alignment()["angle"].to_numpy(dtype=float)
    return {"angle": float(table.mean()), **{f"layer {index + 1}": angle for index, angle in enumerate(table)}}


def trained(depth: int, seeds: int, expansion: int, settings: Settings, run: Run) -> pd.DataFrame:
    """Every rule at the rate of one grid that suits it on a validation split."""
    data = digits(settings.data, run.seed)
    spread = {"batch_size": settings.batch_size, "jobs": run.jobs, "track": run.track}
    chosen = {
        name: rule for name, rule in rules(expansion).items() if run.scale != "smoke" or name in ALL[:1] + ALL[4:5]
    }

    def arms(epochs: int) -> dict[str, Contender]:
        return {name: contender(rule, data, depth, settings.decay, epochs, settings) for name, rule in chosen.items()}

    final = arms(settings.epochs)
    if len(settings.rates) > 1:
        short = arms(settings.tuning_epochs)
        tuned = tune_rates(
            short,
            data,
            settings.rates,
            epochs=settings.tuning_epochs,
            seeds=range(run.seed, run.seed + settings.tuning_seeds),
            **spread,
        )
        final = {name: replace(arm, rate=tuned[name].rate) for name, arm in final.items()}
    return compare(
        final,
        partial(digits, settings.data),
        epochs=settings.epochs,
        seeds=range(run.seed, run.seed + seeds),
        measure=angles,
        keep_diverged=True,  # rivals may fail in depth: that is a result
        **spread,
    )


def accuracy_claims(title: str, table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """PFA beside backpropagation and beside feedback alignment."""
    deep = not title.startswith("2")
    margin = 3 if deep or run.scale == "smoke" else 2
    base = accuracy(table, "backpropagation")
    gap = paired(table, "backpropagation", "PFA", scale=100)
    worst = max(gap.differences)
    run.claim(
        f"PFA learns about as well as backpropagation: its lag ({title})",
        paper="PFA tracks backpropagation (its figures are not known to us)",
        measured=worst if run.scale == "smoke" else gap.mean,
        interval=None if run.scale == "smoke" else gap.interval,
        unit="points (worst seed)" if run.scale == "smoke" else "points",
        threshold=f"worst seed below {margin}"
        if run.scale == "smoke"
        else f"interval below {margin}; void if backpropagation itself is not above 95%",
        baseline=f"backpropagation: {base:.1f}%",
        holds=worst < margin if run.scale == "smoke" else gap.below(margin) if base > 95 else None,
        note=f"{gap.seed_by_seed()} {time_ratio(table)}",
    )
    if run.scale == "smoke" or not deep:
        return
    lead = paired(table, "PFA", "feedback alignment", scale=100)
    spread = 100 * last(table, "feedback alignment")["accuracy"].to_numpy(dtype=float).std(ddof=1)
    run.claim(
        f"in depth PFA leads on feedback alignment ({title})",
        paper="feedback alignment and direct feedback fall behind",
        measured=lead.mean,
        interval=lead.interval,
        unit="points",
        threshold="interval above 1",
        baseline=f"feedback alignment: {accuracy(table, 'feedback alignment'):.1f}% (s.d. over seeds {spread:.1f})",
        holds=lead.above(1) if base > 95 else None,
        note=lead.seed_by_seed(),
    )


def angle_claims(title: str, table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Feedback turns towards the forward weights."""
    if run.scale == "smoke":
        start, end = table.query("rule == 'PFA' and epoch == 0"), last(table, "PFA")
        layers = [column for column in table.columns if str(column).startswith("layer")]
        turned = (start[layers].to_numpy() - end[layers].to_numpy()).min()
        run.claim(
            "the product of the feedback weights turns towards the forward weights in every layer",
            measured=float(turned),
            unit="degrees (least of layers and seeds)",
            threshold="the angle falls in every layer and seed",
            holds=bool(turned > 0),
        )
        return
    nearer = compare_paired(last(table, "feedback alignment")["angle"], last(table, "PFA")["angle"])
    run.claim(
        f"PFA's feedback is nearer to the forward weights than feedback alignment's: difference of angles ({title})",
        paper="aligned to a small angle that depends on the expansion",
        measured=nearer.mean,
        interval=nearer.interval,
        unit="degrees",
        threshold="interval above 15, mean over layers",
        baseline=f"feedback alignment: {last(table, 'feedback alignment')['angle'].mean():.0f} degrees",
        holds=nearer.above(15),
        note=nearer.seed_by_seed(),
    )


def aligning(settings: Settings, run: Run) -> pd.DataFrame:
    """Two hidden layers with enough weight decay to forget the start (three time constants), and with none."""
    data, k = digits(settings.data, run.seed), settings.expansions[0]
    made = rules(k)
    names = {
        "PFA": (made["PFA"], settings.aligning_decay),
        "PFA-o": (made["PFA-o"], settings.aligning_decay),
        "feedback alignment": (made["feedback alignment"], settings.aligning_decay),
        "PFA without decay": (made["PFA"], 0.0),
    }
    arms = {
        name: replace(contender(rule, data, 2, decay, settings.epochs, settings), rate=settings.aligning_rate)
        for name, (rule, decay) in names.items()
    }
    return compare(
        arms,
        partial(digits, settings.data),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        seeds=range(run.seed, run.seed + settings.aligning_seeds),
        measure=angles,
        jobs=run.jobs,
        track=run.track,
    )


def aligning_claims(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Where the angle ends, per layer, and that weight decay is what brings it there."""
    layers = [column for column in table.columns if str(column).startswith("layer")]
    other = last(table, "feedback alignment")[layers].to_numpy()
    for name, limit, words in (("PFA-o", 15, "no angle is left in the limit"), ("PFA", 25, "about 17.5 for k = 10")):
        ends = last(table, name)[layers].to_numpy()
        run.claim(
            f"with weight decay the feedback of {name} aligns with the forward weights: largest angle of a layer",
            paper=words,
            measured=float(ends.max()),
            interval=(float(ends.min()), float(ends.max())),
            unit="degrees",
            threshold=f"below {limit} in every layer and seed (range)",
            baseline=f"feedback alignment: {other.min():.0f} to {other.max():.0f} degrees",
            holds=bool(ends.max() < limit),
        )
    without = compare_paired(last(table, "PFA without decay")["angle"], last(table, "PFA")["angle"])
    run.claim(
        "the alignment needs weight decay: the angle that PFA keeps without it, more than with it",
        paper="needed (tfa against tfawd)",
        measured=without.mean,
        interval=without.interval,
        unit="degrees",
        threshold="interval above 15, mean over layers",
        baseline=f"with decay {settings.aligning_decay:g}: {last(table, 'PFA')['angle'].mean():.1f} degrees",
        holds=without.above(15),
        note=without.seed_by_seed(),
    )


def thinned_out(dense: pd.DataFrame, settings: Settings, run: Run) -> None:
    """PFA with most of its feedback synapses missing."""
    data, k = digits(settings.data, run.seed), settings.expansions[0]
    rate = float(last(dense, "PFA")["rate"].iloc[0])
    arms = {
        f"density {density:g}": replace(
            contender(
                partial(ProductFeedbackAlignment, expansion=k, density=density),
                data,
                settings.depths[0],
                settings.decay,
                settings.epochs,
                settings,
            ),
            rate=rate,
        )
        for density in settings.densities
    }
    seeds = range(run.seed, run.seed + settings.density_seeds)
    table = run.checkpoint(
        "density",
        lambda: compare(
            arms,
            partial(digits, settings.data),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            seeds=seeds,
            measure=angles,
            jobs=run.jobs,
            track=run.track,
        ),
    )
    run.metrics("density", table)
    whole = dense.query("rule == 'PFA' and seed in @seeds").assign(rule="density 1")
    both = pd.concat([whole, table], ignore_index=True)
    run.table("density", final_accuracies(both))
    loss = paired(both, "density 1", "density 0.1", scale=100)
    run.claim(
        "PFA is robust to sparse feedback: what it loses with a tenth of its synapses",
        paper="robust down to a density of 0.05",
        measured=loss.mean,
        interval=loss.interval,
        unit="points",
        threshold="interval below 3",
        baseline=f"all synapses: {accuracy(both, 'density 1'):.1f}%",
        holds=loss.below(3),
        note=f"{loss.seed_by_seed()} " + ", ".join(f"{name}: {accuracy(both, name):.1f}%" for name in arms) + ".",
    )


def plot_angles(ax, table: pd.DataFrame) -> None:
    """Mean angle over layers against epochs."""
    for name, rows in table.groupby("rule", sort=False):
        curve = rows.pivot_table(index="epoch", columns="seed", values="angle")
        if not curve.empty:
            ax.plot(curve.index, curve.mean(axis=1), lw=1.6, label=str(name))
    ax.set_xlabel("epoch")
    ax.set_ylabel("angle to the forward weights (deg)")
    ax.set_title("2 hidden layers, more weight decay")
    ax.set_ylim(0, 125)
    ax.legend(frameon=False, fontsize=8)


def last(table: pd.DataFrame, rule: str) -> pd.DataFrame:
    """Rows of a rule after the last epoch, by seed."""
    return table.query("rule == @rule and epoch == epoch.max()").sort_values(by="seed")


def accuracy(table: pd.DataFrame, rule: str) -> float:
    """Mean accuracy of a rule after the last epoch, percent."""
    return 100 * float(last(table, rule)["accuracy"].to_numpy(dtype=float).mean())


def time_ratio(table: pd.DataFrame) -> str:
    """What a step of PFA costs, as text."""
    times = final_accuracies(table).set_index("rule")["milliseconds"]
    return f"A step of PFA takes {times['PFA'] / times['backpropagation']:.1f} times that of backpropagation."
