"""Neuron sensitivity: how much the outputs change when a neuron's drive does; and decay of what nobody listens to.

With p_i the pre-activation of neuron i and y_k, k = 1..C, the network's outputs, mean over samples (and positions),

    full      S_i = mean (1/C) sum_k |dy_k / dp_i|              C backward passes
    lower     S_i = mean (1/C) |sum_k dy_k / dp_i|  <= full     one
    local     S_i = mean (1/K) sum_k |dp'_k / dp_i|             p' of the layer that is called next

The absolute value is taken sample by sample. Insensitivity, a number between 0 and 1 that is held constant,

    Sbar_i = max(0, 1 - S_i),       or, normalised in each layer, 1 - S_i / max_j S_j

scales the decay of the neuron's weights after every step of the optimizer (outside the learning rate),

    w <- w - lambda Sbar_i w

Source: Tartaglione, Bragagnolo, Odierna, Fiandrotti & Grangetto 2021, arXiv 2102.03773, eq. 2 to 9.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.neurons.ranges import require
from neuropil.structure.criterion import call, undisturbed

__all__ = ["InsensitivityDecay", "Kind", "hidden_layers", "neuron_sensitivity"]

Kind = Literal["full", "lower", "local"]
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
IDLE = 0.05  # insensitivities of a layer that differ by less than this tell no neuron from another


def hidden_layers(net: nn.Module, x: Any) -> list[str]:
    """List the linear and convolutional layers in the order in which they are called, without the last: the outputs.

    Args:
        net: any module.
        x: what it is called with.

    Raises:
        ValueError: if there are fewer than two such layers.
    """
    order: list[str] = []
    with undisturbed(net, evaluate=True), torch.no_grad(), _recorded(net, None) as (_, names):
        call(net, x)
        order = list(dict.fromkeys(names))
    if len(order) < 2:
        raise ValueError(f"Sensitivity is one of hidden neurons: the network calls {len(order)} layers that have any.")
    return order[:-1]


def neuron_sensitivity(
    net: nn.Module, x: Any, *, modules: Sequence[str] | None = None, kind: Kind = "lower"
) -> dict[str, Float[Tensor, " units"]]:
    """Measure the sensitivity of the outputs to every hidden neuron. The network is looked at in eval mode.

    Args:
        net: any module whose output is (batch, classes), or a longer tensor with classes last.
        x: a batch: a tensor, a tuple of arguments, or a dict of keywords.
        modules: names of layers; None takes `hidden_layers`.
        kind: see above. "full" costs a backward pass a class, "local" one a unit of the next layer.

    Returns:
        By layer, S of its units (output channels of a convolution), non-negative.

    Raises:
        ValueError: if the output has no axis of classes, a module does not exist or was not called, or S is not finite.
    """
    order = [*hidden_layers(net, x)] if modules is None else list(modules)
    known = dict(net.named_modules())
    for name in order:
        if not isinstance(known.get(name), LAYERS):
            raise ValueError(f"There is no linear or convolutional layer {name!r} in the network.")
    with undisturbed(net, evaluate=True), torch.enable_grad(), _recorded(net, None) as (drives, names):
        y = call(net, x)
        y = y if isinstance(y, Tensor) else next(iter(y.values() if isinstance(y, dict) else y))
        if y.dim() < 2:
            raise ValueError(f"The output must have an axis of classes, (batch, classes): its shape is {(*y.shape,)}.")
        called = list(dict.fromkeys(names))
        missing = [name for name in order if name not in drives]
        if missing:
            raise ValueError(f"These layers were not called: {', '.join(missing)}.")
        if kind == "local":
            found = {}
            for name in order:
                later = called[called.index(name) + 1 :]
                target = drives[later[0]] if later else y
                axis = 1 if later and not isinstance(known[later[0]], nn.Linear) else -1
                found[name] = _full([drives[name]], target.movedim(axis, -1))[0]
        else:
            points = [drives[name] for name in order]
            grads = _full(points, y) if kind == "full" else _lower(points, y)
            found = dict(zip(order, grads, strict=True))
    sensitivity = {name: _by_unit(value, known[name]) for name, value in found.items()}
    for name, value in sensitivity.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"The sensitivity of {name} is not finite.")
    return sensitivity


def _full(points: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    """Mean over classes of the absolute derivative."""
    classes = y.shape[-1]
    sums = [torch.zeros_like(point) for point in points]
    for k in range(classes):
        grads = torch.autograd.grad(y[..., k].sum(), points, retain_graph=True, allow_unused=True)
        sums = [total if grad is None else total + grad.abs() for total, grad in zip(sums, grads, strict=True)]
    return [total / classes for total in sums]


def _lower(points: Sequence[Tensor], y: Tensor) -> list[Tensor]:
    """Absolute derivative of the mean over classes."""
    grads = torch.autograd.grad(y.sum(), points, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g.abs() / y.shape[-1] for p, g in zip(points, grads, strict=True)]


def _by_unit(value: Tensor, layer: nn.Module) -> Tensor:
    """Mean over samples and positions."""
    axis = value.dim() - 1 if isinstance(layer, nn.Linear) else 1
    return value.movedim(axis, -1).flatten(0, -2).mean(dim=0).detach()


@contextmanager
def _recorded(net: nn.Module, only: Iterable[str] | None) -> Iterator[tuple[dict[str, Tensor], list[str]]]:
    """Keep what layers give: their first output, and the order of the calls."""
    drives: dict[str, Tensor] = {}
    names: list[str] = []

    def keep(module: nn.Module, args: Any, out: Tensor, *, name: str) -> Tensor:
        names.append(name)
        if not out.requires_grad and torch.is_grad_enabled():
            out = out.detach().requires_grad_()  # of a network whose parameters are frozen
        drives.setdefault(name, out)
        return out

    hooks = [
        module.register_forward_hook(partial(keep, name=name))
        for name, module in net.named_modules()
        if isinstance(module, LAYERS) and (only is None or name in only)
    ]
    try:
        yield drives, names
    finally:
        for hook in hooks:
            hook.remove()


class InsensitivityDecay:
    """Weight decay in proportion to insensitivity. Stepped with the optimizer.

        loss.backward()
        decay.observe(x)
        optimizer.step()
        decay.step()

    Args:
        net: any module.
        optimizer: of its parameters; it has no weight decay of its own for this to make sense.
        strength: lambda, the fraction of a weight that one step takes at full insensitivity.
        kind: of sensitivity.
        normalise: None: Sbar = max(0, 1 - S), as published: S of a usual classifier is a few thousandths, so that this
            is weight decay (a warning says so once); "layer": Sbar = 1 - S / max S in each layer.
        every: batches from one measurement to the next.
        modules: names of layers; None takes `hidden_layers` of the first batch.

    Raises:
        ValueError: if strength is not in [0, 1) or `every` is below 1.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        strength: float,
        *,
        kind: Kind = "lower",
        normalise: Literal["layer"] | None = None,
        every: int = 1,
        modules: Sequence[str] | None = None,
    ):
        require("strength", strength, 0.0, 1.0, ends=(True, False))
        require("every", every, 1, math.inf)
        self.net, self.optimizer, self.strength = net, optimizer, strength
        self.kind: Kind = kind
        self.normalise, self.every = normalise, every
        self.modules = None if modules is None else list(modules)
        self.insensitivity: dict[str, Tensor] = {}
        self._seen = 0
        self._warned = False

    def observe(self, x: Any) -> None:
        """Measure sensitivity on a batch, if it is time to.

        Args:
            x: a batch: a tensor, a tuple of arguments, or a dict of keywords.
        """
        if self._seen % self.every == 0:
            if self.modules is None:
                self.modules = hidden_layers(self.net, x)
            found = neuron_sensitivity(self.net, x, modules=self.modules, kind=self.kind)
            self.insensitivity = {name: self._insensitive(value) for name, value in found.items()}
            self._warn()
        self._seen += 1

    def step(self) -> None:
        """Shrink the weights into every neuron by lambda times its insensitivity.

        Raises:
            RuntimeError: if nothing was observed yet.
        """
        if not self.insensitivity:
            raise RuntimeError("InsensitivityDecay.step was called before observe: no sensitivity is known.")
        with torch.no_grad():
            for name, value in self.insensitivity.items():
                weight = self.net.get_parameter(f"{name}.weight")
                weight.mul_((1 - self.strength * value).reshape(-1, *[1] * (weight.dim() - 1)))

    def _insensitive(self, sensitivity: Tensor) -> Tensor:
        if self.normalise == "layer":
            largest = sensitivity.max()
            return 1 - sensitivity / largest if bool(largest > 0) else torch.ones_like(sensitivity)
        return (1 - sensitivity).clamp(min=0)

    def _warn(self) -> None:
        flat = [name for name, value in self.insensitivity.items() if float(value.max() - value.min()) < IDLE]
        if flat and not self._warned:
            self._warned = True
            warnings.warn(
                f"neuropil: insensitivities within {', '.join(flat)} differ by less than {IDLE:g}: this is plain "
                'weight decay there. normalise="layer" tells neurons apart.',
                UserWarning,
                stacklevel=3,
            )
