"""Initial weights by which backpropagation would send what direct feedback sends.

    h_i --W--> a        D = (B_i^T e)^T  rows: what stage i is taught;      G = dL/da  rows, by backpropagation
    G W = D             wanted: then dL/dh_i, which is G W, equals the teaching signal
    W = pinv(G) D       in the least-squares sense, divided by its Frobenius norm

from the top weight down, since G depends on the weights above it.
"""

import torch
from torch import Tensor, nn

from neuropil.learning.feedback.direct import DirectFeedbackAlignment

__all__ = ["prealign"]


def prealign(
    rule: DirectFeedbackAlignment, x: Tensor, y: Tensor, *, norm: float | None = 1.0
) -> DirectFeedbackAlignment:
    """Set the weights above every hidden stage so that one batch's signals are aligned before learning.

    The weights get as many dimensions as the batch's errors have, fewer than there are outputs in each: they are poor
    in rank.

    Args:
        rule: of a Sequential whose stages above the first begin with nn.Linear.
        x: inputs, (batch, ...).
        y: targets.
        norm: Frobenius norm of every new weight; 1 is the paper's, None keeps that of the weight it replaces.

    Returns:
        The rule, its net changed in place.

    Raises:
        TypeError: if a stage does not begin with nn.Linear, or a subclass of it begins it; the message names it.
        ValueError: if the net is no Sequential, `norm` not positive, or the batch has no error to align with.

    Source: Launay, Poli & Krzakala, arXiv:1906.04554, pre-alignment initialisation.
    """
    if norm is not None and not norm > 0:
        raise ValueError(f"norm must be positive or None, got {norm}.")
    rule.stages(x)  # traces the net, so that the names are in order
    for index, layer in reversed(list(enumerate(_layers_above(rule)))):
        wanted = next(iter(rule.packets(x, y))).teaching[index].double()
        weight = torch.linalg.pinv(_error_at(rule, layer, x, y).double()) @ wanted
        length = float(weight.norm())
        if not length > 0:
            raise ValueError(f"The batch has no error at {rule.stages.names[index]}: there is nothing to align with.")
        with torch.no_grad():
            target = float(layer.weight.norm()) if norm is None else norm
            layer.weight.copy_(weight * (target / length))
    return rule


def _layers_above(rule: DirectFeedbackAlignment) -> list[nn.Linear]:
    if not isinstance(rule.net, nn.Sequential):
        raise ValueError(f"Pre-alignment takes an nn.Sequential, got {type(rule.net).__name__}.")
    children = dict(rule.net.named_children())
    names, layers = list(children), []
    for point in rule.stages.names:
        above = names[names.index(point) + 1]
        layer = children[above]
        if type(layer) is not nn.Linear:
            raise TypeError(
                f"The stage above {point!r} begins with {above!r}, a {type(layer).__name__}, not nn.Linear."
            )
        layers.append(layer)
    return layers


def _error_at(rule: DirectFeedbackAlignment, layer: nn.Linear, x: Tensor, y: Tensor) -> Tensor:
    """dL/da at the output of a layer, by backpropagation: (batch, units)."""
    recorded: list[Tensor] = []

    def record(module: nn.Module, args: tuple, output: Tensor) -> None:
        recorded.append(output)

    handle = layer.register_forward_hook(record)
    try:
        loss = rule.required_loss()(rule.net(x), y)
    finally:
        handle.remove()
    return torch.autograd.grad(loss, recorded[0])[0]
