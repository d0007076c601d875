"""Can a learned model save half of Adam's steps by saying where the weights are going?

Every `period` steps of Adam a nowcaster looks at the last five states of the weights and moves them up to 40 states
ahead (Knyazev, Moudgil, Lajoie, Belilovsky & Lacoste-Julien 2025). Two learn from trajectories of smaller networks: one
looks at each weight alone (WNN+), one is a graph network over the neurons (NiNo). The line through the last states,
with its own tuned horizon, is the rival that knows nothing; a forecast that nothing moves is the control. A larger rate
alone also saves steps: every saving is against Adam at the same rate, and at last both are tuned.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from neuropil.atlas import Run
from neuropil.data import Dataset, load
from neuropil.learning import Backpropagation, mlp, small_conv
from neuropil.learning.nowcast import (
    GraphNowcaster,
    LinearNowcaster,
    MLPNowcaster,
    Nowcaster,
    Nowcasting,
    TrajectoryDataset,
    collect_trajectories,
    forecast_error,
    jump_schedule,
    load_official,
    neural_graph,
    plot_jumps,
    plot_savings,
    train_curve,
    train_nowcaster,
    weight_table,
)
from neuropil.parallel import parallel
from neuropil.plotting import panels
from neuropil.statistics import Comparison, above, compare_paired, t_interval


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper"."""

    task: str = "digits"
    samples: int | None = None  # of its training part; None takes all
    new_task: str = "mnist"
    new_samples: int | None = 5000
    convolution: bool = False
    taught_on: tuple[tuple[int, ...], ...] = ((16,), (24,), (32,))  # hidden sizes, or channels
    tested_on: tuple[int, ...] = (48,)
    batch_size: int = 64
    steps: int = 1000
    period: int = 100
    look: int = 10
    rates: tuple[float, ...] = (1e-3, 4e-3, 1e-2)
    tuning_rates: tuple[float, ...] = (1e-3, 4e-3, 1e-2, 2e-2, 4e-2)
    line_horizons: tuple[int, ...] = (5, 10, 20, 40)
    tuning_seeds: int = 2
    seeds: int = 5
    trajectories: int = 9
    trajectory_steps: int = 1300
    mlp_hid: int = 64
    mlp_slices: int = 4
    mlp_weights: int | None = 512
    mlp_steps: int = 500
    graph_hid: int = 32
    graph_layers: int = 2
    graph_slices: int = 2
    graph_steps: int = 400
    eigenvectors: int = 0
    official: str = ""  # a file of the official repository, e.g. nino_no_posw.pt


SCALES = {
    "smoke": Settings(
        new_task="",
        taught_on=((16,), (24,)),
        steps=600,
        rates=(1e-3,),
        seeds=2,
        trajectories=3,
        trajectory_steps=1000,
        mlp_hid=32,
        mlp_steps=150,
    ),
    "default": Settings(),
    # The paper's sets of trajectories are its own; their size here is a guess at its order.
    "paper": Settings(
        task="fashion-mnist",
        new_samples=None,
        convolution=True,
        taught_on=((16, 32, 32),),
        tested_on=(32, 64, 64),
        batch_size=128,
        steps=10_000,
        period=1000,
        look=100,
        seeds=10,
        trajectories=300,
        trajectory_steps=10_000,
        mlp_hid=128,
        mlp_slices=16,
        mlp_weights=None,
        mlp_steps=20_000,
        graph_hid=128,
        graph_slices=16,
        graph_steps=20_000,
        eigenvectors=8,
    ),
}

MARGIN = 15  # % of Adam's steps
ADAM, STILL, LINE, MLP, GRAPH, OFFICIAL = "Adam", "nothing moves", "line", "MLP (WNN+)", "graph (NiNo)", "official file"
TEACHING, FRESH, TUNING = 10_000, 20_000, 30_000  # seeds apart from those of the test
SAVED = "up to 50% fewer steps (Table 1; its values by task are not known to us)"
NEVER = "a run that never gets there counts as one that gets there after its end"
# Found by looking: at the curves of the recorded run, and at the MLP on seeds 0 and 1 at rate 4e-3.
JUMPS = (
    "Learned jumps at steps 200 to 500 raise the loss up to tenfold, from which it recovers to the lowest of all "
    "at the end; those of the line disturb less. It is not the horizon, nor the rate of the trajectories: there "
    "the line needs 460 and 430 steps, the MLP 550 and 440, with a first call of 10 states ahead 570 and 590, "
    "taught at that rate 570 and 470."
)
EARLY = "The target is met before the first jump."
DEEPER = (
    "They are alike at rate 0.001, at which both were taught; the graph network's jumps at larger rates disturb "
    "more. It has seen 800 slices, and its forecasts of new trajectories are no better than the MLP's."
)


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    limits(run)
    data = task(settings.task, settings, run)
    trajectories = collected(data, settings.taught_on, settings.trajectories, TEACHING, settings, run)
    if run.scale == "smoke":
        smoke(data, trajectories, settings, run)
        return
    learned = taught(trajectories, settings, run)
    horizons, quickest = tuned(data, learned, settings, run)
    lives = partial(every_seed, learned=learned, horizons=horizons, settings=settings, run=run)
    table = run.checkpoint("curves", lambda: lives(data, rates=settings.rates))
    run.metrics("curves", table)
    steps = reached(table, settings)
    run.table("steps", steps)
    errors(data, learned, settings, run)
    for name in (GRAPH, MLP):
        saves(name, f"on new nets of {settings.task}, at every rate", steps, run)
    for rate in settings.rates:
        beats_line(rate, steps, horizons, run)
    graph_or_mlp(steps, run)
    control(steps, table, run)
    both_tuned(table, quickest, data, learned, settings, run)
    figures(table, steps, settings, run)
    other = new_task(settings, run)
    if other is not None:
        curves = run.checkpoint("curves-new-task", lambda: lives(other, rates=settings.rates[:1]))
        run.metrics("curves-new-task", curves)
        there = reached(curves, settings)
        run.table("steps-new-task", there)
        for name in (GRAPH, MLP):
            saves(name, f"on a task that it was not taught on ({settings.new_task})", there, run)


def limits(run: Run) -> None:
    """What must hold exactly."""
    generator = torch.Generator().manual_seed(run.seed)
    net = mlp(6, 5, 3, generator=generator)
    start, slope = torch.randn(2, weight_table(net).weights, 1, generator=generator, dtype=torch.float64)
    path = start + slope * torch.arange(45)
    line = LinearNowcaster()
    gap = max(float((line(path[:, :5], weight_table(net), k) - path[:, 4 + k]).abs().max()) for k in range(1, 41))
    run.claim(
        "the line is exact on a linear trajectory, through the scaling of every tensor: largest error",
        measured=gap,
        unit="",
        threshold="< 1e-9 at every horizon",
        holds=gap < 1e-9,
    )
    schedule = jump_schedule(40, 10)
    run.claim(
        "ten calls look 40, 33, 26, 21, 16, 11, 8, 5, 3 and 1 states ahead: largest difference",
        paper="the square of a line from sqrt(40) to 1 (code)",
        measured=int(np.abs(np.subtract(schedule, [40, 33, 26, 21, 16, 11, 8, 5, 3, 1])).max()),
        unit="states",
        threshold="0",
        holds=schedule == [40, 33, 26, 21, 16, 11, 8, 5, 3, 1],
    )
    nowcaster = GraphNowcaster(16, eigenvectors=0, generator=generator)
    with torch.no_grad():  # an untaught one moves nothing
        nowcaster.out.weight.normal_(generator=generator)
    graph = neural_graph(net)
    history = torch.randn(graph.weights, 5, generator=generator)
    order = torch.randperm(5, generator=generator)
    places = {name: torch.arange(span.start, span.stop) for name, span in graph.param_slices.items()}
    columns = places["2.weight"].view(3, 5)[:, order].flatten()
    moved = torch.cat([places["0.weight"].view(5, 6)[order].flatten(), order + 30, columns, places["2.bias"]])
    forecast = nowcaster(history, graph, 9)
    gap = float((nowcaster(history[moved], graph, 9) - forecast[moved]).abs().max())
    run.claim(
        "permuting hidden neurons permutes the graph network's forecast, positions left out: largest difference",
        paper="equivariant",
        measured=gap,
        unit="",
        threshold="< 1e-5",
        holds=gap < 1e-5 < float((forecast - history[:, -1]).abs().max()),
    )


def task(name: str, settings: Settings, run: Run) -> Dataset:
    """A data set in the form that the networks take."""
    data = load(name, seed=run.seed) if name == "digits" else load(name)
    data = data.subset(settings.samples, seed=run.seed)
    run.uses(data)
    return data.to(run.device) if settings.convolution else data.flat().to(run.device)


def new_task(settings: Settings, run: Run) -> Dataset | None:
    """The task that no nowcaster was taught on, where it is at hand; for plain networks at half the resolution."""
    name = settings.new_task
    if not name or run.lacks(name, f"a taught nowcaster saves steps on a task that it was not taught on ({name})"):
        return None
    data = load(name).subset(settings.new_samples, seed=run.seed)
    run.uses(data)
    if settings.convolution:
        return data.to(run.device)
    halved = (avg_pool2d(x.reshape(len(x), 1, *data.shape[-2:]), 2).flatten(1) for x in (data.x_train, data.x_test))
    return replace(data, **dict(zip(("x_train", "x_test"), halved, strict=True))).to(run.device)


def maker(data: Dataset, sizes: tuple[int, ...], settings: Settings) -> Callable[[torch.Generator], nn.Module]:
    """Maker of a network for a task: hidden sizes of a plain one, or channels of a convolution net."""
    if settings.convolution:
        shape = (1, *data.shape)[-3:]  # grey images may come without an axis of channels
        return lambda g: small_conv(shape, data.classes, sizes, generator=g).to(data.x_train)
    return lambda g: mlp(data.features, *sizes, data.classes, generator=g).to(data.x_train)


def collected(
    data: Dataset, nets: tuple[tuple[int, ...], ...], count: int, seed: int, settings: Settings, run: Run
) -> TrajectoryDataset:
    """Trajectories of Adam at the paper's rate."""
    return collect_trajectories(
        [maker(data, sizes, settings) for sizes in nets],
        data,
        count=count,
        steps=settings.trajectory_steps,
        every=settings.period // 5,
        rate=1e-3,
        batch_size=settings.batch_size,
        seed=run.seed + seed,
        jobs=run.jobs,
        track=run.track,
    )


Taught = dict[int, dict[str, Nowcaster]]  # by seed, by name


def single(settings: Settings, generator: torch.Generator | None = None) -> MLPNowcaster:
    """The nowcaster that looks at each weight alone, untaught."""
    return MLPNowcaster(settings.mlp_hid, generator=generator)


def connected(
    trajectories: TrajectoryDataset, settings: Settings, generator: torch.Generator | None = None
) -> GraphNowcaster:
    """The nowcaster over the neurons, untaught."""
    return GraphNowcaster(
        settings.graph_hid,
        settings.graph_layers,
        features=trajectories.trajectories[0].graph.features,
        eigenvectors=settings.eigenvectors,
        generator=generator,
    )


def teach(
    trajectories: TrajectoryDataset, seed: int, settings: Settings, device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """Meta-train both; returns their states."""
    generator = torch.Generator().manual_seed(seed)
    alone = single(settings, generator).to(device)
    sizes = {"slices": settings.mlp_slices, "weights": settings.mlp_weights, "steps": settings.mlp_steps}
    train_nowcaster(alone, trajectories, generator=generator, **sizes)
    graph = connected(trajectories, settings, generator).to(device)
    sizes = {"slices": settings.graph_slices, "steps": settings.graph_steps}
    train_nowcaster(graph, trajectories, generator=generator, **sizes)
    return {MLP: alone.state_dict(), GRAPH: graph.state_dict()}


def taught(trajectories: TrajectoryDataset, settings: Settings, run: Run) -> Taught:
    """Nowcasters of every seed of the test and, under the seed of the tuning, of that; each is taught once."""
    seeds = [*range(run.seed, run.seed + settings.seeds), run.seed + TUNING]

    def compute() -> list[dict[str, dict[str, Tensor]]]:
        calls = [partial(teach, trajectories, seed, settings, run.device) for seed in seeds]
        return parallel(calls, jobs=run.jobs, track=run.track, label="nowcasters taught")

    found: Taught = {}
    for seed, states in zip(seeds, run.checkpoint("nowcasters", compute), strict=True):
        drawn = torch.Generator()  # what it draws is replaced
        found[seed] = {MLP: single(settings, drawn), GRAPH: connected(trajectories, settings, drawn)}
        for name, nowcaster in found[seed].items():
            nowcaster.to(run.device).load_state_dict(states[name])
        if settings.official:
            found[seed][OFFICIAL] = load_official(settings.official).to(run.device)
    return found


def life(
    arm: str, nowcaster: Nowcaster | None, horizons: int | None, data: Dataset, rate: float, seed: int, s: Settings
) -> pd.DataFrame:
    """One training: its loss over steps."""
    net = maker(data, s.tested_on, s)(torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    norms = [data.x_train[: 10 * s.batch_size].split(s.batch_size)] if s.convolution else [None]
    nowcasting = nowcaster and Nowcasting(
        net, optimizer, nowcaster, period=s.period, max_steps=s.steps, horizons=horizons, batches=norms[0]
    )
    begun = time.perf_counter()
    curve = train_curve(
        Backpropagation(net, cross_entropy),
        data,
        optimizer,
        steps=s.steps,
        batch_size=s.batch_size,
        seed=seed,
        every=s.look,
        nowcasting=nowcasting or None,
    )
    return curve.assign(arm=arm, rate=rate, seed=seed, seconds=time.perf_counter() - begun)


def tuned(data: Dataset, learned: Taught, settings: Settings, run: Run) -> tuple[dict[float, int], dict[str, float]]:
    """On seeds apart: the line's horizon at every rate, and the quickest rate of Adam and of the nowcast training."""
    nowcaster = learned[run.seed + TUNING][GRAPH]
    line = LinearNowcaster()
    calls = []
    for seed in range(run.seed + TUNING, run.seed + TUNING + settings.tuning_seeds):
        rates = sorted({*settings.rates, *settings.tuning_rates})
        calls += [partial(life, ADAM, None, None, data, rate, seed, settings) for rate in rates]
        calls += [partial(life, GRAPH, nowcaster, None, data, rate, seed, settings) for rate in settings.tuning_rates]
        calls += [
            partial(life, f"{LINE} {k}", line, k, data, rate, seed, settings)
            for rate in settings.rates
            for k in settings.line_horizons
        ]
    table = pd.concat(parallel(calls, jobs=run.jobs, track=run.track, label="tuning"), ignore_index=True)
    run.metrics("tuning", table)
    steps, base = reached(table, settings), reached(table, settings, base=settings.rates[0])
    horizons = {
        rate: min(settings.line_horizons, key=lambda k, rate=rate: float(column(steps, f"{LINE} {k}", rate).mean()))
        for rate in settings.rates
    }
    quickest = {
        arm: min(settings.tuning_rates, key=lambda rate, arm=arm: float(column(base, arm, rate).mean()))
        for arm in (ADAM, GRAPH)
    }
    rows = [{"what": f"{LINE}'s horizon at rate {rate:g}", "chosen": k} for rate, k in horizons.items()]
    rows += [{"what": f"rate of {arm}", "chosen": rate} for arm, rate in quickest.items()]
    run.table("tuned", pd.DataFrame(rows))
    return horizons, quickest


def every_seed(
    data: Dataset,
    *,
    rates: tuple[float, ...],
    learned: Taught,
    horizons: dict[float, int],
    settings: Settings,
    run: Run,
) -> pd.DataFrame:
    """Every arm at every rate: a seed has its own nowcasters, initial weights and batches, alike for all arms."""
    calls = [
        partial(one_seed, data, rates, learned[seed], horizons, settings, seed)
        for seed in range(run.seed, run.seed + settings.seeds)
    ]
    return pd.concat(parallel(calls, jobs=run.jobs, track=run.track, label="seeds"), ignore_index=True)


def one_seed(
    data: Dataset,
    rates: tuple[float, ...],
    learned: dict[str, Nowcaster],
    horizons: dict[float, int],
    settings: Settings,
    seed: int,
) -> pd.DataFrame:
    """See `every_seed`."""
    curves = []
    for rate in rates:
        arms: dict[str, Nowcaster | None] = {ADAM: None, STILL: LinearNowcaster(0), LINE: LinearNowcaster(), **learned}
        curves += [
            life(arm, nowcaster, horizons[rate] if arm == LINE else None, data, rate, seed, settings)
            for arm, nowcaster in arms.items()
        ]
    return pd.concat(curves)


def reached(table: pd.DataFrame, settings: Settings, base: float | None = None) -> pd.DataFrame:
    """Steps until the loss is as low as Adam's after the last step, on the same seed and at the same rate.

    With `base`, Adam's loss at that rate is everyone's target. Adam's own steps are until it first was so low.
    """
    rows = []
    for arm, rate, seed in table[["arm", "rate", "seed"]].drop_duplicates().itertuples(index=False):
        target = numbers(table, "loss", arm=ADAM, rate=base or rate, seed=seed)[-1]
        losses = numbers(table, "loss", arm=arm, rate=rate, seed=seed)
        there = numbers(table, "step", arm=arm, rate=rate, seed=seed)[losses <= target]
        steps = int(there[0]) if there.size else settings.steps + settings.look
        rows.append({"arm": arm, "rate": rate, "seed": seed, "steps": steps, "last loss": losses[-1]})
    return pd.DataFrame(rows)


def numbers(table: pd.DataFrame, value: str, **where: object) -> np.ndarray:
    """One column of the rows where others have the given values, in the table's order."""
    chosen = np.ones(len(table), dtype=bool)
    for name, wanted in where.items():
        chosen &= (table[name] == wanted).to_numpy()
    return table[value].to_numpy(dtype=float)[chosen]


def column(steps: pd.DataFrame, arm: str, rate: float) -> np.ndarray:
    """Steps of one arm at one rate, by seed."""
    return numbers(steps, "steps", arm=arm, rate=rate)


def savings(steps: pd.DataFrame, arm: str, rate: float) -> np.ndarray:
    """Share of Adam's steps that an arm saves, %, by seed."""
    adam = column(steps, ADAM, rate)
    return 100 * (adam - column(steps, arm, rate)) / adam


def worst(verdicts: list[bool | None]) -> bool | None:
    """True if all are, False if one is, None otherwise."""
    return False if False in verdicts else None if None in verdicts else True


def errors(data: Dataset, learned: Taught, settings: Settings, run: Run) -> None:
    """The forecasts themselves, on trajectories of nets that no nowcaster has seen."""
    fresh = collected(data, (settings.tested_on,), 3, FRESH, settings, run)

    def compute() -> pd.DataFrame:
        rows = []
        for seed in range(run.seed, run.seed + settings.seeds):
            rivals = {LINE: LinearNowcaster(), STILL: LinearNowcaster(0)}
            for arm, nowcaster in {**learned[seed], **rivals}.items():
                drawn = torch.Generator().manual_seed(seed)
                error = forecast_error(nowcaster, fresh, slices=24, generator=drawn)
                rows.append({"arm": arm, "seed": seed, "error": error})
        return pd.DataFrame(rows)

    table = run.checkpoint("errors", compute)
    run.table("forecast-error", table)
    means = {arm: float(numbers(table, "error", arm=arm).mean()) for arm in (GRAPH, MLP, LINE, STILL)}
    for name in (GRAPH, MLP):
        rival = min((LINE, STILL), key=means.__getitem__)
        lead = compare_paired(*(numbers(table, "error", arm=arm) for arm in (rival, name)))
        run.claim(
            f"{name} forecasts weights of new nets better than a line and than standing still: its lead on the better",
            paper="NiNo > WNN+ > linear (tables)",
            measured=lead.mean,
            interval=lead.interval,
            unit="mean absolute error of scaled weights, all horizons",
            threshold="interval above 0",
            baseline=", ".join(f"{arm}: {means[arm]:.3f}" for arm in (LINE, STILL)),
            holds=lead.above(0),
            note=f"{name}: {means[name]:.3f}.",
        )


def saves(name: str, where: str, steps: pd.DataFrame, run: Run) -> None:
    """Steps saved against Adam at the same rate; the rate with the smallest saving counts."""
    rates = sorted(steps["rate"].unique())
    found = {rate: savings(steps, name, rate) for rate in rates}
    least = min(rates, key=lambda rate: float(np.median(found[rate])))
    text = f"{name} saves steps {where}"
    run.claim(
        text,
        paper=SAVED,
        measured=float(np.median(found[least])),
        interval=t_interval(found[least]),
        unit="% of Adam's steps (median; the smallest of the rates)",
        threshold=f"median and interval above {MARGIN} at every rate; {NEVER}",
        baseline="Adam at the same rate, until it first has its last loss",
        holds=worst([above(t_interval(found[rate]), MARGIN) for rate in rates]),
        note=" ".join(f"Rate {rate:g}: {', '.join(f'{saved:.0f}' for saved in found[rate])}." for rate in rates),
    )


def beats_line(rate: float, steps: pd.DataFrame, horizons: dict[float, int], run: Run) -> None:
    """Whether anything had to be learned."""
    lead = compare_paired(column(steps, LINE, rate), column(steps, GRAPH, rate))
    text = f"{GRAPH} needs fewer steps than a line with its tuned horizon, at rate {rate:g}"
    run.claim(
        text,
        paper="NiNo > WNN+ > linear (tables)",
        measured=lead.mean,
        interval=lead.interval,
        unit="steps",
        threshold=f"interval above 0; {NEVER}",
        baseline=f"line, first call {horizons[rate]} states ahead: {column(steps, LINE, rate).mean():.0f} steps",
        holds=lead.above(0),
        note=lead.seed_by_seed(0) if lead.above(0) else f"{lead.seed_by_seed(0)} {JUMPS}",
    )


def graph_or_mlp(steps: pd.DataFrame, run: Run) -> None:
    """Whether the connections tell more than a weight's own history, over all rates."""
    rates = sorted(steps["rate"].unique())
    by_seed = [np.mean([column(steps, arm, rate) for rate in rates], axis=0) for arm in (MLP, GRAPH)]
    lead = compare_paired(*by_seed)
    text = f"{GRAPH} needs fewer steps than {MLP}, mean over the rates"
    run.claim(
        text,
        paper="NiNo > WNN+ (tables)",
        measured=lead.mean,
        interval=lead.interval,
        unit="steps",
        threshold="interval above 0",
        baseline=f"{MLP}: {by_seed[0].mean():.0f} steps",
        holds=lead.above(0),
        note=lead.seed_by_seed(0) if lead.above(0) else f"{lead.seed_by_seed(0)} {DEEPER}",
    )


def control(steps: pd.DataFrame, table: pd.DataFrame, run: Run) -> None:
    """A forecast that nothing moves must leave Adam's training as it is."""
    rates = sorted(steps["rate"].unique())
    largest = max(float(np.abs(savings(steps, STILL, rate)).max()) for rate in rates)
    same = bool((numbers(table, "loss", arm=ADAM) == numbers(table, "loss", arm=STILL)).all())
    run.claim(
        "control: a forecast that nothing moves saves nothing",
        measured=largest,
        unit="% of Adam's steps (largest)",
        threshold="0, and every loss is Adam's to the last bit",
        holds=largest == 0 and same,
    )
    arms = list(dict.fromkeys(table["arm"]))
    seconds = [float(np.mean(numbers(table, "seconds", arm=arm))) for arm in arms]
    run.table("cost", pd.DataFrame({"arm": arms, "seconds a training": np.round(seconds, 2)}))


def both_tuned(
    table: pd.DataFrame,
    quickest: dict[str, float],
    data: Dataset,
    learned: Taught,
    settings: Settings,
    run: Run,
) -> None:
    """A larger rate alone saves steps: is there anything left to save when Adam has its best one?"""

    def compute() -> pd.DataFrame:
        rows = []
        for seed in range(run.seed, run.seed + settings.seeds):
            nowcaster = learned[seed][GRAPH]
            rows.append(life(ADAM, None, None, data, quickest[ADAM], seed, settings))
            rows.append(life(GRAPH, nowcaster, None, data, quickest[GRAPH], seed, settings))
        return pd.concat(rows, ignore_index=True)

    base = settings.rates[0]
    raced = run.checkpoint("both-tuned", compute)
    run.metrics("both-tuned", raced)
    known, fresh = ((each["rate"] == base).to_numpy() for each in (table, raced))
    steps = reached(pd.concat([table.loc[known], raced.loc[~fresh]], ignore_index=True), settings, base=base)
    arms = {arm: column(steps, arm, quickest[arm]) for arm in (ADAM, GRAPH)}
    lead: Comparison = compare_paired(arms[ADAM], arms[GRAPH])
    slow = column(steps, GRAPH, base)
    holds = lead.above(0) if any(lead.differences) else False  # nothing gained on any seed is no gain
    early = f" {EARLY}" if max(arms[ADAM].max(), arms[GRAPH].max()) < settings.period else ""
    text = f"with the rates of both tuned, {GRAPH} still needs fewer steps than Adam to Adam's loss at rate {base:g}"
    run.claim(
        text,
        paper=SAVED,
        measured=lead.mean,
        interval=lead.interval,
        unit="steps",
        threshold="interval above 0",
        baseline=f"Adam at rate {quickest[ADAM]:g}: {arms[ADAM].mean():.0f} steps",
        holds=holds,
        note=f"{GRAPH} at rate {quickest[GRAPH]:g}: {arms[GRAPH].mean():.0f} steps; at rate {base:g}: "
        f"{slow.mean():.0f}. {lead.seed_by_seed(0)}{early}",
    )


def smoke(data: Dataset, trajectories: TrajectoryDataset, settings: Settings, run: Run) -> None:
    """What seconds can tell: the simpler nowcaster, on two seeds."""
    generator = torch.Generator().manual_seed(run.seed)
    nowcaster = single(settings, generator)
    sizes = {"slices": settings.mlp_slices, "weights": settings.mlp_weights, "steps": settings.mlp_steps}
    train_nowcaster(nowcaster, trajectories, generator=generator, **sizes)
    arms = {ADAM: None, STILL: LinearNowcaster(0), MLP: nowcaster}
    calls = [
        partial(life, arm, each, None, data, rate, seed, settings)
        for seed in range(run.seed, run.seed + settings.seeds)
        for rate in settings.rates
        for arm, each in arms.items()
    ]
    table = pd.concat(parallel(calls, jobs=run.jobs, track=run.track, label="trainings"), ignore_index=True)
    steps = reached(table, settings)
    run.table("steps", steps)
    least = min(float(savings(steps, MLP, rate).min()) for rate in settings.rates)
    run.claim(
        f"{MLP} saves steps on new nets",
        paper=SAVED,
        measured=least,
        unit="% of Adam's steps (worst seed)",
        threshold="above 0 in every seed",
        holds=least > 0,
    )
    control(steps, table, run)
    figures(table, steps, settings, run)


def figures(table: pd.DataFrame, steps: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Loss over steps with its jumps, and the steps saved."""
    arms = [arm for arm in (ADAM, LINE, MLP, GRAPH, OFFICIAL) if arm in set(table["arm"])]
    figure, axes = panels(len(settings.rates))
    for ax, rate in zip(axes, settings.rates, strict=True):
        curves = {
            arm: pd.DataFrame({of: numbers(table, of, arm=arm, rate=rate, seed=run.seed) for of in ("step", "loss")})
            for arm in arms
        }
        plot_jumps(curves, ax, period=settings.period, title=f"rate {rate:g}", legend=ax is axes[0])
    run.figure("curves", figure)
    saved = {arm: {f"rate {rate:g}": savings(steps, arm, rate) for rate in settings.rates} for arm in arms[1:]}
    run.figure("savings", plot_savings(saved))
