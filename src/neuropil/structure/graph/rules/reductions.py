"""Reductions over an axis of units: a masked unit still counts there, so removing it is another function."""

import numpy as np

from neuropil.structure.graph.reading import Call, Reader, Value, rule

DROPPING = [
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "var",
    "std",
    "var_mean",
    "std_mean",
    "prod",
    "argmax",
    "argmin",
    "logsumexp",
    "any",
    "all",
    "norm",
    "linalg_vector_norm",
    "count_nonzero",
    "nansum",
    "nanmean",
    "median",
    "mode",
    "kthvalue",
    "aminmax",
    "quantile",
    "nanquantile",
]
FOURIER = [f"fft_{kind}{end}" for kind in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft") for end in ("", "2", "n")]
KEEPING = ["softmax", "log_softmax", "_softmax", "_log_softmax", "normalize", "softmin"]


@rule(*DROPPING)
def dropping(reader: Reader, call: Call) -> Value | tuple[Value, ...]:
    """Drop the reduced axes."""
    values = call.values()
    x = values[0]
    if len(values) > 1:  # max(a, b) is entry by entry
        return Value(call.shape, reader.broadcast(values, call.shape, call))
    dims = call.get("dim")
    dims = range(len(x.shape)) if dims in (None, []) else [dims] if isinstance(dims, int) else dims
    reduced = {k % len(x.shape) for k in dims} if x.shape else set()
    for k in reduced:
        reader.mark_inexact(x.axes[k], call, "reduces over these units")
    keep = bool(call.get("keepdim", False))
    axes = tuple(None if k in reduced else axis for k, axis in enumerate(x.axes) if keep or k not in reduced)
    return tuple(Value(shape, axes) for shape in call.shapes)


@rule(*KEEPING)
def keeping(reader: Reader, call: Call) -> Value:
    """Keep the axis that is normalised over."""
    x = call.values()[0]
    reader.mark_inexact(x.axes[call.get("dim", -1)], call, "normalises over these units")
    return Value(call.shape, x.axes)


@rule("cosine_similarity")
def cosine(reader: Reader, call: Call) -> Value:
    """Reduce products and norms over one axis, which masked units are no part of only if they are 0."""
    first, second = call.values()[:2]
    shape = np.broadcast_shapes(first.shape, second.shape)
    axes = list(reader.broadcast([first, second], shape, call))
    reader.mark_inexact(axes.pop(call.get("dim", 1)), call, "reduces over these units")
    return Value(call.shape, tuple(axes))


@rule("cumsum", "cumprod", "logcumsumexp", "flip", "sort", "argsort", "topk", "diff", "rot90", "tril", "triu", *FOURIER)
def along(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Work along some axes: fine beside units, never over them."""
    x = call.values()[0]
    dims = (-2, -1) if call.name in ("tril", "triu") else call.get("dim", call.get("dims", -1))
    dims = range(len(x.shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    axes = list(x.axes)
    for k in dims:
        if axes[k] is not None:
            reader.refuse(call, f"{call.name} runs over units", [Value((x.shape[k],), (axes[k],))])
            axes[k] = None
    return tuple(Value(shape, tuple(axes)) for shape in call.shapes)
