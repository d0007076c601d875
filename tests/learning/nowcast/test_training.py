"""Trajectories and what is learned from them."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from neuropil.data import Dataset
from neuropil.learning import Backpropagation
from neuropil.learning.networks import mlp
from neuropil.learning.nowcast import (
    GraphNowcaster,
    LinearNowcaster,
    MLPNowcaster,
    Nowcasting,
    Trajectory,
    TrajectoryDataset,
    collect_trajectories,
    forecast_error,
    neural_graph,
    train_curve,
    train_nowcaster,
    weight_table,
    weight_vector,
)
from neuropil.learning.training import adam


def blobs(seed: int = 0) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(90) % 3
    x = torch.randn(90, 4, generator=generator) + 2 * torch.nn.functional.one_hot(y, 4)
    return Dataset("blobs", x[:60], y[:60], x[60:], y[60:], ("a", "b", "c"))


def make(generator):
    return mlp(4, 5, 3, generator=generator)


def parabolas(count: int, seed: int, length: int = 14) -> TrajectoryDataset:
    """Weights that slow down alike, which a line cannot know."""
    net = mlp(3, 4, 2)
    graph, generator = neural_graph(net), torch.Generator().manual_seed(seed)
    times = torch.linspace(0, 1, length)
    return TrajectoryDataset(
        [
            Trajectory(torch.randn(graph.weights, 1, generator=generator) * (2 * times - times**2), graph)
            for _ in range(count)
        ]
    )


def test_a_trajectory_has_the_weights_of_the_training():
    data = blobs()
    dataset = collect_trajectories([make], data, count=2, steps=30, every=10, rate=0.01, batch_size=20, seed=7)
    assert len(dataset) == 2
    net = make(torch.Generator().manual_seed(7))
    train_curve(
        Backpropagation(net, cross_entropy), data, adam(net.parameters(), lr=0.01), steps=20, batch_size=20, seed=7
    )
    states = dataset.trajectories[0].states
    assert states.shape == (weight_table(net).weights, 3)
    assert torch.equal(states[:, 1], weight_vector(net))
    assert not torch.equal(states, dataset.trajectories[1].states)


def test_nets_are_taken_in_turn_and_need_no_tracing_without_connections():
    nets = [make, lambda generator: mlp(4, 6, 3, generator=generator)]
    dataset = collect_trajectories(nets, blobs(), count=3, steps=2, every=1, connect=False)
    assert [each.graph.weights for each in dataset.trajectories] == [43, 51, 43]
    assert all(each.graph.nodes == 0 for each in dataset.trajectories)


def test_a_curve_is_the_loss_on_the_whole_set():
    data, net = blobs(), make(torch.Generator().manual_seed(0))
    curve = train_curve(
        Backpropagation(net, cross_entropy), data, adam(net.parameters(), lr=0.01), steps=25, every=10, batch_size=1000
    )
    assert list(curve["step"]) == [10, 20]
    assert curve["loss"].is_monotonic_decreasing
    again = make(torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(again.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        cross_entropy(again(data.x_train), data.y_train).backward()
        optimizer.step()
    last = float(cross_entropy(again(data.x_train), data.y_train).detach())
    assert curve["loss"].iloc[-1] == pytest.approx(last, rel=1e-4)


def test_a_diverged_loss_is_infinite_in_the_curve():
    net = make(torch.Generator().manual_seed(0))
    with torch.no_grad():
        net[0].weight.fill_(float("nan"))
    rule = Backpropagation(net, cross_entropy)
    curve = train_curve(rule, blobs(), adam(net.parameters(), lr=0.01), steps=2, every=1)
    assert list(curve["loss"]) == [float("inf")] * 2


def test_the_error_of_a_line_is_what_its_definition_says():
    dataset = parabolas(1, 0, length=45)
    for nowcaster, exact in ((LinearNowcaster(0), False), (LinearNowcaster(2), True)):
        error = forecast_error(nowcaster, dataset, slices=1, generator=torch.Generator())
        if exact:
            assert error < 1e-3
        else:
            states, graph = dataset.trajectories[0].states, dataset.trajectories[0].graph
            expected = 0.0
            for span in graph.param_slices.values():
                seen = states[span, :5]
                expected += ((states[span, 5:] - seen[:, -1:]) / (seen.std() + 1e-6)).abs().mean() * len(seen)
            assert error == pytest.approx(float(expected / len(states)), rel=1e-4)


@pytest.mark.parametrize("kind", ["mlp", "graph"])
def test_a_taught_nowcaster_beats_line_and_standstill_on_new_trajectories(kind):
    generator = torch.Generator().manual_seed(0)
    learner = {
        "mlp": lambda: MLPNowcaster(16, 9, generator=generator),
        "graph": lambda: GraphNowcaster(8, 1, 9, features=1, generator=generator),
    }[kind]()
    losses = train_nowcaster(learner, parabolas(3, 0), steps=120, slices=4, weights=16, rate=1e-2, generator=generator)
    assert len(losses) == 120
    fresh = parabolas(3, 1)
    errors = [
        forecast_error(each, fresh, slices=8, generator=torch.Generator().manual_seed(0))
        for each in (learner, LinearNowcaster(horizons=9), LinearNowcaster(0, horizons=9))
    ]
    assert errors[0] < 0.7 * min(errors[1:])


def test_teaching_repeats_with_its_generator():
    ends = []
    for seed in (0, 0, 1):
        learner = MLPNowcaster(4, 9, generator=torch.Generator().manual_seed(0))
        train_nowcaster(
            learner, parabolas(2, 0), steps=3, slices=2, generator=torch.Generator().manual_seed(seed), weights=5
        )
        ends.append(weight_vector(learner))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_nowcasting_is_stepped_within_a_curve():
    data, net = blobs(), make(torch.Generator().manual_seed(0))
    optimizer = adam(net.parameters(), lr=0.01)
    nowcasting = Nowcasting(net, optimizer, LinearNowcaster(), period=5, max_steps=20, horizons=2)
    train_curve(Backpropagation(net, cross_entropy), data, optimizer, steps=20, every=5, nowcasting=nowcasting)
    assert [jump.step for jump in nowcasting.jumps] == [5, 10, 15, 20]


def test_bad_arguments_are_named():
    data, generator = blobs(), torch.Generator()
    with pytest.raises(ValueError, match="nothing to learn"):
        train_nowcaster(LinearNowcaster(), parabolas(1, 0))
    with pytest.raises(ValueError, match="14 states, a slice wants 45"):
        train_nowcaster(MLPNowcaster(4), parabolas(1, 0), steps=1)
    with pytest.raises(ValueError, match="slices"):
        train_nowcaster(MLPNowcaster(4), parabolas(1, 0), slices=0)
    with pytest.raises(ValueError, match="no trajectories"):
        TrajectoryDataset([]).draw(3, generator)
    with pytest.raises(ValueError, match="at least one net"):
        collect_trajectories([], data, count=1, steps=1, every=1)
    with pytest.raises(ValueError, match="kept no state"):
        collect_trajectories([make], data, count=1, steps=2, every=3)
    broken = TrajectoryDataset([Trajectory(torch.full((26, 14), float("nan")), weight_table(mlp(3, 4, 2)))])
    with pytest.raises(FloatingPointError, match="MLPNowcaster is nan at meta-step 0"):
        train_nowcaster(MLPNowcaster(4, 9), broken, steps=1)
