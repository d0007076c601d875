"""Random draws in which every class keeps its share.

With N labels of which N_c belong to class c, a draw of n takes

    n_c = floor(n N_c / N)   and one more for the classes with the largest remainders, until sum_c n_c = n

(the method of largest remainders): always possible, n_c <= N_c, and |n_c - n N_c / N| < 1.
"""

from numbers import Integral

import numpy as np
from jaxtyping import Integer

__all__ = ["check_count", "check_seed", "stratified_draw"]

Indices = Integer[np.ndarray, " _"]


def check_seed(seed: int) -> int:
    """Return the seed as a plain int.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is negative.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__}.")
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    return int(seed)


def check_count(count: int | float, available: int, name: str) -> int:
    """Return a number of samples as a plain int.

    Args:
        count: the number, 1 to `available`.
        available: how many may be taken.
        name: of the argument, for messages.

    Raises:
        TypeError: if it is no integer.
        ValueError: if it is out of range.
    """
    if isinstance(count, bool) or not isinstance(count, Integral):
        raise TypeError(f"{name} must be a whole number of samples, got {type(count).__name__}.")
    if not 1 <= count <= available:
        raise ValueError(f"{name} must be 1 to {available}, as many as there are to take; got {count}.")
    return int(count)


def stratified_draw(labels: Integer[np.ndarray, " samples"], count: int, seed: int) -> tuple[Indices, Indices]:
    """Draw samples without replacement, each class by its share.

    Args:
        labels: class of each sample.
        count: how many to draw, 0 to all.
        seed: of the draw; the same seed draws the same samples.

    Returns:
        (drawn, rest): indices, both in random order; together they are all samples.
    """
    generator = np.random.default_rng(check_seed(seed))
    sizes = np.unique(labels, return_counts=True)[1]
    members = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    shares, remainders = np.divmod(sizes * count, len(labels))
    # Shuffled before the stable sort, so that chance decides among equal remainders, not the class's number.
    order = generator.permutation(len(sizes))
    order = order[np.argsort(-remainders[order], kind="stable")]
    shares[order[: count - shares.sum()]] += 1
    shuffled = [generator.permutation(indices) for indices in members]
    drawn = np.concatenate([indices[:share] for indices, share in zip(shuffled, shares, strict=True)])
    rest = np.concatenate([indices[share:] for indices, share in zip(shuffled, shares, strict=True)])
    return generator.permutation(drawn), generator.permutation(rest)
