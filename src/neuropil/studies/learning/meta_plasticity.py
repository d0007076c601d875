"""Can evolution make a net that learns a new cognitive task within its life, from stimuli and reward alone?

Three loops (Miconi 2023): generations shape innate weights and plasticity coefficients, a life acquires one task by
reward-modulated plasticity, a trial takes working memory. The test is on a task that no generation has met. Tasks come
in complementary pairs: over a pair every fixed policy is right in half of the trials, so only learning within the life
can do better; a life with the plastic weights held at 0 is the control.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuropil.atlas import Run
from neuropil.learning import Backpropagation
from neuropil.learning.evolution import (
    TASKS,
    AntitheticES,
    CognitiveTasks,
    Life,
    LifetimePlasticity,
    PlasticRNN,
    complement,
    cross_temporal_decoding,
    live,
    plot_cross_temporal,
    plot_generations,
    plot_lives,
    truth_table,
)
from neuropil.learning.networks import linear
from neuropil.learning.perturbation import NodePerturbation
from neuropil.losses import half_squared_error
from neuropil.plotting import GREY, panels
from neuropil.statistics import above, compare_paired, t_interval, within

PAIRS = ("and", "nand", "or", "nor", "watchstim1", "antiwatchstim1", "watchstim2", "antiwatchstim2")
# In this order even and odd tasks are the halves of the published code.
ALL_BUT_MATCH = (
    "and",
    "nand",
    "01",
    "anti01",
    "10",
    "anti10",
    "watchstim1",
    "watchstim2",
    "antiwatchstim1",
    "antiwatchstim2",
    "nor",
    "or",
)


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper".

    `scored`: trials at the end of a life that count; `every`: generations between evaluations; `rival_rates`: learning
    rates among which generation 0 may choose; `halves`: alternate between even and odd training tasks.
    """

    train: tuple[str, ...] = PAIRS
    withheld: tuple[str, ...] = ("01", "anti01")
    shown: tuple[str, ...] = ("dms", "dnms")
    halves: bool = False
    hidden: int = 23
    population: int = 60
    generations: int = 100
    seeds: int = 6
    trials: int = 120
    burn_in: int = 11
    quiet: int = 20
    scored: int = 30
    eta: float = 0.3
    clip: float = 0.1
    rate: float = 0.01
    weight_decay: float = 3e-4
    sigma: float = 0.03
    every: int = 20
    lives: int = 24
    rival_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    decoded_lives: int = 240


SCALES = {
    "smoke": Settings(generations=0),
    "default": Settings(),
    "paper": Settings(
        train=ALL_BUT_MATCH,
        withheld=("dms", "dnms"),
        shown=(),
        halves=True,
        hidden=61,
        population=500,
        generations=1000,
        seeds=5,
        trials=400,
        burn_in=31,
        scored=100,
        eta=0.03,
        clip=0.01,
        every=10,
        rival_rates=(0.01, 0.03, 0.1, 0.3),
        decoded_lives=500,
    ),
}

EVALUATION = 0xE7A1  # apart from the seeds of evolution
STREAMS = 25  # of noise; odd, so that lives of alternating tasks meet every one
# Found by looking, at seeds 0 and 1.
REASON = (
    "A higher learning rate gives random nets much of what evolution gives at the lower one, for nothing. Evolved "
    "at rate 1 instead, two seeds ended no better: at 0.80 (trained) and 0.67 (withheld)."
)
GROUPS = {"train": "trained pairs", "withheld": "withheld pair", "shown": "match to sample"}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    components(settings, run)
    if not settings.generations:
        return
    seeds = range(run.seed, run.seed + settings.seeds)
    evolved = [evolve(seed, settings, run) for seed in run.track(seeds, "seed")]
    history = pd.DataFrame([row for one in evolved for row in one["history"]])
    run.metrics("success", history)
    rivals = pd.DataFrame([row for one in evolved for row in one["rivals"]])
    run.table("generation-0-rates", rivals.groupby(["tasks", "eta"])["late"].agg(["mean", "std"]).reset_index())
    claims(history, rivals, settings, run)
    pictures(evolved, history, settings, run)
    decoding(evolved, settings, run)


def components(settings: Settings, run: Run) -> None:
    """The parts, against what they must equal."""
    tables = {name: tuple(truth_table(name).tolist()) for name in TASKS}
    varied = {table for table in product((0, 1), repeat=4) if len(set(table)) > 1}
    opposite = all(sum(pair) == 1 for name in TASKS for pair in zip(TASKS[name], TASKS[complement(name)], strict=True))
    run.claim(
        "the tasks are all truth tables of two bits that are not constant, in complementary pairs",
        paper="14 tasks; two of the published code's tables are slips",
        measured=len(set(tables.values()) & varied),
        unit="of 14",
        threshold="14 of 14, every complement opposite in all four answers",
        holds=set(tables.values()) == varied and len(tables) == 14 and opposite,
    )
    gap = engines_agree(settings, run)
    run.claim(
        "the compiled life equals the plain one over 20 trials: largest difference of a loss or rate",
        measured=gap,
        unit="",
        threshold="< 1e-9 in double precision",
        holds=gap < 1e-9,
    )
    cosines = strategy_cosines(run)
    run.claim(
        "antithetic pairs find the gradient of a quadratic: cosine with the exact one, 20 dimensions, 500 pairs",
        measured=cosines[500],
        unit="",
        threshold="> 0.9",
        baseline=f"theory: {np.sqrt(500 / 520):.3f}",
        holds=cosines[500] > 0.9,
    )
    errors = linear_neuron(run)
    fall = errors["node perturbation"][0] / errors["node perturbation"][-1]
    run.claim(
        "node perturbation teaches a linear neuron: fall of its error",
        measured=fall,
        unit="times",
        threshold="> 10",
        baseline=f"exact gradient, same rate: {errors['exact gradient'][0] / errors['exact gradient'][-1]:.3g}",
        holds=fall > 10,
    )
    figure, (left, right) = panels(2)
    for label, values in errors.items():
        left.semilogy(values, label=label, lw=1.2)
    left.set_xlabel("update")
    left.set_ylabel("half squared error")
    left.set_title("a linear neuron")
    left.legend(frameon=False, fontsize=8)
    pairs = np.array(list(cosines))
    right.semilogx(pairs, list(cosines.values()), "o", ms=4, label="measured")
    right.semilogx(pairs, np.sqrt(pairs / (pairs + 20)), color=GREY, lw=1, label="sqrt(p / (p + d))")
    right.set_xlabel("antithetic pairs")
    right.set_ylabel("cosine with the gradient")
    right.set_title("evolution strategy, 20 dimensions")
    right.legend(frameon=False, fontsize=8)
    run.figure("components", figure)


def engines_agree(settings: Settings, run: Run) -> float:
    """A block of 20 trials with an untrained net, lived by both engines."""
    generator = torch.Generator().manual_seed(run.seed)
    net = fresh(settings, generator).double()
    rule = LifetimePlasticity(eta=settings.eta, clip=settings.clip, burn_in=4, quiet=2)
    block = CognitiveTasks(settings.train).block(settings.train[:4], 20, generator)
    noise = rule.perturbations(2, 20, 50, net.neurons, generator=generator, dtype=torch.float64)
    one, other = (live(net, block, rule, noise, record=(0, 19), engine=engine) for engine in ("numba", "torch"))
    return max(float((a - b).abs().max()) for a, b in ((one.losses, other.losses), (one.activity, other.activity)))


def strategy_cosines(run: Run) -> dict[int, float]:
    """Cosine of the estimated with the exact gradient of a quadratic, by number of pairs."""
    generator = torch.Generator().manual_seed(run.seed)
    root = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    curvature, place = root @ root.T / 20, torch.randn(20, generator=generator, dtype=torch.float64)
    cosines = {}
    for pairs in (5, 20, 50, 100, 500, 2000):
        point = place.clone()
        strategy = AntitheticES({"point": point}, 0.03, 2 * pairs, generator)
        mutants = strategy.ask()["point"]
        strategy.tell(0.5 * torch.einsum("pi,ij,pj->p", mutants, curvature, mutants))
        cosines[pairs] = float(torch.cosine_similarity(_gradient(point), curvature @ place, dim=0))
    return cosines


def _gradient(parameter: Tensor) -> Tensor:
    if parameter.grad is None:
        raise ValueError("The strategy left no gradient.")
    return parameter.grad


def linear_neuron(run: Run, steps: int = 200) -> dict[str, list[float]]:
    """Error of a linear neuron that follows a teacher, by rule."""
    generator = torch.Generator().manual_seed(run.seed)
    x = torch.randn(20, 10, generator=generator)
    target = x @ torch.randn(10, 1, generator=generator)
    errors = {}
    for label, make in {
        "node perturbation": lambda net: NodePerturbation(net, half_squared_error, points=(), generator=generator),
        "exact gradient": lambda net: Backpropagation(net, half_squared_error),
    }.items():
        net = linear(10, 1, generator=torch.Generator().manual_seed(run.seed))
        rule, optimizer = make(net), torch.optim.SGD(net.parameters(), lr=0.05)
        errors[label] = [float(rule.learn(x, target, optimizer)) for _ in range(steps)]
    return errors


def fresh(settings: Settings, generator: torch.Generator) -> PlasticRNN:
    """A random net: stimuli, loss, bias and own answer as inputs, two answers as outputs."""
    return PlasticRNN(7, settings.hidden, 2, generator=generator)


def plasticity(settings: Settings, eta: float | None = None) -> LifetimePlasticity:
    """The rule of a life."""
    return LifetimePlasticity(
        eta=settings.eta if eta is None else eta,
        clip=settings.clip,
        burn_in=settings.burn_in,
        quiet=settings.quiet,
    )


def lives(net: PlasticRNN, block, noise: Tensor, settings: Settings, run: Run, eta: float | None = None, **options):
    """Lives on the run's device: compiled on the CPU, plain on a GPU."""
    engine = "numba" if run.device.type == "cpu" else "torch"
    return live(net, block, plasticity(settings, eta), noise, engine=engine, threads=run.jobs, **options)


def evolve(seed: int, settings: Settings, run: Run) -> dict:
    """One evolution: success over generations, the rivals of generation 0, first and last genome.

    It is kept every few generations; a resumed run goes on from there, with the same draws.
    """
    name = f"evolution-{seed}"
    generator = torch.Generator().manual_seed(seed)
    net = fresh(settings, generator).to(run.device)
    strategy = AntitheticES(dict(net.named_parameters()), settings.sigma, settings.population, generator)
    optimizer = torch.optim.Adam(net.parameters(), lr=settings.rate, weight_decay=settings.weight_decay)
    state = {"generation": 0, "history": [], "rivals": rivals(net, seed, settings, run), "first": _genome(net)}
    kept = run.load(name)
    if kept is not None:
        net.load_state_dict(kept["net"])
        optimizer.load_state_dict(kept["optimizer"])
        generator.set_state(kept["generator"])
        state = kept["state"]
    for generation in run.track(range(state["generation"], settings.generations), f"generation, seed {seed}"):
        if generation % settings.every == 0:
            state["generation"] = generation
            own = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "generator": generator.get_state()}
            run.save(name, own | {"state": state})
            state["history"] += measure(net, generation, seed, settings, run)
        losses = generation_losses(strategy, net, generation, generator, settings, run)
        optimizer.zero_grad()
        strategy.tell(losses)
        optimizer.step()
        net.constrain()
    state["history"] += measure(net, settings.generations, seed, settings, run)
    return state | {"last": _genome(net), "seed": seed}


def generation_losses(
    strategy: AntitheticES,
    net: PlasticRNN,
    generation: int,
    generator: torch.Generator,
    settings: Settings,
    run: Run,
) -> Tensor:
    """Loss of every mutant at the end of its life: pairs share task and stimuli, all share the noise."""
    names = settings.train[generation // 2 % 2 :: 2] if settings.halves else settings.train
    pairs = settings.population // 2
    order = torch.randperm(len(names), generator=generator)
    tasks = [names[int(order[pair % len(names)])] for pair in range(pairs)]
    stimuli = torch.randint(2, (pairs, settings.trials, 2), generator=generator)
    block = CognitiveTasks(names, settings.withheld).block(2 * tasks, settings.trials, stimuli=stimuli.repeat(2, 1, 1))
    noise = plasticity(settings).perturbations(1, settings.trials, 50, net.neurons, generator=generator)
    life = lives(net, block, noise, settings, run, genomes=strategy.ask())
    return life.losses[:, -settings.scored :].mean(1)


def evaluate(
    net: PlasticRNN,
    tasks: tuple[str, ...],
    seed: int,
    settings: Settings,
    run: Run,
    *,
    eta: float | None = None,
    learning: bool = True,
) -> np.ndarray:
    """Fraction of right answers of the unmutated genome in each trial; stimuli and noise are always the same."""
    generator = torch.Generator().manual_seed(seed ^ EVALUATION)
    stimuli = torch.randint(2, (settings.lives, settings.trials, 2), generator=generator)
    shape = (settings.lives, settings.trials, 50, net.neurons)
    noise = plasticity(settings).perturbations(*shape, generator=generator)
    block = CognitiveTasks(tasks).block(
        [task for task in tasks for _ in range(settings.lives)],
        settings.trials,
        stimuli=stimuli.repeat(len(tasks), 1, 1),
    )
    life: Life = lives(net, block, noise, settings, run, eta, learning=learning)
    return life.correct.double().mean(0).cpu().numpy()


def groups(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Sets of tasks that are judged together."""
    return {name: getattr(settings, name) for name in GROUPS if getattr(settings, name)}


def measure(net: PlasticRNN, generation: int, seed: int, settings: Settings, run: Run) -> list[dict]:
    """Success of the genome on every set of tasks: early and late in life, and late with plasticity off."""
    rows = []
    for name, tasks in groups(settings).items():
        right = evaluate(net, tasks, seed, settings, run)
        frozen = evaluate(net, tasks, seed, settings, run, learning=False)
        rows.append(
            {
                "seed": seed,
                "generation": generation,
                "tasks": name,
                "early": float(right[: settings.burn_in].mean()),
                "late": float(right[-settings.scored :].mean()),
                "frozen": float(frozen[-settings.scored :].mean()),
            }
        )
    return rows


def rivals(net: PlasticRNN, seed: int, settings: Settings, run: Run) -> list[dict]:
    """Late success of the random genome at each learning rate."""
    rows = []
    for eta in dict.fromkeys((*settings.rival_rates, settings.eta)):
        for name, tasks in groups(settings).items():
            right = evaluate(net, tasks, seed, settings, run, eta=eta)
            rows.append({"seed": seed, "eta": eta, "tasks": name, "late": float(right[-settings.scored :].mean())})
    return rows


def _genome(net: PlasticRNN) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in net.named_parameters()}


def claims(history: pd.DataFrame, rivals: pd.DataFrame, settings: Settings, run: Run) -> None:
    """What evolution and plasticity did, over paired seeds."""
    ended = history[history["generation"] == settings.generations]
    last = {
        value: ended.pivot_table(index="seed", columns="tasks", values=value) for value in ("early", "late", "frozen")
    }
    tuned = at_best_rate(rivals)
    same = rivals[rivals["eta"] == settings.eta].pivot_table(index="seed", columns="tasks", values="late")
    better_than_random(last["late"], same, tuned, settings, run)
    within_life(last, settings, run)
    if settings.shown:
        gain = compare_paired(last["late"]["shown"], tuned["shown"])
        run.claim(
            "delayed match to sample, never trained: gain of evolved over random plastic nets at their best rate",
            paper="clearly above chance after 1000 generations (Fig. 2, no number)",
            measured=gain.mean,
            interval=gain.interval,
            unit="fraction correct",
            threshold="shown without a verdict at this scale",
            baseline=f"random nets: {tuned['shown'].mean():.2f}; chance: 0.5",
            holds=None,
            note=f"Evolved: {last['late']['shown'].mean():.2f}. {settings.hidden + 9} neurons and "
            f"{settings.generations} generations cannot speak for the paper's setting. {gain.seed_by_seed(2)}",
        )


def at_best_rate(rivals: pd.DataFrame) -> pd.DataFrame:
    """Random nets, each seed at the rate that suits it best on the trained tasks; one column a set of tasks."""
    trained = rivals[rivals["tasks"] == "train"].pivot_table(index="seed", columns="eta", values="late")
    chosen = rivals.merge(trained.idxmax(axis=1).rename("best"), on="seed").query("eta == best")
    return chosen.pivot_table(index="seed", columns="tasks", values="late")


def better_than_random(
    late: pd.DataFrame, same: pd.DataFrame, tuned: pd.DataFrame, settings: Settings, run: Run
) -> None:
    """What evolution adds: to the nets it started from, and to random nets at a rate of their own."""
    rates = ", ".join(f"{eta:g}" for eta in settings.rival_rates)
    against = {
        "than before evolution": (same, "generation 0 at the same learning rate"),
        "than random nets at their own best learning rate": (tuned, f"best of {rates} on the trained tasks"),
    }
    for words, (rival, which) in against.items():
        for name, margin, figure in (("train", 0.05, "Fig. 2-3"), ("withheld", 0.0, "Fig. 2, no number")):
            gain = compare_paired(late[name], rival[name])
            holds, tasks = gain.above(margin), "the trained tasks" if name == "train" else "a withheld task"
            reason = REASON if holds is not True and rival is tuned and run.scale == "default" else ""
            run.claim(
                f"evolved nets learn {tasks} better within a life {words}: gain in late success",
                paper=f"yes ({figure})",
                measured=gain.mean,
                interval=gain.interval,
                unit="fraction correct",
                threshold=f"interval above {margin:g}",
                baseline=f"{rival[name].mean():.2f} ({which})",
                holds=holds,
                note=f"Evolved: {late[name].mean():.2f}. {gain.seed_by_seed(2)} {reason}".strip(),
            )


def within_life(last: dict[str, pd.DataFrame], settings: Settings, run: Run) -> None:
    """Whether it is learning within the life, and the plastic weights, that do it."""
    for name, words in (("train", "the trained tasks are"), ("withheld", "a task that evolution never met is")):
        rise = compare_paired(last["late"][name], last["early"][name])
        run.claim(
            f"{words} acquired within a life: rise of the evolved nets' success, last "
            f"{settings.scored} trials against first {settings.burn_in}",
            paper="yes (Fig. 3)",
            measured=rise.mean,
            interval=rise.interval,
            unit="fraction correct",
            threshold="interval above 0.15",
            baseline="0.5 is chance over a pair",
            holds=rise.above(0.15),
            note=rise.seed_by_seed(2),
        )
    frozen = np.mean([last["frozen"][name] for name in ("train", "withheld")], axis=0)
    low, high = t_interval(frozen)
    run.claim(
        "without plasticity the evolved nets are at chance on complementary pairs: late success",
        measured=float(frozen.mean()),
        interval=(low, high),
        unit="fraction correct",
        threshold="interval within 0.45-0.55",
        holds=within((low, high), (0.45, 0.55)),
    )


def pictures(evolved: list[dict], history: pd.DataFrame, settings: Settings, run: Run) -> None:
    """Success over generations, and in the course of a life."""
    chosen = groups(settings)
    titles = {name: f"{GROUPS[name]} ({len(tasks)} tasks)" for name, tasks in chosen.items()}
    figure, axes = panels(len(chosen))
    for ax, name in zip(axes, chosen, strict=True):
        columns = {"late": "end of a life", "frozen": "plastic weights at 0"}
        plot_generations(history.query(f"tasks == {name!r}"), columns, ax, titles[name])
    run.figure("success", figure)
    width = max(settings.trials // 12, 1)
    edges = np.arange(0, settings.trials - width + 1, width)
    arms = {
        "evolved": ("last", True),
        "generation 0": ("first", True),
        "evolved, plastic weights at 0": ("last", False),
    }
    figure, axes = panels(len(chosen))
    for ax, (name, tasks) in zip(axes, chosen.items(), strict=True):
        curves = {}
        for label, (genome, learning) in arms.items():
            right = [
                evaluate(_net(one[genome], settings, run), tasks, one["seed"], settings, run, learning=learning)
                for one in evolved
            ]
            curves[label] = np.array([[own[edge : edge + width].mean() for edge in edges] for own in right])
        plot_lives(edges + width / 2, curves, ax, titles[name])
        ax.axvline(settings.burn_in, color="black", lw=0.5, ls=":")
    run.figure("within-life", figure)


def _net(genome: dict[str, Tensor], settings: Settings, run: Run) -> PlasticRNN:
    net = fresh(settings, torch.Generator())
    net.load_state_dict(genome)
    return net.to(run.device)


def decoding(evolved: list[dict], settings: Settings, run: Run) -> None:
    """What hidden neurons know over a trial of the withheld pair, before and after learning."""
    names = ("stimulus 1", "stimulus 2", "right answer")
    moments = ("before learning", "after learning")
    every = np.array([decoded(one, settings, run) for one in run.track(evolved, "decoding")])
    memory = every[:, 1, 0, range(18, 25), range(18, 25)].mean(axis=1)
    low, high = t_interval(memory)
    run.claim(
        "working memory: the first stimulus can be decoded in the delay after both are gone (withheld, end of life)",
        paper="decodable over time (Fig. 4, no number)",
        measured=float(memory.mean()),
        interval=(low, high),
        unit="fraction decoded",
        threshold="interval above 0.6",
        baseline="0.5 is chance",
        holds=above((low, high), 0.6),
    )
    response = every[:, :, 2, range(25, 35), range(25, 35)].mean(axis=2)
    gain = compare_paired(response[:, 1], response[:, 0])
    run.claim(
        "the right answer enters the hidden code by learning within the life: rise of its decoding in the response "
        "period (both withheld tasks mixed, so that stimuli alone do not tell)",
        paper="lifetime learning adds the target's code (Fig. 4, no number)",
        measured=gain.mean,
        interval=gain.interval,
        unit="fraction decoded",
        threshold="interval above 0.05",
        baseline=f"before learning: {response[:, 0].mean():.2f}",
        holds=gain.above(0.05),
        note=gain.seed_by_seed(2),
    )
    figure, axes = panels(3, 2, size=(3.2, 2.7))
    matrices = every.mean(axis=0)
    for index, ax in enumerate(axes):
        row, column = divmod(index, 3)
        plot_cross_temporal(matrices[row, column], ax, title=f"{names[column]}, {moments[row]}", bar=column == 2)
    run.figure("decoding", figure)


def decoded(one: dict, settings: Settings, run: Run) -> np.ndarray:
    """Decoding matrices of the evolved genome, (before and after, three labels, time, time)."""
    generator = torch.Generator().manual_seed(one["seed"] ^ EVALUATION)
    net = _net(one["last"], settings, run)
    count = settings.decoded_lives
    tasks = [settings.withheld[index % len(settings.withheld)] for index in range(count)]
    block = CognitiveTasks(settings.withheld).block(tasks, settings.trials, generator)
    noise = plasticity(settings).perturbations(STREAMS, settings.trials, 50, net.neurons, generator=generator)
    when = (settings.burn_in - 1, settings.trials - 1)
    life = lives(net, block, noise, settings, run, record=when)
    rates = life.activity[..., net.n_inputs : -net.n_outputs].double().cpu().numpy()
    matrices = []
    for index, trial in enumerate(when):
        labels = (block.stimuli[:, trial, 0], block.stimuli[:, trial, 1], block.targets[:, trial])
        matrices.append([cross_temporal_decoding(rates[:, index], label.numpy()) for label in labels])
    return np.array(matrices)
