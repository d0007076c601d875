"""Random draws of the experiments: log-normal weights, and inputs with a correlation that alternates in sign.

    w = s exp(mu + sigma n)                    n ~ N(0, 1), s = +-1        log |w| ~ N(mu, sigma^2)
    corr(x_i, x_j) = (-1)^(i-j) / (1 + (|i-j| / scale)^power)

The inputs are drawn by circulant embedding (Davies & Harte 1987; Dietrich & Newsam 1997): white noise on a ring long
enough to hold the sequence and its mirror image, coloured by the square root of the ring's spectrum. It is exact and
costs d log d instead of the d^3 of a Cholesky factor. The sign alternates by turning every second input around.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["correlated_gaussian", "lognormal_init_"]

LOST = 1e-6  # share of the variance that a cut-off negative spectrum may hold
LONGEST = 2**18  # half a ring; beyond it, the scale is out of proportion


@torch.no_grad()
def lognormal_init_(
    tensor: Tensor,
    mu: float = 0.0,
    sigma: float = 1.0,
    signs: Tensor | float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Fill a tensor with log-normal magnitudes.

    The mean square is exp(2 mu + 2 sigma^2): for weights of variance v take mu = log(v)/2 - sigma^2.

    Args:
        tensor: any shape; it is filled.
        mu: mean of log |w|.
        sigma: standard deviation of log |w|, at least 0.
        signs: 1 and -1, of a shape that broadcasts to the tensor's (one sign a column: Dale's law for the inputs of a
            weight matrix); a number for one sign; None for signs drawn at random.
        generator: source of the draws; None is torch's default generator.

    Returns:
        The tensor.

    Raises:
        ValueError: if mu is not finite, sigma is negative, or signs are not 1 and -1 in a fitting shape.
    """
    if not (math.isfinite(mu) and 0 <= sigma < math.inf):
        raise ValueError(f"mu must be finite and sigma finite and not negative, got {mu} and {sigma}.")
    if signs is not None:
        signs = torch.as_tensor(signs, dtype=tensor.dtype, device=tensor.device)
        if not bool((signs.abs() == 1).all()):
            raise ValueError("signs must be 1 and -1.")
        try:
            signs = signs.expand_as(tensor)
        except RuntimeError as error:
            raise ValueError(
                f"signs of shape {tuple(signs.shape)} do not fit a tensor of shape {tuple(tensor.shape)}."
            ) from error
    tensor.log_normal_(mu, sigma, generator=generator) if sigma else tensor.fill_(math.exp(mu))
    if signs is None:
        signs = torch.empty_like(tensor).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    return tensor.mul_(signs)


def correlated_gaussian(
    n: int,
    d: int,
    power: float = 1.0,
    scale: float = 1.0,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float64,
) -> Float[Tensor, "{n} {d}"]:
    """Draw samples of unit variance whose correlation falls off with distance and alternates in sign.

    Args:
        n: number of samples.
        d: number of inputs of each.
        power: of the fall-off, 0 to 2 (beyond that, it is the correlation of nothing).
        scale: distance at which it has fallen to a half.
        generator: source of the draws, on whose device they are made; None is torch's default generator.
        dtype: of the samples.

    Raises:
        ValueError: if n or d is less than 1, power outside (0, 2], scale not positive, or the scale so large against d
            that no ring of reasonable length has a spectrum.

    Source: Pogodin et al. 2024.
    """
    if n < 1 or d < 1:
        raise ValueError(f"n and d must be at least 1, got {n} and {d}.")
    if not (0 < power <= 2 and 0 < scale < math.inf):
        raise ValueError(f"power must lie in (0, 2] and scale be positive and finite, got {power} and {scale}.")
    amplitude = _amplitudes(d, power, scale)
    device = torch.device("cpu") if generator is None else generator.device
    noise = torch.randn(n, 2 * (len(amplitude) - 1), generator=generator, dtype=dtype, device=device)
    return _colour(noise, amplitude.to(noise))[:, :d].mul_(_alternating(d).to(noise))


def _amplitudes(d: int, power: float, scale: float) -> Float[Tensor, " frequencies"]:
    """Square roots of the spectrum of the shortest ring that holds the sequence and has no negative frequencies."""
    half = max(d - 1, 1)
    while half <= max(d, LONGEST):
        distance = torch.arange(half + 1, dtype=torch.float64) / scale
        correlation = 1 / (1 + distance.pow(power))
        spectrum = torch.fft.rfft(torch.cat([correlation, correlation[1:-1].flip(0)])).real
        if float(spectrum.clamp_max(0).abs().sum()) <= LOST * float(spectrum.abs().sum()):
            return spectrum.clamp_min(0).sqrt()
        half *= 2
    raise ValueError(f"No ring of up to {half} inputs has the correlation of scale {scale:g} and power {power:g}.")


def _colour(
    noise: Float[Tensor, "samples ring"], amplitude: Float[Tensor, " frequencies"]
) -> Float[Tensor, "samples ring"]:
    return torch.fft.irfft(torch.fft.rfft(noise) * amplitude, n=noise.shape[-1])


def _alternating(d: int) -> Float[Tensor, " {d}"]:
    return 1 - 2 * (torch.arange(d) % 2).double()
