"""Cross-temporal decoding on planted codes."""

import numpy as np
import pytest

from neuropil.learning.evolution import TrialSchedule, cross_temporal_decoding, plot_cross_temporal

TIMES = 6


@pytest.fixture
def labels():
    return np.random.default_rng(0).integers(2, size=120)


def planted(labels, codes, noise=0.3, seed=1):
    """Activity in which time t carries the label along codes[t]."""
    drawn = np.random.default_rng(seed).normal(size=(len(labels), TIMES, codes.shape[1]))
    return noise * drawn + (2 * labels - 1)[:, None, None] * codes[None]


def test_a_code_that_stands_still_is_a_square(labels):
    codes = np.tile(np.eye(10)[0] - np.eye(10)[1], (TIMES, 1))
    assert cross_temporal_decoding(planted(labels, codes), labels).min() > 0.97


def test_a_code_that_moves_is_a_diagonal_and_a_reversed_one_is_below_chance(labels):
    codes = np.eye(TIMES, 14)
    matrix = cross_temporal_decoding(planted(labels, codes), labels)
    assert np.diag(matrix).min() > 0.9
    assert np.abs(matrix[~np.eye(TIMES, dtype=bool)].mean() - 0.5) < 0.08
    flipped = np.outer([1, 1, 1, -1, -1, -1], np.eye(14)[0] - np.eye(14)[1])
    matrix = cross_temporal_decoding(planted(labels, flipped), labels)
    assert matrix[:3, :3].min() > 0.97
    assert matrix[:3, 3:].max() < 0.03


def test_noise_is_at_chance_and_the_training_sample_is_never_tested(labels):
    matrix = cross_temporal_decoding(np.random.default_rng(5).normal(size=(120, TIMES, 200)), labels)
    assert np.abs(matrix.mean() - 0.5) < 0.06  # 200 neurons tell all 120 training samples apart


def test_rows_are_training_and_columns_testing(labels):
    codes = np.zeros((TIMES, 8))
    codes[0, :2] = 1, -1
    activity = planted(labels, codes)
    activity[:, 1:] = activity[:, :1] + np.random.default_rng(2).normal(size=(120, TIMES - 1, 8)) * 3
    matrix = cross_temporal_decoding(activity, labels)
    assert matrix[0, 0] > 0.97
    assert matrix[1:, 0].mean() > matrix[0, 1:].mean()  # a noisy time trains a fair decoder, but is hard to decode


def test_names_of_classes_do_not_matter_and_three_are_fine(labels):
    codes = np.eye(TIMES, 9)
    activity = planted(labels, codes)
    texts = np.where(labels == 1, "match", "non-match")
    assert np.array_equal(cross_temporal_decoding(activity, texts), cross_temporal_decoding(activity, labels))
    three = np.arange(120) % 3
    activity = 0.2 * np.random.default_rng(0).normal(size=(120, TIMES, 7)) + np.eye(3, 7)[three][:, None]
    assert cross_temporal_decoding(activity, three, folds=2).min() > 0.97


def test_silent_neurons_and_single_precision(labels):
    activity = planted(labels, np.eye(TIMES, 9)).astype(np.float32)
    activity[:, :, -2:] = 0
    matrix = cross_temporal_decoding(activity, labels)
    assert np.isfinite(matrix).all()
    assert np.isfinite(cross_temporal_decoding(np.zeros((120, TIMES, 3)), labels)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, y: (a, y[:-1], 5), "labels has shape"),
        (lambda a, y: (a, 0 * y, 5), "two classes, the labels have 1"),
        (lambda a, y: (a, y, 1), "folds must be at least 2"),
        (lambda a, y: (a, np.arange(120) < 3, 5), "5 folds and"),
        (lambda a, y: (a * np.nan, y, 5), "not finite"),
    ],
)
def test_wrong_use_is_named(labels, change, words):
    activity, own, folds = change(planted(labels, np.eye(TIMES, 9)), labels)
    with pytest.raises(ValueError, match=words):
        cross_temporal_decoding(activity, own, folds=folds)


def test_the_picture_has_the_matrix_and_the_periods():
    figure = plot_cross_temporal(np.eye(50), dt=20.0, schedule=TrialSchedule(), title="code")
    ax, _ = figure.axes
    assert ax.get_title() == "code"
    assert ax.images[0].get_extent() == [0, 1000, 0, 1000]
    assert len(ax.lines) == 6
    assert len(plot_cross_temporal(np.eye(50), bar=False).axes) == 1
