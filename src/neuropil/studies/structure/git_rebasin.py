"""Do two networks that were trained apart lie in one basin, once the units of one are in the order of the other's?

Hidden units may change places without changing what a network computes (Ainsworth, Hayase & Srinivasa 2022). Pairs of
networks are trained from other initial weights, on other orders of the data; then the units of B are matched to those
of A by activities, by weights, or by gradients through the matching, and the training loss is followed on the straight
line between the two. A random order of B, and pairs at the beginning of training, are the controls. What is compared is
the barrier relative to that between the networks as they were trained, since its height depends on their training.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.atlas import Run
from neuropil.data import load
from neuropil.parallel import parallel
from neuropil.statistics import below, t_interval
from neuropil.structure.graph import UnitGraph, trace_units
from neuropil.structure.weightspace.activation_matching import match_activations
from neuropil.structure.weightspace.interpolation import loss_barrier
from neuropil.structure.weightspace.matching import alignment, match_weights
from neuropil.structure.weightspace.permutations import Permutation
from neuropil.structure.weightspace.straight_through import match_straight_through
from neuropil.studies.structure._rebasin_nets import in_batches, mean_loss, network, train
from neuropil.studies.structure._rebasin_pictures import draw

ORDERS = 0x0DE25  # random orders, apart from the seeds of training
FROM_IDENTITY = "weights, from the identity"
Table = Any  # a pandas DataFrame
# Found by looking: the same pairs from smaller initial weights and after more epochs, and five more orders of pairs.
REASONS = {
    "weights": (
        "What is left comes from the initial weights, which no order of units can match: after 3 epochs they are 87% "
        "to 92% of the squared length of every layer but the first. Drawn with a third of the variance, as "
        "torch's own layers are, the same pairs keep 8.2%, 9.6%, 10.2% at width 64 and 2.3%, 1.9%, 3.6% at width 256; "
        "after 10 epochs the second and third keep 18.6% and 12.6% at width 64, the first 2.1% at width 256."
    ),
    "random": (
        "The order in which a network was trained is a random one itself, and that of the second pair of width 32 is "
        "an unlucky one: its barrier is 2.70 nats, those of the other two 1.89 and 1.70, and five more random orders "
        "leave 61% to 65% of it. Of the first pair they leave 100% to 124%, of the third 94% to 138%."
    ),
}


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths.

    `limits`: by width, the part of the barrier that weight matching may leave, `activation_limits` that activation
    matching may; `straight`: the width at which the straight-through estimator runs, by `steps` on batches of
    `batches` images; `watched`: the width whose barriers are measured during training, too; `warmup`: epochs before the
    rate's cosine, 0 for a constant rate. The scale "paper" has the paper's ResNet-20 with layer norms and its 250
    epochs; Fashion-MNIST takes the place of CIFAR-10, which is not among the house's data sets.
    """

    data: str = "mnist"
    kind: str = "mlp"
    depth: int = 3
    widths: tuple[int, ...] = (32, 64, 128, 256)
    limits: dict[int, float] = field(default_factory=lambda: {64: 0.25, 128: 0.25, 256: 0.10})
    activation_limits: dict[int, float] = field(default_factory=lambda: {64: 0.25, 128: 0.25, 256: 0.25})
    straight: int = 64
    watched: int = 64
    pairs: int = 3
    samples: int | None = 20_000
    measured: int = 5000
    points: int = 11
    epochs: int = 3
    batch_size: int = 128
    rate: float = 1e-3
    warmup: int = 0
    augment: bool = False
    steps: int = 300
    straight_rate: float = 3e-3  # of 1e-3, 3e-3 and 1e-2 the best on a pair of seed 100
    batches: int = 250


SCALES = {
    "smoke": Settings(
        data="digits",
        depth=2,
        widths=(64,),
        limits={},
        activation_limits={},
        straight=0,
        watched=64,
        pairs=1,
        samples=1000,
        measured=1000,
        epochs=6,
        batch_size=50,
    ),
    "default": Settings(),
    "paper": Settings(
        data="fashion-mnist",
        kind="residual",
        widths=(1, 2, 4, 8, 16, 32),
        limits={32: 0.10},
        activation_limits={},
        straight=1,
        watched=8,
        samples=None,
        measured=10_000,
        points=25,
        epochs=250,
        batch_size=100,
        warmup=1,
        augment=True,
        steps=2000,
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    if run.lacks(settings.data, f"matching removes the barrier between networks trained on {settings.data}"):
        return
    run.uses(load(settings.data))
    seeds = [run.seed + pair for pair in range(settings.pairs)]
    # The largest first: what is left at the end is short.
    calls = [
        partial(compared, settings, width, seed, run.device)
        for width in sorted(settings.widths)[::-1]
        for seed in seeds
    ]

    def compute() -> dict:
        found = parallel(calls, jobs=run.jobs, track=run.track, label="pairs")
        return {name: [row for one in found for row in one[name]] for name in found[0]}

    tables = {name: pd.DataFrame(rows) for name, rows in run.checkpoint("pairs", compute).items()}
    for name, table in tables.items():
        run.metrics(name, table)
    barriers = tables["barriers"]
    final = barriers[barriers["epoch"] == settings.epochs]
    run.table("barriers", final.pivot_table(index="width", columns="arm", values="barrier").reset_index())
    run.table("training", training_table(barriers, settings.watched))
    identity_claims(tables["checks"], run)
    barrier_claims(final, barriers, settings, run)
    run.figure("barriers", draw(tables["lines"], barriers, settings.watched))


def compared(settings: Settings, width: int, seed: int, device: torch.device) -> dict[str, list[dict]]:
    """Train a pair of networks of one width, and measure the lines between them: rows by table."""
    x, y, classes = samples(settings, device)
    nets = [
        network(settings.kind, x.shape[1:], classes, width, settings.depth, torch.Generator().manual_seed(2 * seed + k))
        for k in range(2)
    ]
    a, b = (net.to(device) for net in nets)
    graph = trace_units(a, x[:2])
    schedule: dict[str, Any] = {
        name: getattr(settings, name) for name in ("epochs", "batch_size", "rate", "warmup", "augment")
    }
    runs = [
        train(net, x, y, **schedule, generator=torch.Generator().manual_seed(2 * seed + k))
        for k, net in enumerate((a, b))
    ]
    measure = partial(barrier_rows, settings, width, seed, x[: settings.measured], y[: settings.measured])
    lines: list[dict] = []
    barriers: list[dict] = []
    for epoch in range(settings.epochs + 1):
        if epoch:
            for training in runs:
                next(training)
        last = epoch == settings.epochs
        if last or (width == settings.watched and epoch & (epoch - 1) == 0):  # 0, 1, 2, 4, 8 ...
            orders = matched(settings, a, b, graph, x, y, width, seed, last)
            for arm, order in orders.items():
                row, line = measure(arm, epoch, a, order.apply(b))
                barriers.append(row)
                lines += line if last else []
    checks = [{"width": width, "pair": seed, **identities(a, b, graph, x[:500], seed)}]
    return {"barriers": barriers, "lines": lines, "checks": checks}


def samples(settings: Settings, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """The training images and their classes."""
    data = load(settings.data)
    x, y = data.x_train[: settings.samples], data.y_train[: settings.samples]
    if settings.kind == "residual":
        x = x - x.mean((0, 2, 3), keepdim=True)
    return x.to(device), y.to(device), data.classes


def matched(
    settings: Settings,
    a: nn.Module,
    b: nn.Module,
    graph: UnitGraph,
    x: Tensor,
    y: Tensor,
    width: int,
    seed: int,
    last: bool,
) -> dict[str, Permutation]:
    """Orders of b's units, by arm; some only at the end of training."""
    x, y = x[: settings.measured], y[: settings.measured]
    batches = list(in_batches(x, y, settings.batches))
    generator = torch.Generator().manual_seed(ORDERS + seed)
    orders = {
        "naive": Permutation({}, graph),
        "activations": match_activations(a, b, batches, graph),
        "weights": match_weights(a, b, graph, generator=generator),
    }
    if last:
        orders["random"] = Permutation.random(graph, generator)
        orders[FROM_IDENTITY] = match_weights(a, b, graph, init={}, generator=generator)
        if width == settings.straight:
            orders["straight-through"] = match_straight_through(
                a,
                b,
                batches,
                cross_entropy,
                graph,
                steps=settings.steps,
                lr=settings.straight_rate,
                init=orders["weights"],
            )
    return orders


def barrier_rows(
    settings: Settings, width: int, pair: int, x: Tensor, y: Tensor, arm: str, epoch: int, a: nn.Module, b: nn.Module
) -> tuple[dict, list[dict]]:
    """The loss on the line from a to b: one row of its barrier, and one a place."""
    found = loss_barrier(a, b, partial(mean_loss, x=x, y=y), points=settings.points)
    common = {"width": width, "pair": pair, "arm": arm, "epoch": epoch}
    ends = {"from": found.losses[0], "to": found.losses[-1]}
    line = [{**common, "at": at, "loss": loss} for at, loss in zip(found.lams, found.losses, strict=True)]
    return {**common, "barrier": found.barrier, **ends}, line


def identities(a: nn.Module, b: nn.Module, graph: UnitGraph, x: Tensor, seed: int) -> dict[str, float]:
    """What must hold of any pair: reordering changes no output, is found again, and no sweep lowers the objective."""
    order = Permutation.random(graph, torch.Generator().manual_seed(ORDERS + 1 + seed))
    found = {}
    for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        net, z = deepcopy(b).to(dtype), x.to(dtype)
        with torch.no_grad():
            found[f"difference, {name}"] = float((order.apply(net)(z) - net(z)).abs().max())
    again = match_weights(b, order.apply(b), graph)
    found["units not found again"] = float((again @ order).moved())
    reached = [
        alignment(a, match_weights(a, b, graph, init={}, max_iter=sweeps).apply(b), graph)
        for sweeps in (0, 1, 2, 3, 5, 100)
    ]
    found["largest fall"] = float(max(0.0, *-np.diff(reached))) / abs(reached[-1])
    return found


def training_table(barriers: Table, width: int) -> Table:
    """Barriers of one width after every epoch, mean over pairs."""
    table = barriers[barriers["width"] == width].pivot_table(index="epoch", columns="arm", values="barrier")
    return table.dropna(axis=1).reset_index()


def identity_claims(checks: Table, run: Run) -> None:
    """What is true by construction."""
    for name, limit in (("float32", 1e-4), ("float64", 1e-10)):
        worst = float(checks[f"difference, {name}"].max())
        run.claim(
            f"a network with its units in another order computes the same function, {name}: largest difference",
            paper="exact",
            measured=worst,
            threshold=f"< {limit:g} in every pair",
            holds=worst < limit,
        )
    wrong = float(checks["units not found again"].sum())
    run.claim(
        "weight matching finds a random order of a trained network again: units that it gets wrong",
        measured=wrong,
        unit="units",
        threshold="0 in all networks",
        holds=wrong == 0,
    )
    fall = float(checks["largest fall"].max())
    run.claim(
        "no sweep of weight matching lowers its objective: largest fall, relative",
        measured=fall,
        threshold="< 1e-12 in every pair",
        holds=fall < 1e-12,
    )


def ratios(table: Table, arm: str) -> Any:
    """Barriers of an arm relative to that as trained, a series by width and pair."""
    by = table.set_index(["arm", "width", "pair"])["barrier"]
    return by[arm] / by["naive"]


def barrier_claims(final: Table, barriers: Table, settings: Settings, run: Run) -> None:
    """How much of the barrier matching leaves."""
    naive = final[final["arm"] == "naive"].groupby("width")["barrier"].mean()
    height = ", ".join(f"{barrier:.2f} nats at width {width}" for width, barrier in naive.items())
    for arm, what in (("weights", "weight matching"), ("activations", "activation matching")):
        ratio = ratios(final, arm)
        run.claim(
            f"{what} lowers the barrier in every pair: largest part of it that is left",
            measured=100 * float(ratio.max()),
            unit="%",
            threshold="< 100% in every pair",
            baseline=f"as trained: {height}",
            holds=bool(ratio.max() < 1),
        )
        for width, limit in (settings.limits if arm == "weights" else settings.activation_limits).items():
            here = ratio.xs(width, level="width")
            run.claim(
                f"{what} removes the barrier at width {width}: largest part of it that is left",
                paper="about 0 at width 512 (MLP), at 32 times the width (ResNet-20)",
                measured=100 * float(here.max()),
                unit="%",
                threshold=f"< {100 * limit:g}% in every pair",
                baseline=f"as trained: {naive[width]:.2f} nats",
                holds=bool(here.max() < limit),
                note=listed(here, arm, final, width) + reason(arm, bool(here.max() < limit), run),
            )
    random = ratios(final, "random")
    pairs = "; ".join(f"{percents(part)} at {width}" for width, part in random.groupby(level="width"))
    run.claim(
        "it is the matching: a random order of the units leaves the barrier, smallest part of it in a pair",
        measured=100 * float(random.min()),
        unit="%",
        threshold=">= 80% in every pair",
        holds=bool(random.min() >= 0.8),
        note=f"Pairs by width: {pairs}.{reason('random', bool(random.min() >= 0.8), run)}",
    )
    if len(settings.widths) > 1:
        width_claim(ratios(final, "weights"), run)
    if settings.straight in settings.widths:
        straight_claim(final[final["width"] == settings.straight], settings, run)


def listed(ratio: Any, arm: str, final: Table, width: int) -> str:
    """Every pair of a width in words."""
    rows = final[(final["width"] == width) & (final["arm"] == arm)]["barrier"]
    told = f"Pairs: {percents(ratio)}, that is {', '.join(f'{barrier:.3f}' for barrier in rows)} nats."
    if arm == "weights":
        alone = ratios(final, FROM_IDENTITY).xs(width, level="width")
        told += f" From the identity alone, as in the paper: {percents(alone)}."
    return told


def reason(arm: str, holds: bool, run: Run) -> str:
    """Why a claim does not hold, where that was looked into."""
    return f" {REASONS[arm]}" if not holds and arm in REASONS and run.scale == "default" else ""


def percents(ratio: Any) -> str:
    """Parts of one, in words."""
    return ", ".join(f"{100 * part:.1f}%" for part in ratio)


def width_claim(ratio: Any, run: Run) -> None:
    """Wider networks have lower barriers."""
    found: Any = spearmanr(ratio.index.get_level_values("width"), ratio)
    means = ratio.groupby(level="width").mean()
    run.claim(
        "what weight matching leaves falls with width: rank correlation over all pairs",
        paper="falls with width",
        measured=float(found.statistic),
        threshold="below 0, p < 0.05",
        holds=bool(found.statistic < 0 and found.pvalue < 0.05),
        note=f"p = {found.pvalue:.2g}. Means: {', '.join(f'{100 * r:.1f}% at {w}' for w, r in means.items())}.",
    )


def straight_claim(final: Table, settings: Settings, run: Run) -> None:
    """Gradients through the matching find better orders than the weights alone."""
    by = final.pivot_table(index="pair", columns="arm", values="barrier")
    gain = (by["straight-through"] - by["weights"]).to_numpy(dtype=float)
    run.claim(
        f"the straight-through estimator finds lower barriers than weight matching, at width {settings.straight}: "
        "difference over pairs",
        paper="the lowest of the three, and the slowest",
        measured=float(gain.mean()),
        interval=t_interval(gain),
        unit="nats",
        threshold="interval below 0",
        baseline=f"weight matching {by['weights'].mean():.3f} nats, activation matching {by['activations'].mean():.3f}",
        holds=below(t_interval(gain), 0),
        note=f"Straight-through: {', '.join(f'{barrier:.3f}' for barrier in by['straight-through'])} nats; weight "
        f"matching: {', '.join(f'{barrier:.3f}' for barrier in by['weights'])} nats.",
    )
