"""Entry by entry: one input passes its labels on, several unite them as broadcasting aligns them."""

from collections.abc import Sequence

from neuropil.structure.graph.labels import Axis
from neuropil.structure.graph.reading import CONSTANT, Call, Origin, Reader, Value, rule

UNARY = [
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "softplus",
    "sigmoid",
    "log_sigmoid",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "tanh",
    "hardshrink",
    "softshrink",
    "tanhshrink",
    "softsign",
    "threshold",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "native_dropout",
    "abs",
    "neg",
    "negative",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "square",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "erf",
    "erfc",
    "sign",
    "sgn",
    "floor",
    "ceil",
    "round",
    "trunc",
    "frac",
    "clamp",
    "clamp_min",
    "clamp_max",
    "clip",
    "nan_to_num",
    "isnan",
    "isinf",
    "isfinite",
    "logical_not",
    "bitwise_not",
    "to",
    "_to_copy",
    "type_as",
    "float",
    "double",
    "half",
    "clone",
    "contiguous",
    "alias",
    "detach",
    "lift",
    "lift_fresh",
    "lift_fresh_copy",
    "positive",
    "cpu",
    "cuda",
    "requires_grad",
    "rrelu",
    "bucketize",
    "fake_quantize_per_tensor_affine",
]
BROADCAST = [
    "add",
    "sub",
    "rsub",
    "subtract",
    "mul",
    "multiply",
    "div",
    "divide",
    "true_divide",
    "floor_divide",
    "fmod",
    "remainder",
    "pow",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "where",
    "masked_fill",
    "lerp",
    "addcmul",
    "addcdiv",
    "atan2",
    "hypot",
    "logaddexp",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "logical_and",
    "logical_or",
    "logical_xor",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "__and__",
    "__or__",
    "__xor__",
    "copy",
    "prelu",
    "xlogy",
    "heaviside",
    "nextafter",
    "complex",
    "polar",
]
LIKE = ["zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"]
# What reads nothing but the type or the device of its input.
SHAPE_ONLY = [
    "new_zeros",
    "new_ones",
    "new_full",
    "new_empty",
    "_assert_tensor_metadata",
    "sym_size",
    "sym_numel",
    "_assert_async",
]


@rule(*UNARY)
def unary(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Pass labels on; what is made of a parameter alone still is its axes."""
    value: Value = call.values()[0]
    return tuple(Value(shape, value.axes, value.origin) for shape in call.shapes)


@rule(*BROADCAST)
def broadcast(reader: Reader, call: Call) -> Value:
    """Unite index by index where sizes above 1 meet; a size of 1 constrains nothing."""
    values = call.values()
    if call.name == "prelu":
        values = [values[0], _channels(values[1], len(values[0].shape))]
    return Value(call.shape, reader.broadcast(values, call.shape, call), _origin(values, call.shape))


def _origin(values: Sequence[Value], shape: Sequence[int]) -> tuple[Origin, ...]:
    """Give the parameter's axes where only parameters meet, such as a weight and its scale: those of the first."""
    if any(value.labelled and not any(value.origin) for value in values):
        return ()
    places: list[Origin] = [None] * len(shape)
    for value in values:
        lead = len(shape) - len(value.shape)
        for k, at in enumerate(value.origin):
            if value.shape[k] == shape[lead + k]:
                places[lead + k] = places[lead + k] or at
    return tuple(places)


def _channels(weight: Value, dims: int) -> Value:
    """See a vector of channels as a tensor with as many axes as what it meets, channels second."""
    shape = [1] * dims
    axes: list[Axis] = [None] * dims
    shape[min(1, dims - 1)], axes[min(1, dims - 1)] = weight.shape[0], weight.axes[0]
    return Value(tuple(shape), tuple(axes))


@rule(*LIKE)
def like(reader: Reader, call: Call) -> Value:
    """Follow the sizes of the input, if not its values: what these meet must be cut alike."""
    value: Value = call.values()[0]
    return Value(call.shape, value.axes)


@rule(*SHAPE_ONLY)
def shape_only(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Carry nothing on: what is made does not depend on the values."""
    return tuple(Value.free(shape, uniform=call.name in CONSTANT) for shape in call.shapes)
