"""The exponential of `neuropil.spiking.exponential`, operation by operation, for loops that numba compiles.

It vectorises, since it has neither branch nor call: the polynomials are written out for that reason.
"""

import numpy as np
import torch
from numba import types
from numba.extending import intrinsic, overload

from neuropil.spiking.exponential import COEFFICIENTS, LIMITS, LN2, LOG2E
from neuropil.spiking.exponential import exp as reference

__all__ = ["exp"]

LOW32, HIGH32 = (np.float32(v) for v in LIMITS[torch.float32])
LOW64, HIGH64 = (np.float64(v) for v in LIMITS[torch.float64])
LN2_32, REST32 = (np.float32(v) for v in LN2[torch.float32])
LN2_64, REST64 = (np.float64(v) for v in LN2[torch.float64])
LOG2E_32, LOG2E_64, HALF32, HALF64 = np.float32(LOG2E), np.float64(LOG2E), np.float32(0.5), np.float64(0.5)
A0, A1, A2, A3, A4, A5, A6, A7 = (np.float32(v) for v in COEFFICIENTS[torch.float32])
B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13 = (np.float64(v) for v in COEFFICIENTS[torch.float64])


@intrinsic
def _float_of_bits(context, bits):
    """The number whose bits an integer holds."""
    wanted = {types.int64: types.float64, types.int32: types.float32}.get(bits)
    if wanted is None:
        return None

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    return wanted(bits), generate


def exp(x):
    """e^x of a number, the bits that the torch function gives; compiled code has its own."""
    return type(x)(reference(torch.tensor([x])).item())


@overload(exp)
def _exp(x):
    if x == types.float32:

        def single(x):
            x = min(max(x, LOW32), HIGH32)
            n = np.floor(x * LOG2E_32 + HALF32)
            r = (x - n * LN2_32) - n * REST32
            p = (((A0 * r + A1) * r + A2) * r + A3) * r + A4
            p = ((p * r + A5) * r + A6) * r + A7
            return p * _float_of_bits(np.int32((np.int32(n) + np.int32(127)) << np.int32(23)))  # pyright: ignore[reportCallIssue]

        return single
    if x == types.float64:

        def double(x):
            x = min(max(x, LOW64), HIGH64)
            n = np.floor(x * LOG2E_64 + HALF64)
            r = (x - n * LN2_64) - n * REST64
            p = (((B0 * r + B1) * r + B2) * r + B3) * r + B4
            p = (((p * r + B5) * r + B6) * r + B7) * r + B8
            p = ((((p * r + B9) * r + B10) * r + B11) * r + B12) * r + B13
            return p * _float_of_bits((np.int64(n) + np.int64(1023)) << np.int64(52))  # pyright: ignore[reportCallIssue]

        return double
    return None
