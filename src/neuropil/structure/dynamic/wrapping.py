"""Make the channels of any network dynamic, where that is sound.

The unit graph says which channels are private to one layer: no sum with others (a residual stream), nothing but a batch
norm between the layer and an activation. The head's mask is put behind that norm. Activations that keep 0 at 0 pass it
on, whatever they are called and wherever they stand in the code; that this is so is not guessed but tried: a layer is
taken only if the masked network gives what the network gives with the same units gated where they are read.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import Node

from neuropil.structure.criterion import Batches, undisturbed
from neuropil.structure.dynamic.channels import DynamicChannels, MaskPredictor
from neuropil.structure.dynamic.heads import calibrate_heads
from neuropil.structure.dynamic.mass import check_mass
from neuropil.structure.gates import gated
from neuropil.structure.graph import Example, UnitGraph, trace_units
from neuropil.structure.graph.recording import tensors_of
from neuropil.structure.graph.tracing import arguments, forward
from neuropil.structure.graph.units import UnitGroup

__all__ = ["make_dynamic"]

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# Activations that keep 0 at 0, by their operation, made with the operation's other arguments.
ACTIVATIONS: dict[str, Callable[..., nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "mish": nn.Mish,
}
FEW = 3  # channels of an image: their maxima over space say nothing


@dataclass(frozen=True)
class Place:
    """Where a head goes: qualified names of the layer and of its norm, and the activation behind them."""

    layer: str
    norm: str | None
    activation: nn.Module | None


def make_dynamic(
    net: nn.Module,
    example_inputs: Example,
    mass: float,
    include: Iterable[str] | None = None,
    calibrate: Batches | None = None,
    *,
    hidden: int | None = None,
    graph: UnitGraph | None = None,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Give a copy of a network whose inner channels have heads. Until its mode is set it computes what it did.

    Over tokens, as over space, a head sees the maximum of a whole sample: a causal model stays causal only in what its
    layers compute, not in which of their channels it computes.

    Args:
        net: any module that `trace_units` can read.
        example_inputs: what it is called with.
        mass: share of the activation that the heads' targets hold, above 0 and at most 1.
        include: names of groups of units; None: all that can be, but layers whose input has 3 channels or fewer.
        calibrate: batches of (x, y) to set the thresholds of the heads by, which makes sense for heads that are
            trained; None: thresholds stay 0.
        hidden: width of a hidden layer in the heads; None: none.
        graph: the network's units, if traced already.
        generator: source of the heads' weights.

    Returns:
        The copy: each chosen layer is a `DynamicChannels` with its norm in it, an identity where the norm was.

    Raises:
        ValueError: if the mass is out of range, a group that `include` names cannot have a head (the message says why),
            or none can.
        KeyError: if there is no such group.
    """
    check_mass(mass)
    graph = trace_units(net, example_inputs) if graph is None else graph
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    refused: dict[str, str] = {}
    made = copy.deepcopy(net)
    wrapped = 0
    for group in graph if include is None else [graph[name] for name in include]:
        place = _place(net, graph, group)
        if isinstance(place, Place) and include is None and _inputs(net, place) <= FEW:
            place = f"its input has {FEW} channels or fewer, whose maxima say nothing"
        if isinstance(place, Place) and not _sound(net, example_inputs, place, group):
            place = "what follows does not give 0 where the layer does"
        if isinstance(place, Place):
            _wrap(made, place, group, mass, hidden, generator)
            wrapped += 1
        elif include is not None:
            raise ValueError(f"Group {group.name} cannot be dynamic: {place}.")
        else:
            refused[group.name] = place
    if not wrapped:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise ValueError(f"No channels can be dynamic ({reasons or 'there are no groups'}).")
    if calibrate is not None:
        calibrate_heads(made, calibrate)
    return made


def _place(net: nn.Module, graph: UnitGraph, group: UnitGroup) -> Place | str:
    """Find where a group's head goes, or say why nowhere."""
    if not group.prunable or not group.exact:
        return group.reason or "its units cannot be left out"
    producing = {member.parameter: member for member in group.producing()}
    weights = [name for name in producing if name.endswith("weight") and net.get_parameter(name).ndim > 1]
    if len(weights) != 1:
        several = f"{' and '.join(weights)} produce its units together, as in a residual stream"
        return several if weights else "no layer produces its units by its weight"
    path, _, _ = weights[0].rpartition(".")
    layer, member = net.get_submodule(path), producing[weights[0]]
    if not isinstance(layer, LAYERS) or getattr(layer, "groups", 1) != 1:
        return f"{path} is a {type(layer).__name__}, not a linear layer or a convolution without groups"
    if member.axis != 0 or member.index.shape != (layer.weight.shape[0], 1):
        return f"not every output channel of {path} is one of its units"
    others = {name.rpartition(".")[0] for name in producing} - {path}
    if len(others) > 1 or not all(isinstance(net.get_submodule(name), NORMS) for name in others):
        return f"more than a batch norm lies on the way from {path} ({', '.join(sorted(others))})"
    return _followed(graph, path, weights[0], next(iter(others), None))


def _followed(graph: UnitGraph, path: str, weight: str, norm: str | None) -> Place | str:
    """Read from the recorded network whether the norm follows the layer at once, and which activation comes then."""
    if graph.reading is None:
        raise ValueError("graph holds no recorded network (it was read from a specification): trace it again.")
    runs = graph.reading.recording.reads(weight)
    if len(runs) != 1:
        return f"{path} is used {len(runs)} times"
    node: Node = runs[0]
    if norm is not None:
        following = list(node.users)
        if len(following) != 1 or "batch_norm" not in str(following[0].target):
            return f"{norm} does not follow {path} at once"
        node = following[0]
    return Place(path, norm, _activation(list(node.users)))


def _activation(following: list[Node]) -> nn.Module | None:
    """Make the activation that follows, from the operation; None where something else does."""
    names = str(following[0].target).split(".")
    if len(following) != 1 or len(names) < 2 or names[1].rstrip("_") not in ACTIVATIONS:
        return None
    return ACTIVATIONS[names[1].rstrip("_")](*following[0].args[1:], **following[0].kwargs)


def _inputs(net: nn.Module, place: Place) -> int:
    layer = net.get_submodule(place.layer)
    return int(layer.get_parameter("weight").shape[1])


def _sound(net: nn.Module, example: Example, place: Place, group: UnitGroup) -> bool:
    """Try: half of the units masked behind the norm must give what they give gated where they are read."""
    keep = torch.arange(group.size) % 2 == 0
    args, keywords = arguments(example)
    last = net.get_submodule(place.norm or place.layer)
    axis = -1 if isinstance(net.get_submodule(place.layer), nn.Linear) else 1

    def mask(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        shape = [1] * output.ndim
        shape[axis] = group.size
        return output * keep.to(output).reshape(shape)

    with undisturbed(net, evaluate=True), torch.no_grad():
        wanted = list(tensors_of(gated(net, [group], {group.name: keep}, args, keywords)))
        handle = last.register_forward_hook(mask)
        try:
            got = list(tensors_of(forward(net, example)))
        finally:
            handle.remove()
    return all(
        torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) if b.numel() else 0.0)
        for a, b in zip(got, wanted, strict=True)
        if a.is_floating_point()
    )


def _wrap(
    net: nn.Module, place: Place, group: UnitGroup, mass: float, hidden: int | None, generator: torch.Generator
) -> None:
    layer = net.get_submodule(place.layer)
    weight = layer.get_parameter("weight")
    norm = net.get_submodule(place.norm) if place.norm else nn.Identity()
    predictor = MaskPredictor(int(weight.shape[1]), int(weight.shape[0]), hidden, generator)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    wrapped = DynamicChannels(
        layer, norm, predictor.to(weight), mass, activation=place.activation, axis=axis, group=group.name
    )
    _put(net, place.layer, wrapped.train(layer.training))
    if place.norm:
        _put(net, place.norm, nn.Identity())


def _put(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    setattr(net.get_submodule(parent), last, module)
