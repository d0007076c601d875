"""Labels as part of the input: how forward-forward tells a network what it should believe."""

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["LabelOverlay"]


class LabelOverlay(nn.Module):
    """Writes one-hot labels over the first features of a sample, or appends them.

    Args:
        n_classes: number of classes, at least 2.
        value: of the label's unit; the other units are 0. It must suit the scale of the inputs, in training and test
            alike: None takes the largest entry of the first batch that is seen, and keeps it (in the state_dict too).
        append: append the units to vectors instead of overwriting features. Without it the first features of the
            flattened sample are lost: for images, the first pixels of the first channel.

    Raises:
        ValueError: if there are fewer than 2 classes, or value is 0 or not finite.

    Source: Hinton, The forward-forward algorithm (2022).
    """

    def __init__(self, n_classes: int, value: float | None = None, append: bool = False):
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes must be at least 2, got {n_classes}.")
        if value is not None and not 0 < abs(value) < float("inf"):
            raise ValueError(f"value must be finite and not 0, got {value}: labels would not show.")
        self.n_classes, self.value, self.append = n_classes, value, append

    def forward(self, x: Float[Tensor, "batch *shape"], y: Tensor | None = None) -> Float[Tensor, "batch *out"]:
        """Samples with their labels.

        Args:
            x: samples, not changed.
            y: class indices, (batch,); None for no label: all label units are 0.

        Raises:
            ValueError: if a sample has fewer features than there are classes, or is no vector where labels are
                appended; if labels are no indices, out of range, or not as many as samples.
        """
        self._check(x)
        units = x.new_zeros(len(x), self.n_classes)
        if y is not None:
            units.scatter_(1, self._checked_labels(x, y)[:, None], self._strength(x))
        return self._joined(x, units)

    def every(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "labelled *out"]:
        """The samples under each label in turn, (classes * batch, ...): all of class 0 first.

        Raises:
            ValueError: as the call does.
        """
        self._check(x)
        units = torch.eye(self.n_classes, dtype=x.dtype, device=x.device) * self._strength(x)
        repeated = x.expand(self.n_classes, *x.shape).reshape(-1, *x.shape[1:])
        return self._joined(repeated, units.repeat_interleave(len(x), 0))

    def fresh(self) -> "LabelOverlay":
        """A copy, so that two networks never share what one of them has seen."""
        return copy.copy(self)

    def get_extra_state(self) -> dict[str, float | None]:
        """The value, which may have come from a batch."""
        return {"value": self.value}

    def set_extra_state(self, state: dict[str, float | None]) -> None:
        """Take the value from a state_dict."""
        self.value = state["value"]

    def extra_repr(self) -> str:
        """Arguments, for `print`."""
        return f"{self.n_classes}, value={self.value}, append={self.append}"

    def _joined(self, x: Tensor, units: Tensor) -> Tensor:
        if self.append:
            return torch.cat([x, units], 1)
        flat = x.flatten(1)
        return torch.cat([units, flat[:, self.n_classes :]], 1).view(x.shape)

    def _strength(self, x: Tensor) -> float:
        if self.value is None:
            value = float(x.max())
            if not 0 < value < float("inf"):
                raise ValueError(
                    f"The largest entry of the first batch is {value}: it cannot serve as the labels' value; pass one."
                )
            self.value = value
        return self.value

    def _check(self, x: Tensor) -> None:
        if self.append and x.dim() != 2:
            raise ValueError(f"Labels can be appended to vectors, (batch, features); x has shape {tuple(x.shape)}.")
        features = x[0].numel() if len(x) else 0
        if not self.append and (x.dim() < 2 or features < self.n_classes):
            raise ValueError(
                f"x has shape {tuple(x.shape)}: a sample needs at least as many features as there are classes "
                f"({self.n_classes}); append=True adds label units to vectors."
            )

    def _checked_labels(self, x: Tensor, y: Tensor) -> Tensor:
        if y.is_floating_point() or y.shape != (len(x),):
            raise ValueError(
                f"y must be {len(x)} class indices, one a sample; got shape {tuple(y.shape)} of {y.dtype}."
            )
        if not 0 <= int(y.min()) <= int(y.max()) < self.n_classes:
            wrong = int(y.min()) if int(y.min()) < 0 else int(y.max())
            raise ValueError(f"class {wrong} among the labels, but there are {self.n_classes} classes.")
        return y.long()
