"""Models that guess the value of an architecture from its encoding, with a spread that says how sure they are.

A surrogate is a function (encodings, values, generator) -> predictor, a predictor a function encodings -> (mean, std):

    gaussian_process   k(x, x') = exp(-|x - x'|^2 / 2 l^2) + s^2 [x = x'],  l and s by the marginal likelihood on a grid
    random_forest      mean and standard deviation over trees
    mlp_ensemble       mean and standard deviation over networks that differ by their initial weights (BANANAS)

Source: White et al. 2023 (arXiv 2301.08727), section 5.1; Rasmussen & Williams 2006, eqs 2.25 to 2.30; White,
Neiswanger & Savani, AAAI 2021.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.neurons.ranges import require_positive
from neuropil.structure.search.spaces import below

__all__ = ["Predictor", "Surrogate", "gaussian_process", "mlp_ensemble", "random_forest"]

Predictor = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Mean and standard deviation of the value of each encoding: (samples, features) -> (samples,) twice."""

Surrogate = Callable[[Tensor, Tensor, torch.Generator], Predictor]
"""Fits a predictor to encodings (samples, features) and values (samples,)."""

LENGTHS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0)  # times the median distance of the encodings
NOISES = (1e-3, 1e-2, 0.1, 0.3, 1.0)  # variance, of values of variance 1


def gaussian_process(
    x: Float[Tensor, "samples features"], y: Float[Tensor, " samples"], generator: torch.Generator | None = None
) -> Predictor:
    """Exact regression with a Gaussian kernel, for hundreds of samples.

    Args:
        x: encodings.
        y: values.
        generator: not needed: nothing is drawn.

    Returns:
        The posterior of the noiseless value.

    Raises:
        ValueError: if there are no samples or the lengths differ.
    """
    x, standard, centre, scale = _standardised(x, y)
    apart = torch.cdist(x, x).square()
    positive = apart[apart > 0]
    unit = positive.median() if positive.numel() else apart.new_ones(())
    lengths, noises = x.new_tensor(LENGTHS), x.new_tensor(NOISES)
    # (lengths, noises, samples, samples): all hyper-parameters in one batch.
    kernel = (-apart / (2 * unit * lengths.square()[:, None, None])).exp()
    noisy = kernel[:, None] + noises[:, None, None] * torch.eye(len(x)).to(x)
    factors = torch.linalg.cholesky(noisy)
    weights = torch.cholesky_solve(standard[:, None].expand(*factors.shape[:2], -1, 1), factors)
    fit = -0.5 * (standard * weights[..., 0]).sum(-1)
    evidence = fit - factors.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    at, noise = divmod(int(evidence.argmax()), len(NOISES))
    factor, weight, width = factors[at, noise], weights[at, noise], unit * lengths[at].square()

    def predict(new: Float[Tensor, "candidates features"]) -> tuple[Tensor, Tensor]:
        cross = (-torch.cdist(new.to(x), x).square() / (2 * width)).exp()
        solved = torch.linalg.solve_triangular(factor, cross.T, upper=False)
        variance = (1 - solved.square().sum(0)).clamp(min=0)
        return centre + scale * (cross @ weight)[:, 0], scale * variance.sqrt()

    return predict


def random_forest(
    x: Float[Tensor, "samples features"],
    y: Float[Tensor, " samples"],
    generator: torch.Generator,
    *,
    trees: int = 50,
) -> Predictor:
    """Regression trees on bootstrap samples (scikit-learn's).

    Args:
        x: encodings.
        y: values.
        generator: of the forest's seed.
        trees: number of them.

    Raises:
        ValueError: if there are no samples or the lengths differ.
    """
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415 - slow to import

    x, standard, centre, scale = _standardised(x, y)
    forest = RandomForestRegressor(trees, random_state=below(2**31 - 1, generator)).fit(x.numpy(), standard.numpy())

    def predict(new: Float[Tensor, "candidates features"]) -> tuple[Tensor, Tensor]:
        votes = torch.from_numpy(np.stack([tree.predict(new.double().numpy()) for tree in forest.estimators_]))
        return centre + scale * votes.mean(0), scale * votes.std(0, correction=0)

    return predict


def mlp_ensemble(
    x: Float[Tensor, "samples features"],
    y: Float[Tensor, " samples"],
    generator: torch.Generator,
    *,
    members: int = 5,
    layers: int = 10,
    width: int = 20,
    steps: int = 200,
    rate: float = 0.01,
) -> Predictor:
    """Networks that differ by their initial weights, trained side by side on all samples.

    Args:
        x: encodings.
        y: values.
        generator: of the initial weights.
        members: networks.
        layers: hidden ones.
        width: of each.
        steps: of Adam, each on all samples (BANANAS: 200 epochs of batches of 32).
        rate: of Adam.

    Raises:
        ValueError: if there are no samples, the lengths differ, or a number is out of range.
    """
    if min(members, layers, width, steps) < 1:
        raise ValueError(f"members, layers, width, steps >= 1 wanted, got {members}, {layers}, {width}, {steps}.")
    require_positive(rate=rate)
    x, standard, centre, scale = _standardised(x, y)
    x, standard = x.float(), standard.float()
    sizes = [x.shape[1], *[width] * layers, 1]
    weights, biases = [], []
    for inputs, outputs in itertools.pairwise(sizes):
        # Variance 2 / fan-in keeps ten layers of ReLU alive (He et al. 2015).
        drawn = torch.randn(members, inputs, outputs, generator=generator) * (2 / inputs) ** 0.5
        weights.append(nn.Parameter(drawn))
        biases.append(nn.Parameter(torch.zeros(members, 1, outputs)))

    def forward(h: Tensor) -> Tensor:
        h = h.expand(members, -1, -1)
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            h = torch.baddbmm(bias, h, weight).relu()
        return torch.baddbmm(biases[-1], h, weights[-1])[..., 0]

    optimizer = torch.optim.Adam([*weights, *biases], lr=rate, foreach=True)
    for _ in range(steps):
        optimizer.zero_grad()
        (forward(x) - standard).square().mean(1).sum().backward()
        optimizer.step()

    @torch.no_grad()
    def predict(new: Float[Tensor, "candidates features"]) -> tuple[Tensor, Tensor]:
        guesses = forward(new.float()).double()
        return centre + scale * guesses.mean(0), scale * guesses.std(0, correction=0)

    return predict


def _standardised(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float, float]:
    """Encodings and values in float64, the values with mean 0 and deviation 1, and what undoes it."""
    if x.ndim != 2 or len(x) == 0 or y.shape != x.shape[:1]:
        raise ValueError(f"x (samples, features) and y (samples,) wanted, got {tuple(x.shape)} and {tuple(y.shape)}.")
    x, y = x.double(), y.double()
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError("x and y must be finite.")
    centre, scale = float(y.mean()), float(y.std(correction=0))
    scale = scale if scale > 0 else 1.0
    return x, (y - centre) / scale, centre, scale
