"""Linear least squares, where the Kronecker factors are the whole truth: predicted and true losses side by side."""

import copy

import torch
from torch import Tensor, nn

from neuropil.losses import half_squared_error
from neuropil.probes.curvature.kronecker import KroneckerFactors
from neuropil.structure.compensation import Compensation
from neuropil.structure.curvature import KroneckerNeuron
from neuropil.structure.graph.tracing import trace_units

__all__ = ["largest_error", "least_squares_factors", "surgeons_error"]


def least_squares_factors(net: nn.Module, x: Tensor) -> KroneckerFactors:
    """Exact factors of half squared error."""
    factors = KroneckerFactors(net, decay=None, fisher="exact", likelihood="normal")
    with factors:
        output = net(x)
    factors.update(output)
    return factors


def loss_of(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Half squared error."""
    with torch.no_grad():
        return float(half_squared_error(net(x), y))


def largest_error(net: nn.Sequential, x: Tensor, y: Tensor, *, first_order: bool) -> float:
    """Of the predicted rises of single deletions in the first layer."""
    graph = trace_units(net, x)
    criterion = KroneckerNeuron(least_squares_factors(net, x), compensate=False, first_order=first_order)
    predicted = criterion.unit_scores(net, [(x, y)], half_squared_error, graph)["0"]
    with torch.no_grad():
        hidden, before = net[0](x), loss_of(net, x, y)
        alone = 1 - torch.eye(hidden.shape[1], dtype=hidden.dtype)
        true = torch.stack([half_squared_error(net[2](hidden * kept), y) for kept in alone]) - before
    return float((predicted - true).abs().max())


def surgeons_error(net: nn.Sequential, x: Tensor, y: Tensor) -> float:
    """Loss after each compensated removal, against the constrained optimum solved for directly."""
    (group,) = trace_units(net, x).prunable()
    abar = torch.cat([x, torch.ones_like(x[:, :1])], 1)
    through, shift = (net.get_parameter(name).detach() for name in ("2.weight", "2.bias"))
    goal = torch.linalg.lstsq(abar, y - shift).solution.T
    worst = 0.0
    for unit in range(group.size):
        rest = copy.deepcopy(net)
        trial = Compensation(least_squares_factors(rest, x), group, damping=1e-9)
        trial.remove(unit)
        trial.repair_()
        left = through[:, [other for other in range(group.size) if other != unit]]
        optimum = half_squared_error(abar @ (left @ torch.linalg.pinv(left) @ goal).T + shift, y)
        worst = max(worst, abs(loss_of(rest, x, y) - float(optimum)))
    return worst
