"""Scores of weights: how much each is worth, bigger is kept.

scores = SNIP()(net, batches, loss_fn, names)       tensors of the parameters' shapes, by name

with g the gradient of the mean loss over all samples of the batches, g_b that of one batch, g_i of one sample:

Magnitude          |w|
Gradient           |g|                                                FreezeNet (Wimmer et al. 2020)
SNIP               |w g|, or the mean over batches of |w g_b|         Lee et al. 2019; Hayou et al. 2021
TaylorFirst        -w g, the first-order rise of the loss when w is set to 0; |w g|; or mean of (w g_b)^2
HessianDiagonal    h w^2 / 2 (- w g), h the diagonal of the Hessian or mean of g_i^2  LeCun et al. 1990
SynFlow            |w| dR/d|w|, R = 1^T f(1; |w|), without data       Tanaka et al. 2020
Random             uniform draws
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from neuropil.probes.curvature import fisher_diagonal, hessian_diagonal
from neuropil.structure.criterion import (
    DROPOUT,
    Batches,
    Criterion,
    LossFunction,
    Needs,
    Scores,
    as_batches,
    call,
    mean_gradients,
    mean_over_batches,
    required_loss,
    requiring_grad,
    undisturbed,
    weight_of,
)

__all__ = [
    "SNIP",
    "Batches",
    "Criterion",
    "Gradient",
    "HessianDiagonal",
    "LossFunction",
    "Magnitude",
    "Random",
    "Scores",
    "SynFlow",
    "TaylorFirst",
    "call",
    "undisturbed",
]


class Magnitude(Criterion):
    """|w| (Han et al. 2015)."""

    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """See `Criterion`."""
        return {name: weight_of(net, name).detach().abs() for name in names}


class Random(Criterion):
    """Uniform draws in [0, 1): what every criterion has to beat.

    Args:
        generator: source of the draws, on the CPU, so that every device gets the same; None is one of seed 0.
    """

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """See `Criterion`."""
        drawn = {}
        for name in names:
            weight = weight_of(net, name)
            # In float64: float32 has so few numbers that ties, which go by index, would be common.
            scores = torch.rand(weight.shape, generator=self.generator, dtype=torch.float64)
            drawn[name] = scores.to(weight.device)
        return drawn


class _FromGradients(Criterion):
    """A criterion that the mean gradient is enough for."""

    needs: Needs = "gradient"

    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """See `Criterion`."""
        weights = {name: weight_of(net, name).detach() for name in names}
        return self.from_gradients(weights, mean_gradients(net, batches, loss_fn, names, reader=repr(self)))


class Gradient(_FromGradients):
    """|g|: where the loss is steepest, whatever the weight (Wimmer, Mehnert & Condurache 2020)."""

    def from_gradients(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Scores:
        """See `Criterion`."""
        return {name: gradients[name].detach().abs() for name in weights}


class SNIP(_FromGradients):
    """|w g|: how sensitive the loss is to a factor on the weight.

    Args:
        absolute: "after" averaging over batches, |w mean(g_b)|: one pass over all samples (Lee et al. 2019); "before",
            mean |w g_b|: batches cannot cancel.

    Source: Lee, Ajanthan & Torr, ICLR 2019, eq. 5; "SBP" of Hayou et al., ICLR 2021.
    """

    def __init__(self, absolute: Literal["after", "before"] = "after"):
        if absolute not in ("after", "before"):
            raise ValueError(f'absolute must be "after" or "before", got {absolute!r}.')
        self.absolute = absolute

    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """See `Criterion`."""
        if self.absolute == "after":
            return super().scores(net, batches, loss_fn, names)
        return mean_over_batches(self.from_gradients, net, batches, loss_fn, names, repr(self))

    def from_gradients(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Scores:
        """See `Criterion`."""
        return {name: (weight.detach() * gradients[name].detach()).abs() for name, weight in weights.items()}


class TaylorFirst(_FromGradients):
    """The change of the loss to first order when a weight is set to 0.

    Args:
        form: "signed", -w g: weights whose removal lowers the loss go first; "absolute", |w g|: those that change it
            least; "square", mean over batches of (w g_b)^2 (Molchanov et al. 2019, eq. 8).

    Source: Molchanov, Mallya, Tyree, Frosio & Kautz, CVPR 2019.
    """

    def __init__(self, form: Literal["signed", "absolute", "square"] = "square"):
        if form not in ("signed", "absolute", "square"):
            raise ValueError(f'form must be "signed", "absolute" or "square", got {form!r}.')
        self.form = form

    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """See `Criterion`."""
        if self.form != "square":
            return super().scores(net, batches, loss_fn, names)
        return mean_over_batches(self.from_gradients, net, batches, loss_fn, names, repr(self))

    def from_gradients(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Scores:
        """See `Criterion`."""
        rise = {name: -weight.detach() * gradients[name].detach() for name, weight in weights.items()}
        if self.form == "signed":
            return rise
        return {name: change.abs() if self.form == "absolute" else change.square() for name, change in rise.items()}


class SynFlow(Criterion):
    """|w| dR/d|w|: the share of all paths from input to output that runs through a weight; no data are looked at.

    R = 1^T f(1; |w|) of a copy of the network in float64 (products over many layers leave float32's range), whose
    norms and dropout pass on what they get. Of the batches only the shape of the first x counts. One pass keeps whole
    layers alive only if pruning goes in many small rounds, each with new scores.

    Source: Tanaka, Kunin, Yamins & Ganguli, NeurIPS 2020, eq. 3 and algorithm 1.
    """

    needs: Needs = "outputs"

    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """See `Criterion`."""
        first = next(iter(as_batches(batches)), None)
        if first is None:
            raise ValueError("SynFlow needs one batch of (x, y) for the shape of x: there were none.")
        linear = _without_norms(copy.deepcopy(net).double())
        weights = {name: weight_of(linear, name) for name in names}
        with torch.no_grad():
            for parameter in linear.parameters():
                parameter.abs_().requires_grad_(True)
        with torch.enable_grad():
            output = call(linear, _ones(first[0]))
            output = getattr(output, "logits", output)
            if not isinstance(output, Tensor):
                raise TypeError(f"SynFlow needs a network that returns a tensor, got {type(output).__name__}.")
            flow = output.sum()
            if not flow.isfinite():
                raise ValueError(f"SynFlow: the flow through the network is {flow.item()}, beyond float64.")
            gradients = torch.autograd.grad(flow, list(weights.values()), allow_unused=True)
        return {
            name: torch.zeros_like(weight) if gradient is None else (weight * gradient).abs().detach()
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }


class HessianDiagonal(Criterion):
    """h w^2 / 2: the change of the loss to second order when a weight is set to 0, others held (LeCun et al. 1990).

    Args:
        method: how h is found. "hutchinson": mean over draws of z * (H z), z of +-1, whose mean is the diagonal of the
            Hessian, and which is exact in one draw where that is diagonal; may be negative. "fisher": mean over samples
            of the squared gradient of one sample's loss, the diagonal of the empirical Fisher matrix, with the network
            in evaluation mode (a batch norm has no gradient of one sample otherwise).
        samples: draws of z, each a pass over the batches; more is less noise.
        first_order: add -w g. Without it a score is right only where training has converged.
        generator: source of z, on the CPU; None is one of seed 0.

    Raises:
        ValueError: if the method is unknown, or samples is less than 1.

    Source: LeCun, Denker & Solla, NeurIPS 1990; the estimates are those of `neuropil.probes.curvature`.
    """

    needs: Needs = "curvature"

    def __init__(
        self,
        method: Literal["hutchinson", "fisher"] = "hutchinson",
        samples: int = 10,
        *,
        first_order: bool = False,
        generator: torch.Generator | None = None,
    ):
        if method not in ("hutchinson", "fisher"):
            raise ValueError(f'method must be "hutchinson" or "fisher", got {method!r}.')
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}.")
        self.method, self.samples, self.first_order = method, samples, first_order
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator

    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """See `Criterion`."""
        batches = list(as_batches(batches))  # looked at more than once
        if not batches:
            raise ValueError(f"{self!r} needs batches of (x, y): there were none.")
        loss_fn = required_loss(loss_fn, repr(self))
        weights = {name: weight_of(net, name) for name in names}
        fisher = self.method == "fisher"
        with undisturbed(net, evaluate=fisher), requiring_grad(weights.values()):
            if fisher:
                diagonal = fisher_diagonal(net, batches, loss_fn, fisher="empirical", params=names)
            else:
                found = {"samples": self.samples, "params": names, "generator": self.generator}
                diagonal = hessian_diagonal(net, batches, loss_fn, **found)
        scores = {name: diagonal[name] * weight.detach().square() / 2 for name, weight in weights.items()}
        if self.first_order:
            slope = mean_gradients(net, batches, loss_fn, names, reader=repr(self))
            scores = {name: score - weights[name].detach() * slope[name] for name, score in scores.items()}
        return scores


def _without_norms(net: nn.Module) -> nn.Module:
    """The network with identities in the place of norms and dropout."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, DROPOUT) or "norm" in type(child).__name__.lower():
                setattr(module, name, nn.Identity())
    return net


def _ones(x: Any) -> Any:
    """One sample of ones in the form of a batch."""
    if isinstance(x, Mapping):
        return {name: _ones(value) for name, value in x.items()}
    if isinstance(x, tuple | list):
        return tuple(_ones(value) for value in x)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"SynFlow feeds ones in the place of x, which must be floating-point, got {kind}.")
    return torch.ones_like(x[:1], dtype=torch.float64)
