"""Sparse trainings of the GraNet study: data, batches, arms, and their pictures."""

from collections.abc import Iterable, Iterator
from functools import lru_cache

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from neuropil.data import Dataset, load
from neuropil.plotting import COLOURS, GREY, panels
from neuropil.statistics import t_interval
from neuropil.structure.growth import GradientGrowth, Growth, RandomGrowth
from neuropil.structure.schedules import Constant, CosineDecay, Cubic
from neuropil.structure.sparsifier import Sparsifier
from neuropil.studies.structure._images import accuracy

__all__ = [
    "DENSE",
    "GMP",
    "GRANET",
    "RIGL",
    "SET",
    "STATIC",
    "accuracy",
    "batches",
    "plot_arms",
    "plot_plasticity",
    "sgd",
    "sparsifier",
    "task",
]

GRANET, GMP, RIGL, SET, STATIC, DENSE = "GraNet", "GMP", "RigL", "SET", "static", "dense"
SHUFFLING, PLACES, GROWING = 0x5EED, 0x91ACE, 0x6409


@lru_cache(maxsize=2)
def task(name: str, train: int | None, test: int | None, images: bool, device: torch.device) -> Dataset:
    """A data set in the form that the net takes; once a process."""
    data = load(name, seed=0) if name == "digits" else load(name)
    data = data.subset(train, test, seed=0).to(device)
    return data if images else data.flat()


def batches(data: Dataset, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of a seed, shuffled anew every epoch, as many as there are steps."""
    generator = torch.Generator().manual_seed(seed ^ SHUFFLING)
    given = 0
    while given < steps:
        order = torch.randperm(len(data.x_train), generator=generator)
        for rows in order[: max(len(order) // size, 1) * size].split(size):
            if given == steps:
                return
            given += 1
            where = rows.to(data.y_train.device)
            yield data.x_train[where], data.y_train[where]


def sgd(parameters: Iterable[nn.Parameter], rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """The paper's optimizer."""
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=weight_decay)


def sparsifier(
    arm: str,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    density: float,
    *,
    initial: float,
    fraction: float,
    steps: int,
    every: int,
    seed: int,
) -> Sparsifier | None:
    """The method of an arm, by the parts that it is made of; None trains dense."""
    if arm == DENSE:
        return None
    grow: Growth | None = None
    if arm in (GRANET, RIGL):
        grow = GradientGrowth()
    elif arm == SET:
        grow = RandomGrowth(torch.Generator().manual_seed(seed ^ GROWING))
    gradual = arm in (GRANET, GMP)
    return Sparsifier(
        net,
        optimizer,
        schedule=Cubic(0, steps // 2, initial, density) if gradual else Constant(density),
        grow=grow,
        regrow_fraction=CosineDecay(fraction, min(0.005, fraction), steps),
        every=every,
        generator=torch.Generator().manual_seed(seed ^ PLACES),
    )


def plot_arms(table: pd.DataFrame) -> Figure:
    """Accuracy over density, with intervals over seeds; the dense net as a line across."""
    figure, (ax,) = panels(size=(4.2, 3.0))
    densities = sorted(table.loc[table["arm"] != DENSE, "density"].unique())
    arms = [arm for arm in (GRANET, GMP, RIGL, SET, STATIC) if arm in set(table["arm"])]
    for place, (arm, colour) in enumerate(zip(arms, COLOURS, strict=False)):
        rows = table.loc[table["arm"] == arm]
        cells = [rows.loc[rows["density"] == density, "accuracy"].to_numpy(dtype=float) for density in densities]
        means = [float(cell.mean()) for cell in cells]
        ends = [t_interval(cell) for cell in cells] if len(cells[0]) > 1 else [(mean, mean) for mean in means]
        bars = [[mean - end[0] for mean, end in zip(means, ends, strict=True)]]
        bars += [[end[1] - mean for mean, end in zip(means, ends, strict=True)]]
        # Side by side: intervals at one density would hide each other.
        at = [density * 1.03 ** (place - (len(arms) - 1) / 2) for density in densities]
        ax.errorbar(at, means, yerr=bars, color=colour, marker="o", markersize=3.5, linewidth=1.2, label=arm)
    dense = float(table.loc[table["arm"] == DENSE, "accuracy"].to_numpy(dtype=float).mean())
    ax.axhline(dense, color=GREY, linewidth=1, linestyle="--", label=DENSE)
    ax.set_xscale("log")
    ax.set_xticks(densities, [f"{density:g}" for density in densities])
    ax.minorticks_off()
    ax.set_xlabel("density, fraction of weights that live")
    ax.set_ylabel("test accuracy, %")
    ax.legend(frameon=False, fontsize=8)
    return figure


def plot_plasticity(table: pd.DataFrame) -> Figure:
    """Accuracy after recovery less that before the cut, over the moment of the cut; a panel for each density."""
    densities = sorted(table["density"].unique(), reverse=True)
    figure, axes = panels(len(densities))
    for ax, density in zip(axes, densities, strict=True):
        at = table.loc[table["density"] == density]
        for fraction, colour in zip(sorted(at["fraction"].unique()), COLOURS[1::-1], strict=True):
            values = at.loc[at["fraction"] == fraction].pivot_table(index="seed", columns="step", values="plasticity")
            label = f"{fraction:.0%} exchanged after the cut" if fraction else "cut alone"
            ax.plot(values.columns, values.mean(), color=colour, marker="o", markersize=3.5, label=label)
            if len(values) > 1:
                low, high = zip(*(t_interval(values[step]) for step in values.columns), strict=True)
                ax.fill_between(values.columns, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.set_title(f"density {density:g}")
        ax.set_xlabel("step of the cut")
    axes[0].set_ylabel("plasticity, points")
    axes[0].legend(frameon=False, fontsize=8)
    return figure
