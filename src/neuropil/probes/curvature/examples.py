"""Gradients of each example apart, and what is made of them: the diagonal of the Fisher information.

The squares of per-example gradients are averaged, not the square of the batch's gradient: E[g^2], not E[g]^2, which is
smaller by about the size of the batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from neuropil.probes.curvature.inputs import Batches, Loss, as_batches, call, chosen, drawing, quiet
from neuropil.probes.curvature.likelihood import Likelihood, output_gradients, output_roots, sample_targets

__all__ = ["Fisher", "fisher_diagonal", "per_example_gradients"]

Fisher = Literal["sampled", "empirical", "exact"]


def refuse_batch_statistics(net: nn.Module) -> None:
    """Refuse a network in which examples see each other.

    Raises:
        ValueError: if a batch normalisation is in training mode.
    """
    for name, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            raise ValueError(
                f"{name or 'net'} normalises over the batch, so no example has a gradient of its own: call net.eval()."
            )


def rows(x: Any, where: slice, axis: int = 0) -> Any:
    """Some examples of an input: a tensor, a tuple or a dict of tensors, cut along an axis."""
    if isinstance(x, Tensor):
        return x.narrow(axis, where.start, where.stop - where.start)
    if isinstance(x, dict):
        return {key: rows(value, where, axis) for key, value in x.items()}
    if isinstance(x, tuple):
        return tuple(rows(value, where, axis) for value in x)
    return x


def per_example(
    function: Callable[[dict[str, Tensor], Any, Any], Tensor],
    values: dict[str, Tensor],
    x: Any,
    extra: Tensor,
    *,
    axis: int = 0,
    vectorize: bool = True,
) -> dict[str, Tensor]:
    """Jacobians of what a function returns for each example apart.

    Args:
        function: of (parameters, input of one example with its axis kept, extra of it) -> (outputs,).
        values: parameters by name.
        x: input of all examples.
        extra: what else each example has, examples on the first axis.
        axis: of x, that counts examples.
        vectorize: by torch.func, all at once; False: one example and output at a time, for modules that torch.func
            cannot follow.

    Returns:
        By name, (examples, outputs, *shape).
    """
    if vectorize:

        def one(x: Any, extra: Tensor) -> dict[str, Tensor]:
            inputs = _mapped(x, lambda value: value.unsqueeze(axis))
            return torch.func.jacrev(function)(values, inputs, extra[None])

        # Draws are refused: a dropout in training mode was refused before, another module's would be one draw for all.
        return vmap(one, in_dims=(axis, 0))(x, extra)
    found: dict[str, list[Tensor]] = {name: [] for name in values}
    for index in range(len(extra)):
        here = slice(index, index + 1)
        output = function(values, rows(x, here, axis), extra[here])
        slopes: dict[str, list[Tensor]] = {name: [] for name in values}
        for number in output:
            gradients = torch.autograd.grad(number, list(values.values()), retain_graph=True, allow_unused=True)
            for (name, value), gradient in zip(values.items(), gradients, strict=True):
                slopes[name].append(torch.zeros_like(value) if gradient is None else gradient)
        for name, pieces in slopes.items():
            found[name].append(torch.stack(pieces))
    return {name: torch.stack(pieces) for name, pieces in found.items()}


def _mapped(x: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(x, Tensor):
        return function(x)
    if isinstance(x, dict):
        return {key: _mapped(value, function) for key, value in x.items()}
    return tuple(_mapped(value, function) for value in x)


def count(x: Any, axis: int = 0) -> int:
    """How many examples an input has."""
    while not isinstance(x, Tensor):
        x = next(iter(x.values() if isinstance(x, dict) else x))
    return x.shape[axis]


def _chunks(examples: int, chunk: int) -> Iterator[slice]:
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    return (slice(start, min(start + chunk, examples)) for start in range(0, examples, chunk))


def per_example_gradients(
    net: nn.Module,
    x: Any,
    y: Tensor,
    loss_fn: Loss,
    *,
    params: Sequence[str] | None = None,
    chunk: int = 64,
    vectorize: bool = True,
) -> dict[str, Tensor]:
    """Gradient of each example's own loss.

    Args:
        net: any module that treats examples apart and returns one tensor.
        x: inputs, examples on the first axis: a tensor, a tuple of arguments or a dict of keywords.
        y: targets, examples on the first axis.
        loss_fn: mean-reduced loss of (output, target); of an example, it is the loss of a batch of one.
        params: qualified names; None: all that require a gradient.
        chunk: examples at once: what bounds the memory beyond the result.
        vectorize: False goes through examples one by one, for modules that torch.func cannot follow.

    Returns:
        By name, (examples, *shape).

    Raises:
        ValueError: if the network normalises over the batch or draws, if x and y differ in length, or chunk is less
            than 1.
    """
    found: dict[str, list[Tensor]] = {}
    for part in _gradients(net, x, y, loss_fn, params, chunk, vectorize):
        for name, gradient in part.items():
            found.setdefault(name, []).append(gradient)
    return {name: torch.cat(pieces) for name, pieces in found.items()}


def _gradients(
    net: nn.Module,
    x: Any,
    y: Tensor,
    loss_fn: Loss,
    params: Sequence[str] | None,
    chunk: int,
    vectorize: bool,
) -> Iterator[dict[str, Tensor]]:
    """Per-example gradients, chunk by chunk."""
    refuse_batch_statistics(net)
    values: dict[str, Tensor] = dict(chosen(net, params))
    if count(x) != len(y):
        raise ValueError(f"x has {count(x)} examples, y {len(y)}.")

    def loss(values: dict[str, Tensor], x: Any, y: Tensor) -> Tensor:
        return loss_fn(call(lambda *a, **k: functional_call(net, values, a, k), x), y)[None]

    with quiet(net):
        for here in _chunks(len(y), chunk):
            jacobian = per_example(loss, values, rows(x, here), y[here], vectorize=vectorize)
            yield {name: gradient[:, 0].detach() for name, gradient in jacobian.items()}


def fisher_diagonal(
    net: nn.Module,
    batches: Batches,
    loss_fn: Loss | None = None,
    *,
    fisher: Fisher = "sampled",
    likelihood: Likelihood = "categorical",
    samples: int = 1,
    params: Sequence[str] | None = None,
    chunk: int = 64,
    vectorize: bool = True,
    generator: torch.Generator | None = None,
) -> dict[str, Float[Tensor, "*shape"]]:
    """Diagonal of the Fisher information, averaged over examples.

    The true one takes targets from the model: drawn ("sampled") or all of them, weighted ("exact", one pass back per
    output). The "empirical" one takes the targets of the data, is no estimate of the curvature, and vanishes with the
    loss (Kunstner, Balles & Hennig 2019).

    Args:
        net: any module that treats examples apart; for a true Fisher it returns (examples, units).
        batches: one (x, y), or an iterable of them, passed over once; y counts only for "empirical".
        loss_fn: mean-reduced loss, for "empirical" alone.
        fisher: which.
        likelihood: how the output is read as a distribution: "categorical", "normal" or "bernoulli".
        samples: targets drawn per example, for "sampled".
        params: qualified names; None: all that require a gradient.
        chunk: examples at once: bounds the memory.
        vectorize: False goes through examples one by one.
        generator: of the draws; None is seed 0.

    Returns:
        By name, in the parameters' shapes; never negative.

    Raises:
        ValueError: as `per_example_gradients`; if an empirical Fisher has no loss; if samples is less than 1.
    """
    if fisher not in ("sampled", "empirical", "exact"):
        raise ValueError(f'fisher must be "sampled", "empirical" or "exact", got {fisher!r}.')
    if fisher == "empirical" and loss_fn is None:
        raise ValueError("loss_fn is missing: the empirical Fisher is that of a loss on the data's targets.")
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}.")
    total = {name: torch.zeros_like(value) for name, value in chosen(net, params).items()}
    source, examples = drawing(generator), 0
    for x, y in as_batches(batches, once=True):
        if loss_fn is not None and fisher == "empirical":
            parts = _gradients(net, x, y, loss_fn, params, chunk, vectorize)
            squares: Iterator[dict[str, Tensor]] = (
                {name: gradient.square().sum(0) for name, gradient in part.items()} for part in parts
            )
        else:
            draws = samples if fisher == "sampled" else None
            squares = _model_squares(net, x, likelihood, draws, params, chunk, vectorize, source)
        for part in squares:
            for name, square in part.items():
                total[name] += square
        examples += count(x)
    return {name: value / examples for name, value in total.items()}


def _model_squares(
    net: nn.Module,
    x: Any,
    likelihood: Likelihood,
    draws: int | None,
    params: Sequence[str] | None,
    chunk: int,
    vectorize: bool,
    generator: torch.Generator,
) -> Iterator[dict[str, Tensor]]:
    """Sums over examples of squared gradients for targets from the model, chunk by chunk; None draws: all targets."""
    refuse_batch_statistics(net)
    values: dict[str, Tensor] = dict(chosen(net, params))

    def along(values: dict[str, Tensor], x: Any, directions: Tensor) -> Tensor:
        output = call(lambda *a, **k: functional_call(net, values, a, k), x)
        return (output * directions[0]).sum(1)

    with quiet(net):
        for here in _chunks(count(x), chunk):
            inputs = rows(x, here)
            with torch.no_grad():
                output = call(net, inputs)
                if draws is None:
                    directions = output_roots(output, likelihood)
                else:
                    targets = [sample_targets(output, likelihood, generator) for _ in range(draws)]
                    drawn = [output_gradients(output, target, likelihood) for target in targets]
                    directions = torch.stack(drawn) / draws**0.5
            jacobian = per_example(along, values, inputs, directions.transpose(0, 1), vectorize=vectorize)
            yield {name: slopes.detach().square().sum((0, 1)) for name, slopes in jacobian.items()}
