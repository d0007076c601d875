"""Learning sample by sample, and pictures of where two-dimensional classifiers draw the line."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import nnls
from torch import Tensor, nn

from neuropil.learning.rule import LearningRule

__all__ = ["Boundary", "History", "decision_boundary", "fit_online", "perceptron_bound"]


class History(NamedTuple):
    """What happened while a net learned sample by sample.

    Attributes:
        error: loss summed over each epoch's samples, each before its own update.
        mistakes: samples of each epoch whose output was on the wrong side, before their update.
        weights: all parameters as one vector, before learning and after each epoch.
        converged: whether it stopped before the last epoch: an error of at most the tolerance, or no mistake if there
            is no tolerance.
    """

    error: Float[Tensor, " epochs"]
    mistakes: Float[Tensor, " epochs"]
    weights: Float[Tensor, "epochs_and_start parameters"]
    converged: bool


def fit_online(
    rule: LearningRule,
    x: Float[Tensor, "samples inputs"],
    y: Float[Tensor, "_ outputs"],
    *,
    lr: float,
    epochs: int = 100,
    tol: float | None = None,
    shuffle: bool = True,
    generator: torch.Generator | None = None,
) -> History:
    """Present one sample after the other and update at once, by plain gradient descent.

    A perceptron on data that are not separable never stops making mistakes: `epochs` ends it, and `converged` says so.

    Args:
        rule: makes the gradients.
        x: inputs.
        y: targets; an output is on the right side if it and its target are on the same side of the middle between the
            least and the greatest target.
        lr: learning rate.
        epochs: the most passes over the samples.
        tol: stop after an epoch with at most this error; None stops after one without a mistake.
        shuffle: draw a new order for each epoch; False keeps the given one.
        generator: source of the orders; None is one of seed 0.

    Raises:
        ValueError: if a number is out of range, or samples and targets differ in number.
        FloatingPointError: if the error is no longer finite, with the epoch.
    """
    if not lr > 0 or epochs < 1:
        raise ValueError(f"lr must be positive and epochs at least 1, got {lr} and {epochs}.")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"x has {len(x)} samples, y {len(y)}.")
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    optimizer = torch.optim.SGD(rule.net.parameters(), lr)
    middle = (y.max() + y.min()) / 2
    errors: list[float] = []
    mistakes: list[float] = []
    weights = [_flat(rule.net)]
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator) if shuffle else torch.arange(len(x))
        error, wrong = 0.0, 0
        for index in order.tolist():
            sample, target = x[index : index + 1], y[index : index + 1]
            with torch.no_grad():
                output = rule.predict(sample)
            wrong += bool(((output > middle) != (target > middle)).any())
            error += float(rule.learn(sample, target, optimizer))
        if not np.isfinite(error):
            raise FloatingPointError(f"{type(rule).__name__}: the error is {error} in epoch {epoch + 1}.")
        errors.append(error)
        mistakes.append(wrong)
        weights.append(_flat(rule.net))
        if (wrong == 0) if tol is None else (error <= tol):
            return History(torch.tensor(errors), torch.tensor(mistakes, dtype=torch.float), torch.stack(weights), True)
    return History(torch.tensor(errors), torch.tensor(mistakes, dtype=torch.float), torch.stack(weights), False)


def perceptron_bound(x: Float[Tensor, "samples inputs"], positive: Tensor) -> float:
    """The most mistakes that a perceptron makes from zero weights: (R / gamma)^2, the bias counted as an input of 1.

    Args:
        x: inputs.
        positive: which samples are of the class that the neuron shall be on for, (samples,), bool.

    Returns:
        The bound; infinite if no neuron separates the classes.

    Source: Novikoff, Symp. Math. Theory of Automata (1962). The margin is found as a least-distance problem (Lawson &
    Hanson 1974, ch. 23): the shortest w with w . z_p >= 1 for all samples, z_p = +-(x_p, 1).
    """
    if len(x) != len(positive) or not len(x):
        raise ValueError(f"x has {len(x)} samples, positive {len(positive)}.")
    rows = np.hstack([x.detach().double().cpu().numpy(), np.ones((len(x), 1))])
    signs = np.where(positive.cpu().numpy().astype(bool), 1.0, -1.0)
    signed = rows * signs[:, None]
    system = np.vstack([signed.T, np.ones(len(signed))])
    target = np.zeros(len(system))
    target[-1] = 1
    residual = system @ nnls(system, target)[0] - target
    if np.linalg.norm(residual) < 1e-9:
        return float("inf")
    shortest = -residual[:-1] / residual[-1]
    if (signed @ shortest).min() < 1 - 1e-6:  # rounding: the classes only just fail to be separable
        return float("inf")
    return float((rows**2).sum(1).max() * (shortest**2).sum())


class Boundary(NamedTuple):
    """A net's output over a rectangle of inputs.

    Attributes:
        x1: first input, (points,).
        x2: second input, (points,).
        output: at every pair, (points of x2, points of x1), as `contourf(x1, x2, output)` takes it.
    """

    x1: np.ndarray
    x2: np.ndarray
    output: np.ndarray


@torch.no_grad()
def decision_boundary(
    net: nn.Module, bounds: tuple[float, float, float, float], *, resolution: int = 100, unit: int = 0
) -> Boundary:
    """Evaluate a net of two inputs on a grid.

    Args:
        net: of (batch, 2).
        bounds: least and greatest first input, least and greatest second input.
        resolution: points an axis, at least 2.
        unit: which output.

    Raises:
        ValueError: if the bounds are upside down or the resolution is below 2.
    """
    left, right, bottom, top = bounds
    if not (left < right and bottom < top) or resolution < 2:
        raise ValueError(f"bounds must rise and resolution be at least 2, got {bounds} and {resolution}.")
    x1, x2 = np.linspace(left, right, resolution), np.linspace(bottom, top, resolution)
    first = next(net.parameters(), torch.zeros(()))
    grid = torch.from_numpy(np.stack(np.meshgrid(x1, x2), -1).reshape(-1, 2)).to(first)
    output = net(grid).reshape(len(grid), -1)[:, unit]
    return Boundary(x1, x2, output.cpu().numpy().reshape(resolution, resolution))


def _flat(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])
