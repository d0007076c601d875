"""Taking parts and putting parts together."""

import math
import re
from collections.abc import Sequence

import numpy as np

from neuropil.structure.graph.labels import Axis
from neuropil.structure.graph.reading import Call, Reader, Value, repeated, rule


def _pieces(reader: Reader, call: Call, x: Value, dim: int, bounds: Sequence[tuple[int, int]]) -> tuple[Value, ...]:
    """Cut an axis: pieces of one size that tile it have their positions united, so that all shrink alike."""
    axis = x.axes[dim]
    cut: list[Axis] = [None] * len(bounds)
    if axis is not None:
        size = bounds[0][1] - bounds[0][0]
        even = size > 0 and all(b - a == size and a % size == 0 for a, b in bounds) and len(axis) % size == 0
        if even:
            table = axis.reshape(-1, size)
            for row in table[1:]:
                reader.labels.unite(row.copy(), table[0].copy())
        else:
            reader.freeze(axis, call, "takes uneven parts of these")
        cut = [axis[a:b].copy() for a, b in bounds]
    return tuple(
        Value(shape, (*x.axes[:dim], piece, *x.axes[dim + 1 :])) for piece, shape in zip(cut, call.shapes, strict=True)
    )


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")
def split(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Cut one axis into pieces."""
    x = call.values()[0]
    dim = call.get("dim", 0) % len(x.shape)
    ends = np.cumsum([shape[dim] for shape in call.shapes])
    return _pieces(reader, call, x, dim, [(int(b) - s[dim], int(b)) for b, s in zip(ends, call.shapes, strict=True)])


@rule("slice", "narrow")
def slice_(reader: Reader, call: Call) -> Value:
    """Take a stretch of one axis."""
    x = call.values()[0]
    dim = call.get("dim", 0) % len(x.shape)
    size, axis = x.shape[dim], x.axes[dim]
    start = int(call.get("start") or 0)
    start = max(start + size if start < 0 else start, 0)
    stop, step = start + call.shape[dim], call.get("step") or 1
    if axis is None or (start == 0 and call.shape[dim] == size):
        return Value(call.shape, x.axes, x.origin if call.shape == x.shape else ())
    if step != 1:
        reader.refuse(call, f"slice takes every {step}th of units", [Value((size,), (axis,))])
        return Value(call.shape, (*x.axes[:dim], None, *x.axes[dim + 1 :]))
    return _pieces(reader, call, x, dim, [(start, stop)])[0]


@rule("glu")
def glu(reader: Reader, call: Call) -> Value:
    """Gate the first half of an axis by the second."""
    x = call.values()[0]
    dim = call.get("dim", -1) % len(x.shape)
    return _pieces(reader, call, x, dim, [(0, x.shape[dim] // 2)])[0]


@rule("select", "unbind")
def select(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Drop an axis by taking one entry of it (or every one apart)."""
    x = call.values()[0]
    dim = call.get("dim", 0) % len(x.shape)
    reader.freeze(x.axes[dim], call, "takes single entries of these")
    axes = (*x.axes[:dim], *x.axes[dim + 1 :])
    return tuple(Value(shape, axes) for shape in call.shapes)


@rule("index", "index_select")
def index(reader: Reader, call: Call) -> Value:
    """Take entries by tensors of positions."""
    x: Value = call["self"]
    if call.name == "index_select":
        dim = call["dim"] % len(x.shape)
        reader.freeze(x.axes[dim], call, "takes chosen entries of these")
        return Value(call.shape, (*x.axes[:dim], None, *x.axes[dim + 1 :]))
    positions = call["indices"]
    at = [k for k, one in enumerate(positions) if one is not None]
    for k in at:
        reader.freeze(x.axes[k], call, "takes chosen entries of these")
        for axis in positions[k].axes:
            reader.freeze(axis, call, "holds positions")
    kept = [axis for k, axis in enumerate(x.axes) if k not in at]
    new = len(call.shape) - len(kept)
    first = at[0] if at == list(range(at[0], at[-1] + 1)) else 0
    return Value(call.shape, (*kept[:first], *[None] * new, *kept[first:]))


@rule("embedding")
def embedding(reader: Reader, call: Call) -> Value:
    """Look rows up: the vocabulary is nobody's unit."""
    weight: Value = call["weight"]
    reader.freeze(weight.axes[0], call, "looks up these rows")
    return Value(call.shape, (*call["indices"].axes, weight.axes[1]))


@rule("embedding_bag", "_embedding_bag")
def embedding_bag(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Look rows up and reduce them bag by bag."""
    weight: Value = call["weight"]
    reader.freeze(weight.axes[0], call, "looks up these rows")
    return (Value(call.shape, (None, weight.axes[1])), *(Value.free(shape) for shape in call.shapes[1:]))


@rule("cat", "concat", "concatenate")
def cat(reader: Reader, call: Call) -> Value:
    """Lay axes end to end; a piece without labels gets frozen ones."""
    values = [value for value in call.values() if value.shape != (0,)]
    dim = call.get("dim", 0) % len(call.shape)
    sides = [Value((*v.shape[:dim], *v.shape[dim + 1 :]), (*v.axes[:dim], *v.axes[dim + 1 :])) for v in values]
    axes = list(reader.broadcast(sides, (*call.shape[:dim], *call.shape[dim + 1 :]), call))
    joined: Axis = None
    if any(v.axes[dim] is not None for v in values):
        parts = []
        for value in values:
            part = value.axes[dim]
            if part is None:
                part = reader.labels.fresh(value.shape[dim])
                if not value.uniform:
                    reader.freeze(part, call, "joins these to an axis that is nobody's unit")
            parts.append(part)
        joined = np.concatenate(parts)
    axes.insert(dim, joined)
    return Value(call.shape, tuple(axes))


@rule("stack")
def stack(reader: Reader, call: Call) -> Value:
    """Lay tensors side by side along a new axis."""
    values = call.values()
    dim = call.get("dim", 0) % len(call.shape)
    axes = list(reader.broadcast(values, values[0].shape, call))
    axes.insert(dim, None)
    return Value(call.shape, tuple(axes))


POOLS = [
    f"{kind}_pool{n}d{end}"
    for kind in ("max", "avg", "lp", "adaptive_avg", "adaptive_max", "_adaptive_avg")
    for n in (1, 2, 3)
    for end in ("", "_with_indices")
]
UPSAMPLING = [
    "upsample_nearest1d",
    "upsample_nearest2d",
    "upsample_nearest3d",
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_nearest_exact1d",
    "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
]


@rule(*POOLS, *UPSAMPLING)
def pool(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Work over space, each channel by itself."""
    x = call.values()[0]
    space = len(x.shape) - 2 if "upsample" in call.name else int(re.findall(r"pool(\d)d", call.name)[0])
    axes = list(x.axes)
    for k in range(len(axes) - space, len(axes)):
        reader.freeze(axes[k], call, "pools over these")
        axes[k] = None
    return tuple(Value(shape, tuple(axes)) for shape in call.shapes)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d", "max_unpool2d", "max_unpool3d")
def sampled(reader: Reader, call: Call) -> Value:
    """Take entries from places, each channel by itself; places of a channel of its own are cut with it."""
    x, places = call.values()[:2]
    if len(places.shape) == len(x.shape) and places.shape[1] == x.shape[1] and "unpool" in call.name:
        reader.broadcast([x, places], x.shape, call)
    for axis in x.axes[2:]:
        reader.freeze(axis, call, "moves these")
    return Value(call.shape, (*x.axes[:2], *(None for _ in call.shape[2:])))


INDEXED = ["gather", "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill"]


@rule(*INDEXED, "take_along_dim")
def indexed(reader: Reader, call: Call) -> Value:
    """Read or write along one axis: fine beside units, never over them. The other axes are those of the index."""
    x, *others = call.values()
    dim = call.get("dim")
    if dim is None:
        reader.refuse(call, f"{call.name} runs over units", [x, *others])
        return Value.free(call.shape)
    dim, axes = dim % len(x.shape), list(x.axes)
    for value in (x, *(other for other in others if len(other.shape) == len(x.shape))):
        if value.axes[dim] is not None:
            reader.refuse(call, f"{call.name} runs over units", [Value((value.shape[dim],), (value.axes[dim],))])
    axes[dim] = None
    for k, size in enumerate(x.shape):
        for other in others:
            if k == dim or len(other.shape) != len(x.shape) or (other.shape[k] == 1 and call.name == "take_along_dim"):
                continue
            if other.shape[k] == size:
                axes[k] = reader.unite(axes[k], other.axes[k], call) if size > 1 else None
            else:
                reader.freeze(axes[k], call, "takes some of these")
                axes[k] = None
    return Value(call.shape, tuple(axes))


@rule("im2col")
def unfold(reader: Reader, call: Call) -> Value:
    """Lay out windows: every channel comes once for each place in a window."""
    x: Value = call["self"]
    for axis in x.axes[-2:]:
        reader.freeze(axis, call, "slides over these")
    channels = repeated(x.axes[-3], math.prod(call["kernel_size"]), each=True)
    return Value(call.shape, (*x.axes[:-3], channels, None))


@rule("col2im")
def fold(reader: Reader, call: Call) -> Value:
    """Put windows back: the places in a window are nobody's units."""
    x: Value = call["self"]
    reader.freeze(x.axes[-1], call, "puts these back")
    channels = None
    if x.axes[-2] is not None:
        channels, within = reader.labels.split(x.axes[-2], call.shape[-3])
        reader.freeze(within, call, "adds these up")
    return Value(call.shape, (*x.axes[:-2], channels, None, None))


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d")
def pad(reader: Reader, call: Call) -> Value:
    """Lengthen axes at their ends: fine beside units, never on them."""
    x = call.values()[0]
    axes = list(x.axes)
    widths = call.get("pad", call.get("padding"))
    for k in range(len(widths) // 2):
        if (widths[2 * k], widths[2 * k + 1]) != (0, 0) and axes[-1 - k] is not None:
            reader.refuse(call, f"{call.name} lengthens units", [Value((x.shape[-1 - k],), (axes[-1 - k],))])
            axes[-1 - k] = None
    return Value(call.shape, tuple(axes))


@rule("roll")
def roll(reader: Reader, call: Call) -> Value:
    """Turn an axis round: fine beside units, never over them."""
    x = call.values()[0]
    axes = list(x.axes)
    for k in call.get("dims") or range(len(axes)):
        if axes[k] is not None:
            reader.refuse(call, "roll runs over units", [Value((x.shape[k],), (axes[k],))])
            axes[k] = None
    return Value(call.shape, tuple(axes))
