"""Which entries of a mask are set, in few bytes: one bit an entry, or the gaps between set ones, whichever is less.

A gap is the number of unset entries before a set one, written in groups of 7 bits, the lowest first; the eighth bit
says that another group follows (LEB128). With one entry in 150 set, a gap takes 1.4 bytes, one bit an entry 19.
"""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

__all__ = ["decode_mask", "encode_mask"]

BITS, GAPS = 0, 1  # the first byte says how the rest is written


def encode_mask(mask: Bool[Tensor, " entries"]) -> UInt8[Tensor, " bytes"]:
    """Write a flat mask as bytes."""
    flags = mask.cpu().numpy()
    bits, gaps = np.packbits(flags), _gaps(np.flatnonzero(flags))
    kind, shorter = (GAPS, gaps) if len(gaps) < len(bits) else (BITS, bits)
    return torch.from_numpy(np.concatenate([np.array([kind], np.uint8), shorter]))


def decode_mask(code: UInt8[Tensor, " bytes"], entries: int) -> Bool[Tensor, "{entries}"]:
    """Read a mask of so many entries back.

    Raises:
        ValueError: if the bytes are none that `encode_mask` writes for a mask of this length.
    """
    data = code.cpu().numpy()
    wrong = ValueError(f"These {len(data)} bytes are no mask of {entries} entries.")
    if len(data) == 0 or entries < 0 or data[0] not in (BITS, GAPS):
        raise wrong
    kind, data = int(data[0]), data[1:]
    if kind == BITS:
        if len(data) != -(-entries // 8):
            raise wrong
        return torch.from_numpy(np.unpackbits(data, count=entries).astype(bool))
    if len(data) and data[-1] >= 128:
        raise wrong
    last = data < 128  # groups that end a number
    number = np.concatenate([[0], np.cumsum(last)[:-1]]) if len(data) else np.zeros(0, np.int64)
    first = np.flatnonzero(np.concatenate([[True], last[:-1]])) if len(data) else np.zeros(0, np.int64)
    place = np.arange(len(data)) - first[number]
    if len(data) and place.max() > 8:
        raise wrong
    numbers = np.zeros(int(last.sum()), np.int64)
    np.add.at(numbers, number, (data & 127).astype(np.int64) << (7 * place))
    set_ = np.cumsum(numbers + 1) - 1
    if len(set_) and not (numbers.max() < entries and set_[-1] < entries):
        raise wrong
    flags = np.zeros(entries, bool)
    flags[set_] = True
    return torch.from_numpy(flags)


def _gaps(set_: np.ndarray) -> np.ndarray:
    """Numbers between set entries, in groups of 7 bits."""
    numbers = np.diff(set_, prepend=-1) - 1
    count = np.ones(len(numbers), np.int64)  # of groups
    for group in range(1, 10):
        count += numbers >= 1 << (7 * group) if 7 * group < 63 else 0
    starts = np.concatenate([[0], np.cumsum(count)])
    code = np.zeros(int(starts[-1]), np.uint8)
    for group in range(int(count.max(initial=0))):
        has = count > group
        more = (count[has] > group + 1).astype(np.uint8) << 7
        code[starts[:-1][has] + group] = ((numbers[has] >> (7 * group)) & 127).astype(np.uint8) | more
    return code
