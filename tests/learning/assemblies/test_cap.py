import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.learning.assemblies import k_cap, overlap


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_the_cap_takes_the_largest_and_of_equals_the_first(values, data):
    k = data.draw(st.integers(1, len(values)))
    wanted = sorted(sorted(range(len(values)), key=lambda j: (-values[j], j))[:k])
    assert k_cap(torch.tensor(values, dtype=torch.float64), k).tolist() == wanted


def test_a_batch_is_capped_row_by_row(generator):
    inputs = torch.randint(4, (3, 2, 10), generator=generator).float()
    together = k_cap(inputs, 4)
    assert together.shape == (3, 2, 4)
    for a in range(3):
        for b in range(2):
            assert torch.equal(together[a, b], k_cap(inputs[a, b], 4))
    assert torch.equal(k_cap(inputs.transpose(0, 1), 4), together.transpose(0, 1))


def test_ties_can_be_broken_at_random():
    inputs = torch.tensor([2.0, *[1.0] * 8, 0.0])
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([k_cap(inputs, 3, generator) for _ in range(2000)])
    counts = torch.bincount(draws.flatten(), minlength=10)
    assert counts[0] == 2000
    assert counts[9] == 0
    assert_close(counts[1:9].double() / 2000, torch.full((8,), 0.25, dtype=torch.float64), atol=0.05, rtol=0)
    assert (draws.diff(dim=-1) > 0).all()


def test_zeros_and_infinities_are_inputs_like_others():
    assert k_cap(torch.zeros(5), 2).tolist() == [0, 1]
    assert k_cap(torch.tensor([0.0, float("inf"), -float("inf"), 1.0]), 2).tolist() == [1, 3]


def test_a_cap_that_cannot_be_is_refused():
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"5, got {k}"):
            k_cap(torch.zeros(5), k)
    with pytest.raises(ValueError, match="1 NaN"):
        k_cap(torch.tensor([0.0, float("nan")]), 1)


def test_overlap_is_the_shared_part_of_the_larger_set():
    assert overlap(torch.tensor([1, 2, 3, 4]), torch.tensor([3, 4, 5])) == 0.5
    assert overlap(torch.tensor([1]), torch.tensor([2])) == 0.0
    with pytest.raises(ValueError, match="second"):
        overlap(torch.tensor([1]), torch.tensor([2, 2]))
