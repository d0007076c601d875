"""Images as several of these studies take them, and the percentage of them that a net gets right."""

import torch
from torch import nn
from torch.nn.functional import avg_pool2d

from neuropil.data import Dataset, load
from neuropil.structure.graph.tracing import evaluating

__all__ = ["accuracy", "pooled_images"]


def pooled_images(name: str, train: int | None, test: int | None, pool: int, seed: int) -> Dataset:
    """The part of a data set that belongs to a seed: standardised by its training part, then averaged over squares.

    Args:
        name: of the data set; images, (samples, channels, height, width).
        train: number of training images, None for all.
        test: the same for the test part.
        pool: side of the squares, in pixels.
        seed: of the draw.
    """
    data = load(name).subset(train, test, seed=seed)
    mean, scale = data.x_train.mean(), data.x_train.std()
    x, held = (avg_pool2d((part - mean) / scale, pool) for part in (data.x_train, data.x_test))
    return Dataset(data.name, x, data.y_train, held, data.y_test, data.class_names)


def accuracy(net: nn.Module, data: Dataset) -> float:
    """Percent of the test part that a net gets right in eval mode; its own mode is restored."""
    with evaluating(net), torch.no_grad():
        classes = torch.cat([net(x).argmax(dim=1) for x in data.x_test.split(1000)])
    return 100 * int((classes == data.y_test).sum()) / len(data.y_test)
