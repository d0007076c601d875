"""Nowcasters: from the last c states of a network's weights to the weights k states ahead.

    scaled    w~ = (w - mean) / (std + 1e-6)      over all entries and all c states of one parameter tensor
    forecast  w(k) = w_last + (std + 1e-6) d_k    d_k displacement in scaled space, from w~ and k

A displacement needs no mean to undo it: only the spread comes back. Two nowcasters look at each weight alone:

    linear    d_k = s k          s slope of the least-squares line (or higher polynomial) through the c scaled states
    WNN+      d = MLP(W w~ + embedding of the weight's kind), one output for each k = 1..K
"""

from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from neuropil.learning.nowcast.graph import NeuralGraph

__all__ = ["LinearNowcaster", "MLPNowcaster", "Nowcaster", "scale_history"]

EPSILON = 1e-6  # of the spread, so that a tensor that never moved is forecast to stay
KINDS = 15  # of edges, with the reserved ones


class Nowcaster(nn.Module, ABC):
    """Forecasts weights from their last states.

    Attributes:
        context: number of states it looks at, c.
        horizons: largest k it can forecast; None where any will do.
        needs_graph: whether it reads connections; if not, a `weight_table` is enough.
    """

    context: int
    horizons: int | None
    needs_graph: bool = False

    @abstractmethod
    def displacements(
        self, scaled: Float[Tensor, "*batch weights context"], graph: NeuralGraph, k: int | None = None
    ) -> Float[Tensor, "*batch weights horizons"]:
        """Displacements from the last state, in scaled space.

        Args:
            scaled: the last states, oldest first, scaled per tensor.
            graph: of the network.
            k: the horizon wanted, alone on the last axis; None gives all from 1 to `horizons`.
        """

    @torch.no_grad()
    def forward(
        self, history: Float[Tensor, "weights context"], graph: NeuralGraph, k: int
    ) -> Float[Tensor, " weights"]:
        """Forecast the weights k states after the last one.

        Args:
            history: the last states of the flat vector of weights, oldest first.
            graph: of the network, as the nowcaster needs it.
            k: how many states ahead.

        Raises:
            ValueError: if the history has other than `context` states or as many weights as the graph has not, or k is
                out of range.
        """
        check_horizon(k, self.horizons)
        if history.shape != (graph.weights, self.context):
            raise ValueError(
                f"history must be {graph.weights} weights by {self.context} states, got {tuple(history.shape)}."
            )
        scaled, spread = scale_history(history, graph)
        moved = self.displacements(scaled, graph, k)
        return history[:, -1] + spread * moved[..., 0].to(history)


def check_horizon(k: int, horizons: int | None) -> None:
    """Refuse a horizon that a nowcaster does not have.

    Raises:
        ValueError: if it is less than 1 or more than `horizons`.
    """
    if k < 1 or (horizons is not None and k > horizons):
        raise ValueError(f"k must be 1 to {horizons or 'any number'}, got {k}.")


def scale_history(
    history: Float[Tensor, "*batch weights context"], graph: NeuralGraph
) -> tuple[Float[Tensor, "*batch weights context"], Float[Tensor, "*batch weights"]]:
    """Centre and scale every parameter tensor over its entries and states.

    Returns:
        The scaled history, and the spread of each weight's tensor, which undoes the scaling of a displacement.
    """
    scaled, spread = torch.empty_like(history), torch.empty_like(history[..., 0])
    for span in graph.param_slices.values():
        part = history[..., span, :]
        deviation, mean = torch.std_mean(part, dim=(-2, -1), keepdim=True)
        scaled[..., span, :] = (part - mean) / (deviation + EPSILON)
        spread[..., span] = (deviation + EPSILON)[..., 0]
    return scaled, spread


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with SiLU between them; weights are set by `start`."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.SiLU(), linear(inputs, outputs)]
    return nn.Sequential(*layers[1:])


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer whose weights wait for `start`, so that the global random state is not touched."""
    layer = nn.Linear(inputs, outputs, device="meta")
    return layer.to_empty(device=torch.get_default_device())


def embedding(count: int, width: int) -> nn.Embedding:
    """An embedding whose weights wait for `start`."""
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


def start(module: nn.Module, last: nn.Module, generator: torch.Generator | None) -> None:
    """Initial weights of a nowcaster: normal with variance 1/fan_in, biases zero.

    Embeddings and the last layer have deviation 0.02, so that training begins close to the forecast that nothing moves.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            small = part is last or isinstance(part, nn.Embedding)
            nn.init.normal_(part.weight, std=0.02 if small else part.weight.shape[1] ** -0.5, generator=generator)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


def one_horizon(layer: nn.Linear, k: int | None, horizons: int, features: int = 1, used: int = 1) -> nn.Module:
    """A last layer cut down to the outputs that are wanted.

    Args:
        layer: outputs are features by horizons, features first.
        k: the horizon; None keeps all.
        horizons: how many the layer has.
        features: how many it has.
        used: how many of them are wanted, the first ones.
    """
    if k is None and used == features:
        return layer
    chosen = slice(None) if k is None else slice(k - 1, k)
    return _Cut(
        layer.weight.unflatten(0, (features, horizons))[:used, chosen].flatten(0, 1),
        layer.bias.unflatten(0, (features, horizons))[:used, chosen].flatten(),
    )


class _Cut(nn.Module):
    """Some rows of a linear layer, with their gradients."""

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        self.rows = (weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, *self.rows)


class LinearNowcaster(Nowcaster):
    """Extrapolates each weight by the least-squares polynomial through its last states.

    The polynomial's slope and curvature are used, not its value at the last state: the forecast starts where the
    weights are. It is exact on weights that move on a polynomial of its order.

    Args:
        order: of the polynomial; 1 is a line, 0 forecasts that nothing moves (a control).
        context: number of states.

    Raises:
        ValueError: if the order is negative or too high for so many states.

    Source: Knyazev et al. 2025, baseline "LFit".
    """

    def __init__(self, order: int = 1, *, context: int = 5):
        super().__init__()
        if not 0 <= order < context:
            raise ValueError(f"A polynomial through {context} states has order 0 to {context - 1}, got {order}.")
        self.order, self.context, self.horizons = order, context, None

    def displacements(
        self, scaled: Float[Tensor, "*batch weights context"], graph: NeuralGraph, k: int | None = None
    ) -> Float[Tensor, "*batch weights horizons"]:
        """As `Nowcaster.displacements`; k must be given, for there is no largest one.

        Raises:
            ValueError: if k is None.
        """
        if k is None:
            raise ValueError("A LinearNowcaster has no largest horizon: pass k.")
        times = torch.arange(1 - self.context, 1, dtype=torch.float64)
        powers = torch.arange(self.order + 1)
        fit = torch.linalg.pinv(times[:, None] ** powers)  # from states to coefficients of 1, t, t^2, ...
        # The polynomial at k less the polynomial at 0, where only the constant is left.
        weights = (float(k) ** powers.double() * (powers > 0)) @ fit
        return (scaled @ weights.to(scaled))[..., None]


class MLPNowcaster(Nowcaster):
    """WNN+: one perceptron for every weight, which sees its scaled states and its kind.

    Args:
        hid: width.
        layers: of the perceptron after the first linear one.
        context: number of states.
        horizons: number of outputs, the largest k.
        generator: source of the initial weights.

    Raises:
        ValueError: if a size is less than 1.

    Source: Knyazev et al. 2025, sec. 4, after the weight nowcaster of Jang et al. 2023.
    """

    def __init__(
        self,
        hid: int = 128,
        *,
        layers: int = 4,
        context: int = 5,
        horizons: int = 40,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_sizes(hid=hid, layers=layers, context=context - 1, horizons=horizons)
        self.context, self.horizons = context, horizons
        self.kind = embedding(KINDS, hid)
        self.states = linear(context, hid)
        self.head = perceptron(*[hid] * layers, horizons)
        start(self, self.head[-1], generator)

    def displacements(
        self, scaled: Float[Tensor, "*batch weights context"], graph: NeuralGraph, k: int | None = None
    ) -> Float[Tensor, "*batch weights horizons"]:
        """As `Nowcaster.displacements`."""
        kinds: Int64[Tensor, " weights"] = graph.weight_type
        hidden = self.states(scaled.to(self.states.weight)) + self.kind(kinds)
        last = self.head[-1]
        assert isinstance(last, nn.Linear) and self.horizons is not None
        return one_horizon(last, k, self.horizons)(self.head[:-1](hidden))


def check_sizes(**sizes: int) -> None:
    """Refuse sizes less than 1, by their names.

    Raises:
        ValueError: if there are any.
    """
    wrong = {name: size for name, size in sizes.items() if size < 1}
    if wrong:
        raise ValueError(f"Sizes must be at least 1 (context at least 2), got {sizes}: {', '.join(wrong)} too small.")
