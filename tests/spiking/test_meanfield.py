import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuropil.spiking.network.meanfield import (
    brunel_fixed_points,
    brunel_rate,
    mean_field_rates,
    siegert_rate,
    threshold_rate,
)

CELL = {"tau": 20.0, "theta": 20.0, "v_reset": 10.0, "t_ref": 2.0}


def by_mpmath(mu, sigma, tau, theta, v_reset, t_ref):
    with mpmath.workdps(25):
        low, high = ((mpmath.mpf(v) - mu) / sigma for v in (v_reset, theta))
        inner = [x for x in (-300, -30, -10, -3, 0, 3, 8, 13, 18, 22, 26) if low < x < high]
        integral = mpmath.quad(lambda u: mpmath.exp(u * u) * mpmath.erfc(-u), [low, *inner, high])
        return float(1000 / (t_ref + tau * mpmath.sqrt(mpmath.pi) * integral))


@pytest.mark.parametrize("upper", [-1000.0, -50.0, -49.9, -7.0, -0.5, 0.0, 0.3, 6.3, 6.4, 25.0])
@pytest.mark.parametrize("width", [1e-6, 0.3, 4.0, 120.0])
def test_the_integral_agrees_with_twenty_five_digits(upper, width):
    sigma = 10.0 / width  # threshold 20, reset 10
    mu = 20.0 - upper * sigma
    expected = by_mpmath(mu, sigma, *CELL.values())
    # mu is rounded: a rate far below threshold magnifies that
    slack = 1e-10 + 4 * abs(upper) * np.spacing(abs(mu)) / sigma
    assert siegert_rate(mu, sigma, **CELL) == pytest.approx(expected, rel=slack, abs=0)


def test_without_noise_it_is_the_rate_of_the_noiseless_neuron():
    def noiseless(mu):
        return 1000 / (2 + 20 * np.log((mu - 10) / (mu - 20)))

    mu = np.array([20.001, 21.0, 30.0, 1e3, 1e9])
    for sigma in (0.0, 1e-320, 1e-12):
        np.testing.assert_allclose(siegert_rate(mu, sigma, **CELL), noiseless(mu), rtol=1e-12)
    np.testing.assert_array_equal(siegert_rate([-50.0, 5.0, 19.9, 20.0], 0.0, **CELL), 0.0)
    # and the approach to it is quadratic in sigma
    small, smaller = (siegert_rate(25.0, s, **CELL) - noiseless(25.0) for s in (0.1, 0.05))
    assert small / smaller == pytest.approx(4, rel=0.01)


@given(st.floats(-1e150, 1e150), st.floats(0, 1e150), st.floats(0, 10), st.floats(1e-3, 1e3))
def test_rates_are_finite_and_bounded_whatever_the_input(mu, sigma, t_ref, tau):
    with np.errstate(all="raise", under="ignore"):
        rate = siegert_rate(mu, sigma, tau, 20.0, 10.0, t_ref)
    assert rate >= 0 and (t_ref == 0 or rate <= 1000 / t_ref * (1 + 1e-12))
    assert np.isfinite(rate) or t_ref == 0


def test_rates_grow_with_the_mean_and_broadcast():
    rates = siegert_rate(np.linspace(-20, 60, 801), np.array([[0.5], [2.0], [8.0]]), **CELL)
    assert rates.shape == (3, 801) and (np.diff(rates) >= 0).all() and (np.diff(rates[2]) > 0).all()
    assert isinstance(siegert_rate(15.0, 3.0, **CELL), float)
    alone = [siegert_rate(mu, sigma, **CELL) for mu, sigma in ((-20, 0.5), (20, 2.0), (60, 8.0))]
    assert [rates[0, 0], rates[1, 400], rates[2, 800]] == pytest.approx(alone, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sigma": -1.0}, "sigma must be at least 0, got -1"),
        ({"tau": 0.0}, "tau must be positive, got 0"),
        ({"t_ref": -2.0}, "t_ref must be at least 0, got -2"),
        ({"mu": [1.0, np.nan]}, "mu must be finite, got nan"),
        ({"theta": 10.0}, "theta must lie above v_reset"),
        ({"mu": [1.0, 2.0], "sigma": [1.0, 2.0, 3.0]}, r"do not broadcast: mu \(2,\), sigma \(3,\)"),
    ],
)
def test_bad_numbers_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        siegert_rate(**({"mu": 15.0, "sigma": 3.0} | CELL | change))


@pytest.mark.parametrize(("g", "eta", "rate"), [(6, 4, 55.8), (5, 2, 38.0), (4.5, 0.9, 6.5)])
def test_theory_of_brunels_table(g, eta, rate):
    assert brunel_rate(g=g, eta=eta) == pytest.approx(rate, abs=0.06)


def test_the_small_network_has_a_rate_of_its_own():
    small = brunel_rate(g=5, eta=2, weight=0.2, in_degree=100, inhibitory_in_degree=25)
    assert small == pytest.approx(77.13, abs=0.005)
    assert threshold_rate(weight=0.1, in_degree=1000, tau=20.0, theta=20.0) == pytest.approx(10.0)


def test_of_several_rates_the_lowest_is_taken_and_stability_alternates():
    points = brunel_fixed_points(g=3, eta=0.5)
    assert [point.stable for point in points] == [True, False, True]
    assert brunel_rate(g=3, eta=0.5) == points[0].rate < 1e-6
    for nu in (point.rate / 1000 for point in points):
        mu, variance = 2000 * (0.25 * nu + 0.005), 200 * (3.25 * nu + 0.005)
        assert siegert_rate(mu, np.sqrt(variance), **CELL) == pytest.approx(1000 * nu, abs=1e-8)
    assert brunel_fixed_points(g=0, eta=0)[0].rate == 0  # no input at all


def test_populations_that_are_alike_are_brunels_network():
    for g, eta in ((6, 4), (3, 2)):
        drive = {"mu": 20.0 * eta, "sigma": np.sqrt(1000 * 0.01 * 20 * 0.01 * eta)}
        rates = mean_field_rates([[1000, 250]] * 2, [[0.1, -0.1 * g]] * 2, **drive, **CELL)
        np.testing.assert_allclose(rates, brunel_rate(g=g, eta=eta), rtol=1e-9)


def test_different_populations_reproduce_each_other():
    degrees, weights = np.array([[800, 200], [700, 150]]), np.array([[0.1, -0.4], [0.08, -0.45]])
    mu, sigma, tau = np.array([30.0, 24.0]), np.array([2.0, 1.5]), np.array([20.0, 10.0])
    cell = {"theta": 20.0, "v_reset": np.array([10.0, 12.0]), "t_ref": np.array([2.0, 1.0])}
    nu = mean_field_rates(degrees, weights, mu=mu, sigma=sigma, tau=tau, **cell)
    m = mu + tau * ((degrees * weights) @ nu) / 1000
    s = np.sqrt(sigma**2 + tau * ((degrees * weights**2) @ nu) / 1000)
    np.testing.assert_allclose(siegert_rate(m, s, tau, **cell), nu, rtol=1e-9)
    assert nu[0] != pytest.approx(nu[1], rel=0.1) and (nu > 1).all()


def test_excitation_and_inhibition_that_chase_each_other_settle():
    """Relaxing at one speed, these two oscillate."""
    degrees, weights = np.array([[1000, 250], [1000, 0]]), np.array([[0.1, -0.5], [0.1, 0.0]])
    nu = mean_field_rates(degrees, weights, mu=[21.0, 5.0], sigma=2.0, **CELL)
    mu, variance = [21.0, 5.0] + 0.02 * ((degrees * weights) @ nu), 4.0 + 0.02 * ((degrees * weights**2) @ nu)
    np.testing.assert_allclose(siegert_rate(mu, np.sqrt(variance), **CELL), nu, rtol=1e-9)
    assert (nu > 5).all()


def test_rates_that_never_settle_are_refused():
    ring = np.roll(np.eye(5), 1, axis=0)  # of an odd number, each stifling the next
    with pytest.raises(RuntimeError, match="do not settle"):
        mean_field_rates(100 * ring, -8 * ring, mu=[30, 30.5, 31, 29, 30], sigma=0.5, **CELL)


def test_shapes_and_numbers_of_populations_are_checked():
    good = {"in_degrees": [[10.0]], "weights": [[0.1]], "mu": 25.0, "sigma": 1.0} | CELL
    for change, words in (
        ({"weights": [[0.1, 0.2]]}, "square and of one shape"),
        ({"in_degrees": [[-1.0]]}, "in_degrees must be at least 0"),
        ({"mu": [1.0, 2.0]}, "mu must be a number or one for each of 1 populations"),
    ):
        with pytest.raises(ValueError, match=words):
            mean_field_rates(**(good | change))
    with pytest.raises(ValueError, match="weight must be finite and above 0"):
        brunel_rate(g=5, eta=2, weight=0.0)
    with pytest.raises(ValueError, match="t_ref must be finite and above 0"):
        brunel_rate(g=5, eta=2, t_ref=0.0)
    with pytest.raises(ValueError, match="eta must be finite and at least 0"):
        brunel_rate(g=5, eta=-1)
