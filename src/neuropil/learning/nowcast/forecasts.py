"""Where weights will be: forecasts from their last states, by a line and by a network that looks at each weight alone.

    theta_hat(k) = theta_c + (sigma + eps) a_k(z)      z = (theta - mu) / (sigma + eps)     k = 1..horizons states ahead

mu and sigma are the mean and standard deviation of each parameter tensor over its entries and its c states. What a
nowcaster must know is only the change a_k of a scaled weight. For polynomials of degree p, fitted to the c states by
least squares, a_k = f(c + k) - f(c): degree 1 continues the line from the last state, degree 0 stays there.
"""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear as apply_linear

from neuropil.learning.networks import linear
from neuropil.learning.nowcast.graph import EDGE_TYPES, NeuralGraph

__all__ = ["LinearNowcaster", "MLPNowcaster", "Nowcaster", "embedding", "standardise"]

EPS = 1e-6
KINDS = 15  # rows of the official files' table of edge types
assert max(EDGE_TYPES.values()) < KINDS


def standardise(
    states: Float[Tensor, "weights states"], graph: NeuralGraph, context: int | None = None
) -> tuple[Float[Tensor, "weights states"], Float[Tensor, " weights"]]:
    """Scale every parameter tensor by its own mean and standard deviation.

    Args:
        states: of the flat vector of weights, in time.
        graph: says where the tensors lie.
        context: only so many first states count for mean and deviation; None takes all.

    Returns:
        (scaled states, sigma + eps of each weight's tensor).

    Raises:
        ValueError: if the graph does not cover the weights.
    """
    covered = sum(span.stop - span.start for span in graph.param_slices.values())
    if covered != len(states):
        raise ValueError(f"states have {len(states)} weights, the graph's parameters {covered}.")
    center, width = torch.empty_like(states[:, 0]), torch.empty_like(states[:, 0])
    for span in graph.param_slices.values():
        seen = states[span, :context].double()  # squares of large weights overflow in single precision
        center[span] = seen.mean().to(states)
        width[span] = (seen.std() + EPS).to(states)
    return (states - center[:, None]) / width[:, None], width


def embedding(rows: int, width: int, generator: torch.Generator | None = None) -> nn.Embedding:
    """A table of small normal entries (standard deviation 0.02) from a generator."""
    table = nn.Embedding(rows, width, device="meta").to_empty(device=torch.get_default_device())
    nn.init.normal_(table.weight, std=0.02, generator=generator)
    return table


class Nowcaster(nn.Module, ABC):
    """Forecasts the weights of a network from its last states.

    Args:
        context: number c of states that it looks at, at least 2.
        horizons: how many states ahead it can look.

    Attributes:
        connected: whether it reads the edges of a `neural_graph`; a `weight_table` is enough for the others.

    Raises:
        ValueError: if a number is out of range.
    """

    connected = False

    def __init__(self, context: int = 5, horizons: int = 40):
        super().__init__()
        if context < 2 or horizons < 1:
            raise ValueError(f"context must be at least 2 and horizons at least 1, got {context} and {horizons}.")
        self.context = context
        self.horizons = horizons

    @abstractmethod
    def changes(
        self, scaled: Float[Tensor, "weights {self.context}"], graph: NeuralGraph, k: int | None = None
    ) -> Float[Tensor, "weights ahead"]:
        """Changes of scaled weights from the last state on.

        Args:
            scaled: the last states.
            graph: of the network.
            k: one horizon; None gives all, 1 to `horizons`.
        """

    @torch.no_grad()
    def forward(
        self, history: Float[Tensor, "weights states"], graph: NeuralGraph, k: int
    ) -> Float[Tensor, " weights"]:
        """The weights, k states ahead of the last one.

        Args:
            history: the last `context` states of the flat vector of weights, at equal distances, oldest first.
            graph: of the network.
            k: how far to look, in distances of two states.

        Raises:
            ValueError: if history has another number of states or weights than wanted, or k is beyond the horizons.
        """
        if history.shape[1] != self.context:
            raise ValueError(f"history has {history.shape[1]} states, {type(self).__name__} wants {self.context}.")
        if not 1 <= k <= self.horizons:
            raise ValueError(f"k must lie in 1..{self.horizons}, got {k}.")
        scaled, width = standardise(history, graph)
        own = next(self.parameters(), history)
        change = self.changes(scaled.to(own), graph, k)[:, 0].to(history)
        return history[:, -1] + width * change


class LinearNowcaster(Nowcaster):
    """Continues the least-squares polynomial of each weight: nothing to learn.

    Args:
        order: degree of the polynomial, below `context`; 0 forecasts that nothing moves.
        context: as `Nowcaster`.
        horizons: as `Nowcaster`.

    Raises:
        ValueError: if the order is negative or not below the context.

    Source: Knyazev et al. 2025, baseline "linear fit".
    """

    def __init__(self, order: int = 1, *, context: int = 5, horizons: int = 40):
        super().__init__(context, horizons)
        if not 0 <= order < context:
            raise ValueError(f"order must lie in 0..{context - 1} (below the context), got {order}.")
        self.order = order
        times = torch.arange(1 - context, horizons + 1, dtype=torch.float64)  # the last state is at 0
        powers = times[:, None] ** torch.arange(order + 1)
        fit = torch.linalg.pinv(powers[:context])  # coefficients from states
        self.register_buffer("weights", (powers[context:] - powers[context - 1]) @ fit, persistent=False)

    weights: Float[Tensor, "horizons context"]

    def changes(
        self, scaled: Float[Tensor, "weights {self.context}"], graph: NeuralGraph, k: int | None = None
    ) -> Float[Tensor, "weights ahead"]:
        """See `Nowcaster.changes`."""
        chosen = self.weights if k is None else self.weights[k - 1 : k]
        # From the last state, so that what stands still is forecast to stand still exactly.
        return (scaled - scaled[:, -1:]) @ chosen.to(scaled).T


class MLPNowcaster(Nowcaster):
    """A network that looks at the history of each weight alone, and at the kind of layer it is in (WNN+).

        h = W z + type;     a = MLP_4(h), SiLU between its layers

    It starts as the forecast that nothing moves.

    Args:
        hid: units of a hidden layer.
        horizons: as `Nowcaster`.
        context: as `Nowcaster`.
        generator: source of the initial weights.

    Raises:
        ValueError: if a size is less than 1.

    Source: Jang et al. 2023 (WNN), with the changes of Knyazev et al. 2025, sec. 4.
    """

    def __init__(
        self, hid: int = 128, horizons: int = 40, *, context: int = 5, generator: torch.Generator | None = None
    ):
        super().__init__(context, horizons)
        self.history = linear(context, hid, generator=generator)
        self.types = embedding(KINDS, hid, generator)
        hidden = [layer for _ in range(3) for layer in (linear(hid, hid, generator=generator), nn.SiLU())]
        self.body = nn.Sequential(*hidden)
        self.out = zero_linear(hid, horizons)

    def changes(
        self, scaled: Float[Tensor, "weights {self.context}"], graph: NeuralGraph, k: int | None = None
    ) -> Float[Tensor, "weights ahead"]:
        """See `Nowcaster.changes`."""
        hidden = self.body(self.history(scaled) + self.types(graph.weight_type.to(scaled.device)))
        if k is None:
            return self.out(hidden)
        return apply_linear(hidden, self.out.weight[k - 1 : k], self.out.bias[k - 1 : k])


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer of zeros."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device=torch.get_default_device())  # nothing drawn
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
