"""The force of a loss on the last group of a network: dL/d rho through a linear readout, sample by sample.

For a real activity any loss does. A complex activity needs the complex continuation of that gradient, which autograd
does not give; it is written down for

    cross entropy         V^T (softmax(o) sum_k y_k - y)
    half squared error    V^T (o - y)                        o = V rho + c
"""

from collections.abc import Callable

import torch
from jaxtyping import Inexact
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from neuropil.learning.equilibrium.activations import holomorphic_softmax
from neuropil.learning.equilibrium.connections import real_map
from neuropil.learning.rule import Loss
from neuropil.losses import half_squared_error

__all__ = ["CONTINUED", "check_targets", "logit_gradient", "output_force", "read_out"]


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    if not target.is_floating_point():
        target = one_hot(target, logits.shape[-1]).to(logits.real.dtype)
    return holomorphic_softmax(logits, 1) * target.sum(1, keepdim=True) - target


CONTINUED: dict[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    cross_entropy: _cross_entropy,
    half_squared_error: lambda logits, target: logits - target,
}


def read_out(readout: nn.Linear, activity: Inexact[Tensor, "batch *units"]) -> Inexact[Tensor, "batch classes"]:
    """Logits of real or complex activity."""
    flat = activity.flatten(1)
    if not flat.is_complex():
        return readout(flat)
    return real_map(lambda z: z @ readout.weight.T, flat) + readout.bias


def logit_gradient(
    loss_fn: Loss, logits: Inexact[Tensor, "batch classes"], y: Tensor
) -> Inexact[Tensor, "batch classes"]:
    """Gradient of each sample's own loss by its logits.

    Raises:
        ValueError: if the logits are complex and the loss has no continuation here.
    """
    continued = CONTINUED.get(loss_fn)
    if continued is not None:
        return continued(logits, y)
    if logits.is_complex():
        raise ValueError(
            "A complex nudge needs the complex continuation of the loss's gradient, which is known for cross_entropy "
            f"and half_squared_error, not for {getattr(loss_fn, '__name__', type(loss_fn).__name__)}: "
            "use points=0, 1 or 2."
        )
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_fn(leaf, y), leaf)
    return len(logits) * gradient


def output_force(
    readout: nn.Linear, loss_fn: Loss, activity: Inexact[Tensor, "batch *units"], y: Tensor
) -> Inexact[Tensor, "batch *units"]:
    """Gradient of each sample's own loss by the activity of the last group.

    Args:
        readout: o = V rho + c.
        loss_fn: mean-reduced loss of (logits, target).
        activity: rho of the last group, real or complex.
        y: targets.

    Raises:
        ValueError: as `logit_gradient`.
    """
    gradient = logit_gradient(loss_fn, read_out(readout, activity), y)
    return real_map(lambda part: part @ readout.weight, gradient).view_as(activity)


def check_targets(y: Tensor, samples: int, classes: int) -> Tensor:
    """The targets, if they are one a sample, and class indices in range where they are integers.

    Raises:
        ValueError: if not, with the first wrong class.
    """
    if len(y) != samples:
        raise ValueError(f"{len(y)} targets for {samples} inputs.")
    if not y.is_floating_point():
        if y.dim() != 1:
            raise ValueError(f"Class indices have shape (batch,), got {tuple(y.shape)}.")
        wrong = y[(y < 0) | (y >= classes)]
        if len(wrong):
            raise ValueError(f"class {int(wrong[0])} among the targets, but there are {classes} classes.")
    elif tuple(y.shape) != (samples, classes):
        raise ValueError(f"Targets have shape {tuple(y.shape)}, the logits {(samples, classes)}.")
    return y
