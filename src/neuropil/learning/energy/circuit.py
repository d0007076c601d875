"""Any net that `Stages` cuts, as predictive coding sees it: predictions at clamped activities, errors sent back.

One forward pass of the net evaluates every stage at its clamp, one backward pass sends every error through its own
stage, to the activity below and to the stage's parameters. The first pass of a batch is an ordinary one: it moves
running statistics. All later ones see the same dropout masks and leave no trace.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from neuropil.learning.stages import Inputs, Stages

__all__ = ["Circuit", "CutCircuit", "Gradients", "is_linear_map"]

Gradients = tuple[list[Tensor], list[Tensor]]
"""Parameters, and a gradient for each."""
CONVOLUTIONS: dict[type[nn.Module], Callable] = {
    nn.Conv1d: nn.functional.conv1d,
    nn.Conv2d: nn.functional.conv2d,
    nn.Conv3d: nn.functional.conv3d,
}


@runtime_checkable
class Circuit(Protocol):
    """What inference needs of a net at one batch; `LinearChain` and `CutCircuit` have it."""

    def __enter__(self) -> "Circuit": ...

    def __exit__(self, *exception: object) -> None: ...

    def start(self, x: Inputs) -> list[Tensor]:
        """Feed the input forward: predictions of all stages, each from the one below."""
        ...

    def predict(self, activities: Sequence[Tensor], *, moved: bool = False) -> list[Tensor]:
        """Predictions of all stages at given activities; `moved` says that weights changed since the last call."""
        ...

    def pull(self, errors: Sequence[Tensor]) -> list[Tensor]:
        """What the error of every stage but the first sends to the activity below it: (dp/dh)^T e."""
        ...

    def gradients(self, errors: Sequence[Tensor]) -> Gradients:
        """Mean over samples of -(dp/dtheta)^T e."""
        ...

    def pull_and_gradients(self, errors: Sequence[Tensor]) -> tuple[list[Tensor], Gradients]:
        """Both, of one evaluation."""
        ...

    def norms(self) -> list[tuple[list[Tensor], Tensor]]:
        """Of every weight layer: its parameters, and its input's mean squared norm, plus 1 for a bias."""
        ...


def is_linear_map(module: nn.Module) -> bool:
    """Whether a module is a Linear layer or an ungrouped, zero-padded convolution: its input has one squared norm."""
    if type(module) is nn.Linear:
        return True
    conv: Any = module
    return type(module) in CONVOLUTIONS and conv.groups == 1 and conv.padding_mode == "zeros"


def _squared_norm(module: nn.Module, x: Tensor) -> Tensor:
    """||dp/dtheta||^2 of a linear map, summed over positions, mean over samples."""
    layer: Any = module
    if type(module) is nn.Linear:
        total, places = x.square().sum() / len(x), x[0].numel() // x.shape[-1]
    else:
        ones = torch.ones_like(layer.weight[:1, :1])
        apply = CONVOLUTIONS[type(module)]
        power = x.square().sum(1, keepdim=True)
        patches = apply(power, ones, None, layer.stride, layer.padding, layer.dilation)
        total, places = patches.sum() / len(x), patches[0].numel()
    return total if layer.bias is None else total + places


class CutCircuit:
    """A net cut into stages, at one batch.

    Args:
        stages: of the net.
        measure: whether `norms` will be asked for; then every weight layer is a linear map.
    """

    def __init__(self, stages: Stages, *, measure: bool = False):
        self._stages, self._measure = stages, measure
        self._exit = ExitStack()
        self._x: Inputs = ()
        self._random: list[Tensor] = []
        self._norms: dict[nn.Module, Tensor] = {}
        self._leaves: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def __enter__(self) -> "CutCircuit":
        if self._measure:
            for module in self._stages.net.modules():
                if is_linear_map(module):
                    self._exit.callback(module.register_forward_pre_hook(self._measured).remove)
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()
        self._leaves, self._outputs = [], []

    def _measured(self, module: nn.Module, args: tuple) -> None:
        with torch.no_grad():
            self._norms[module] = _squared_norm(module, args[0])

    def start(self, x: Inputs) -> list[Tensor]:
        """Feed the input forward: predictions of all stages, each from the one below."""
        self._x, self._random, leaves = x, _random_states(self._stages.net), []

        def leaf(index: int, value: Tensor) -> Tensor:
            leaves.append(value.requires_grad_())
            return leaves[-1]

        with torch.enable_grad():
            self._outputs = self._stages(x, between=leaf)
        self._leaves = leaves
        self._exit.enter_context(self._stages.installed())  # for the passes to come
        return [output.detach() for output in self._outputs]

    def predict(self, activities: Sequence[Tensor], *, moved: bool = False) -> list[Tensor]:
        """Predictions of all stages at given activities, under the masks of the first pass."""
        self._leaves = [activity.detach().requires_grad_() for activity in activities]
        self._norms = {}
        with _replayed(self._stages.net, self._random), torch.enable_grad():
            self._outputs = self._stages(self._x, activities=self._leaves)
        return [output.detach() for output in self._outputs]

    def pull(self, errors: Sequence[Tensor]) -> list[Tensor]:
        """What the error of every stage but the first sends to the activity below it."""
        if not self._leaves:
            return []
        return list(torch.autograd.grad(self._outputs[1:], self._leaves, list(errors[1:]), retain_graph=True))

    def gradients(self, errors: Sequence[Tensor]) -> Gradients:
        """Mean over samples of -(dp/dtheta)^T e; parameters that are frozen or unused are left out."""
        return self._sent(errors, [])[1]

    def pull_and_gradients(self, errors: Sequence[Tensor]) -> tuple[list[Tensor], Gradients]:
        """Both, in one backward pass."""
        return self._sent(errors, self._leaves)

    def _sent(self, errors: Sequence[Tensor], leaves: list[Tensor]) -> tuple[list[Tensor], Gradients]:
        learning = [parameter for parameter in self._stages.net.parameters() if parameter.requires_grad]
        sources = [(o, e) for o, e in zip(self._outputs, errors, strict=True) if o.requires_grad]
        if not sources or not (leaves or learning):
            return [], ([], [])
        outputs, signals = zip(*sources, strict=True)
        found = torch.autograd.grad(outputs, [*leaves, *learning], signals, retain_graph=True, allow_unused=True)
        pulled, gradients = found[: len(leaves)], found[len(leaves) :]
        pairs = [(p, g.mul(-1.0 / len(errors[0]))) for p, g in zip(learning, gradients, strict=True) if g is not None]
        return list(pulled), ([p for p, _ in pairs], [g for _, g in pairs])

    def norms(self) -> list[tuple[list[Tensor], Tensor]]:
        """Of every weight layer, in the order of the pass: its parameters, and the squared norm of its input."""
        return [(list(module.parameters()), norm) for module, norm in self._norms.items()]


def _devices(net: nn.Module) -> list[int]:
    return sorted({p.device.index for p in net.parameters() if p.is_cuda and p.device.index is not None})


def _random_states(net: nn.Module) -> list[Tensor]:
    return [torch.random.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in _devices(net))]


@contextmanager
def _replayed(net: nn.Module, states: Sequence[Tensor]) -> Iterator[None]:
    """Run the net as it was at these random states, on copies of its buffers: backward may still read them after."""
    held = [(module, dict(module._buffers)) for module in net.modules() if module._buffers]
    devices = _devices(net)
    try:
        for module, buffers in held:
            module._buffers.update({name: None if b is None else b.clone() for name, b in buffers.items()})
        with torch.random.fork_rng(devices=devices):
            torch.random.set_rng_state(states[0])
            for device, state in zip(devices, states[1:], strict=True):
                torch.cuda.set_rng_state(state, device)
            yield
    finally:
        for module, buffers in held:
            module._buffers.update(buffers)
