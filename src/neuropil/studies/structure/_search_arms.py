"""Arms of the study of architecture search: trainings of several lengths, a network that holds all cells, proxies."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import linear
from neuropil.structure.search.benchmarks import TabularBenchmark
from neuropil.structure.search.cells import Zero, lookup
from neuropil.structure.search.correlation import rank_correlation
from neuropil.structure.search.darts import Darts
from neuropil.structure.search.digits_cells import GatedLinear, digits_cell, digits_space, digits_split
from neuropil.structure.search.fidelity import asha, hyperband, successive_halving
from neuropil.structure.search.nasbench201 import nasbench201_net
from neuropil.structure.search.proxies import PROXIES, zero_cost
from neuropil.structure.search.searching import SearchResult, search
from neuropil.structure.search.spaces import Architecture
from neuropil.structure.search.supernet import Supernet

LENGTHS = (1, 3, 9)  # in ninths of the whole training
TOP = 0.1


@dataclass(frozen=True)
class Fidelity:
    """Values of a benchmark after a ninth, a third and the whole of the training.

    Args:
        benchmark: knows these three lengths; they are its last ones.
    """

    benchmark: TabularBenchmark

    def __call__(self, architecture: Architecture, ninths: int) -> float:
        """Minus the validation loss after so many ninths."""
        lengths: dict[int, int] = dict(zip(LENGTHS, self.benchmark.lengths[-len(LENGTHS) :], strict=True))
        return self.benchmark.value(architecture, lengths[ninths])


def short_trainings(benchmark: TabularBenchmark, seeds: range) -> pd.DataFrame:
    """Searches that look early against random search with three times their epochs.

    Returns:
        One row a method and seed: "method", "seed", "regret", "test regret", and "cost" in whole trainings.
    """
    evaluate, space, rows = Fidelity(benchmark), benchmark.space, []
    for seed in seeds:
        found: dict[str, SearchResult] = {"Hyperband": hyperband(space, evaluate, 9, seed=seed)}
        found["successive halving"] = successive_halving(space, evaluate, 9, configurations=27, seed=seed)
        # As many evaluations as spend about what Hyperband does.
        found["ASHA"] = asha(space, evaluate, 9, 30, seed=seed)
        cost = {name: float(result.trace["cost"].iloc[-1]) / 9 for name, result in found.items()}
        for name, times in (("random, the same epochs", 1), ("random, three times the epochs", 3)):
            queries = int(times * cost["Hyperband"])
            found[name], cost[name] = search(space, benchmark.value, queries, seed=seed), float(queries)
        for name, result in found.items():
            regret = benchmark.optimum - benchmark.value(result.best)
            test = benchmark.test_optimum - benchmark.test_value(result.best)
            row = {"method": name, "seed": seed, "regret": regret, "test regret": test, "cost": cost[name]}
            rows.append(row)
    return pd.DataFrame(rows)


def digits_supernet(seed: int) -> Supernet:
    """All cells of NB-digits in one network; every operation of every edge has weights of its own."""
    generator = torch.Generator().manual_seed(seed)
    width = partial(linear, 16, 16, generator=generator)
    table = {
        "zero": Zero,
        "skip": nn.Identity,
        "relu": lambda: nn.Sequential(width(), nn.ReLU()),
        "tanh": lambda: nn.Sequential(width(), nn.Tanh()),
        "gate": lambda: GatedLinear(width(), width()),
    }
    stem, head = linear(64, 16, generator=generator), linear(16, 10, generator=generator)
    return Supernet(digits_space(), stem, lookup(table), head)


def parts() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and validation part of NB-digits, float32."""
    data, _ = digits_split()
    return (data.x_train.float(), data.y_train), (data.x_test.float(), data.y_test)


def drawn(part: tuple[Tensor, Tensor], generator: torch.Generator, size: int = 48) -> tuple[Tensor, Tensor]:
    """A batch."""
    chosen = torch.randint(len(part[0]), (size,), generator=generator)
    return part[0][chosen], part[1][chosen]


def shared_weights(benchmark: TabularBenchmark, steps: int, seed: int) -> dict[str, float]:
    """Train by single paths, rank all cells by their inherited weights, and see how that fits the table.

    Returns:
        "all": tau over all cells; "top": tau over the best tenth by the table; "regret" of the cell that is ranked
        first, "median regret" of the table.
    """
    train, val = parts()
    net, generator = digits_supernet(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for _ in range(steps):
        net.train_step(drawn(train, generator), cross_entropy, optimizer, generator)
    net.eval()
    cells = benchmark.architectures  # the best first
    truth = np.array([benchmark.value(cell) for cell in cells])
    ranked = np.array([net.value(cell, val, cross_entropy) for cell in cells])
    top = max(3, round(TOP * len(cells)))
    tau = partial(rank_correlation, resamples=1)
    return {
        "all": tau(ranked, truth).value,
        "top": tau(ranked[:top], truth[:top]).value,
        "regret": benchmark.optimum - float(truth[ranked.argmax()]),
        "median regret": benchmark.optimum - float(np.median(truth)),
    }


def differentiable(benchmark: TabularBenchmark, steps: int, unroll: float, seed: int) -> dict[str, float]:
    """DARTS on half of the training part, alpha on the other half.

    Returns:
        "regret" of the cell that it ends with, "skips": its share of skips, "sharpness" at the end over that after a
        tenth of the steps.
    """
    (x, y), _ = parts()
    half = len(x) // 2
    train, val = (x[:half], y[:half]), (x[half:], y[half:])
    generator = torch.Generator().manual_seed(seed)
    net = digits_supernet(seed)
    darts = Darts(
        net,
        cross_entropy,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=3e-4),
        make_alpha_optimizer=lambda alpha: torch.optim.Adam(alpha, lr=0.02, betas=(0.5, 0.999), weight_decay=1e-3),
        unroll=unroll,
        generator=generator,
    )
    early = 0.0
    for step in range(steps):
        darts.step(drawn(train, generator), drawn(val, generator))
        if step == steps // 10:
            early = darts.sharpness([val])
    cell = darts.discretise()
    operations = [benchmark.space.options[0][number] for number in cell]
    return {
        "regret": benchmark.optimum - benchmark.value(cell),
        "skips": operations.count("skip") / len(operations),
        "sharpness": abs(darts.sharpness([val]) / early) if early else float("nan"),
    }


def first_batch(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training images of NB-digits for the proxies."""
    return drawn(parts()[0], torch.Generator().manual_seed(seed), size)


def score(table: str, cell: Architecture, batch: tuple[Tensor, Tensor], seed: int) -> dict[str, float]:
    """Proxies of one cell, its initial weights drawn apart from those of the table."""
    if table == "NB-digits":
        net: nn.Module = digits_cell(cell, 1000 + seed)
    else:
        shape, generator = batch[0].shape[1:], torch.Generator().manual_seed(1000 + seed)
        net = nasbench201_net(cell, shape, int(batch[1].max()) + 1, generator=generator)
    return zero_cost(net, batch, cross_entropy, list(PROXIES))


def by_seed(traces: pd.DataFrame, strategy: str) -> list[list[tuple[float, Architecture]]]:
    """Values and architectures of each run of a strategy."""
    runs: dict[int, list[tuple[float, Architecture]]] = {}
    columns = (traces[name].tolist() for name in ("strategy", "seed", "value", "architecture"))
    for name, seed, value, cell in zip(*columns, strict=True):
        if name == strategy:
            runs.setdefault(seed, []).append((value, cell))
    return list(runs.values())
