"""The nets, scores and trainings of the study of pruning at the start."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset, load
from neuropil.learning.networks import mlp
from neuropil.structure.chaos import StableResidual, init_edge_of_chaos_, init_gaussian_
from neuropil.structure.collapse import critical_sparsity, layer_collapse
from neuropil.structure.criteria import SNIP, Magnitude, Random
from neuropil.structure.initial import prune_at_init
from neuropil.structure.masks import attach, prunable_parameters

SCORED, SHUFFLING, DRAWING = 0x5C0, 0x5EED, 0xD4A  # apart from the seeds of the initial weights


@cache
def images(name: str, train: int | None, test: int | None, *, held_out: bool = False, flat: bool = True) -> Dataset:
    """A data set, read once a process; with `held_out` its test part is a quarter of the training part."""
    data = load(name).subset(train, test)
    data = data.holdout(0.25) if held_out else data
    return data.flat() if flat else data


def scored_batch(data: Dataset, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """The samples that scores are taken on."""
    chosen = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(seed ^ SCORED))[:size]
    return data.x_train[chosen], data.y_train[chosen]


def score_profile(
    data_set: tuple[str, int | None, int | None],
    phase: str,
    sigma_w: float,
    sigma_b: float,
    depth: int,
    width: int,
    batch: int,
    seed: int,
) -> dict[str, Any]:
    """How the scores w dL/dw of a random tanh net run through its hidden layers; "squares" is one text."""
    data = images(*data_set)
    generator = torch.Generator().manual_seed(seed)
    net = mlp(data.features, *[width] * depth, data.classes, activation=nn.Tanh, generator=generator)
    init_gaussian_(net, sigma_w, sigma_b, generator)
    hidden = prunable_parameters(net)[1:-1]  # first and last layer have other statistics
    scores = SNIP()(net, [scored_batch(data, batch, seed)], cross_entropy, hidden)
    squares = layer_collapse(scores)["mean_square_score"].to_numpy()
    slope = np.polyfit(np.arange(len(squares)), np.log(squares), 1)[0]
    return {
        "phase": phase,
        "sigma_w": sigma_w,
        "sigma_b": sigma_b,
        "seed": seed,
        "slope": float(slope),
        "critical": critical_sparsity(scores),
        "squares": " ".join(f"{square:.8g}" for square in squares),
    }


MASKS = {  # which weights stay: how they are scored, and what shares them out between layers
    "random": ("layer", lambda seed: Random(torch.Generator().manual_seed(seed ^ DRAWING))),
    "magnitude": ("layer", lambda seed: Magnitude()),
    "w dL/dw": ("global", lambda seed: SNIP()),
}


def train_pruned(
    data_set: tuple[str, int | None, int | None],
    depth: int,
    width: int,
    density: float,
    masks: str,
    rescale: Literal["none", "moment", "data"],
    *,
    epochs: int,
    batch_size: int,
    rate: float,
    scored: int,
    seed: int,
) -> dict[str, Any]:
    """Prune a deep ReLU net at its start, rescale it or not, and train it."""
    data = images(*data_set)
    net = mlp(data.features, *[width] * depth, data.classes, generator=torch.Generator().manual_seed(seed))
    init_edge_of_chaos_(net, generator=torch.Generator().manual_seed(seed))
    row: dict[str, Any] = {"depth": depth, "density": density, "masks": masks, "rescale": rescale, "seed": seed}
    optimizer = torch.optim.Adam(net.parameters(), rate, fused=True)
    batch = scored_batch(data, scored, seed)
    before = _power(net, batch[0])
    if masks != "none":
        scope, criterion = MASKS[masks]
        kept = prune_at_init(
            net,
            [batch],
            cross_entropy,
            density,
            criterion=criterion(seed),
            rescale=None if rescale == "none" else rescale,
            scope=scope,
            on_collapse="warn",
        )
        attach(kept, net, optimizer)
    row["signal"] = _power(net, batch[0]) / before  # of the logits, by what the dense net has
    return row | trained(net, optimizer, data, epochs, batch_size, seed)


def _power(net: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float(net(x).double().square().mean())


class ResidualNet(nn.Sequential):
    """A stem, residual blocks x + factor * W relu(x), a readout; no norms.

    Args:
        data: gives the shapes; images for the convolutional kind.
        kind: "mlp" or "conv".
        depth: number of blocks.
        width: units, or channels.
        stable: whether branches are divided by the square root of the depth.
        generator: source of the weights, at ReLU's edge of chaos.
    """

    def __init__(self, data: Dataset, kind: str, depth: int, width: int, stable: bool, generator: torch.Generator):
        def layer(inputs: int) -> nn.Module:
            if kind == "mlp":
                return nn.Linear(inputs, width, bias=False)
            return nn.Conv2d(inputs, width, 3, padding=1, bias=False)

        with torch.random.fork_rng(devices=[]):  # torch's own draws, which are replaced
            blocks = [
                StableResidual(nn.Sequential(nn.ReLU(), layer(width)), depth if stable else 1) for _ in range(depth)
            ]
            stem = layer(data.features if kind == "mlp" else data.shape[0])
            pool = [] if kind == "mlp" else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            super().__init__(stem, *blocks, *pool, nn.Linear(width, data.classes))
        init_edge_of_chaos_(self, generator=generator)
        self.blocks = depth

    @torch.no_grad()
    def growth(self, x: Tensor) -> float:
        """How much larger the mean square is after the last block than after the first."""
        powers = []
        for module in list(self)[: self.blocks + 1]:
            x = module(x)
            powers.append(float(x.double().square().mean()))
        return powers[-1] / powers[1]


def train_residual(
    data_set: tuple[str, int | None, int | None],
    kind: str,
    depth: int,
    width: int,
    stable: bool,
    density: float,
    *,
    epochs: int,
    batch_size: int,
    rate: float,
    scored: int,
    seed: int,
    held_out: bool = False,
) -> dict[str, Any]:
    """Train a residual net, dense or pruned at its start by w dL/dw without rescaling."""
    data = images(*data_set, held_out=held_out, flat=kind == "mlp")
    net = ResidualNet(data, kind, depth, width, stable, torch.Generator().manual_seed(seed))
    batch = scored_batch(data, scored, seed)
    row: dict[str, Any] = {"branch": "1/sqrt L" if stable else "1", "density": density, "rate": rate, "seed": seed}
    row["growth"] = net.growth(batch[0])
    optimizer = torch.optim.Adam(net.parameters(), rate, fused=True)
    if density < 1:
        kept = prune_at_init(net, [batch], cross_entropy, density, rescale=None, on_collapse="warn")
        row["smallest kept"] = min(kept.densities().values())
        attach(kept, net, optimizer)
    return row | trained(net, optimizer, data, epochs, batch_size, seed)


def trained(
    net: nn.Module, optimizer: torch.optim.Optimizer, data: Dataset, epochs: int, batch_size: int, seed: int
) -> dict[str, Any]:
    """Train, and test at the end; where the loss is no longer finite, accuracy is chance."""
    order, loss = torch.Generator().manual_seed(seed ^ SHUFFLING), torch.zeros(())
    for _ in range(epochs):
        for chosen in torch.randperm(len(data.x_train), generator=order).split(batch_size):
            loss = cross_entropy(net(data.x_train[chosen]), data.y_train[chosen])
            if not math.isfinite(float(loss.detach())):
                return {"accuracy": 1 / data.classes, "loss": math.inf}
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        outputs = torch.cat([net(x) for x in data.x_test.split(1000)])
    right = float((outputs.argmax(1) == data.y_test).double().mean())
    finite = bool(outputs.isfinite().all())
    return {"accuracy": right if finite else 1 / data.classes, "loss": float(loss.detach()) if finite else math.inf}


def homogeneous(depth: int, width: int, factors: Sequence[float], seed: int) -> tuple[float, float]:
    """Two exact facts of a ReLU net without biases, as the largest relative deviations.

    Returns:
        Of the layers' sums of w dL/dw from the first layer's; and of the scores' ratio, with all weights times a factor
        and the same gradient at the output, from one number for all weights.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, width, generator=generator, dtype=torch.float64)
    y = torch.randint(10, (32,), generator=generator)
    arrow = torch.randn(32, 10, generator=generator, dtype=torch.float64)
    net = mlp(width, *[width] * depth, 10, generator=generator).double()
    init_edge_of_chaos_(net, generator=generator)
    names = prunable_parameters(net)
    weights = [net.get_parameter(name) for name in names]
    gradients = torch.autograd.grad(cross_entropy(net(x), y), weights)
    sums = torch.stack([(weight.detach() * slope).sum() for weight, slope in zip(weights, gradients, strict=True)])
    apart = float((sums / sums[0] - 1).abs().max())

    def pushed() -> Tensor:
        scores = SNIP()(net, [(x, arrow)], lambda out, along: (out * along).sum(), names)
        return torch.cat([score.flatten() for score in scores.values()])

    plain, worst = pushed(), 0.0
    for factor in factors:
        with torch.no_grad():
            for name in names:
                net.get_parameter(name).mul_(factor)
        ratio = (pushed() / plain)[plain > 0] / factor ** len(names)
        worst = max(worst, float((ratio - 1).abs().max()))
        with torch.no_grad():
            for name in names:
                net.get_parameter(name).div_(factor)
    return apart, worst
