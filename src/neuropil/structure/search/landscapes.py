"""Landscapes whose optimum is known: what a search can be tested on in milliseconds.

NK (Kauffman): N bits; the contribution of each depends on itself and K others, by a table of uniform draws,

    f(a) = (1/N) sum_i  table_i( a_i, a_{j_1(i)} .. a_{j_K(i)} )

K = 0 has one peak, K = N - 1 is noise.

Source: Kauffman & Weinberger, J. Theor. Biol. 141 (1989).
"""

import torch

from neuropil.structure.search.searching import Evaluate
from neuropil.structure.search.spaces import Architecture, Space

__all__ = ["nk_landscape"]


def nk_landscape(n: int, k: int, seed: int = 0) -> tuple[Space, Evaluate]:
    """A space of n bits and a value in [0, 1] for each code.

    Args:
        n: bits.
        k: others that each bit's contribution depends on.
        seed: of the dependences and of the tables.

    Raises:
        ValueError: if not 0 <= k < n.
    """
    if not 0 <= k < n:
        raise ValueError(f"0 <= k < n wanted, got k={k} and n={n}.")
    return Space({f"bit {i}": (0, 1) for i in range(n)}), _NK(n, k, seed)


class _NK:
    """A class, not a closure: it goes to other processes."""

    def __init__(self, n: int, k: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.others = [[j for j in torch.randperm(n, generator=generator).tolist() if j != i][:k] for i in range(n)]
        self.tables = torch.rand(n, 2 ** (k + 1), generator=generator, dtype=torch.float64).tolist()

    def __call__(self, code: Architecture) -> float:
        total = 0.0
        for own, others, table in zip(code, self.others, self.tables, strict=True):
            entry = own
            for j in others:
                entry = 2 * entry + code[j]
            total += table[entry]
        return total / len(code)
