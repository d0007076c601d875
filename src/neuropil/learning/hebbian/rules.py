"""Hebbian learning of one layer: no target, no error, nothing from above.

A layer with filters w_k (k = 1..K) sees patches x, (d,): the inputs of a linear layer, or what lies under the kernel of
a convolution at one position. The drive u_k = w_k . x has no bias. Every rule of this module is

    dw_k = mean over patches of  y_k (x - r_k w_k)

with an activity y and a decay r of its own:

    SoftHebb    y = softmax(u / T) over the filters, or the one-hot winner       r_k = u_k / R_k^2
    Oja         y = u                                                            r_k = u_k / R_k^2
    Instar      y = the one-hot winner, or softmax(u / T)                        r_k = 1

Dotted with w_k, the first two give mean(y_k u_k) (1 - |w_k|^2 / R_k^2): a filter ends at the length R_k, which is 1
(`norm="unit"`) or the length that it had when the rule was made (`norm="source"`). At that length each is a projected
gradient on the sphere, of the log-likelihood of a mixture (SoftHebb) or of the variance (Oja).

All patches of a batch are the rows of one matrix X, so that a step is two matrix products: U = X W^T and Y^T X.
"""

from abc import abstractmethod
from collections.abc import Iterator
from math import log
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad, unfold

from neuropil.learning.rule import LearningRule, Packet

__all__ = ["HebbianRule", "Instar", "Oja", "SoftHebb", "patches"]

Layer = nn.Linear | nn.Conv2d
NORMS = ("unit", "source")


def patches(layer: nn.Module, x: Tensor) -> Float[Tensor, "patches size"]:
    """What every unit of a layer sees, one row a sample and position.

    Args:
        layer: linear, or a two-dimensional convolution with any stride, padding and dilation.
        x: its input, (..., features) or (batch, channels, height, width).

    Returns:
        Rows in the order of the samples, then of the output's positions, row by row.

    Raises:
        TypeError: if the layer is of another kind.
        ValueError: if the input does not fit it or is empty.
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"layer must be a Linear or Conv2d, got {type(layer).__name__}.")
    if isinstance(layer, nn.Linear):
        if x.dim() < 1 or x.shape[-1] != layer.in_features:
            raise ValueError(f"x has shape {tuple(x.shape)}, the layer takes (..., {layer.in_features}).")
        rows = x.reshape(-1, layer.in_features)
    else:
        if x.dim() != 4 or x.shape[1] != layer.in_channels:
            wanted = f"(batch, {layer.in_channels}, height, width)"
            raise ValueError(f"x has shape {tuple(x.shape)}, the layer takes {wanted}.")
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = pad(x, _margins(layer), mode=mode)
        columns = unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
        rows = columns.transpose(1, 2).reshape(-1, columns.shape[1])
    if not len(rows):
        raise ValueError(f"x has shape {tuple(x.shape)}: there is no patch to learn from.")
    return rows


def _margins(layer: nn.Conv2d) -> list[int]:
    """Padding of a convolution as `pad` takes it: left, right, top, bottom."""
    margins: list[int] = []
    for axis in (1, 0):
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            margins += [total // 2, total - total // 2]
        else:
            margins += 2 * [0 if isinstance(layer.padding, str) else layer.padding[axis]]
    return margins


def compete(drive: Float[Tensor, "patches units"], temperature: float, hard: bool) -> Float[Tensor, "patches units"]:
    """Shares of the units in each patch: a softmax, or all to the largest drive (the first of equals)."""
    if hard:
        return one_hot(drive.argmax(1), drive.shape[1]).to(drive)
    return torch.softmax(drive / temperature, 1)


class HebbianRule(LearningRule):
    """Trains the weight of one layer by its own inputs and activities; a bias is left alone.

    `backward(x)` takes the layer's input and no target; `change(x)` gives the wanted change itself.

    Args:
        layer: a Linear, or a Conv2d without groups.
        centre: whether each patch is taken less its own mean.
        norm: length at which the decay holds a filter: "unit", or "source", the length that it has now.

    Attributes:
        radius: R_k, (units,).

    Raises:
        TypeError: if the layer is of another kind.
        ValueError: if it has groups, `norm` is unknown, or a filter of length 0 is to be held at its length.
        FloatingPointError: on a batch, if the change is not finite.
    """

    net: nn.Linear | nn.Conv2d  # pyright: ignore[reportIncompatibleVariableOverride] - narrower, and checked
    radius: Tensor

    def __init__(self, layer: nn.Module, loss_fn: None = None, *, centre: bool = False, norm: str = "unit"):
        if not isinstance(layer, Layer):
            raise TypeError(f"{type(self).__name__} trains a Linear or Conv2d, got {type(layer).__name__}.")
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            raise ValueError(f"{type(self).__name__} trains convolutions with groups=1, got {layer.groups}.")
        if norm not in NORMS:
            raise ValueError(f'norm must be "unit" or "source", got {norm!r}.')
        super().__init__(layer, loss_fn)
        self.centre = centre
        lengths = layer.weight.detach().flatten(1).norm(dim=1)
        if norm == "source" and not bool((lengths > 0).all()):
            raise ValueError(f"{int((lengths == 0).sum())} filters have length 0, which norm='source' cannot hold.")
        self.register_buffer("radius", lengths if norm == "source" else torch.ones_like(lengths))

    @abstractmethod
    def activity(self, drive: Float[Tensor, "patches units"]) -> Float[Tensor, "patches units"]:
        """y, which multiplies the patch."""

    @abstractmethod
    def loss(self, drive: Float[Tensor, "patches units"], rows: Float[Tensor, "patches size"]) -> Float[Tensor, ""]:
        """What the rule lowers, mean over patches."""

    def decay(self, drive: Float[Tensor, "patches units"]) -> Float[Tensor, "patches units"]:
        """r, which multiplies the filter: u / R^2."""
        return drive / self.radius.to(drive).square()

    def change(self, x: Tensor) -> Tensor:
        """Wanted change of the weight for one batch, without learning rate; shape of the weight, no graph.

        Args:
            x: input of the layer, (..., features) or (batch, channels, height, width).
        """
        return self._taught(x)[0]

    def packets(self, x: Any, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: the weight, taught by minus its wanted change.

        Args:
            x: input of the layer.
            y: ignored: nothing here needs a target.
        """
        change, loss = self._taught(x)
        yield Packet([self.net.weight], [-change], loss)

    @torch.no_grad()
    def _taught(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.net.weight.detach().flatten(1)
        rows = patches(self.net, x)
        if self.centre:
            rows = rows - rows.mean(1, keepdim=True)
        drive = rows @ weight.T
        activity = self.activity(drive)
        hold = (activity * self.decay(drive)).mean(0)
        change = activity.T @ rows / len(rows) - hold[:, None] * weight
        if not bool(torch.isfinite(change).all()):
            raise FloatingPointError(
                f"{type(self).__name__}: the change of the weight is not finite; inputs reach "
                f"{float(x.abs().max()):g}, weights {float(weight.abs().max()):g}."
            )
        return change.view_as(self.net.weight), self.loss(drive, rows)


class SoftHebb(HebbianRule):
    """Soft competition: every filter moves towards the patches of which it claims a share.

    Args:
        layer: a Linear, or a Conv2d without groups.
        temperature: T; low is sharp.
        centre: whether each patch is taken less its own mean.
        hard: whether the winner takes all instead: the limit of T towards 0.
        norm: "unit" or "source", as in HebbianRule.

    The loss is minus the mean log-likelihood, up to a constant, of a mixture of equally frequent directions with
    concentration 1/T: -mean log mean_k exp(u_k / T); -mean max_k u_k where the competition is hard.

    Raises:
        ValueError: if the temperature is not positive and finite; else as HebbianRule.

    Source: Moraitis, Toichkin, Journé, Chua & Guo, Neuromorphic Computing and Engineering 2 (2022), eq. of the weight
    change; the length R is ours.
    """

    def __init__(
        self,
        layer: nn.Module,
        loss_fn: None = None,
        *,
        temperature: float = 1.0,
        centre: bool = False,
        hard: bool = False,
        norm: str = "unit",
    ):
        super().__init__(layer, loss_fn, centre=centre, norm=norm)
        self.temperature = _positive(temperature)
        self.hard = hard

    def activity(self, drive: Float[Tensor, "patches units"]) -> Float[Tensor, "patches units"]:
        """Share of each unit."""
        return compete(drive, self.temperature, self.hard)

    def loss(self, drive: Float[Tensor, "patches units"], rows: Float[Tensor, "patches size"]) -> Float[Tensor, ""]:
        """Minus the mean log-likelihood, or minus the mean largest drive."""
        if self.hard:
            return -drive.amax(1).mean()
        return log(drive.shape[1]) - torch.logsumexp(drive / self.temperature, 1).mean()


class Oja(HebbianRule):
    """Every unit by itself: it ends as the direction in which the patches vary most.

    The loss is minus half the mean squared drive, summed over units.

    Args:
        layer: a Linear, or a Conv2d without groups.
        centre: whether each patch is taken less its own mean.
        norm: "unit" or "source", as in HebbianRule.

    Source: Oja, Journal of Mathematical Biology 15 (1982), eq. 3.
    """

    def activity(self, drive: Float[Tensor, "patches units"]) -> Float[Tensor, "patches units"]:
        """The drive itself."""
        return drive

    def loss(self, drive: Float[Tensor, "patches units"], rows: Float[Tensor, "patches size"]) -> Float[Tensor, ""]:
        """Minus half the mean squared drive."""
        return -0.5 * drive.square().sum(1).mean()


class Instar(HebbianRule):
    """A filter moves to the patches that it wins, length included: on-line k-means where the winner takes all.

    The loss is half the mean squared distance of a patch from the filters, weighted by their activities; for given
    activities the rule is its exact gradient.

    Args:
        layer: a Linear, or a Conv2d without groups.
        temperature: T of a soft competition.
        centre: whether each patch is taken less its own mean.
        hard: whether the winner, the unit with the largest drive, takes all.

    Raises:
        ValueError: if the temperature is not positive and finite; else as HebbianRule.

    Source: Grossberg, Biological Cybernetics 23 (1976).
    """

    def __init__(
        self,
        layer: nn.Module,
        loss_fn: None = None,
        *,
        temperature: float = 1.0,
        centre: bool = False,
        hard: bool = True,
    ):
        super().__init__(layer, loss_fn, centre=centre)
        self.temperature = _positive(temperature)
        self.hard = hard

    def activity(self, drive: Float[Tensor, "patches units"]) -> Float[Tensor, "patches units"]:
        """Share of each unit."""
        return compete(drive, self.temperature, self.hard)

    def decay(self, drive: Float[Tensor, "patches units"]) -> Float[Tensor, "patches units"]:
        """One: what is won replaces what was there."""
        return torch.ones_like(drive)

    def loss(self, drive: Float[Tensor, "patches units"], rows: Float[Tensor, "patches size"]) -> Float[Tensor, ""]:
        """Half the mean squared distance from the patch to its filters."""
        lengths = self.net.weight.detach().flatten(1).square().sum(1)
        distances = rows.square().sum(1, keepdim=True) - 2 * drive + lengths
        return 0.5 * (self.activity(drive) * distances).sum(1).mean()


def _positive(temperature: float) -> float:
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be positive and finite, got {temperature}.")
    return float(temperature)
