"""What an optimizer remembers follows the entries of its parameters."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from neuropil.structure.optimizers import held_by, replace_parameter, reset_state_, state_like

MAKERS = {
    "SGD": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), {"momentum_buffer"}),
    "Adam": (lambda p: torch.optim.Adam(p, amsgrad=True), {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    "RMSprop": (
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.9),
        {"square_avg", "grad_avg", "momentum_buffer"},
    ),
    "Adagrad": (torch.optim.Adagrad, {"sum"}),
    "Adamax": (torch.optim.Adamax, {"exp_avg", "exp_inf"}),
    "Adadelta": (torch.optim.Adadelta, {"square_avg", "acc_delta"}),
}


def stepped(make, shape=(4, 3), steps=3):
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator))
    optimizer = make([parameter])
    for _ in range(steps):
        parameter.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    return parameter, optimizer


@pytest.mark.parametrize(("make", "names"), MAKERS.values(), ids=MAKERS)
def test_every_tensor_of_the_parameters_shape_is_found(make, names):
    parameter, optimizer = stepped(make)
    assert set(state_like(optimizer, parameter)) == names
    assert state_like(optimizer, nn.Parameter(torch.zeros(4, 3))) == {}


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize(("make", "names"), MAKERS.values(), ids=MAKERS)
def test_a_count_of_steps_is_no_memory_of_a_scalar(make, names, shape):
    """The count has no axes, as a scalar parameter has none: to forget it would correct Adam's bias anew."""
    parameter, optimizer = stepped(make, shape)
    assert set(state_like(optimizer, parameter)) == names
    reset_state_(optimizer, parameter, torch.ones(shape, dtype=torch.bool))
    assert float(optimizer.state[parameter].get("step", 3)) == 3


@pytest.mark.parametrize(("make", "names"), MAKERS.values(), ids=MAKERS)
def test_forgetting_is_of_these_entries_alone(make, names):
    parameter, optimizer = stepped(make)
    where = torch.zeros(4, 3, dtype=torch.bool)
    where[1], where[3, 2] = True, True
    before = {name: value.clone() for name, value in state_like(optimizer, parameter).items()}
    reset_state_(optimizer, parameter, where, "mean")
    for name, value in state_like(optimizer, parameter).items():
        assert torch.equal(value[~where], before[name][~where])
        mean = (
            before[name][~where].mean()
            if name in {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf", "acc_delta"}
            else torch.tensor(0.0)
        )
        assert_close(value[where], mean.expand(4))
    reset_state_(optimizer, parameter, where)
    assert not any(value[where].any() for value in state_like(optimizer, parameter).values())
    reset_state_(optimizer, parameter, torch.ones(4, 3, dtype=torch.bool), "mean")  # there is no mean of nothing
    assert not any(value.any() for value in state_like(optimizer, parameter).values())


def test_a_new_parameter_takes_the_place_of_the_old():
    first, second = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(2))
    optimizer = torch.optim.Adam([{"params": [second]}, {"params": [first], "lr": 0.5}])
    first.grad, second.grad = torch.randn(4, 3), torch.randn(2)
    optimizer.step()
    moment = optimizer.state[first]["exp_avg"].clone()
    new = nn.Parameter(first[[2, 0]].detach().clone())
    replace_parameter(optimizer, first, new, lambda value: value[[2, 0]])
    assert held_by(optimizer, new)
    assert not held_by(optimizer, first)
    assert optimizer.param_groups[1]["params"][0] is new
    assert torch.equal(optimizer.state[new]["exp_avg"], moment[[2, 0]])
    assert float(optimizer.state[new]["step"]) == 1
    stranger = nn.Parameter(torch.zeros(3))
    replace_parameter(optimizer, stranger, nn.Parameter(torch.zeros(2)), lambda value: value[:2])
    assert len(optimizer.state) == 2
