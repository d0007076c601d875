import math
import warnings

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.base import clone
from torch import nn

from neuropil.learning.geometry import EUCLIDEAN, NegativeEntropy, PNorm, WeightGeometry, cdf_distance

CANDIDATES = [EUCLIDEAN, PNorm(3.0), NegativeEntropy()]


def pair(potential, size=4000, change=0.1, seed=0):
    """Log-normal weights before and after a Gaussian change of their dual variables."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-1.0, 1.0], size)
    before = torch.from_numpy(signs * np.exp(rng.normal(size=size)))
    dual = potential.grad(before)
    after = potential.inverse_grad(dual + change * dual.std() * torch.from_numpy(rng.normal(size=size)), before.sign())
    return before, after


@pytest.mark.parametrize("potential", CANDIDATES, ids=lambda potential: potential.name)
def test_the_true_geometry_is_named(potential):
    before, after = pair(potential, size=20_000)
    geometry = WeightGeometry().fit(before, after)
    assert geometry.best_ == potential
    table = geometry.distance_.set_index("potential")
    assert table.loc[potential.name, "cdf_distance"] < 0.015
    assert table["cdf_distance"].drop(potential.name).min() > 0.03
    assert table.loc[potential.name, "ks_p"] > 0.01
    assert table.loc[potential.name, "relative_change"] < 0.3


def test_the_distance_of_two_points_is_an_integral():
    area, _ = integrate.quad(
        lambda x: abs(stats.norm.cdf(x) - (x >= -1) * 0.5 - (x >= 1) * 0.5), -5, 5, points=[-1, 0, 1]
    )
    assert cdf_distance([-1.0, 1.0]) == pytest.approx(area, abs=0.01)  # the grid's step


def test_the_distance_is_wassersteins_and_near_zero_for_normal_quantiles():
    quantiles = stats.norm.ppf((np.arange(2000) + 0.5) / 2000)
    assert cdf_distance(quantiles) < 2e-3
    rng = np.random.default_rng(0)
    sample = rng.exponential(size=300)
    standard = (sample - sample.mean()) / sample.std()
    theirs = stats.wasserstein_distance(standard, stats.norm.ppf((np.arange(10_000) + 0.5) / 10_000))
    assert cdf_distance(sample) == pytest.approx(theirs, abs=0.01)


def test_the_distance_knows_neither_scale_nor_place():
    sample = np.random.default_rng(0).gamma(2.0, size=500)
    distance = cdf_distance(sample)
    for same in (sample * 1e200, sample * 1e-200, sample + 7, torch.from_numpy(sample).reshape(50, 10).T):
        assert cdf_distance(same) == pytest.approx(distance, rel=1e-6)
    assert cdf_distance(-sample) == pytest.approx(distance, abs=1e-3)
    assert cdf_distance(sample, centred=False) > distance
    assert cdf_distance(sample.tolist()) == distance


@pytest.mark.parametrize("sample", [[1.0], [], [2.0, 2.0, 2.0], [0.0, 0.0], [1.0, math.nan], [1.0, math.inf]])
def test_samples_without_a_distance_are_refused(sample):
    with pytest.raises(ValueError, match="x "):
        cdf_distance(sample)


def test_unrelated_states_are_no_evidence_and_the_warning_says_so():
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match=r"2-norm.* 1\.4 times .* the verdict means nothing"):
        geometry = WeightGeometry().fit(rng.normal(size=3000), rng.normal(size=3000))
    assert geometry.best_ == EUCLIDEAN  # the trap


def test_learning_within_bounds_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        WeightGeometry().fit(*pair(NegativeEntropy()))


def test_states_of_networks_are_compared_matrix_by_matrix():
    net = nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.Linear(50, 30))
    generator = torch.Generator().manual_seed(0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    after = dict(before)
    for name in ("0.weight", "2.weight"):
        after[name] = before[name] + 0.02 * torch.randn(before[name].shape, generator=generator)
    geometry = WeightGeometry(CANDIDATES).fit(before, after)
    assert geometry.best_ == EUCLIDEAN
    assert list(geometry.distance_["tensor"].unique()) == ["0.weight", "2.weight"]  # no biases, no statistics
    assert geometry.synapses_ == 40 * 50 + 50 * 30
    single = WeightGeometry(CANDIDATES).fit(before["2.weight"].numpy(), after["2.weight"].numpy())
    for column in ("cdf_distance", "relative_change", "impossible"):
        assert list(single.distance_[column]) == list(geometry.distance_[column][3:])


def test_absent_synapses_are_left_out_and_new_ones_rule_entropy_out():
    before, after = pair(NegativeEntropy())
    known = WeightGeometry().fit(before, after)
    zeros = torch.zeros(100, dtype=torch.float64)
    padded = WeightGeometry().fit(torch.cat([before, zeros]), torch.cat([after, zeros]))
    assert padded.absent_ == 100
    assert padded.distance_.equals(known.distance_)
    before[0] = 0.0
    with pytest.warns(UserWarning, match="negative entropy is ruled out"):
        changed = WeightGeometry().fit(before, after)
    row = changed.distance_.set_index("potential").loc["negative entropy"]
    assert math.isnan(row["cdf_distance"])
    assert row["impossible"] == 1
    assert changed.best_ != NegativeEntropy()
    with pytest.raises(ValueError, match="no candidate allows"):
        WeightGeometry([NegativeEntropy()]).fit(before, after)


def test_changes_of_sign_are_counted():
    before, after = pair(EUCLIDEAN)
    flipped = int((before.sign() != after.sign()).sum())
    assert flipped > 0
    table = WeightGeometry().fit(before, after).distance_.set_index("potential")
    assert table.loc["negative entropy", "impossible"] == flipped
    assert table.loc["2-norm", "impossible"] == 0


def test_it_is_an_estimator():
    geometry = WeightGeometry([PNorm(3.0)])
    assert clone(geometry).potentials == [PNorm(3.0)]
    assert geometry.get_params() == {"potentials": [PNorm(3.0)]}
    assert geometry.fit(*pair(PNorm(3.0), size=50)) is geometry
    inputs = pair(EUCLIDEAN, size=50)
    kept = [state.clone() for state in inputs]
    WeightGeometry().fit(*inputs)
    assert all(torch.equal(state, copy) for state, copy in zip(inputs, kept, strict=True))


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], r"shape \(2,\) before and \(3,\) after"),
        ([1.0, 2.0], [1.0, math.nan], "1 weights that are not finite after"),
        ([1.0, 2.0], [1.0, 2.0], "did not change"),
        ([1.0], [2.0], "did not change"),
        ([], [], "did not change"),
        ([1e200, 1.0], [2e200, -1.0], "overflow under the 3-norm"),
        ({"w": np.ones((2, 2))}, {"v": np.ones((2, 2))}, r"\['v', 'w'\]"),
        ({"b": np.ones(2)}, {"b": np.ones(2)}, "no floating-point tensor"),
        ([["a"]], [["b"]], "numbers"),
    ],
)
def test_states_that_cannot_be_compared_are_refused(before, after, message):
    with pytest.raises(ValueError, match=message):
        WeightGeometry().fit(before, after)


def test_wrong_kinds_are_named():
    with pytest.raises(TypeError, match="Two mappings or two arrays, got dict and list"):
        WeightGeometry().fit({"w": np.ones((2, 2))}, [1.0, 2.0])
    for potentials in ([], ["2-norm"]):
        geometry = WeightGeometry().set_params(potentials=potentials)
        with pytest.raises(TypeError, match="potentials must be"):
            geometry.fit([1.0, 2.0], [1.0, 3.0])
