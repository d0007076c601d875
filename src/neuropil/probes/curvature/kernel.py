"""The tangent kernel: how far a step on one output moves another.

    K[(n, c), (m, d)] = df_c(x_n)/dtheta . df_d(x_m)/dtheta

Small steps of gradient descent on a loss move the outputs by -eta K dL/df (Jacot, Gabriel & Hongler 2018). The
Jacobian, (examples x outputs) by parameters, is never larger in memory than a bound: blocks of rows are computed as
they are needed, and again if need be.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from neuropil.probes.curvature.examples import count, per_example, refuse_batch_statistics, rows
from neuropil.probes.curvature.inputs import call, chosen, quiet

__all__ = ["tangent_kernel"]

Outputs = slice | Sequence[int] | Callable[[Tensor], Tensor]


def tangent_kernel(
    net: nn.Module,
    x: Any,
    others: Any = None,
    *,
    outputs: Outputs | None = None,
    params: Sequence[str] | None = None,
    axis: int = 0,
    max_bytes: int = 256 * 2**20,
    vectorize: bool = True,
) -> Float[Tensor, "rows columns"]:
    """Tangent kernel of a network between examples.

    Args:
        net: any module that treats examples apart and returns one tensor.
        x: inputs: a tensor, a tuple of arguments or a dict of keywords.
        others: inputs of the columns; None: the same, and the kernel is symmetric.
        outputs: which entries of an example's output: indices into it laid out flat, or a function of the output of one
            example (with its axis of length 1); None: all.
        params: qualified names; None: all that require a gradient.
        axis: of the inputs, that counts examples: 1 for sequences that are time first.
        max_bytes: bound on the Jacobians held at once; one example of the rows and one of the columns are held anyway.
        vectorize: False goes through examples and outputs one by one, for modules that torch.func cannot follow.

    Returns:
        (examples * outputs, others * outputs), an example's outputs side by side.

    Raises:
        ValueError: if the network normalises over the batch or draws, or max_bytes is not positive.
    """
    refuse_batch_statistics(net)
    if max_bytes < 1:
        raise ValueError(f"max_bytes must be at least 1, got {max_bytes}.")
    values: dict[str, Tensor] = dict(chosen(net, params))

    def jacobian(inputs: Any, here: slice) -> Tensor:
        part = rows(inputs, here, axis)
        nothing = torch.zeros(here.stop - here.start, device=next(iter(values.values())).device)
        found = per_example(function, values, part, nothing, axis=axis, vectorize=vectorize)
        return torch.cat([slopes.detach().flatten(2) for slopes in found.values()], 2).flatten(0, 1)

    def function(values: dict[str, Tensor], x: Any, _: Tensor) -> Tensor:
        output = call(lambda *a, **k: functional_call(net, values, a, k), x)
        if callable(outputs):
            return outputs(output).reshape(-1)
        flat = output.reshape(-1)
        return flat if outputs is None else flat[outputs if isinstance(outputs, slice) else list(outputs)]

    size = sum(value.numel() * value.element_size() for value in values.values())
    with quiet(net):
        with torch.no_grad():
            width = len(function(values, rows(x, slice(0, 1), axis), torch.zeros(1)))
        # Half of the bound for the rows, half for the columns.
        block = max(1, max_bytes // (2 * size * width))
        if others is None:
            return _symmetric(lambda here: jacobian(x, here), count(x, axis), width, block)
        return _between(
            lambda here: jacobian(x, here),
            lambda here: jacobian(others, here),
            count(x, axis),
            count(others, axis),
            block,
        )


def _blocks(examples: int, block: int) -> list[slice]:
    return [slice(start, min(start + block, examples)) for start in range(0, examples, block)]


def _symmetric(jacobian: Callable[[slice], Tensor], examples: int, width: int, block: int) -> Tensor:
    kernel: Tensor | None = None
    blocks = _blocks(examples, block)
    for index, here in enumerate(blocks):
        left = jacobian(here)
        if kernel is None:
            kernel = left.new_zeros(examples * width, examples * width)
        for there in blocks[index:]:
            product = left @ (left if there is here else jacobian(there)).T
            vertical = slice(here.start * width, here.stop * width)
            horizontal = slice(there.start * width, there.stop * width)
            kernel[vertical, horizontal] = product
            kernel[horizontal, vertical] = product.T
    if kernel is None:
        raise ValueError("x has no examples.")
    return kernel


def _between(
    left: Callable[[slice], Tensor], right: Callable[[slice], Tensor], examples: int, others: int, block: int
) -> Tensor:
    lines = []
    for here in _blocks(examples, block):
        rows_here = left(here)
        lines.append(torch.cat([rows_here @ right(there).T for there in _blocks(others, block)], 1))
    return torch.cat(lines)
