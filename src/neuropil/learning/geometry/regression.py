"""Interpolating regression: the setting in which the geometry of plasticity can be proven to show.

D weights, N << D samples of correlated inputs with random labels:

    x = z + u,  z ~ N(0, C),  C_ij = (-1)^(i-j) / (1 + (|i-j| / scale)^power),  u ~ U(-1/2, 1/2)
    y = +-1,    w_0 ~ N(0, 1/D),    loss = mean over samples of (x w - y)^2

Full-batch mirror descent reaches the interpolating solution of least Bregman divergence from w_0, so that the change of
the dual variables lies in the span of the inputs, grad phi(w*) - grad phi(w_0) = X^T lambda with N numbers lambda.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.learning.geometry.descent import MirrorDescent
from neuropil.learning.geometry.draws import correlated_gaussian
from neuropil.learning.geometry.potentials import Potential

__all__ = ["Interpolation", "RegressionTask", "interpolate", "row_space_residual"]

LARGE = 1e12  # labels are +-1: from here on there is no way back


@dataclass(frozen=True, eq=False)
class RegressionTask:
    """Random labels on correlated inputs, and the weights to start from.

    Attributes:
        x: inputs.
        y: labels, 1 and -1.
        w: initial weights.
    """

    x: Float[Tensor, "samples features"]
    y: Float[Tensor, " samples"]
    w: Float[Tensor, " features"]

    @classmethod
    def draw(
        cls,
        samples: int,
        features: int,
        *,
        power: float = 1.0,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> "RegressionTask":
        """Draw a task in float64.

        Args:
            samples: N.
            features: D.
            power: of the fall-off of correlation, as in `correlated_gaussian`.
            scale: distance at which it has fallen to a half.
            generator: source of the draws; None is torch's default generator.

        Raises:
            ValueError: as `correlated_gaussian`.
        """
        z = correlated_gaussian(samples, features, power, scale, generator=generator)
        options = {"generator": generator, "dtype": torch.float64, "device": z.device}
        noise = torch.rand(samples, features, **options) - 0.5
        y = torch.randint(2, (samples,), **options) * 2 - 1
        return cls(z + noise, y, torch.randn(features, **options) * features**-0.5)

    def to(self, device: torch.device | str) -> "RegressionTask":
        """The task on a device."""
        return RegressionTask(self.x.to(device), self.y.to(device), self.w.to(device))


@dataclass(frozen=True, eq=False)
class Interpolation:
    """Where mirror descent came to on a task.

    Attributes:
        weights: after learning.
        loss: mean squared error there; infinite where it diverged.
        steps: of the last try.
    """

    weights: Float[Tensor, " features"]
    loss: float
    steps: int


def interpolate(
    task: RegressionTask,
    potential: Potential,
    rate: float,
    *,
    epochs: int = 100,
    tries: int = 5,
    tolerance: float = 1e-3,
    momentum: float = 0.9,
) -> Interpolation:
    """Learn a task by full-batch mirror descent, longer and longer until its loss is small.

    Args:
        task: what to learn.
        potential: geometry of the steps.
        rate: learning rate at the start; it falls to 0 along a cosine.
        epochs: steps of the first try; every further one starts anew and has as many more.
        tries: how many at most.
        tolerance: loss that is small enough.
        momentum: of the optimizer.

    Raises:
        ValueError: if epochs or tries are less than 1, or as `MirrorDescent`.

    Source: Pogodin et al. 2024 and its code (romanpogodin/synaptic-weight-distr).
    """
    if epochs < 1 or tries < 1:
        raise ValueError(f"epochs and tries must be at least 1, got {epochs} and {tries}.")
    found = Interpolation(task.w, float("inf"), 0)
    for attempt in range(1, tries + 1):
        found = _descend(task, potential, rate, attempt * epochs, momentum)
        if not tolerance <= found.loss < float("inf"):
            break  # learnt, or diverged: more of the same does not help
    return found


def _descend(task: RegressionTask, potential: Potential, rate: float, steps: int, momentum: float) -> Interpolation:
    w = task.w.clone().requires_grad_()
    optimizer = MirrorDescent([w], rate, potential, momentum)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = _loss(task, w)
        if not bool(loss < LARGE):
            return Interpolation(w.detach(), float("inf"), steps)
        loss.backward()
        optimizer.step()
        schedule.step()
    loss = float(_loss(task, w.detach()))
    return Interpolation(w.detach(), loss if loss < LARGE else float("inf"), steps)


def _loss(task: RegressionTask, w: Float[Tensor, " features"]) -> Float[Tensor, ""]:
    return (task.x @ w - task.y).square().mean()


def row_space_residual(change: Float[Tensor, " features"], x: Float[Tensor, "samples features"]) -> float:
    """How much of a change no combination of the inputs explains, as a fraction of its norm.

    Args:
        change: of the dual variables.
        x: inputs, fewer than features.

    Raises:
        ValueError: if nothing changed.
    """
    norm = float(change.norm())
    if not norm > 0:
        raise ValueError("Nothing changed: there is no residual.")
    basis, _ = torch.linalg.qr(x.T)
    return float((change - basis @ (basis.T @ change)).norm()) / norm
