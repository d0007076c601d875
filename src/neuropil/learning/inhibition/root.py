"""One excitatory neuron and its inhibitory partner at rest: a scalar equation for every neuron.

    u + phiI(phiE(u) - d) = a          a  drive,   d  dis-inhibition,   u  excitatory potential

The left side is convex in u and rises with slope 1 + phiI'(uI) phiE'(u) >= 1. At u = a it lies above a, so Newton's
iteration from there falls to the root without overshooting.

For plain softplus neurons, log(1 + exp(u)), no iteration is needed. With z = exp(u) and q = exp(-d),

    phiI(phiE(u) - d) = log(1 + q (1 + z)),    so    q z^2 + (1 + q) z = exp(a)

    z = 2 exp(a) / (1 + q + sqrt((1 + q)^2 + 4 q exp(a))),      u = log z,      phiE(u) = log(1 + z)
"""

import torch
from torch import Tensor

from neuropil.learning.inhibition.activation import Softplus

__all__ = ["balanced_root", "loop_slope", "plain_odds"]

NEWTON_STEPS = 60
DRIVE_RANGE, LIFT_RANGE = 40.0, 20.0  # exp(40 + 20) and exp(-40 - 20) are far from the ends of float32


def loop_slope(u_e: Tensor, u_i: Tensor, phi_e: Softplus, phi_i: Softplus) -> Tensor:
    """Slope of the equation, 1 + phiI'(uI) phiE'(uE): da/du, the inverse of the E/I loop's gain."""
    return 1 + phi_i.derivative(u_i) * phi_e.derivative(u_e)


@torch.no_grad()
def balanced_root(
    drive: Tensor, dis_inhibition: Tensor | None, phi_e: Softplus, phi_i: Softplus, start: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Potential and rate of every excitatory neuron at rest.

    Args:
        drive: a, any shape.
        dis_inhibition: d, same shape; None for none.
        phi_e: transfer function of the excitatory neurons.
        phi_i: transfer function of the inhibitory neurons.
        start: potentials near the root, where known; None starts at the drive.

    Returns:
        (uE, phiE(uE)), exact to rounding.
    """
    if phi_e.plain and phi_i.plain and _within(drive, DRIVE_RANGE) and _within(dis_inhibition, LIFT_RANGE):
        z = plain_odds(drive.exp(), dis_inhibition)
        return z.log(), z.log1p()
    d = torch.zeros_like(drive) if dis_inhibition is None else dis_inhibition
    u_e = drive if start is None else start
    tol = torch.finfo(drive.dtype).eps ** 0.5  # the error after a Newton step is about the step squared
    r_e = phi_e(u_e)
    for _ in range(NEWTON_STEPS):
        u_i = r_e - d
        change = (u_e - drive + phi_i(u_i)) / loop_slope(u_e, u_i, phi_e, phi_i)
        u_e = u_e - change
        r_e = phi_e(u_e)
        if not bool((change.abs_() > tol * (1 + u_e.abs())).any()):
            break
    return u_e, r_e


def plain_odds(power: Tensor, dis_inhibition: Tensor | None) -> Tensor:
    """Exponential z = exp(uE) of plain softplus neurons, whose rate is log(1 + z).

    Args:
        power: exp(a), any shape.
        dis_inhibition: d, same shape; None for none.

    Returns:
        z. Not finite where exp(a) or exp(-d) overflows; the caller looks.
    """
    if dis_inhibition is None:
        return power / power.add(1).sqrt_().add_(1)
    q = dis_inhibition.neg().exp_()
    q_1 = q + 1
    root = torch.addcmul(q_1.square(), q, power, value=4).sqrt_().add_(q_1)
    return torch.div(power, root).mul_(2)


def _within(values: Tensor | None, bound: float) -> bool:
    if values is None or values.numel() == 0:
        return True
    low, high = torch.aminmax(values)
    return float(low) >= -bound and float(high) <= bound
