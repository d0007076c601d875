"""Readers: from the verified bytes of a data set's files to arrays.

A reader is a function of ({file name: content}, seed). It touches no disk and no network, so that a record in
`registry` can name it and a test can call it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from neuropil.data.draws import stratified_draw
from neuropil.data.idx import parse_idx

__all__ = ["Splits", "read_breast_cancer", "read_digits", "read_idx_images", "read_iris"]

DIGITS_TEST = 360  # a fifth of 1,797
IRIS_TEST = 45  # three tenths of 150
BREAST_CANCER_TEST = 171  # three tenths of 569


class Splits(NamedTuple):
    """The arrays of a data set.

    Attributes:
        x_train: samples, (train, channel, height, width) for images.
        y_train: their classes.
        x_test: samples.
        y_test: their classes.
    """

    x_train: Float32[np.ndarray, " train *shape"]
    y_train: Int64[np.ndarray, " train"]
    x_test: Float32[np.ndarray, " test *shape"]
    y_test: Int64[np.ndarray, " test"]


def read_digits(contents: Mapping[str, bytes], seed: int) -> Splits:
    """scikit-learn's digits, grey levels 0 to 16 scaled to 0..1, split at random by class.

    Args:
        contents: unused, the data lie inside scikit-learn.
        seed: of the split.
    """
    # Here, because scikit-learn takes a second to import and the catalogue needs only the names.
    from sklearn.datasets import load_digits  # noqa: PLC0415

    pixels, labels = load_digits(return_X_y=True)
    return _split(_scale(np.asarray(pixels).reshape(-1, 8, 8), 16), labels, DIGITS_TEST, seed)


def read_iris(contents: Mapping[str, bytes], seed: int) -> Splits:
    """scikit-learn's iris, four lengths in centimetres, split at random by class.

    Args:
        contents: unused, the data lie inside scikit-learn.
        seed: of the split.
    """
    from sklearn.datasets import load_iris  # noqa: PLC0415 - as above

    lengths, labels = load_iris(return_X_y=True)
    return _split(np.asarray(lengths, dtype=np.float32), labels, IRIS_TEST, seed)


def read_breast_cancer(contents: Mapping[str, bytes], seed: int) -> Splits:
    """scikit-learn's breast cancer table, thirty measures of cell nuclei in their own units, split at random by class.

    Args:
        contents: unused, the data lie inside scikit-learn.
        seed: of the split.
    """
    from sklearn.datasets import load_breast_cancer  # noqa: PLC0415 - as above

    measures, labels = load_breast_cancer(return_X_y=True)
    return _split(np.asarray(measures, dtype=np.float32), labels, BREAST_CANCER_TEST, seed)


def read_idx_images(contents: Mapping[str, bytes], seed: int) -> Splits:
    """MNIST and its relatives: four IDX files, pixels 0 to 255 scaled to 0..1, the official split.

    Args:
        contents: of the four files.
        seed: unused, the split is the publisher's.

    Raises:
        ValueError: if a file is no IDX file or has the wrong length.
    """
    arrays = []
    for part in ("train", "t10k"):
        images, labels = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
        arrays.append(_scale(parse_idx(contents[images], images), 255))
        arrays.append(parse_idx(contents[labels], labels).astype(np.int64))
    return Splits(*arrays)


def _split(x: np.ndarray, labels: object, count: int, seed: int) -> Splits:
    y = np.asarray(labels, dtype=np.int64)
    test, train = stratified_draw(y, count, seed)
    return Splits(x[train], y[train], x[test], y[test])


def _scale(images: np.ndarray, top: int) -> Float32[np.ndarray, "samples 1 height width"]:
    # In place: a detour over float64 would hold 380 MB for MNIST.
    scaled = images.astype(np.float32)
    scaled /= top
    return scaled[:, None]
