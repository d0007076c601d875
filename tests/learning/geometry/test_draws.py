import math

import pytest
import torch
from scipy.linalg import toeplitz
from torch.testing import assert_close

from neuropil.learning.geometry import correlated_gaussian, lognormal_init_
from neuropil.learning.geometry.draws import _amplitudes, _colour


def wanted(d, power, scale):
    distance = torch.arange(d, dtype=torch.float64)
    row = (1 - 2 * (distance % 2)) / (1 + (distance / scale).pow(power))
    return torch.from_numpy(toeplitz(row.numpy()))


@pytest.mark.parametrize(
    ("d", "power", "scale"), [(1, 1, 1), (2, 1, 1), (50, 1, 1), (50, 2, 1), (40, 0.5, 7), (20, 2, 5)]
)
def test_the_covariance_is_the_toeplitz_matrix(d, power, scale):
    amplitude = _amplitudes(d, power, float(scale))
    ring = 2 * (len(amplitude) - 1)
    root = _colour(torch.eye(ring, dtype=torch.float64), amplitude)  # what every unit of noise becomes
    covariance = (root.T @ root)[:d, :d]
    signs = (1 - 2 * (torch.arange(d) % 2)).double()
    assert_close(covariance * signs * signs[:, None], wanted(d, power, scale), atol=2e-6, rtol=0)


def test_samples_have_that_covariance(generator):
    x = correlated_gaussian(20_000, 6, generator=generator)
    assert_close(x.T @ x / len(x), wanted(6, 1, 1), atol=0.05, rtol=0)
    assert x.dtype == torch.float64
    assert correlated_gaussian(3, 4, generator=generator, dtype=torch.float32).dtype == torch.float32


def test_the_same_seed_draws_the_same():
    one, other = (correlated_gaussian(3, 9, 2.0, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 3), "n and d"),
        ((3, 0), "n and d"),
        ((3, 3, 2.5), r"power must lie in \(0, 2\]"),
        ((3, 3, 1.0, 0.0), "scale"),
        ((3, 100, 2.0, 1e4), "No ring"),
    ],
)
def test_correlations_that_there_are_not_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        correlated_gaussian(*arguments)


def test_log_normal_magnitudes_with_random_signs(generator):
    w = lognormal_init_(torch.empty(200, 300), -2.0, 0.7, generator=generator)
    logs = w.abs().log()
    assert float(logs.mean()) == pytest.approx(-2.0, abs=0.01)
    assert float(logs.std()) == pytest.approx(0.7, abs=0.01)
    assert float(w.sign().mean()) == pytest.approx(0.0, abs=0.02)
    assert float(w.square().mean()) == pytest.approx(math.exp(-4 + 2 * 0.49), rel=0.05)


def test_signs_may_be_given_by_column_as_dale_has_them(generator):
    signs = torch.tensor([1.0, -1.0, 1.0])
    w = lognormal_init_(torch.empty(5, 3), signs=signs, generator=generator)
    assert torch.equal(w.sign(), signs.expand(5, 3))
    assert (lognormal_init_(torch.empty(5), signs=-1.0, generator=generator) < 0).all()


def test_no_spread_is_one_magnitude_and_parameters_are_filled_in_place(generator):
    parameter = torch.nn.Parameter(torch.empty(4, 2, dtype=torch.float64))
    assert lognormal_init_(parameter, math.log(3.0), 0.0, generator=generator) is parameter
    assert_close(parameter.detach().abs(), torch.full((4, 2), 3.0, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": math.nan}, "mu"),
        ({"sigma": -1.0}, "sigma"),
        ({"signs": torch.tensor([1.0, 0.0])}, "signs must be 1 and -1"),
        ({"signs": torch.ones(3)}, r"signs of shape \(3,\) do not fit .* \(4, 2\)"),
    ],
)
def test_wrong_log_normals_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        lognormal_init_(torch.empty(4, 2), **options)
