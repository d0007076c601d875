"""Sharpness-aware steps: the closed form on a parabola, the way back, and masks that stay in force."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.learning.networks import mlp
from neuropil.structure.landscape.sharpness import SAM
from neuropil.structure.masks import Masks, attach


def parabola(start, curvature):
    weights = nn.Parameter(torch.tensor(start, dtype=torch.float64))
    bent = torch.tensor(curvature, dtype=torch.float64)

    def closure():
        loss = 0.5 * (bent * weights.square()).sum()
        loss.backward()
        return loss

    return weights, closure, bent


def test_a_step_on_a_parabola_is_the_closed_form():
    weights, closure, bent = parabola([1.0, -2.0], [3.0, 0.5])
    origin = weights.detach().clone()
    gradient = bent * origin
    wanted = origin - 0.1 * bent * (origin + 0.2 * gradient / gradient.norm())
    loss = SAM(torch.optim.SGD([weights], 0.1), rho=0.2).step(closure)
    assert_close(weights.detach(), wanted)
    assert_close(loss, 0.5 * (bent * origin.square()).sum())
    assert not loss.requires_grad


def test_a_tiny_radius_is_the_plain_optimizer():
    nets = [mlp(4, 6, 2, generator=torch.Generator().manual_seed(0)).double() for _ in range(2)]
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    optimizers = [torch.optim.Adam(net.parameters(), 1e-2) for net in nets]
    sam = SAM(optimizers[0], rho=1e-9)

    def closure(net):
        loss = net(x).square().mean()
        loss.backward()
        return loss

    for _ in range(5):
        sam.step(lambda: closure(nets[0]))
        optimizers[1].zero_grad()
        closure(nets[1])
        optimizers[1].step()
    for ours, plain in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert_close(ours, plain, rtol=0, atol=1e-7)


def test_the_two_halves_are_a_step_and_the_weights_come_back_to_the_bit():
    weights, closure, _ = parabola([0.1, 0.7], [2.0, 9.0])
    sam = SAM(torch.optim.SGD([weights], 0.0), rho=0.05)
    origin = weights.detach().clone()
    closure()
    norm = sam.first_step()
    assert norm == pytest.approx(float((torch.tensor([2.0, 9.0]) * origin).norm()))
    assert float((weights.detach() - origin).norm()) == pytest.approx(0.05)
    assert weights.grad is None
    closure()
    sam.second_step()  # rate 0: the weights are where they were
    assert torch.equal(weights.detach(), origin)


def test_halves_out_of_order_are_refused():
    weights, closure, _ = parabola([1.0], [1.0])
    sam = SAM(torch.optim.SGD([weights], 0.1))
    with pytest.raises(RuntimeError, match="needs a first_step"):
        sam.second_step()
    closure()
    sam.first_step()
    closure()
    with pytest.raises(RuntimeError, match="called twice"):
        sam.first_step()


def test_a_flat_place_is_left_alone_and_a_gradient_that_is_no_number_is_named():
    weights, closure, _ = parabola([0.0, 0.0], [1.0, 1.0])
    SAM(torch.optim.SGD([weights], 0.1)).step(closure)
    assert weights.tolist() == [0.0, 0.0]
    weights.grad = torch.full((2,), torch.nan, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="norm of the gradient is nan"):
        SAM(torch.optim.SGD([weights], 0.1)).first_step()


def test_an_error_in_the_second_half_leaves_the_weights_where_they_were():
    weights, closure, _ = parabola([1.0, 2.0], [1.0, 1.0])
    calls = []

    def failing():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return closure()

    sam = SAM(torch.optim.SGD([weights], 0.1))
    with pytest.raises(KeyboardInterrupt):
        sam.step(failing)
    assert weights.tolist() == [1.0, 2.0]
    sam.step(closure)
    assert float(weights[0].detach()) < 1.0


def test_masked_weights_neither_climb_nor_count():
    net = mlp(3, 4, 2, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    masks = Masks({"0.weight": torch.arange(12).view(4, 3) % 2 == 0})
    sam = SAM(optimizer, 0.5, attach(masks, net, optimizer))
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    net(x).square().mean().backward()
    gradient = net[0].weight.grad.clone()
    rest = sum(float(p.grad.square().sum()) for p in list(net.parameters())[1:])
    norm = sam.first_step()
    assert norm == pytest.approx((rest + float(gradient[masks["0.weight"]].square().sum())) ** 0.5, rel=1e-5)
    assert bool((net[0].weight[~masks["0.weight"]] == 0).all())
    net(x).square().mean().backward()
    sam.second_step()
    assert bool((net[0].weight[~masks["0.weight"]] == 0).all())
    assert bool((net[0].weight[masks["0.weight"]] != 0).all())


def test_bad_arguments_are_named():
    weights, _, _ = parabola([1.0], [1.0])
    with pytest.raises(ValueError, match="rho must be"):
        SAM(torch.optim.SGD([weights], 0.1), rho=0.0)
    net = mlp(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    handle = attach(Masks({"0.weight": torch.ones(2, 3, dtype=torch.bool)}), net, optimizer)
    with pytest.raises(ValueError, match="another optimizer"):
        SAM(torch.optim.SGD([weights], 0.1), handle=handle)
