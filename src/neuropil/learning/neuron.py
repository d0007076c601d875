"""One layer of neurons: McCulloch and Pitts' threshold unit, the perceptron rule and the delta rule.

    v = W x + b            net input                       y = f(v)         output

    f(v)   step: 1 if v >= 0 else 0      sign: 1 if v >= 0 else -1      identity: v
           logistic: 1 / (1 + exp(-a v)),  f' = a y (1 - y)             tanh: tanh(a v),  f' = a (1 - y^2)

    delta rule        dW = eta (d - y) f'(v) x      descends  E = 1/2 sum_p |d_p - y_p|^2     (identity: LMS)
    perceptron rule   dW = eta (d - y) x            f a step; on separable data it stops after at most (R / gamma)^2
                                                    mistakes, from zero weights (R: longest input, gamma: margin of the
                                                    best unit separator, the bias counted as an input of 1)

E is the SUM over the batch: with a batch of one the update is the textbook's.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.learning.rule import LearningRule, Loss, Packet

__all__ = ["GATES", "DeltaRule", "McCullochPitts", "signed_distance"]


class Activation(NamedTuple):
    """A neuron's transfer function.

    Attributes:
        value: f, elementwise.
        low: least value; targets lie between low and high.
        high: greatest value.
        steep: whether it is a step, which has no derivative to learn by.
    """

    value: Callable[[Tensor], Tensor]
    low: float
    high: float
    steep: bool = False


def _activation(name: str, slope: float) -> Activation:
    inf = float("inf")
    known = {
        "step": Activation(lambda v: (v >= 0).to(v), 0, 1, steep=True),
        "sign": Activation(lambda v: 2 * (v >= 0).to(v) - 1, -1, 1, steep=True),
        "identity": Activation(lambda v: v, -inf, inf),
        "logistic": Activation(lambda v: torch.sigmoid(slope * v), 0, 1),
        "tanh": Activation(lambda v: torch.tanh(slope * v), -1, 1),
    }
    if name not in known:
        raise ValueError(f"activation must be one of {', '.join(known)}; got {name!r}.")
    return known[name]


# weights and bias of a step neuron
GATES: dict[str, tuple[tuple[float, ...], float]] = {
    "and": ((1.0, 1.0), -1.5),
    "or": ((1.0, 1.0), -0.5),
    "nand": ((-1.0, -1.0), 1.5),
    "nor": ((-1.0, -1.0), 0.5),
    "not": ((-1.0,), 0.5),
}


class McCullochPitts(nn.Module):
    """A layer of neurons with given weights.

    Args:
        weights: W, (neurons, inputs), or (inputs,) for one neuron.
        bias: b, (neurons,), or a number.
        activation: "step", "sign", "identity", "logistic" or "tanh".
        slope: a of "logistic" and "tanh", positive.

    Attributes:
        weight: W, a parameter.
        bias: b, a parameter.

    Raises:
        ValueError: if shapes do not fit, a weight is not finite, the activation is unknown or the slope not positive.

    Source: McCulloch & Pitts, Bull. Math. Biophysics 5 (1943); Cuevas-Tello, arXiv:1806.05298 (2018), ch. 2.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float] | Sequence[Sequence[float]],
        bias: Tensor | Sequence[float] | float = 0.0,
        activation: str = "step",
        slope: float = 1.0,
    ):
        super().__init__()
        if not slope > 0:
            raise ValueError(f"slope must be positive, got {slope}.")
        self.activation = _activation(activation, slope)
        self.kind, self.slope = activation, slope
        weight = torch.atleast_2d(_floats(weights))
        shift = torch.atleast_1d(_floats(bias)).to(weight)
        if weight.dim() != 2 or shift.shape != weight.shape[:1]:
            raise ValueError(f"weights have shape {tuple(weight.shape)}, bias {tuple(shift.shape)}: one bias a neuron.")
        if not (weight.isfinite().all() and shift.isfinite().all()):
            raise ValueError("weights and bias must be finite.")
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(shift.clone())

    @classmethod
    def gate(cls, name: str) -> "McCullochPitts":
        """A logic gate of one step neuron: "and", "or", "nand", "nor" of two inputs, "not" of one.

        Raises:
            ValueError: if there is no such gate; "xor" needs two layers.
        """
        if name not in GATES:
            raise ValueError(f"No single neuron is a {name!r} gate here; there are {', '.join(GATES)}.")
        return cls(*GATES[name])

    def drive(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch neurons"]:
        """Net input v."""
        return nn.functional.linear(x, self.weight, self.bias)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch neurons"]:
        """Output y = f(v)."""
        return self.activation.value(self.drive(x))

    @torch.no_grad()
    def truth_table(self) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
        """Outputs for all inputs of zeros and ones, counted up in binary.

        Raises:
            ValueError: if there are more than 16 inputs.
        """
        inputs = self.weight.shape[1]
        if inputs > 16:
            raise ValueError(f"A truth table of {inputs} inputs has 2^{inputs} rows; at most 16 inputs are listed.")
        rows = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * inputs).view(-1, inputs).to(self.weight)
        return [(tuple(map(int, x)), tuple(y)) for x, y in zip(rows.tolist(), self(rows).tolist(), strict=True)]

    def extra_repr(self) -> str:
        """Sizes and activation."""
        return f"inputs={self.weight.shape[1]}, neurons={self.weight.shape[0]}, activation={self.kind!r}"


class DeltaRule(LearningRule):
    """Train one layer of neurons by its own error: local, and for a single layer equal to the gradient.

    Args:
        net: a `McCullochPitts` layer, an nn.Linear, or an nn.Sequential of modules without parameters around one
            nn.Linear.
        loss_fn: none: the rule has its own loss.
        mode: "delta" for (d - y) f'(v) x, "perceptron" for (d - y) x, which is all that steps allow.

    Raises:
        TypeError: if the net has more than one layer of weights (use `Backpropagation`), or none.
        ValueError: if the mode is unknown, or "delta" is asked of a step; on a batch: if targets differ from the
            outputs in shape, or lie outside what the activation can reach.

    Source: Widrow & Hoff, IRE WESCON (1960); Rosenblatt, Psychol. Rev. 65 (1958); Cuevas-Tello, arXiv:1806.05298
    (2018), ch. 3.
    """

    def __init__(self, net: nn.Module, loss_fn: Loss | None = None, *, mode: str = "delta"):
        super().__init__(net)
        if loss_fn is not None:
            raise ValueError("DeltaRule has its own loss, half the squared error summed over the batch: pass none.")
        if mode not in ("delta", "perceptron"):
            raise ValueError(f'mode must be "delta" or "perceptron", got {mode!r}.')
        self.mode = mode
        self._drive, self._value, (self._low, self._high), steep = _layer(net)
        if steep and mode == "delta":
            raise ValueError(f'A {net.kind!r} neuron has no derivative: use mode="perceptron".')

    def packets(self, x: Tensor, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: the output with -(d - y), or the net input with it where the derivative is dropped.

        Args:
            x: inputs, (batch, inputs).
            y: targets d, (batch, neurons).
        """
        drive = self._drive(x)
        output = self._value(drive)
        error = output.detach() - self._target(y, output)
        taught = output if self.mode == "delta" else drive
        yield Packet([taught], [error], 0.5 * error.square().sum())

    def _target(self, y: Tensor | None, output: Tensor) -> Tensor:
        target = self.required_target(y)
        if target.shape != output.shape:
            raise ValueError(f"y has shape {tuple(target.shape)}, the output {tuple(output.shape)}.")
        if bool(((target < self._low) | (target > self._high)).any()):
            raise ValueError(
                f"y holds {float(target.min()):g} to {float(target.max()):g}, the neurons give {self._low:g} to "
                f"{self._high:g}: code the classes within these."
            )
        return target.to(output)


def signed_distance(neuron: McCullochPitts, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch neurons"]:
    """Distance of points from each neuron's boundary W x + b = 0, positive where it is on.

    Raises:
        ValueError: if a neuron has only zero weights, so no boundary.
    """
    norms = neuron.weight.norm(dim=1)
    if not bool((norms > 0).all()):
        raise ValueError("A neuron whose weights are all zero has no boundary.")
    return neuron.drive(x) / norms


def _floats(values: object) -> Tensor:
    tensor = torch.as_tensor(values)
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _layer(net: nn.Module) -> tuple[Callable, Callable, tuple[float, float], bool]:
    """(x -> v, v -> y, range of y, whether f is a step) of a net of one layer."""
    if isinstance(net, McCullochPitts):
        f = net.activation
        return net.drive, f.value, (f.low, f.high), f.steep
    infinite = (-float("inf"), float("inf"))
    parts = list(net) if isinstance(net, nn.Sequential) else [net]
    owners = [index for index, part in enumerate(parts) if next(part.parameters(), None) is not None]
    if len(owners) != 1 or not isinstance(parts[owners[0]], nn.Linear):
        raise TypeError(
            f"DeltaRule trains one nn.Linear between modules without parameters; {type(net).__name__} has "
            f"{len(owners)} modules with parameters. For deeper nets use Backpropagation."
        )
    place = owners[0]
    before, after = nn.Sequential(*parts[: place + 1]), nn.Sequential(*parts[place + 1 :])
    ranges = {nn.Sigmoid: (0.0, 1.0), nn.Tanh: (-1.0, 1.0)}
    last = parts[-1]
    return before, after, ranges.get(type(last), infinite), False
