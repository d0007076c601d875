"""Where every measure of curvature starts: the parameters in question as one vector, and the batches of the loss."""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from neuropil.learning.rule import Loss

__all__ = ["Batch", "Batches", "Loss", "as_batches", "call", "chosen", "drawing", "flatten", "quiet", "split"]

Batch = tuple[Any, Tensor] | Sequence[Any]
"""(x, y): x a tensor, a tuple of arguments or a dict of keywords for the network; y's first axis counts examples."""

Batches = Batch | Iterable[Batch]
"""One batch, or several that can be gone through again and again: a list, a DataLoader."""


def chosen(net: nn.Module, params: Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Look up parameters by their qualified names; None: all that require a gradient.

    Raises:
        ValueError: if a name is unknown or its parameter requires no gradient, if there are none, or if they differ
            in device or dtype.
    """
    known = dict(net.named_parameters())
    if params is None:
        found = {name: parameter for name, parameter in known.items() if parameter.requires_grad}
    else:
        missing = [name for name in params if name not in known]
        if missing:
            raise ValueError(f"params names {missing[0]!r}, but the network has {sorted(known)}.")
        found = {name: known[name] for name in params}
        frozen = [name for name, parameter in found.items() if not parameter.requires_grad]
        if frozen:
            raise ValueError(f"params names {frozen[0]!r}, which requires no gradient.")
    if not found:
        raise ValueError("net has no parameter that requires a gradient: there is nothing to take a curvature of.")
    kinds = {(parameter.device, parameter.dtype) for parameter in found.values()}
    if len(kinds) > 1:
        raise ValueError(f"params must share one device and dtype, got {sorted(map(str, kinds))}; name a subset.")
    return found


def flatten(tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> Float[Tensor, " size"]:
    """Lay tensors out as one vector, in their order."""
    values = tensors.values() if isinstance(tensors, Mapping) else tensors
    return torch.cat([tensor.reshape(-1) for tensor in values])


def split(vector: Float[Tensor, " size"], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a vector into tensors of the shapes and names of `like`; undoes `flatten`.

    Raises:
        ValueError: if the vector has another size.
    """
    sizes = [tensor.numel() for tensor in like.values()]
    if len(vector) != sum(sizes):
        raise ValueError(f"vector has {len(vector)} entries, the parameters {sum(sizes)}.")
    pieces = vector.split(sizes)
    return {name: piece.view(tensor.shape) for (name, tensor), piece in zip(like.items(), pieces, strict=True)}


def _is_batch(batches: Any) -> bool:
    return isinstance(batches, tuple | list) and len(batches) == 2 and isinstance(batches[1], Tensor)


def as_batches(batches: Batches, *, once: bool = False) -> Iterable[Batch]:
    """Give batches that can be gone through, from one or several.

    Args:
        batches: one (x, y), or an iterable of them.
        once: whether one pass is enough, so that a generator will do.

    Raises:
        TypeError: if it is neither, or can be gone through only once where more is needed.
    """
    if _is_batch(batches):
        return [cast("Batch", batches)]
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be (x, y) or an iterable of such pairs, got {type(batches).__name__}.")
    if not once and isinstance(batches, Iterator):
        raise TypeError(
            "batches is an iterator, gone after one pass, but every product passes over all batches: "
            "give a list or a DataLoader."
        )
    return _checked(batches)


class _checked:  # noqa: N801 - reads as a function; a class because it is gone through again and again
    def __init__(self, batches: Iterable[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        empty = True
        for batch in self.batches:
            if not _is_batch(batch):
                raise TypeError(f"Each batch must be a pair (x, y) whose y is a tensor, got {type(batch).__name__}.")
            empty = False
            yield batch
        if empty:
            raise ValueError("batches is empty: there is no loss to take a curvature of.")


def call(net: Callable[..., Any], x: Any) -> Tensor:
    """Run a network on a tensor, a tuple of arguments or a dict of keywords.

    Raises:
        TypeError: if it returns no tensor.
    """
    output = net(*x) if isinstance(x, tuple) else net(**x) if isinstance(x, dict) else net(x)
    if not isinstance(output, Tensor):
        raise TypeError(f"net must return one tensor, got {type(output).__name__}: wrap it in a module that does.")
    return output


@contextmanager
def quiet(net: nn.Module) -> Generator[None]:
    """Look without leaving a trace: buffers (running statistics) are put back; attention can be derived twice.

    Raises:
        ValueError: if a dropout draws: every look would see another loss.
    """
    for name, module in net.named_modules():
        # Attention and recurrent layers, and modules that call the function, keep their rate as a number.
        rate = module.p if isinstance(module, nn.modules.dropout._DropoutNd) else getattr(module, "dropout", 0)
        if module.training and isinstance(rate, float | int) and rate > 0:
            raise ValueError(f"{name or 'net'} drops out in training mode, so the loss is random: call net.eval().")
    before = [(buffer, buffer.clone()) for buffer in net.buffers()]
    try:
        # Fused attention has no second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def drawing(generator: torch.Generator | None) -> torch.Generator:
    """The generator itself, or a new one of seed 0: nothing draws from the global state.

    Draws are made on the generator's device and moved, so that they are the same everywhere.
    """
    return torch.Generator().manual_seed(0) if generator is None else generator
