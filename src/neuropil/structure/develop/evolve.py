"""Evolution of genomes by CMA-ES (Hansen & Ostermeier 2001), and random search to compare with.

Genomes are vectors and a fitness takes a whole generation of them, so that a population grows and plays at once:

    evolution = evolve(lambda genomes: task(program.develop(genomes, cycles=4)), program.genome_size, 150, seed=0)
    program.load_genome(evolution.best)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.neurons.ranges import require_positive

__all__ = ["Evolution", "evolve", "random_search"]

Fitness = Callable[[Tensor], Tensor]
"""Takes genomes (population, numbers) in double precision, gives one number each: larger is better."""


@dataclass(frozen=True)
class Evolution:
    """What a search found.

    Attributes:
        best: the genome of the highest fitness, (numbers,).
        fitness: of `best`, as it was measured in the search: where that is noisy, the luckiest.
        centroid: mean of the search's distribution at the end, (numbers,); for random search, its centre.
        winners: the best genome of each generation, (generations, numbers), to choose among by another measure.
        history: one row a generation: "generation", "evaluations" so far, "best" so far, "winner" and "mean" of the
            generation.
    """

    best: Float[Tensor, " numbers"]
    fitness: float
    centroid: Float[Tensor, " numbers"]
    winners: Float[Tensor, "generations numbers"]
    history: pd.DataFrame


def evolve(
    fitness: Fitness,
    size: int,
    generations: int,
    *,
    popsize: int = 64,
    sigma: float = 0.1,
    seed: int = 0,
    start: Float[Tensor, " numbers"] | None = None,
    elitist: bool = True,
    least_std: float = 0.005,
    target: float | None = None,
) -> Evolution:
    """Maximise a fitness by CMA-ES.

    Args:
        fitness: of a population.
        size: numbers in a genome.
        generations: at most.
        popsize: genomes in a generation.
        sigma: initial standard deviation.
        seed: of the start and of all draws; no global generator is asked.
        start: initial centroid; None draws it uniformly in [-1, 1].
        elitist: whether the best genome so far stays a parent.
        least_std: to which no standard deviation falls below, in any direction.
        target: stop once the fitness reaches it.

    Raises:
        ImportError: if pycma is missing.
        ValueError: if a number is out of range, or the start does not fit.
        FloatingPointError: if a fitness is NaN, naming the generation.
    """
    cma = _package()
    if size < 1 or generations < 1 or popsize < 2:
        raise ValueError(
            f"size and generations must be at least 1 and popsize 2, got {size}, {generations} and {popsize}."
        )
    require_positive(sigma=sigma)
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-1, 1, size) if start is None else start.detach().cpu().double().numpy()
    if centre.shape != (size,):
        raise ValueError(f"start has {len(centre)} numbers, size is {size}.")
    # One number is optimised as two, the second of which means nothing: pycma wants at least two.
    padded = centre if size > 1 else np.append(centre, 0.0)
    options: dict[str, Any] = {"popsize": popsize, "CMA_elitist": elitist, "minstd": least_std, "verbose": -9}
    options |= {"randn": lambda *shape: rng.standard_normal(shape), "seed": np.nan, "verb_log": 0}
    strategy = cma.CMAEvolutionStrategy(padded, sigma, options)
    record = _Record()
    for generation in range(generations):
        asked = strategy.ask()
        genomes = torch.from_numpy(np.stack(asked)[:, :size])
        scores = record.measure(fitness, genomes, generation)
        strategy.tell(asked, (-scores).tolist())
        if target is not None and record.fitness >= target:
            break
    return record.finish(torch.from_numpy(np.array(strategy.mean[:size])))


def random_search(
    fitness: Fitness,
    size: int,
    generations: int,
    *,
    popsize: int = 64,
    bound: float = 1.0,
    seed: int = 0,
) -> Evolution:
    """The best of as many random genomes, each uniform in [-bound, bound].

    Args:
        fitness: of a population.
        size: numbers in a genome.
        generations: batches that are drawn.
        popsize: genomes in each.
        bound: of each number.
        seed: of the draws.

    Raises:
        ValueError: if a number is out of range.
        FloatingPointError: if a fitness is NaN, naming the generation.
    """
    if size < 1 or generations < 1 or popsize < 1:
        raise ValueError(f"size, generations and popsize must be at least 1, got {size}, {generations} and {popsize}.")
    require_positive(bound=bound)
    rng = np.random.default_rng(seed)
    record = _Record()
    for generation in range(generations):
        record.measure(fitness, torch.from_numpy(rng.uniform(-bound, bound, (popsize, size))), generation)
    return record.finish(torch.zeros(size, dtype=torch.float64))


class _Record:
    """What a search has seen."""

    def __init__(self):
        self.best: Tensor | None = None
        self.fitness = -np.inf
        self.winners: list[Tensor] = []
        self.rows: list[dict[str, float]] = []

    def measure(self, fitness: Fitness, genomes: Tensor, generation: int) -> np.ndarray:
        with torch.no_grad():
            scores = fitness(genomes).detach().cpu().double().numpy()
        if scores.shape != (len(genomes),):
            raise ValueError(f"fitness gave {scores.shape} numbers for {len(genomes)} genomes.")
        if np.isnan(scores).any():
            raise FloatingPointError(f"The fitness of a genome is NaN in generation {generation}.")
        top = int(scores.argmax())
        self.winners.append(genomes[top].clone())
        if self.best is None or scores[top] > self.fitness:
            self.best, self.fitness = genomes[top].clone(), float(scores[top])
        self.rows.append(
            {
                "generation": generation + 1,
                "evaluations": (generation + 1) * len(genomes),
                "best": self.fitness,
                "winner": float(scores[top]),
                "mean": float(scores.mean()),
            }
        )
        return scores

    def finish(self, centroid: Tensor) -> Evolution:
        if self.best is None:
            raise ValueError("Nothing was searched.")
        return Evolution(self.best, self.fitness, centroid, torch.stack(self.winners), pd.DataFrame(self.rows))


def _package() -> Any:
    try:
        import cma  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError("Evolution needs pycma: pip install 'neuropil[evolution]'.") from error
    return cma
