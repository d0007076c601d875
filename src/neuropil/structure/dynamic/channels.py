"""Layers whose channels are computed or not, sample by sample, as a small head says that sees the layer's input.

    z = head(max over space of the input)          m = [z > c], the largest z alone where no z is
    output = m * activation(norm(layer(input)))
    loss of the head = cross-entropy of z with the target, the channels that hold the mass of the unmasked activation

The masks are hard and no gradient passes through them: the loss of the task teaches the channels that were computed,
the loss of the heads needs no balance with it.

Source: Elkerdawy et al. 2022, arXiv 2110.08232.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from neuropil.structure.dynamic.mass import check_mass, mass_topk, pooled

__all__ = [
    "DynamicChannels",
    "MaskPredictor",
    "MaskRule",
    "Mode",
    "above_threshold",
    "dynamic_layers",
    "set_mode",
    "ss_loss",
    "through",
    "using",
]

Mode = Literal["record", "train", "infer"]
MODES = ("record", "train", "infer")
MaskRule = Callable[[Tensor, Tensor], Tensor]
"""Another way to choose channels: from logits and responses, both (batch, channels), to a bool mask of that shape."""


class MaskPredictor(nn.Module):
    """A head: the maximum of every input channel, then one or two linear layers.

    Args:
        c_in: channels of the input.
        c_out: channels that a mask is predicted for.
        hidden: width of a layer of ReLUs between; None: none.
        generator: source of the initial weights, uniform within 1 / sqrt(inputs).

    Raises:
        ValueError: if a size is below 1.

    Source: Elkerdawy et al. 2022, arXiv 2110.08232, prediction head.
    """

    def __init__(self, c_in: int, c_out: int, hidden: int | None = None, generator: torch.Generator | None = None):
        super().__init__()
        for name, size in (("c_in", c_in), ("c_out", c_out), ("hidden", hidden)):
            if size is not None and size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        sizes = [c_in, c_out] if hidden is None else [c_in, hidden, c_out]
        parts: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise(sizes):
            layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
            for parameter in layer.parameters():
                drawn = torch.rand(parameter.shape, generator=generator, device=generator.device)
                parameter.data = (2 * drawn - 1).to(parameter) / math.sqrt(inputs)
            parts += [layer, nn.ReLU()]
        self.readout = nn.Sequential(*parts[:-1])

    @property
    def macs(self) -> int:
        """Multiply-accumulates a sample."""
        return sum(layer.weight.numel() for layer in self.readout if isinstance(layer, nn.Linear))

    def forward(self, x: Float[Tensor, "batch inputs *space"]) -> Float[Tensor, "batch channels"]:
        """Give the logits of the mask."""
        return self.readout(pooled(x))


@dataclass(frozen=True)
class Seen:
    """What a layer saw in its last forward; all (batch, channels) but the pooled input.

    Attributes:
        pooled: the head's input, (batch, channels of the input).
        logits: of the head.
        response: largest activation of every channel before its mask; None where nobody needed it.
        target: channels that hold the mass.
        mask: channels that were passed on; None if all were.
    """

    pooled: Float[Tensor, "batch inputs"]
    logits: Float[Tensor, "batch channels"]
    response: Float[Tensor, "batch channels"] | None
    target: Bool[Tensor, "batch channels"] | None
    mask: Bool[Tensor, "batch channels"] | None


class DynamicChannels(nn.Module):
    """A layer with its norm, masked by a head.

    Masked channels are computed and set to 0 here, which is what training and counting need; `infer_sparse` leaves
    them out.

    Args:
        layer: gives the channels: a convolution or a linear layer, or several in a row that share the mask.
        norm_act: what follows and is masked: a norm, a norm and an activation, or nn.Identity().
        predictor: the head, from the input's channels to the layer's.
        mass: share of the activation that the target holds.
        activation: what follows outside and must keep 0 at 0; the target is taken from behind it. None: nothing.
        axis: of the channels in input and output.
        group: name of the group of units, for counting.

    Attributes:
        mode: "record": nothing is masked, targets are taken; "train": masked, targets are taken from the output before
            its mask; "infer": masked.
        rule: another way to choose the channels; None: the head's.
        detached: whether the loss of the head stops at the head.
        threshold: c, what a logit must exceed; 0 until calibrated.

    Raises:
        ValueError: if the mass is not in (0, 1].
    """

    threshold: Tensor

    def __init__(
        self,
        layer: nn.Module,
        norm_act: nn.Module,
        predictor: nn.Module,
        mass: float,
        *,
        activation: nn.Module | None = None,
        axis: int = 1,
        group: str = "",
    ):
        super().__init__()
        check_mass(mass)
        self.layer, self.norm_act, self.predictor, self.activation = layer, norm_act, predictor, activation
        self.mass, self.axis, self.group = mass, axis, group
        self.mode: Mode = "record"
        self.rule: MaskRule | None = None
        self.detached = True
        like = next((p for p in (*layer.parameters(), *predictor.parameters())), torch.zeros(()))
        self.register_buffer("threshold", torch.zeros((), dtype=like.dtype, device=like.device))
        self._seen: Seen | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What was seen hangs on a graph of gradients, which cannot be copied, and is nothing to keep.
        return {**self.__dict__, "_seen": None}

    def __getattr__(self, name: str) -> Any:
        # Code that looks at the layer's weight or stride goes on doing so.
        return through(self, name, super().__getattr__)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Compute the layer, and mask it if the mode says so."""
        y = self.norm_act(self.layer(x))
        inputs = pooled(x, self.axis)
        logits = self.predictor(inputs.detach() if self.detached else inputs)
        response = target = mask = None
        if self.mode != "infer" or self.rule is not None:
            heat = y.detach() if self.activation is None else self.activation(y.detach())
            response = pooled(heat.abs(), self.axis)
            target = mass_topk(response, self.mass)[0]
        if self.mode != "record":
            mask = self._masks(logits.detach(), response)
            y = y * mask.reshape(_beside(mask.shape, y.ndim, self.axis))
        self._seen = Seen(inputs.detach(), logits, response, target, mask)
        return y

    def _masks(self, logits: Tensor, response: Tensor | None) -> Tensor:
        if self.rule is None or response is None:
            return above_threshold(logits, self.threshold)
        mask = self.rule(logits, response)
        if mask.dtype != torch.bool or mask.shape != logits.shape:
            raise ValueError(
                f"The rule of {self.group or 'a layer'} must give a bool mask of shape {(*logits.shape,)}, got "
                f"{mask.dtype} of shape {(*mask.shape,)}."
            )
        return mask

    @property
    def seen(self) -> Seen:
        """What the last forward saw.

        Raises:
            RuntimeError: if there was none.
        """
        if self._seen is None:
            raise RuntimeError(f"The dynamic layer {self.group!r} has not been run yet.")
        return self._seen

    @property
    def loss(self) -> Float[Tensor, ""]:
        """Cross-entropy of the head with the targets of the last forward, mean over samples and channels.

        Raises:
            RuntimeError: if there was no forward, or it was for inference and took no targets.
        """
        if self.seen.target is None:
            raise RuntimeError(f"The dynamic layer {self.group!r} took no targets: its mode was 'infer'.")
        return binary_cross_entropy_with_logits(self.seen.logits, self.seen.target.to(self.seen.logits))

    @property
    def k(self) -> Int[Tensor, " batch"]:
        """Channels of every sample in the last forward: of its mask, or of its target where nothing was masked."""
        mask = self.seen.target if self.seen.mask is None else self.seen.mask
        if mask is None:
            raise RuntimeError(f"The dynamic layer {self.group!r} has neither a mask nor a target.")
        return mask.sum(dim=1)

    @property
    def density(self) -> float:
        """Mean share of the channels in the last forward, as in `k`."""
        return float(self.k.double().mean()) / self.seen.logits.shape[1]

    def extra_repr(self) -> str:
        """Mass, mode and threshold."""
        return f"mass={self.mass:g}, mode={self.mode!r}, threshold={float(self.threshold):.3g}"


def above_threshold(
    logits: Float[Tensor, "batch channels"], threshold: Tensor | float = 0.0
) -> Bool[Tensor, "batch channels"]:
    """Mark the logits above a threshold; where none is, the largest, the first of equal ones."""
    mask = logits > threshold
    best = torch.zeros_like(mask).scatter(1, logits.argmax(dim=1, keepdim=True), True)
    return torch.where(mask.any(dim=1, keepdim=True), mask, best)


def through(module: nn.Module, name: str, own: Callable[[str], Any]) -> Any:
    """Give an attribute of a module that stands in for its `layer`: its own, else the layer's."""
    try:
        return own(name)
    except AttributeError:
        layer = module._modules.get("layer")
        if layer is None or not hasattr(layer, name):
            raise
        return getattr(layer, name)


def _beside(shape: torch.Size, ndim: int, axis: int) -> list[int]:
    """Shape that lays a mask (batch, channels) beside an output."""
    wanted = [1] * ndim
    wanted[0], wanted[axis] = shape
    return wanted


def dynamic_layers(net: nn.Module) -> dict[str, DynamicChannels]:
    """Give the dynamic layers of a network by qualified name.

    Raises:
        ValueError: if there are none.
    """
    found = {name: module for name, module in net.named_modules() if isinstance(module, DynamicChannels)}
    if not found:
        raise ValueError("The network has no dynamic layers: make_dynamic makes them.")
    return found


def set_mode(net: nn.Module, mode: Mode) -> None:
    """Set the mode of all dynamic layers: "record", "train" or "infer" (see `DynamicChannels`).

    Raises:
        ValueError: if there is no such mode, or there are no dynamic layers.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    for layer in dynamic_layers(net).values():
        layer.mode = mode


@contextmanager
def using(net: nn.Module, mode: Mode, rules: Mapping[str, MaskRule] | None = None) -> Iterator[None]:
    """Run a network in another mode, and with other ways to choose channels, and set both back afterwards.

    Args:
        net: with dynamic layers.
        mode: as in `set_mode`.
        rules: by name of the dynamic layer; the others, or all if there are none, follow their heads.

    Raises:
        KeyError: if there is no such layer.
        ValueError: as in `set_mode`.
    """
    layers = dynamic_layers(net)
    before: dict[str, tuple[Mode, MaskRule | None]] = {n: (layer.mode, layer.rule) for n, layer in layers.items()}
    for name in rules or {}:
        if name not in layers:
            raise KeyError(f"There is no dynamic layer {name!r}; there are {', '.join(layers)}.")
    try:
        set_mode(net, mode)
        for name, layer in layers.items():
            layer.rule = (rules or {}).get(name)
        yield
    finally:
        for name, layer in layers.items():
            layer.mode, layer.rule = before[name]


def ss_loss(net: nn.Module) -> Float[Tensor, ""]:
    """Give the loss of the heads in the last forward: mean over the dynamic layers.

    Raises:
        ValueError: if there are no dynamic layers.
        RuntimeError: if there was no forward that took targets.
    """
    return torch.stack([layer.loss for layer in dynamic_layers(net).values()]).mean()
