import copy
import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from neuropil.learning import Backpropagation
from neuropil.learning.geometry import EUCLIDEAN, MirrorDescent, NegativeEntropy, PNorm, parameter_groups
from tests.learning.nets import case, dense


def batch():
    _, _, x, y = case("dense")
    return x, y


def trained(net, optimizer, steps=5):
    x, y = batch()
    rule = Backpropagation(net, cross_entropy)
    for _ in range(steps):
        rule.learn(x, y, optimizer)
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_the_2_norm_is_gradient_descent_to_the_last_bit(nesterov, weight_decay):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay, "nesterov": nesterov}
    ours, theirs = dense(), dense()
    theirs.load_state_dict(ours.state_dict())
    mirror = MirrorDescent(ours.parameters(), potential=EUCLIDEAN, **options)
    plain = torch.optim.SGD(theirs.parameters(), foreach=False, **options)
    assert torch.equal(trained(ours, mirror), trained(theirs, plain))


def test_the_3_norm_by_hand():
    w = nn.Parameter(torch.tensor([2.0, -1.0, 0.1], dtype=torch.float64))
    optimizer = MirrorDescent([w], 0.5, PNorm(3))
    w.grad = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    optimizer.step()
    # duals 4, -1, 0.01 less 0.5
    assert_close(w.detach(), torch.tensor([math.sqrt(3.5), -math.sqrt(1.5), -0.7], dtype=torch.float64))


def test_entropy_multiplies_and_keeps_signs():
    w = nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64))
    optimizer = MirrorDescent([w], 0.5, momentum=0.5)
    for _ in range(2):
        w.grad = torch.tensor([1.0, 3.0], dtype=torch.float64)
        optimizer.step()
    # momentum: 1, then 1.5 times the gradient
    expected = torch.tensor([2 * math.exp(-0.5 * 2.5), -math.exp(0.5 * 3 * 2.5)], dtype=torch.float64)
    assert_close(w.detach(), expected)
    for _ in range(50):
        w.grad = torch.tensor([30.0, -30.0], dtype=torch.float64)
        optimizer.step()
    assert w[0] >= 0 >= w[1]


def test_the_change_of_dual_variables_is_the_sum_of_gradients():
    net = dense().double()
    potential = NegativeEntropy()
    weight = net[0].weight
    before, total = potential.grad(weight.detach().clone()), torch.zeros_like(weight)
    optimizer = MirrorDescent([weight], 0.1)
    x, y = batch()
    for _ in range(7):
        net.zero_grad()
        Backpropagation(net, cross_entropy).backward(x.double(), y)
        total += weight.grad
        optimizer.step()
    assert_close(potential.grad(weight.detach()) - before, -0.1 * total)


def test_groups_have_potentials_of_their_own():
    net = dense()
    groups = parameter_groups(net, NegativeEntropy())
    assert [group["potential"].name for group in groups] == ["negative entropy", "2-norm"]
    assert all(parameter.dim() > 1 for parameter in groups[0]["params"])
    signs = [parameter.sign().clone() for parameter in groups[0]["params"]]
    nn.init.zeros_(net[0].bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(net, MirrorDescent(groups, 0.5))
    assert all(torch.equal(w.sign(), sign) for w, sign in zip(groups[0]["params"], signs, strict=True))
    assert float(net[0].bias.detach().abs().max()) > 0
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), EUCLIDEAN)) == 1
    with pytest.raises(ValueError, match="no trainable weights"):
        parameter_groups(nn.ReLU(), EUCLIDEAN)


@pytest.mark.parametrize("potential", [EUCLIDEAN, PNorm(3), NegativeEntropy()], ids=lambda p: p.name)
def test_a_stored_state_goes_on_to_the_last_bit(potential):
    def start():
        net = dense()
        return net, MirrorDescent(parameter_groups(net, potential), 0.05, momentum=0.9, nesterov=True)

    net, optimizer = start()
    trained(net, optimizer, 3)
    stored = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, stored)
    stored.seek(0)
    expected = trained(net, optimizer, 3)

    state = torch.load(stored, weights_only=True)
    again, resumed = start()
    again.load_state_dict(state["net"])
    resumed.load_state_dict(state["optimizer"])
    assert resumed.param_groups[0]["potential"] is potential
    assert torch.equal(trained(again, resumed, 3), expected)


def test_a_state_of_another_geometry_is_refused():
    w = nn.Parameter(torch.ones(2))
    state = MirrorDescent([w], 0.1, PNorm(3)).state_dict()
    with pytest.raises(ValueError, match=r"stored under 3-norm.*has 2-norm"):
        MirrorDescent([w], 0.1, EUCLIDEAN).load_state_dict(state)
    with pytest.raises(ValueError, match="1 groups of parameters, the optimizer 2"):
        two = [{"params": [w]}, {"params": [nn.Parameter(torch.ones(1))]}]
        MirrorDescent(two, 0.1, PNorm(3)).load_state_dict(state)


def test_a_copy_goes_on_by_itself():
    w = nn.Parameter(torch.ones(2))
    optimizer = MirrorDescent([w], 0.1, momentum=0.9)
    twin = copy.deepcopy(optimizer)
    (other,) = twin.param_groups[0]["params"]
    for parameter, steps in ((w, optimizer), (other, twin)):
        parameter.grad = torch.ones(2)
        steps.step()
    assert torch.equal(w, other)
    assert twin.cut == 0


def test_closures_schedules_and_parameters_without_gradient():
    w, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = MirrorDescent([w, idle], 0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)

    def closure():
        optimizer.zero_grad()
        loss = w.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    schedule.step()
    assert optimizer.step(closure).item() < 2.0
    assert_close(w.detach(), torch.full((2,), math.exp(-0.2) * math.exp(-0.1 * math.exp(-0.2))))
    assert_close(idle.detach(), torch.ones(2))
    assert optimizer.step() is None


def test_zeros_stay_under_entropy_and_are_told_once():
    net = dense()
    nn.init.zeros_(net[0].bias)
    nn.init.zeros_(net[2].bias)
    optimizer = MirrorDescent(net.parameters(), 0.1)
    with pytest.warns(RuntimeWarning, match=r"exactly 0 and stay there") as caught:
        trained(net, optimizer, 3)
    assert len(caught) == 1
    assert optimizer.frozen == net[0].bias.numel() + net[2].bias.numel()
    assert float(net[0].bias.detach().abs().max()) == 0


def test_steps_that_would_overflow_are_cut_and_counted():
    w = nn.Parameter(torch.tensor([1.0, 1e-3, -1.0]))
    optimizer = MirrorDescent([w], 10.0)
    with pytest.warns(RuntimeWarning, match=r"At step 1 .* 1e\+04, cut to 40") as caught:
        for _ in range(2):
            w.grad = torch.tensor([1e3, 0.1, 1e3])
            optimizer.step()
    assert len(caught) == 1
    assert optimizer.cut == 4
    assert torch.isfinite(w).all()
    assert_close(w.detach()[0], torch.tensor(0.0), atol=1e-30, rtol=0)


def test_a_gradient_that_is_not_finite_is_raised_with_its_step():
    w = nn.Parameter(torch.ones(2))
    optimizer = MirrorDescent([w], 0.1)
    w.grad = torch.ones(2)
    optimizer.step()
    w.grad = torch.tensor([math.nan, 1.0])
    with pytest.raises(FloatingPointError, match=r"nan at step 2"):
        optimizer.step()


def test_a_rate_of_zero_moves_nothing():
    w = nn.Parameter(torch.tensor([0.3, -0.7]))
    optimizer = MirrorDescent([w], 0.0)
    w.grad = torch.full((2,), 1e30)
    optimizer.step()
    assert_close(w.detach(), torch.tensor([0.3, -0.7]))
    assert optimizer.cut == 0


def test_empty_parameters_are_no_error():
    w = nn.Parameter(torch.empty(0, 3))
    w.grad = torch.empty(0, 3)
    MirrorDescent([w], 0.1).step()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr": -1.0}, ValueError, "lr must be finite and not negative, got -1"),
        ({"lr": math.nan}, ValueError, "lr"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay"),
        ({"momentum": 1.0}, ValueError, r"momentum must lie in \[0, 1\)"),
        ({"nesterov": True}, ValueError, "nesterov"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=message):
        MirrorDescent([nn.Parameter(torch.ones(1))], **options)


def test_wrong_groups_are_named():
    w = nn.Parameter(torch.ones(1))
    with pytest.raises(TypeError, match=r"potential must be a Potential.*'2-norm'"):
        MirrorDescent([{"params": [w], "potential": "2-norm"}])
    with pytest.raises(TypeError, match="complex"):
        MirrorDescent([nn.Parameter(torch.ones(1, dtype=torch.complex64))])
    with pytest.raises(TypeError, match="dense gradients"):
        w.grad = torch.ones(1).to_sparse()
        MirrorDescent([w]).step()
