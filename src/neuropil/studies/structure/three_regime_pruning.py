"""Should a net that will be pruned be trained hotter or colder, and do two measures of its landscape tell which?

Temperature is the noise of dense training: here fewer epochs are hotter. Load is how much is pruned. The paper (Zhou et
al. 2023) finds that heat helps at one end of the load and hurts at the other, and that two measures of nets that were
pruned and retrained twice tell where one is: whether the line between them is free of a barrier (LMC), and whether
they answer alike (CKA). A fifth of the training labels is random, so that training longer has a cost. Retraining comes
in two recipes, gentle and hot, since a gentle one never leaves the basin from which it starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

from neuropil.atlas import Run
from neuropil.data import load
from neuropil.learning.networks import mlp
from neuropil.parallel import parallel
from neuropil.probes.similarity import similarity
from neuropil.statistics import below, t_interval
from neuropil.structure.landscape.connectivity import mode_connectivity
from neuropil.structure.landscape.diagram import By, PhaseDiagram, Table
from neuropil.structure.landscape.phases import phase_diagram
from neuropil.structure.weightspace.interpolation import loss_barrier
from neuropil.studies.structure._phase_pictures import draw_phases
from neuropil.studies.structure._pruned_nets import (
    error_of,
    gauges_of,
    hidden_weights,
    make_net,
    noisy_data,
    train_checkpoints,
    train_masked,
)

# Found by looking: the moves of the hot retrainings of seeds 0 and 1, and this scale without wrong labels, 3 seeds.
REASONS = {
    "sign": "Wrong labels make heat help at every load: longer training learns them by heart. The lead of 1 over "
    "5 epochs fades as the load grows and does not turn. Without wrong labels nothing turns either: "
    "colder training helps or makes no difference (hot retraining, 25 against 5 epochs: 4.2 [1.8, 6.5] "
    "points at density 0.5, 0.5 [-1.7, 2.8] at 0.01).",
    "load": "The fewer weights remain, the more two retrainings move together: after the hot one the mean cosine "
    "of their moves is 0.51 at density 0.5 and 0.91 at 0.01, the gap between them 0.73 and 0.32 of their "
    "length (seeds 0 and 1). What barriers there are stand at low load, behind the noisiest dense "
    "training.",
    "choice": "Where there is no barrier LMC is above 0 and says how much the mean of two nets improves on them, "
    "which is most where retraining was noisiest, not where the error is least.",
    "advice": "Outputs that are not alike ask for colder training, which learns the wrong labels. Without wrong "
    "labels no move is advised after gentle retraining, and 2 of 3 are right after hot.",
}
BY: tuple[By, ...] = ("lmc", "cka", "dense_error", "error")


@dataclass(frozen=True)
class Recipe:
    """A grid of dense epochs and densities, and how to retrain.

    `drops`: epochs of retraining after which the rate falls to a tenth.
    """

    epochs: tuple[int, ...]
    densities: tuple[float, ...]
    rate: float
    retrain_epochs: int
    drops: tuple[int, ...] = ()


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; `width` of a PreResNet-20, None for a multi-layer perceptron with the `hidden` layers.

    `noise`: fraction of the training labels that is random; `seeds` and `retrain_seeds`: dense trainings, and
    retrainings of each; `tolerance` and `alike`: cut-offs of the regimes, points of error and fraction of the largest
    CKA.
    """

    data: str = "mnist"
    train: int | None = 2000
    test: int | None = 2000
    noise: float = 0.2
    hidden: tuple[int, ...] = (64, 64)
    width: int | None = None
    rate: float = 0.05
    decay: float = 0.0
    batch_size: int = 64
    dense_drops: tuple[int, ...] = ()
    recipes: tuple[tuple[str, Recipe], ...] = (
        ("gentle", Recipe((1, 5, 25), (0.5, 0.05, 0.01), rate=0.05, retrain_epochs=5)),
        ("hot", Recipe((1, 5, 25), (0.5, 0.05, 0.01), rate=0.1, retrain_epochs=20)),
    )
    compared: int = 2000
    tolerance: float = 1.0
    alike: float = 0.9
    seeds: int = 6
    retrain_seeds: int = 2


SCALES = {
    "smoke": Settings(
        data="digits",
        train=400,
        test=200,
        hidden=(24,),
        recipes=(("gentle", Recipe((1, 10), (0.5, 0.1), rate=0.05, retrain_epochs=2)),),
        seeds=1,
    ),
    "default": Settings(),
    # CIFAR-10 is not among the library's data: Fashion-MNIST takes its place, with the net and schedule of the code.
    "paper": Settings(
        data="fashion-mnist",
        train=None,
        test=None,
        noise=0.0,
        width=16,
        rate=0.1,
        decay=1e-4,
        dense_drops=(80, 120),
        recipes=(
            (
                "the paper's",
                Recipe(
                    tuple(range(10, 170, 10)),
                    (0.8, 0.4, 0.2, 0.14, 0.1, 0.08, 0.07, 0.06, 0.05),
                    rate=0.1,
                    retrain_epochs=160,
                    drops=(80, 120),
                ),
            ),
        ),
        compared=5000,
        seeds=3,
        retrain_seeds=3,
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    limits(settings, run)
    run.uses(load(settings.data))
    cells = [(name, recipe, seed) for name, recipe in settings.recipes for seed in _seeds(settings, run)]
    calls = [partial(measured, recipe, seed, settings, run.device) for _, recipe, seed in cells]

    def compute() -> pd.DataFrame:
        tables = parallel(calls, jobs=run.jobs, track=run.track, label="recipes and dense seeds")
        named = [table.assign(recipe=name) for (name, _, _), table in zip(cells, tables, strict=True)]
        return pd.concat(named, ignore_index=True)

    whole = run.checkpoint("phases", compute)
    run.metrics("phases", whole)
    diagrams = {name: PhaseDiagram(whole[whole["recipe"] == name]) for name, _ in settings.recipes}
    for name, diagram in diagrams.items():
        run.table(
            f"regimes-{name.replace(' ', '-').replace(chr(39), '')}",
            diagram.regimes(settings.tolerance, settings.alike),
        )
    if run.scale == "smoke":
        shapes(diagrams, settings, run)
    else:
        for name, diagram in diagrams.items():
            sign_claim(name, diagram, run)
            load_claim(name, diagram, run)
            choice_claim(name, diagram, run)
            advice_claim(name, diagram, settings, run)
    run.figure("phases", draw_phases(diagrams))


def _seeds(settings: Settings, run: Run) -> Sequence[int]:
    return range(run.seed, run.seed + settings.seeds)


def limits(settings: Settings, run: Run) -> None:
    """What connectivity and similarity must be of a net with itself, and with its copy whose units are permuted."""
    data = noisy_data("digits", 300, 100, 0.0, run.seed, images=False)
    net = mlp(data.features, 32, data.classes, generator=torch.Generator().manual_seed(run.seed))
    options = {"rate": 0.1, "decay": 0.0, "batch_size": 50, "drops": (), "seed": run.seed}
    net = train_checkpoints(data, net, [10], **options)[10]
    copy = mlp(data.features, 32, data.classes, generator=torch.Generator().manual_seed(run.seed))
    order = torch.arange(32).roll(7)
    copy.load_state_dict(
        {
            "0.weight": net.get_parameter("0.weight")[order],
            "0.bias": net.get_parameter("0.bias")[order],
            "2.weight": net.get_parameter("2.weight")[:, order],
            "2.bias": net.get_parameter("2.bias"),
        }
    )
    error = partial(error_of, x=data.x_train, y=data.y_train)
    batches = data.x_train.split(100)
    itself, permuted = mode_connectivity(net, net, error), mode_connectivity(net, copy, error)
    alike = [similarity(net, other, batches) for other in (net, copy)]
    run.claim(
        "a net is connected to itself and like itself: size of LMC, and 1 - CKA, the larger",
        measured=max(abs(itself.value), 1 - alike[0]),
        threshold="< 1e-6",
        holds=max(abs(itself.value), 1 - alike[0]) < 1e-6,
    )
    run.claim(
        "its copy with permuted units answers alike, 1 - CKA, across a barrier",
        measured=1 - alike[1],
        threshold="1 - CKA < 1e-6 and LMC below -1 point",
        holds=1 - alike[1] < 1e-6 and permuted.value < -1,
        note=f"LMC {permuted.value:.1f} points of training error; barrier {permuted.barrier:.1f}.",
    )
    gap = abs(loss_barrier(net, copy, error, 11).barrier - permuted.barrier)
    run.claim(
        "the barrier of the connectivity is that of the weight space: difference",
        measured=gap,
        threshold="exactly 0",
        holds=gap == 0,
    )


def measured(recipe: Recipe, seed: int, settings: Settings, device: torch.device) -> pd.DataFrame:
    """The diagram of one dense seed, whose epochs are checkpoints of one training."""
    images = settings.width is not None
    data = noisy_data(settings.data, settings.train, settings.test, settings.noise, seed, images).to(device)
    net = make_net(data, settings.hidden, settings.width, seed).to(device)
    common = {"decay": settings.decay, "batch_size": settings.batch_size}
    dense = train_checkpoints(
        data, net, recipe.epochs, rate=settings.rate, drops=settings.dense_drops, seed=seed, **common
    )
    diagram = phase_diagram(
        lambda epochs, _: dense[epochs],
        sorted(recipe.epochs),  # fewer epochs are hotter
        recipe.densities,
        lambda net, masks, number: train_masked(
            data,
            net,
            masks,
            rate=recipe.rate,
            epochs=recipe.retrain_epochs,
            drops=recipe.drops,
            seed=1000 * (seed + 1) + number,
            **common,
        ),
        gauges_of(data, images, settings.compared),
        seeds=(seed,),
        retrain_seeds=range(settings.retrain_seeds),
        params=hidden_weights(net),
    )
    return diagram.table


def shapes(diagrams: dict[str, PhaseDiagram], settings: Settings, run: Run) -> None:
    """At smoke scale: every cell has its numbers."""
    for name, diagram in diagrams.items():
        cells = len(diagram.temperatures) * len(diagram.densities) * settings.seeds
        numbers = diagram.table[["dense_error", "error", "lmc", "cka", "agreement", "js"]].to_numpy(dtype=float)
        run.claim(
            f"every cell of the diagram has its measures: cells ({name} retraining)",
            measured=len(diagram.table),
            threshold=f"{cells}, all finite",
            holds=len(diagram.table) == cells and bool(np.isfinite(numbers).all()),
        )


def _listed(values: Sequence[float], digits: int = 1) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def _reason(name: str, run: Run) -> str:
    """What looking at the default scale told; another scale may have other reasons."""
    return REASONS[name] if run.scale == "default" else ""


def sign_claim(name: str, diagram: PhaseDiagram, run: Run) -> None:
    """Heat helps at one density and hurts at another."""
    effects = diagram.effects()
    steps = effects.groupby(["hotter", "colder"], sort=False)
    verdicts = {step: set(part["hotter_helps"]) for step, part in steps}
    flips = any({True, False} <= verdict for verdict in verdicts.values())
    one_sign = all(verdict in ({True}, {False}) for verdict in verdicts.values())
    wide = diagram.table.pivot_table(index="seed", columns=["density", "temperature"], values="error")
    low, high = diagram.densities[0], diagram.densities[-1]
    hot, cold = diagram.temperatures[0], diagram.temperatures[-1]
    turn = ((wide[high, hot] - wide[high, cold]) - (wide[low, hot] - wide[low, cold])).to_numpy(dtype=float)
    listed = "; ".join(
        f"density {row['density']:g}, {row['hotter']} against {row['colder']} epochs: {row['effect']:.1f} "
        f"[{row['low']:.1f}, {row['high']:.1f}]"
        for _, row in effects.iterrows()
    )
    run.claim(
        f"the effect of temperature turns its sign with the load ({name} retraining)",
        paper="sharp transition (Fig. 1 and 2)",
        measured=float(turn.mean()),
        interval=t_interval(turn),
        unit="points",
        threshold="for one step of temperature, two densities whose intervals exclude 0 on opposite sides; False if "
        "every interval excludes 0 on one side",
        holds=True if flips else False if one_sign else None,
        note=f"Measured is the effect of {hot} against {cold} epochs at density {high:g} minus that at {low:g}. Error "
        f"hotter minus error colder, interval over dense seeds: {listed}. {_reason('sign', run)}".strip(),
    )


def load_claim(name: str, diagram: PhaseDiagram, run: Run) -> None:
    """Connectivity is lost at high load."""
    wide = diagram.table.pivot_table(index="seed", columns="density", values="lmc")  # mean over temperatures
    low, high = diagram.densities[0], diagram.densities[-1]
    fall = (wide[high] - wide[low]).to_numpy(dtype=float)
    grid = diagram.grid("lmc")
    cells = "; ".join(
        f"{epochs} epochs {_listed(list(row))}" for epochs, row in zip(grid.index, grid.to_numpy(), strict=True)
    )
    run.claim(
        f"nets pruned most are connected worst: LMC at density {high:g} minus that at {low:g} ({name} retraining)",
        paper="regime I lies at high load",
        measured=float(fall.mean()),
        interval=t_interval(fall),
        unit="points of training error",
        threshold="interval below -1",
        holds=below(t_interval(fall), -1),
        note=f"LMC from density {low:g} to {high:g}: {cells}. Smallest CKA {diagram.table['cka'].min():.2f}. "
        f"{_reason('load', run)}".strip(),
    )


def choice_claim(name: str, diagram: PhaseDiagram, run: Run) -> None:
    """Choose what to prune by its connectivity instead of by its dense error."""
    errors: dict[By, Table] = {by: diagram.choices(by) for by in BY}
    means = {by: table.groupby("seed")["error"].mean().to_numpy(dtype=float) for by, table in errors.items()}
    loss = means["lmc"] - means["dense_error"]
    same = bool((errors["lmc"]["temperature"] == errors["dense_error"]["temperature"]).all())
    interval = t_interval(loss)
    run.claim(
        "the dense net chosen by the connectivity of its pruned self is as good after pruning as the one chosen by its "
        f"dense error: difference in error ({name} retraining)",
        paper="better than choosing by dense accuracy (case study)",
        measured=float(loss.mean()),
        interval=interval,
        unit="points",
        threshold="interval at most 0; undecided where both choose the same",
        baseline=f"error by choice: LMC {means['lmc'].mean():.1f}, CKA {means['cka'].mean():.1f}, dense error "
        f"{means['dense_error'].mean():.1f}, the best there is {means['error'].mean():.1f}",
        holds=None if same else True if interval[1] <= 0 else False if interval[0] > 0 else None,
        note=f"Seed by seed: {_listed(loss.tolist())}. {_reason('choice', run)}".strip(),
    )


def advice_claim(name: str, diagram: PhaseDiagram, settings: Settings, run: Run) -> None:
    """The rule that follows from the regimes, against what was measured one step away."""
    cells = [(density, label) for density in diagram.densities for label in diagram.temperatures]
    given = [diagram.advice(*cell, settings.tolerance, settings.alike) for cell in cells]
    moves = [advice for advice in given if advice.direction != "keep" and advice.confirmed is not None]
    right = sum(bool(advice.confirmed) for advice in moves)
    regimes = [advice.regime for advice in given]
    counts = ", ".join(f"{regime}: {regimes.count(regime)}" for regime in ("I", "II-A", "II-B"))
    kept = [advice for advice in given if advice.direction == "keep"]
    share = right / len(moves) if moves else None
    run.claim(
        f"moving as the regime advises lowers the error: share of the cells with a move to make ({name} retraining)",
        paper="the regimes tell the way (cut-offs are ours)",
        measured=share,
        threshold="above 0.5 in five cells or more with a move that was measured; fewer leave it undecided",
        baseline="a coin: 0.5",
        holds=None if share is None or len(moves) < 5 else share > 0.5,
        note=f"{right} of {len(moves)} moves were right. Cells by regime: {counts}. Where it says keep, no neighbour "
        f"was better in {sum(bool(advice.confirmed) for advice in kept)} of {len(kept)}. "
        f"{_reason('advice', run)}".strip(),
    )
