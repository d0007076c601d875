"""Bayesian optimisation: a surrogate learns from what was evaluated and says which candidates are worth a query.

    acquisition of a candidate with mean m and deviation s, best value so far v:
    "its"   a draw of N(m, s^2), each candidate by itself (independent Thompson sampling)
    "ucb"   m + beta s
    "ei"    E[max(0, V - v)],  V ~ N(m, s^2)  =  s (u Phi(u) + phi(u)),  u = (m - v) / s

Candidates are mutations of the best architectures so far, and random ones.

Source: White et al. 2023 (arXiv 2301.08727), section 3.3.2; BANANAS: White, Neiswanger & Savani, AAAI 2021.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.neurons.ranges import require, require_positive
from neuropil.structure.search.spaces import Architecture, Space, below
from neuropil.structure.search.strategies import Proposals, Strategy
from neuropil.structure.search.surrogates import Surrogate, gaussian_process, mlp_ensemble, random_forest

__all__ = ["BayesSearch", "acquisition"]

SURROGATES: Mapping[str, Surrogate] = MappingProxyType(
    {"gp": gaussian_process, "forest": random_forest, "ensemble": mlp_ensemble}
)
ACQUISITIONS = ("its", "ucb", "ei")


def acquisition(
    kind: str,
    mean: Float[Tensor, " candidates"],
    std: Float[Tensor, " candidates"],
    *,
    best: float,
    generator: torch.Generator,
    beta: float = 1.0,
) -> Float[Tensor, " candidates"]:
    """What a query of each candidate promises.

    Args:
        kind: "its", "ucb" or "ei".
        mean: predicted values.
        std: their standard deviations, at least 0.
        best: value so far, for "ei".
        generator: of the draws, for "its".
        beta: weight of the deviation, for "ucb".

    Raises:
        ValueError: if the kind is unknown.
    """
    if kind == "its":
        draws = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=generator.device)
        return mean + std * draws.to(mean)
    if kind == "ucb":
        return mean + beta * std
    if kind != "ei":
        raise ValueError(f"acquisition must be one of {ACQUISITIONS}, got {kind!r}.")
    sure = std <= 0
    u = (mean - best) / std.masked_fill(sure, 1.0)
    density = (-0.5 * u.square()).exp() / math.sqrt(2 * math.pi)
    return torch.where(sure, (mean - best).clamp(min=0), std * (u * torch.special.ndtr(u) + density))


@dataclass(frozen=True)
class BayesSearch(Strategy):
    """Ask a surrogate which candidates to evaluate next.

    Args:
        surrogate: "gp", "forest", "ensemble", or a function as `surrogates` describes.
        acquisition: "its", "ucb" or "ei".
        encoding: of the space, what the surrogate sees: "onehot" or, for cells, "path" (BANANAS).
        initial: random architectures before the first fit.
        round: evaluations between two fits.
        candidates: that compete in a round, half mutations, half random.
        parents: best architectures that are mutated, by one or two edits.
        beta: of "ucb".

    Raises:
        ValueError: if a name is unknown or a number out of range.
    """

    surrogate: str | Surrogate = "gp"
    acquisition: str = "its"
    encoding: str = "onehot"
    initial: int = 10
    round: int = 10
    candidates: int = 200
    parents: int = 10
    beta: float = 1.0

    def __post_init__(self) -> None:
        for name in ("initial", "round", "candidates", "parents"):
            require(name, getattr(self, name), 1, math.inf)
        require_positive(beta=self.beta)
        if self.acquisition not in ACQUISITIONS:
            raise ValueError(f"acquisition must be one of {ACQUISITIONS}, got {self.acquisition!r}.")
        if isinstance(self.surrogate, str) and self.surrogate not in SURROGATES:
            raise ValueError(f"surrogate must be one of {sorted(SURROGATES)} or a function, got {self.surrogate!r}.")

    def warm_up(self) -> int:
        """The random architectures of the first fit."""
        return self.initial

    def propose(self, space: Space, generator: torch.Generator) -> Proposals:
        """See `Strategy`."""
        values: dict[Architecture, float] = {}
        for _ in range(self.initial):
            drawn = space.canonical(space.sample(generator))
            values[drawn] = yield drawn
        while True:
            candidates = self._candidates(space, values, generator)
            if not candidates:
                return  # nothing new in four times as many draws: the space is exhausted
            promise = self._promise(space, values, candidates, generator)
            for index in promise.argsort(descending=True, stable=True)[: self.round].tolist():
                values[candidates[index]] = yield candidates[index]

    def _candidates(
        self, space: Space, values: dict[Architecture, float], generator: torch.Generator
    ) -> list[Architecture]:
        best = sorted(values, key=values.__getitem__, reverse=True)[: self.parents]
        found: dict[Architecture, None] = {}
        for number in range(4 * self.candidates):
            if number % 2:
                drawn = space.sample(generator)
            else:
                drawn = best[below(len(best), generator)]
                for _ in range(1 + below(2, generator)):
                    drawn = space.mutate(drawn, generator)
            drawn = space.canonical(drawn)
            if drawn not in values:
                found[drawn] = None
                if len(found) == self.candidates:
                    break
        return list(found)

    def _promise(
        self,
        space: Space,
        values: dict[Architecture, float],
        candidates: list[Architecture],
        generator: torch.Generator,
    ) -> Tensor:
        surrogate = SURROGATES[self.surrogate] if isinstance(self.surrogate, str) else self.surrogate
        y = torch.tensor(list(values.values()), dtype=torch.float64)
        finite = y.isfinite()
        # A diverged training is as bad as the worst that did not.
        y = torch.where(finite, y, y[finite].min() if finite.any() else 0.0)
        seen = torch.stack([space.encode(code, self.encoding) for code in values])
        new = torch.stack([space.encode(code, self.encoding) for code in candidates])
        mean, std = surrogate(seen, y, generator)(new)
        return acquisition(self.acquisition, mean, std, best=float(y.max()), generator=generator, beta=self.beta)
