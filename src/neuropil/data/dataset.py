"""A labelled data set in memory, split into training and test part."""

import math
from dataclasses import dataclass, replace
from numbers import Integral, Real

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from neuropil.data.draws import check_count, stratified_draw

__all__ = ["Dataset"]

VALIDATION = " (validation)"


# eq=False: tensors do not compare to one truth value; two sets are equal if they are the same object.
@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Samples and their classes.

    Attributes:
        name: as `load` knows it; with " (validation)" where `holdout` made the test part.
        x_train: training samples, (train, *shape).
        y_train: their classes, 0 to classes - 1.
        x_test: test samples, (test, *shape).
        y_test: their classes.
        class_names: one name a class, in the order of the labels.
        citation: what to cite.
        source: where the files came from, free of personal paths: "scikit-learn", "$NEUROPIL_DATA/mnist", "cache".

    Raises:
        TypeError: if a part is no tensor, or labels are not int64.
        ValueError: if a part is empty, lengths, shapes, dtypes or devices do not agree, or a label is out of range.
    """

    name: str
    x_train: Shaped[Tensor, " train *shape"]
    y_train: Int64[Tensor, " train"]
    x_test: Shaped[Tensor, " test *shape"]
    y_test: Int64[Tensor, " test"]
    class_names: tuple[str, ...]
    citation: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            _check_part(part, getattr(self, f"x_{part}"), getattr(self, f"y_{part}"), self.classes)
        for what in ("dtype", "device"):
            train, test = getattr(self.x_train, what), getattr(self.x_test, what)
            if train != test:
                raise ValueError(f"x_train has {what} {train}, x_test {test}.")
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            shapes = tuple(self.x_train.shape[1:]), tuple(self.x_test.shape[1:])
            raise ValueError(f"A sample of x_train has shape {shapes[0]}, one of x_test {shapes[1]}.")

    def __repr__(self) -> str:
        x = self.x_train
        return (
            f"Dataset({self.name!r}, {len(x)} train, {len(self.x_test)} test, shape {self.shape}, "
            f"{self.classes} classes, {str(x.dtype).removeprefix('torch.')} on {x.device})"
        )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.x_train.shape[1:])

    @property
    def features(self) -> int:
        """Numbers in one sample: its size when flattened."""
        return math.prod(self.shape)

    def flat(self) -> "Dataset":
        """Return the set with samples as vectors: x is (samples, features)."""
        return replace(
            self,
            x_train=self.x_train.reshape(len(self.x_train), self.features),
            x_test=self.x_test.reshape(len(self.x_test), self.features),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Dataset":
        """Return the set on a device, its samples in a dtype; the labels stay int64."""
        return replace(
            self,
            x_train=self.x_train.to(device=device, dtype=dtype),
            y_train=self.y_train.to(device=device),
            x_test=self.x_test.to(device=device, dtype=dtype),
            y_test=self.y_test.to(device=device),
        )

    def subset(self, train: int | None = None, test: int | None = None, *, seed: int = 0) -> "Dataset":
        """Return a random smaller set in which every class keeps its share to within one sample.

        Args:
            train: number of training samples, in random order; None leaves the training part as it is.
            test: the same for the test part.
            seed: of the draw; the same seed draws the same samples.

        Raises:
            TypeError: if a number is no integer.
            ValueError: if more samples are asked for than there are, or fewer than one.
        """
        parts = {}
        for part, count in (("train", train), ("test", test)):
            if count is None:
                continue
            x, y = getattr(self, f"x_{part}"), getattr(self, f"y_{part}")
            drawn, _ = _draw(y, check_count(count, len(y), part), seed)
            parts |= {f"x_{part}": x[drawn], f"y_{part}": y[drawn]}
        return replace(self, **parts)

    def holdout(self, size_or_fraction: int | float, *, seed: int = 0) -> "Dataset":
        """Return a set for choosing settings: a part of the training part takes the place of the test part.

        The real test part is not in the result, so nothing can be tuned on it by mistake.

        Args:
            size_or_fraction: of the validation part; an integer counts samples, a float is a fraction of the training
                part. Every class keeps its share to within one sample.
            seed: of the draw; the same seed draws the same samples.

        Raises:
            TypeError: if the size is no number.
            ValueError: if it is out of range, or would leave no training sample.
        """
        samples, size, name = len(self.y_train), size_or_fraction, "size_or_fraction"
        if isinstance(size, Real) and not isinstance(size, Integral):
            if not 0 < size < 1:
                raise ValueError(f"{name} must lie between 0 and 1 where it is a fraction, got {size}.")
            name, size = f"{name} ({size} of {samples} training samples)", round(float(size) * samples)
        # One less than there are, so that a training sample stays.
        count = check_count(size, samples - 1, name)
        drawn, rest = _draw(self.y_train, count, seed)
        return replace(
            self,
            name=f"{self.name.removesuffix(VALIDATION)}{VALIDATION}",
            x_train=self.x_train[rest],
            y_train=self.y_train[rest],
            x_test=self.x_train[drawn],
            y_test=self.y_train[drawn],
        )


def _draw(
    y: Int64[Tensor, " samples"], count: int, seed: int
) -> tuple[Int64[Tensor, " drawn"], Int64[Tensor, " rest"]]:
    drawn, rest = stratified_draw(y.cpu().numpy(), count, seed)
    return torch.from_numpy(drawn).to(y.device), torch.from_numpy(rest).to(y.device)


def _check_part(part: str, x: Tensor, y: Tensor, classes: int) -> None:
    for name, value in ((f"x_{part}", x), (f"y_{part}", y)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}.")
    if y.dtype != torch.int64:
        raise TypeError(f"y_{part} must be int64, got {str(y.dtype).removeprefix('torch.')}.")
    if y.ndim != 1 or x.ndim < 1 or len(x) != len(y):
        raise ValueError(f"x_{part} has shape {tuple(x.shape)}, y_{part} {tuple(y.shape)}: wanted one label a sample.")
    if not len(y):
        raise ValueError(f"x_{part} is empty.")
    if x.device != y.device:
        raise ValueError(f"x_{part} is on {x.device}, y_{part} on {y.device}.")
    low, high = (int(bound) for bound in torch.aminmax(y))
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise ValueError(f"class {wrong} in y_{part}, but there are {classes} class names (0 to {classes - 1}).")
