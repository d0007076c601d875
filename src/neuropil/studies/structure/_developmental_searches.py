"""The searches behind the study of developmental programs: gates, environments, small worlds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count, permutations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from neuropil.structure.develop.environments import EnvironmentTask
from neuropil.structure.develop.evolve import Evolution, evolve, random_search
from neuropil.structure.develop.gates import GATES, GateTask
from neuropil.structure.develop.networks import Networks, direct_networks, direct_size
from neuropil.structure.develop.program import DevelopmentalProgram
from neuropil.structure.develop.small_world import SmallWorldTask

EVOLVED, RANDOM, DIRECT = "developmental program", "random genomes", "direct encoding"
CHOOSING, FRESH = 10_000_000, 20_000_000  # seeds of episodes and of random graphs, apart from those of evolution


@dataclass(frozen=True)
class Gate:
    """How a gate is grown: `size` is d = h; 0 is the direct encoding, of 6 nodes."""

    size: int
    cycles: int = 3
    extra: int = 3
    directed: bool = False


GATE_ARMS = {
    DIRECT: Gate(0),
    "d = h = 4": Gate(4),
    "d = h = 4, directed": Gate(4, cycles=4, directed=True),
    "d = h = 1": Gate(1, cycles=4, extra=0),
}


@dataclass(frozen=True)
class World:
    """An environment and what grows for it; `goal` is the return that counts as solved."""

    env_id: str
    embedding: int
    hidden: int
    cycles: int
    thinking: int
    extra: int
    goal: float
    paper: str
    binary: bool = False
    floor: float = 0.0

    def program(self) -> DevelopmentalProgram:
        """What grows."""
        return DevelopmentalProgram(self.embedding, self.hidden, binary=self.binary, thinking_extra=self.thinking)


WORLDS = {
    "CartPole": World("CartPole-v1", 5, 5, 5, 5, 5, 195.0, "500 of 500 (unverified)"),
    "CartPole, binary edges": World("CartPole-v1", 10, 10, 4, 0, 2, 195.0, "500 of 500 (unverified)", binary=True),
    "LunarLander": World("LunarLander-v3", 16, 10, 5, 5, 5, 116.0, "116 to 150 (unverified)", floor=-1000.0),
}


Budget = tuple[int, int]
"""Generations, and genomes in each."""


class Found(NamedTuple):
    """A search in short: its row of a table, its history, its best genome."""

    row: dict[str, Any]
    history: pd.DataFrame
    best: Tensor


def gate_networks(arm: Gate) -> tuple[int, Callable[[Tensor], Networks]]:
    """Numbers of a genome, and how genomes become networks."""
    if not arm.size:
        return direct_size(6), partial(direct_networks, nodes=6)
    program = DevelopmentalProgram(arm.size, arm.size, directed=arm.directed)
    return program.genome_size, partial(program.develop, cycles=arm.cycles)


def gate_search(name: str, seed: int, budget: Budget) -> Found:
    """Evolve XOR with a margin: rows that are right, and what the worst of them lacks."""
    arm = GATE_ARMS[name]
    task = GateTask("xor", extra=arm.extra)
    size, networks = gate_networks(arm)
    found = _evolve(lambda genomes: task(networks(genomes)), size, seed, budget)
    best = networks(found.best[None])
    row = {"arm": name, "seed": seed, "fitness": found.fitness, "generations": len(found.history)}
    row |= {"nodes": int(best.sizes[0]), "rows": 0, "worst lead": None}
    if int(best.sizes[0]) >= 4:
        row |= {"rows": int(task.right(best).sum()), "worst lead": float(task.leads(best)[0, 1:].min())}
    return Found(row, found.history, found.best)


def published_rows(networks: Networks, order: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
    """Rows of XOR credited without a margin and without a reset between rows, (networks, 4)."""
    policy, state, right = networks.policy(2, 2), None, []
    rows = policy.weights.new_tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    for row in order:
        values, state = policy(rows[row].expand(len(networks), 1, 2), state)
        right.append(values[:, 0].argmax(1) == GATES["xor"][row])
    return torch.stack(right, 1)


def published_search(seed: int, budget: Budget) -> Found:
    """Evolve the genome of 14 numbers by the published score; its rows by the margin, its full scores in 24 orders."""
    size, networks = gate_networks(GATE_ARMS["d = h = 1"])

    def score(genomes: Tensor) -> Tensor:
        grown = networks(genomes)
        scores, able = (grown.sizes - 4).double(), grown.sizes >= 4
        if not bool(able.any()):
            return scores
        return scores.masked_scatter(able, published_rows(grown.select(able)).sum(1).double())

    found = _evolve(score, size, seed, budget)
    best = networks(found.best[None])
    row = {"seed": seed, "generations": len(found.history), "credited": int(found.fitness), "right": 0, "orders": 0}
    if int(best.sizes[0]) >= 4:
        credited = [int(published_rows(best, order).sum()) for order in permutations(range(4))]
        row |= {"right": int(GateTask("xor").right(best).sum()), "orders": credited.count(4)}
    return Found(row, found.history, found.best)


def _evolve(fitness: Callable[[Tensor], Tensor], size: int, seed: int, budget: Budget) -> Evolution:
    return evolve(fitness, size, budget[0], popsize=budget[1], sigma=1.0, seed=seed, target=4.0)


def world_search(
    name: str, arm: str, seed: int, budget: Budget, sigma: float, episodes: int, choosing: int, fresh: int
) -> Found:
    """Search in an environment: every generation plays episodes of its own.

    The winners of the generations are chosen among on further episodes, and the choice is measured on fresh ones.
    """
    world = WORLDS[name]
    program = world.program()
    size, grow = program.genome_size, partial(program.develop, cycles=world.cycles)
    if arm == DIRECT:  # as many numbers, or a few less
        nodes = int((np.sqrt(8 * size + 1) - 1) / 2)
        size, grow = direct_size(nodes), partial(direct_networks, nodes=nodes)

    def task(count: int, first: int) -> EnvironmentTask:
        return EnvironmentTask(world.env_id, count, first, world.extra, floor=world.floor)

    playing, generation = task(episodes, 0), count()

    def fitness(genomes: Tensor) -> Tensor:
        return playing(grow(genomes), seed=(100_000 * seed + next(generation)) * episodes % CHOOSING)

    if arm == RANDOM:
        found = random_search(fitness, size, budget[0], popsize=budget[1], seed=seed)
    else:
        found = evolve(fitness, size, budget[0], popsize=budget[1], sigma=sigma, seed=seed)
    best = found.winners[int(task(choosing, CHOOSING + 1000 * seed)(grow(found.winners)).argmax())]
    networks, last = grow(best[None]), task(fresh, FRESH + 1000 * seed)
    able = int(networks.sizes[0]) >= last.minimum
    returns = last.returns(networks)[0] if able else last(networks).expand(fresh)
    row = {"arm": arm, "seed": seed, "return": float(returns.mean()), "nodes": int(networks.sizes[0])}
    row |= {"numbers": size, "returns": returns.tolist()}
    return Found(row, found.history, best)


def small_program() -> DevelopmentalProgram:
    """What grows small worlds: only the graph counts, so edges are binary."""
    return DevelopmentalProgram(5, 10, binary=True, thinking_extra=5)


def small_search(arm: str, seed: int, budget: Budget, cycles: int, minimum: int) -> Found:
    """Search for a small world; what is found is measured against random graphs that the search has not seen."""
    program, task = small_program(), SmallWorldTask(minimum, seed=seed)

    def fitness(genomes: Tensor) -> Tensor:
        return task(program.develop(genomes, cycles))

    size, length = program.genome_size, budget[0]
    if arm == RANDOM:
        found = random_search(fitness, size, length, popsize=budget[1], seed=seed)
    else:
        found = evolve(fitness, size, length, popsize=budget[1], sigma=0.1, elitist=False, seed=seed)
    network = program.develop(found.best[None], cycles)
    sigma = float(SmallWorldTask(2, seed=FRESH + seed).sigmas(network)[0])
    row = {"arm": arm, "seed": seed, "sigma": sigma, "nodes": int(network.sizes[0])}
    return Found(row | {"edges": int(network.edge_counts[0])}, found.history, found.best)
