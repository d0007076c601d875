"""A grid of settings times seeds as one batched training run."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset
from neuropil.learning.energy.energies import one_hot_like
from neuropil.learning.energy.replicas import ReplicaRule, Replicas, StackedAdam, StackedSGD
from neuropil.parallel import Track

__all__ = ["sweep"]

Cell = Mapping[str, float]
Columns = dict[str, Tensor]
Measure = Callable[[Replicas, Tensor, Tensor], Mapping[str, Tensor]]
ORDER = 0x5EED  # apart from the seeds of the initial weights
SHOWN = 500  # training samples on which the loss is taken; test samples at once


def sweep(
    cells: Sequence[Cell],
    rule: Callable[[Columns], ReplicaRule],
    optimizer: Callable[[Columns], StackedSGD | StackedAdam],
    data: Callable[[int], Dataset],
    net: Callable[[torch.Generator], nn.Module],
    *,
    seeds: Sequence[int],
    steps: int,
    batch_size: int,
    every: int,
    cut: str = "preactivation",
    loss: str = "cross_entropy",
    measure: Measure | None = None,
    device: torch.device | str = "cpu",
    track: Track | None = None,
    label: str = "batches",
) -> pd.DataFrame:
    """Train a net for every cell and seed, all at once, and see how they fare.

    A seed fixes the split, the initial weights and the order of the samples, alike for all cells and rules. Epochs are
    permutations; samples that do not fill a batch at the end of one are left out.

    Args:
        cells: settings by name, the same names in each.
        rule: makes the rule from the settings, each a tensor (replicas,).
        optimizer: makes the optimizer, likewise.
        data: flat data of a seed; all seeds have as many samples.
        net: makes a chain from a generator.
        seeds: which.
        steps: batches.
        batch_size: samples a batch.
        every: batches between two looks; the end is one too.
        cut: as `Stages` has it.
        loss: "cross_entropy" or "squared".
        measure: further columns, (replicas,), from the replicas and the test part (replicas, samples, ...).
        device: where to compute.
        track: shows progress.
        label: for it.

    Returns:
        One row a cell, seed and look: the settings, seed, step, accuracy (fraction of the test set; chance for a
        diverged net), loss (mean over at most 500 training samples; infinite for a diverged net), and what `measure`
        adds.

    Raises:
        ValueError: if there are no cells or seeds, or a number is less than 1, or a batch is larger than the data.
    """
    if not cells or not seeds:
        raise ValueError(f"{'seeds' if cells else 'cells'} is empty: there is nothing to train.")
    if min(steps, batch_size, every) < 1:
        raise ValueError(f"steps, batch_size and every must be at least 1, got {steps}, {batch_size}, {every}.")
    splits = [data(seed).to(device=device) for seed in seeds]
    if batch_size > len(splits[0].x_train):
        raise ValueError(f"batch_size is {batch_size}, there are {len(splits[0].x_train)} training samples.")
    nets = [net(torch.Generator().manual_seed(seed)).to(splits[0].x_train) for _ in cells for seed in seeds]
    replicas = Replicas(nets, cut=cut, loss=loss)
    dtype = splits[0].x_train.dtype
    columns = {
        name: torch.tensor([cell[name] for cell in cells for _ in seeds], dtype=dtype, device=device)
        for name in cells[0]
    }
    teach, step_by = rule(columns), optimizer(columns)
    streams = [_stream(len(split.x_train), batch_size, seed) for split, seed in zip(splits, seeds, strict=True)]
    rows: list[pd.DataFrame] = []
    steps_shown = range(1, steps + 1)
    for step in track(steps_shown, label, total=steps) if track else steps_shown:
        chosen = [next(stream).to(device) for stream in streams]
        x = torch.stack([split.x_train[own] for split, own in zip(splits, chosen, strict=True)])
        y = torch.stack([split.y_train[own] for split, own in zip(splits, chosen, strict=True)])
        replicas.learn(x.repeat(len(cells), 1, 1), y.repeat(len(cells), 1), teach, step_by)
        if step % every == 0 or step == steps:
            rows.append(_look(replicas, splits, cells, seeds, step, measure))
    return pd.concat(rows, ignore_index=True)


def _stream(samples: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of indices, epoch after epoch."""
    generator = torch.Generator().manual_seed(seed ^ ORDER)
    while True:
        order = torch.randperm(samples, generator=generator)
        yield from order[: samples - samples % batch_size].split(batch_size)


def _look(
    replicas: Replicas,
    splits: Sequence[Dataset],
    cells: Sequence[Cell],
    seeds: Sequence[int],
    step: int,
    measure: Measure | None,
) -> pd.DataFrame:
    count = len(cells)

    def together(part: str, start: int, end: int) -> Tensor:
        own = torch.stack([getattr(split, part)[start:end] for split in splits])
        return own.repeat(count, *[1] * (own.dim() - 1))

    size = len(splits[0].x_test)
    accuracy = torch.zeros(len(replicas), dtype=splits[0].x_test.dtype, device=splits[0].x_test.device)
    for start in range(0, size, SHOWN):
        end = min(start + SHOWN, size)
        own = replicas.accuracies(together("x_test", start, end), together("y_test", start, end))
        accuracy += own * ((end - start) / size)
    x, y = together("x_train", 0, SHOWN), together("y_train", 0, SHOWN)
    outputs = replicas.outputs(x)
    if replicas.loss == "squared":
        losses = (outputs - one_hot_like(outputs, y)).square().sum(-1).mean(-1) / 2
    else:
        losses = cross_entropy(outputs.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(-1)
    frame = pd.DataFrame([{**cell, "seed": seed, "step": step} for cell in cells for seed in seeds])
    frame["accuracy"] = accuracy.cpu().double().numpy()
    frame["loss"] = np.nan_to_num(losses.cpu().double().numpy(), nan=np.inf, posinf=np.inf)
    more = measure(replicas, together("x_test", 0, size), together("y_test", 0, size)) if measure else {}
    for name, values in more.items():
        frame[name] = values.cpu().double().numpy()
    return frame
