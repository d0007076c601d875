"""The plastic recurrent net: its equation by hand, populations against single nets, and what it refuses."""

import pytest
import torch
from torch.func import functional_call, vmap
from torch.testing import assert_close

from neuropil.learning.evolution import PlasticRNN, PlasticState


@pytest.fixture
def net(generator) -> PlasticRNN:
    return PlasticRNN(3, 4, 2, generator=generator).double()


def draw(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def state(generator, batch=2, neurons=9) -> PlasticState:
    shapes = ((batch, neurons), (batch, neurons), (batch, neurons, neurons))
    return PlasticState(*(draw(generator, *shape) for shape in shapes))


def test_a_step_is_the_equation(net, generator):
    before, given, jolt = state(generator), draw(generator, 1, 2, 3), draw(generator, 1, 2, 9)
    rates, after = net(given, before, jolt, torch.tensor([0.25]).double())
    for b in range(2):
        x = before.x[b].clone()
        for i in range(9):
            drive = sum((net.weight[i, j] + net.alpha[i, j] * before.p[b, i, j]) * before.y[b, j] for j in range(9))
            x[i] += 0.2 * (drive - before.x[b, i]) + jolt[0, b, i]
        expected = torch.cat([given[0, b], x[3:7].tanh(), 0.25 * x[7:].sigmoid()])
        assert_close(after.x[b], x.detach(), check_dtype=False)
        assert_close(rates[0, b].detach(), expected.detach())
    assert torch.equal(after.y, rates[-1])
    assert torch.equal(after.p, before.p)


def test_stretches_of_time_add_up(net, generator):
    given, jolt = draw(generator, 7, 2, 3), draw(generator, 7, 1, 9)
    whole, end = net(given, None, jolt)
    first, middle = net(given[:3], None, jolt[:3])
    second, last = net(given[3:], middle, jolt[3:])
    assert_close(torch.cat([first, second]), whole)
    assert_close(last, end)
    nothing, same = net(given[:0], middle)
    assert nothing.shape == (0, 2, 9)
    assert torch.equal(same.x, middle.x)


def test_a_population_is_its_nets_one_by_one(generator):
    nets = [PlasticRNN(3, 4, 2, generator=generator).double() for _ in range(3)]
    genomes = {
        name: torch.stack([dict(n.named_parameters())[name].detach() for n in nets]) for name in ("weight", "alpha")
    }
    given, start = draw(generator, 5, 3, 3), state(generator, 3)
    apart = [n(given[:, i : i + 1], PlasticState(*(v[i : i + 1] for v in start)))[0] for i, n in enumerate(nets)]
    together, _ = functional_call(nets[0], genomes, (given, start))
    assert_close(together, torch.cat(apart, dim=1))

    def one(genome, own, x, y, p):
        return functional_call(nets[0], genome, (own[:, None], PlasticState(x[None], y[None], p[None])))[0][:, 0]

    assert_close(vmap(one, in_dims=(0, 1, 0, 0, 0), out_dims=1)(genomes, given, *start), together)


def test_plasticity_counts_only_where_it_is_allowed(net, generator):
    before = state(generator)
    given = draw(generator, 4, 2, 3)
    with torch.no_grad():
        net.alpha.zero_()
        frozen, _ = net(given, before)
        plain, _ = net(given, before._replace(p=torch.zeros_like(before.p)))
        net.alpha.fill_(1.0)
        moved, _ = net(given, before)
    assert torch.equal(frozen, plain)
    assert not torch.allclose(moved[1:], plain[1:])


def test_gradients_reach_innate_and_plastic_weights(net, generator):
    before = state(generator)
    before.p.requires_grad_()
    rates, _ = net(draw(generator, 3, 2, 3), before)
    rates[..., -2:].sum().backward()
    for gradient in (net.weight.grad, net.alpha.grad, before.p.grad):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_the_start_of_a_life(generator):
    net = PlasticRNN(3, 4, 2, generator=torch.Generator().manual_seed(1))
    twin = PlasticRNN(3, 4, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(net.weight, twin.weight)
    assert not net.weight[:3].any()
    x, y, p = net.initial_state(5)
    assert_close(x, torch.tensor([0.0] * 3 + [0.1] * 6).expand(5, 9))
    assert torch.equal(x, y)
    assert p.shape == (5, 9, 9)
    assert not p.any()
    wide = PlasticRNN(1, 398, 1, gain=2.0, generator=generator)
    assert float(wide.weight[1:].detach().std()) == pytest.approx(2.0 / 20, rel=0.02)


def test_alpha_is_kept_from_below(net):
    with torch.no_grad():
        net.alpha[0, :2] = torch.tensor([-1.0, 2.0])
    net.constrain()
    assert net.alpha[0, :3].tolist() == [0.0, 2.0, 0.5]


@pytest.mark.parametrize("factor", [0.0, 1e30])
def test_silence_and_floods_stay_finite(net, factor):
    rates, end = net(torch.full((5, 2, 3), factor).double())
    assert rates.isfinite().all()
    assert rates[..., 3:].abs().max() <= 1
    assert end.x.isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda net, z: PlasticRNN(0, 4, 2), "needs inputs"),
        (lambda net, z: PlasticRNN(3, 4, 2, dt=200.0), "dt must lie"),
        (lambda net, z: PlasticRNN(3, 4, 2, gain=-1.0), "gain and plasticity"),
        (lambda net, z: net(z(5, 2, 4)), "4 channels, the net 3"),
        (lambda net, z: net(z(5, 3, 3), net.initial_state(2)), "wanted \\(3, 9\\)"),
        (lambda net, z: net(z(5, 2, 3), None, z(4, 2, 9)), "perturbation has 4 steps"),
        (lambda net, z: net(z(5, 2, 3), gate=z(6)), "gate has 6 steps"),
        (lambda net, z: net.initial_state(0), "batch must be"),
    ],
)
def test_wrong_use_is_named(net, call, words):
    with pytest.raises(ValueError, match=words):
        call(net, lambda *shape: torch.zeros(shape, dtype=torch.float64))
