"""Which strategies find good architectures sooner than random search, and which cheap estimates rank them?

A survey has no experiment of its own; what it says of small tabular benchmarks is repeated on one (White, Safari,
Sukthanker, Ru, Elsken, Zela, Dey & Hutter 2023). NB-digits has all 480 different cells of 625 codes, trained on
scikit-learn's digits with three seeds. Searched is minus the validation loss averaged over the seeds. Queries are
counted by network, for random search too. The strategies' seeds are the units of the tests: the table is one fixed
landscape, and nothing is claimed beyond it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from torch import Tensor

from neuropil.atlas import Run
from neuropil.parallel import parallel
from neuropil.plotting import panels
from neuropil.statistics import above, below, bootstrap_interval, compare_paired, t_interval
from neuropil.structure.search.bayes import BayesSearch
from neuropil.structure.search.benchmarks import TabularBenchmark, nb_digits, read_benchmark
from neuropil.structure.search.cell_spaces import nasbench201_space
from neuropil.structure.search.comparison import StrategyComparison, compare
from neuropil.structure.search.correlation import rank_table
from neuropil.structure.search.digits_cells import digits_split, train_cells
from neuropil.structure.search.fidelity import hyperband_brackets
from neuropil.structure.search.landscapes import nk_landscape
from neuropil.structure.search.plots import plot_correlations, plot_regret
from neuropil.structure.search.practice import checklist
from neuropil.structure.search.proxies import PROXIES
from neuropil.structure.search.strategies import (
    LocalSearch,
    PolicyGradient,
    RandomSearch,
    RegularisedEvolution,
    Strategy,
)
from neuropil.structure.search.surrogates import mlp_ensemble
from neuropil.studies.structure._search_arms import (
    by_seed,
    differentiable,
    first_batch,
    score,
    shared_weights,
    short_trainings,
)


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the scale "paper" is for the table of NAS-Bench-201."""

    table: str = "NB-digits"  # or a CSV file, as neuropil.structure.search.benchmarks describes it
    images: str = ""  # a safetensors file with a batch of its training images (x) and classes (y), for the proxies
    runs: int = 200
    budget: int = 300
    population: tuple[int, int] = (10, 5)  # and sample, of the evolution that is judged
    model_runs: int = 30
    model_budget: int = 100
    share: float = 0.01
    cells: int = 60
    batch: int = 64
    resamples: int = 2000
    shared_seeds: int = 5
    shared_steps: int = 1000  # where a supernet apart had the lowest mean validation loss of its paths
    darts_steps: int = 300
    darts_unroll: float = 0.1


SCALES = {
    "smoke": Settings(runs=60, budget=150),
    "default": Settings(),
    "paper": Settings(
        table="nas-bench-201.csv",
        images="cifar-10-batch.safetensors",
        budget=500,
        population=(30, 10),
        model_budget=300,
        cells=300,
        shared_seeds=0,
    ),
}

RANDOM, LOCAL, EVOLUTION = "random", "local search", "evolution"
BASELINES = ("params", "macs")
# Found by looking at the table and at the searches' traces.
EARLY = (
    "Early looks help, at equal epochs Hyperband beats random search, but not threefold: a ninth of a training ranks "
    "the table with a tau of 0.42, a third with 0.64, and Hyperband meets 17 networks where random search meets 25. "
    "It is not the number of brackets: with first looks at a 27th the gap is as wide (0.012 against 0.008)."
)
SURVEY = "qualitative: ahead of random search on NAS-Bench-101 and 201"


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    exact(run)
    if run.scale == "smoke":
        space, value = nk_landscape(10, 2, seed=run.seed)
        values = sorted(map(value, space.all()), reverse=True)
        judged = {name: one for name, one in strategies(settings).items() if name in (RANDOM, LOCAL, EVOLUTION)}
        compared = compare(judged, space, value, settings.budget, settings.runs, optimum=values[0], jobs=run.jobs)
        target = values[round(settings.share * len(values)) - 1]
        for name in (LOCAL, EVOLUTION):
            sooner(name, target, compared, "an NK landscape of 1,024 codes", run)
        run.figure("regret", plot_regret(compared))
        return
    benchmark = opened(settings, run)
    if benchmark is None:
        return
    described(benchmark, settings, run)
    compared = searched(benchmark, settings, run)
    ranked = proxies(benchmark, settings, run)
    epochs(benchmark, settings, run)
    if settings.shared_seeds:
        sharing(benchmark, settings, run)
    pictures(compared, ranked, benchmark, run)


def exact(run: Run) -> None:
    """What must hold exactly."""
    brackets = [(81, 1), (34, 3), (15, 9), (8, 27), (5, 81)]
    run.claim(
        "the brackets of Hyperband for R = 81, eta = 3 are those of its paper: largest difference",
        paper="(81, 1), (34, 3), (15, 9), (8, 27), (5, 81) (Li et al. 2018, table 1)",
        measured=int(np.abs(np.subtract(hyperband_brackets(81), brackets)).max()),
        threshold="0",
        holds=hyperband_brackets(81) == brackets,
    )
    shipped = nb_digits(seeds=[0])
    cells = shipped.architectures[:: len(shipped) // 3][:4]
    rows = train_cells(cells, 0)
    losses = [row[f"validation loss {shipped.lengths[-1]}"] for row in rows.to_dict("records")]
    gap = max(abs(loss + shipped.value(cell)) for loss, cell in zip(losses, cells, strict=True))
    run.claim(
        "training cells of NB-digits anew gives their rows of the table: largest difference of four cells",
        measured=gap,
        unit="nats",
        threshold="< 1e-3",
        holds=gap < 1e-3,
    )


def opened(settings: Settings, run: Run) -> TabularBenchmark | None:
    """The table, where it is at hand."""
    if settings.table == "NB-digits":
        run.uses(digits_split()[1])
        return nb_digits()
    path = Path(settings.table)
    if not path.is_file():
        note = "A table of NAS-Bench-201 in the form of neuropil.structure.search.benchmarks, in the setting `table`."
        run.claim(
            f"strategies on the table {path.name} find good architectures sooner than random search",
            holds=None,
            note=f"{path.name} is not at hand. {note}",
        )
        return None
    return read_benchmark(path, nasbench201_space())


def described(benchmark: TabularBenchmark, settings: Settings, run: Run) -> None:
    """The table's own noise, which bounds what any estimate can reach."""
    rows = {
        "networks": len(benchmark),
        "seeds": len(benchmark.seeds),
        "best validation loss": -benchmark.optimum,
        "between the quartiles": benchmark.spread,
        "Kendall tau between two seeds": benchmark.agreement(),
    }
    truth = [benchmark.value(cell) for cell in benchmark.architectures]
    for length in benchmark.lengths[:-1]:
        early = [benchmark.value(cell, length) for cell in benchmark.architectures]
        (row,) = rank_table({"early": early}, truth, resamples=1).to_dict("records")
        rows[f"Kendall tau of length {length} with {benchmark.lengths[-1]}"] = row["correlation"]
    run.table("benchmark", pd.DataFrame({"what": list(rows), "value": list(rows.values())}))


def strategies(settings: Settings) -> dict[str, Strategy]:
    """Strategies that learn no model and no policy; the first evolution is the one that is judged."""
    population, sample = settings.population
    arms: dict[str, Strategy] = {
        RANDOM: RandomSearch(),
        LOCAL: LocalSearch(),
        EVOLUTION: RegularisedEvolution(population, sample),
    }
    for size, drawn in ((30, 10), (100, 25)):
        if (size, drawn) != settings.population and size <= settings.budget:
            arms[f"evolution P={size}, S={drawn}"] = RegularisedEvolution(size, drawn)
    return arms


def searched(benchmark: TabularBenchmark, settings: Settings, run: Run) -> dict[str, StrategyComparison]:
    """Strategies under one budget; those that learn, which takes time, on fewer seeds and queries."""
    settle = partial(
        compare,
        space=benchmark.space,
        evaluate=benchmark.value,
        optimum=benchmark.optimum,
        jobs=run.jobs,
        track=run.track,
    )
    plain = settle(strategies(settings), budget=settings.budget, seeds=settings.runs)
    models: dict[str, Strategy] = {
        RANDOM: RandomSearch(),
        EVOLUTION: RegularisedEvolution(*settings.population),
        "policy gradient": PolicyGradient(),
        "Bayes, Gaussian process": BayesSearch("gp"),
        "Bayes, random forest": BayesSearch("forest"),
        "BANANAS": BayesSearch(partial(mlp_ensemble, members=3, steps=100), encoding="path"),
    }
    modelled = settle(models, budget=settings.model_budget, seeds=settings.model_runs)
    target = benchmark.top(settings.share)
    rows = [
        *summary(plain, target, benchmark, "all queries"),
        *summary(modelled, target, benchmark, "with a model or a policy"),
    ]
    run.table("strategies", pd.DataFrame(rows))
    for name in (LOCAL, EVOLUTION):
        sooner(name, target, plain, f"{len(benchmark)} cells", run)
    report = checklist(
        plain,
        same_training=True,
        test_once=True,
        hardware="environment.json of the run",
        code="this study",
    )
    run.table("checklist", report.table())
    return {"all": plain, "models": modelled}


def summary(compared: StrategyComparison, target: float, benchmark: TabularBenchmark, part: str) -> list[dict]:
    """What each strategy reached; regret on the test part is of the best by validation, looked at once."""
    rows = []
    for name in compared.strategies:
        found = [max(of, key=lambda one: one[0])[1] for of in by_seed(compared.traces, name)]
        test = [benchmark.test_optimum - benchmark.test_value(cell) for cell in found]
        overhead = [row["overhead"] for row in compared.runs.to_dict("records") if row["strategy"] == name]
        rows.append(
            {
                "part": part,
                "strategy": name,
                "runs": len(found),
                "queries": compared.budget,
                "median queries to the top": float(np.median(compared.queries_to(target, name))),
                "regret": float(compared.regret(name)[:, -1].mean()),
                "test regret": float(np.mean(test)),
                "own seconds a run": float(np.mean(overhead)),
            }
        )
    return rows


def sooner(name: str, target: float, compared: StrategyComparison, where: str, run: Run) -> None:
    """Whether a strategy reaches the best architectures in fewer queries than random search."""
    first = compared.sooner(target, name)
    ours, theirs = compared.queries_to(target, name), compared.queries_to(target, RANDOM)
    saved = bootstrap_interval(theirs.astype(float) - ours, resamples=2000)
    run.claim(
        f"{name} reaches the best 1% of {where} in fewer queries than random search",
        paper=SURVEY,
        measured=float((theirs - ours).mean()),
        interval=saved,
        unit="queries fewer (mean)",
        threshold="one-sided p of Mann and Whitney < 0.01",
        baseline=f"random search: median {first.baseline:.0f} queries",
        holds=first.p < 0.01,
        note=f"Median {first.median:.0f}; p = {first.p:.1g}; {100 * first.reached:.0f}% of the runs get there.",
    )


def proxies(benchmark: TabularBenchmark, settings: Settings, run: Run) -> pd.DataFrame | None:
    """Zero-cost proxies of untrained cells against the table."""
    batch = proxy_batch(settings, run)
    if batch is None:
        return None
    chosen = np.random.default_rng(run.seed).permutation(len(benchmark))[: settings.cells]
    cells = [benchmark.architectures[index] for index in sorted(chosen)]
    calls = [partial(score, settings.table, cell, batch, run.seed) for cell in cells]
    scores = pd.DataFrame(parallel(calls, jobs=run.jobs, track=run.track, label="proxies"))
    truth = [benchmark.value(cell) for cell in cells]
    run.metrics("proxies", scores.assign(value=truth))
    table = rank_table(
        {name: scores[name].tolist() for name in PROXIES}, truth, baseline="params", resamples=settings.resamples
    )
    run.table("proxies", table)
    rows = {row["predictor"]: row for row in table.to_dict("records")}
    best = max((name for name in rows if name not in BASELINES), key=lambda name: rows[name]["correlation"])
    interval = (rows[best]["low"], rows[best]["high"])
    others = ", ".join(f"{name} {row['correlation']:.2f}" for name, row in rows.items())
    run.claim(
        "the best zero-cost proxy ranks untrained cells better than chance: its Kendall tau",
        paper="0.3 to 0.8, by task and proxy (qualitative)",
        measured=rows[best]["correlation"],
        interval=interval,
        threshold="bootstrap interval over cells above 0",
        baseline=f"two seeds of the table: {benchmark.agreement():.2f}",
        holds=above(interval, 0),
        note=f"{best}, the best of {len(rows) - len(BASELINES)} on {len(cells)} cells. {others}.",
    )
    lead = (rows[best]["lead low"], rows[best]["lead high"])
    run.claim(
        "the best zero-cost proxy ranks better than the number of parameters: its lead in tau",
        paper="params and FLOPs are hard to beat (qualitative)",
        measured=rows[best]["lead"],
        interval=lead,
        threshold="paired bootstrap interval above 0",
        baseline=f"params {rows['params']['correlation']:.2f}, MACs {rows['macs']['correlation']:.2f}",
        holds=above(lead, 0),
        note=f"{best}, chosen on the same cells, which favours it.",
    )
    return table


def proxy_batch(settings: Settings, run: Run) -> tuple[Tensor, Tensor] | None:
    """One batch of the benchmark's training images."""
    if settings.table == "NB-digits":
        return first_batch(settings.batch, run.seed)
    path = Path(settings.images)
    if not path.is_file():
        run.claim(
            "the best zero-cost proxy ranks untrained cells better than chance",
            holds=None,
            note=f"{path.name} is not at hand: a safetensors file with x (samples, 3, 32, 32) and y, setting `images`.",
        )
        return None
    stored = load_file(path)
    return stored["x"][: settings.batch], stored["y"][: settings.batch]


def epochs(benchmark: TabularBenchmark, settings: Settings, run: Run) -> None:
    """What short trainings save."""
    text = "Hyperband's regret is not worse than random search's with three times its epochs: the difference"
    if len(benchmark.lengths) < 3:
        run.claim(text, holds=None, note=f"The table has trainings of the lengths {benchmark.lengths} only.")
        return
    blocks = [range(start, min(start + 10, settings.runs)) for start in range(0, settings.runs, 10)]
    calls = [partial(short_trainings, benchmark, block) for block in blocks]
    table = pd.concat(parallel(calls, jobs=run.jobs, track=run.track, label="short trainings"), ignore_index=True)
    names: list[str] = list(dict.fromkeys(table["method"].tolist()))
    columns = ("cost", "regret", "test regret")
    means = {name: {of: float(numbers(table, name, of).mean()) for of in columns} for name in names}
    run.table("short-trainings", pd.DataFrame([{"method": name, **row} for name, row in means.items()]))
    full = "random, three times the epochs"
    difference = compare_paired(numbers(table, "Hyperband", "regret"), numbers(table, full, "regret"))
    margin = 0.1 * benchmark.spread
    run.claim(
        text,
        paper="multi-fidelity searches are quicker (qualitative)",
        measured=difference.mean,
        interval=difference.interval,
        unit="nats of validation loss",
        threshold=f"interval below a tenth of the distance between the table's quartiles, {margin:.4f}",
        baseline=f"random search, {means[full]['cost']:.1f} whole trainings: {means[full]['regret']:.4f}",
        holds=below(difference.interval, margin),
        note=others(means) if below(difference.interval, margin) else f"{others(means)} {EARLY}",
    )


def numbers(table: pd.DataFrame, method: str, column: str) -> np.ndarray:
    """One column of a method, by seed."""
    return table[column].to_numpy(dtype=float)[(table["method"] == method).to_numpy()]


def others(means: Mapping[str, Mapping[str, float]]) -> str:
    """All methods in a line."""
    return (
        "Regret: "
        + ", ".join(f"{name} {row['regret']:.4f} ({row['cost']:.1f} trainings)" for name, row in means.items())
        + "."
    )


def sharing(benchmark: TabularBenchmark, settings: Settings, run: Run) -> None:
    """How well shared weights rank cells, and what DARTS ends with."""
    seeds = range(run.seed, run.seed + settings.shared_seeds)
    calls = [partial(shared_weights, benchmark, settings.shared_steps, seed) for seed in seeds]
    calls += [
        partial(differentiable, benchmark, settings.darts_steps, unroll, seed)
        for unroll in (0.0, settings.darts_unroll)
        for seed in seeds
    ]
    found = parallel(calls, jobs=run.jobs, track=run.track, label="supernets")
    single, darts = pd.DataFrame(found[: len(seeds)]), pd.DataFrame(found[len(seeds) :])
    darts.insert(0, "order", ["first"] * len(seeds) + ["second"] * len(seeds))
    run.table("shared-weights", single)
    run.table("darts", darts)
    whole, top = single["all"].tolist(), single["top"].tolist()
    run.claim(
        "weights shared by single paths rank all cells better than chance: Kendall tau",
        paper="correlated, imperfectly (qualitative)",
        measured=float(np.mean(whole)),
        interval=t_interval(whole),
        threshold="interval over supernets above 0",
        baseline=f"two seeds of the table: {benchmark.agreement():.2f}",
        holds=above(t_interval(whole), 0),
    )
    drop = compare_paired(whole, top)
    run.claim(
        "they rank the best tenth of the cells less well than all: loss of tau",
        paper="low tau among the top architectures (qualitative)",
        measured=drop.mean,
        interval=drop.interval,
        threshold="interval above 0",
        baseline=f"all cells: {np.mean(whole):.2f}",
        holds=drop.above(0),
        note=f"The best tenth: {np.mean(top):.2f}.",
    )
    median = float(single["median regret"].iloc[0])
    regret = [row["regret"] for row in darts.to_dict("records") if row["order"] == "second"]
    gain = [median - one for one in regret]
    skips = ", ".join(f"{row['skips']:.2f}" for row in darts.to_dict("records") if row["order"] == "second")
    run.claim(
        "DARTS (second order) ends with a better cell than the median one: its lead",
        paper="competitive on its own space, with failures (qualitative)",
        measured=float(np.mean(gain)),
        interval=t_interval(gain),
        unit="nats of validation loss",
        threshold="interval over seeds above 0",
        baseline=f"regret of the median cell: {median:.3f}",
        holds=above(t_interval(gain), 0),
        note=f"Share of skips in its cells: {skips}. The first order is in the table.",
    )


def pictures(
    compared: dict[str, StrategyComparison], ranked: pd.DataFrame | None, benchmark: TabularBenchmark, run: Run
) -> None:
    """Regret against queries, and rank correlations."""
    figure, axes = panels(2)
    for ax, part, title in zip(axes, ("all", "models"), ("without learning", "with a model or a policy"), strict=True):
        plot_regret(compared[part], ax)
        ax.set_title(title, fontsize=10)
        ax.set_yscale("log")
        # A run at the optimum has no logarithm, and the mean of few that are not yet there falls in jumps.
        ax.set_ylim(bottom=1e-4)
    axes[0].set_ylabel("regret (nats of validation loss)")
    run.figure("regret", figure)
    if ranked is not None:
        figure, (ax,) = panels()
        plot_correlations(ranked, ax, ceiling=benchmark.agreement())
        ax.set_xlabel("Kendall tau with the validation loss")
        run.figure("proxies", figure)
