"""The restricted Boltzmann machine, with exact quantities where it is small.

    E(v, h) = -h^T W v - b^T h [- c^T v],     P(v, h) = exp(-E) / Z,     v, h binary

    P(h_i = 1 | v) = sigmoid((W v + b)_i)              P(v_j = 1 | h) = sigmoid((W^T h + c)_j)
    F(v) = -log sum_h exp(-E) = -c^T v - sum_i softplus((W v + b)_i)
    log Z = log sum_v exp(-F(v)), or the same over h: whichever side has fewer units is enumerated

Labels are visible units like any other: the last ones, one a class.
"""

from collections.abc import Iterator
from copy import deepcopy

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear, one_hot, softplus

__all__ = ["RestrictedBoltzmann", "all_states", "bars_and_stripes", "kl_divergence", "with_labels"]

ENUMERABLE = 20  # units; 2^20 states take a second
CHUNK = 14  # 2^14 states at a time


def all_states(
    units: int, *, first: int = 0, count: int | None = None, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "states {units}"]:
    """Binary states of some units, counted up with the first unit as the lowest bit.

    Args:
        units: number of units.
        first: the state to begin with.
        count: how many; None for all that follow.
        dtype: of the states.

    Raises:
        ValueError: if units is less than 1 or more than 62, or the range leaves the 2^units states.
    """
    if not 1 <= units <= 62:
        raise ValueError(f"units must be 1 to 62, got {units}.")
    end = 2**units if count is None else first + count
    if not 0 <= first < end <= 2**units:
        raise ValueError(f"{units} units have states 0 to {2**units - 1}; asked for {first} to {end - 1}.")
    numbers = torch.arange(first, end)
    return (numbers[:, None] >> torch.arange(units) & 1).to(dtype)


class RestrictedBoltzmann(nn.Module):
    """Binary visible and hidden units with weights between the two kinds only.

    Args:
        n_visible: number of visible units, label units included.
        n_hidden: number of hidden units.
        visible_bias: whether visible units have a bias (the paper's have none).
        scale: standard deviation of the initial weights; biases start at 0.
        generator: source of the initial weights; None is torch's default generator.

    Raises:
        ValueError: if a number of units is less than 1, or scale negative.

    Source: Smolensky 1986; settings of Williams, Bredenberg & Lajoie, ICML 2023 (normal weights of 0.01).
    """

    def __init__(
        self,
        n_visible: int,
        n_hidden: int,
        *,
        visible_bias: bool = False,
        scale: float = 0.01,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if n_visible < 1 or n_hidden < 1:
            raise ValueError(f"n_visible and n_hidden must be at least 1, got {n_visible} and {n_hidden}.")
        if scale < 0:
            raise ValueError(f"scale must not be negative, got {scale}.")
        self.n_visible, self.n_hidden = n_visible, n_hidden
        self.weight = nn.Parameter(scale * torch.randn(n_hidden, n_visible, generator=generator))
        self.hidden_bias = nn.Parameter(torch.zeros(n_hidden))
        self.visible_bias = nn.Parameter(torch.zeros(n_visible)) if visible_bias else None

    def extra_repr(self) -> str:
        """Sizes, for `print`."""
        return f"{self.n_visible}, {self.n_hidden}, visible_bias={self.visible_bias is not None}"

    def hidden_drive(self, v: Float[Tensor, "batch visible"]) -> Float[Tensor, "batch hidden"]:
        """W v + b, the log-odds of the hidden units."""
        return linear(self._visible(v), self.weight, self.hidden_bias)

    def visible_drive(self, h: Float[Tensor, "batch hidden"]) -> Float[Tensor, "batch visible"]:
        """W^T h + c, the log-odds of the visible units."""
        return linear(h, self.weight.T, self.visible_bias)

    def forward(self, v: Float[Tensor, "batch visible"]) -> Float[Tensor, "batch hidden"]:
        """Probabilities of the hidden units."""
        return self.hidden_drive(v).sigmoid()

    def energy(self, v: Float[Tensor, "batch visible"], h: Float[Tensor, "batch hidden"]) -> Float[Tensor, " batch"]:
        """E(v, h)."""
        energy = -(h * self.hidden_drive(v)).sum(1)
        return energy if self.visible_bias is None else energy - v @ self.visible_bias

    def free_energy(self, v: Float[Tensor, "batch visible"]) -> Float[Tensor, " batch"]:
        """F(v), with the hidden units summed out."""
        energy = -softplus(self.hidden_drive(v)).sum(1)
        return energy if self.visible_bias is None else energy - v @ self.visible_bias

    def log_partition(self) -> Float[Tensor, ""]:
        """Log of Z by enumeration, with its gradient: minus the mean of `log_likelihood` is an exact loss.

        Raises:
            ValueError: if both sides have more than 20 units.
        """
        return torch.cat(list(self._side_log_weights())).logsumexp(0)

    def log_likelihood(self, v: Float[Tensor, "batch visible"]) -> Float[Tensor, " batch"]:
        """Log P(v), exact.

        Raises:
            ValueError: if both sides have more than 20 units.
        """
        return -self.free_energy(v) - self.log_partition()

    def sample_hidden(
        self, v: Float[Tensor, "batch visible"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch hidden"]:
        """Draw hidden units, given the visible ones."""
        return _coins(self.hidden_drive(v), generator)

    def sample_visible(
        self, h: Float[Tensor, "batch hidden"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "batch visible"]:
        """Draw visible units, given the hidden ones."""
        return _coins(self.visible_drive(h), generator)

    @torch.no_grad()
    def sample(
        self,
        v: Float[Tensor, "batch visible"],
        steps: int,
        *,
        clamped: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch visible"]:
        """Run the Gibbs chain: hidden given visible units, then visible given hidden ones, `steps` times.

        Args:
            v: where the chain starts; it is not changed.
            steps: 0 or more.
            clamped: mask of visible units that stay as they are, (visible,) or (batch, visible), bool.
            generator: source of the draws.

        Raises:
            ValueError: if steps is negative.
        """
        if steps < 0:
            raise ValueError(f"steps must not be negative, got {steps}.")
        state = self._visible(v)
        for _ in range(steps):
            drawn = self.sample_visible(self.sample_hidden(state, generator), generator)
            state = drawn if clamped is None else torch.where(clamped, state, drawn)
        return state

    @torch.no_grad()
    def sample_exact(
        self, count: int, *, generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "{count} visible"], Float[Tensor, "{count} hidden"]]:
        """Draw independent (v, h) from the model itself: no chain, no burn-in.

        Raises:
            ValueError: if both sides have more than 20 units, or count is less than 1.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}.")
        log_weights = torch.cat(list(self._side_log_weights())).double()
        edges = (log_weights - log_weights.logsumexp(0)).exp().cumsum(0)
        draws = torch.rand(count, generator=generator, dtype=torch.float64, device=edges.device)
        chosen = torch.searchsorted(edges, draws * edges[-1]).clamp_(max=len(edges) - 1)
        drawn = (chosen[:, None] >> torch.arange(self._smaller, device=chosen.device) & 1).to(self.weight.dtype)
        if self.n_visible < self.n_hidden:
            return drawn, self.sample_hidden(drawn, generator)
        return self.sample_visible(drawn, generator), drawn

    @torch.no_grad()
    def classify(
        self,
        x: Float[Tensor, "batch inputs"],
        labels: int,
        samples: int = 80,
        burn_in: int = 40,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch {labels}"]:
        """Mean activity of the label units while the inputs are clamped.

        Args:
            x: inputs, one a visible unit that is no label.
            labels: number of label units, the last visible ones; they start at 0.
            samples: Gibbs steps that are averaged.
            burn_in: steps before them.
            generator: source of the draws.

        Raises:
            ValueError: if inputs and labels do not fit the visible units, samples is less than 1, or burn_in negative.
        """
        if not 1 <= labels < self.n_visible or x.shape[1] + labels != self.n_visible:
            raise ValueError(f"{x.shape[1]} inputs and {labels} labels do not make {self.n_visible} visible units.")
        if samples < 1 or burn_in < 0:
            raise ValueError(f"samples must be at least 1 and burn_in 0, got {samples} and {burn_in}.")
        clamped = torch.arange(self.n_visible, device=x.device) < x.shape[1]
        v = self.sample(torch.cat([x, x.new_zeros(len(x), labels)], 1), burn_in, clamped=clamped, generator=generator)
        total = torch.zeros_like(v[:, -labels:])
        for _ in range(samples):
            v = self.sample(v, 1, clamped=clamped, generator=generator)
            total += v[:, -labels:]
        return total / samples

    @property
    def _smaller(self) -> int:
        return min(self.n_visible, self.n_hidden)

    def _side_log_weights(self) -> Iterator[Tensor]:
        """Log of the unnormalised probability of every state of the smaller side, in chunks."""
        units = self._smaller
        if units > ENUMERABLE:
            raise ValueError(
                f"{self.n_visible} visible and {self.n_hidden} hidden units: enumeration needs at most {ENUMERABLE} on "
                "one side."
            )
        chunk = 2 ** min(units, CHUNK)
        for first in range(0, 2**units, chunk):
            states = all_states(units, first=first, count=chunk).to(self.weight)
            if self.n_visible < self.n_hidden:
                yield -self.free_energy(states)
            else:
                yield states @ self.hidden_bias + softplus(self.visible_drive(states)).sum(1)

    def _visible(self, v: Tensor) -> Tensor:
        if v.shape[1] != self.n_visible:
            raise ValueError(f"v has {v.shape[1]} units, the machine {self.n_visible} visible ones.")
        return v


def _coins(log_odds: Tensor, generator: torch.Generator | None) -> Tensor:
    """Independent coins; uniform numbers in double precision, so that the compiled loop can draw the same ones."""
    uniform = torch.rand(log_odds.shape, generator=generator, dtype=torch.float64, device=log_odds.device)
    return (uniform < log_odds.sigmoid()).to(log_odds.dtype)


def with_labels(x: Tensor, y: Int[Tensor, " batch"], labels: int) -> Tensor:
    """Inputs with one-hot label units appended.

    Raises:
        ValueError: if a label is out of range, or the lengths differ.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} inputs, {len(y)} labels.")
    if len(y) and not 0 <= int(y.min()) <= int(y.max()) < labels:
        raise ValueError(f"labels from {int(y.min())} to {int(y.max())}, but there are {labels} label units.")
    return torch.cat([x, one_hot(y, labels).to(x)], 1)


def bars_and_stripes(n: int) -> Float[Tensor, "patterns pixels"]:
    """All patterns of full columns, and all of full rows, of an n x n image, each once.

    Returns:
        (2^(n+1) - 2, n*n) of 0 and 1; the empty and the full image belong to both kinds and come once.

    Raises:
        ValueError: if n is less than 1.

    Source: MacKay, Information theory, inference and learning algorithms (2003), ch. 43.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}.")
    lines = all_states(n)
    bars = lines[:, None, :].expand(-1, n, n).reshape(-1, n * n)
    stripes = lines[1:-1, :, None].expand(-1, n, n).reshape(-1, n * n)
    return torch.cat([bars, stripes])


@torch.no_grad()
def kl_divergence(data: Float[Tensor, "rows visible"], net: RestrictedBoltzmann) -> float:
    """KL(data || model) in nats, exact, in double precision; every row of the data is as likely, repeats count.

    Raises:
        ValueError: if both sides of the machine have more than 20 units.
    """
    rows, counts = torch.unique(data.double(), dim=0, return_counts=True)
    p = counts.double() / counts.sum()
    return float((p * (p.log() - deepcopy(net).double().log_likelihood(rows))).sum())
