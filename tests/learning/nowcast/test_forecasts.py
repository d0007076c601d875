"""Nowcasters: exact on polynomials, affine, equivariant to permutations; then bad input."""

import pytest
import torch

from neuropil.learning.networks import mlp, small_conv
from neuropil.learning.nowcast import (
    GraphNowcaster,
    LinearNowcaster,
    MLPNowcaster,
    Nowcaster,
    neural_graph,
    weight_table,
)
from tests.learning.nets import CASES, case


def awake(nowcaster: Nowcaster, seed: int = 0) -> Nowcaster:
    """A nowcaster whose last layer is not zero, as if it had learned."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in nowcaster.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return nowcaster


def history_of(graph, generator, states: int = 5):
    return torch.randn(graph.weights, states, generator=generator)


@pytest.mark.parametrize("order", [0, 1, 2, 4])
@pytest.mark.parametrize("k", [1, 7, 40])
def test_polynomials_are_continued_exactly_through_the_scaling(order, k, generator):
    graph = weight_table(mlp(3, 4, 2))
    coefficients = torch.randn(graph.weights, order + 1, generator=generator, dtype=torch.float64)
    times = torch.arange(5 + 40, dtype=torch.float64) - 4
    path = coefficients @ (times / 10)[None] ** torch.arange(order + 1)[:, None]
    forecast = LinearNowcaster(order)(path[:, :5], graph, k)
    torch.testing.assert_close(forecast, path[:, 4 + k], rtol=1e-9, atol=1e-9)


def test_the_line_is_that_of_least_squares_from_the_last_state(generator):
    graph = weight_table(mlp(2, 3))
    history = history_of(graph, generator).double()
    slope = torch.linalg.lstsq(torch.stack([torch.ones(5), torch.arange(5.0)], 1).double(), history.T).solution[1]
    torch.testing.assert_close(LinearNowcaster()(history, graph, 6), history[:, -1] + 6 * slope)


@pytest.mark.parametrize("make", [LinearNowcaster, lambda: awake(MLPNowcaster(8)), lambda: awake(GraphNowcaster(8))])
def test_forecasts_follow_the_scale_of_every_tensor(make, generator):
    net = mlp(3, 4, 2)
    graph, nowcaster = neural_graph(net), make()
    history = history_of(graph, generator).double()
    factors = torch.ones(graph.weights).double()
    for index, span in enumerate(graph.param_slices.values()):
        factors[span] = 10.0**index
    plain = nowcaster(history, graph, 3)
    assert not torch.allclose(plain, history[:, -1])
    scaled = nowcaster(factors[:, None] * history + factors[:, None], graph, 3)
    torch.testing.assert_close(scaled, factors * plain + factors, rtol=1e-4, atol=1e-4)


def test_every_tensor_is_scaled_by_its_own_mean_and_deviation(generator):
    from neuropil.learning.nowcast.forecasts import standardise

    graph = weight_table(mlp(3, 4, 2))
    scaled, width = standardise(100 * history_of(graph, generator), graph)
    for span in graph.param_slices.values():
        assert scaled[span].mean().abs() < 1e-5
        assert abs(scaled[span].std() - 1) < 1e-4
        assert width[span].unique().numel() == 1


@pytest.mark.parametrize("both_ways", [True, False])
def test_permuting_hidden_neurons_permutes_the_forecast(both_ways, generator):
    net = mlp(5, 6, 4, 3)
    graph = neural_graph(net)
    nowcaster = awake(GraphNowcaster(16, eigenvectors=0, both_ways=both_ways)).double()
    history = history_of(graph, generator).double()
    places = {name: torch.arange(span.start, span.stop) for name, span in graph.param_slices.items()}
    order = torch.randperm(6, generator=generator)
    moved = torch.cat(
        [
            places["0.weight"].view(6, 5)[order].flatten(),
            places["0.bias"][order],
            places["2.weight"].view(4, 6)[:, order].flatten(),
            *[places[name] for name in ("2.bias", "4.weight", "4.bias")],
        ]
    )
    assert not torch.equal(moved, torch.arange(graph.weights))
    forecast = nowcaster(history, graph, 5)
    torch.testing.assert_close(nowcaster(history[moved], graph, 5), forecast[moved], rtol=1e-9, atol=1e-9)
    with_positions = awake(GraphNowcaster(16, both_ways=both_ways)).double()
    moved_forecast = with_positions(history[moved], graph, 5)
    assert not torch.allclose(moved_forecast, with_positions(history, graph, 5)[moved])  # they name the neurons


def test_a_weight_hears_from_weights_around_it_and_only_by_the_graph(generator):
    graph = neural_graph(mlp(3, 4, 2))
    history = history_of(graph, generator)
    other = history.clone()
    last = graph.param_slices["2.weight"]
    other[last] = other[last].flip(1)  # same mean and deviation, so the scaling does not tell
    first = graph.param_slices["0.weight"]
    for nowcaster, hears in (
        (awake(GraphNowcaster(8)), True),
        (awake(GraphNowcaster(8, both_ways=False)), False),  # nothing runs against the edges
        (awake(MLPNowcaster(8)), False),
    ):
        change = (nowcaster(other, graph, 4) - nowcaster(history, graph, 4))[first].abs().max()
        assert (change > 1e-4) == hears


@pytest.mark.parametrize("name", CASES)
def test_one_nowcaster_serves_networks_of_every_kind(name, generator):
    net = case(name)[0]
    for nowcaster in (awake(GraphNowcaster(8, words=6)), awake(MLPNowcaster(8)), LinearNowcaster()):
        graph = neural_graph(net) if nowcaster.connected else weight_table(net)
        history = history_of(graph, generator).double()
        every = nowcaster.double().changes(history, graph)
        assert every.shape == (graph.weights, 40)
        for k in (1, 40):  # one horizon is computed as all are
            one = nowcaster.changes(history, graph, k)[:, 0]
            torch.testing.assert_close(one, every[:, k - 1])


@pytest.mark.parametrize("make", [MLPNowcaster, GraphNowcaster])
def test_an_untaught_nowcaster_forecasts_that_nothing_moves(make, generator):
    graph = neural_graph(small_conv((1, 4, 4), 3, (2,)))
    history = history_of(graph, generator)
    assert torch.equal(make(8, generator=generator)(history, graph, 40), history[:, -1])


@pytest.mark.parametrize("make", [LinearNowcaster, lambda: awake(MLPNowcaster(8)), lambda: awake(GraphNowcaster(8))])
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_still_tiny_and_huge_weights_stay_finite(make, scale, generator):
    graph = neural_graph(mlp(3, 4, 2))
    still = torch.full((graph.weights, 5), scale)
    nowcaster = make()
    assert bool(nowcaster(still, graph, 40).isfinite().all())
    if isinstance(nowcaster, LinearNowcaster):
        assert torch.equal(nowcaster(still, graph, 40), still[:, 0])
    assert bool(nowcaster(scale * history_of(graph, generator), graph, 40).isfinite().all())


def test_double_and_non_contiguous_histories(generator):
    graph = neural_graph(mlp(3, 4, 2, generator=generator))
    nowcaster = awake(GraphNowcaster(8, generator=generator))
    history = history_of(graph, generator)
    forecast = nowcaster(history.double(), graph, 2)
    assert forecast.dtype == torch.float64
    single = nowcaster(history, graph, 2).double()
    assert float((forecast - single).norm() / forecast.norm()) < 100 * torch.finfo(torch.float32).eps
    across = history.T.contiguous().T
    assert not across.is_contiguous()
    torch.testing.assert_close(nowcaster(across, graph, 2), nowcaster(history, graph, 2))


def test_initial_weights_come_from_the_generator():
    before = torch.get_rng_state()
    for make in (MLPNowcaster, GraphNowcaster):
        first, second = (make(8, generator=torch.Generator().manual_seed(seed)).history.weight for seed in (1, 1))
        assert torch.equal(first, second)
        assert not torch.equal(first, make(8, generator=torch.Generator().manual_seed(2)).history.weight)
    LinearNowcaster()
    drawn = torch.Generator().manual_seed(0)
    MLPNowcaster(4, generator=drawn), GraphNowcaster(4, words=3, generator=drawn)
    neural_graph(mlp(3, 4, 2, generator=drawn))
    assert torch.equal(torch.get_rng_state(), before)


def test_bad_arguments_are_named(generator):
    graph = weight_table(mlp(3, 4, 2))
    nowcaster = LinearNowcaster()
    with pytest.raises(ValueError, match="4 states, LinearNowcaster wants 5"):
        nowcaster(history_of(graph, generator, 4), graph, 1)
    for k in (0, 41):
        with pytest.raises(ValueError, match=f"k must lie in 1..40, got {k}"):
            nowcaster(history_of(graph, generator), graph, k)
    with pytest.raises(ValueError, match="7 weights, the graph's parameters 26"):
        nowcaster(torch.zeros(7, 5), graph, 1)
    with pytest.raises(ValueError, match="order"):
        LinearNowcaster(5)
    with pytest.raises(ValueError, match="context"):
        MLPNowcaster(8, context=1)
    with pytest.raises(ValueError, match="layers"):
        GraphNowcaster(8, 0)
    with pytest.raises(ValueError, match="needs connections"):
        GraphNowcaster(8)(history_of(graph, generator), graph, 1)
    wide = neural_graph(small_conv((1, 4, 4), 3, (2,)), eigenvectors=2)
    with pytest.raises(ValueError, match="features=4"):
        GraphNowcaster(8, features=4)(history_of(wide, generator), wide, 1)
    with pytest.raises(ValueError, match="eigenvectors=8"):
        GraphNowcaster(8)(history_of(wide, generator), wide, 1)
