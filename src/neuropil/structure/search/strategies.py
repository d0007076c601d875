"""Strategies that need no model of the space: random, local, evolutionary search, and a policy.

A strategy is a coroutine: it yields an architecture and is sent its value, bigger is better. So the code of each reads
like the published loop, and what counts as a query is settled outside, in `search`, for all alike.

Source: White et al. 2023 (arXiv 2301.08727), section 3.
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass

import torch

from neuropil.neurons.ranges import require, require_positive
from neuropil.structure.search.spaces import Architecture, Space

__all__ = ["LocalSearch", "PolicyGradient", "Proposals", "RandomSearch", "RegularisedEvolution", "Strategy"]

Proposals = Generator[Architecture, float, None]
"""What a strategy asks for next; it is sent the value."""


class Strategy(ABC):
    """Base of search strategies: write your own by `propose`."""

    def warm_up(self) -> int:
        """Queries before the strategy has learned anything; a budget must be at least as large."""
        return 1

    @abstractmethod
    def propose(self, space: Space, generator: torch.Generator) -> Proposals:
        """Yield architectures of the space for ever, and receive the value of each."""


@dataclass(frozen=True)
class RandomSearch(Strategy):
    """Draw architectures at random, the baseline that every method must beat (Li & Talwalkar, UAI 2019)."""

    def propose(self, space: Space, generator: torch.Generator) -> Proposals:
        """See `Strategy`."""
        while True:
            yield space.sample(generator)


@dataclass(frozen=True)
class LocalSearch(Strategy):
    """Evaluate all neighbours of the current architecture, go to the best if it is better, else start anew.

    The order of the neighbours is random, which counts where the budget ends among them.

    Args:
        initial: random architectures; the best is the first start. Later starts are single random ones.

    Raises:
        ValueError: if `initial` is less than 1.

    Source: White, Nolen & Savani, UAI 2021 (arXiv 2005.02960).
    """

    initial: int = 1

    def __post_init__(self) -> None:
        require("initial", self.initial, 1, float("inf"))

    def warm_up(self) -> int:
        """The random start."""
        return self.initial

    def propose(self, space: Space, generator: torch.Generator) -> Proposals:
        """See `Strategy`."""
        starts = self.initial
        while True:
            current, best = yield from self._best([space.sample(generator) for _ in range(starts)])
            starts = 1
            while True:
                neighbours = space.neighbours(current)
                if not neighbours:
                    break
                order = torch.randperm(len(neighbours), generator=generator, device=generator.device).tolist()
                found, value = yield from self._best([neighbours[index] for index in order])
                if value <= best:
                    break
                current, best = found, value

    @staticmethod
    def _best(candidates: list[Architecture]) -> Generator[Architecture, float, tuple[Architecture, float]]:
        values = []
        for candidate in candidates:
            values.append((yield candidate))
        best = max(range(len(values)), key=values.__getitem__)
        return candidates[best], values[best]


@dataclass(frozen=True)
class RegularisedEvolution(Strategy):
    """Ageing evolution: mutate the best of a sample of the population, and let the oldest die, not the worst.

    Args:
        population: architectures alive; the first are drawn at random, and are queries.
        sample: drawn with replacement from the population; the best of them is the parent.

    Raises:
        ValueError: if a number is less than 1.

    Source: Real, Aggarwal, Huang & Le, AAAI 2019 (arXiv 1802.01548), algorithm 1.
    """

    population: int = 100
    sample: int = 25

    def __post_init__(self) -> None:
        require("population", self.population, 1, float("inf"))
        require("sample", self.sample, 1, float("inf"))

    def warm_up(self) -> int:
        """The first population."""
        return self.population

    def propose(self, space: Space, generator: torch.Generator) -> Proposals:
        """See `Strategy`."""
        alive: deque[tuple[float, Architecture]] = deque(maxlen=self.population)  # when full, the oldest falls out
        for _ in range(self.population):
            drawn = space.sample(generator)
            alive.append(((yield drawn), drawn))
        while True:
            drawn = torch.randint(self.population, (self.sample,), generator=generator, device=generator.device)
            parent = max((alive[index] for index in drawn.tolist()), key=lambda one: one[0])[1]
            child = space.mutate(parent, generator)
            alive.append(((yield child), child))


@dataclass(frozen=True)
class PolicyGradient(Strategy):
    """An independent categorical policy for every decision, taught by REINFORCE with a moving baseline.

        b <- decay b + (1 - decay) R,      theta <- theta + rate (R - b) grad log p(a)

    The baseline starts at the first reward and moves after the step; grad log p of a categorical with logits theta is
    the one-hot of what was drawn minus the probabilities. Invalid codes are drawn again, which the gradient ignores.

    Args:
        rate: of the ascent. Rewards of spread s want a rate of the order of 1 / s.
        decay: of the baseline.

    Raises:
        ValueError: if the rate is not above 0, or the decay is outside [0, 1).

    Source: Williams 1992; as a search of architectures Zoph & Le, ICLR 2017.
    """

    rate: float = 1.0
    decay: float = 0.9

    def __post_init__(self) -> None:
        require_positive(rate=self.rate)
        require("decay", self.decay, 0.0, 1.0, ends=(True, False))

    def propose(self, space: Space, generator: torch.Generator) -> Proposals:
        """See `Strategy`."""
        logits = [torch.zeros(len(options), device=generator.device) for options in space.options]
        baseline: float | None = None
        while True:
            probabilities = [values.softmax(0) for values in logits]
            drawn = self._draw(space, probabilities, generator)
            reward = yield drawn
            baseline = reward if baseline is None else baseline
            advantage = reward - baseline
            for values, p, chosen in zip(logits, probabilities, drawn, strict=True):
                drawn_minus_expected = -p
                drawn_minus_expected[chosen] += 1
                values.add_(drawn_minus_expected, alpha=self.rate * advantage)
            baseline = self.decay * baseline + (1 - self.decay) * reward

    @staticmethod
    def _draw(space: Space, probabilities: list[torch.Tensor], generator: torch.Generator) -> Architecture:
        for _ in range(1000):
            drawn = tuple(int(torch.multinomial(p, 1, generator=generator)) for p in probabilities)
            if space.valid(drawn):
                return drawn
        # Once the policy is sure of something invalid, only chance helps.
        return space.sample(generator)
