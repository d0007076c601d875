"""The IDX format of MNIST and its relatives.

    0x00 0x00 | dtype code, 1 byte | number of dimensions d, 1 byte | d sizes, uint32 | the items, C order

All numbers are big-endian. Source: LeCun, Cortes & Burges, "The MNIST database of handwritten digits".
"""

import math

import numpy as np
from jaxtyping import Shaped

__all__ = ["parse_idx"]

# Code 0x0A is unassigned.
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAGIC = 4  # bytes of the magic number, and of each size
MAX_DIMENSIONS = 32  # what every numpy can hold; the format's byte would allow 255


def parse_idx(content: bytes, name: str = "IDX content") -> Shaped[np.ndarray, "..."]:
    """Turn the bytes of an IDX file into an array.

    Args:
        content: the whole file, decompressed.
        name: of the file, for messages.

    Returns:
        The array in the file's shape, in the machine's byte order; bytes are not copied, so the array is read-only.

    Raises:
        ValueError: if the magic number is none, or there are more or fewer bytes than the header says.
    """
    if len(content) < MAGIC:
        raise ValueError(f"{name} is truncated: an IDX header has at least {MAGIC} bytes, it has {len(content)}.")
    zero, code, dimensions = int.from_bytes(content[:2], "big"), content[2], content[3]
    if zero or code not in DTYPES or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(
            f"{name} is no IDX file: it begins with {content[:MAGIC].hex(' ')}; wanted are 00 00, "
            f"a dtype among {', '.join(f'{known:02x}' for known in DTYPES)}, and 01 to {MAX_DIMENSIONS:02x} dimensions."
        )
    header = MAGIC * (1 + dimensions)
    if len(content) < header:
        raise ValueError(
            f"{name} is truncated: the header of {dimensions} dimensions has {header} bytes, the file {len(content)}."
        )
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=dimensions, offset=MAGIC))
    dtype = np.dtype(DTYPES[code])
    expected = header + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        fault = "is truncated" if len(content) < expected else "is too long"
        raise ValueError(
            f"{name} {fault}: {dtype.newbyteorder('=')} of shape {shape} takes {expected} bytes, "
            f"the file has {len(content)}."
        )
    items = np.frombuffer(content, dtype, offset=header).reshape(shape)
    return items.astype(dtype.newbyteorder("="), copy=False)
