import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuropil.data.idx import DTYPES, parse_idx

arrays = st.sampled_from(sorted(DTYPES.values())).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype).newbyteorder("="), hnp.array_shapes(max_dims=4, min_side=0, max_side=4))
)


@given(array=arrays)
def test_reads_what_was_written(encode_idx, array):
    read = parse_idx(encode_idx(array))
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@given(array=arrays, data=st.data())
def test_every_cut_is_noticed(encode_idx, array, data):
    content = encode_idx(array)
    length = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(ValueError, match=rf"letters\.idx is truncated: .* {length}\."):
        parse_idx(content[:length], "letters.idx")


def test_truncation_names_expected_and_actual_bytes(encode_idx):
    content = encode_idx(np.zeros((2, 3, 4), np.int16))
    message = "letters.idx is truncated: int16 of shape (2, 3, 4) takes 64 bytes, the file has 63."
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_idx(content[:-1], "letters.idx")


def test_trailing_bytes_are_refused(encode_idx):
    with pytest.raises(ValueError, match=r"letters\.idx is too long: .* takes 13 bytes, the file has 14\."):
        parse_idx(encode_idx(np.zeros(5, np.uint8)) + b"\0", "letters.idx")


@pytest.mark.parametrize("magic", ["1f8b0808", "00000a01", "00000800", "000008ff", "00000000"])
def test_other_formats_are_refused(magic):
    with pytest.raises(ValueError, match=rf"no IDX file: it begins with {bytes.fromhex(magic).hex(' ')}"):
        parse_idx(bytes.fromhex(magic) + bytes(100))


def test_a_header_that_promises_more_than_memory_is_only_truncated():
    sizes = (2**32 - 1,) * 3
    content = bytes([0, 0, 8, 3]) + np.array(sizes, ">u4").tobytes() + b"few"
    with pytest.raises(ValueError, match=f"takes {16 + math.prod(sizes)} bytes, the file has 19"):
        parse_idx(content)
