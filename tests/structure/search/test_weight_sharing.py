"""The supernet against its extracted parts; DARTS's gradients against exact ones."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from neuropil.learning.networks import linear
from neuropil.structure.search.cell_spaces import CellSpace
from neuropil.structure.search.cells import Zero, lookup
from neuropil.structure.search.darts import Darts
from neuropil.structure.search.nasbench201 import nasbench201_net
from neuropil.structure.search.supernet import Supernet

SPACE = CellSpace(((0, 1), (0, 2), (1, 2)), ("zero", "skip", "tanh"), fixed={(1, 3): "skip", (2, 3): "tanh"})


def make_net(seed=0, space=SPACE):
    generator = torch.Generator().manual_seed(seed)
    table = {
        "zero": Zero,
        "skip": nn.Identity,
        "tanh": lambda: nn.Sequential(linear(4, 4, generator=generator), nn.Tanh()),
    }
    stem, head = linear(5, 4, generator=generator), linear(4, 3, generator=generator)
    return Supernet(space, stem, lookup(table), head).double()


def make_batch(seed, n=12):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, generator=generator, dtype=torch.float64), torch.randint(3, (n,), generator=generator)


def test_an_extracted_network_is_the_supernet_on_its_path():
    net, (x, _) = make_net(), make_batch(1)
    for code in SPACE.all():
        assert torch.allclose(net.extract(code)(x), net(x, code), atol=1e-12)
        one_hot = nn.functional.one_hot(torch.tensor(code), 3).double()
        assert torch.allclose(net(x, mixture=one_hot), net(x, code), atol=1e-12)


def test_an_extracted_network_is_a_copy():
    net, (x, y) = make_net(), make_batch(1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    child = net.extract((2, 2, 2))
    cross_entropy(child(x), y).backward()
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.sub_(parameter.grad)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_single_path_trains_its_own_weights_only(generator):
    net, batch = make_net(), make_batch(1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(20):
        drawn = SPACE.sample(torch.Generator().manual_seed(0))
        before = {name: value.clone() for name, value in net.named_parameters()}
        net.train_step(batch, cross_entropy, optimizer, torch.Generator().manual_seed(0))
        moved = {name for name, value in net.named_parameters() if not torch.equal(value, before[name])}
        tanh = {f"operations.{at}.2.0.{part}" for at in range(3) if drawn[at] == 2 for part in ("weight", "bias")}
        assert moved - tanh <= {f"{p}.{q}" for p in ("stem", "head", "fixed.1.0") for q in ("weight", "bias")}


def test_a_supernet_learns_and_ranks(generator):
    net = make_net()
    x = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = [net.train_step((x, y), cross_entropy, optimizer, generator) for _ in range(300)]
    assert sum(losses[-30:]) < 0.6 * sum(losses[:30])
    values = {code: net.value(code, (x, y), cross_entropy) for code in SPACE.all()}
    assert values[0, 0, 0] == min(values.values())  # nothing of the input arrives


def test_first_order_is_the_gradient_of_the_validation_loss():
    darts = Darts(make_net(), cross_entropy, generator=torch.Generator().manual_seed(3))
    train, val = make_batch(1), make_batch(2)
    direction, loss = darts.alpha_gradient(train, val)
    step = 1e-5
    for at in ((0, 2), (1, 0), (2, 1)):
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                darts.alpha[at] += sign * step
            sides.append(darts.loss(val).item())
            with torch.no_grad():
                darts.alpha[at] -= sign * step
        assert float(direction[at]) == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=1e-8)
    assert loss == pytest.approx(darts.loss(val).item())


def exact_second_order(darts, train, val):
    """grad_alpha L_val(w - xi grad_w L_train(w, alpha), alpha), through the step."""
    names = [name for name, _ in darts.supernet.named_parameters()]
    weights = [parameter.detach().clone().requires_grad_() for parameter in darts.supernet.parameters()]
    alpha = darts.alpha.detach().clone().requires_grad_()

    def loss(values, batch):
        mixture = alpha.softmax(1)
        logits = functional_call(
            darts.supernet, dict(zip(names, values, strict=True)), (batch[0],), {"mixture": mixture}
        )
        return cross_entropy(logits, batch[1])

    gradients = torch.autograd.grad(loss(weights, train), weights, create_graph=True)
    moved = [w - darts.unroll * g for w, g in zip(weights, gradients, strict=True)]
    return torch.autograd.grad(loss(moved, val), alpha)[0]


def test_second_order_is_the_gradient_through_the_step():
    darts = Darts(make_net(), cross_entropy, unroll=0.5, generator=torch.Generator().manual_seed(3))
    train, val = make_batch(1), make_batch(2)
    exact = exact_second_order(darts, train, val)
    before = {name: value.clone() for name, value in darts.supernet.state_dict().items()}
    direction, _ = darts.alpha_gradient(train, val)
    # The finite difference is of second order in its step, 0.01.
    assert torch.allclose(direction, exact, atol=2e-4 * float(exact.abs().max()))
    first = Darts(darts.supernet, cross_entropy, generator=torch.Generator().manual_seed(3))
    far = first.alpha_gradient(train, val)[0]
    assert (far - exact).abs().max() > 50 * (direction - exact).abs().max()
    assert all(torch.equal(value, before[name]) for name, value in darts.supernet.state_dict().items())


def test_a_step_moves_alpha_on_validation_and_weights_on_training():
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    darts = Darts(net, cross_entropy, optimizer=optimizer, make_alpha_optimizer=lambda a: torch.optim.SGD(a, lr=0.2))
    train, val = make_batch(1), make_batch(2)
    direction, val_loss = darts.alpha_gradient(train, val)
    expected = darts.alpha.detach() - 0.2 * direction
    losses = darts.step(train, val)
    assert torch.allclose(darts.alpha, expected, atol=1e-12)
    assert losses[1] == pytest.approx(val_loss)
    twin = make_net()
    loss = cross_entropy(twin(train[0], mixture=expected.softmax(1)), train[1])
    loss.backward()
    assert losses[0] == pytest.approx(loss.item())
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        step = 0.0 if theirs.grad is None else 0.1 * theirs.grad
        assert torch.allclose(ours, theirs - step, atol=1e-12)


def test_darts_finds_the_operation_that_is_needed(generator):
    space = CellSpace(((0, 1),), ("zero", "skip", "tanh"))
    x = torch.randn(300, 5, generator=generator, dtype=torch.float64)
    y = (x[:, 0] * x[:, 1] > 0).long()  # no linear map can tell
    net = make_net(1, space)
    darts = Darts(
        net,
        cross_entropy,
        optimizer=torch.optim.Adam(net.parameters(), lr=0.02),
        make_alpha_optimizer=lambda alpha: torch.optim.Adam(alpha, lr=0.02),
    )
    for _ in range(300):
        darts.step((x[:200], y[:200]), (x[200:], y[200:]))
    assert darts.discretise() == (2,)


def test_sharpness_is_the_largest_eigenvalue():
    darts = Darts(make_net(), cross_entropy, generator=torch.Generator().manual_seed(3))
    parts = [make_batch(1), make_batch(2, n=4)]
    whole = tuple(torch.cat(both) for both in zip(*parts, strict=True))

    def loss(alpha):
        return cross_entropy(darts.supernet(whole[0], mixture=alpha.view(3, 3).softmax(1)), whole[1])

    hessian = torch.autograd.functional.hessian(loss, darts.alpha.detach().flatten())
    eigenvalues = torch.linalg.eigvalsh(hessian)
    assert darts.sharpness(parts) == pytest.approx(float(eigenvalues[eigenvalues.abs().argmax()]))
    with pytest.raises(ValueError, match="batch"):
        darts.sharpness([])


def test_discretise_keeps_the_strongest_edges_and_no_zero():
    darts = Darts(make_net(), cross_entropy)
    with torch.no_grad():
        darts.alpha.copy_(torch.tensor([[9.0, 1.0, 0.0], [0.0, 1.0, 2.0], [5.0, 2.0, 1.0]]))
    assert darts.discretise(2) == (1, 2, 1)
    assert darts.discretise(1) == (1, 2, 0)  # of node 2 the edge whose operation has the larger share stays
    assert darts.discretise(None) == (1, 2, 1)
    with pytest.raises(ValueError, match="incoming"):
        darts.discretise(0)


def test_bad_input_is_named(generator):
    net, (x, y) = make_net(), make_batch(1)
    with pytest.raises(ValueError, match="Either"):
        net(x)
    with pytest.raises(ValueError, match="Either"):
        net(x, (0, 0, 0), mixture=torch.zeros(3, 3))
    with pytest.raises(ValueError, match="mixture must be"):
        net(x, mixture=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="3 decisions"):
        net(x, (0, 0))
    with pytest.raises(ValueError, match="unroll"):
        Darts(net, cross_entropy, unroll=-1.0)
    with pytest.raises(ValueError, match="No module for operation 'zero'"):
        Supernet(SPACE, nn.Identity(), lookup({}), nn.Identity())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    broken = (x * math.nan, y)
    with pytest.raises(FloatingPointError, match="architecture"):
        net.train_step(broken, cross_entropy, optimizer, generator)
    with pytest.raises(FloatingPointError, match="validation"):
        Darts(net, cross_entropy).step((x, y), broken)
    with pytest.raises(FloatingPointError, match="training"):
        Darts(net, cross_entropy, unroll=0.1).step(broken, (x, y))


def test_networks_of_nasbench201(generator):
    net = nasbench201_net((3, 1, 4, 2, 3, 0), (1, 8, 8), 10, channels=4, cells=1, generator=generator)
    x = torch.randn(3, 1, 8, 8, generator=generator)
    assert net(x).shape == (3, 10)
    assert net[:-2](x).shape == (3, 16, 1, 1)
    again = nasbench201_net((3, 1, 4, 2, 3, 0), (1, 8, 8), 10, channels=4, cells=1, generator=generator.manual_seed(0))
    assert torch.equal(net[0].weight, again[0].weight)
    # The benchmark's own count for the cell of six 3x3 convolutions: 1.531546 M.
    full = nasbench201_net((3,) * 6)
    assert sum(parameter.numel() for parameter in full.parameters()) == 1_531_546
    with pytest.raises(ValueError, match="4x4"):
        nasbench201_net((0,) * 6, (1, 2, 2))
