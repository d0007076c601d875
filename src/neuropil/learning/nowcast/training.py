"""Teaching a nowcaster from trajectories of other trainings.

slices of c + K consecutive states, scaled by the mean and deviation of the first c;
L = mean over weights and k of |z_{c+k} - (z_c + a_k(z_1..z_c))|
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.learning.nowcast.forecasts import Nowcaster, standardise
from neuropil.learning.nowcast.graph import NeuralGraph, loose_weights
from neuropil.learning.nowcast.trajectories import TrajectoryDataset

__all__ = ["forecast_error", "train_nowcaster"]


def train_nowcaster(
    nowcaster: Nowcaster,
    dataset: TrajectoryDataset,
    *,
    steps: int = 20_000,
    slices: int = 16,
    weights: int | None = None,
    rate: float = 3e-3,
    weight_decay: float = 1e-2,
    clip: float = 5.0,
    generator: torch.Generator | None = None,
) -> list[float]:
    """Meta-train a nowcaster in place: AdamW, its rate falling to 1e-6 along a cosine.

    Args:
        nowcaster: what learns.
        dataset: trajectories with at least context + horizons states.
        steps: of AdamW.
        slices: drawn a step, with replacement.
        weights: of a slice that are looked at, drawn at random; None takes all. Nowcasters that read connections always
            take all.
        rate: the first learning rate.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        generator: source of the draws; also flips the signs of the graph's eigenvectors, which mean nothing.

    Returns:
        The loss of every step.

    Raises:
        ValueError: if the nowcaster has nothing to learn, or a number is less than 1.
        FloatingPointError: if the loss is no longer finite, with the step.

    Source: Knyazev et al. 2025, sec. 5.1.
    """
    parameters = list(nowcaster.parameters())
    if not parameters:
        raise ValueError(f"{type(nowcaster).__name__} has nothing to learn.")
    if steps < 1 or slices < 1 or (weights is not None and weights < 1):
        raise ValueError(f"steps, slices and weights must be at least 1, got {steps}, {slices} and {weights}.")
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=1e-6)
    device, losses = parameters[0].device, []
    for step in range(steps):
        optimizer.zero_grad()
        drawn = [draw(nowcaster, dataset, weights, generator) for _ in range(slices)]
        drawn = drawn if nowcaster.connected else [merged(drawn)]
        total = 0.0
        for states, graph in drawn:
            loss = slice_loss(nowcaster, states.to(device), graph) / len(drawn)
            loss.backward()
            total += float(loss.detach())
        if not total < float("inf"):
            raise FloatingPointError(f"The loss of {type(nowcaster).__name__} is {total} at meta-step {step}.")
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        schedule.step()
        losses.append(total)
    return losses


@torch.no_grad()
def forecast_error(
    nowcaster: Nowcaster, dataset: TrajectoryDataset, *, slices: int = 64, generator: torch.Generator | None = None
) -> float:
    """Mean absolute error of the scaled weights over all horizons, on slices of trajectories.

    Args:
        nowcaster: any.
        dataset: trajectories with at least context + horizons states, best those that it has not seen.
        slices: how many are drawn.
        generator: source of the draws.

    Raises:
        ValueError: if slices is less than 1.
    """
    if slices < 1:
        raise ValueError(f"slices must be at least 1, got {slices}.")
    drawn = (draw(nowcaster, dataset, None, generator) for _ in range(slices))
    return sum(float(slice_loss(nowcaster, *each)) for each in drawn) / slices


def slice_loss(nowcaster: Nowcaster, scaled: Float[Tensor, "weights states"], graph: NeuralGraph) -> Float[Tensor, ""]:
    """L at one slice of scaled states."""
    seen, ahead = scaled[:, : nowcaster.context], scaled[:, nowcaster.context :]
    return (ahead - seen[:, -1:] - nowcaster.changes(seen, graph)).abs().mean()


def draw(
    nowcaster: Nowcaster, dataset: TrajectoryDataset, weights: int | None, generator: torch.Generator | None
) -> tuple[Tensor, NeuralGraph]:
    """A scaled slice and its graph."""
    states, graph = dataset.draw(nowcaster.context + nowcaster.horizons, generator)
    scaled, _ = standardise(states, graph, nowcaster.context)
    if nowcaster.connected:
        return scaled, graph.flipped(generator)
    if weights is not None:
        chosen = torch.randint(len(scaled), (min(weights, len(scaled)),), generator=generator)
        return scaled[chosen], graph.only(chosen)
    return scaled, graph


def merged(drawn: list[tuple[Tensor, NeuralGraph]]) -> tuple[Tensor, NeuralGraph]:
    """Slices without connections as one."""
    kinds = torch.cat([graph.weight_type for _, graph in drawn])
    return torch.cat([states for states, _ in drawn]), loose_weights(kinds)
