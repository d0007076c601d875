"""Small networks and their curvature written down, for comparison."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from neuropil.learning.networks import mlp
from neuropil.probes.curvature.inputs import call, flatten, split


def smooth_net(*sizes: int, seed: int = 0) -> nn.Sequential:
    """A tanh network in float64."""
    return mlp(*sizes, activation=nn.Tanh, generator=torch.Generator().manual_seed(seed)).double()


def task(examples: int = 12, features: int = 4, classes: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(examples, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (examples,), generator=generator)


def as_function(net: nn.Module):
    """The network as a function of one vector."""
    params = {name: value.detach() for name, value in net.named_parameters()}
    return flatten(params), lambda vector, x: functional_call(net, split(vector, params), (x,))


def full_hessian(net: nn.Module, batch: tuple, loss_fn) -> Tensor:
    vector, function = as_function(net)
    return torch.func.hessian(lambda v: loss_fn(call(lambda x: function(v, x), batch[0]), batch[1]))(vector)


def jacobian(net: nn.Module, x: Tensor) -> Tensor:
    """(examples * outputs, parameters)."""
    vector, function = as_function(net)
    return torch.func.jacrev(lambda v: function(v, x).reshape(-1))(vector)
