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

__all__ = ["balanced_root", "loop_slope"]

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
        return _closed_form(drive, dis_inhibition)
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


def _closed_form(drive: Tensor, dis_inhibition: Tensor | None) -> tuple[Tensor, Tensor]:
    power = drive.exp()
    if dis_inhibition is None:
        root = power.add(1).sqrt_()  # q = 1: z = exp(a) / (1 + sqrt(1 + exp(a)))
        z = power.div_(root.add_(1))
    else:
        q = dis_inhibition.neg().exp_()
        root = torch.mul(q, power).mul_(4)
        q.add_(1)
        root.addcmul_(q, q).sqrt_().add_(q)
        z = power.mul_(2).div_(root)
    return z.log(), z.log1p()


def _within(values: Tensor | None, bound: float) -> bool:
    if values is None or values.numel() == 0:
        return True
    low, high = torch.aminmax(values)
    return float(low) >= -bound and float(high) <= bound
