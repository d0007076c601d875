import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.learning import NotSettledError, settle


@given(slope=st.floats(-0.95, 0.95), offset=st.floats(-10, 10), damping=st.floats(0.3, 1.0))
def test_a_contraction_settles_at_its_fixed_point(slope, offset, damping):
    start = torch.zeros(3, 2, dtype=torch.float64)
    result = settle(lambda s: (slope * s[0] + offset,), (start,), steps=2000, tol=1e-12, damping=damping)
    assert result.settled.all()
    assert_close(result.state[0], torch.full_like(start, offset / (1 - slope)), rtol=1e-8, atol=1e-8)


def test_every_sample_finds_the_damping_it_needs():
    slopes = torch.tensor([0.5, -1.5, -30.0, -200.0], dtype=torch.float64)[:, None]
    result = settle(lambda s: (slopes * s[0] + 1,), (torch.zeros(4, 1, dtype=torch.float64),), steps=500, damping=0.9)
    assert result.settled.all()
    assert_close(result.state[0], 1 / (1 - slopes), rtol=1e-4, atol=1e-4)


def test_entries_taken_whole_follow_the_damped_ones():
    def step(state):
        control, _ = state
        return -4 * control + 5, 2 * control

    start = torch.zeros(2, 1, dtype=torch.float64)
    result = settle(step, (start, start), steps=500, tol=1e-10, damping=(0.9, 1.0))
    assert_close(result.state[0], torch.ones_like(start), rtol=1e-6, atol=1e-6)
    assert_close(result.state[1], 2 * torch.ones_like(start), rtol=1e-6, atol=1e-6)


def test_unsettled_samples_are_marked_and_never_nan():
    def step(state):
        moved = 0.5 * state[0]
        moved[1] = torch.nan
        return (moved,)

    result = settle(step, (torch.ones(3, 2),), damping=0.5)
    assert result.settled.tolist() == [True, False, True]
    assert torch.isfinite(result.state[0]).all()


def test_a_batch_that_does_not_settle_names_entry_and_residual():
    with pytest.raises(
        NotSettledError, match=r"2 of 2 samples .* 7 steps: the ghost still moves by 0.143 \(tol 1e-05\)"
    ) as info:
        settle(lambda s: (s[0], s[1] + 1), (torch.zeros(2, 1),) * 2, steps=7, names=["the rock", "the ghost"])
    assert info.value.result is not None
    assert info.value.result.steps == 7


def test_an_empty_batch_is_settled():
    assert settle(lambda s: (s[0],), (torch.zeros(0, 3),)).steps == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps"),
        ({"tol": 0.0}, "tol"),
        ({"damping": 0.0}, "damping"),
        ({"damping": (1.0, 1.0)}, "2 entries"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        settle(lambda s: s, (torch.zeros(1, 1),), **options)
    with pytest.raises(ValueError, match="empty"):
        settle(lambda s: s, ())
