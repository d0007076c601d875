"""Photographs as pretrained networks want them: resized, cut out of the middle, normalised."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.image import imread
from torch import Tensor
from torch.nn.functional import interpolate as resize

from neuropil.data import Dataset

__all__ = ["image_folder"]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's channels
MARGIN = 256 / 224  # shorter side against the crop


def image_folder(folder: Path | str, count: int, size: int = 224, *, seed: int = 0) -> Dataset:
    """Draw images from a folder with a subfolder a class, in the order of their names.

    Args:
        folder: such as ImageNet's validation images, sorted into 1000 subfolders.
        count: number of training images; a tenth more is drawn to test on. A small folder gives what it has.
        size: side of the square crop, pixels.
        seed: of the draw; the same seed draws the same images.

    Raises:
        ValueError: if the folder has fewer than two images, or count or size is less than 1.
    """
    if count < 1 or size < 1:
        raise ValueError(f"count and size must be at least 1, got {count} and {size}.")
    root = Path(folder)
    classes = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    files = [(file, label) for label, name in enumerate(classes) for file in sorted((root / name).iterdir())]
    if len(files) < 2:
        raise ValueError(f"{folder} has {len(files)} images in subfolders, one a class; at least 2 are needed.")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))[: count + max(count // 10, 1)]
    chosen = [files[index] for index in order.tolist()]
    x = torch.stack([_image(file, size) for file, _ in chosen])
    y = torch.tensor([label for _, label in chosen])
    train = min(count, len(chosen) - 1)
    return Dataset("images", x[:train], y[:train], x[train:], y[train:], tuple(classes), "", "a folder of images")


def _image(file: Path, size: int) -> Float[Tensor, "3 {size} {size}"]:
    pixels = np.array(imread(file))
    scale = 255 if pixels.dtype == np.uint8 else 1  # png files are read as fractions
    pixels = np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else pixels[..., :3]
    x = torch.from_numpy(pixels.astype(np.float32) / scale).permute(2, 0, 1)
    factor = size * MARGIN / min(x.shape[1:])
    shape = [max(size, round(length * factor)) for length in x.shape[1:]]
    x = resize(x[None], size=shape, mode="bilinear", antialias=True)[0]
    top, left = ((length - size) // 2 for length in shape)
    mean, deviation = torch.tensor(MEAN)[:, None, None], torch.tensor(DEVIATION)[:, None, None]
    return (x[:, top : top + size, left : left + size] - mean) / deviation
