"""Evolution strategies with antithetic pairs: a gradient from losses alone (Salimans et al. 2017).

    theta_k = theta + m_k,   theta_{k+K} = theta - m_k,      m_k ~ N(0, sigma^2),   k = 1..K,   population 2K
    grad  = sum_k (L_k - L_{k+K}) m_k / (2K sigma^2)

an unbiased estimate of the gradient of the smoothed loss E_m L(theta + m). The loss may be anything: a whole life.
For a linear loss in d dimensions its cosine with the true gradient is about sqrt(K / (K + d)).
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["AntitheticES"]


class AntitheticES:
    """Ask for a population of mutants, tell their losses, and find the gradient in `.grad`.

    Args:
        params: what evolves, by name, as `dict(net.named_parameters())`; any optimizer may step it.
        sigma: standard deviation of the mutations.
        population: number of mutants, even.
        generator: source of the mutations; None is torch's default generator.

    Raises:
        ValueError: if the population is odd or empty, sigma is not positive, or there are no parameters.
        TypeError: if a parameter is not of a floating type.

    Source: Salimans, Ho, Chen, Sidor & Sutskever 2017 (arXiv 1703.03864); Miconi, ICML 2023 (arXiv 2112.08588).
    """

    def __init__(
        self, params: Mapping[str, Tensor], sigma: float, population: int, generator: torch.Generator | None = None
    ):
        if population < 2 or population % 2:
            raise ValueError(f"population must be even and at least 2 (antithetic pairs), got {population}.")
        if not 0 < sigma < float("inf"):
            raise ValueError(f"sigma must be positive and finite, got {sigma}.")
        if not params:
            raise ValueError("params is empty: nothing can evolve.")
        for name, value in params.items():
            if not value.is_floating_point():
                raise TypeError(f"Parameter {name!r} is of type {value.dtype}: only floating types can mutate.")
        self.params = dict(params)
        self.sigma, self.population = float(sigma), population
        self.generator = generator
        self._mutations: dict[str, Tensor] | None = None

    @torch.no_grad()
    def ask(self) -> dict[str, Tensor]:
        """A new population.

        Returns:
            By name, (population, *shape): the second half mirrors the first.
        """
        device = None if self.generator is None else self.generator.device
        self._mutations, mutants = {}, {}
        for name, value in self.params.items():
            shape = (self.population // 2, *value.shape)
            drawn = torch.randn(shape, generator=self.generator, device=device, dtype=value.dtype)
            mutation = self.sigma * drawn.to(value.device)
            self._mutations[name] = mutation
            mutants[name] = torch.cat([value + mutation, value - mutation])
        return mutants

    @torch.no_grad()
    def tell(self, losses: Float[Tensor, " population"]) -> None:
        """Add the estimated gradient to `.grad`, as `backward` would.

        Args:
            losses: of the population that was asked for last, in its order.

        Raises:
            ValueError: if no population was asked for since, or the number of losses is another.
            FloatingPointError: if a loss is not finite.
        """
        if self._mutations is None:
            raise ValueError("tell needs a population: call ask first, once for every tell.")
        if len(losses) != self.population:
            raise ValueError(f"{len(losses)} losses for a population of {self.population}.")
        if not bool(torch.isfinite(losses).all()):
            bad = int((~torch.isfinite(losses)).sum())
            raise FloatingPointError(f"{bad} of {self.population} losses are not finite.")
        first, second = losses.chunk(2)
        for name, mutation in self._mutations.items():
            value = self.params[name]
            difference = (first - second).to(mutation)
            gradient = torch.tensordot(difference, mutation, dims=1) / (self.population * self.sigma**2)
            value.grad = gradient if value.grad is None else value.grad + gradient
        self._mutations = None
