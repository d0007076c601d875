"""Sensitivity-driven pruning of neurons: decay the insensitive, cut what the loss does not miss, again and again.

Two stages alternate. Regularise: train with `InsensitivityDecay` until the validation loss has not improved for
`patience` epochs. Threshold: find the largest T for which setting all |w| < T to zero leaves

    loss(T) <= (1 + tolerance) loss(0)

and pin what was zeroed. T is one number for all hidden layers; the output layer is not thresholded. In the end neurons
without any incoming weight are removed, and what they gave, a constant, goes into the biases of their readers.

Source: Tartaglione et al. 2021, arXiv 2102.03773, section III.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.neurons.ranges import require
from neuropil.structure.criterion import call, undisturbed
from neuropil.structure.graph import Example, UnitGraph, trace_units
from neuropil.structure.graph.tracing import arguments
from neuropil.structure.masks import MaskHandle, Masks, attach
from neuropil.structure.prune import PruneReport, remove_units
from neuropil.structure.sensitivity import InsensitivityDecay, Kind, hidden_layers
from neuropil.structure.surgery.rows import select

__all__ = ["SeReNe", "SeReNeState", "dead_units", "fold_constants_", "threshold_by_loss"]


def threshold_by_loss(
    net: nn.Module,
    evaluate: Callable[[], float],
    tolerance: float,
    masks: Masks | None = None,
    steps: int = 20,
    names: Sequence[str] | None = None,
) -> Masks:
    """Find the largest threshold on |w| that the loss allows, from below.

    The loss is no monotone function of the threshold. The share of weights cut is raised in twentieths until the loss
    is first too large, then the crossing is bisected; what is returned was evaluated and allowed.

    Args:
        net: left as it was.
        evaluate: gives the loss of the network as it is, on validation data.
        tolerance: by what share the loss may rise.
        masks: what is zero already and stays so; their parameters are those thresholded.
        steps: of the bisection.
        names: parameters to threshold, where no masks are given; None: those of every prunable one.

    Returns:
        Masks, at least as sparse as those given.

    Raises:
        ValueError: if tolerance is negative, steps is below 1, or the loss is not finite.
    """
    require("tolerance", tolerance, 0.0, math.inf, ends=(True, False))
    require("steps", steps, 1, math.inf)
    masks = Masks.full(net, names) if masks is None else masks
    weights = {name: net.get_parameter(name) for name in masks}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    alive = torch.cat([before[name][mask].abs().flatten() for name, mask in masks.items()]).sort().values
    if not len(alive):
        return masks

    def cut(count: int) -> Masks:
        """Mask the `count` smallest of the weights that are left (and what is as small)."""
        if count == 0:
            return masks
        edge = alive[count - 1]
        return Masks({name: mask & (before[name].abs() > edge) for name, mask in masks.items()})

    def loss(count: int) -> float:
        cut(count).apply_(net)
        value = float(evaluate())
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(before[name])
        return value

    base = loss(0)
    if not math.isfinite(base):
        raise ValueError(f"The loss of the network is {base}: there is no threshold to find.")
    allowed = (1 + tolerance) * base
    marks = [round(k * len(alive) / 20) for k in range(21)]
    low, high = 0, len(alive)
    for mark in marks[1:]:
        if loss(mark) > allowed:
            high = mark
            break
        low = mark
    for _ in range(steps):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        if loss(middle) <= allowed:
            low = middle
        else:
            high = middle
    return cut(low)


def dead_units(net: nn.Module, graph: UnitGraph) -> dict[str, Tensor]:
    """Find units that no weight drives: all rows of two and more axes that produce them are zero.

    Args:
        net: any module.
        graph: its units.

    Returns:
        By prunable group, a mask of the units that are alive; at least one of every group.
    """
    parameters = dict(net.named_parameters())
    keep = {}
    for group in graph.prunable():
        producing = [m for m in group.producing() if m.parameter in parameters and parameters[m.parameter].dim() > 1]
        if not producing:
            continue
        alive = torch.zeros(group.size, dtype=torch.bool)
        for member in producing:
            weight = parameters[member.parameter].detach()
            others = [k for k in range(weight.dim()) if k != member.axis]
            driven = weight.abs().sum(dim=others).cpu() > 0
            alive |= driven[member.index].any(dim=1)
        if not bool(alive.any()):
            alive[0] = True
        keep[group.name] = alive
    return keep


def fold_constants_(net: nn.Module, keep: dict[str, Tensor], graph: UnitGraph, example_inputs: Example) -> None:
    """Put what units that go give, a constant, into the biases of the linear layers and convolutions that read them.

    Args:
        net: still whole; biases change in place, columns of the units become zero.
        keep: by group, which units stay.
        graph: the network's units.
        example_inputs: what it is called with, to see the constants.

    Raises:
        ValueError: if a unit is no constant, or its reader has no bias to put it into, or pads its input (then a
            constant is none at the border) and the constant is not 0.
    """
    readers: dict[str, Tensor] = {}
    for name, kept in keep.items():
        for member in graph[name].reading():
            path = member.parameter.removesuffix(".weight")
            if member.axis == 1 and isinstance(net.get_submodule(path), (nn.Linear, nn.Conv2d)):
                columns = net.get_parameter(member.parameter).shape[1]
                gone = readers.setdefault(path, torch.zeros(columns, dtype=torch.bool))
                gone[member.index[~kept].flatten()] = True
    seen: dict[str, Tensor] = {}

    def see(module: nn.Module, args: tuple[Any, ...], *, path: str) -> None:
        seen[path] = args[0]

    hooks = [net.get_submodule(path).register_forward_pre_hook(partial(see, path=path)) for path in readers]
    args, keywords = arguments(example_inputs)
    try:
        with undisturbed(net, evaluate=True), torch.no_grad():
            call(net, keywords or args)
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for path, gone in readers.items():
            layer: Any = net.get_submodule(path)
            x = seen[path]
            columns = (x if isinstance(layer, nn.Linear) else x.movedim(1, -1)).flatten(0, -2)[:, gone]
            values = columns[0]
            if not torch.allclose(columns, values.expand_as(columns), rtol=1e-4, atol=1e-6):
                raise ValueError(f"{path} reads units that go but are no constants.")
            if bool(values.any()):
                padded = isinstance(layer, nn.Conv2d) and (isinstance(layer.padding, str) or any(layer.padding))
                if layer.bias is None or padded or getattr(layer, "groups", 1) > 1:
                    raise ValueError(f"{path} cannot take up constants: it has no bias, pads its input, or has groups.")
                weight = layer.weight[:, gone].flatten(2).sum(2) if layer.weight.dim() > 2 else layer.weight[:, gone]
                layer.bias.add_(weight @ values)
            layer.weight[:, gone] = 0


@dataclass(frozen=True)
class SeReNeState:
    """Where `SeReNe` stands after an epoch.

    Attributes:
        epoch: number of epochs so far.
        loss: on the validation data.
        thresholded: whether weights were cut after this epoch.
        density: share of the hidden weights that are left.
        finished: whether the last threshold stage found nothing to cut.
    """

    epoch: int
    loss: float
    thresholded: bool
    density: float
    finished: bool


class SeReNe:
    """The whole procedure, stepped with the optimizer.

        for x, y in batches:
            loss.backward(); optimizer.step(); serene.step(x)
        state = serene.epoch()                    # after every epoch
        report = serene.shrink()                  # in the end

    Args:
        net: any module.
        optimizer: of its parameters.
        evaluate: gives the loss of the network as it is, on validation data.
        example_inputs: what the network is called with.
        strength: lambda of `InsensitivityDecay`; 0 leaves the decay out (thresholds alone).
        tolerance: of `threshold_by_loss`.
        patience: epochs without a better validation loss after which weights are cut; 0: after every epoch.
        kind: of sensitivity.
        normalise: see `InsensitivityDecay`.
        every: see `InsensitivityDecay`.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        evaluate: Callable[[], float],
        example_inputs: Example,
        *,
        strength: float,
        tolerance: float = 0.1,
        patience: int = 5,
        kind: Kind = "lower",
        normalise: Literal["layer"] | None = "layer",
        every: int = 1,
    ):
        require("tolerance", tolerance, 0.0, math.inf, ends=(True, False))
        require("patience", patience, 0, math.inf, ends=(True, False))
        args, keywords = arguments(example_inputs)
        self.hidden = hidden_layers(net, keywords or args)
        self.decay = InsensitivityDecay(
            net, optimizer, strength, kind=kind, normalise=normalise, every=every, modules=self.hidden
        )
        self.net, self.optimizer, self.evaluate, self.example = net, optimizer, evaluate, example_inputs
        self.tolerance, self.patience = tolerance, patience
        self.masks = Masks.full(net, [f"{name}.weight" for name in self.hidden])
        self._handle: MaskHandle = attach(self.masks, net, optimizer)
        self._epochs, self._best, self._waited = 0, math.inf, 0

    def step(self, x: Any) -> None:
        """Decay, after `optimizer.step()`; x is the batch just used."""
        if self.decay.strength:
            self.decay.observe(x)
            self.decay.step()

    def epoch(self, *, threshold: bool = True) -> SeReNeState:
        """Look at the validation loss; cut weights if it has stopped improving.

        Args:
            threshold: False forbids cutting now (while the network is still learning).
        """
        self._epochs += 1
        loss = float(self.evaluate())
        self._waited = 0 if loss < self._best else self._waited + 1
        self._best = min(self._best, loss)
        cut = threshold and (self.patience == 0 or self._waited >= self.patience)
        before = self.masks.kept()
        if cut:
            self.masks = threshold_by_loss(self.net, self.evaluate, self.tolerance, self.masks)
            self._handle.masks = self.masks
            self.masks.apply_(self.net)
            self._best, self._waited = math.inf, 0
        return SeReNeState(self._epochs, loss, cut, self.masks.density(), cut and self.masks.kept() == before)

    def alive(self) -> dict[str, int]:
        """Count the neurons of every hidden layer that any weight drives."""
        counts = {}
        for name in self.hidden:
            weight = self.net.get_parameter(f"{name}.weight").detach()
            counts[name] = int((weight.flatten(1).abs().sum(dim=1) > 0).sum())
        return counts

    def shrink(self) -> PruneReport:
        """Remove dead neurons in place; zeroed weights of the others stay pinned.

        Raises:
            ValueError: as `fold_constants_` and `remove_units`.
        """
        graph = trace_units(self.net, self.example)
        keep = {name: kept for name, kept in dead_units(self.net, graph).items() if not bool(kept.all())}
        fold_constants_(self.net, keep, graph, self.example)
        self._handle.remove()
        report = remove_units(self.net, keep, graph, optimizer=self.optimizer)
        self.masks = Masks({name: select(mask, report.cut.rows.get(name, {})) for name, mask in self.masks.items()})
        self._handle = attach(self.masks, self.net, self.optimizer)
        return report
