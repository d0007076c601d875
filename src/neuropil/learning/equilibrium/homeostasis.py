"""How asymmetric a network's Jacobian is, as a loss that plasticity can lower.

With the Jacobian taken by the ACTIVITIES, Jhat(v) = d[G(v) - v]/dv at v = rho*, n units,

    asymmetry = E_eps[ ||Jhat eps||^2 - eps^T Jhat Jhat eps ] / n       eps ~ N(0, I)
              = (||Jhat||_F^2 - tr Jhat^2) / n  =  ||Jhat - Jhat^T||_F^2 / (2 n)

so that noise and its two passes through the network suffice to measure it. Where G is linear in the activities, Jhat is
W - I and no noise is needed: ||W - W^T||_F^2 / (2 n), with gradient 2 (W - W^T) / n. It reaches the kernels between
groups only, as what the input sends is no function of the activities. For a loop of three groups or more, where no
connection has a counterpart, it is the weight decay ||W||_F^2 / n.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.learning.equilibrium.network import FixedPointNetwork
from neuropil.learning.equilibrium.relaxation import Groups

__all__ = ["asymmetry_at", "jacobian_asymmetry", "jacobian_symmetry", "recurrent_matrix"]

LARGEST = 1000  # units of a Jacobian that is written out


def recurrent_matrix(net: FixedPointNetwork) -> Float[Tensor, "units units"]:
    """W: the kernels between groups as one matrix, receivers in rows; keeps the graph.

    Raises:
        ValueError: if a group hears more than a linear function of the others.
    """
    if not net.linear:
        raise ValueError("Only dense networks have one recurrent matrix: pooling depends on the state.")
    weight = next(net.parameters())
    rows = []
    for post in net.groups:
        blocks = [
            net.connection(pre, post).weight
            if (pre, post) in net.wiring
            else weight.new_zeros(net.shapes[post][0], net.shapes[pre][0])
            for pre in net.groups
        ]
        rows.append(torch.cat(blocks, 1))
    return torch.cat(rows)


def asymmetry_at(
    net: FixedPointNetwork,
    activity: Mapping[str, Tensor],
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """As `jacobian_asymmetry`, at activities that are at hand; they count as constants."""
    if samples is None:
        matrix = recurrent_matrix(net)
        return (matrix - matrix.T).square().sum() / (2 * net.units)
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    at = {group: rho.detach() for group, rho in activity.items()}
    terms = []
    for _ in range(samples):
        noise = {group: _normal(rho, generator) for group, rho in at.items()}
        once = _jacobian_product(net, at, noise)
        twice = _jacobian_product(net, at, once)
        terms.append(_dot(once, once) - _dot(noise, twice))
    return torch.stack(terms).mean() / net.units


def jacobian_asymmetry(
    net: FixedPointNetwork,
    x: Float[Tensor, "batch *features"] | None = None,
    samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """||Jhat - Jhat^T||_F^2 / (2 n), in closed form or from noise; differentiable by the kernels.

    Args:
        net: the network.
        x: inputs, at whose free points the Jacobian is taken; the closed form needs none.
        samples: draws of noise for each input; None for the closed form, which dense networks have.
        generator: source of the noise; None is torch's default generator.

    Returns:
        Mean over the batch.

    Raises:
        ValueError: if the closed form is asked of a network that has none, noise comes without x, or samples is less
            than 1; if more than half of the batch does not settle (NotSettledError).

    Source: Laborieux & Zenke 2024 (arXiv 2309.02214), section 5.
    """
    if samples is None:
        if not net.linear:
            raise ValueError("This network's Jacobian depends on its state: pass samples, a number of noise draws.")
        return asymmetry_at(net, {})
    if x is None:
        raise ValueError("Noise goes through the network at rest: pass x.")
    rest = net.settle(x)
    return asymmetry_at(net, {group: rho[rest.settled] for group, rho in rest.activity.items()}, samples, generator)


@torch.no_grad()
def jacobian_symmetry(net: FixedPointNetwork, x: Float[Tensor, "batch *features"]) -> float:
    """||S|| / (||S|| + ||A||) of Jhat = S + A, symmetric and antisymmetric part: 1 if the Jacobian is symmetric.

    Args:
        net: the network, of fewer than 1000 units.
        x: inputs; their free points matter where pooling makes the Jacobian depend on the state.

    Returns:
        Mean over the samples that settle. A matrix of independent entries has about 1/2, less what the diagonal adds.

    Raises:
        ValueError: if the network is too large; if more than half of the batch does not settle (NotSettledError).

    Source: Laborieux & Zenke 2024 (arXiv 2309.02214), section 5.
    """
    if net.units >= LARGEST:
        raise ValueError(
            f"A Jacobian of {net.units} units is too large to write out (fewer than {LARGEST}): "
            "use jacobian_asymmetry with samples."
        )
    if net.linear:
        matrices = recurrent_matrix(net)[None]
    else:
        rest = net.settle(x)
        matrices = torch.stack(
            [
                _matrix(net, {g: rho[i : i + 1] for g, rho in rest.activity.items()})
                for i in range(len(x))
                if rest.settled[i]
            ]
        )
    jacobian = matrices - torch.eye(net.units, dtype=matrices.dtype, device=matrices.device)
    symmetric, antisymmetric = ((jacobian + sign * jacobian.mT).flatten(1).norm(dim=1) for sign in (1, -1))
    return float((symmetric / (symmetric + antisymmetric)).mean())


def _matrix(net: FixedPointNetwork, activity: Groups) -> Tensor:
    """DG/dv of one sample: the differential along every unit."""
    basis = torch.eye(net.units, dtype=next(iter(activity.values())).dtype)
    parts = basis.split([activity[group].numel() for group in net.groups], 1)
    along = {g: part.view(-1, *net.shapes[g]).to(activity[g]) for g, part in zip(net.groups, parts, strict=True)}
    at = {group: rho.repeat(net.units, *[1] * (rho.dim() - 1)) for group, rho in activity.items()}
    moved = net.differential(at, along)
    return torch.cat([moved[group].flatten(1) for group in net.groups], 1).T


def _jacobian_product(net: FixedPointNetwork, activity: Groups, v: Groups) -> Groups:
    moved = net.differential(activity, v)
    return {group: moved[group] - v[group] for group in net.groups}


def _dot(first: Groups, second: Groups) -> Tensor:
    """Inner product over all units, mean over the batch."""
    return torch.stack([(first[group] * second[group]).flatten(1).sum(1) for group in first]).sum(0).mean()


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
