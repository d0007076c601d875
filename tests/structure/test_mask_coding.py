"""Masks in few bytes: every mask comes back, and bytes that are none are refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuropil.structure.mask_coding import decode_mask, encode_mask


@given(st.lists(st.booleans(), max_size=300), st.integers(1, 300))
def test_every_mask_comes_back(flags, repeats):
    mask = torch.tensor([flag for flag in flags for _ in range(repeats)], dtype=torch.bool)
    assert torch.equal(decode_mask(encode_mask(mask), len(mask)), mask)


@pytest.mark.parametrize("density", [0.0, 1e-4, 0.0064, 0.1, 0.5, 1.0])
def test_the_shorter_way_is_taken(density, generator):
    mask = torch.rand(200_000, generator=generator) < density
    code = encode_mask(mask)
    assert torch.equal(decode_mask(code, len(mask)), mask)
    assert len(code) <= 1 + 25_000
    assert len(code) <= 1 + 3 * int(mask.sum())


def test_long_gaps_take_more_groups():
    mask = torch.zeros(3_000_000, dtype=torch.bool)
    mask[[0, 200, 20_000, 2_999_999]] = True
    code = encode_mask(mask)
    assert len(code) == 1 + 1 + 2 + 3 + 4
    assert torch.equal(decode_mask(code, len(mask)), mask)


@pytest.mark.parametrize(
    ("code", "entries"),
    [
        ([], 4),
        ([2, 0], 4),
        ([0, 1], 9),
        ([0, 1, 1], 8),
        ([1, 200], 500),
        ([1, 5], 5),
        ([1] + [255] * 9 + [1], 5),
        ([0], -1),
    ],
)
def test_what_is_no_mask_is_refused(code, entries):
    with pytest.raises(ValueError, match=f"are no mask of {entries} entries"):
        decode_mask(torch.tensor(code, dtype=torch.uint8), entries)
