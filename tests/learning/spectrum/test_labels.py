import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuropil.learning.spectrum import NoisyLabels


def draws(kind, y, rate, classes, seed=0, x=None):
    generator = torch.Generator().manual_seed(seed)
    if kind == "instance":
        x = torch.randn(len(y), 3, 2, generator=torch.Generator().manual_seed(9)) if x is None else x
        return NoisyLabels.instance(x, y, rate, classes, generator)
    return getattr(NoisyLabels, kind)(y, rate, classes, generator)


KINDS = ["symmetric", "pair", "instance"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@given(st.sampled_from(KINDS), st.floats(0, 0.99), st.integers(2, 6), st.integers(1, 40), st.integers(0, 5))
def test_the_mask_says_exactly_which_labels_are_wrong(kind, rate, classes, samples, seed):
    y = torch.randint(classes, (samples,), generator=torch.Generator().manual_seed(seed))
    kept = y.clone()
    labels, flipped = draws(kind, y, rate, classes, seed)
    assert torch.equal(labels != y, flipped)
    assert torch.equal(y, kept)
    assert labels.dtype == torch.int64
    assert 0 <= int(labels.min()) <= int(labels.max()) < classes
    assert torch.equal(draws(kind, y, rate, classes, seed).labels, labels)


@every_kind
def test_rate_zero_flips_nothing(kind):
    y = torch.arange(4).repeat(20)
    assert not draws(kind, y, 0.0, 4).flipped.any()


@every_kind
@pytest.mark.parametrize("rate", [0.2, 0.5, 0.7])
def test_as_many_labels_are_wrong_as_asked_for(kind, rate):
    y = torch.arange(5).repeat(4000)
    assert float(draws(kind, y, rate, 5).flipped.float().mean()) == pytest.approx(rate, abs=0.012)  # 3.4 s.d. or more


def test_symmetric_noise_is_uniform_over_the_others_and_pair_noise_is_the_next():
    y = torch.full((30_000,), 2)
    labels, flipped = draws("symmetric", y, 0.6, 4)
    shares = torch.bincount(labels[flipped], minlength=4) / int(flipped.sum())
    torch.testing.assert_close(shares, torch.tensor([1 / 3, 1 / 3, 0, 1 / 3]), rtol=0, atol=0.015)
    y = torch.arange(4).repeat(100)
    labels, flipped = draws("pair", y, 0.5, 4)
    assert torch.equal(labels[flipped], (y[flipped] + 1) % 4)


def test_instance_noise_follows_the_sample():
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(1)).repeat_interleave(3000, 0)
    labels, flipped = draws("instance", torch.zeros(6000, dtype=torch.int64), 0.5, 4, x=x)
    shares = [
        torch.bincount(part[mask], minlength=4) / mask.sum()
        for part, mask in zip(labels.split(3000), flipped.split(3000), strict=True)
    ]
    assert float((shares[0] - shares[1]).abs().max()) > 0.2


def test_instance_probabilities_are_those_of_the_formula():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).repeat(40_000, 1)
    y = torch.ones(40_000, dtype=torch.int64)
    labels, flipped = NoisyLabels.instance(x, y, 0.5, 3, generator, spread=1e-6)
    again = torch.Generator().manual_seed(3)  # the same draws, in the same order: rates, then W
    torch.rand(40_000, generator=again)
    W = torch.randn(3, 4, 3, generator=again, dtype=torch.float64)
    scores = x[0] @ W[1]
    wanted = scores[[0, 2]].softmax(0)
    found = torch.bincount(labels[flipped], minlength=3)[[0, 2]] / flipped.sum()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.015)


def test_huge_and_zero_samples_still_flip_to_another_class():
    y = torch.tensor([0, 1, 2]).repeat(50)
    for x in (torch.full((150, 5), 1e30), torch.zeros(150, 5)):
        labels, flipped = draws("instance", y, 0.9, 3, x=x)
        assert torch.equal(labels != y, flipped)
        assert int(flipped.sum()) > 110


@every_kind
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_outside_the_range_are_named(kind, rate):
    with pytest.raises(ValueError, match=r"rate must lie in \[0, 1\)"):
        draws(kind, torch.tensor([0, 1]), rate, 2)


def test_wrong_use_is_named():
    y = torch.tensor([0, 1, 4])
    with pytest.raises(ValueError, match=r"class 4 .* 4 classes"):
        NoisyLabels.pair(y, 0.2, 4)
    with pytest.raises(ValueError, match="at least 2"):
        NoisyLabels.symmetric(torch.zeros(3, dtype=torch.int64), 0.2, 1)
    with pytest.raises(ValueError, match="2 samples but 3 labels"):
        NoisyLabels.instance(torch.ones(2, 4), y, 0.2, 5)
    with pytest.raises(ValueError, match="spread"):
        NoisyLabels.instance(torch.ones(3, 4), y, 0.2, 5, spread=0.0)
