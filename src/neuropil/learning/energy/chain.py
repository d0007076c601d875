"""Chains of linear maps and elementwise functions: every derivative in closed form, no autograd.

Stage l of a chain is   s = f(h_{l-1}),   a = W s + b,   p = g(a)   with f or g left out, and an error e at p gives

    dF/dp = -e       d = e * g'(a)       to the activity below: f'(h_{l-1}) * (W^T d)       to the weights: -d s^T, -d

Leading axes are free: weights (replicas, out, in) with activities (replicas, batch, in) are many chains at once.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from neuropil.learning.stages import Inputs, Stages

__all__ = ["Layer", "LinearChain", "Nonlinearity", "read_chain"]

aten: Any = torch.ops.aten


class Nonlinearity(NamedTuple):
    """An elementwise function.

    Attributes:
        value: of x.
        pull: from (signal at the value, x, value) to the signal at x.
    """

    value: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor, Tensor], Tensor]


def _nonlinearity(module: nn.Module) -> Nonlinearity | None:
    """Closed form of an activation module; None if it is not known."""
    kind, f = type(module), nn.functional
    m: Any = module
    table: dict[type, Callable[[], Nonlinearity]] = {
        nn.ReLU: lambda: Nonlinearity(torch.relu, lambda s, x, v: aten.threshold_backward(s, v, 0)),
        nn.Tanh: lambda: Nonlinearity(torch.tanh, lambda s, x, v: aten.tanh_backward(s, v)),
        nn.Sigmoid: lambda: Nonlinearity(torch.sigmoid, lambda s, x, v: aten.sigmoid_backward(s, v)),
        nn.LeakyReLU: lambda: Nonlinearity(
            lambda x: f.leaky_relu(x, m.negative_slope),
            lambda s, x, v: aten.leaky_relu_backward(s, x, m.negative_slope, False),
        ),
        nn.Softplus: lambda: Nonlinearity(
            lambda x: f.softplus(x, m.beta, m.threshold),
            lambda s, x, v: aten.softplus_backward(s, x, m.beta, m.threshold),
        ),
        nn.GELU: lambda: Nonlinearity(
            lambda x: f.gelu(x, approximate=m.approximate),
            lambda s, x, v: aten.gelu_backward(s, x, approximate=m.approximate),
        ),
        nn.SiLU: lambda: Nonlinearity(f.silu, lambda s, x, v: aten.silu_backward(s, x)),
    }
    return table[kind]() if kind in table else None


class Layer(NamedTuple):
    """One stage: `before`, then the linear map, then `after`; a function that is None is left out.

    Attributes:
        weight: (..., out, in).
        bias: (..., out), or None.
        before: f.
        after: g.
    """

    weight: Tensor
    bias: Tensor | None
    before: Nonlinearity | None
    after: Nonlinearity | None

    @property
    def tensors(self) -> list[Tensor]:
        """Weight, and bias where there is one."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]


class _Pass(NamedTuple):
    """What a layer did with its input: h, s, a, p of the module's equations."""

    h: Tensor
    s: Tensor
    a: Tensor
    p: Tensor


class LinearChain:
    """A chain at one batch: predictions at clamped activities, and what errors send back from there.

    Args:
        layers: from the input to the output.
        flatten: whether inputs are flattened to (batch, features) first.
    """

    def __init__(self, layers: Sequence[Layer], *, flatten: bool = False):
        self.layers = list(layers)
        self._flatten = flatten
        self._passes: list[_Pass] = []

    def __enter__(self) -> "LinearChain":
        return self

    def __exit__(self, *exception: object) -> None:
        self._passes = []

    @torch.no_grad()
    def start(self, x: Inputs) -> list[Tensor]:
        """Feed the input forward: predictions of all stages, each from the one below."""
        assert isinstance(x, Tensor)
        h = x.flatten(1) if self._flatten else x
        self._passes = []
        for layer in self.layers:
            self._passes.append(_through(layer, h))
            h = self._passes[-1].p
        return [passed.p for passed in self._passes]

    @torch.no_grad()
    def predict(self, activities: Sequence[Tensor], *, moved: bool = False) -> list[Tensor]:
        """Predictions of all stages at given activities.

        Args:
            activities: of all stages but the last.
            moved: whether weights have changed since the last call; without, the first stage says what it said.
        """
        first = _through(self.layers[0], self._passes[0].h) if moved else self._passes[0]
        above = [_through(layer, h) for layer, h in zip(self.layers[1:], activities, strict=True)]
        self._passes = [first, *above]
        return [passed.p for passed in self._passes]

    @torch.no_grad()
    def pull(self, errors: Sequence[Tensor]) -> list[Tensor]:
        """What the error of every stage but the first sends to the activity below it: (dp/dh)^T e."""
        stages = zip(self.layers[1:], self._passes[1:], errors[1:], strict=True)
        return [_below(layer, passed, _within(layer, passed, error)) for layer, passed, error in stages]

    @torch.no_grad()
    def gradients(self, errors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters, and the mean over samples of -(dp/dtheta)^T e."""
        stages = zip(self.layers, self._passes, errors, strict=True)
        found = [g for stage in stages for g in _to_weights(*stage[:2], _within(*stage))]
        return [tensor for layer in self.layers for tensor in layer.tensors], found

    @torch.no_grad()
    def pull_and_gradients(self, errors: Sequence[Tensor]) -> tuple[list[Tensor], tuple[list[Tensor], list[Tensor]]]:
        """`pull` and `gradients` of the same errors, at less than the price of both."""
        pulled, found = [], []
        for index, (layer, passed, error) in enumerate(zip(self.layers, self._passes, errors, strict=True)):
            d = _within(layer, passed, error)
            found += _to_weights(layer, passed, d)
            if index:
                pulled.append(_below(layer, passed, d))
        return pulled, ([tensor for layer in self.layers for tensor in layer.tensors], found)

    @torch.no_grad()
    def backpropagate(self, error: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Parameters and gradients when only the output has an error, after `start`: the chain rule."""
        found: list[list[Tensor]] = []
        for layer, passed in zip(reversed(self.layers), reversed(self._passes), strict=True):
            d = _within(layer, passed, error)
            found.append(_to_weights(layer, passed, d))
            error = _below(layer, passed, d) if len(found) < len(self.layers) else error
        return [t for layer in self.layers for t in layer.tensors], [g for group in reversed(found) for g in group]

    @property
    def inputs(self) -> Tensor:
        """What the first stage sees, after `start`."""
        return self._passes[0].h

    @torch.no_grad()
    def norms(self) -> list[tuple[list[Tensor], Tensor]]:
        """Of every stage: its parameters, and the mean over samples of ||s||^2, plus 1 where it has a bias."""
        norms = []
        for layer, passed in zip(self.layers, self._passes, strict=True):
            mean = passed.s.square().sum(-1).mean(-1)
            norms.append((layer.tensors, mean if layer.bias is None else mean + 1))
        return norms


def _through(layer: Layer, h: Tensor) -> _Pass:
    s = h if layer.before is None else layer.before.value(h)
    if layer.weight.dim() == 2:
        a = nn.functional.linear(s, layer.weight, layer.bias)
    elif layer.bias is None:
        a = s @ layer.weight.mT
    else:
        a = torch.baddbmm(layer.bias.unsqueeze(-2), s, layer.weight.mT)
    return _Pass(h, s, a, a if layer.after is None else layer.after.value(a))


def _within(layer: Layer, passed: _Pass, error: Tensor) -> Tensor:
    return error if layer.after is None else layer.after.pull(error, passed.a, passed.p)


def _below(layer: Layer, passed: _Pass, d: Tensor) -> Tensor:
    back = d @ layer.weight
    return back if layer.before is None else layer.before.pull(back, passed.h, passed.s)


def _to_weights(layer: Layer, passed: _Pass, d: Tensor) -> list[Tensor]:
    factor = -1.0 / d.shape[-2]
    weight = (d.mT @ passed.s).mul_(factor)
    return [weight] if layer.bias is None else [weight, d.sum(-2).mul_(factor)]


def read_chain(stages: Stages, x: Inputs) -> LinearChain | None:
    """Read a net as a chain, or say None where it is none: then only autograd knows its derivatives.

    A chain is a Sequential of Linear layers and known activations (after a Flatten, if need be), cut so that each stage
    has one Linear. Hooks, subclasses, shared weights and autocast make it something else.
    """
    if not isinstance(x, Tensor) or not x.dtype.is_floating_point or torch.is_autocast_enabled(x.device.type):
        return None
    leaves = _leaves(stages.net)
    if leaves is None:
        return None
    flatten = (
        bool(leaves) and type(leaves[0][0]) is nn.Flatten and (leaves[0][0].start_dim, leaves[0][0].end_dim) == (1, -1)
    )
    if x.dim() != 2 and not (flatten and x.dim() > 2):
        return None
    cuts, layers, current = set(stages.names), [], []
    for module, names in leaves[flatten:]:
        current.append(module)
        if cuts & names:
            layers.append(_layer(current))
            cuts -= names
            current = []
    layers.append(_layer(current))
    known = [layer for layer in layers if layer is not None]
    weights = {id(layer.weight) for layer in known}
    if cuts or len(known) < len(layers) or len(weights) < len(known) or known[0].weight.dtype != x.dtype:
        return None
    return LinearChain(known, flatten=flatten)


def _leaves(net: nn.Module) -> list[tuple[nn.Module, set[str]]] | None:
    """Children of nested Sequentials in order, with the names of all modules that end with them; None with hooks."""
    if type(net) is not nn.Sequential or _hooked(net):
        return None
    leaves: list[tuple[nn.Module, set[str]]] = []
    for name, child in net.named_children():
        if type(child) is nn.Sequential:
            inner = _leaves(child)
            if not inner:
                return None
            leaves += [(module, {f"{name}.{own}" for own in names}) for module, names in inner]
            leaves[-1][1].add(name)
        elif _hooked(child):
            return None
        else:
            leaves.append((child, {name}))
    return leaves


def _hooked(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def _layer(modules: list[nn.Module]) -> Layer | None:
    modules = [module for module in modules if type(module) is not nn.Identity]
    place = [index for index, module in enumerate(modules) if type(module) is nn.Linear]
    if len(place) != 1 or place[0] > 1 or len(modules) - place[0] > 2:
        return None
    before, after = modules[: place[0]], modules[place[0] + 1 :]
    functions = [_nonlinearity(module) for module in (*before, *after)]
    if any(function is None for function in functions):
        return None
    linear: Any = modules[place[0]]
    return Layer(linear.weight, linear.bias, functions[0] if before else None, functions[-1] if after else None)
