"""Which plasticity rules let a projection settle into an assembly, and how fast?

A stimulus drives an area of n neurons of which the k with the largest input fire; the area drives itself too (the
projection of the Assembly Calculus). Constantinides & Nassar (2021) exchange the multiplicative Hebb rule for Oja's
rule and for spike-timing-dependent plasticity. All rules meet the same graphs here. An assembly is more than winners
that stay: half of it must call the whole back, by the area's own synapses alone (recall). Without plasticity neither
can be had, which is the baseline.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from neuropil.atlas import Run
from neuropil.learning.assemblies import (
    Brain,
    ProjectionTrace,
    associate,
    overlap,
    plot_steps,
    plot_support,
    project,
    recall,
)
from neuropil.learning.assemblies.brain import Storage
from neuropil.learning.plasticity import BCM, STDP, Hebb, HebbMultiplicative, Oja, PlasticityRule
from neuropil.parallel import parallel
from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import Comparison, compare_paired, paired, t_interval, within

Size = tuple[int, int, float]


@dataclass(frozen=True)
class Settings:
    """Sizes (n, k, p) and lengths; the paper's are known only as grids, the large size is the field's."""

    sizes: tuple[Size, ...] = ((1000, 50, 0.1), (2000, 50, 0.05))
    storage: Storage = "sparse"
    steps: int = 50
    seeds: int = 10
    alone_steps: tuple[int, ...] = (20, 50)
    joint_steps: int = 20
    grid_n: int = 1000
    grid_k: tuple[int, ...] = (25, 50, 100)
    grid_p: tuple[float, ...] = (0.05, 0.1, 0.2)
    large: Size = (100_000, 316, 0.05)
    large_seeds: int = 5
    compared: Size = (1000, 50, 0.1)
    compared_graphs: int = 60


SCALES = {
    "smoke": Settings(sizes=((500, 25, 0.1),), steps=20, seeds=3, large=(20_000, 60, 0.1), large_seeds=2),
    "default": Settings(),
    "paper": Settings(
        sizes=((100_000, 316, 0.05), (100_000, 1000, 0.01)),
        storage="lazy",
        grid_n=100_000,
        grid_k=(100, 316, 1000),
        grid_p=(0.01, 0.03, 0.1),
        large=(1_000_000, 1000, 0.05),
        large_seeds=3,
    ),
}

# Found by looking at the weights of seeds 0 to 3, n 1000, k 50, p 0.1.
EQUAL_STDP = (
    "At A-/A+ 1 pairs cancel only while a neuron keeps firing: one that enters gains its first pairs before depression "
    "follows, and one that leaves is depressed after its last. At A+ 0.2 the winners' synapses end 10 to 13% above 1 "
    "and those of past winners 6% below, enough to hold the winners in some graphs; recall shows that no assembly "
    "forms."
)

UNKNOWN = "curves; their figures are not known to us"


@dataclass(frozen=True)
class Arm:
    """A rule and what goes with it."""

    rule: PlasticityRule
    initial_weight: float = 1.0
    normalise_every: int | None = None


OJA = {(w0, eta): f"Oja, w0 {w0:g}, eta {eta:g}" for w0 in (0.1, 0.3, 1.0) for eta in (0.01, 0.05, 0.2)}
RATIOS = (0.0, 0.1, 0.4, 1.0)
TIMED = {(up, ratio): f"STDP, A+ {up:g}, A-/A+ {ratio:g}" for up in (0.05, 0.2) for ratio in RATIOS}


def arms(settings: Settings, scale: str) -> dict[str, Arm]:
    """The rules by name; at scale "smoke" what a test can afford."""
    found = {f"Hebb, beta {beta:g}": Arm(HebbMultiplicative(beta)) for beta in (0.0, 0.01, 0.05, 0.1)}
    found |= {name: Arm(Oja(eta), w0) for (w0, eta), name in OJA.items() if scale != "smoke" or eta == 0.05}
    if scale != "smoke":
        found |= {name: Arm(STDP(up, ratio * up)) for (up, ratio), name in TIMED.items()}
        found |= {"additive Hebb, eta 0.05": Arm(Hebb(0.05)), "BCM, eta 0.05": Arm(BCM(0.05))}
        if settings.storage == "sparse":
            found["Hebb, beta 0.05, normalised"] = Arm(HebbMultiplicative(0.05), normalise_every=1)
    return found


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    tables = {}
    for size in settings.sizes:
        table, supports = projections(size, settings, run)
        tables[title(size)] = table, supports
        winners_settle(size, table, run)
        oja(size, table, run)
        if run.scale != "smoke":
            assemblies_are_recalled(size, table, run)
            rates(size, table, run)
            spike_timing(size, table, run)
    graph_stays_as_it_is(settings, run)
    if run.scale != "smoke":
        association(settings, run)
        grid(settings, run)
        lazy_agrees(settings, run)
    large_areas(settings, run)
    figures(settings, tables, run)


def title(size: Size) -> str:
    """Name of a size."""
    return "n {}, k {}, p {:g}".format(*size)


def made(size: Size, arm: Arm, storage: Storage, seed: int, stimuli: Sequence[str] = ("x",)) -> Brain:
    """An area and its stimuli: the same graph for every rule."""
    n, k, p = size
    brain = Brain(p, torch.Generator().manual_seed(seed), storage=storage)
    for name in stimuli:
        brain.add_stimulus(name, k)
    brain.add_area("A", n, k, arm.rule, initial_weight=arm.initial_weight, normalise_every=arm.normalise_every)
    return brain


def recalled(brain: Brain, assembly: torch.Tensor, seed: int) -> tuple[float, float]:
    """Overlap with the assembly, one and five steps after half of it fired alone."""
    half = torch.randperm(len(assembly), generator=torch.Generator().manual_seed(seed))[: len(assembly) // 2]
    winners = recall(brain, "A", assembly[half], 5)
    return overlap(winners[0], assembly), overlap(winners[4], assembly)


def one_projection(size: Size, arm: Arm, settings: Settings, seed: int) -> tuple[dict[str, Any], ProjectionTrace]:
    """Project once, recall once."""
    brain = made(size, arm, settings.storage, seed)
    trace = project(brain, "x", "A", settings.steps)
    first, fifth = recalled(brain, trace.winners[-1], seed)
    row = {
        "seed": seed,
        "steps": trace.steps_to_convergence(),
        "converged": trace.converged(),
        "support": float(trace.support[-1]) / size[1],
        "recall 1": first,
        "recall 5": fifth,
        "largest weight": max(brain.connect(src, "A").largest() for src in ("x", "A")),
        "smallest cap": min(len(set(fired)) for fired in trace.winners.tolist()),
    }
    return row, trace


def projections(size: Size, settings: Settings, run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All rules on the same graphs: a row a projection, and the support over time."""
    chosen = arms(settings, run.scale)

    def seed_of_all(seed: int) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
        rows, curves = [], []
        for name, arm in chosen.items():
            row, trace = one_projection(size, arm, settings, seed)
            rows.append({"rule": name} | row)
            steps = range(1, settings.steps + 1)
            support = trace.support.numpy() / size[1]
            curves.append(pd.DataFrame({"arm": name, "seed": seed, "step": steps, "support": support}))
        return rows, curves

    calls = [partial(seed_of_all, run.seed + seed) for seed in range(settings.seeds)]
    parts = parallel(calls, jobs=run.jobs, track=run.track, label=f"graphs, {title(size)}")
    table = pd.DataFrame([row for rows, _ in parts for row in rows])
    supports = pd.concat([curve for _, curves in parts for curve in curves], ignore_index=True)
    name = f"projections-{_plain_name(title(size))}"
    run.metrics(name, table)
    columns = [column for column in table.columns if column not in ("rule", "seed", "smallest cap")]
    means = [
        {"rule": rule} | {column: float(values(table, rule, column).mean()) for column in columns} for rule in chosen
    ]
    run.table(name, pd.DataFrame(means).rename(columns={"converged": "converged (of 1)"}))
    return table, supports


def values(table: pd.DataFrame, name: str, column: str, *, arm: str = "rule") -> np.ndarray:
    """What was measured with one rule, or another arm: a number a graph."""
    return np.asarray(table.loc[table[arm] == name, column], dtype=float)


def winners_settle(size: Size, table: pd.DataFrame, run: Run) -> None:
    """Convergence with plasticity, and without."""
    plastic, fixed = "Hebb, beta 0.05", "Hebb, beta 0"
    converged, never = values(table, plastic, "converged"), values(table, fixed, "converged")
    run.claim(
        f"with plasticity the winners settle, without it they never do ({title(size)})",
        paper="a stable assembly above a threshold of beta",
        measured=100 * converged.mean(),
        unit="% of graphs at beta 0.05",
        threshold="all at beta 0.05 and none at beta 0",
        baseline=f"beta 0: {100 * never.mean():.0f}%",
        holds=converged.all() and not never.any(),
        note=f"{values(table, plastic, 'steps').mean():.1f} steps; support "
        f"{values(table, plastic, 'support').mean():.2f} k against {values(table, fixed, 'support').mean():.2f} k "
        "without plasticity.",
    )


def assemblies_are_recalled(size: Size, table: pd.DataFrame, run: Run) -> None:
    """Pattern completion with plasticity, and without."""
    called, lost = (values(table, f"Hebb, beta {beta:g}", "recall 5") for beta in (0.05, 0.0))
    low = int((called <= 0.9).sum())
    run.claim(
        f"half of the assembly calls back the whole ({title(size)})",
        measured=called.min(),
        unit="overlap after 5 steps (worst graph at beta 0.05)",
        threshold="> 0.9 in every graph at beta 0.05, < 0.3 in every graph at beta 0",
        baseline=f"beta 0: {lost.max():.2f} (best graph)",
        holds=called.min() > 0.9 and lost.max() < 0.3,
        note=f"{low} of {len(called)} graphs stay at or below 0.9; mean {called.mean():.2f}." if low else None,
    )


def rates(size: Size, table: pd.DataFrame, run: Run) -> None:
    """Faster and smaller with larger beta."""
    for slow, fast in ((0.01, 0.05), (0.05, 0.1)):
        names = f"Hebb, beta {slow:g}", f"Hebb, beta {fast:g}"
        saved = paired(table, *names, value="steps")
        support = paired(table, *names, value="support")
        run.claim(
            f"beta {fast:g} settles sooner than beta {slow:g} ({title(size)})",
            paper="larger beta: faster, smaller support",
            measured=saved.mean,
            interval=saved.interval,
            unit="steps saved",
            threshold="interval above 0",
            baseline=f"beta {slow:g}: {values(table, names[0], 'steps').mean():.1f} steps",
            holds=saved.above(0),
            note=f"The support falls by {support.mean:.2f} k {_interval(support)}.",
        )


def oja(size: Size, table: pd.DataFrame, run: Run) -> None:
    """Oja's rule cannot strengthen a synapse that begins at 1."""
    tried = {key: name for key, name in OJA.items() if name in set(table["rule"])}
    weak, full = OJA[0.3, 0.05], [name for (w0, _), name in tried.items() if w0 == 1]
    settled, among = (sum(f(values(table, name, "converged")) for name in full) for f in (np.sum, len))
    best = max(values(table, name, "recall 5").mean() for name in full)
    converged = values(table, weak, "converged")
    run.claim(
        f"Oja's rule makes winners settle only if synapses begin below 1 ({title(size)})",
        paper=UNKNOWN,
        measured=100 * converged.mean(),
        unit="% of graphs at w0 0.3, eta 0.05",
        threshold="all at w0 0.3, eta 0.05, and none at w0 1, whatever eta",
        baseline=f"w0 1: {settled:.0f} of {among} graphs, recall {best:.2f} at the best eta",
        holds=converged.all() and settled == 0,
        note="A weight tends to the probability that i fires given that j does, at most 1. From 1 it can only fall: "
        f"winners become the weakest neurons. At w0 0.3 recall is {values(table, weak, 'recall 5').mean():.2f}.",
    )
    excess = max(values(table, name, "largest weight").max() - max(1.0, w0) for (w0, _), name in tried.items())
    run.claim(
        f"Oja's rule keeps weights within the larger of 1 and the first weight ({title(size)})",
        measured=excess,
        unit="largest weight minus the bound",
        threshold="at most 1e-12, at every eta and first weight",
        baseline=f"Hebb, beta 0.1: largest weight {values(table, 'Hebb, beta 0.1', 'largest weight').max():.3g}",
        holds=excess <= 1e-12,
    )


def spike_timing(size: Size, table: pd.DataFrame, run: Run) -> None:
    """Depression as strong as potentiation cancels it inside an assembly."""
    settled = {key: values(table, name, "converged").mean() for key, name in TIMED.items()}
    recalls = {key: values(table, name, "recall 5").mean() for key, name in TIMED.items()}
    shares = {
        ratio: [f"{100 * settled[up, ratio]:.0f}% (recall {recalls[up, ratio]:.2f})" for up in (0.05, 0.2)]
        for ratio in RATIOS
    }
    run.claim(
        f"STDP makes winners settle up to a depression of 0.4 of potentiation, and not at 1 ({title(size)})",
        paper=UNKNOWN,
        measured=100 * min(settled[up, ratio] for up, ratio in TIMED if ratio <= 0.4),
        unit="% of graphs, worst of A-/A+ <= 0.4",
        threshold="all graphs at A-/A+ 0, 0.1 and 0.4, none at 1, for A+ 0.05 and 0.2",
        baseline=f"A-/A+ 1: {100 * settled[0.05, 1.0]:.0f}% at A+ 0.05, {100 * settled[0.2, 1.0]:.0f}% at A+ 0.2",
        holds=all((settled[up, ratio] == 1) if ratio <= 0.4 else (settled[up, ratio] == 0) for up, ratio in TIMED),
        note="By A-/A+, at A+ 0.05 and 0.2: "
        + "; ".join(f"{ratio:g}: {', '.join(parts)}" for ratio, parts in shares.items())
        + ". "
        + EQUAL_STDP,
    )


def graph_stays_as_it_is(settings: Settings, run: Run) -> None:
    """Only synapses that exist ever carry weight, and the cap is exact."""
    n, k, p = min(settings.sizes)
    size = (min(n, 1000), min(k, 50), max(p, 0.1))
    excess, missing = 0, 0
    for rule in (HebbMultiplicative(0.05), Oja(0.05), STDP()):
        brain = made(size, Arm(rule), "dense", run.seed)
        there = {src: brain.weights(src, "A") > 0 for src in ("x", "A")}
        trace = project(brain, "x", "A", min(settings.steps, 20))
        missing += sum(len(set(fired)) != size[1] for fired in trace.winners.tolist())
        excess += sum(int(((brain.weights(src, "A") != 0) & ~mask).sum()) for src, mask in there.items())
    run.claim(
        "absent synapses stay absent, and k neurons fire at every step",
        measured=excess + missing,
        unit="exceptions",
        threshold="none",
        holds=excess + missing == 0,
    )


def association(settings: Settings, run: Run) -> None:
    """Two stimuli that fire together come to share neurons, unless they share them already."""
    size = settings.sizes[0]
    betas = (0.0, 0.05)

    def one(beta: float, alone: int, seed: int) -> tuple[float, float]:
        brain = made(size, Arm(HebbMultiplicative(beta)), settings.storage, seed, ("x", "y"))
        found = associate(brain, "x", "y", "A", settings.joint_steps, alone=alone)
        return found.before, found.after

    seeds = range(run.seed, run.seed + settings.seeds)
    cells = [(beta, alone, seed) for beta in betas for alone in settings.alone_steps for seed in seeds]
    calls = [partial(one, *cell) for cell in cells]
    found = parallel(calls, jobs=run.jobs, track=run.track, label="associations")
    table = pd.DataFrame(
        [
            {"beta": beta, "alone": alone, "seed": seed, "before": before, "after": after}
            for (beta, alone, seed), (before, after) in zip(cells, found, strict=True)
        ]
    )
    run.metrics("association", table)
    for alone in settings.alone_steps:
        rows = {beta: table.query(f"beta == {beta} and alone == {alone}") for beta in betas}
        rises = {beta: compare_paired(rows[beta]["after"], rows[beta]["before"]) for beta in betas}
        before, after = (float(np.mean(rows[0.05][name].to_numpy(dtype=float))) for name in ("before", "after"))
        rise = rises[0.05]
        run.claim(
            f"assemblies whose stimuli fire together come to overlap, after {alone} steps alone ({title(size)})",
            paper="overlap rises (Papadimitriou et al. 2020)",
            measured=rise.mean,
            interval=rise.interval,
            unit=f"rise of the overlap over {settings.joint_steps} joint steps at beta 0.05",
            threshold="interval above 0.2",
            baseline=f"beta 0: {rises[0.0].mean:+.2f}",
            holds=rise.above(0.2),
            note=f"From {before:.2f} to {after:.2f}; chance is {size[1] / size[0]:.2f}. The longer a stimulus fires "
            "alone, the more its assembly attracts the next one, until both lead to the same.",
        )


def grid(settings: Settings, run: Run) -> None:
    """Steps over k and p, at beta 0.05."""
    seeds = range(run.seed, run.seed + settings.seeds)
    arm = Arm(HebbMultiplicative(0.05))
    cells = [(k, p, seed) for k in settings.grid_k for p in settings.grid_p for seed in seeds]

    def one(k: int, p: float, seed: int) -> int:
        brain = made((settings.grid_n, k, p), arm, settings.storage, seed)
        return project(brain, "x", "A", settings.steps).steps_to_convergence()

    found = parallel([partial(one, *cell) for cell in cells], jobs=run.jobs, track=run.track, label="cells of the grid")
    table = pd.DataFrame([{"k": k, "p": p, "seed": s, "steps": n} for (k, p, s), n in zip(cells, found, strict=True)])
    run.metrics("grid", table)
    steps = {(k, p): [n for cell, n in zip(cells, found, strict=True) if cell[:2] == (k, p)] for k, p, _ in cells}
    run.table("grid", pd.DataFrame([{"k": k, "p": p, "steps": sum(n) / len(n)} for (k, p), n in steps.items()]))
    k, p = (values[len(values) // 2] for values in (settings.grid_k, settings.grid_p))
    ends = {
        "k": [(settings.grid_k[0], p), (settings.grid_k[-1], p)],
        "p": [(k, settings.grid_p[0]), (k, settings.grid_p[-1])],
    }
    for name, (least, most) in ends.items():
        saved = compare_paired(steps[least], steps[most])
        run.claim(
            f"a larger {name} settles sooner (n {settings.grid_n}, beta 0.05): "
            + " against ".join(f"k {k}, p {p:g}" for k, p in (most, least)),
            paper="k, p and beta control convergence",
            measured=saved.mean,
            interval=saved.interval,
            unit="steps saved",
            threshold="interval above 0",
            baseline=f"{np.mean(steps[least]):.1f} steps",
            holds=saved.above(0),
        )
    figure, (ax,) = panels()
    plot_steps(table, ax, title=f"steps, n {settings.grid_n}, beta 0.05")
    run.figure("grid", figure)


def large_areas(settings: Settings, run: Run) -> None:
    """A large area without a matrix: exactly, and by drawing neurons when they can win."""
    size, arm = settings.large, Arm(HebbMultiplicative(0.05))
    storages: tuple[Storage, ...] = ("sparse", "lazy", "forgetful")
    seeds = range(run.seed, run.seed + settings.large_seeds)

    def one(where: Size, storage: Storage, seed: int) -> dict[str, Any]:
        # Graphs that are drawn late are others anyway: seeds of their own keep the comparison honest.
        brain = made(where, arm, storage, seed if storage == "sparse" else seed + 1000 + 1000 * (storage == "lazy"))
        trace = project(brain, "x", "A", settings.steps)
        megabytes = brain.stored_bytes / 1e6, brain.dense_bytes / 1e6
        support, steps = float(trace.support[-1]) / where[1], trace.steps_to_convergence()
        return {"storage": storage, "seed": seed, "steps": steps, "support": support, "megabytes": megabytes}

    calls = [partial(one, size, storage, seed) for storage in storages for seed in seeds]
    table = pd.DataFrame(parallel(calls, jobs=run.jobs, track=run.track, label="large areas"))
    table[["MB", "MB dense"]] = table.pop("megabytes").tolist()
    run.metrics("large", table)
    columns = ("steps", "support", "MB", "MB dense")
    means = [
        {"storage": name} | {column: values(table, name, column, arm="storage").mean() for column in columns}
        for name in storages
    ]
    run.table("large", pd.DataFrame(means))
    steps, used, dense = (values(table, "sparse", column, arm="storage") for column in ("steps", "MB", "MB dense"))
    run.claim(
        f"an exact projection needs no matrix ({title(size)})",
        measured=used.max(),
        unit="MB of weights and indices",
        threshold="settles in every graph, and below 1/100 of the matrix",
        baseline=f"a dense matrix: {dense.max():.0f} MB",
        holds=steps.max() < settings.steps and (used / dense).max() < 0.01,
    )


def lazy_agrees(settings: Settings, run: Run) -> None:
    """Late drawing against the exact graph, where tails are fat."""
    size, arm, repeats = settings.compared, Arm(HebbMultiplicative(0.05)), settings.compared_graphs

    def one(storage: Storage, seed: int) -> float:
        return float(project(made(size, arm, storage, seed), "x", "A", 20).support[-1]) / size[1]

    calls = [partial(one, storage, run.seed + seed) for storage in STORAGES for seed in range(repeats)]
    found = parallel(calls, jobs=run.jobs, track=run.track, label="late and early drawing")
    supports = {storage: found[i * repeats : (i + 1) * repeats] for i, storage in enumerate(STORAGES)}
    exact = sum(supports["sparse"]) / repeats
    off = {name: compare_paired(supports[name], supports["sparse"], scale=100 / exact) for name in STORAGES[1:]}
    lazy = off["lazy"]
    run.claim(
        f"neurons can be drawn when they can win, if those seen before are remembered ({title(size)})",
        measured=lazy.mean,
        interval=lazy.interval,
        unit="% more support than the exact graph",
        threshold="interval within +-10%",
        baseline=f"published form, which draws every tail afresh: {off['forgetful'].mean:+.0f}% "
        f"{_interval(off['forgetful'])}",
        holds=within(lazy.interval, (-10, 10)),
        note=f"Support of the exact graph: {exact:.2f} k {_plain(t_interval(supports['sparse']))}.",
    )


STORAGES: tuple[Storage, ...] = ("sparse", "lazy", "forgetful")


def figures(settings: Settings, tables: dict[str, tuple[pd.DataFrame, pd.DataFrame]], run: Run) -> None:
    """Support over time, and what is recalled."""
    groups = [[f"Hebb, beta {beta:g}" for beta in (0.0, 0.01, 0.05, 0.1)], [OJA[w0, 0.05] for w0 in (0.1, 0.3, 1.0)]]
    if run.scale != "smoke":
        groups.append([TIMED[0.2, ratio] for ratio in RATIOS])
    for label, (_, supports) in tables.items():
        figure, axes = panels(len(groups))
        for ax, names in zip(axes, groups, strict=True):
            plot_support(supports, ax, arms=names)
        axes[0].set_title(label)
        run.figure(f"support-{_plain_name(label)}", figure)
    figure, axes = panels(len(tables), size=(3.6, 0.9 + 0.16 * len(next(iter(tables.values()))[0]["rule"].unique())))
    for ax, (label, (table, _)) in zip(axes, tables.items(), strict=True):
        names = list(dict.fromkeys(table["rule"]))[::-1]
        for place, name in enumerate(names):
            first, fifth = values(table, name, "recall 1"), values(table, name, "recall 5")
            labels = ("1 step", "5 steps") if place == 0 else (None, None)
            ax.plot(fifth, [place] * len(fifth), "o", ms=3, mew=0, color=COLOURS[0], alpha=0.4)
            ax.plot([first.mean()], [place], "|", ms=9, mew=2, color=COLOURS[1], label=labels[0])
            ax.plot([fifth.mean()], [place], "|", ms=9, mew=2, color=COLOURS[0], label=labels[1])
        ax.set_yticks(range(len(names)), names, fontsize=7)
        ax.set_xlim(0, 1.02)
        ax.set_xlabel("overlap with the assembly, from half of it")
        ax.set_title(label)
        ax.grid(axis="x", color=GREY, alpha=0.25, lw=0.5)
    axes[0].legend(frameon=False, fontsize=7, loc="center right")
    run.figure("recall", figure)


def _interval(comparison: Comparison) -> str:
    return _plain(comparison.interval)


def _plain(interval: tuple[float, float]) -> str:
    return "[{:.2f}, {:.2f}]".format(*interval)


def _plain_name(label: str) -> str:
    return label.replace(",", "").replace(" ", "-").replace(".", "")
