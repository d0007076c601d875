import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuropil.learning.inhibition import (
    RIVALS,
    isolated_curve,
    plasticity_curve,
    plot_isolated,
    plot_plasticity,
    rival_curve,
    zero_crossings,
)


def phi(u, shift=3.0):
    return np.logaddexp(0.0, u - shift)


def slope(u, shift=3.0):
    return 1 / (1 + np.exp(shift - u))


@given(target=st.floats(1.0, 6.0))
def test_the_exact_rule_changes_sign_at_the_target(target):
    curve = plasticity_curve(np.linspace(0, 24, 2400), target)
    (crossing,) = zero_crossings(curve["r_e"], curve["dw"])
    assert crossing == pytest.approx(target, abs=1e-3)
    assert curve["dw"][curve["r_e"] < target - 0.01].min() >= 0
    assert curve["dw"][curve["r_e"] > target + 0.01].max() <= 0


def test_without_a_target_the_exact_rule_is_silent():
    curve = plasticity_curve(np.linspace(0, 12, 50), steps=4000)
    assert np.abs(curve["dw"]).max() < 1e-9


def test_the_microcircuit_is_at_rest_where_its_equations_say():
    x = np.linspace(0, 10, 21)
    curve = plasticity_curve(x, 3.0, 1.5, 1.5, steps=4000)
    u_e = 3 + np.log(np.expm1(curve["r_e"]))
    u_i = 3 + np.log(np.expm1(curve["r_i"]))
    assert np.allclose(u_e, x - curve["r_i"], atol=1e-9)
    assert np.allclose(u_i, curve["r_e"] - 5 * (3.0 - curve["r_e"]), atol=1e-6)
    assert np.allclose(curve["dw"], x * (curve["r_e"] - 1.5 - 1.5 * curve["r_i"]) * slope(u_e))


@given(theta=st.floats(0.5, 3.0), delta=st.floats(0.5, 2.0))
def test_inhibition_moves_the_threshold_along_a_line(theta, delta):
    inhibition = np.linspace(0.01, 2, 4)
    table = isolated_curve(np.linspace(0.01, 12, 20_001), inhibition, theta, delta)
    for rate in inhibition:
        rows = table[np.isclose(table["r_i"], rate)]
        assert zero_crossings(rows["r_e"], rows["dw"])[-1] == pytest.approx(theta + delta * rate, abs=1e-6)


def test_the_isolated_exact_rule_compares_with_the_inverse():
    table = isolated_curve([5.0], [1.0])
    inverse = 3 + np.log(np.expm1(1.0))
    assert table["dw"][0] == pytest.approx(5.0 * (phi(5.0) - inverse) * slope(5.0))


def test_zero_crossings_are_interpolated_and_touching_is_none():
    assert zero_crossings([0, 1, 2], [-1, 1, -3]).tolist() == [0.5, 1.25]
    assert zero_crossings([0, 1, 2], [1, 0, 1]).size == 0
    assert zero_crossings([0, 1, 2], [1, 0, -1]).tolist() == [1.0]
    assert zero_crossings([0.0], [0.0]).size == 0


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_have_no_bcm_curve_without_feedback(name):
    changes = rival_curve(name, np.linspace(0, 13, 400))["dw"]
    assert changes.max() <= 1e-9


@pytest.mark.parametrize("name", ["Meulemans 2021", "Payeur 2021"])
def test_rivals_with_a_target_change_sign_at_it(name):
    curve = rival_curve(name, np.linspace(0, 6, 2000), target=3.0)
    (crossing,) = zero_crossings(curve["r_e"], curve["dw"])
    assert crossing == pytest.approx(3.0, abs=1e-2)


def test_the_bursting_network_changes_sign_where_its_output_meets_the_target():
    curve = rival_curve("Greedy 2022", np.linspace(0, 6, 2000), target=3.0)
    (crossing,) = zero_crossings(curve["r_e"], curve["dw"])
    assert np.logaddexp(0, crossing) == pytest.approx(3.0, abs=1e-2)


@pytest.mark.parametrize("name", RIVALS)
def test_imposed_inhibition_only_depresses_rivals(name):
    x = np.linspace(0.1, 8, 50)
    weak, strong = (rival_curve(name, x, inhibition=r)["dw"].to_numpy() for r in (0.5, 2.0))
    assert (weak < 0).all()
    assert (strong < weak).all()


def test_sacramento_is_at_rest_where_its_equations_say():
    x = np.linspace(0, 8, 9)
    curve = rival_curve("Sacramento 2018", x, target=2.0)
    u_e = np.log(np.expm1(curve["r_e"].to_numpy()))
    u_i = (np.logaddexp(0, u_e) + 2.0) / 1.1
    assert np.allclose(1.9 * u_e, x + 0.8 * (2.0 - 0.55 * np.logaddexp(0, u_i)), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plasticity_curve([]), "at least one"),
        (lambda: plasticity_curve([np.nan]), "finite"),
        (lambda: plasticity_curve([1.0], theta=1.0), "both theta and delta"),
        (lambda: isolated_curve([1.0], delta=1.0), "both theta and delta"),
        (lambda: isolated_curve([1.0], [0.0]), "positive"),
        (lambda: rival_curve("Hebb 1949", [1.0]), "No rival named 'Hebb 1949'"),
        (lambda: rival_curve("Payeur 2021", [1.0], target=1.0, inhibition=1.0), "not both"),
        (lambda: rival_curve("Payeur 2021", [np.inf]), "finite"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_curves_can_be_drawn():
    x = np.linspace(0, 10, 50)
    figure = plot_plasticity({"target 3": plasticity_curve(x, 3.0)}, targets={"target 3": 3.0}, title="one neuron")
    assert [line.get_label() for line in figure.axes[0].lines][1] == "target 3"
    assert plot_isolated(isolated_curve(x, theta=1.5, delta=1.5), figure.axes[0]) is figure
