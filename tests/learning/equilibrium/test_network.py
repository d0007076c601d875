import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import NotSettledError
from neuropil.learning.equilibrium import FixedPointNetwork, recurrent_matrix
from tests.learning.equilibrium.nets import dense, flat, maps


def unrolled(net, x, steps=400):
    """Logits by plain steps of the field, with the graph of every one."""
    u = {group: x.new_zeros(len(x), *net.shapes[group]) for group in net.groups}
    for _ in range(steps):
        u = {group: u[group] + 0.5 * velocity for group, velocity in net.field(u, x).items()}
    return net.logits(net.activities(u))


@pytest.mark.parametrize("make", [dense, maps])
def test_at_rest_nothing_moves(make):
    net, x, _ = make()
    rest = net.settle(x, steps=500, tol=1e-12)
    assert rest.settled.all()
    assert float(rest.residual.max()) < 1e-12
    assert tuple(rest.potentials) == tuple(rest.activity) == net.groups
    for velocity in net.field(rest.potentials, x).values():
        assert bool((velocity.abs() < 1e-11).all())
    for group, rho in rest.activity.items():
        assert_close(rho, net.activation(rest.potentials[group]))
        assert rho.shape == (len(x), *net.shapes[group])


@pytest.mark.parametrize("make", [dense, maps])
def test_forward_is_the_unrolled_net_and_its_gradient_is_implicit(make):
    net, x, y = make(batch=3)
    x = x.requires_grad_()
    exact = {"steps": 500, "tol": 1e-13}
    assert_close(net(x, **exact), unrolled(net, x))
    wanted = torch.autograd.grad(cross_entropy(unrolled(net, x, 120), y), [x, *net.parameters()])
    ours = torch.autograd.grad(cross_entropy(net(x, **exact), y), [x, *net.parameters()])
    for mine, theirs in zip(ours, wanted, strict=True):
        assert_close(mine, theirs, rtol=1e-6, atol=1e-9)
    with torch.no_grad():
        assert_close(net(x, **exact), unrolled(net, x))


def test_feedback_kernels_start_at_their_angle():
    for angle in (0.0, 30.0, 90.0, 180.0):
        net, independent = dense(angle=angle).net, dense(angle=90.0).net
        for pre, post in (("l2", "l1"), ("out", "l2")):
            forward = net.connection(post, pre).weight
            drawn = independent.connection(pre, post).weight
            mixed = math.cos(math.radians(angle)) * forward.T + math.sin(math.radians(angle)) * drawn
            assert_close(net.connection(pre, post).weight, mixed, rtol=1e-6, atol=1e-7)
    matrix = recurrent_matrix(dense(angle=0.0).net)
    assert_close(matrix, matrix.T)
    kernels = maps(angle=0.0).net
    assert_close(kernels.connection("out", "l1").weight, kernels.connection("l1", "out").weight)


def test_scale_acts_on_kernels_between_groups_alone():
    whole, half = dense(scale=1.0).net, dense(scale=0.5).net
    for pre, post in whole.wiring:
        factor = 1.0 if pre == "in" else 0.5
        assert_close(half.connection(pre, post).weight, factor * whole.connection(pre, post).weight)


def test_wirings():
    assert dense().net.wiring == [("in", "l1"), ("l1", "l2"), ("l2", "out"), ("l2", "l1"), ("out", "l2")]
    loop = dense(connections="loop").net
    assert loop.wiring == [("in", "l1"), ("l1", "l2"), ("l2", "out"), ("out", "l1")]
    assert loop.connection("out", "l1").bias is None
    assert loop.connection("l2", "out").bias is not None
    given = dense(connections={"out": ["l2", "in"], "l1": ["l1", "in"], "l2": ["l1", "out"]}).net
    assert set(given.wiring) == {
        ("in", "l1"), ("in", "out"), ("l1", "l2"), ("l2", "out"), ("l1", "l1"), ("out", "l2"),
    }  # fmt: skip
    w = recurrent_matrix(given)
    assert_close(w[:8, :8], given.connection("l1", "l1").weight)
    assert_close(w[14:, 8:14], given.connection("l2", "out").weight)
    assert not w[14:, :8].any()
    for case in (
        dense(connections="loop"),
        dense(5, 4),
        dense(connections={"l1": ["in"], "l2": ["l1"], "out": ["l2"]}),
    ):
        assert case.net(case.x).shape == (7, 4)


def test_a_net_without_feedback_is_a_feed_forward_net():
    net, x, _ = dense(connections={"l1": ["in"], "l2": ["l1"], "out": ["l2"]})
    rho = x
    for pre, post in net.wiring:
        rho = net.activation(net.connection(pre, post)(rho))
    assert_close(net(x, steps=500, tol=1e-13), net.readout(rho))


def test_a_nudge_pushes_the_output_up_the_loss():
    net, x, y = dense()
    rest = net.settle(x, steps=500, tol=1e-12)
    velocity = net.field(rest.potentials, x, y, beta=1e-3)["out"]
    loss = lambda rho: cross_entropy(net.readout(rho), y, reduction="sum")  # noqa: E731
    rho = rest.activity["out"].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(rho), rho)
    assert_close(velocity, 1e-3 * gradient, rtol=1e-6, atol=1e-11)
    assert bool(loss(rest.activity["out"] + velocity) > loss(rest.activity["out"]))
    complex_u = {group: u.to(torch.complex128) for group, u in rest.potentials.items()}
    turned = net.field(complex_u, x, y, beta=1e-3j)["out"]
    assert_close(turned, 1e-3j * gradient.to(torch.complex128), rtol=1e-6, atol=1e-11)


def test_samples_never_meet():
    net, x, _ = dense(dtype=torch.float32)
    alone = torch.cat([net(x[i : i + 1]) for i in range(len(x))])
    assert_close(net(x), alone, rtol=1e-4, atol=1e-5)
    assert_close(net(x.T.contiguous().T), net(x))  # not contiguous


def test_zeros_and_huge_inputs_come_to_rest():
    net, x, y = dense(dtype=torch.float32)
    for value in (0.0, 1e6, -1e6):
        logits = net(torch.full_like(x, value))
        assert torch.isfinite(logits).all()
        cross_entropy(logits, y).backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters())


def test_nets_that_cannot_come_to_rest_say_so():
    net, x, _ = dense(angle=180.0, scale=40.0)  # strong and antisymmetric: it goes round
    with pytest.raises(NotSettledError, match=r"of 7 samples have not come to rest after 30 steps.*smaller step"):
        net.settle(x, steps=30, step=1.0)
    with pytest.raises(NotSettledError):
        net(x, steps=30, step=1.0)


def test_generators_make_networks_without_the_global_state():
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one, two, other = dense(seed=1).net, dense(seed=1).net, dense(seed=2).net
    pictures = maps(seed=1).net, maps(seed=1).net
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_close(one.state_dict(), two.state_dict())
    assert_close(pictures[0].state_dict(), pictures[1].state_dict())
    assert not torch.equal(one.readout.weight, other.readout.weight)


def test_potentials_and_readout_have_sizes_of_their_own():
    net, x, _ = dense(5, 6, 3, classes=9)
    assert net(x).shape == (7, 9)
    assert flat(net.settle(x).potentials).shape == (7, net.units)
    paper = FixedPointNetwork.convolutional((3, 32, 32), (8, 4, 4, 6), 10)
    assert list(paper.shapes.values()) == [(3, 32, 32), (8, 16, 16), (4, 8, 8), (4, 4, 4), (6, 1, 1)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: FixedPointNetwork((5,)), "one group at least"),
        (lambda: FixedPointNetwork((5, 0)), "all positive"),
        (lambda: FixedPointNetwork((5, 4, 3), angle=-1), "angle must lie between 0 and 180"),
        (lambda: FixedPointNetwork((5, 4, 3), scale=0.0), "scale must be positive"),
        (lambda: FixedPointNetwork((5, 4, 3), "ring"), '"chain", "loop" or a dict by group, got \'ring\''),
        (lambda: FixedPointNetwork((5, 4), "loop"), "nothing to close"),
        (lambda: FixedPointNetwork((5, 4, 3), {"l1": ["in"], "l9": ["l1"]}), "names the group 'l9'"),
        (lambda: FixedPointNetwork((5, 4, 3), {"l1": ["in"], "out": ["l9"]}), "names 'l9'"),
        (lambda: FixedPointNetwork((5, 4, 3), {"l1": ["in"], "out": "l1"}), "must be a list of groups"),
        (lambda: FixedPointNetwork((5, 4, 3), {"l1": ["in", "in"], "out": ["l1"]}), "twice"),
        (lambda: FixedPointNetwork((5, 4, 3), {"l1": ["out"], "out": ["l1"]}), "No path leads .* to 'l1', 'out'"),
        (lambda: FixedPointNetwork.convolutional((3, 32), (4,), 10), "channels, height and width"),
        (lambda: FixedPointNetwork.convolutional((3, 32, 32), (), 10), "positive number for each group"),
        (lambda: FixedPointNetwork.convolutional((1, 14, 14), (4, 4, 4), 10), "Group 'l2' would pool a map of 7 x 7"),
        (lambda: FixedPointNetwork.convolutional((1, 4, 4), (4, 4), 10), "Group 'out' would pool a map of 0 x 0"),
        (lambda: dense().net(torch.zeros(2, 6)), r"x must be \(batch, 5\), got \(2, 6\)"),
        (lambda: maps().net(torch.zeros(2, 2, 12, 10)), r"x must be \(batch, 2, 12, 12\)"),
        (lambda: dense().net.field({}, torch.zeros(2, 5, dtype=torch.float64)), "l1"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises((ValueError, KeyError), match=words):
        call()


def test_a_nudge_needs_targets():
    net, x, _ = dense()
    with pytest.raises(ValueError, match="pass y"):
        net.field(net.settle(x).potentials, x, beta=0.1)
