"""What happens to images on their way: noise, blur, light and coarse pixels, in five severities.

    corrupt(images, "impulse noise", 4, generator)                     a severity, 1 to 5
    corrupt(images, "gaussian noise", amount=0.4, generator=generator)        or the amount itself

    kind             amount is                                                       images x between 0 and 1
    gaussian noise   standard deviation s                                            x + s n,  n ~ N(0, 1)
    shot noise       photons c that white is worth                                   Poisson(c x) / c
    impulse noise    fraction of pixels that turn black or white, half each
    gaussian blur    standard deviation of the kernel, pixels
    mean blur        side of the box, pixels, odd
    motion blur      length of the path, pixels, straight, at an angle of -45 to 45 degrees, one an image
    contrast         factor c                                                        c (x - mean) + mean
    brightness       shift                                                           x + shift
    pixelate         factor on height and width, below 1, then enlarged again

Severities of noise, contrast, brightness and pixelation are those of ImageNet-C (Hendrycks & Dietterich 2019); lengths
of blurs depend on the size of images, so those are ours, for images of about 30 pixels. Images are cut to 0..1 at the
end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

__all__ = ["CORRUPTIONS", "Corruption", "corrupt"]


class Corruption(NamedTuple):
    """A kind of corruption.

    Attributes:
        apply: (images, amount, generator) -> images.
        levels: amounts of the severities 1 to 5.
        low: amounts are above it,
        high: and at most this.
    """

    apply: Callable[[Tensor, float, torch.Generator | None], Tensor]
    levels: tuple[float, float, float, float, float]
    low: float = 0.0
    high: float = math.inf


def corrupt(
    images: Tensor,
    kind: str,
    severity: int = 3,
    generator: torch.Generator | None = None,
    *,
    amount: float | None = None,
) -> Tensor:
    """Corrupt a batch of images.

    Args:
        images: (batch, channels, height, width), floating-point, between 0 and 1.
        kind: one of `CORRUPTIONS`.
        severity: 1 to 5, light to heavy.
        generator: source of noise and directions, on the images' device; kinds that draw need one.
        amount: in place of a severity, in the unit of the kind.

    Returns:
        New images of the same shape and dtype, between 0 and 1.

    Raises:
        TypeError: if the images are no floating-point tensor, or a severity is no integer.
        ValueError: if their shape or range is wrong, the kind is unknown, a number is out of range, or a kind that
            draws gets no generator.

    Source: Hendrycks & Dietterich, ICLR 2019.
    """
    _check(images)
    if kind not in CORRUPTIONS:
        raise ValueError(f"There is no corruption {kind!r}; there are {', '.join(CORRUPTIONS)}.")
    chosen = CORRUPTIONS[kind]
    if amount is None:
        if isinstance(severity, bool) or not isinstance(severity, int):
            raise TypeError(f"severity must be an integer from 1 to 5, got {severity!r}: fractions are an amount.")
        if not 1 <= severity <= 5:
            raise ValueError(f"severity must be from 1 to 5, got {severity}.")
        amount = chosen.levels[severity - 1]
    if not (chosen.low < amount <= chosen.high and math.isfinite(amount)):
        bound = "finite" if math.isinf(chosen.high) else f"at most {chosen.high:g}"
        raise ValueError(f"amount of {kind} must be above {chosen.low:g} and {bound}, got {amount}.")
    if kind in DRAWN and generator is None:
        raise ValueError(f"{kind} is drawn: pass a generator.")
    return chosen.apply(images, float(amount), generator).clamp(0, 1).to(images.dtype)


def _check(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        found = str(images.dtype) if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point torch.Tensor, got {found}.")
    if images.dim() != 4 or not images.numel():
        raise ValueError(f"images must be (batch, channels, height, width) and not empty, got {tuple(images.shape)}.")
    low, high = (float(bound) for bound in torch.aminmax(images))
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise ValueError(f"images must lie between 0 and 1, got {low:g} to {high:g}.")


def _gaussian_noise(images: Tensor, sd: float, generator: torch.Generator | None) -> Tensor:
    noise = torch.randn(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images + sd * noise


def _shot_noise(images: Tensor, photons: float, generator: torch.Generator | None) -> Tensor:
    return torch.poisson(images * photons, generator=generator) / photons


def _impulse_noise(images: Tensor, fraction: float, generator: torch.Generator | None) -> Tensor:
    # One draw decides both whether a pixel is hit and, by the half in which it falls, how.
    draw = torch.rand(images.shape, generator=generator, device=images.device, dtype=images.dtype)
    return images.masked_fill(draw < fraction, 1.0).masked_fill(draw < fraction / 2, 0.0)


def _gaussian_blur(images: Tensor, sd: float, _: torch.Generator | None) -> Tensor:
    reach = max(1, math.ceil(3 * sd))
    at = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    line = torch.exp(-at.square() / (2 * sd * sd))
    line = line / line.sum()
    return _filtered(_filtered(images, line[:, None]), line[None, :])


def _mean_blur(images: Tensor, side: float, _: torch.Generator | None) -> Tensor:
    if side != int(side) or int(side) % 2 == 0:
        raise ValueError(f"amount of mean blur must be an odd number of pixels, got {side}.")
    line = torch.full((int(side),), 1 / side, device=images.device, dtype=images.dtype)
    return _filtered(_filtered(images, line[:, None]), line[None, :])


def _motion_blur(images: Tensor, length: float, generator: torch.Generator | None) -> Tensor:
    """A kernel an image: points along the path, each shared among the four pixels around it."""
    count = len(images)
    angles = (torch.rand(count, generator=generator, device=images.device, dtype=images.dtype) - 0.5) * (math.pi / 2)
    reach = math.ceil(length / 2)
    steps = torch.linspace(-0.5, 0.5, 4 * reach + 1, device=images.device, dtype=images.dtype) * (length - 1)
    pixels = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    across, down = (
        (1 - (steps * part[:, None] - pixels[:, None, None]).abs()).clamp(min=0)  # (pixel, image, step)
        for part in (angles.cos(), angles.sin())
    )
    kernels = torch.einsum("yns,xns->nyx", down, across)
    kernels = kernels / kernels.sum((1, 2), keepdim=True)
    channels = images.shape[1]
    grouped = _framed(images, reach, reach).reshape(1, count * channels, *[s + 2 * reach for s in images.shape[2:]])
    weight = kernels.repeat_interleave(channels, 0)[:, None]
    return conv2d(grouped, weight, groups=count * channels).view_as(images)


def _contrast(images: Tensor, factor: float, _: torch.Generator | None) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return factor * (images - mean) + mean


def _brightness(images: Tensor, shift: float, _: torch.Generator | None) -> Tensor:
    return images + shift


def _pixelate(images: Tensor, factor: float, _: torch.Generator | None) -> Tensor:
    size = images.shape[2:]
    small = [max(1, round(factor * side)) for side in size]
    return interpolate(interpolate(images, small, mode="area"), size, mode="nearest")


def _filtered(images: Tensor, kernel: Tensor) -> Tensor:
    """Every channel with one kernel; the edge goes on outside."""
    height, width = kernel.shape
    channels = images.shape[1]
    framed = _framed(images, height // 2, width // 2)
    return conv2d(framed, kernel.expand(channels, 1, height, width), groups=channels)


def _framed(images: Tensor, above: int, aside: int) -> Tensor:
    return pad(images, (aside, aside, above, above), mode="replicate")


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian noise": Corruption(_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot noise": Corruption(_shot_noise, (60, 25, 12, 5, 3)),
    "impulse noise": Corruption(_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27), high=1),
    "gaussian blur": Corruption(_gaussian_blur, (0.6, 1.0, 1.4, 1.8, 2.4)),
    "mean blur": Corruption(_mean_blur, (3, 5, 7, 9, 11)),
    "motion blur": Corruption(_motion_blur, (3, 5, 7, 9, 11), low=1),
    "contrast": Corruption(_contrast, (0.4, 0.3, 0.2, 0.1, 0.05), high=1),
    "brightness": Corruption(_brightness, (0.1, 0.2, 0.3, 0.4, 0.5), low=-1, high=1),
    "pixelate": Corruption(_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), high=1),
}
DRAWN = frozenset({"gaussian noise", "shot noise", "impulse noise", "motion blur"})
