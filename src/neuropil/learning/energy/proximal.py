"""Inference learning with proximal steps: predictive coding that comes close to implicit gradient descent.

Implicit SGD takes the step  theta' = argmin L(theta') + ||theta' - theta||^2 / (2 alpha).  For stages that are a linear
map of f(h), p = W f(h) + b, the smallest weight change that makes a stage say h instead of p at one sample is the
normalised step

    dW = e f(h)^T / (||f(h)||^2 + 1 + eps),   e = h - p                     (1 for the bias; mean over a batch)

so if the activities minimise, the output h_N among them,

    G(h) = L(h_N, y) + sum_l ||h_{l+1} - p_{l+1}||^2 / (2 alpha (||f(h_l)||^2 + 1))

these steps with eps = 0 ARE the implicit step of that sample. The paper's short inference comes close: it relaxes as
predictive coding does, and alpha enters through the output's target alone, with n = ||f(h_{N-1})||^2 + 1 + eps,

    y^ = q + (y - q) n alpha / (1 + n alpha)              q prediction of the output, e.g. softmax(p_N)

Source: Alonso, Millidge, Krichmar & Neftci, NeurIPS 2022 (IL-prox); the exact statement with G is derived here.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.learning.energy.chain import read_chain
from neuropil.learning.energy.circuit import Circuit, CutCircuit, is_linear_map
from neuropil.learning.energy.energies import Clamp
from neuropil.learning.energy.implicit import minimise_proximal
from neuropil.learning.energy.predictive import PredictiveCoding
from neuropil.learning.energy.relaxation import Evaluate, energies
from neuropil.learning.rule import Loss, Packet
from neuropil.learning.stages import Inputs

__all__ = ["InferenceLearning", "output_target", "target_share"]


def target_share(alpha: float | Tensor, norm: float | Tensor) -> Any:
    """How far the output's target lies on the way from prediction to label: n alpha / (1 + n alpha), below 1."""
    return norm * alpha / (1 + norm * alpha)


def output_target(
    prediction: Float[Tensor, "batch *units"],
    y: Float[Tensor, "batch *targets"],
    alpha: float,
    norm: float | Float[Tensor, ""],
) -> Float[Tensor, "batch *units"]:
    """The target at which a proximal step of size alpha aims.

    Args:
        prediction: of the output, in the space of the target: softmax(p_N) for class probabilities.
        y: target.
        alpha: step size; large values aim at y itself.
        norm: mean squared norm of the last layer's input, plus 1 for its bias, plus eps.

    Raises:
        ValueError: if alpha or the norm is not positive, or the shapes differ.

    Source: Alonso et al., NeurIPS 2022, IL-prox.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be positive, got {alpha}.")
    if not float(norm) > 0:
        raise ValueError(f"norm must be positive, got {float(norm)}.")
    if prediction.shape != y.shape:
        raise ValueError(f"y has shape {tuple(y.shape)}, the prediction {tuple(prediction.shape)}.")
    return torch.lerp(prediction, y.to(prediction), target_share(alpha, float(norm)))


class InferenceLearning(PredictiveCoding):
    """Inference learning: plain (IL-SGD, IL-Adam by the optimizer) or with proximal steps (IL-prox).

    With `proximal`, `.grad` is the whole step with its sign turned: step it by `SGD(lr=1)`, or let `learn(x, y)` do it.

    Args:
        net: any module that `Stages` can cut; with `proximal` one whose stages are one Linear layer or plain
            convolution each, with any activations (norms and gains have no normalised step).
        loss_fn: mean-reduced loss of (output, target).
        points: where to cut, as `Stages` has it.
        cut: for a Sequential: "preactivation" predicts W f(h), as the paper does, "activation" f(W h).
        steps: of inference; of the minimiser where `inference` is "exact".
        rate_own: how fast an activity follows its own error; 0 in the paper's fast variant (12 steps, rate_above .025).
        rate_above: how fast it follows what the stage above sends.
        decay: fraction by which activities shrink a step.
        proximal: whether steps are normalised and aim at `output_target`.
        alpha: size of the proximal step.
        eps: damping of the normalised step.
        inference: "short" as in the paper, or "exact": minimise G (L-BFGS) over all activities, sample by sample; then
            with eps = 0 the step is the implicit step of each sample (their mean over a batch). For chains of Linear
            layers cut at "preactivation".
        guard: as in `PredictiveCoding`; proximal inference has no energy to watch, and reports divergence as an error.

    Raises:
        TypeError: if `proximal` meets weights that are no linear map, by name.
        ValueError: if alpha <= 0, eps < 0 or another argument is out of range; if a proximal step is to go through an
            optimizer with momentum; if "exact" meets a net that is no chain.
        FloatingPointError: if inference diverges, with the step and the stage.

    Source: Alonso, Millidge, Krichmar & Neftci, NeurIPS 2022.
    """

    def __init__(
        self,
        net: nn.Module,
        loss_fn: Loss | None = None,
        *,
        points: Sequence[str] | str | None = None,
        cut: str = "preactivation",
        steps: int = 25,
        rate_own: float = 0.015,
        rate_above: float = 0.015,
        decay: float = 0.0,
        proximal: bool = True,
        alpha: float = 1.0,
        eps: float = 0.25,
        inference: str = "short",
        guard: bool = True,
    ):
        super().__init__(
            net,
            loss_fn,
            points=points,
            cut=cut,
            steps=steps,
            rate_own=rate_own,
            rate_above=rate_above,
            decay=decay,
            guard=guard and not proximal,
        )
        if not 0 < alpha < float("inf"):
            raise ValueError(f"alpha must be positive and finite, got {alpha}.")
        if not 0 <= eps < float("inf"):
            raise ValueError(f"eps must be at least 0 and finite, got {eps}.")
        if inference not in ("short", "exact"):
            raise ValueError(f'inference must be "short" or "exact", got {inference!r}.')
        if inference == "exact" and not proximal:
            raise ValueError('inference="exact" is the proximal step: it needs proximal=True.')
        if proximal:
            _require_linear_maps(self)
        self.proximal, self.alpha, self.eps = proximal, alpha, eps
        self.exact = inference == "exact"

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: the parameters themselves with their gradients; the loss is that of the feed-forward pass."""
        if not self.exact:
            yield from super().packets(x, y)
            return
        chain = read_chain(self.stages, x)
        if chain is None or any(layer.after is not None for layer in chain.layers):
            raise ValueError(
                'inference="exact" needs a Sequential of Linear layers and activations, cut="preactivation", without '
                'an activation at the end: use inference="short".'
            )
        loss, parameters, gradients = minimise_proximal(
            chain, x, self.required_loss(), self.required_target(y), self.alpha, self.eps, self.inference.steps
        )
        yield Packet(parameters, gradients, loss)

    def learn(self, x: Inputs, y: Tensor | None, optimizer: Optimizer | None = None) -> Tensor:
        """Learn from one batch.

        Args:
            x: inputs, (batch, ...).
            y: targets, (batch, ...).
            optimizer: None takes the proximal step itself; with `proximal` an SGD without momentum, whose rate scales
                the step (1 is the whole).

        Returns:
            The loss of the feed-forward pass.

        Raises:
            ValueError: if the optimizer is missing or not the right one.
        """
        if optimizer is None:
            if not self.proximal:
                raise ValueError("Without proximal steps, learn needs an optimizer.")
            optimizer = torch.optim.SGD(self.net.parameters(), lr=1.0)
        elif self.proximal and not _plain_sgd(optimizer):
            raise ValueError(
                f"A proximal step is a whole step: {type(optimizer).__name__} with momentum or adaptive rates would "
                "distort it. Use torch.optim.SGD(lr=1), or no optimizer."
            )
        return super().learn(x, y, optimizer)

    def _circuit(self, x: Inputs) -> Circuit:
        chain = read_chain(self.stages, x)
        return CutCircuit(self.stages, measure=self.proximal) if chain is None else chain

    def _evaluate(self, circuit: Circuit, at: Clamp) -> Evaluate:
        if not self.proximal:
            return super()._evaluate(circuit, at)

        def evaluate(activities: list[Tensor], predictions: list[Tensor]) -> tuple[list[Tensor], Tensor]:
            norms = circuit.norms()
            if len(norms) != len(predictions):
                raise ValueError(
                    f"The net has {len(norms)} weight layers in {len(predictions)} stages: proximal steps need a cut "
                    "between any two. Name the points, or use proximal=False."
                )
            loss, error = at(predictions[-1])
            errors = [h - p for h, p in zip(activities, predictions[:-1], strict=True)]
            errors.append(error * target_share(self.alpha, norms[-1][1] + self.eps))
            return errors, energies(errors, loss)

        return evaluate

    def _finished(self, circuit: Circuit, parameters: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        if not self.proximal:
            return gradients
        norms = {id(tensor): norm + self.eps for tensors, norm in circuit.norms() for tensor in tensors}
        return [gradient / norms[id(parameter)] for parameter, gradient in zip(parameters, gradients, strict=True)]


def _require_linear_maps(rule: PredictiveCoding) -> None:
    for name, module in rule.net.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not is_linear_map(module):
            raise TypeError(
                f"InferenceLearning has no proximal step for {name!r} ({type(module).__name__}): only Linear layers "
                "and plain convolutions have one. Use proximal=False."
            )


def _plain_sgd(optimizer: Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.SGD) and all(group["momentum"] == 0 for group in optimizer.param_groups)
