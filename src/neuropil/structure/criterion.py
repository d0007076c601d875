"""What a criterion is, and how it looks at a network without disturbing it.

    scores = criterion(net, batches, loss_fn, names)       tensors of the parameters' shapes, by name, bigger is kept

A criterion leaves the network as it was: parameters, `.grad`, buffers and modes. While it looks, dropout is off, so
that nothing is drawn from the global random state; norms work in the mode they are in, and get their statistics back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from neuropil.structure.masks import prunable_parameters

__all__ = [
    "Batches",
    "Criterion",
    "LossFunction",
    "Needs",
    "Scores",
    "as_batches",
    "call",
    "checked_scores",
    "mean_gradients",
    "mean_over_batches",
    "required_loss",
    "requiring_grad",
    "samples",
    "undisturbed",
    "weight_of",
]

Batches = Iterable[Any]
"""Pairs (x, y), or one such pair; x is a tensor, a tuple of arguments, or a dict of keywords."""
LossFunction = Callable[[Any, Any], Tensor]
"""Mean-reduced loss of (output, y)."""
Scores = dict[str, Tensor]
Needs = Literal["weights", "gradient", "curvature", "outputs"]

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


class Criterion(ABC):
    """Gives scores to weights. Write your own by `needs` and `scores`.

    Attributes:
        needs: "weights": neither batches nor loss are looked at; "gradient": `from_gradients` can do with a gradient
            that is there already; "outputs" and "curvature": batches are always wanted.
    """

    needs: Needs = "weights"

    def __call__(
        self,
        net: nn.Module,
        batches: Batches = (),
        loss_fn: LossFunction | None = None,
        params: Sequence[str] | None = None,
    ) -> Scores:
        """Score the entries of parameters.

        Args:
            net: any module.
            batches: of (x, y); a criterion that needs only weights takes none.
            loss_fn: mean-reduced loss of (output, y), where one is needed.
            params: qualified names; None takes `prunable_parameters(net)`.

        Returns:
            Tensors of the parameters' shapes, bigger is kept, never NaN.

        Raises:
            ValueError: if the network has no such parameter, there are no batches or no loss where they are needed, or
                a score is NaN: the message names criterion and parameter.
        """
        names = prunable_parameters(net) if params is None else list(params)
        for name in names:
            weight_of(net, name)
        scores = self.scores(net, batches, loss_fn, names)
        return checked_scores(self, scores, {name: weight_of(net, name) for name in names})

    @abstractmethod
    def scores(self, net: nn.Module, batches: Batches, loss_fn: LossFunction | None, names: list[str]) -> Scores:
        """What the call returns, before it is checked."""

    def from_gradients(self, weights: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> Scores:
        """Scores from a mean gradient that is there already, as after `loss.backward()`.

        Raises:
            TypeError: if this criterion needs more than that.
        """
        raise TypeError(f"{type(self).__name__} needs {self.needs}: a gradient will not do.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def checked_scores(criterion: object, scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> Scores:
    """Scores of exactly these weights, in their order; what is missing, misshapen or NaN is refused by name."""
    name_of = type(criterion).__name__
    for name, weight in weights.items():
        if name not in scores:
            raise ValueError(f"{name_of} gave no scores for {name!r}.")
        if scores[name].shape != weight.shape:
            raise ValueError(f"{name_of} gave scores of shape {(*scores[name].shape,)} for {name!r}.")
        # A sum is NaN if an entry is, and is faster to have than a test of every entry.
        if bool(scores[name].sum().isnan()) and (unknown := int(scores[name].isnan().sum())):
            raise ValueError(f"{name_of} gave NaN for {unknown} of {weight.numel()} entries of {name!r}.")
    return {name: scores[name].detach() for name in weights}


def mean_gradients(
    net: nn.Module,
    batches: Batches,
    loss_fn: LossFunction | None,
    names: Sequence[str],
    *,
    reader: str = "The gradient",
) -> Scores:
    """Gradient of the mean loss over all samples of the batches; `.grad` is left alone.

    Args:
        net: any module; it is looked at as `undisturbed` says.
        batches: of (x, y), weighted by their numbers of samples.
        loss_fn: mean-reduced.
        names: of the parameters.
        reader: who asks, for messages.

    Raises:
        ValueError: if there are no batches, or no loss.
    """
    return mean_over_batches(lambda _, gradients: dict(gradients), net, batches, loss_fn, names, reader)


@contextmanager
def undisturbed(net: nn.Module, *, evaluate: bool = False) -> Iterator[None]:
    """Look at a network and leave buffers and modes as they were; dropout is off meanwhile.

    Args:
        net: any module.
        evaluate: the whole network in evaluation mode, not dropout alone.
    """
    modes = {module: module.training for module in net.modules()}
    buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
    for module in modes:
        if evaluate or isinstance(module, DROPOUT):
            module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


def as_batches(batches: Batches) -> Iterable[tuple[Any, Any]]:
    """Batches as they are; a single pair of tensors becomes one batch."""
    if isinstance(batches, tuple | list) and len(batches) == 2 and isinstance(batches[1], Tensor):
        return [(batches[0], batches[1])]
    return batches


def call(net: nn.Module, x: Any) -> Any:
    """The network's output for one tensor, a tuple of arguments, or a dict of keywords."""
    if isinstance(x, Mapping):
        return net(**x)
    return net(*x) if isinstance(x, tuple | list) else net(x)


def samples(y: Any, x: Any) -> int:
    """Number of samples in a batch: of its targets, else of its first input."""
    for leaf in tree_leaves((y, x)):
        if isinstance(leaf, Tensor) and leaf.ndim:
            return len(leaf)
    return 1


def required_loss(loss_fn: LossFunction | None, reader: str) -> LossFunction:
    """The loss, or an error that says who wants it."""
    if loss_fn is None:
        raise ValueError(f"{reader} needs a loss: loss_fn is None.")
    return loss_fn


def mean_over_batches(
    change: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Scores],
    net: nn.Module,
    batches: Batches,
    loss_fn: LossFunction | None,
    names: Sequence[str],
    reader: str,
) -> Scores:
    """Mean over samples of what `change` makes of weights and the gradient of one batch.

    Args:
        change: (weights, gradients of one batch's mean loss) -> tensors by name.
        net: any module; it is looked at as `undisturbed` says.
        batches: of (x, y), weighted by their numbers of samples.
        loss_fn: mean-reduced.
        names: of the parameters.
        reader: who asks, for messages.

    Raises:
        ValueError: if there are no batches, or no loss.
    """
    loss_fn = required_loss(loss_fn, reader)
    weights = {name: weight_of(net, name) for name in names}
    sums: Scores = {}
    seen = 0
    with undisturbed(net), torch.enable_grad(), requiring_grad(weights.values()):
        for x, y in as_batches(batches):
            count = samples(y, x)
            loss = loss_fn(call(net, x), y)
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            given = {
                name: torch.zeros_like(weight) if gradient is None else gradient
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
            seen += count
            for name, value in change(weights, given).items():
                # A running mean: a sum over many batches would round half precision away.
                part = value.detach().to(torch.promote_types(value.dtype, torch.float32))
                sums[name] = sums[name] + (part - sums[name]) * (count / seen) if name in sums else part.clone()
    if not seen:
        raise ValueError(f"{reader} needs batches of (x, y): there were none.")
    return sums


@contextmanager
def requiring_grad(weights: Iterable[Tensor]) -> Iterator[None]:
    """Frozen parameters can be scored too."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def weight_of(net: nn.Module, name: str) -> nn.Parameter:
    """A parameter by its qualified name; ValueError if there is none."""
    try:
        return net.get_parameter(name)
    except AttributeError as error:
        raise ValueError(f"The network has no parameter {name!r}.") from error
