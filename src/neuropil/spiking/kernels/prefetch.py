"""Asking for memory before it is needed: rows of a large matrix lie anywhere, and waiting for them takes most time."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

__all__ = ["LINE", "prefetch"]

LINE = 64
"""Bytes that come together."""


@intrinsic
def _prefetch(context, array, index):
    """Ask for the cache line of an element, to read it."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        place = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        numbers = [ir.Constant(ir.IntType(32), value) for value in (0, 3, 1)]
        kind = ir.FunctionType(ir.VoidType(), [place.type, *(number.type for number in numbers)])
        name = "llvm.prefetch.p0" if place.type.is_opaque else "llvm.prefetch.p0i8"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [place, *numbers])
        return context.get_dummy_value()

    return types.none(array, index), generate


def prefetch(array, first, last):
    """Ask for the elements first, ..., last - 1 of an array; Python has no way to, and need not."""


@overload(prefetch)
def _rows(array, first, last):
    step = max(1, LINE // (array.dtype.bitwidth // 8))

    def ask(array, first, last):
        for index in range(first, last, step):
            _prefetch(array, index)  # pyright: ignore[reportCallIssue] - an intrinsic

    return ask
