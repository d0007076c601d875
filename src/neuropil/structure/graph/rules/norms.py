"""Normalisation: affine and running tensors follow the channels; a mean over units makes their removal inexact."""

from neuropil.structure.graph.labels import Axis
from neuropil.structure.graph.reading import Call, Reader, Value, rule


def _affine(reader: Reader, call: Call, axis: Axis, names: tuple[str, ...]) -> Axis:
    for name in names:
        vector: Value | None = call.get(name)
        if isinstance(vector, Value) and vector.shape[0] > 1:
            axis = reader.unite(vector.axes[0], axis, call)
    return axis


@rule("batch_norm", "instance_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Unite scale, shift and running moments with the channels."""
    x: Value = call["input"]
    channels = _affine(reader, call, x.axes[1], ("weight", "bias", "running_mean", "running_var"))
    axes = (x.axes[0], channels, *x.axes[2:])
    if call.get("training", call.get("use_input_stats", False)):  # as over the inputs of standardised weights
        for axis in (*axes[:1], *axes[2:]):
            reader.mark_inexact(axis, call, "takes moments over these units")
    return (Value(call.shape, axes), *(Value.free(shape) for shape in call.shapes[1:]))


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Unite scale and shift with the last axes, over which means are taken."""
    x: Value = call["input"]
    axes = list(x.axes)
    normalised = len(call["normalized_shape"])
    for k in range(1, normalised + 1):
        for name in ("weight", "bias"):
            affine: Value | None = call.get(name)
            if isinstance(affine, Value) and affine.shape[-k] > 1:
                axes[-k] = reader.unite(affine.axes[-k], axes[-k], call)
        reader.mark_inexact(axes[-k], call, "takes moments over these units")
    return (Value(call.shape, tuple(axes)), *(Value.free(shape) for shape in call.shapes[1:]))


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(reader: Reader, call: Call) -> tuple[Value, ...]:
    """Unite lengths and directions along the axis of rows; their norm is taken over the others."""
    v: Value = call["v"]
    g: Value = call["g"]
    axes = list(v.axes)
    for k, size in enumerate(v.shape):
        if size > 1 and g.shape[k] == size:
            axes[k] = reader.unite(g.axes[k], axes[k], call)
            reader.mark_inexact(axes[k], call, "divides by the norm of these rows, which is 0 once they are masked")
        else:
            reader.mark_inexact(axes[k], call, "takes a norm over these units")
    return (Value(call.shape, tuple(axes), v.origin), *(Value.free(shape) for shape in call.shapes[1:]))


@rule("group_norm", "native_group_norm")
def group_norm(reader: Reader, call: Call) -> tuple[Value, ...]:
    """See channels as (groups, channels of a group): whole groups can go exactly, positions within them inexactly."""
    x: Value = call["input"]
    channels = _affine(reader, call, x.axes[1], ("weight", "bias"))
    if channels is not None:
        groups = call.get("num_groups", call.get("group"))
        _, within = reader.labels.split(channels, groups)
        reader.mark_inexact(within, call, "takes moments over these units")
    return (Value(call.shape, (x.axes[0], channels, *x.axes[2:])), *(Value.free(s) for s in call.shapes[1:]))
