"""Zero-cost proxies: numbers of an untrained network and one batch that may tell how good it will become.

With g the gradient of the mean loss, w the weights (those that pruning counts: no biases, no norms), B samples:

    grad_norm   sum over parameters of |g|_2
    snip        sum |w g|                                                  Lee et al. 2019
    synflow     sum |w dR/dw|, R = 1^T f(1; |w|), without data             Tanaka et al. 2020
    fisher      sum over units of mean_b (sum over positions of a g_b)^2 / 2    Turner et al. 2020
    jacob_cov   - sum_i ( log(s_i + k) + 1 / (s_i + k) ),  s the eigenvalues of the correlations between the samples'
                gradients of sum(logits) by the input, k = 1e-5            Mellor et al. 2020
    naswot      log det (K + 1e-6 I),  K_ij = units - Hamming distance of codes i and j     Mellor et al. 2021
    params      number of parameters
    macs        multiply-accumulates of one sample

params and macs need no thought, and are hard to beat: they belong in every comparison.

Source: White et al. 2023 (arXiv 2301.08727), section 5.2; Abdelfattah et al., ICLR 2021 (arXiv 2101.08134).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.structure.criteria import SNIP, SynFlow
from neuropil.structure.criterion import LossFunction, mean_gradients, undisturbed
from neuropil.structure.masks import prunable_parameters
from neuropil.structure.profile import count_macs

__all__ = ["ACTIVATIONS", "PROXIES", "zero_cost"]

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid)
"""Modules whose input's sign is a unit's bit in `naswot`; with ReLU it says whether the unit is on."""

UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
KEPT_APART, JITTER = 1e-5, 1e-6

Proxy = Callable[[nn.Module, Tensor, Tensor, LossFunction], float]


def zero_cost(
    net: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss_fn: LossFunction,
    kinds: Sequence[str] = ("grad_norm", "snip", "synflow", "fisher", "jacob_cov", "naswot", "params", "macs"),
) -> dict[str, float]:
    """Score an untrained network on one batch; a higher score promises a better network.

    The network is left as it was. It is looked at in evaluation mode, so that samples do not mix in norms; only
    grad_norm and snip see it in the mode in which it comes.

    Args:
        net: module of one tensor that returns logits, (batch, classes).
        batch: inputs (batch, ...) and targets.
        loss_fn: mean-reduced loss of (logits, targets).
        kinds: names of proxies.

    Returns:
        Scores by name, finite.

    Raises:
        ValueError: if a kind is unknown, the batch has fewer than two samples, the network has no weights, or a score
            is not finite: it is named.

    Source: see the head of this module.
    """
    unknown = [kind for kind in kinds if kind not in PROXIES]
    if unknown:
        raise ValueError(f"kinds {unknown} are unknown; there are {list(PROXIES)}.")
    x, y = batch
    if len(x) < 2 or len(x) != len(y):
        raise ValueError(f"A batch of two samples or more wanted, got {len(x)} inputs and {len(y)} targets.")
    scores = {kind: float(PROXIES[kind](net, x, y, loss_fn)) for kind in kinds}
    bad = {kind: score for kind, score in scores.items() if not math.isfinite(score)}
    if bad:
        raise ValueError(f"Scores that are not finite: {bad}.")
    return scores


def grad_norm(net: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> float:
    """Norms of the gradients, summed over the parameters."""
    gradients = mean_gradients(net, [(x, y)], loss_fn, _weights(net), reader="grad_norm")
    return sum(float(gradient.double().norm()) for gradient in gradients.values())


def snip(net: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> float:
    """How much the loss hears of a factor on each weight."""
    return _total(SNIP()(net, [(x, y)], loss_fn, _weights(net)))


def synflow(net: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> float:
    """Paths through every weight, in float64."""
    return _total(SynFlow()(net, [(x, y)], loss_fn, _weights(net)))


def fisher(net: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> float:
    """Fisher information of a gate on every unit of the linear maps and convolutions."""
    outputs: list[Tensor] = []
    axes: list[int] = []  # of the units

    def keep(module: nn.Module, _: tuple, output: Tensor) -> None:
        if output.requires_grad:
            outputs.append(output)
            axes.append(-1 if isinstance(module, nn.Linear) else 1)

    with undisturbed(net, evaluate=True), torch.enable_grad(), _hooked(net, UNITS, keep):
        # By the input too: the first outputs are in the graph even where the parameters are frozen.
        loss = loss_fn(net(x.detach().clone().requires_grad_(x.is_floating_point())), y) * len(x)
        gradients = torch.autograd.grad(loss, outputs, allow_unused=True)
    total = 0.0
    for output, gradient, axis in zip(outputs, gradients, axes, strict=True):
        if gradient is not None:
            by_position = (output.detach() * gradient).double().movedim(axis, -1)
            gate = by_position.reshape(len(x), -1, by_position.shape[-1]).sum(1)
            total += float(gate.square().mean(0).sum()) / 2
    return total


def jacob_cov(net: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> float:
    """How differently the network bends around different samples."""
    with undisturbed(net, evaluate=True), torch.enable_grad():
        inputs = x.detach().clone().requires_grad_(True)
        (jacobian,) = torch.autograd.grad(net(inputs).sum(), inputs, allow_unused=True)
    jacobian = torch.zeros_like(x) if jacobian is None else jacobian
    eigenvalues = torch.linalg.eigvalsh(correlations(jacobian.flatten(1).double())).clamp(min=0) + KEPT_APART
    return -float((eigenvalues.log() + 1 / eigenvalues).sum())


def correlations(rows: Float[Tensor, "samples features"]) -> Float[Tensor, "samples samples"]:
    """Correlations between rows; a row without variance tells nothing of its own, and counts as like every other."""
    centred = rows - rows.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    # Against the size of the row itself: equal numbers leave rounding, no variance.
    flat = norms <= 1e-12 * rows.norm(dim=1)
    unit = centred / norms.masked_fill(flat, 1.0)[:, None]
    return (unit @ unit.T).masked_fill(flat[:, None] | flat, 1.0)


def naswot(net: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> float:
    """How well the signs of the pre-activations tell samples apart; without activations nothing does."""
    codes: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        codes.append((inputs[0].detach() > 0).flatten(1).double())

    with undisturbed(net, evaluate=True), torch.no_grad(), _hooked(net, ACTIVATIONS, keep):
        net(x)
    kernel = JITTER * torch.eye(len(x), dtype=torch.float64, device=x.device)
    for code in codes:
        kernel = kernel + code @ code.T + (1 - code) @ (1 - code).T
    return float(torch.linalg.slogdet(kernel).logabsdet)


def params(net: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> float:
    """Number of parameters."""
    return float(sum(parameter.numel() for parameter in net.parameters()))


def macs(net: nn.Module, x: Tensor, y: Tensor, loss_fn: LossFunction) -> float:
    """Multiply-accumulates of one sample."""
    return float(count_macs(net, x)[0].get("", 0))


PROXIES: Mapping[str, Proxy] = MappingProxyType(
    {
        "grad_norm": grad_norm,
        "snip": snip,
        "synflow": synflow,
        "fisher": fisher,
        "jacob_cov": jacob_cov,
        "naswot": naswot,
        "params": params,
        "macs": macs,
    }
)
"""Proxies by name: functions of (net, inputs, targets, loss)."""


def _weights(net: nn.Module) -> list[str]:
    names = prunable_parameters(net)
    if not names:
        raise ValueError("The network has no weights to look at.")
    return names


def _total(scores: Mapping[str, Tensor]) -> float:
    return sum(float(score.double().sum()) for score in scores.values())


@contextmanager
def _hooked(net: nn.Module, kinds: tuple[type[nn.Module], ...], hook: Callable) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module in net.modules() if isinstance(module, kinds)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
