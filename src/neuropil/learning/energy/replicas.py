"""Many small nets at once: replicas of one chain that differ in weights, samples and rates, in batched matrix products.

A study of rates and seeds is bound by the overhead of small operations; stacked, all its runs take hardly longer than
one. Replicas never interact: one that diverges fills its own slices with NaN, and is counted as chance.

    rule.teach(replicas, x, y)      yields gradients, as the packets of the rule of the same name do, each replica's own
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from neuropil.learning.energy.chain import Layer, LinearChain, read_chain
from neuropil.learning.energy.energies import one_hot_like
from neuropil.learning.energy.proximal import target_share
from neuropil.learning.energy.relaxation import advance
from neuropil.learning.stages import Stages

__all__ = [
    "Backpropagating",
    "Incremental",
    "Inferring",
    "ReplicaRule",
    "Replicas",
    "StackedAdam",
    "StackedSGD",
    "single_steps_of",
]

Rate = float | Float[Tensor, " replicas"]
BETAS = (0.9, 0.999)
TINY = 1e-8


class Replicas:
    """Copies of one chain of Linear layers and activations.

    Args:
        nets: one a replica, all of one architecture; they are copied, not trained.
        cut: as `Stages` has it.
        loss: energy of the output.

    Attributes:
        chain: with weights (replicas, out, in).

    Raises:
        ValueError: if there are no nets, or they are no chains of one shape.
    """

    def __init__(
        self,
        nets: Sequence[nn.Module],
        *,
        cut: str = "preactivation",
        loss: str = "cross_entropy",
    ):
        if not nets:
            raise ValueError("nets is empty: there is nothing to stack.")
        if loss not in ("cross_entropy", "squared"):
            raise ValueError(f'loss must be "cross_entropy" or "squared", got {loss!r}.')
        probe = next(nets[0].parameters())
        chains = [read_chain(Stages(net, cut=cut), probe.new_zeros(1, probe.shape[-1])) for net in nets]
        layers = [chain.layers for chain in chains if chain is not None]
        if len({tuple(tuple(t.shape) for layer in own for t in layer.tensors) for own in layers}) != 1 or len(
            layers
        ) < len(nets):
            raise ValueError("Replicas are Sequentials of Linear layers and activations, all of one shape.")
        self.chain = LinearChain([_stack(group) for group in zip(*layers, strict=True)])
        self.loss = loss

    def __len__(self) -> int:
        """Number of replicas."""
        return len(self.chain.layers[0].weight)

    @property
    def parameters(self) -> list[Tensor]:
        """Weights and biases from the input to the output, (replicas, ...)."""
        return [tensor for layer in self.chain.layers for tensor in layer.tensors]

    def error(self, prediction: Float[Tensor, "replicas batch classes"], target: Tensor) -> Tensor:
        """Error at the output: target - softmax(prediction), or target - prediction."""
        return target - (prediction.softmax(-1) if self.loss == "cross_entropy" else prediction)

    def learn(
        self,
        x: Float[Tensor, "replicas batch features"],
        y: Int[Tensor, "replicas batch"],
        rule: "ReplicaRule",
        optimizer: "StackedSGD | StackedAdam",
    ) -> None:
        """Learn from one batch a replica.

        Args:
            x: samples.
            y: their classes.
            rule: makes gradients.
            optimizer: steps on each.
        """
        for gradients in rule.teach(self, x, y):
            optimizer.step(self.parameters, gradients)

    def outputs(self, x: Float[Tensor, "*replicas samples features"]) -> Float[Tensor, "replicas samples classes"]:
        """Outputs on samples of each replica's own, or on the same for all."""
        return self.chain.start(x.expand(len(self), -1, -1) if x.dim() == 2 else x)[-1]

    def accuracies(
        self, x: Float[Tensor, "*replicas samples features"], y: Int64[Tensor, "*replicas samples"]
    ) -> Float[Tensor, " replicas"]:
        """Fraction of right answers of each replica; chance for one whose outputs are no longer finite."""
        outputs = self.outputs(x)
        right = (outputs.argmax(-1) == y).to(outputs.dtype).mean(-1)
        return torch.where(torch.isfinite(outputs).all(-1).all(-1), right, 1.0 / outputs.shape[-1])


@runtime_checkable
class ReplicaRule(Protocol):
    """Makes gradients for replicas."""

    def teach(self, replicas: Replicas, x: Tensor, y: Tensor) -> Iterator[list[Tensor]]:
        """Yield gradients of all parameters, once or at every step."""
        ...


@dataclass(frozen=True)
class Backpropagating:
    """Backpropagation; with `alpha` towards the proximal target, each layer's gradient normalised (BP-prox).

    Attributes:
        alpha: size of the proximal step, None for the plain gradient.
        eps: damping of the normalised step.
    """

    alpha: Rate | None = None
    eps: float = 0.25

    def teach(self, replicas: Replicas, x: Tensor, y: Tensor) -> Iterator[list[Tensor]]:
        """Yield gradients of all parameters, once."""
        chain = replicas.chain
        output = chain.start(x)[-1]
        error = replicas.error(output, one_hot_like(output, y))
        if self.alpha is not None:
            error = error * target_share(_axes(self.alpha, error), _axes(chain.norms()[-1][1] + self.eps, error))
        _, gradients = chain.backpropagate(error)
        yield gradients if self.alpha is None else _normalised(chain, gradients, self.eps)


@dataclass(frozen=True)
class Inferring:
    """Predictive coding, or inference learning with proximal steps (`alpha` given).

    Attributes:
        steps: of inference.
        own: rate on a stage's own error.
        above: rate on what the stage above sends.
        alpha: size of the proximal step, None for the plain gradient.
        eps: damping of the normalised step.
    """

    steps: int
    own: Rate
    above: Rate
    alpha: Rate | None = None
    eps: float = 0.25

    def teach(self, replicas: Replicas, x: Tensor, y: Tensor) -> Iterator[list[Tensor]]:
        """Yield gradients of all parameters, once."""
        chain = replicas.chain
        predictions = chain.start(x)
        activities, target = predictions[:-1], one_hot_like(predictions[-1], y)
        own, above = _axes(self.own, x), _axes(self.above, x)
        errors = self._errors(replicas, activities, predictions, target)
        for _ in range(self.steps):
            activities = advance(activities, errors, chain.pull(errors), own, above)
            errors = self._errors(replicas, activities, chain.predict(activities), target)
        _, gradients = chain.gradients(errors)
        yield gradients if self.alpha is None else _normalised(chain, gradients, self.eps)

    def _errors(
        self, replicas: Replicas, activities: list[Tensor], predictions: list[Tensor], target: Tensor
    ) -> list[Tensor]:
        error = replicas.error(predictions[-1], target)
        if self.alpha is not None:
            norm = replicas.chain.norms()[-1][1] + self.eps
            error = error * target_share(_axes(self.alpha, error), _axes(norm, error))
        return [*(h - p for h, p in zip(activities, predictions[:-1], strict=True)), error]


@dataclass(frozen=True)
class Incremental:
    """Incremental predictive coding: gradients at every step, from the evaluation that moves the activities.

    Attributes:
        steps: a batch.
        rate: of the activities.
    """

    steps: int
    rate: Rate

    def teach(self, replicas: Replicas, x: Tensor, y: Tensor) -> Iterator[list[Tensor]]:
        """Yield gradients of all parameters, `steps` times; the weights may move between."""
        chain, rate = replicas.chain, _axes(self.rate, x)
        predictions = chain.start(x)
        activities, target = predictions[:-1], one_hot_like(predictions[-1], y)
        for step in range(self.steps):
            if step:
                predictions = chain.predict(activities, moved=True)
            errors = [h - p for h, p in zip(activities, predictions[:-1], strict=True)]
            errors.append(replicas.error(predictions[-1], target))
            pulled, (_, gradients) = chain.pull_and_gradients(errors)
            yield gradients
            activities = advance(activities, errors, pulled, rate, rate)


@dataclass(frozen=True)
class StackedSGD:
    """Gradient descent with a rate for each replica."""

    rate: Rate

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move the parameters."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.addcmul_(gradient, _axes(self.rate, parameter), value=-1)


class StackedAdam:
    """Adam (Kingma & Ba 2015, torch's form) with a rate for each replica.

    Args:
        rate: one number, or one a replica.
    """

    def __init__(self, rate: Rate):
        self.rate = rate
        self._count = 0
        self._moments: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def step(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Move the parameters."""
        if not self._moments:
            self._moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        self._count += 1
        first, second = (1 - beta**self._count for beta in BETAS)
        for parameter, gradient, (mean, square) in zip(parameters, gradients, self._moments, strict=True):
            mean.lerp_(gradient, 1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            direction = mean / square.sqrt().div_(second**0.5).add_(TINY)
            parameter.addcmul_(direction, _axes(self.rate, parameter), value=-1 / first)


def single_steps_of(
    net: nn.Module, rule: ReplicaRule, x: Float[Tensor, "samples features"], y: Int[Tensor, " samples"]
) -> Float[Tensor, "samples parameters"]:
    """The step that a rule would take from each sample on its own, at rate 1: a replica a sample.

    Args:
        net: a chain; it stays as it is.
        rule: yields gradients once; rates with an axis have one entry a sample.
        x: samples.
        y: their classes.

    Returns:
        Minus the gradients, flat, in the order of the parameters.
    """
    gradients = next(iter(rule.teach(Replicas([net] * len(x)), x[:, None], y[:, None])))
    return -torch.cat([gradient.flatten(1) for gradient in gradients], 1)


def _stack(layers: Sequence[Layer]) -> Layer:
    weight = torch.stack([layer.weight.detach() for layer in layers])
    biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
    return Layer(weight, torch.stack(biases) if biases else None, layers[0].before, layers[0].after)


def _axes(rate: Rate, like: Tensor) -> Tensor:
    """A rate with as many axes as a tensor (replicas, ...)."""
    rates = torch.as_tensor(rate, dtype=like.dtype, device=like.device)
    return rates if rates.dim() == 0 else rates.view(-1, *[1] * (like.dim() - 1))


def _normalised(chain: LinearChain, gradients: list[Tensor], eps: float) -> list[Tensor]:
    norms = [norm + eps for tensors, norm in chain.norms() for _ in tensors]
    return [gradient / _axes(norm, gradient) for gradient, norm in zip(gradients, norms, strict=True)]
