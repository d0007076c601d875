"""Where do deep nets die when they are pruned before training, and does one factor a layer bring them back to life?

Scores w dL/dw follow the gradient: in a random net off the edge of chaos they run exponentially over its depth, and one
threshold for all empties a layer long before the net is sparse (Hayou et al. 2021). Pruning takes variance out of the
layers that stay; the paper gives it back by one factor a layer, computed from the weights alone ("moment"), as if the
masks knew nothing of the signal. Beside it stands a factor measured on a batch ("data"), and masks that know more and
less of the signal: random ones, the largest weights of each layer, and the paper's own w dL/dw. For residual nets the
paper divides every branch by the square root of the depth.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from neuropil.atlas import Run
from neuropil.data import load
from neuropil.parallel import parallel
from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import compare_paired, t_interval, within
from neuropil.structure.chaos import edge_of_chaos, mean_field
from neuropil.structure.collapse import sbp_bound
from neuropil.studies.structure._columns import means, numbers
from neuropil.studies.structure._pruning_init import (
    MASKS,
    homogeneous,
    score_profile,
    train_pruned,
    train_residual,
)

SIGMA_B = 0.2  # of the tanh nets
QUOTED = {0.05: 1.1225, 0.1: 1.1934, 0.2: 1.3041, 0.3: 1.3956, 0.5: 1.5497}  # tanh's edge, from Gauss-Hermite
RESCALES = ("none", "moment", "data")
ALL_SEEDS = "in all seeds"
WHERE = {
    "ordered": "in the ordered phase the layers' log mean squared scores rise by -log chi a layer",
    "edge": "at the edge they are level",
    "chaotic": "in the chaotic phase they fall by log chi a layer",
}
# Found by looking at the mean square of the signal layer by layer, with and without the factor.
REASONS = {
    "moment": "Weights with a large w dL/dw lie on paths that carry the signal: with {kept:g}% of them the logits "
    "still have {none:.2g} of their mean square, though every layer has lost most of its second moment. A factor that "
    "gives it back, as if masks knew nothing of the signal, multiplies the signal {growth:.1f}-fold a layer.",
    "data": "These masks keep the signal by themselves: there is nothing that a factor has to bring back.",
}
TUNING = 1000  # seeds from here on choose the rate of the plain residual net, on held-out training samples


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper"."""

    data: str = "mnist"
    train: int | None = 20_000
    test: int | None = None
    batch_size: int = 100
    scored: int = 512
    # scores at the start
    score_depth: int = 30
    score_width: int = 200
    score_seeds: int = 5
    # pruned and rescaled; claims are on the first depth and density
    depths: tuple[int, ...] = (20,)
    width: int = 100
    densities: tuple[float, ...] = (0.1,)
    epochs: int = 2
    rate: float = 1e-3
    seeds: int = 3
    # residual nets
    residual: str = "mlp"
    residual_data: str = "mnist"
    residual_train: int | None = 5_000
    residual_test: int | None = None
    residual_depth: int = 32
    residual_width: int = 64
    residual_density: float = 0.02
    residual_epochs: int = 2
    residual_rates: tuple[float, ...] = (1e-3, 1e-5, 1e-4, 1e-2, 1e-1)  # scaled branches have the first
    residual_tuning: int = 2
    residual_seeds: int = 3


SCALES = {
    "smoke": Settings(data="digits", train=None, seeds=0, residual_seeds=0),
    "default": Settings(),
    # CIFAR is not among the library's data: Fashion-MNIST takes its place, in convolutional residual nets.
    "paper": Settings(
        train=None,
        score_depth=100,
        score_width=100,
        depths=(100, 20, 40, 60, 80),
        densities=(0.1, 0.3, 0.2, 0.05),
        epochs=10,
        seeds=5,
        residual="conv",
        residual_data="fashion-mnist",
        residual_train=None,
        residual_depth=50,
        residual_width=32,
        residual_density=0.02,
        residual_epochs=30,
        residual_seeds=5,
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    exact(settings, run)
    run.uses(load(settings.data))
    slopes(settings, run)
    if settings.seeds:
        rescaling(settings, run)
    if settings.residual_seeds:
        run.uses(load(settings.residual_data))
        residual(settings, run)


def exact(settings: Settings, run: Run) -> None:
    """What is true of any net, to rounding."""
    worst = max(abs(edge_of_chaos("tanh", sigma_b) - sigma_w) for sigma_b, sigma_w in QUOTED.items())
    worst = max(worst, abs(edge_of_chaos("relu") - math.sqrt(2)))
    run.claim(
        "the edge of chaos: sqrt 2 for ReLU, five points of tanh's curve by another quadrature: largest difference",
        measured=worst,
        threshold="< 1e-4",
        holds=worst < 1e-4,
    )
    apart, moved = homogeneous(8, 40, (0.3, 1.7), run.seed)
    run.claim(
        "in a ReLU net without biases every layer has the same sum of w dL/dw: largest relative difference",
        measured=apart,
        threshold="< 1e-9",
        holds=apart < 1e-9,
    )
    run.claim(
        "there, a factor on all weights multiplies all scores w dL/dw alike: largest relative difference",
        measured=moved,
        threshold="< 1e-9",
        holds=moved < 1e-9,
        note="At a given gradient at the output, so ReLU nets without biases have the same masks on and off their "
        "edge: the collapse is looked for in tanh nets.",
    )
    chi = mean_field("tanh", 1.0, SIGMA_B).chi
    shallow, deep = (sbp_bound(chi, depth, settings.score_width) for depth in (settings.score_depth, 5000))
    run.table(
        "bound",
        pd.DataFrame(
            {
                "depth": [settings.score_depth, 5000],
                "width": settings.score_width,
                "chi": chi,
                "critical sparsity at most": [shallow, deep],
            }
        ),
    )


def points() -> dict[str, float]:
    """sigma_w of the tanh nets, by phase."""
    return {"ordered": 1.0, "edge": edge_of_chaos("tanh", SIGMA_B), "chaotic": 2.0}


def slopes(settings: Settings, run: Run) -> None:
    """How scores run over depth, and when the first layer is empty."""
    data, seeds = (settings.data, settings.train, settings.test), range(run.seed, run.seed + settings.score_seeds)
    size = (settings.score_depth, settings.score_width, settings.scored)

    def compute() -> pd.DataFrame:
        calls = [
            partial(score_profile, data, phase, sigma_w, SIGMA_B, *size, seed)
            for phase, sigma_w in points().items()
            for seed in seeds
        ]
        return pd.DataFrame(parallel(calls, jobs=run.jobs, track=run.track, label="scores"))

    table = run.checkpoint("scores", compute)
    run.table("scores", table.drop(columns="squares").round(4))
    setting = f"tanh, depth {settings.score_depth}, width {settings.score_width}, {len(seeds)} seeds"
    for phase, sigma_w in points().items():
        found = numbers(table, "slope", phase=phase)
        theory = -math.log(mean_field("tanh", sigma_w, SIGMA_B).chi)
        at = phase == "edge"
        low, high = sorted((0.7 * theory, 1.3 * theory)) if not at else (-0.08, 0.08)
        run.claim(
            f"{WHERE[phase]}: slope over depth",
            paper=f"-log chi = {theory + 0:.3f}",
            measured=float(found.mean()),
            interval=t_interval(found),
            unit="log of the mean squared score a layer",
            threshold=f"interval within {low:.3f} and {high:.3f}",
            holds=within(t_interval(found), (low, high)),
            note=f"{setting}. Seed by seed: {', '.join(f'{slope:.3f}' for slope in found)}.",
        )
    critical = {phase: numbers(table, "critical", phase=phase) for phase in ("ordered", "edge", "chaotic")}
    bound = sbp_bound(mean_field("tanh", points()["ordered"], SIGMA_B).chi, settings.score_depth, settings.score_width)
    lead = float((critical["edge"] - np.maximum(critical["ordered"], critical["chaotic"])).min())
    run.claim(
        "at the edge the first layer is empty only at a larger sparsity than off it, on either side: smallest lead",
        paper="off the edge a layer is emptied early, at the edge not",
        measured=100 * lead,
        unit="points of sparsity (worst seed)",
        threshold=f"above 0 {ALL_SEEDS}",
        holds=lead > 0,
        note="; ".join(
            f"{phase}: {', '.join(f'{100 * one:.2f}' for one in found)}%" for phase, found in critical.items()
        )
        + f". The paper's bound at this depth and width is {100 * bound:.0f}%.",
    )
    profile_figure(table, run)


def profile_figure(table: pd.DataFrame, run: Run) -> None:
    """Mean squared scores over depth."""
    figure, (ax, right) = panels(2)
    for colour, (phase, sigma_w) in zip(COLOURS, points().items(), strict=False):
        lines = np.array([[float(one) for one in row.split()] for row in table.loc[table["phase"] == phase, "squares"]])
        lines = lines / np.exp(np.log(lines).mean(axis=1, keepdims=True))
        layers = np.arange(2, lines.shape[1] + 2)
        mean = np.exp(np.log(lines).mean(axis=0))
        ax.plot(layers, lines.T, color=colour, lw=0.5, alpha=0.3)
        ax.plot(layers, mean, color=colour, lw=1.6, label=f"{phase}, $\\sigma_w$ = {sigma_w:.4g}")
        theory = -math.log(mean_field("tanh", sigma_w, SIGMA_B).chi) * (layers - layers.mean())
        ax.plot(layers, np.exp(theory), color=colour, lw=0.9, ls=":")
        critical = numbers(table, "critical", phase=phase)
        place = list(points()).index(phase)
        right.plot(np.full(len(critical), place), 100 * critical, "o", ms=4, color=colour, alpha=0.6, mew=0)
    ax.set_yscale("log")
    ax.set_xlabel("layer")
    ax.set_ylabel("mean squared score (1 on average)")
    ax.plot([], [], color=GREY, lw=0.9, ls=":", label="theory")
    ax.legend(frameon=False, fontsize=7)
    right.set_xticks(range(3), list(points()), fontsize=8)
    right.set_xlim(-0.5, 2.5)
    right.set_ylabel("sparsity that empties a layer (%)")
    run.figure("scores", figure)


def rescaling(settings: Settings, run: Run) -> None:
    """Pruned ReLU nets at their edge, with and without a factor a layer."""
    s, seeds = settings, range(run.seed, run.seed + settings.seeds)
    how: dict[str, Any] = {
        "epochs": s.epochs,
        "batch_size": s.batch_size,
        "rate": s.rate,
        "scored": s.scored,
    }
    arms = [("none", "none"), *((masks, rescale) for masks in MASKS for rescale in RESCALES)]
    calls: list[Callable[[], dict]] = [
        partial(train_pruned, (s.data, s.train, s.test), depth, s.width, density, *arm, **how, seed=seed)
        for seed in seeds
        for depth in s.depths
        for density in s.densities
        for arm in arms
        if arm[0] != "none" or density == s.densities[0]
    ]
    table = run.checkpoint(
        "rescaling", lambda: pd.DataFrame(parallel(calls, jobs=run.jobs, track=run.track, label="pruned nets"))
    )
    run.metrics("rescaling", table)
    first = {"depth": s.depths[0], "density": s.densities[0]}
    summary = means(table, ("depth", "density", "masks", "rescale"), ("accuracy", "signal"))
    run.table("rescaling", summary.rename(columns={"signal": "logits, mean square over the dense net's"}))
    rescaling_claims(partial(numbers, table, **first), s, run)
    rescaling_figure(partial(numbers, table, "accuracy", **first), s, run)
    if len(s.depths) > 1 or len(s.densities) > 1:
        maps_figure(summary, s, run)


def rescaling_claims(column: Callable[..., np.ndarray], settings: Settings, run: Run) -> None:
    """What the factor is worth, by mask; `column` gives a value by seed."""
    dense = column("accuracy", masks="none").mean()
    setting = (
        f"ReLU, depth {settings.depths[0]}, width {settings.width}, {100 * (1 - settings.densities[0]):g}% removed"
    )
    wanted = [
        (
            "random",
            "moment",
            "none",
            30.0,
            "random masks: the paper's factor makes a deep net trainable, over no factor",
        ),
        ("magnitude", "moment", "none", 0.0, "the largest weights of each layer: the paper's factor against none"),
        ("w dL/dw", "moment", "none", 0.0, "masks by w dL/dw: the paper's factor against none"),
        ("w dL/dw", "data", "none", 0.0, "masks by w dL/dw: a factor measured on data against none"),
        ("w dL/dw", "data", "moment", 0.0, "masks by w dL/dw: a factor measured on data against the paper's"),
    ]
    for masks, first, second, threshold, text in wanted:
        ours, theirs = (column("accuracy", masks=masks, rescale=rescale) for rescale in (first, second))
        gap = compare_paired(ours, theirs, scale=100)
        signal = {rescale: column("signal", masks=masks, rescale=rescale).mean() for rescale in RESCALES}
        known = not gap.above(threshold) and masks == "w dL/dw" and second == "none"
        growth = (signal["moment"] / signal["none"]) ** (1 / (settings.depths[0] + 1))
        why = REASONS[first].format(kept=100 * settings.densities[0], growth=growth, **signal) if known else ""
        run.claim(
            text,
            paper="the factor makes nets trainable that are stuck without it",
            measured=gap.mean,
            interval=gap.interval,
            unit="points",
            threshold=f"interval above {threshold:g}",
            baseline=f"{100 * theirs.mean():.1f}%; dense {100 * dense:.1f}%",
            holds=gap.above(threshold),
            note=f"{setting}. {gap.seed_by_seed()} Mean square of the logits before training, over the dense net's: "
            + ", ".join(f"{rescale} {signal[rescale]:.2g}" for rescale in RESCALES)
            + f". {why}",
        )


def rescaling_figure(accuracies: Callable[..., np.ndarray], settings: Settings, run: Run) -> None:
    """A dot a seed."""
    figure, axes = panels(len(MASKS), size=(2.6, 2.7))
    dense = 100 * accuracies(masks="none").mean()
    for ax, masks in zip(axes, MASKS, strict=True):
        for place, rescale in enumerate(RESCALES):
            found = 100 * accuracies(masks=masks, rescale=rescale)
            ax.plot(np.full(len(found), place), found, "o", ms=4, color=COLOURS[place], alpha=0.5, mew=0)
            ax.plot([place], [found.mean()], "_", ms=18, mew=1.6, color=COLOURS[place])
        ax.axhline(dense, color=GREY, lw=0.8, ls=":")
        ax.set_xticks(range(len(RESCALES)), RESCALES, fontsize=8)
        ax.set_xlim(-0.5, 2.5)
        ax.set_ylim(0, 102)
        ax.set_title(masks)
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].text(-0.45, dense + 1, "dense", fontsize=7, color=GREY)
    axes[1].set_xlabel("factor a layer")
    run.figure("rescaling", figure)


def maps_figure(summary: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Mean accuracy by depth and density."""
    figure, axes = panels(len(RESCALES), len(MASKS), size=(2.6, 2.2))
    depths, densities = sorted(settings.depths), sorted(settings.densities)
    for index, ax in enumerate(axes):
        masks, rescale = list(MASKS)[index // len(RESCALES)], RESCALES[index % len(RESCALES)]
        found = {
            (depth, density): accuracy
            for depth, density, *arm, accuracy, _ in summary.itertuples(index=False, name=None)
            if arm == [masks, rescale]
        }
        grid = [[100 * found[depth, density] for density in densities] for depth in depths]
        ax.imshow(grid, vmin=10, vmax=100, origin="lower", aspect="auto", cmap="viridis")
        ax.set_xticks(range(len(densities)), [f"{100 * (1 - density):g}" for density in densities])
        ax.set_yticks(range(len(depths)), [str(depth) for depth in depths])
        ax.set_title(f"{masks}, {rescale}", fontsize=8)
    axes[0].set_ylabel("depth")
    axes[-2].set_xlabel("removed (%)")
    run.figure("maps", figure)


def residual(settings: Settings, run: Run) -> None:
    """Residual nets with plain and with scaled branches, dense and pruned."""
    s = settings
    data = (s.residual_data, s.residual_train, s.residual_test)
    shape = (data, s.residual, s.residual_depth, s.residual_width)
    how: dict[str, Any] = {"epochs": s.residual_epochs, "batch_size": s.batch_size, "scored": s.scored}

    def compute() -> pd.DataFrame:
        seeds = range(run.seed + TUNING, run.seed + TUNING + s.residual_tuning)
        tried = [
            partial(train_residual, *shape, False, 1.0, **how, rate=rate, seed=seed, held_out=True)
            for rate in s.residual_rates
            for seed in seeds
        ]
        rows = pd.DataFrame(parallel(tried, jobs=run.jobs, track=run.track, label="rates of the plain net"))
        best = max(s.residual_rates, key=lambda rate: numbers(rows, "accuracy", rate=rate).mean())
        rates = {False: best, True: s.residual_rates[0]}
        calls = [
            partial(train_residual, *shape, stable, density, **how, rate=rates[stable], seed=seed)
            for seed in range(run.seed, run.seed + s.residual_seeds)
            for stable in (False, True)
            for density in (1.0, s.residual_density)
        ]
        return pd.DataFrame(parallel(calls, jobs=run.jobs, track=run.track, label="residual nets"))

    table = run.checkpoint("residual", compute)
    run.metrics("residual", table)
    run.table("residual", means(table, ("branch", "density", "rate"), ("growth", "accuracy")))
    residual_claims(table, s, run)


def residual_claims(table: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Growth, and accuracy."""
    blocks = settings.residual_depth
    found = {branch: numbers(table, "growth", branch=branch, density=1.0) for branch in ("1", "1/sqrt L")}
    low, high = blocks - 3, blocks + 1
    logs = np.log2(found["1"])
    run.claim(
        "plain residual branches: the signal's mean square doubles a block, from the first to the last",
        paper=f"2^{blocks - 1}",
        measured=float(logs.mean()),
        interval=t_interval(logs),
        unit="log2 of the growth",
        threshold=f"between {low} and {high} {ALL_SEEDS}",
        holds=bool(((logs > low) & (logs < high)).all()),
    )
    run.claim(
        "branches divided by the square root of the depth: the signal grows less than e-fold",
        paper="below e",
        measured=float(found["1/sqrt L"].mean()),
        interval=t_interval(found["1/sqrt L"]),
        unit="growth of the mean square",
        threshold=f"below 6 {ALL_SEEDS}",
        holds=bool((found["1/sqrt L"] < 6).all()),
    )
    for density in (1.0, settings.residual_density):
        plain, stable = (numbers(table, "accuracy", branch=branch, density=density) for branch in found)
        rates = [numbers(table, "rate", branch=branch)[0] for branch in found]
        gap = compare_paired(stable, plain, scale=100)
        what = "dense" if density == 1 else f"pruned to {100 * density:g}% by w dL/dw"
        run.claim(
            f"{what}, {blocks} residual blocks without norms learn better with scaled branches",
            paper="stable nets train at any depth",
            measured=gap.mean,
            interval=gap.interval,
            unit="points",
            threshold="interval above 0",
            baseline=f"plain branches {100 * plain.mean():.1f}%, at the rate {rates[0]:g} "
            f"chosen for them dense among {', '.join(f'{rate:g}' for rate in settings.residual_rates)}",
            holds=gap.above(0),
            note=f"{100 * stable.mean():.1f}% with scaled branches, at rate {rates[1]:g}. {gap.seed_by_seed()}",
        )
