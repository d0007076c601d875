"""Sums of products: what is contracted unites, and multiply-accumulates are counted."""

import math

from neuropil.structure.graph.labels import Axis
from neuropil.structure.graph.reading import PRODUCTS, Call, Reader, Value, repeated, rule

CONVOLUTIONS = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution")
PRODUCTS.update(
    CONVOLUTIONS,
    {
        "linear",
        "addmm",
        "mm",
        "matmul",
        "bmm",
        "baddbmm",
        "mv",
        "dot",
        "einsum",
        "bilinear",
        "scaled_dot_product_attention",
    },
)


@rule(*CONVOLUTIONS)
def convolution(reader: Reader, call: Call) -> Value:
    """Split inputs into (groups, inputs of a group) and outputs into (groups, outputs of a group), groups united.

    A weight is (outputs, inputs of a group, *kernel), a transposed one (inputs, outputs of a group, *kernel). One group
    and depthwise are the same rule, for factors of size 1 vanish.
    """
    x: Value = call["input"]
    weight: Value = call["weight"]
    transposed = "transpose" in call.name or bool(call.get("transposed", False))
    groups, channel = call["groups"], len(x.shape) - len(weight.shape) + 1
    channel = channel % len(x.shape) if len(x.shape) == len(weight.shape) else 0
    whole, part = weight.axes[0], weight.axes[1]
    x_groups, x_within = _split(reader, x.axes[channel], groups)
    w_groups, w_within = _split(reader, whole, groups)
    united = None if groups == 1 else reader.unite(w_groups, x_groups, call)
    if transposed:
        if weight.shape[0] > groups:  # the input channels of a group
            reader.unite(w_within, x_within, call)
        produced = _paired(reader, united, part, groups, weight.shape[1])
        reader.contracts(weight, 0)
    else:
        if weight.shape[1] > 1:
            reader.unite(part, x_within, call)
        produced = whole
        reader.contracts(weight, 1)
    bias: Value | None = call.get("bias")
    if isinstance(bias, Value) and bias.shape[0] > 1:
        produced = reader.unite(bias.axes[0], produced, call)
    for kernel, origin in zip(weight.axes[2:], weight.origin[2:], strict=True):
        reader.freeze(kernel, call, "slides with these")
        if origin is not None:
            reader.kernels.add(origin)
    axes: list[Axis] = [None] * len(call.shape)
    if channel == 1:
        axes[0] = x.axes[0]
    axes[channel] = produced
    for axis in x.axes[channel + 1 :]:
        reader.freeze(axis, call, "slides over these")
    positions = x.shape if transposed else call.shape
    count = math.prod(positions) // positions[channel] * math.prod(weight.shape[2:])
    reader.multiplies(call, count, (weight.shape[0], whole), (weight.shape[1], part))
    return Value(call.shape, tuple(axes))


def _split(reader: Reader, axis: Axis, groups: int) -> tuple[Axis, Axis]:
    return (None, None) if axis is None else reader.labels.split(axis, groups)


def _paired(reader: Reader, outer: Axis, inner: Axis, n_outer: int, n_inner: int) -> Axis:
    """Label an axis over (outer, inner); a factor without labels repeats the other's."""
    if outer is None or n_outer == 1:
        return repeated(inner, n_outer, each=False)
    if inner is None or n_inner == 1:
        return repeated(outer, n_inner, each=True)
    return reader.labels.pairs(outer, inner)


@rule("linear")
def linear(reader: Reader, call: Call) -> Value:
    """Unite the last axis of the input with the input axis of the weight, (outputs, inputs)."""
    x, weight = call["input"], call["weight"]
    if x.uniform:
        reader.fit(x, (*x.axes[:-1], weight.axes[1]))
    elif x.shape[-1] > 1:
        reader.unite(weight.axes[1], x.axes[-1], call)
    reader.contracts(weight, 1)
    produced = weight.axes[0]
    bias: Value | None = call.get("bias")
    if isinstance(bias, Value) and bias.shape[0] > 1:
        produced = reader.unite(bias.axes[0], produced, call)
    lead = list(zip(x.shape[:-1], x.axes[:-1], strict=True))
    reader.multiplies(call, 1, *lead, (weight.shape[0], produced), (weight.shape[1], weight.axes[1]))
    return Value(call.shape, (*x.axes[:-1], produced) if len(weight.shape) == 2 else x.axes[:-1])


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(reader: Reader, call: Call) -> Value:
    """Contract the last axis of the first with the last but one of the second; leading axes broadcast."""
    first, second = call.values()[:2]
    return _matmul(reader, call, first, second)


@rule("addmm", "baddbmm")
def addmm(reader: Reader, call: Call) -> Value:
    """Multiply, then add with broadcasting."""
    names = ("batch1", "batch2") if call.name.startswith("baddbmm") else ("mat1", "mat2")
    product = _matmul(reader, call, call[names[0]], call[names[1]])
    return Value(call.shape, reader.broadcast([product, call.get("self", call.get("input"))], call.shape, call))


def _matmul(reader: Reader, call: Call, first: Value, second: Value) -> Value:
    down = max(-2, -len(second.shape))
    if first.shape[-1] > 1 and not first.uniform and not second.uniform:
        reader.unite(second.axes[down], first.axes[-1], call)
    reader.contracts(first, -1)
    reader.contracts(second, down)
    if first.origin[-1] is None and second.origin[down] is None:
        reader.meets(first.axes[-1])
    rows = [] if len(first.shape) == 1 else [(first.shape[-2], first.axes[-2])]
    columns = [] if len(second.shape) == 1 else [(second.shape[-1], second.axes[-1])]
    lead_shape = call.shape[: len(call.shape) - len(rows) - len(columns)]
    leading = [Value(v.shape[:-2], v.axes[:-2]) for v in (first, second) if len(v.shape) > 2]
    lead = reader.broadcast(leading, lead_shape, call)
    reader.multiplies(call, 1, *zip(lead_shape, lead, strict=True), *rows, *columns, (first.shape[-1], first.axes[-1]))
    return Value(call.shape, (*lead, *(axis for _, axis in rows), *(axis for _, axis in columns)))


@rule("scaled_dot_product_attention")
def attention(reader: Reader, call: Call) -> Value:
    """Unite what queries and keys contract, and the heads of all three; the values' own axis is the output's.

    A mask that is labelled on heads unites with them; keys and queries of a sequence are nobody's units.
    """
    q, k, v = call["query"], call["key"], call["value"]
    if q.shape[-1] > 1:
        reader.unite(k.axes[-1], q.axes[-1], call)
    reader.meets(q.axes[-1])
    for x in (q, k, v):
        reader.freeze(x.axes[-2], call, "attends over these")
    mask = call.get("attn_mask")
    lead_shape = call.shape[:-2]
    leading = [Value(x.shape[:-2], x.axes[:-2]) for x in (q, k, v)]
    if call.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        share = q.shape[-3] // k.shape[-3]
        leading[1:] = [
            Value((*x.shape[:-1], x.shape[-1] * share), (*x.axes[:-1], repeated(x.axes[-1], share, each=True)))
            for x in leading[1:]
        ]
    if isinstance(mask, Value):
        leading.append(Value(mask.shape[:-2], mask.axes[:-2]))
    lead = reader.broadcast(leading, lead_shape, call)
    entries = [*zip(lead_shape, lead, strict=True), (q.shape[-2], None), (k.shape[-2], None)]
    reader.multiplies(call, 1, *entries, (q.shape[-1], q.axes[-1]))
    reader.multiplies(call, 1, *entries, (v.shape[-1], v.axes[-1]))
    return Value(call.shape, (*lead, None, v.axes[-1]))


@rule("einsum")
def einsum(reader: Reader, call: Call) -> Value:
    """Unite axes of one letter; a letter that one operand alone has and the output has not is a sum over units."""
    equation: str = call["equation"].replace(" ", "")
    values = call.values()
    left, _, right = equation.partition("->")
    terms = left.split(",")
    if "." in equation or not right or any(len(set(term)) < len(term) for term in terms):
        reader.refuse(call, f"einsum without a rule: {equation}", values)
        return Value.free(call.shape)
    letters: dict[str, tuple[int, Axis]] = {}
    for term, value in zip(terms, values, strict=True):
        for letter, size, axis, k in zip(term, value.shape, value.axes, range(len(term)), strict=True):
            if letter not in right:
                reader.contracts(value, k)
                if all(v.origin[t.index(letter)] is None for t, v in zip(terms, values, strict=True) if letter in t):
                    reader.meets(axis)
                if sum(letter in other for other in terms) == 1:
                    reader.mark_inexact(axis, call, "sums over these units")
            if letter in letters and size > 1 and letters[letter][0] > 1:
                known = letters[letter][1]
                axis = None if axis is None and known is None else reader.unite(known, axis, call)  # noqa: PLW2901
            letters[letter] = (max(size, letters.get(letter, (1, None))[0]), axis)
    reader.multiplies(call, 1, *letters.values())
    return Value(call.shape, tuple(letters[letter][1] for letter in right))


@rule("bilinear")
def bilinear(reader: Reader, call: Call) -> Value:
    """Contract two inputs with a weight, (outputs, first, second)."""
    first, second, weight = call["input1"], call["input2"], call["weight"]
    for k, x in ((1, first), (2, second)):
        if x.shape[-1] > 1:
            reader.unite(weight.axes[k], x.axes[-1], call)
        reader.contracts(weight, k)
    produced = weight.axes[0]
    bias: Value | None = call.get("bias")
    if isinstance(bias, Value) and bias.shape[0] > 1:
        produced = reader.unite(bias.axes[0], produced, call)
    lead = list(zip(first.shape[:-1], first.axes[:-1], strict=True))
    reader.multiplies(call, 1, *lead, *((weight.shape[k], weight.axes[k]) for k in range(3)))
    return Value(call.shape, (*first.axes[:-1], produced))
