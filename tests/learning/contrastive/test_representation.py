import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import check_estimator
from torch.testing import assert_close

from neuropil.learning.contrastive import ClassEnsembles, hoyer_sparseness


def test_sparseness_has_its_limits():
    one, alike = torch.zeros(9), torch.full((9,), 3.0)
    one[4] = -2.0
    assert float(hoyer_sparseness(one)) == pytest.approx(1)
    assert float(hoyer_sparseness(alike)) == pytest.approx(0, abs=1e-6)
    assert hoyer_sparseness(torch.zeros(2, 9)).isnan().all()
    pair = torch.tensor([1.0, 1.0, 0.0, 0.0])  # (2 - sqrt 2) / (2 - 1)
    assert float(hoyer_sparseness(pair)) == pytest.approx(2 - 2**0.5)
    assert float(hoyer_sparseness(torch.tensor([3, 0, 0, 0]))) == pytest.approx(1)


@given(st.integers(0, 100), st.floats(1e-30, 1e30), st.sampled_from([torch.float32, torch.float64]))
def test_sparseness_knows_neither_scale_nor_sign_nor_order(seed, scale, dtype):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(3, 7, generator=generator, dtype=dtype)
    order = torch.randperm(7, generator=generator)
    expected = hoyer_sparseness(a)
    assert_close(hoyer_sparseness(-scale * a[:, order]), expected, rtol=1e-4, atol=1e-5)
    assert_close(hoyer_sparseness(a.T, dim=0), expected)
    assert expected.dtype == dtype
    assert ((expected >= 0) & (expected <= 1)).all()


def test_one_unit_has_no_sparseness():
    with pytest.raises(ValueError, match="at least 2 units"):
        hoyer_sparseness(torch.ones(4, 1))


def blocks(classes=4, units=40, samples=10):
    """Each class drives 2 units of its own strongly, and the next class's first one too."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), samples)
    x = 0.1 * rng.random((len(y), units))
    for c in range(classes):
        x[np.ix_(y == c, [2 * c, 2 * c + 1, (2 * c + 2) % (2 * classes)])] += 5
    return x, y


@pytest.mark.parametrize("criterion", ["deviations", "reliable"])
def test_ensembles_that_were_put_there_are_found(criterion):
    x, y = blocks()
    found = ClassEnsembles(criterion=criterion).fit(torch.from_numpy(x), torch.from_numpy(y))
    expected = np.zeros((4, 40), bool)
    for c in range(4):
        expected[c, [2 * c, 2 * c + 1, (2 * c + 2) % 8]] = True
    assert (found.members_ == expected).all()
    assert found.size_ == pytest.approx(3 / 40)
    assert found.overlap_[0, 1] == pytest.approx(1 / 5)
    assert found.overlap_[0, 2] == 0
    assert np.diag(found.overlap_) == pytest.approx(1)
    assert (found.overlap_ == found.overlap_.T).all()
    assert (found.share_ > 0.8).all()


def test_a_unit_that_answers_rarely_is_not_reliable():
    x, y = blocks()
    x[:, 20] = 0
    x[0, 20] = 1000  # one sample makes its mean large
    assert ClassEnsembles().fit(x, y).members_[0, 20]
    assert not ClassEnsembles(criterion="reliable", threshold=0.01).fit(x, y).members_[0, 20]


def test_silent_layers_and_single_classes_are_no_error():
    silent = ClassEnsembles().fit(np.zeros((4, 3)), [0, 0, 1, 1])
    assert not silent.members_.any()
    assert not silent.overlap_.any()
    assert not silent.share_.any()
    assert ClassEnsembles().fit(np.eye(3), [7, 7, 7]).classes_.tolist() == [7]


def test_it_is_an_estimator_of_scikit_learn():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks that need optional packages are skipped with a warning
        check_estimator(ClassEnsembles())


@pytest.mark.parametrize(
    ("options", "words"), [({"criterion": "x"}, "criterion must be one of"), ({"threshold": -1.0}, "negative")]
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        ClassEnsembles(**options).fit(*blocks())
