"""Random numbers by counter, for loops that numba compiles: number n of stream s of a seed, drawn in any order.

    state = stream(seed, s)
    state += GOLDEN;  u = uniform(state)        each next number of the stream

The generator is splitmix64 (Steele, Lea & Flood 2014): a stream is an arithmetic sequence of states, each scrambled
into 64 independent bits. A number depends on nothing but the seed, the stream and its place, so that a row of a random
matrix can be made again whenever it is needed, and threads share no state.
"""

import numba
import numpy as np
import torch

__all__ = ["GOLDEN", "UNIT", "mix", "seed_from", "stream", "uniform"]

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST, SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
S30, S27, S31, S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)
UNIT = 2.0**-53


def seed_from(generator: torch.Generator | None) -> np.uint64:
    """A seed of 63 bits drawn from a generator; None is a generator of seed 0."""
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    return np.uint64(torch.randint(2**63 - 1, (), generator=generator, device=generator.device).item())


@numba.njit(cache=True, inline="always")
def mix(z):
    """Scramble 64 bits (the finaliser of splitmix64)."""
    z = (z ^ (z >> S30)) * FIRST
    z = (z ^ (z >> S27)) * SECOND
    return z ^ (z >> S31)


@numba.njit(cache=True, inline="always")
def stream(seed, number):
    """State before the first number of a stream."""
    return mix(seed ^ mix((np.uint64(number) + np.uint64(1)) * GOLDEN))


@numba.njit(cache=True, inline="always")
def uniform(state):
    """A number in (0, 1] of 53 bits from a state."""
    return (np.float64(mix(state) >> S11) + 1.0) * UNIT
