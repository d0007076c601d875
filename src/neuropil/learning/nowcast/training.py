"""Meta-training: a nowcaster learns from training runs what the next states of a network's weights are.

    loss = mean over weights and k = 1..K of | d_k - (w(k) - w_last) / spread |

the L1 distance in scaled space between the forecast displacements and the true ones.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neuropil.learning.nowcast.forecasts import Nowcaster, check_sizes, scale_history
from neuropil.learning.nowcast.graph import NeuralGraph
from neuropil.learning.nowcast.messages import GraphNowcaster
from neuropil.learning.nowcast.trajectories import Trajectory, TrajectoryDataset, states_of
from neuropil.parallel import Track

__all__ = ["forecast_error", "train_nowcaster"]


def train_nowcaster(
    model: Nowcaster,
    dataset: TrajectoryDataset,
    *,
    steps: int = 20_000,
    graphs: int = 4,
    slices: int = 4,
    weights: int | None = None,
    rate: float = 3e-3,
    final_rate: float = 1e-6,
    weight_decay: float = 1e-2,
    clip: float = 5.0,
    generator: torch.Generator | None = None,
    track: Track | None = None,
) -> list[float]:
    """Train a nowcaster by AdamW with a cosine schedule.

    Every step draws trajectories, and from each of them slices of past and future states. Signs of Laplacian
    eigenvectors, which mean nothing, are flipped at random.

    Args:
        model: with a largest horizon, and parameters.
        dataset: training runs.
        steps: of the optimizer.
        graphs: trajectories a step.
        slices: windows of each of them.
        weights: how many weights of each slice to look at, drawn at random; None takes all. Only for nowcasters that
            look at each weight alone.
        rate: learning rate at the start.
        final_rate: at the end.
        weight_decay: of AdamW.
        clip: largest norm of the gradient.
        generator: of the draws.
        track: shows progress.

    Returns:
        The loss of every step.

    Raises:
        ValueError: if no trajectory is long enough, the model has nothing to learn, or an argument is out of range.
        FloatingPointError: if the loss is no longer finite, with the step.

    Source: Knyazev et al. 2025, sec. 4.1.
    """
    if model.horizons is None or not any(True for _ in model.parameters()):
        raise ValueError(f"{type(model).__name__} has nothing to learn.")
    if weights is not None and model.needs_graph:
        raise ValueError("A nowcaster that reads connections needs all weights of a network: weights must be None.")
    check_sizes(steps=steps, graphs=graphs, slices=slices, weights=1 if weights is None else weights)
    device = next(model.parameters()).device
    usable = states_of(_long_enough(dataset, model.context, model.horizons), device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=weight_decay, fused=True)
    losses: list[float] = []
    model.train()
    for step in track(range(steps), "meta-steps", total=steps) if track else range(steps):
        fall = (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = final_rate + (rate - final_rate) * fall
        optimizer.zero_grad()
        total = 0.0
        for chosen in torch.randint(len(usable), (graphs,), generator=generator).tolist():
            loss = _slice_loss(model, usable[chosen], slices, weights, generator) / graphs
            loss.backward()
            total += float(loss.detach())
        if not math.isfinite(total):
            raise FloatingPointError(f"The loss of the nowcaster is {total} at step {step}.")
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(total)
    model.eval()
    return losses


@torch.no_grad()
def forecast_error(
    model: Nowcaster, dataset: TrajectoryDataset, *, horizons: int = 40, stride: int = 1
) -> Float[Tensor, " horizons"]:
    """L1 distance of a nowcaster's forecasts in scaled space, by horizon, over all windows of a data set.

    Args:
        model: the nowcaster.
        dataset: training runs, best those of networks it has not seen.
        horizons: from 1 to so many states ahead.
        stride: take every so-manyth window.

    Raises:
        ValueError: if the model does not reach so far, or no trajectory is long enough.
    """
    if model.horizons is not None and model.horizons < horizons:
        raise ValueError(f"{type(model).__name__} reaches {model.horizons} states ahead, {horizons} were wanted.")
    errors = []
    for one in _long_enough(dataset, model.context, horizons):
        starts = torch.arange(0, len(one.states) - model.context - horizons + 1, stride)
        scaled, future = _windows(one, starts, None, model.context, horizons)
        if model.horizons is None:
            each = [model.displacements(scaled, one.graph, k) for k in range(1, horizons + 1)]
            forecast = torch.cat(each, dim=-1)
        else:
            forecast = model.displacements(scaled, one.graph)[..., :horizons]
        errors.append((forecast - future).abs().mean(dim=1))
    return torch.cat(errors).mean(dim=0)


def _long_enough(dataset: TrajectoryDataset, context: int, horizons: int) -> list[Trajectory]:
    usable = [one for one in dataset.trajectories if len(one.states) >= context + horizons]
    if not usable:
        longest = max(len(one.states) for one in dataset.trajectories)
        raise ValueError(
            f"No trajectory has {context} past and {horizons} future states: the longest has {longest} states."
        )
    return usable


def _windows(
    one: Trajectory, starts: Int64[Tensor, " slices"], chosen: Tensor | None, context: int, horizons: int
) -> tuple[Float[Tensor, "slices weights context"], Float[Tensor, "slices weights horizons"]]:
    """Scaled pasts, and the displacements of their futures in the same scale."""
    places = starts.to(one.states.device)[:, None] + torch.arange(context + horizons, device=one.states.device)
    every = one.states[places].transpose(1, 2)
    history, future = every[..., :context], every[..., context:]
    scaled, spread = scale_history(history, one.graph)
    ahead = (future - history[..., -1:]) / spread[..., None]
    return (scaled, ahead) if chosen is None else (scaled[:, chosen], ahead[:, chosen])


def _slice_loss(
    model: Nowcaster, one: Trajectory, slices: int, weights: int | None, generator: torch.Generator | None
) -> Tensor:
    horizons = model.horizons
    assert horizons is not None
    starts = torch.randint(len(one.states) - model.context - horizons + 1, (slices,), generator=generator)
    graph, chosen = one.graph, None
    if weights is not None and weights < graph.weights:
        chosen = torch.randperm(graph.weights, generator=generator)[:weights].to(one.states.device)
    scaled, ahead = _windows(one, starts, chosen, model.context, horizons)
    if chosen is not None:
        graph = graph.only(chosen)
    elif isinstance(model, GraphNowcaster) and model.eigenvectors:
        graph = _flipped(graph, generator)
    return (model.displacements(scaled, graph) - ahead).abs().mean()


def _flipped(graph: NeuralGraph, generator: torch.Generator | None) -> NeuralGraph:
    signs = 2.0 * torch.randint(2, (graph.node_pos.shape[1],), generator=generator) - 1
    return graph.at(graph.node_pos * signs.to(graph.node_pos))
