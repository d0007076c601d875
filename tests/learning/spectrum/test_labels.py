import pytest
import torch
from torch.testing import assert_close

from neuropil.learning.spectrum import NoisyLabels

N = 20_000


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def y():
    return torch.randint(5, (N,), generator=seeded(9))


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_symmetric_noise_has_its_rate_and_prefers_no_class(y, rate):
    labels, flipped = NoisyLabels.symmetric(y, rate, 5, seeded())
    assert torch.equal(flipped, labels != y)
    assert float(flipped.float().mean()) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / N) ** 0.5)
    shifts = torch.bincount((labels - y)[flipped] % 5, minlength=5).double()
    assert shifts[0] == 0
    assert_close(shifts[1:] / shifts.sum(), torch.full((4,), 0.25, dtype=torch.float64), rtol=0, atol=0.02)


def test_pair_noise_moves_to_the_next_class(y):
    labels, flipped = NoisyLabels.pair(y, 0.45, 5, seeded())
    assert float(flipped.float().mean()) == pytest.approx(0.45, abs=0.015)
    assert torch.equal(labels[flipped], (y[flipped] + 1) % 5)
    assert torch.equal(labels[~flipped], y[~flipped])


def test_instance_noise_has_its_rates_and_no_true_class_among_the_wrong_ones(y):
    x = torch.randn(N, 2, 3, generator=seeded(1))
    labels, flipped = NoisyLabels.instance(x, y, 0.45, 5, seeded())
    assert float(flipped.float().mean()) == pytest.approx(0.45, abs=0.015)
    assert torch.equal(flipped, labels != y)
    exact = NoisyLabels.instance(x, y, 0.3, 5, seeded(), spread=0.0)
    assert float(exact.flipped.float().mean()) == pytest.approx(0.3, abs=0.015)


def test_instance_noise_depends_on_the_sample():
    """The same sample in the same class is mistaken for the same class, if its features are large."""
    y = torch.zeros(2000, dtype=torch.int64)
    x = 1e3 * torch.randn(2, 4, generator=seeded(3))[torch.arange(2000) % 2]
    labels, flipped = NoisyLabels.instance(x, y, 0.5, 10, seeded())
    for kind in range(2):
        assert len(labels[flipped & (torch.arange(2000) % 2 == kind)].unique()) == 1
    nothing = NoisyLabels.instance(0 * x, y, 0.5, 10, seeded())
    assert len(nothing.labels[nothing.flipped].unique()) == 9  # no features: symmetric


def test_rate_zero_flips_nothing(y):
    x = torch.randn(N, 3, generator=seeded(1))
    for noisy in (
        NoisyLabels.symmetric(y, 0.0, 5, seeded()),
        NoisyLabels.pair(y, 0.0, 5, seeded()),
        NoisyLabels.instance(x, y, 0.0, 5, seeded(), spread=0.0),
    ):
        assert not noisy.flipped.any()
        assert torch.equal(noisy.labels, y)


def test_a_cut_off_normal_moves_its_mean_inwards(y):
    noisy = NoisyLabels.instance(torch.zeros(N, 1), y, 0.0, 5, seeded())
    assert float(noisy.flipped.float().mean()) == pytest.approx(0.1 * (2 / torch.pi) ** 0.5, abs=0.008)


def test_the_generator_decides_and_the_input_is_left_alone(y):
    x, before = torch.randn(N, 3, generator=seeded(1)), y.clone()
    state = torch.random.get_rng_state()
    for draw in (
        lambda g: NoisyLabels.symmetric(y, 0.5, 5, g),
        lambda g: NoisyLabels.pair(y, 0.5, 5, g),
        lambda g: NoisyLabels.instance(x, y, 0.5, 5, g),
    ):
        assert torch.equal(draw(seeded()).labels, draw(seeded()).labels)
        assert not torch.equal(draw(seeded()).labels, draw(seeded(1)).labels)
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(y, before)


def test_one_sample_huge_features_and_float32():
    y = torch.tensor([1])
    for size in (1e-30, 1.0, 1e30):
        labels, _ = NoisyLabels.instance(torch.full((1, 4), size), y, 0.9, 3, seeded())
        assert int(labels) in (0, 1, 2)
    assert NoisyLabels.symmetric(y[:0], 0.5, 3).labels.shape == (0,)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_none_is_refused(rate):
    y, x = torch.tensor([0, 1]), torch.ones(2, 3)
    for draw in (
        lambda: NoisyLabels.symmetric(y, rate, 2),
        lambda: NoisyLabels.pair(y, rate, 2),
        lambda: NoisyLabels.instance(x, y, rate, 2),
    ):
        with pytest.raises(ValueError, match="rate must lie in"):
            draw()


def test_other_nonsense_is_refused():
    y = torch.tensor([0, 3])
    with pytest.raises(ValueError, match="0 to 2, got 0 to 3"):
        NoisyLabels.symmetric(y, 0.5, 3)
    with pytest.raises(ValueError, match="n_classes must be at least 2"):
        NoisyLabels.pair(y, 0.5, 1)
    with pytest.raises(ValueError, match="spread"):
        NoisyLabels.instance(torch.ones(2, 3), y, 0.5, 4, spread=-1.0)
    with pytest.raises(ValueError, match="finite samples"):
        NoisyLabels.instance(torch.full((2, 3), float("nan")), y, 0.5, 4)
