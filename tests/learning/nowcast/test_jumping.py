"""Jumps in training: their schedule, what they change and what they leave alone."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neuropil.learning import Backpropagation, DirectFeedbackAlignment
from neuropil.learning.networks import mlp, small_conv
from neuropil.learning.nowcast import (
    GraphNowcaster,
    Jump,
    LinearNowcaster,
    Nowcasting,
    jump_schedule,
    refresh_statistics,
    weight_vector,
)


def net_and_optimizer(rate: float = 0.5):
    net = mlp(4, 5, 3, generator=torch.Generator().manual_seed(0))
    return net, torch.optim.SGD(net.parameters(), lr=rate)


def move(net: nn.Module, optimizer: torch.optim.Optimizer, slope: float = 1.0) -> None:
    """One step of a straight trajectory."""
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, -slope)
    optimizer.step()


def test_the_schedule_of_the_paper():
    assert jump_schedule(40, 10) == [40, 33, 26, 21, 16, 11, 8, 5, 3, 1]


@pytest.mark.parametrize("horizons", [1, 7, 40])
@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_schedules_fall_from_all_horizons_to_one(horizons, power):
    for calls in (1, 2, 13):
        schedule = jump_schedule(horizons, calls, power)
        assert len(schedule) == calls
        assert schedule[0] == horizons
        assert calls == 1 or schedule[-1] == 1
        assert schedule == sorted(schedule, reverse=True)
    assert jump_schedule(9, 9, 1.0) == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def test_a_straight_trajectory_is_jumped_along_exactly():
    net, optimizer = net_and_optimizer(0.01)
    start = weight_vector(net)
    nowcasting = Nowcasting(net, optimizer, LinearNowcaster(), period=10, max_steps=20)
    jumped = []
    for _ in range(30):
        move(net, optimizer)
        jumped.append(nowcasting.step())
    assert [step + 1 for step, jump in enumerate(jumped) if jump] == [10, 20, 30]
    assert nowcasting.jumps == [Jump(10, 40), Jump(20, 1), Jump(30, 1)]  # past the schedule: one state ahead
    gained = 2 * (40 + 1 + 1)  # states are 2 steps apart
    torch.testing.assert_close(weight_vector(net), start + 0.01 * (30 + gained), rtol=1e-4, atol=1e-4)


def test_forecasting_that_nothing_moves_changes_nothing():
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    ends = []
    for nowcaster in (None, LinearNowcaster(0), GraphNowcaster(8)):
        net, _ = net_and_optimizer()
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        rule = Backpropagation(net, cross_entropy)
        nowcasting = Nowcasting(net, optimizer, nowcaster, period=5, max_steps=20) if nowcaster else None
        for _ in range(20):
            rule.learn(x, y, optimizer)
            if nowcasting:
                nowcasting.step()
        ends.append(weight_vector(net))
        assert nowcasting is None or len(nowcasting.jumps) == 4
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_any_rule_can_be_nowcast():
    net, optimizer = net_and_optimizer(0.1)
    rule = DirectFeedbackAlignment(net, cross_entropy, generator=torch.Generator().manual_seed(0))
    nowcasting = Nowcasting(net, optimizer, LinearNowcaster(horizons=3), period=5, max_steps=10)
    x, y = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    losses = []
    for _ in range(10):
        losses.append(float(rule.learn(x, y, optimizer)))
        nowcasting.step()
    assert losses[-1] < losses[0]
    assert [jump.k for jump in nowcasting.jumps] == [3, 1]


def test_the_guard_takes_back_what_raises_the_loss_or_is_no_number():
    for after, kept in ((0.5, True), (1.0, True), (2.0, False), (float("nan"), False)):
        net, optimizer = net_and_optimizer()
        answers = iter([1.0, after])
        nowcasting = Nowcasting(
            net, optimizer, LinearNowcaster(), period=5, max_steps=5, guard=lambda answers=answers: next(answers)
        )
        for _ in range(5):
            move(net, optimizer)
            before = weight_vector(net)
            jumped = nowcasting.step()
        assert jumped == kept
        assert torch.equal(weight_vector(net), before) != kept
        assert nowcasting.jumps[0].kept == kept
        assert nowcasting.jumps[0].before == 1.0


def test_a_forecast_that_is_not_finite_leaves_the_weights():
    class Broken(LinearNowcaster):
        def changes(self, scaled, graph, k=None):
            change = super().changes(scaled, graph, k)
            change[3] = float("inf")
            return change

    net, optimizer = net_and_optimizer()
    nowcasting = Nowcasting(net, optimizer, Broken(), period=5)
    for _ in range(4):
        move(net, optimizer)
        nowcasting.step()
    move(net, optimizer)
    before = weight_vector(net)
    with pytest.raises(FloatingPointError, match=r"Broken forecasts 1 weights .* of step 5"):
        nowcasting.step()
    assert torch.equal(weight_vector(net), before)


def test_frozen_parameters_stay():
    net, optimizer = net_and_optimizer()
    frozen = net[0].weight.requires_grad_(False)
    nowcasting = Nowcasting(net, optimizer, LinearNowcaster(), period=5)
    for _ in range(5):
        with torch.no_grad():
            frozen += 1.0  # moved by something else
        move(net, optimizer)
        held, last = frozen.clone(), net[2].weight.clone()
        nowcasting.step()
    assert torch.equal(frozen, held)
    assert not torch.equal(net[2].weight, last)


@pytest.mark.parametrize("reset", [False, True])
def test_moments_are_kept_or_forgotten_at_a_jump(reset):
    net, _ = net_and_optimizer()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    nowcasting = Nowcasting(net, optimizer, LinearNowcaster(), period=5, reset_moments=reset)
    for _ in range(5):
        move(net, optimizer)
        nowcasting.step()
    assert bool(optimizer.state) != reset
    move(net, optimizer)
    assert float(optimizer.state[net[0].weight]["step"]) == (1 if reset else 6)


def test_a_resumed_training_goes_on_as_if_nothing_had_happened():
    net, optimizer = net_and_optimizer(0.1)
    nowcasting = Nowcasting(net, optimizer, LinearNowcaster(), period=10, max_steps=20)
    for _ in range(17):
        move(net, optimizer)
        nowcasting.step()
    twin = copy.deepcopy(net)
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    resumed = Nowcasting(twin, twin_optimizer, LinearNowcaster(), period=10, max_steps=20)
    resumed.load_state_dict(nowcasting.state_dict())
    for _ in range(3):
        for each, its, jumps in ((net, optimizer, nowcasting), (twin, twin_optimizer, resumed)):
            move(each, its)
            jumps.step()
    assert torch.equal(weight_vector(net), weight_vector(twin))
    assert resumed.jumps == nowcasting.jumps
    assert len(resumed.jumps) == 2


def test_running_statistics_are_those_of_the_batches(generator):
    net = small_conv((1, 4, 4), 3, (2,), generator=generator)
    x = 3 + torch.randn(30, 1, 4, 4, generator=generator)
    norm = net[1]
    for _ in range(3):
        net(x)  # moves them
    net[1].momentum, modes = 0.3, [module.training for module in net.modules()]
    refresh_statistics(net, x.split(10))
    hidden = net[0](x)
    torch.testing.assert_close(norm.running_mean, hidden.mean((0, 2, 3)))
    assert norm.momentum == 0.3
    assert [module.training for module in net.modules()] == modes
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    nowcasting = Nowcasting(net, optimizer, LinearNowcaster(), period=5, batches=[x])
    for _ in range(5):
        move(net, optimizer)
        nowcasting.step()
    torch.testing.assert_close(norm.running_mean, net[0](x).mean((0, 2, 3)))


def test_bad_arguments_are_named():
    net, optimizer = net_and_optimizer()
    for period in (3, 12, 0):
        with pytest.raises(ValueError, match=f"multiple of the nowcaster's context of 5 states, got {period}"):
            Nowcasting(net, optimizer, LinearNowcaster(), period=period)
    with pytest.raises(ValueError, match=r"horizons must lie in 1\.\.40, got 41"):
        Nowcasting(net, optimizer, LinearNowcaster(), horizons=41)
    with pytest.raises(ValueError, match="not an iterator"):
        Nowcasting(net, optimizer, LinearNowcaster(), batches=iter([]))
    with pytest.raises(ValueError, match="power"):
        Nowcasting(net, optimizer, LinearNowcaster(), power=0.0)
    with pytest.raises(ValueError, match="calls"):
        jump_schedule(40, 0)
    odd = nn.Sequential(nn.LSTM(3, 3))
    with pytest.raises(TypeError, match="LSTM"):
        Nowcasting(odd, torch.optim.SGD(odd.parameters(), lr=1.0), GraphNowcaster(8))
    Nowcasting(odd, torch.optim.SGD(odd.parameters(), lr=1.0), LinearNowcaster())  # needs no graph
