"""Random, fixed projections of the output error to every point of a network.

    e        error at the output, one row an example: (rows, n_z)
    B        one matrix for all points, (n_z, d_max), d_max the width of the widest point
    t_i  =   e B[:, :d_i] * s_i     of a point that is d_i wide

    entries          not normalised        normalised: scale of the entries that point i sees
    uniform          U(-1, 1)              U(-1, 1) / sqrt(d_max)
    gaussian         N(0, 1)               N(0, 1) / sqrt(d_i n_z)      drawn for d_max, times s_i = sqrt(d_max / d_i)

Rows are all positions along the axes `batch_dims`; the other axes, flattened, are the width. Where a point has k rows
for each row of the error (samples along a ray, say), the row is repeated and divided by sqrt(k).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["FixedProjections"]


class FixedProjections(nn.Module):
    """Project the output error to the points of a network by a matrix that never changes.

    The matrix is drawn at the first call, when the widths are known, from a seed that is fixed from the start: what
    happens in between does not change it, nor do dtype and device. It is a buffer, so that `state_dict` keeps it.

    Args:
        shared: one matrix of which every point uses the first columns; False gives each point columns of its own.
        init: distribution of the entries, "uniform" or "gaussian".
        normalise: whether the entries are scaled as the module says. With a matrix of its own, the width of a point
            takes the place of d_max.
        batch_dims: axes that count rows, of the points and of the output; an output that has no further axis keeps its
            last one as its width.
        generator: source of the entries; None is a generator with seed 0, never the global state.

    Raises:
        ValueError: if `init` is unknown, or `batch_dims` are not distinct axes counted from the front.

    Source: Launay, Poli, Boniface & Krzakala, NeurIPS 2020 (shared matrix, uniform); Launay, Poli & Krzakala,
    arXiv:1906.04554 (gaussian).
    """

    matrix: Tensor | None

    def __init__(
        self,
        *,
        shared: bool = True,
        init: str = "uniform",
        normalise: bool = True,
        batch_dims: Sequence[int] = (0,),
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if init not in ("uniform", "gaussian"):
            raise ValueError(f'init must be "uniform" or "gaussian", got {init!r}.')
        if not batch_dims or min(batch_dims) < 0 or len(set(batch_dims)) < len(batch_dims):
            raise ValueError(f"batch_dims must be distinct axes counted from 0, got {tuple(batch_dims)}.")
        self.shared = shared
        self.init = init
        self.normalise = normalise
        self.batch_dims = tuple(batch_dims)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self._seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        self._widths: dict[str, int] = {}
        self.register_buffer("matrix", None)

    def forward(self, error: Tensor, like: Mapping[str, Tensor]) -> list[Tensor]:
        """Project an error to every point.

        Args:
            error: dL/d output, (batch, ...).
            like: outputs of the points by name; only their shapes are read.

        Returns:
            One teaching signal a point, of its shape.

        Raises:
            ValueError: if a width is not what it was, or a point's rows are no multiple of the error's.
        """
        e = self._flat_error(error)
        matrix = self._matrix(e, {name: self._width(name, h) for name, h in like.items()})
        projected = e @ matrix
        signals, start = [], 0
        for name, h in like.items():
            width = self._widths[name]
            signal = projected[:, start : start + width] * self._scale(width, e.shape[1])
            signals.append(self._shaped(name, self._repeated(name, signal, h), h))
            start += 0 if self.shared else width
        return signals

    def rows(self, error: Tensor) -> int:
        """Number of rows of an error: the examples over which a mean-reduced loss averages."""
        return len(self._flat_error(error))

    def _flat_error(self, error: Tensor) -> Float[Tensor, "rows outputs"]:
        error = error[:, None] if error.dim() == 1 else error
        axes = [axis for axis in self.batch_dims if axis < error.dim()]
        if len(axes) == error.dim():
            axes.remove(error.dim() - 1)
        return _rows_first(error, axes).reshape(math.prod(error.shape[axis] for axis in axes), -1)

    def _width(self, name: str, h: Tensor) -> int:
        if max(self.batch_dims) >= h.dim():
            raise ValueError(f"{name} has shape {tuple(h.shape)}, too few axes for batch_dims={self.batch_dims}.")
        return math.prod(size for axis, size in enumerate(h.shape) if axis not in self.batch_dims)

    def _matrix(self, e: Tensor, widths: dict[str, int]) -> Tensor:
        if self._widths and widths != self._widths:
            name = next(name for name in widths | self._widths if widths.get(name) != self._widths.get(name))
            raise ValueError(
                f"{name} was {self._widths.get(name, 0)} wide, now it is {widths.get(name, 0)}. If an axis changes "
                "from batch to batch, batch_dims has to count it among the rows."
            )
        columns = max(widths.values(), default=0) if self.shared else sum(widths.values())
        if self.matrix is None:
            self.matrix = self._draw(e.shape[1], columns)
        if tuple(self.matrix.shape) != (e.shape[1], columns):
            raise ValueError(
                f"The feedback matrix is {tuple(self.matrix.shape)}, this net needs {(e.shape[1], columns)}: "
                "as many rows as outputs, as many columns as the points are wide."
            )
        self._widths = widths
        self.matrix = self.matrix.to(e)
        return self.matrix

    def _draw(self, outputs: int, columns: int) -> Float[Tensor, "outputs columns"]:
        # On the CPU and in single precision: the same numbers everywhere.
        generator = torch.Generator().manual_seed(self._seed)
        entries = torch.empty(outputs, columns)
        if self.init == "uniform":
            return entries.uniform_(-1, 1, generator=generator)
        return entries.normal_(generator=generator)

    def _scale(self, width: int, outputs: int) -> float:
        if not self.normalise:
            return 1.0
        if self.init == "gaussian":
            return (width * outputs) ** -0.5
        return (max(self._widths.values()) if self.shared else width) ** -0.5

    def _repeated(self, name: str, signal: Tensor, h: Tensor) -> Tensor:
        rows = math.prod(h.shape[axis] for axis in self.batch_dims)
        if rows == len(signal):
            return signal
        if len(signal) == 0 or rows % len(signal):
            raise ValueError(
                f"{name} has {rows} rows over batch_dims={self.batch_dims}, the error {len(signal)}: "
                "a point needs a whole number of rows for each of the error's."
            )
        times = rows // len(signal)
        return signal.repeat_interleave(times, 0) * times**-0.5

    def _shaped(self, name: str, signal: Tensor, h: Tensor) -> Tensor:
        rest = [axis for axis in range(h.dim()) if axis not in self.batch_dims]
        shape = [h.shape[axis] for axis in (*self.batch_dims, *rest)]
        return signal.reshape(shape).movedim(tuple(range(len(self.batch_dims))), self.batch_dims)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # A rule that has not seen a batch yet takes the matrix of one that has.
        stored = state_dict.get(f"{prefix}matrix")
        if stored is not None and self.matrix is None:
            self.matrix = torch.empty_like(stored)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def extra_repr(self) -> str:
        """What the entries are."""
        return f"shared={self.shared}, init={self.init!r}, normalise={self.normalise}, batch_dims={self.batch_dims}"


def _rows_first(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    return tensor.movedim(tuple(axes), tuple(range(len(axes))))
