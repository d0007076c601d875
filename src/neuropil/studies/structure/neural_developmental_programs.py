"""Can a genome of a few dozen numbers grow a network that computes, and what does growing cost against writing weights?

A developmental program (Najarro et al. 2023) grows a graph from one node; evolution by CMA-ES shapes its genome. The
rivals are the direct encoding, in which every weight is a number of the genome, and the best of as many random genomes.
Gates are scored with a margin, because outputs that are copies of one node are equal, and a plain comparison of them is
decided by rounding. Whoever is compared on noisy tasks is chosen and measured on episodes of its own.
"""

from dataclasses import dataclass
from functools import partial
from itertools import permutations

import numpy as np
import pandas as pd
import torch
from scipy.stats import mannwhitneyu

from neuropil.atlas import Run
from neuropil.parallel import parallel
from neuropil.plotting import panels
from neuropil.statistics import above, compare_paired, t_interval
from neuropil.structure.develop.environments import EnvironmentTask
from neuropil.structure.develop.gates import GateTask
from neuropil.structure.develop.plots import plot_fitness, plot_growth
from neuropil.structure.develop.program import DevelopmentalProgram
from neuropil.studies.structure._developmental_searches import (
    DIRECT,
    EVOLVED,
    GATE_ARMS,
    RANDOM,
    WORLDS,
    Found,
    gate_search,
    published_rows,
    published_search,
    small_program,
    small_search,
    world_search,
)

Histories = dict[str, list[pd.DataFrame]]

# A genome of 14 numbers that grows the graphs which the published one grows; found by random search.
TWIN = [-0.7, -1.3, 0.9, 0.7, -0.6, -4.0, -3.3, -4.1, -1.2, -0.9, 3.6, 3.2, 3.3, 4.7]
GRAPHS = [(2, 2), (3, 4), (4, 7), (4, 7)]

# Found by looking at what the searches of the default scale end with.
REASONS = {
    "xor": "Four failing searches were looked at, and all end in one graph: five nodes, all weights positive and near "
    "1, so that every unit saturates. Its outputs differ by their neighbours alone, and the row (1, 1) stays a little "
    "on the wrong side, where it costs almost nothing.",
    "CartPole": "Where seeds 0 and 1 end, a mirror symmetry of the graph swaps the outputs, and with them the inputs "
    "of the pole's angle and velocity: the difference of the outputs sees velocity minus angle, and nothing of the "
    "cart. Clones stay mirror images until something tells their neighbourhoods apart.",
    "small worlds": "Generations soon sit on the broad plateau of genomes whose nodes all divide (128 nodes, sigma "
    "2.21); better graphs lie in small patches of the genome's space, which draws from all of it meet more often.",
}


@dataclass(frozen=True)
class Settings:
    """Sizes and lengths; the paper's own are in the scale "paper".

    `gates`, `lives` and `graphs`: generations, and genomes in each, of XOR, of the environments, and of small worlds;
    `choosing`: episodes on which the winners of the generations are compared; `fresh`: those that count.
    """

    seeds: int = 3
    gates: tuple[int, int] = (1000, 64)
    worlds: tuple[str, ...] = ("CartPole",)
    lives: tuple[int, int] = (40, 32)
    episodes: int = 3
    sigma: float = 0.5
    choosing: int = 10
    fresh: int = 20
    graphs: tuple[int, int] = (50, 64)
    graph_cycles: int = 7
    graph_nodes: int = 50


SCALES = {
    "smoke": Settings(seeds=0),
    "default": Settings(),
    "paper": Settings(
        worlds=("CartPole", "CartPole, binary edges", "LunarLander"),
        lives=(2000, 512),
        episodes=10,
        sigma=0.1,
        choosing=100,
        fresh=100,
    ),
}


def run(settings: Settings, run: Run) -> None:
    """The whole study."""
    known_graph(run)
    components(run)
    if not settings.seeds:
        first_generations(run)
        return
    seeds = range(run.seed, run.seed + settings.seeds)
    curves = {("XOR, with a margin", 4.0): gates(seeds, settings, run)}
    for name in settings.worlds:
        curves[name, WORLDS[name].goal] = played(name, seeds, settings, run)
    curves["small worlds", 1.0] = small_worlds(seeds, settings, run)
    shown = {key: histories for key, histories in curves.items() if histories}
    figure, axes = panels(len(shown))
    for ((title, goal), histories), ax in zip(shown.items(), axes, strict=True):
        plot_fitness(histories, ax, goal=goal, title=title)
    run.figure("fitness", figure)


def known_graph(run: Run) -> None:
    """The graph of the published XOR solution, its growth, and what it is worth."""
    program = DevelopmentalProgram(1, 1)
    program.load_genome(torch.tensor(TWIN))
    with torch.no_grad():
        grown, without = program.grow(4), program.grow(4, loop=False)
    sequence = [(state.nodes, state.edge_count) for state in grown.history[1:]]
    run.claim(
        "14 numbers grow the graph of the published XOR solution, cycle by cycle, and 2 nodes without the self loop",
        paper="2, 3, 4 and 4 nodes with 2, 4, 7 and 7 edges",
        measured=grown.nodes,
        unit="nodes",
        threshold="the same nodes and edges after each cycle",
        holds=program.genome_size == 14 and sequence == GRAPHS and without.nodes == 2,
        note="The genome is one of ours, found by random search: the published one is not among the library's data.",
    )
    task, batch = GateTask("xor"), grown.batch()
    lead = float(task.leads(batch).abs().max())
    scores = [int(published_rows(batch, order).sum()) for order in permutations(range(4))]
    run.claim(
        "its answers are ties: the outputs are copies of one node, and no row but (0, 0) is right by a margin",
        paper="XOR solved, 4 of 4 rows",
        measured=lead,
        unit="largest lead",
        threshold="lead < 1e-12 and 1 of 4 rows",
        holds=lead < 1e-12 and int(task.right(batch).sum()) == 1,
        note="Counted as the published code counts, without a margin and with activity carried from row to row, it is "
        f"credited with {min(scores)} to {max(scores)} rows over the 24 orders of the rows.",
    )
    run.figure("growth", plot_growth(grown, 2, 2))


def components(run: Run) -> None:
    """What holds for every genome."""
    generator = torch.Generator().manual_seed(run.seed)
    program = DevelopmentalProgram(4, 4, thinking_extra=1, generator=generator)
    genomes = 3 * (2 * torch.rand(200, program.genome_size, generator=generator, dtype=torch.float64) - 1)
    networks = program.develop(genomes, 5)
    gap = 0.0
    for genome, network in zip(genomes[:30], networks, strict=False):
        program.load_genome(genome)
        with torch.no_grad():
            alone = program.grow(5)
        same = alone.nodes == network.nodes
        gap = max(gap, float((alone.weights - network.weights).abs().max()) if same else np.inf)
    run.claim(
        "a population grows at once as its members grow alone: largest difference of a weight",
        measured=gap,
        threshold="< 1e-10",
        holds=gap < 1e-10,
    )
    widest = max(network.diameter for network in networks)
    run.claim(
        "whatever the genome, the seed ends joined to every node: largest diameter of 200 random graphs",
        measured=widest,
        unit="hops",
        threshold="at most 2, the seed joined to all",
        holds=widest <= 2 and all(bool(network.edges[0].all()) for network in networks),
        note="A child of the seed is joined to it, a child of another node inherits that node's edges: this growth "
        f"always makes a hub, and short paths. The largest graph had {int(networks.sizes.max())} nodes.",
    )


def first_generations(run: Run) -> None:
    """What seconds can tell of evolution."""
    best = gate_search("d = h = 4", run.seed, (10, 64)).history["best"].to_numpy()
    run.claim(
        "10 generations improve the shaped score of XOR",
        measured=best[-1] - best[0],
        threshold="> 0 over the best of the first generation",
        holds=best[-1] > best[0],
    )


def needed(seeds: range) -> int:
    """Two seeds of three."""
    return -(-2 * len(seeds) // 3)


def gates(seeds: range, settings: Settings, run: Run) -> Histories:
    """XOR by every encoding, and by the published score."""
    calls = [partial(gate_search, name, seed, settings.gates) for name in GATE_ARMS for seed in seeds]
    found: list[Found] = parallel(calls, jobs=run.jobs, track=run.track, label="XOR")
    table = pd.DataFrame([one.row for one in found])
    run.table("xor", table)
    for name in GATE_ARMS:
        own = table[table["arm"] == name]
        rows = own["rows"].tolist()
        solved = rows.count(4)
        reason = _reason("xor", run) if solved < needed(seeds) else ""
        run.claim(
            f"XOR by a margin of 0.05: the {name}" if name == DIRECT else f"XOR by a margin of 0.05: grown, {name}",
            paper="4 of 4 rows, no margin" if name == "d = h = 1" else None,
            measured=solved,
            unit=f"of {len(seeds)} seeds solve it",
            threshold=f"at least {needed(seeds)} seeds with 4 of 4 rows",
            holds=solved >= needed(seeds),
            note=f"Rows right, seed by seed: {_listed(rows)}, after {_listed(own['generations'].tolist())} generations "
            f"of {settings.gates[1]}. {reason}".strip(),
        )
    published(seeds, settings, run)
    return {name: [one.history for one in found if one.row["arm"] == name] for name in GATE_ARMS}


def published(seeds: range, settings: Settings, run: Run) -> None:
    """What evolution finds when it is paid by the published score."""
    calls = [partial(published_search, seed, settings.gates) for seed in seeds]
    found: list[Found] = parallel(calls, jobs=run.jobs, track=run.track, label="XOR as published")
    rows = [one.row for one in found]
    run.table("xor-as-published", pd.DataFrame(rows))
    full = [row for row in rows if row["credited"] == 4]
    solved = sum(row["right"] == 4 for row in full)
    told = [
        f"{row['credited']} rows credited, {row['right']} right, all 4 credited in {row['orders']} of the 24 orders"
        for row in rows
    ]
    run.claim(
        "14 numbers that the published score credits with all rows of XOR are right by a margin",
        paper="4 of 4 rows",
        measured=solved,
        unit=f"of {len(full)} credited genomes",
        threshold="all credited genomes",
        holds=solved == len(full) if full else None,
        note=f"Seed by seed: {'; '.join(told)}. A score without a reset of the activity also pays for the memory of "
        "the row that was shown before.",
    )


def played(name: str, seeds: range, settings: Settings, run: Run) -> Histories:
    """An environment by growing, by writing weights, and by chance."""
    world, arms = WORLDS[name], (EVOLVED, RANDOM, DIRECT)
    beats = f"evolved genomes beat the best of as many random ones, {name}"
    try:
        EnvironmentTask(world.env_id, 1)
    except Exception as error:  # Gymnasium's own: a simulator that is missing, a version that is gone
        run.claim(beats, paper=world.paper, holds=None, note=f"Not run: {error}")
        return {}
    lengths = (settings.lives, settings.sigma, settings.episodes, settings.choosing, settings.fresh)
    calls = [partial(world_search, name, arm, seed, *lengths) for arm in arms for seed in seeds]
    found: list[Found] = parallel(calls, jobs=run.jobs, track=run.track, label=name)
    table = pd.DataFrame([one.row for one in found])
    run.table(name.lower().replace(", ", "-").replace(" ", "-"), table.drop(columns="returns"))
    of = {arm: table.loc[table["arm"] == arm].to_dict("list") for arm in arms}
    p = [
        float(mannwhitneyu(one, other, alternative="greater").pvalue)
        for one, other in zip(of[EVOLVED]["returns"], of[RANDOM]["returns"], strict=True)
    ]
    wins = sum(value < 0.01 for value in p)
    means = {arm: np.array(own["return"]) for arm, own in of.items()}
    run.claim(
        beats,
        measured=wins,
        unit=f"of {len(seeds)} seeds",
        threshold=f"p < 0.01 (Mann-Whitney, {settings.fresh} fresh episodes) in at least {needed(seeds)} seeds",
        baseline=f"mean return of random genomes: {_rounded(means[RANDOM])}",
        holds=wins >= needed(seeds),
        note=f"Mean return, seed by seed: {_rounded(means[EVOLVED])}; p {', '.join(f'{value:.1g}' for value in p)}. "
        f"{_reason(name, run) if wins < needed(seeds) else ''}".strip(),
    )
    interval = t_interval(means[EVOLVED])
    run.claim(
        f"evolved genomes reach a mean return of {world.goal:g}, {name}",
        paper=world.paper,
        measured=float(means[EVOLVED].mean()),
        interval=interval,
        threshold=f"interval above {world.goal:g}",
        baseline=f"{DIRECT}: {_rounded(means[DIRECT])}",
        holds=above(interval, world.goal),
        note=f"{settings.lives[0]} generations of {settings.lives[1]}. {of[EVOLVED]['numbers'][0]} "
        f"numbers grow {_listed(of[EVOLVED]['nodes'])} nodes; the {DIRECT} has "
        f"{of[DIRECT]['numbers'][0]}.",
    )
    return {arm: [one.history for one in found if one.row["arm"] == arm] for arm in arms}


def small_worlds(seeds: range, settings: Settings, run: Run) -> Histories:
    """Graphs that are grown to be small worlds."""
    arms, lengths = (EVOLVED, RANDOM), (settings.graphs, settings.graph_cycles, settings.graph_nodes)
    calls = [partial(small_search, arm, seed, *lengths) for arm in arms for seed in seeds]
    found: list[Found] = parallel(calls, jobs=run.jobs, track=run.track, label="small worlds")
    table = pd.DataFrame([one.row for one in found])
    run.table("small-worlds", table)
    evolved, chance = (table.loc[table["arm"] == arm, "sigma"].to_numpy() for arm in arms)
    sizes = [f"{one.row['nodes']} nodes and {one.row['edges']} edges" for one in found[: len(seeds)]]
    run.claim(
        "evolved graphs are small worlds: sigma against random graphs of as many nodes and edges",
        paper="sigma > 1",
        measured=float(evolved.mean()),
        interval=t_interval(evolved),
        threshold="interval above 1, which is what random graphs have",
        holds=above(t_interval(evolved), 1.0),
        note=f"{'; '.join(sizes)}. Paths are short by growth, not by evolution: the seed is joined to every node.",
    )
    gain = compare_paired(evolved, chance)
    run.claim(
        "evolution adds to what growth gives: sigma over that of the best of as many random genomes",
        measured=gain.mean,
        interval=gain.interval,
        threshold="interval above 0",
        baseline=f"random genomes: {chance.mean():.2f}",
        holds=gain.above(0),
        note=f"{gain.seed_by_seed(2)} {'' if gain.above(0) else _reason('small worlds', run)}".strip(),
    )
    program = small_program()
    program.load_genome(found[0].best)
    with torch.no_grad():
        run.figure("small-world", plot_growth(program.grow(settings.graph_cycles)))
    return {arm: [one.history for one in found if one.row["arm"] == arm] for arm in arms}


def _reason(key: str, run: Run) -> str:
    return REASONS.get(key, "") if run.scale == "default" else ""


def _listed(values: list[int]) -> str:
    *most, last = map(str, values)
    return f"{', '.join(most)} and {last}" if most else last


def _rounded(values: np.ndarray) -> str:
    return _listed([round(value) for value in values.tolist()])
