"""Small networks at rest, and their equations written with matrices."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from neuropil.learning.equilibrium import FixedPointNetwork, recurrent_matrix
from neuropil.learning.equilibrium.forces import output_force

TIGHT = {"free_steps": 400, "nudge_steps": 400, "tol": 1e-12}


class Case(NamedTuple):
    net: FixedPointNetwork
    x: Tensor
    y: Tensor


def dense(*sizes, angle=90.0, seed=0, batch=7, dtype=torch.float64, scale=0.5, **options) -> Case:
    generator = torch.Generator().manual_seed(seed)
    sizes = sizes or (5, 8, 6, 4)
    net = FixedPointNetwork(sizes, angle=angle, scale=scale, generator=generator, **options).to(dtype)
    x = torch.rand(batch, sizes[0], generator=generator).to(dtype)
    return Case(net, x, torch.randint(net.readout.out_features, (batch,), generator=generator))


def maps(angle=90.0, seed=0, batch=4, dtype=torch.float64, **options) -> Case:
    generator = torch.Generator().manual_seed(seed)
    options = {"scale": 0.5, **options}
    net = FixedPointNetwork.convolutional((2, 12, 12), (3, 5), 4, angle=angle, generator=generator, **options).to(dtype)
    x = torch.rand(batch, 2, 12, 12, generator=generator).to(dtype)
    return Case(net, x, torch.randint(4, (batch,), generator=generator))


def flat(groups) -> Tensor:
    return torch.cat([value.flatten(1) for value in groups.values()], 1)


@torch.no_grad()
def by_matrices(case: Case) -> tuple[Tensor, Tensor]:
    """D (I - W D)^-1 g and (I - D W^T)^-1 D g of a dense net, sample by sample."""
    net, x, y = case
    rest = net.settle(x, steps=2000, tol=1e-14)
    w, eye = recurrent_matrix(net), torch.eye(net.units, dtype=x.dtype)
    slopes = flat({group: net.activation.derivative(u) for group, u in rest.potentials.items()})
    force = torch.zeros_like(slopes)
    force[:, -net.shapes["out"][0] :] = output_force(net.readout, cross_entropy, rest.activity["out"], y)
    tangents, adjoints = [], []
    for d, g in zip(slopes, force, strict=True):
        tangents.append(d * torch.linalg.solve(eye - w * d, g))
        adjoints.append(torch.linalg.solve(eye - d[:, None] * w.T, d * g))
    return torch.stack(tangents), torch.stack(adjoints)


def gradients(rule, x, y) -> dict[str, Tensor]:
    rule.net.zero_grad()
    rule.backward(x, y)
    return {name: p.grad.clone() for name, p in rule.net.named_parameters() if p.grad is not None}
