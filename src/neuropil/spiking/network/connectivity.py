"""Which neuron synapses onto which, and the product of spikes with such a matrix.

A synapse q goes from row i (the source) to `indices[q]` (the target), indptr[i] <= q < indptr[i + 1]; targets ascend
within a row. Weights are kept outside, one number for all or one array in this order; what plasticity needs, the same
matrix by columns, is a permutation of that order and never a second array of weights. Spikes s and arrivals y:

    y_j = sum_i s_i w_ij                     `event_matvec`: over the rows of the neurons that fired
    dL/ds_i = sum_j w_ij dL/dy_j             `event_product`, backward: all rows
    dL/dw_ij = s_i dL/dy_j                   rows of the neurons that fired

All sums over i are taken in ascending order, by every path: chaos turns another last bit into other spikes.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from neuropil.spiking.kernels import connectivity as kernels

__all__ = ["Incoming", "Rows", "SparseConnectivity", "edge_order", "event_matvec", "event_product", "synapse_values"]

LIMIT = 2**31 - 1
"""Synapses of one connectivity, and neurons on a side: what an int32 counts."""

Backend = Literal["auto", "numba", "torch"]
Weight = float | Float[Tensor, " synapses"]
Edges = Int[Tensor, "_"] | Int[np.ndarray, "_"]


class Incoming(NamedTuple):
    """A connectivity by columns.

    Attributes:
        indptr: where the synapses onto each target begin, int64 (n_post + 1,).
        rows: their sources, ascending within a target, int32 (nnz,).
        order: their places in the order by rows, int32 (nnz,): `weight[order]` are the weights by columns.
    """

    indptr: np.ndarray
    rows: np.ndarray
    order: np.ndarray


class Rows(NamedTuple):
    """A connectivity by rows as tensors on one device: indptr int64 (n_pre + 1,), indices int32 (nnz,)."""

    indptr: Tensor
    indices: Tensor


@dataclass(frozen=True, eq=False)
class SparseConnectivity:
    """A sparse matrix of synapses by rows, without weights; two entries at one place are parallel synapses.

    The arrays are numpy's, since compiled loops both make and read them; `to` shares them with torch, without a copy on
    the CPU. They are not to be written to.

    Args:
        n_pre: neurons that send, below 2^31.
        n_post: neurons that receive, below 2^31.
        indptr: where each row begins, and the end of the last: integers (n_pre + 1,), kept as int64.
        indices: the target of every synapse, ascending within a row: integers (nnz,), kept as int32.

    Raises:
        ValueError: for targets out of range or not in order, an indptr that does not rise from 0 to the number of
            synapses, or more than 2^31 - 1 synapses.
        TypeError: for arrays that are not integers.
    """

    n_pre: int
    n_post: int
    indptr: Int[np.ndarray, " begins"]
    indices: Int[np.ndarray, " synapses"]

    def __post_init__(self) -> None:
        check_size("n_pre", self.n_pre)
        check_size("n_post", self.n_post)
        check_synapses(self.indices.size)
        for name in ("indptr", "indices"):
            if getattr(self, name).dtype.kind not in "iu":
                raise TypeError(f"{name} must be integers, got {getattr(self, name).dtype}.")
        if self.indptr.shape != (self.n_pre + 1,):
            raise ValueError(f"indptr has shape {self.indptr.shape}; {self.n_pre} sources need ({self.n_pre + 1},).")
        if self.indptr[0] != 0 or self.indptr[-1] != self.indices.size or np.any(np.diff(self.indptr) < 0):
            raise ValueError(
                f"indptr must rise from 0 to the number of synapses, {self.indices.size}; "
                f"it goes from {self.indptr[0]} to {self.indptr[-1]}."
            )
        object.__setattr__(self, "indptr", np.require(self.indptr, np.int64, ["C", "W"]))
        bad = kernels.first_bad_row(self.indptr, self.indices, self.n_post)  # before a cast that could wrap
        if bad >= 0:
            raise ValueError(f"indices of row {bad} must ascend within 0 to {self.n_post - 1}.")
        object.__setattr__(self, "indices", np.require(self.indices, np.int32, ["C", "W"]))

    @property
    def nnz(self) -> int:
        """Number of synapses."""
        return self.indices.size

    @property
    def density(self) -> float:
        """Synapses per pair of neurons; 0 where there is no pair."""
        return self.nnz / max(self.n_pre * self.n_post, 1)

    def sources(self) -> Int[np.ndarray, " synapses"]:
        """The row of every synapse, int32 (nnz,)."""
        return np.repeat(np.arange(self.n_pre, dtype=np.int32), np.diff(self.indptr))

    @cached_property
    def incoming(self) -> Incoming:
        """The same synapses by columns, found once, when first asked for."""
        return Incoming(*kernels.incoming(self.indptr, self.indices, self.n_post))

    @property
    def csc_indptr(self) -> Int[np.ndarray, " begins"]:
        """Where the synapses onto each target begin, int64 (n_post + 1,)."""
        return self.incoming.indptr

    @property
    def csc_rows(self) -> Int[np.ndarray, " synapses"]:
        """Sources by columns, int32 (nnz,)."""
        return self.incoming.rows

    @property
    def perm_csc(self) -> Int[np.ndarray, " synapses"]:
        """Places by rows of the synapses by columns, int32 (nnz,)."""
        return self.incoming.order

    @cached_property
    def _on_devices(self) -> dict[torch.device, Rows]:
        return {}

    def to(self, device: torch.device | str) -> Rows:
        """The rows as tensors on a device, copied there once; on the CPU they share memory with the arrays."""
        device = torch.device(device)
        if device not in self._on_devices:
            rows = Rows(torch.from_numpy(self.indptr), torch.from_numpy(self.indices))
            self._on_devices[device] = Rows(rows.indptr.to(device), rows.indices.to(device))
        return self._on_devices[device]

    def split(self, bounds: Int[np.ndarray, " bounds"]) -> Int[np.ndarray, "rows bounds"]:
        """Cut every row where its targets pass bounds, as those between the targets of two threads.

        Args:
            bounds: targets, ascending.

        Returns:
            int64 (n_pre, bounds): the first synapse of each row whose target is the bound or a later one.

        Raises:
            ValueError: if bounds do not ascend.
        """
        if bool((np.diff(bounds) < 0).any()):
            raise ValueError(f"bounds must ascend, got {bounds}.")
        offsets = np.empty((self.n_pre, len(bounds)), np.int64)
        kernels.split_rows(self.indptr, self.indices, bounds.astype(np.int64, copy=False), offsets)
        return offsets

    def to_dense(self, weight: Weight = 1.0) -> Float[Tensor, "n_pre n_post"]:
        """The matrix of weights; parallel synapses add up. Differentiable to the weights."""
        w = self._weights(weight)
        rows = self.to(w.device)
        sources = torch.from_numpy(self.sources()).to(w.device)
        flat = sources.long() * self.n_post + rows.indices
        return w.new_zeros(self.n_pre * self.n_post).index_add(0, flat, w).reshape(self.n_pre, self.n_post)

    def to_torch_csr(self, weight: Weight = 1.0, *, transposed: bool = False) -> Tensor:
        """The matrix as a sparse CSR tensor with int32 indices.

        Args:
            weight: one number for all synapses, or one for each.
            transposed: whether to return the matrix (n_post, n_pre), of which `matrix @ spikes` are the arrivals,
                instead of (n_pre, n_post), of which `spikes @ matrix` are: torch turns that round in every product.
        """
        w = self._weights(weight)
        rows, size = self.to(w.device), (self.n_pre, self.n_post)
        if transposed:
            begins, sources, order = (torch.from_numpy(array).to(w.device) for array in self.incoming)
            rows, size, w = Rows(begins, sources), (self.n_post, self.n_pre), w[order]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")  # said once per process
            return torch.sparse_csr_tensor(rows.indptr.int(), rows.indices, w, size=size, check_invariants=False)

    def _weights(self, weight: Weight) -> Tensor:
        check_weight(weight, self.nnz)
        return weight if isinstance(weight, Tensor) else torch.full((self.nnz,), float(weight))

    @classmethod
    def from_dense(cls, matrix: Tensor | np.ndarray) -> "SparseConnectivity":
        """The entries of a matrix (n_pre, n_post) that are not zero or False, in the order of `matrix[matrix != 0]`."""
        entries = _numpy(matrix)
        if entries.ndim != 2:
            raise ValueError(f"matrix must have two dimensions, sources by targets, got shape {entries.shape}.")
        pre, post = np.nonzero(entries)
        n_pre, n_post = entries.shape
        begins = np.concatenate(([0], np.cumsum(np.bincount(pre, minlength=n_pre))))
        return cls(n_pre, n_post, begins, post)

    @classmethod
    def from_scipy(cls, matrix: Any) -> "SparseConnectivity":
        """The stored entries of a scipy sparse matrix (n_pre, n_post), explicit zeros included.

        Their weights are `matrix.tocsr().sorted_indices().data`.
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(f"matrix must be a sparse matrix of scipy, got {type(matrix).__name__}.")
        csr = matrix.tocsr().sorted_indices()
        n_pre, n_post = (int(n) for n in csr.shape)
        return cls(n_pre, n_post, csr.indptr, csr.indices)

    @classmethod
    def from_edges(cls, pre: Edges, post: Edges, n_pre: int, n_post: int) -> "SparseConnectivity":
        """One synapse for every edge, in any order; equal edges are kept, as parallel synapses.

        Args:
            pre: sources (edges,).
            post: targets (edges,).
            n_pre: number of sources.
            n_post: number of targets.

        Raises:
            ValueError: if the two differ in length, or a neuron is out of range.
        """
        check_size("n_pre", n_pre)
        check_size("n_post", n_post)
        ends = [_vector("pre", pre, n_pre), _vector("post", post, n_post)]
        if ends[0].size != ends[1].size:
            raise ValueError(f"pre and post must be of one length, got {ends[0].size} and {ends[1].size}.")
        order = edge_order(*ends)
        begins = np.concatenate(([0], np.cumsum(np.bincount(ends[0], minlength=n_pre))))
        return cls(n_pre, n_post, begins, ends[1][order])


def edge_order(pre: Edges, post: Edges) -> Int[np.ndarray, "_"]:
    """Which edge became each synapse of `SparseConnectivity.from_edges`: `values[edge_order(pre, post)]`."""
    return np.lexsort((_numpy(post), _numpy(pre)))


def _numpy(values: Tensor | np.ndarray) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def check_size(name: str, n: int) -> None:
    """Refuse a number of neurons that is negative or that an int32 cannot count."""
    if not 0 <= n <= LIMIT:
        raise ValueError(f"{name} must be between 0 and 2^31 - 1, got {n}.")


def check_synapses(nnz: int) -> None:
    """Refuse more synapses than an int32 counts."""
    if nnz > LIMIT:
        raise ValueError(
            f"A projection holds at most 2^31 - 1 synapses, got {nnz}: cut it into several, for example by its targets."
        )


def check_weight(weight: Weight, nnz: int) -> None:
    """Refuse an array of weights that has not one for every synapse."""
    if isinstance(weight, Tensor) and weight.shape != (nnz,):
        hint = " (one for all: a number, or `weight.expand(nnz)`)" if weight.numel() == 1 else ""
        raise ValueError(
            f"weight must be a number or have shape ({nnz},), one per synapse, got {tuple(weight.shape)}{hint}."
        )


def _vector(name: str, values: Tensor | np.ndarray, n: int) -> np.ndarray:
    array = _numpy(values)
    if array.size and (array.min() < 0 or array.max() >= n):
        raise ValueError(f"{name} must lie within 0 to {n - 1}, got {array.min()} to {array.max()}.")
    return array.astype(np.int64, copy=False)


def _compiled(backend: Backend, device: torch.device, dtype: torch.dtype) -> bool:
    able = device.type == "cpu" and dtype in (torch.float32, torch.float64)
    if backend == "numba" and not able:
        raise ValueError(
            f'backend "numba" computes float32 and float64 on the CPU, got {dtype} on {device}: use "torch" or "auto".'
        )
    return backend != "torch" and able


def _array(weight: Weight, dtype: torch.dtype) -> tuple[np.ndarray, bool]:
    """The weights for a kernel, and whether it is one for all."""
    if isinstance(weight, Tensor):
        return weight.detach().contiguous().numpy(), False
    return torch.tensor([weight], dtype=dtype).numpy(), True


def event_matvec(
    spikers: Int[Tensor, " fired"],
    connectivity: SparseConnectivity,
    weight: Weight,
    *,
    dtype: torch.dtype | None = None,
    backend: Backend = "auto",
) -> Float[Tensor, " n_post"]:
    """What arrives at every target when some neurons fire: the sum of their rows, by ascending source.

    Differentiable to the weights: rows of the neurons that fired. On a GPU the order of the sum is fixed only under
    `torch.use_deterministic_algorithms(True)`.

    Args:
        spikers: the neurons that fired, ascending, each once.
        connectivity: the matrix.
        weight: one number for all synapses, or one for each.
        dtype: of the result where the weight is a number; by default torch's default.
        backend: "numba" (CPU), "torch", or "auto": numba on the CPU where no gradient is wanted.

    Raises:
        ValueError: if spikers are out of range or not in order, or weights are not one per synapse.
    """
    check_weight(weight, connectivity.nnz)
    differentiable = isinstance(weight, Tensor) and weight.requires_grad and torch.is_grad_enabled()
    device = weight.device if isinstance(weight, Tensor) else spikers.device
    dtype = weight.dtype if isinstance(weight, Tensor) else dtype or torch.get_default_dtype()
    fired = spikers.to(device, torch.int64)
    if len(fired) and (fired[0] < 0 or fired[-1] >= connectivity.n_pre or bool((fired.diff() <= 0).any())):
        raise ValueError(f"spikers must ascend within 0 to {connectivity.n_pre - 1}, each once.")
    if backend == "numba" and differentiable:
        raise ValueError('event_matvec has gradients by backend "torch" only; event_product has them by both.')
    out = torch.zeros(connectivity.n_post, dtype=dtype, device=device)
    if _compiled(backend, device, dtype) and not differentiable:
        values, same = _array(weight, dtype)
        kernels.scatter(fired.numpy(), connectivity.indptr, connectivity.indices, values, same, out.numpy())
        return out
    rows = connectivity.to(device)
    begins = rows.indptr[fired]
    counts = rows.indptr[fired + 1] - begins
    ends = counts.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    synapses = torch.arange(total, device=device) + (begins - ends + counts).repeat_interleave(
        counts, output_size=total
    )
    values = weight[synapses] if isinstance(weight, Tensor) else out.new_full((total,), weight)
    return out.index_add(0, rows.indices[synapses], values)


class _EventProduct(torch.autograd.Function):
    """The compiled product and its gradients; weights come as a tensor or a number."""

    @staticmethod
    def forward(spikes: Tensor, connectivity: SparseConnectivity, weight: Weight) -> Tensor:
        out = spikes.new_zeros(len(spikes), connectivity.n_post)
        values, same = _array(weight, spikes.dtype)
        rows = connectivity.indptr, connectivity.indices
        kernels.event_product(spikes.detach().numpy(), *rows, values, same, out.numpy())
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, SparseConnectivity, Weight], output: Tensor) -> None:
        spikes, ctx.connectivity, weight = inputs
        ctx.number = None if isinstance(weight, Tensor) else weight
        ctx.save_for_backward(spikes, *([weight] if isinstance(weight, Tensor) else []))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - what the decorator does to the name of ctx
        ctx: Any, *gradients: Tensor
    ) -> tuple[Tensor | None, None, Tensor | None]:
        spikes, *weights = ctx.saved_tensors
        rows = ctx.connectivity.indptr, ctx.connectivity.indices
        gradient = gradients[0].contiguous().numpy()
        to_spikes = to_weight = None
        if ctx.needs_input_grad[0]:
            to_spikes = torch.zeros_like(spikes)
            values, same = _array(weights[0] if weights else ctx.number, spikes.dtype)
            kernels.event_product_spikes(gradient, *rows, values, same, to_spikes.numpy())
        if ctx.needs_input_grad[2]:
            to_weight = torch.zeros_like(weights[0], memory_format=torch.contiguous_format)
            kernels.event_product_weight(gradient, spikes.detach().numpy(), *rows, to_weight.numpy())
        return to_spikes, None, to_weight


def event_product(
    spikes: Float[Tensor, "*batch n_pre"],
    connectivity: SparseConnectivity,
    weight: Weight,
    *,
    backend: Backend = "auto",
) -> Float[Tensor, "*batch n_post"]:
    """The product of real spikes with the matrix, differentiable to both.

    Forward, spikes of 0 and 1 give the bits of `event_matvec`.

    Args:
        spikes: what every source sends; zeros cost nothing forward.
        connectivity: the matrix.
        weight: one number for all synapses, or one for each, of the type of the spikes.
        backend: "numba" (CPU; first derivatives), "torch" (the reference, memory batch x nnz), or "auto": numba on the
            CPU, else torch.

    Raises:
        ValueError: if the spikes are not one per source, or weights not one per synapse.
        TypeError: if spikes and weights are of different types.
    """
    check_weight(weight, connectivity.nnz)
    if spikes.ndim == 0 or spikes.shape[-1] != connectivity.n_pre:
        raise ValueError(f"spikes must end in the {connectivity.n_pre} sources, got shape {tuple(spikes.shape)}.")
    if isinstance(weight, Tensor) and weight.dtype != spikes.dtype:
        raise TypeError(f"spikes and weight must be of one type, got {spikes.dtype} and {weight.dtype}.")
    batch = spikes.shape[:-1]
    flat = spikes.reshape(batch.numel(), connectivity.n_pre).contiguous()
    if _compiled(backend, spikes.device, spikes.dtype):
        out: Any = _EventProduct.apply(flat, connectivity, weight)
        return out.reshape(*batch, connectivity.n_post)
    rows = connectivity.to(spikes.device)
    sources = torch.arange(connectivity.n_pre, device=spikes.device)
    sources = sources.repeat_interleave(rows.indptr.diff(), output_size=connectivity.nnz)
    products = flat[:, sources] * weight
    places = torch.arange(len(flat), device=spikes.device)[:, None] * connectivity.n_post + rows.indices
    out = spikes.new_zeros(len(flat) * connectivity.n_post).index_add(0, places.flatten(), products.flatten())
    return out.reshape(*batch, connectivity.n_post)


def synapse_values(
    spec: float | Tensor | Callable[[int, torch.Generator | None], Tensor],
    nnz: int,
    name: str,
    dtype: torch.dtype,
    generator: torch.Generator | None = None,
) -> float | Tensor:
    """Weights or delays as they were given, checked.

    Args:
        spec: one number for all synapses, a tensor (nnz,), or a function of (nnz, generator) that returns one.
        nnz: number of synapses.
        name: what an error calls them.
        dtype: of the result.
        generator: what a function draws from.

    Returns:
        The number, or the tensor (nnz,).

    Raises:
        ValueError: for a wrong shape, or values that are not finite.
        TypeError: for anything else.
    """
    values = spec(nnz, generator) if callable(spec) else spec
    values = values.item() if isinstance(values, Tensor) and values.ndim == 0 else values
    if isinstance(values, Tensor):
        if values.shape != (nnz,):
            raise ValueError(f"{name} must be a number or of shape ({nnz},), one a synapse, got {tuple(values.shape)}.")
        bad = ~values.isfinite()
        if bad.any():
            raise ValueError(f"{name} must be finite, but {int(bad.sum())} of {nnz} values are not.")
        return values.to(dtype)
    if isinstance(values, bool) or not isinstance(values, (int, float)):
        wanted = "a number, a tensor of one value per synapse, or a function of (nnz, generator) that returns one"
        raise TypeError(f"{name} must be {wanted}; got {type(values).__name__}.")
    if not np.isfinite(values):
        raise ValueError(f"{name} must be finite, got {values}.")
    return float(values)
