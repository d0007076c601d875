"""Rearranging axes: reshape splits and joins labels, the rest moves, keeps or repeats them."""

import math
from collections.abc import Sequence
from itertools import pairwise

from neuropil.structure.graph.labels import Axis
from neuropil.structure.graph.reading import Call, Origin, Reader, Value, repeated, rule

RESHAPES = [
    "reshape",
    "view",
    "flatten",
    "unflatten",
    "unsqueeze",
    "squeeze",
    "ravel",
    "view_as",
    "reshape_as",
    "_unsafe_view",
    "_reshape_alias",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
]


@rule("view_as_real", "view_as_complex")
def complex_parts(reader: Reader, call: Call) -> Value:
    """See a complex number as two, or two as one."""
    x = call.values()[0]
    if call.name == "view_as_real":
        return Value(call.shape, (*x.axes, None))
    reader.freeze(x.axes[-1], call, "joins these")
    return Value(call.shape, x.axes[:-1])


@rule(*RESHAPES)
def reshape(reader: Reader, call: Call) -> Value:
    """Match blocks of axes of one product, cut each at every partial product, and regroup the factors."""
    x = call.values()[0]
    axes: list[Axis] = [None] * len(call.shape)
    origin: list[Origin] = [None] * len(call.shape)
    for before, after in _blocks(x.shape, call.shape):
        if len(before) == 1 and len(after) == 1:
            axes[after[0]], origin[after[0]] = x.axes[before[0]], x.origin[before[0]]
            continue
        if all(x.axes[k] is None for k in before):
            continue
        old, new = [x.shape[k] for k in before], [call.shape[k] for k in after]
        cuts = sorted({*_cuts(old), *_cuts(new)})
        if any(high % low for low, high in pairwise(cuts)):
            values = [Value((x.shape[k],), (x.axes[k],)) for k in before]
            reader.refuse(call, f"{call.name} of {tuple(old)} to {tuple(new)} cuts across units", values)
            continue
        factors: list[tuple[int, Axis]] = []
        for k in before:
            factors += _factors(reader, x.shape[k], x.axes[k], _within(x.shape[k], cuts, x.shape, before, k))
        for k in after:
            sizes = _within(call.shape[k], cuts, call.shape, after, k)
            axes[k] = _join(reader, factors[: len(sizes)])
            factors = factors[len(sizes) :]
    return Value(call.shape, tuple(axes), tuple(origin))


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of axes of equal products; axes of size 1 belong to none."""
    before, after = ([k for k, size in enumerate(shape) if size != 1] for shape in (old, new))
    blocks = []
    while before:
        left, right = [before.pop(0)], [after.pop(0)]
        while (a := math.prod(old[k] for k in left)) != (b := math.prod(new[k] for k in right)):
            if a < b:
                left.append(before.pop(0))
            else:
                right.append(after.pop(0))
        blocks.append((left, right))
    return blocks


def _cuts(sizes: Sequence[int]) -> list[int]:
    """Partial products from the right, 1 and the whole among them."""
    return [math.prod(sizes[k:]) for k in range(len(sizes) + 1)]


def _within(size: int, cuts: Sequence[int], shape: Sequence[int], block: Sequence[int], k: int) -> list[int]:
    """Sizes of the factors into which the cuts divide one axis, slowest first."""
    low = math.prod(shape[other] for other in block if other > k)
    inside = [cut // low for cut in cuts if low <= cut <= low * size and cut % low == 0]
    return [high // lower for lower, high in pairwise(inside)][::-1]


def _factors(reader: Reader, size: int, axis: Axis, sizes: Sequence[int]) -> list[tuple[int, Axis]]:
    """Labels of an axis's factors, split from the slowest on."""
    if axis is None or len(sizes) == 1:
        return [(sizes[0], axis)] if len(sizes) == 1 else [(n, None) for n in sizes]
    outer, inner = reader.labels.split(axis, sizes[0])
    return [(sizes[0], outer), *_factors(reader, size // sizes[0], inner, sizes[1:])]


def _join(reader: Reader, factors: Sequence[tuple[int, Axis]]) -> Axis:
    """Labels of an axis that runs over factors, the last the fastest; a free factor repeats the others."""
    size, axis = factors[0]
    if len(factors) == 1:
        return axis
    inner, rest = _join(reader, factors[1:]), math.prod(n for n, _ in factors[1:])
    if axis is None or inner is None:
        return repeated(inner, size, each=False) if axis is None else repeated(axis, rest, each=True)
    return reader.labels.pairs(axis, inner)


@rule("permute", "transpose", "t", "mT", "numpy_T", "swapaxes", "swapdims", "movedim", "moveaxis", "adjoint", "mH")
def permute(reader: Reader, call: Call) -> Value:
    """Move axes."""
    x = call.values()[0]
    order = list(range(len(x.shape)))
    if call.name == "permute":
        order = [k % len(order) for k in call["dims"]]
    elif call.name == "numpy_T":
        order.reverse()
    elif call.name in {"movedim", "moveaxis"}:
        order = _moved(order, call["source"], call["destination"])
    elif len(order) > 1:
        default = (0, 1) if call.name == "t" else (-2, -1)
        a = call.get("dim0", call.get("axis0", default[0]))
        b = call.get("dim1", call.get("axis1", default[1]))
        order[a], order[b] = order[b], order[a]
    return Value(call.shape, tuple(x.axes[k] for k in order), tuple(x.origin[k] for k in order))


def _moved(order: list[int], source: int | list[int], destination: int | list[int]) -> list[int]:
    sources = [source] if isinstance(source, int) else source
    places = [destination] if isinstance(destination, int) else destination
    n = len(order)
    rest = [k for k in order if k not in {s % n for s in sources}]
    for place, axis in sorted((p % n, s % n) for p, s in zip(places, sources, strict=True)):
        rest.insert(place, axis)
    return rest


@rule("expand", "expand_as", "broadcast_to")
def expand(reader: Reader, call: Call) -> Value:
    """Keep axes that keep their size; what is broadcast has no labels."""
    x = call.values()[0]
    new = len(call.shape) - len(x.shape)
    keep = [k >= new and x.shape[k - new] == size for k, size in enumerate(call.shape)]
    axes = tuple(x.axes[k - new] if kept else None for k, kept in enumerate(keep))
    return Value(call.shape, axes, tuple(x.origin[k - new] if kept else None for k, kept in enumerate(keep)))


@rule("repeat", "tile")
def repeat(reader: Reader, call: Call) -> Value:
    """Repeat the labels with the entries."""
    x = call.values()[0]
    new = len(call.shape) - len(x.shape)
    axes = [repeated(axis, call.shape[new + k] // x.shape[k], each=False) for k, axis in enumerate(x.axes)]
    return Value(call.shape, (*[None] * new, *axes))


@rule("repeat_interleave")
def repeat_interleave(reader: Reader, call: Call) -> Value:
    """Repeat every entry of one axis in place."""
    x = call.values()[0]
    dim, times = call.get("dim"), call.get("repeats")
    if dim is None or not isinstance(times, int):
        reader.refuse(call, "repeat_interleave without a dim or a single number of repeats", [x])
        return Value.free(call.shape)
    axes = list(x.axes)
    axes[dim] = repeated(axes[dim], times, each=True)
    return Value(call.shape, tuple(axes))


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(reader: Reader, call: Call) -> Value:
    """Trade r x r neighbouring channels for space: they are one unit; and back."""
    x = call.values()[0]
    axes = list(x.axes)
    if axes[-3] is not None:
        if call.name == "pixel_unshuffle":
            axes[-3] = repeated(axes[-3], call["downscale_factor"] ** 2, each=True)
        else:
            table = axes[-3].reshape(-1, call["upscale_factor"] ** 2)
            for k in range(1, table.shape[1]):
                reader.labels.unite(table[:, k].copy(), table[:, 0].copy())
            axes[-3] = table[:, 0].copy()
    return Value(call.shape, tuple(axes))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(reader: Reader, call: Call) -> Value:
    """Transpose channels seen as (groups, channels of a group)."""
    x = call.values()[0]
    axes = list(x.axes)
    if axes[1] is not None:
        n, groups = x.shape[1], call["groups"]
        outer, inner = reader.labels.split(axes[1], groups)
        axes[1] = _join(reader, [(n // groups, inner), (groups, outer)])
    return Value(call.shape, tuple(axes))
