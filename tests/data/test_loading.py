import gzip

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from neuropil.data import DataError, load
from neuropil.data.folders import cache_folder

LABELS = "t10k-labels-idx1-ubyte.gz"


def rows(x: torch.Tensor) -> list[bytes]:
    return [sample.numpy().tobytes() for sample in x]


def test_digits():
    data = load("digits")
    assert data.x_train.shape == (1437, 1, 8, 8)
    assert data.x_test.shape == (360, 1, 8, 8)
    assert data.x_train.dtype == torch.float32
    assert (float(data.x_train.min()), float(data.x_train.max())) == (0.0, 1.0)
    assert_close(data.x_train * 16, (data.x_train * 16).round(), rtol=0, atol=0)
    assert (data.classes, data.features, data.source) == (10, 64, "scikit-learn")


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_split_of_the_digits_is_stratified_and_loses_nothing(seed):
    data = load("digits", seed=seed)
    whole = load("digits")
    assert sorted(rows(data.x_train) + rows(data.x_test)) == sorted(rows(whole.x_train) + rows(whole.x_test))
    totals = data.y_train.bincount() + data.y_test.bincount()
    assert ((data.y_test.bincount() - totals * 360 / 1797).abs() < 1).all()


def test_the_seed_splits_the_digits():
    first, again, other = (load("digits", seed=seed) for seed in (3, 3, 4))
    assert_close(first.x_test, again.x_test)
    assert sorted(rows(first.x_test)) != sorted(rows(other.x_test))


def test_labels_of_the_digits_belong_to_their_images():
    data = load("digits").flat()
    means = torch.stack([data.x_train[data.y_train == label].mean(0) for label in range(10)])
    nearest = torch.cdist(data.x_test, means).argmin(1)
    assert (nearest == data.y_test).float().mean() > 0.85


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_official_split(name, shared):
    shared(name)
    data = load(name, seed=1)
    assert data.x_train.shape == (60_000, 1, 28, 28)
    assert data.x_test.shape == (10_000, 1, 28, 28)
    assert data.x_train.dtype == torch.float32
    assert (float(data.x_train.min()), float(data.x_train.max())) == (0.0, 1.0)
    assert len(data.y_train.bincount()) == 10
    assert data.source == f"$NEUROPIL_DATA/{name}"
    assert_close(load(name).x_test, data.x_test)


def test_well_known_numbers_of_mnist(shared):
    shared("mnist")
    data = load("mnist")
    assert data.y_train[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert float(data.x_train.mean()) == pytest.approx(0.1307, abs=1e-4)
    assert float(data.x_train.std()) == pytest.approx(0.3081, abs=1e-4)


def test_well_known_numbers_of_fashion_mnist(shared):
    shared("fashion-mnist")
    data = load("fashion-mnist")
    assert data.class_names[int(data.y_train[0])] == "Ankle boot"
    assert float(data.x_train.mean()) == pytest.approx(0.2860, abs=1e-4)
    assert data.y_train.bincount().tolist() == [6000] * 10


def test_files_become_tensors(tiny):
    tiny.write(cache_folder() / "tiny")
    data = load("tiny")
    assert data.x_train.shape == (6, 1, 3, 2)
    np.testing.assert_array_equal(
        data.x_test[:, 0].numpy(), tiny.arrays["t10k-images-idx3-ubyte.gz"] / np.float32(255), strict=True
    )
    assert data.y_train.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.source == "cache"


def test_repacked_files_are_the_same_data(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))
    folder = tiny.write(tmp_path / "tiny")
    for path in folder.iterdir():
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=1, mtime=1))
    assert load("tiny").source == "$NEUROPIL_DATA/tiny"


def corrupt(packed: bytes) -> bytes:
    content = bytearray(gzip.decompress(packed))
    content[-1] ^= 1
    return gzip.compress(bytes(content))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda packed: packed[:-12], "is truncated: compressed data end early"),
        (lambda packed: b"", "is truncated: 0 bytes of content, 12 wanted"),
        (lambda packed: b"<html>sorry</html>", "cannot be decompressed"),
        (corrupt, "holds something else: its content has SHA-256"),
        (lambda packed: gzip.compress(gzip.decompress(packed) + b"!"), "is too long: more than the 12 bytes"),
        (lambda packed: gzip.compress(gzip.decompress(packed)[:-1]), "is truncated: 11 bytes of content, 12 wanted"),
    ],
)
def test_damaged_files_are_named_with_what_is_wrong(tiny, damage, fault):
    path = tiny.write(cache_folder() / "tiny") / LABELS
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        load("tiny")
    assert str(path) in str(caught.value)
    assert fault in str(caught.value)
    assert "Delete it, and the next load downloads it again." in str(caught.value)


def test_damaged_files_of_a_shared_folder_are_not_to_be_deleted(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))
    path = tiny.write(tmp_path / "tiny") / LABELS
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"Replace it, or unset NEUROPIL_DATA to download the set into the cache\."):
        load("tiny")


def test_unknown_names_list_what_there_is():
    with pytest.raises(
        ValueError, match=r"'fashion_mnist'\. Did you mean 'fashion-mnist'.* digits, fashion-mnist, iris, mnist"
    ):
        load("fashion_mnist")
    with pytest.raises(ValueError, match=r"'zzz'\. There are"):
        load("zzz")
    with pytest.raises(TypeError, match="name must be a string, got NoneType"):
        load(None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["digits", "tiny"])
def test_bad_seeds_are_refused_before_any_work(tiny, name):
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        load(name, seed=-1)


@pytest.mark.parametrize(("name", "shape", "sizes"), [("iris", (4,), (105, 45)), ("breast-cancer", (30,), (398, 171))])
def test_embedded_tables_are_split_by_seed(name, shape, sizes):
    data = load(name)
    assert (data.shape, len(data.x_train), len(data.x_test)) == (shape, *sizes)
    assert load(name, seed=1).y_test.bincount().tolist() == data.y_test.bincount().tolist()
    assert not torch.equal(load(name, seed=1).x_test, data.x_test)
