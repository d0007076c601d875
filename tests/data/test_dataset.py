import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.data import Dataset


def make(train: int = 40, test: int = 10, classes: int = 3) -> Dataset:
    """Every sample carries its own number: 0.. in the training part, 1000.. in the test part."""
    x_train = torch.arange(float(train))[:, None, None].expand(-1, 2, 3)
    x_test = torch.arange(1000.0, 1000.0 + test)[:, None, None].expand(-1, 2, 3)
    names = tuple("abcdefgh"[:classes])
    return Dataset("made", x_train, torch.arange(train) % classes, x_test, torch.arange(test) % classes, names)


def numbers(x: torch.Tensor) -> list[int]:
    return x.flatten(1)[:, 0].int().tolist()


def test_sizes():
    data = make()
    assert (data.classes, data.shape, data.features) == (3, (2, 3), 6)


def test_repr_has_sizes_and_no_tensors():
    assert repr(make()) == "Dataset('made', 40 train, 10 test, shape (2, 3), 3 classes, float32 on cpu)"


def test_is_frozen_and_hashable():
    data = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.name = "other"  # type: ignore[misc]
    assert len({data, data, make()}) == 2


def test_flat_makes_vectors():
    data = make().flat()
    assert data.x_train.shape == (40, 6)
    assert data.x_test.shape == (10, 6)
    assert data.features == 6
    assert_close(data.flat().x_train, data.x_train)


def test_to_changes_samples_and_leaves_labels_int64():
    data = make().to("cpu", torch.float64)
    assert data.x_train.dtype == data.x_test.dtype == torch.float64
    assert data.y_train.dtype == data.y_test.dtype == torch.int64


@given(train=st.integers(1, 40), test=st.integers(1, 10), seed=st.integers(0, 99))
def test_a_subset_has_the_sizes_and_the_right_labels(train, test, seed):
    data = make().subset(train, test, seed=seed)
    drawn = numbers(data.x_train), numbers(data.x_test)
    assert [len(set(part)) for part in drawn] == [train, test]
    assert data.y_train.tolist() == [number % 3 for number in drawn[0]]
    assert data.y_test.tolist() == [(number - 1000) % 3 for number in drawn[1]]


def test_a_subset_is_stratified_and_follows_the_seed():
    first, again, other = (make().subset(12, seed=seed) for seed in (0, 0, 1))
    assert first.y_train.bincount().tolist() == [4, 4, 4]
    assert numbers(first.x_train) == numbers(again.x_train) != numbers(other.x_train)


def test_a_part_that_is_not_named_stays():
    data = make()
    assert data.subset(test=5).x_train is data.x_train
    assert data.subset(train=5).x_test is data.x_test


def test_more_than_there_is_names_how_many_there_are():
    with pytest.raises(ValueError, match="train must be 1 to 40"):
        make().subset(train=41)
    with pytest.raises(ValueError, match="test must be 1 to 10"):
        make().subset(test=0)
    with pytest.raises(TypeError, match="got float"):
        make().subset(train=0.5)  # type: ignore[arg-type]


@given(size=st.integers(1, 39), seed=st.integers(0, 99))
def test_holdout_parts_the_training_part_and_leaves_the_test_part_out(size, seed):
    data = make().holdout(size, seed=seed)
    assert len(data.x_test) == size
    assert sorted(numbers(data.x_train) + numbers(data.x_test)) == list(range(40))
    assert data.y_test.tolist() == [number % 3 for number in numbers(data.x_test)]
    assert data.name == "made (validation)"


def test_holdout_takes_fractions():
    data = make().holdout(0.25)
    assert (len(data.x_train), len(data.x_test)) == (30, 10)
    assert data.holdout(0.5).name == "made (validation)"


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (40, ValueError, r"size_or_fraction must be 1 to 39, .* got 40"),
        (0, ValueError, r"must be 1 to 39, .* got 0"),
        (1.0, ValueError, "must lie between 0 and 1 where it is a fraction, got 1.0"),
        (0.001, ValueError, r"\(0.001 of 40 training samples\) must be 1 to 39, .* got 0"),
        (float("nan"), ValueError, "between 0 and 1"),
        ("half", TypeError, "got str"),
    ],
)
def test_holdouts_out_of_range_are_named(size, error, message):
    with pytest.raises(error, match=message):
        make().holdout(size)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x_train": [[0.0]]}, TypeError, "x_train must be a torch.Tensor, got list"),
        ({"y_test": torch.zeros(10)}, TypeError, "y_test must be int64, got float32"),
        (
            {"y_train": torch.zeros(39, dtype=torch.int64)},
            ValueError,
            r"x_train has shape \(40, 2, 3\), y_train \(39,\)",
        ),
        ({"y_train": torch.zeros(40, 1, dtype=torch.int64)}, ValueError, "wanted one label a sample"),
        ({"x_test": torch.zeros(10, 3, 2)}, ValueError, r"x_train has shape \(2, 3\), one of x_test \(3, 2\)"),
        (
            {"x_test": torch.zeros(10, 2, 3).double()},
            ValueError,
            "x_train has dtype torch.float32, x_test torch.float64",
        ),
        ({"class_names": ("a", "b")}, ValueError, r"class 2 in y_train, but there are 2 class names \(0 to 1\)"),
        ({"y_test": torch.full((10,), -1)}, ValueError, "class -1 in y_test"),
        ({"x_test": torch.zeros(0, 2, 3), "y_test": torch.zeros(0).long()}, ValueError, "x_test is empty"),
        ({"x_test": torch.zeros(10, 2, 3, device="meta")}, ValueError, "x_test is on meta, y_test on cpu"),
    ],
)
def test_parts_that_do_not_agree_are_named(change, error, message):
    with pytest.raises(error, match=message):
        dataclasses.replace(make(), **change)
