"""NB-digits: a benchmark small enough to train whole, 625 cells on scikit-learn's digits.

    stem 64 -> 16;   h_1 = o_1(h_0),   h_2 = o_2(h_0) + o_3(h_1),   h_3 = o_4(h_2) + h_1;   head 16 -> 10

with five operations on each of the four searched edges:

    zero 0     skip h     relu max(0, W h + b)     tanh tanh(W h + b)     gate (W h + b) * sigmoid(V h + c)

A seed draws one W and one V an edge, a stem, a head and an order of batches, and every cell starts from them: cells
differ by their structure alone, and codes of the same network train to the same numbers.

All cells are trained at once: each edge computes its two linear maps for all A cells in one product over an axis of
architectures, and constants 0 or 1 choose what counts. In float64, so that another machine rebuilds the same table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset, load
from neuropil.learning.networks import linear
from neuropil.structure.search.cell_spaces import CellSpace, Edge
from neuropil.structure.search.cells import Cell, CellNetwork, Zero
from neuropil.structure.search.spaces import Architecture

__all__ = ["OPERATIONS", "DigitsTraining", "GatedLinear", "digits_cell", "digits_space", "digits_split", "train_cells"]

OPERATIONS = ("zero", "skip", "relu", "tanh", "gate")
EDGES: tuple[Edge, ...] = ((0, 1), (0, 2), (1, 2), (2, 3))
WIDTH = 16


@dataclass(frozen=True)
class DigitsTraining:
    """How each cell is trained; the shipped table is of the defaults.

    Attributes:
        looks: steps of Adam after which the validation loss is taken, ascending; the last is the whole training.
        batch_size: images a step.
        rate: of Adam.
    """

    looks: tuple[int, ...] = (4, 12, 36, 108)
    batch_size: int = 48
    rate: float = 5e-3

    def __post_init__(self) -> None:
        if not self.looks or list(self.looks) != sorted(set(self.looks)) or self.looks[0] < 1:
            raise ValueError(f"looks must be ascending steps from 1 on, got {self.looks}.")
        if self.batch_size < 1 or not self.rate > 0:
            raise ValueError(f"batch_size >= 1 and rate > 0 wanted, got {self.batch_size} and {self.rate}.")


@cache
def digits_space() -> CellSpace:
    """The 625 codes of NB-digits."""
    return CellSpace(EDGES, OPERATIONS, fixed={(1, 3): "skip"})


@cache
def digits_split() -> tuple[Dataset, Dataset]:
    """Training and validation part, 987 and 450 images, and the whole with its 360 test images; float64, flat."""
    whole = load("digits", seed=0).flat().to(dtype=torch.float64)
    return whole.holdout(450, seed=0), whole


class GatedLinear(nn.Module):
    """(W h + b) * sigmoid(V h + c), the gated linear unit of Dauphin et al. (ICML 2017).

    Args:
        value: the map W, b.
        gate: the map V, c.
    """

    def __init__(self, value: nn.Module, gate: nn.Module):
        super().__init__()
        self.value, self.gate, self.squash = value, gate, nn.Sigmoid()

    def forward(self, h: Tensor) -> Tensor:
        """Shape of the input."""
        return self.value(h) * self.squash(self.gate(h))


@dataclass(frozen=True)
class _Start:
    """What a seed draws: maps that every cell starts from,."""

    stem: nn.Linear
    head: nn.Linear
    value: dict[Edge, nn.Linear]
    gate: dict[Edge, nn.Linear]


def _start(seed: int) -> _Start:
    generator = torch.Generator().manual_seed(seed)
    stem, head = (linear(*sizes, generator=generator).double() for sizes in ((64, WIDTH), (WIDTH, 10)))
    maps = [{edge: linear(WIDTH, WIDTH, generator=generator).double() for edge in EDGES} for _ in ("value", "gate")]
    return _Start(stem, head, *maps)


def digits_cell(architecture: Architecture, seed: int = 0, *, dtype: torch.dtype = torch.float32) -> CellNetwork:
    """One cell as a module, with the initial weights from which the table's training of that seed starts.

    Args:
        architecture: its code.
        seed: of the initial weights.
        dtype: of the parameters.

    Raises:
        ValueError: if the code is none of `digits_space`.
    """
    start = _start(seed)

    def make(edge: Edge, name: str) -> nn.Module:
        if name in ("zero", "skip"):
            return Zero() if name == "zero" else nn.Identity()
        if name == "gate":
            return GatedLinear(start.value[edge], start.gate[edge])
        return nn.Sequential(start.value[edge], nn.ReLU() if name == "relu" else nn.Tanh())

    return CellNetwork(start.stem, Cell(digits_space(), architecture, make), start.head).to(dtype)


def batch_indices(samples: int, seed: int, steps: int, batch_size: int) -> Int64[Tensor, "steps batch"]:
    """The images of every step, drawn with replacement."""
    generator = torch.Generator().manual_seed(10_000 + seed)  # apart from the seeds of the weights
    return torch.randint(samples, (steps, batch_size), generator=generator)


class _BatchedCells(nn.Module):
    """A cells side by side; every parameter has a leading axis of architectures."""

    def __init__(self, architectures: Sequence[Architecture], seed: int):
        super().__init__()
        space, start, count = digits_space(), _start(seed), len(architectures)
        self.maps = nn.ParameterDict()
        named = {"stem": start.stem, "head": start.head}
        named |= {f"value {i} {j}": start.value[i, j] for i, j in EDGES}
        named |= {f"gate {i} {j}": start.gate[i, j] for i, j in EDGES}
        for name, layer in named.items():
            self.maps[f"{name} weight"] = nn.Parameter(layer.weight.detach().T.repeat(count, 1, 1))
            self.maps[f"{name} bias"] = nn.Parameter(layer.bias.detach().repeat(count, 1, 1))
        chosen = torch.tensor([space.check(code) for code in architectures])  # (A, edges)
        # (operations, A, 1, 1) an edge: 1 where a cell has the operation.
        one_hot = nn.functional.one_hot(chosen, len(OPERATIONS)).double()
        self.choice = {edge: one_hot[:, at].T[:, :, None, None] for at, edge in enumerate(EDGES)}

    def _map(self, name: str, h: Float[Tensor, "#cells batch inputs"]) -> Float[Tensor, "cells batch outputs"]:
        weight, bias = self.maps[f"{name} weight"], self.maps[f"{name} bias"]
        return torch.baddbmm(bias, h.expand(len(weight), -1, -1), weight)

    def _edge(self, edge: Edge, h: Float[Tensor, "cells batch units"]) -> Float[Tensor, "cells batch units"]:
        _, skip, relu, tanh, gate = self.choice[edge]
        value = self._map("value {} {}".format(*edge), h)
        opened = self._map("gate {} {}".format(*edge), h).sigmoid()
        return skip * h + relu * value.relu() + tanh * value.tanh() + gate * value * opened

    def forward(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, "cells batch classes"]:
        h0 = self._map("stem", x[None])
        h1 = self._edge((0, 1), h0)
        h2 = self._edge((0, 2), h0) + self._edge((1, 2), h1)
        return self._map("head", self._edge((2, 3), h2) + h1)


def train_cells(
    architectures: Sequence[Architecture], seed: int, training: DigitsTraining | None = None
) -> pd.DataFrame:
    """Train cells side by side, each as if it were alone.

    Args:
        architectures: their codes.
        seed: of initial weights and batches, alike for all cells.
        training: its length and rate.

    Returns:
        One row a cell, in the order given: "architecture", "seed", a "validation loss <steps>" for each look, then
        "validation accuracy", "test loss" and "test accuracy" after the last step. Losses in nats, accuracies 0 to 1.

    Raises:
        ValueError: if there are no architectures, or one is none of the space.
        FloatingPointError: if a loss is not finite, naming the cell.
    """
    if not architectures:
        raise ValueError("architectures is empty: there is nothing to train.")
    training = training or DigitsTraining()
    data, whole = digits_split()
    net = _BatchedCells(architectures, seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=training.rate, foreach=True)
    columns: dict[str, list] = {"architecture": list(architectures), "seed": [seed] * len(architectures)}
    order = batch_indices(len(data.x_train), seed, training.looks[-1], training.batch_size)
    for step, batch in enumerate(order, start=1):
        optimizer.zero_grad()
        # A sum over cells: each one's gradient is that of its own mean loss.
        _losses(net(data.x_train[batch]), data.y_train[batch]).sum().backward()
        optimizer.step()
        if step in training.looks:
            columns[f"validation loss {step}"], columns["validation accuracy"] = _measure(net, data, architectures)
    columns["validation accuracy"] = columns.pop("validation accuracy")  # after all losses, and of the last look
    columns["test loss"], columns["test accuracy"] = _measure(net, whole, architectures)
    return pd.DataFrame(columns)


def _losses(logits: Float[Tensor, "cells batch classes"], y: Int64[Tensor, " batch"]) -> Float[Tensor, " cells"]:
    cells = len(logits)
    return cross_entropy(logits.flatten(0, 1), y.repeat(cells), reduction="none").view(cells, -1).mean(1)


@torch.no_grad()
def _measure(
    net: _BatchedCells, data: Dataset, architectures: Sequence[Architecture]
) -> tuple[list[float], list[float]]:
    logits = net(data.x_test)
    losses = _losses(logits, data.y_test)
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        raise FloatingPointError(f"The loss of cell {architectures[int(bad[0])]} is not finite.")
    return losses.tolist(), (logits.argmax(2) == data.y_test).double().mean(1).tolist()
