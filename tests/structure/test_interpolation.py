"""The line between two nets: its ends, closed forms of the barrier, and statistics of batch norm along it."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning.networks import mlp, small_conv
from neuropil.structure.weightspace.interpolation import Barrier, interpolate, loss_barrier, on_the_line, reset_norm_


def draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def nets(make, *sizes):
    return tuple(make(*sizes, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))


def scalar(value, dtype=torch.float64):
    return {"w": torch.tensor([value], dtype=dtype)}


@pytest.fixture
def pair():
    a, b = nets(small_conv, (1, 6, 6), 4)
    for seed, net in enumerate((a, b)):
        net.train()
        net(draw(seed, 32, 1, 6, 6) + seed)
        net[1].num_batches_tracked += seed
        net.eval()
    return a, b


def test_the_ends_of_the_line_are_the_two_nets_to_the_bit(pair):
    a, b = pair
    for lam, end in ((0.0, a), (1.0, b)):
        point = interpolate(a, b, lam)
        assert all(torch.equal(value, end.state_dict()[name]) for name, value in point.state_dict().items())


def test_the_middle_is_the_mean_of_weights_and_statistics_and_nothing_is_shared(pair):
    a, b = pair
    before = {name: value.clone() for name, value in a.state_dict().items()}
    a[0].weight.grad = torch.ones_like(a[0].weight)
    point = interpolate(a, b, 0.5)
    assert_close(point[0].weight.data, (a[0].weight.data + b[0].weight.data) / 2)
    assert_close(point[1].running_var, (a[1].running_var + b[1].running_var) / 2)
    assert point[0].weight.grad is None
    with torch.no_grad():
        point[0].weight.zero_()
    assert all(torch.equal(value, before[name]) for name, value in a.state_dict().items())


def test_whole_numbers_come_from_the_nearer_end(pair):
    a, b = pair
    counts = [int(interpolate(a, b, lam)[1].num_batches_tracked) for lam in (0.0, 0.49, 0.5, 1.0)]
    assert counts == [1, 1, 2, 2]


def test_a_net_and_its_state_dict_are_the_same_weights(pair):
    a, b = pair
    from_nets = interpolate(a, b, 0.3).state_dict()
    for other in (b, b.state_dict()):
        point = interpolate(a.state_dict(), other, 0.3)
        assert isinstance(point, dict)
        assert all(torch.equal(value, from_nets[name]) for name, value in point.items())
    assert torch.equal(interpolate(a, b.state_dict(), 0.3)[0].weight, from_nets["0.weight"])


def test_every_module_keeps_its_mode():
    a, b = nets(mlp, 3, 4, 2)
    a.train()
    a[0].eval()
    point = interpolate(a, b, 0.5)
    assert [module.training for module in point.modules()] == [module.training for module in a.modules()]


def test_dtype_follows_the_first_and_halves_are_averaged_in_float32():
    # 2048 + 1 needs 12 bits and has 11 in float16: each half product would be rounded on its own.
    a, b = {"w": torch.tensor([2047.0], dtype=torch.float16)}, {"w": torch.tensor([2049.0], dtype=torch.float32)}
    point = interpolate(a, b, 0.5)
    assert point["w"].dtype == torch.float16
    assert float(point["w"]) == 2048.0
    assert interpolate(scalar(1.0), scalar(2.0), 0.25)["w"].dtype == torch.float64


def test_tied_weights_stay_tied():
    def tied(seed):
        net = mlp(4, 4, 4, generator=torch.Generator().manual_seed(seed))
        net[2].weight = net[0].weight
        return net

    a, b = tied(0), tied(1)
    point = interpolate(a, b, 0.5)
    assert point[2].weight is point[0].weight
    assert_close(point[0].weight.data, (a[0].weight.data + b[0].weight.data) / 2)


def test_non_contiguous_weights_are_interpolated():
    a, b = {"w": draw(0, 3, 4).T}, {"w": draw(1, 3, 4).T}
    assert_close(interpolate(a, b, 0.5)["w"], (a["w"] + b["w"]) / 2)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ({"w": torch.ones(2)}, {"w": torch.ones(2), "v": torch.ones(1)}, "1 entries are in b only: v"),
        ({"w": torch.ones(2), "v": torch.ones(1)}, {"w": torch.ones(2)}, "in a only: v"),
        ({"w": torch.ones(2)}, {"w": torch.ones(3)}, r"w \(2,\) and \(3,\)"),
        ({"w": torch.ones(2)}, {"w": torch.ones(2).long()}, "floating-point at: w"),
        ({"w": torch.tensor([1.0, math.nan])}, {"w": torch.ones(2)}, "a is not finite at 1 entries: w"),
        ({"w": torch.ones(2)}, {"w": torch.tensor([1.0, math.inf])}, "b is not finite"),
    ],
)
def test_weights_that_are_no_pair_are_refused_by_name(a, b, message):
    with pytest.raises(ValueError, match=message):
        interpolate(a, b, 0.5)
    with pytest.raises(ValueError, match=message):
        loss_barrier(a, b, lambda state: 0.0)


@pytest.mark.parametrize("lam", [-0.1, 1.1, math.nan])
def test_places_off_the_line_are_refused(lam):
    with pytest.raises(ValueError, match="lam must be"):
        interpolate(scalar(0.0), scalar(1.0), lam)


def test_the_barrier_of_a_double_well_is_the_hill_between_its_minima():
    # L(w) = (w^2 - 1)^2 from -1 to 1: a hill of height 1 in the middle.
    hill = loss_barrier(scalar(-1.0), scalar(1.0), lambda state: float((state["w"].square() - 1).square()), points=25)
    assert len(hill.lams) == 25
    assert (hill.lams[0], hill.lams[-1], hill.at) == (0.0, 1.0, 0.5)
    assert hill.barrier == pytest.approx(1.0)
    assert replace(hill, kind="linear").barrier == pytest.approx(1.0)


def test_the_two_definitions_differ_where_the_ends_do():
    # A straight slope from 0 to 1 has no barrier above itself, and half its height above the mean of its ends.
    slope = loss_barrier(scalar(0.0), scalar(1.0), lambda state: float(state["w"]), points=11, kind="linear")
    assert slope.barrier == pytest.approx(0.0, abs=1e-12)
    assert replace(slope, kind="ends").barrier == pytest.approx(0.5)
    assert slope.losses == pytest.approx(slope.lams)


def test_no_barrier_is_negative():
    valley = loss_barrier(scalar(-1.0), scalar(1.0), lambda state: float(state["w"].square()), points=11)
    assert valley.barrier == 0.0
    assert valley.at == 0.0
    assert valley.excess.min() == pytest.approx(-1.0)


def test_a_convex_loss_has_no_barrier_and_a_net_none_to_itself(pair):
    a, _ = pair
    x, y = draw(3, 16, 1, 6, 6), torch.arange(16) % 4
    flat = loss_barrier(a, a, lambda net: float(cross_entropy(net(x), y)), points=5)
    assert flat.barrier == pytest.approx(0.0, abs=1e-6)
    linear = nets(mlp, 36, 4)
    convex = loss_barrier(*linear, lambda net: float(cross_entropy(net(x.flatten(1)), y)), points=11, kind="linear")
    assert convex.barrier == pytest.approx(0.0, abs=1e-6)
    assert min(convex.excess) < -1e-3


def test_permuted_units_are_the_same_function_across_a_barrier():
    a, _ = nets(mlp, 5, 16, 3)
    b = mlp(5, 16, 3, generator=torch.Generator().manual_seed(0))
    order = torch.arange(16).roll(5)
    with torch.no_grad():
        b[0].weight.copy_(a[0].weight[order])
        b[2].weight.copy_(a[2].weight[:, order])
    x = draw(4, 64, 5)
    with torch.no_grad():
        target = a(x)
    assert_close(b(x), target)
    hill = loss_barrier(a, b, lambda net: float((net(x) - target).square().mean()), points=5)
    assert hill.losses[0] == pytest.approx(0.0, abs=1e-10)
    assert hill.losses[-1] == pytest.approx(0.0, abs=1e-10)
    assert hill.barrier > 0.01


def test_nets_are_measured_in_evaluation_mode_and_left_as_they_were():
    a, b = nets(mlp, 3, 4, 2)
    a.train()
    seen = []
    loss_barrier(a, b, lambda net: seen.append(net.training) or 0.0, points=3)
    assert seen == [False] * 3
    assert a.training


def test_bad_arguments_of_a_barrier_are_named():
    a, b = scalar(0.0), scalar(1.0)
    with pytest.raises(ValueError, match="points must be at least 2"):
        loss_barrier(a, b, lambda state: 0.0, points=1)
    with pytest.raises(TypeError, match="reset_norm needs a net"):
        loss_barrier(a, b, lambda state: 0.0, reset_norm=[torch.ones(2)])
    net = mlp(2, 2)
    with pytest.raises(TypeError, match="reset_norm is gone through at every point"):
        loss_barrier(net, net, lambda net: 0.0, reset_norm=iter([torch.ones(2)]))
    with pytest.raises(FloatingPointError, match=r"nan at 0\.5"):
        loss_barrier(a, b, lambda state: math.nan if 0 < float(state["w"]) < 1 else 0.0, points=3)
    with pytest.raises(ValueError, match="lam must be"):
        list(on_the_line(a, b, [0.0, 2.0]))


def test_an_unknown_definition_is_refused():
    with pytest.raises((ValueError, TypeError), match="kind"):
        loss_barrier(scalar(0.0), scalar(1.0), lambda state: 0.0, kind="mean")


# Running statistics.


def test_one_batch_gives_the_statistics_of_that_batch(pair):
    net, _ = pair
    x = draw(5, 20, 1, 6, 6) * 3 + 1
    reset_norm_(net, [x])
    h = net[0](x)
    assert_close(net[1].running_mean, h.mean((0, 2, 3)))
    assert_close(net[1].running_var, h.var((0, 2, 3)))
    assert not any(module.training for module in net.modules())
    assert net[1].momentum == 0.1


def test_uneven_batches_count_by_their_samples():
    net = nn.Sequential(nn.BatchNorm1d(3))
    x = draw(6, 30, 3)
    reset_norm_(net, [(x[:20], None), (x[20:], None)])
    assert_close(net[0].running_mean, x.mean(0))
    assert int(net[0].num_batches_tracked) == 2


def test_old_statistics_are_gone_even_if_they_were_not_numbers():
    net = nn.Sequential(nn.BatchNorm1d(2))
    net[0].running_mean.fill_(math.nan)
    x = draw(7, 10, 2)
    reset_norm_(net, [x])
    assert_close(net[0].running_mean, x.mean(0))


def test_a_norm_at_two_places_counts_both_and_one_out_of_reach_keeps_its_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x):
            return self.norm(x + self.norm(x))

    net = Net()
    net.unused.running_mean.fill_(7.0)
    x = draw(8, 12, 2)
    reset_norm_(net, [x])
    once = nn.BatchNorm1d(2).train()(x)
    assert_close(net.norm.running_mean, (x.mean(0) + (x + once.detach()).mean(0)) / 2)
    assert net.unused.running_mean.tolist() == [7.0, 7.0]


def test_dropout_neither_draws_nor_disturbs():
    net = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(3)).train()
    before = torch.random.get_rng_state()
    x = draw(9, 50, 3)
    reset_norm_(net, [x])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_close(net[1].running_mean, x.mean(0))
    assert net[0].training
    assert net[1].training


def test_modes_and_momenta_come_back_after_an_error(pair):
    net, _ = pair
    with pytest.raises(RuntimeError):
        reset_norm_(net, [torch.ones(2, 5, 6, 6)])
    assert not any(module.training for module in net.modules())
    assert net[1].momentum == 0.1
    assert not net[1]._forward_pre_hooks


def test_bad_batches_are_named(pair):
    net, _ = pair
    with pytest.raises(ValueError, match="batches is empty"):
        reset_norm_(net, [])
    with pytest.raises(ValueError, match="must have samples"):
        reset_norm_(net, [torch.ones(0, 1, 6, 6)])
    with pytest.raises(TypeError, match="got dict"):
        reset_norm_(net, [{"x": torch.ones(1)}])
    with pytest.raises(FloatingPointError, match="statistics of 1 are not finite"):
        reset_norm_(net, [torch.full((4, 1, 6, 6), math.inf)])


def test_a_net_without_norms_needs_no_data():
    net = mlp(2, 3, 2)
    assert reset_norm_(net, []) is net


def test_fresh_statistics_bring_back_a_midpoint_whose_variance_collapsed():
    """Two nets whose units are permuted: at the middle the sums lose variance, and fresh statistics give it back."""
    x, y = draw(10, 256, 8), torch.arange(256) % 2
    x[:, 0] += 2.0 * (2 * y - 1)

    def trained(seed):
        net = mlp(8, 64, 2, generator=torch.Generator().manual_seed(seed))
        net.insert(1, nn.BatchNorm1d(64))
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(30):
            optimizer.zero_grad()
            cross_entropy(net(x), y).backward()
            optimizer.step()
        return net

    a, b = trained(0), trained(1)
    kept, fresh = (
        loss_barrier(a, b, lambda net: float(cross_entropy(net(x), y)), points=3, reset_norm=batches)
        for batches in (None, [x])
    )
    stale = interpolate(a, b, 0.5).eval()
    recomputed = reset_norm_(interpolate(a, b, 0.5), [x]).eval()
    with torch.no_grad():
        wanted = stale[1].weight.square()  # the variance of units that batch norm has scaled
        assert (stale[1](stale[0](x)).var(0) / wanted).mean() < 0.8
        assert_close(recomputed[1](recomputed[0](x)).var(0), wanted, rtol=0.01, atol=0.0)
        assert fresh.losses[1] == pytest.approx(float(cross_entropy(recomputed(x), y)))
    assert fresh.losses[1] < kept.losses[1]


def test_a_barrier_reports_the_first_of_several_peaks():
    assert Barrier((0.0, 0.25, 0.5, 0.75, 1.0), (0.0, 1.0, 0.0, 1.0, 0.0)).at == 0.25
