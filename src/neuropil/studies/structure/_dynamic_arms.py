"""Ways to choose channels at equal densities, input by input or once for all, and the training under their masks."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

from neuropil.data import Dataset
from neuropil.structure.dynamic.channels import (
    DynamicChannels,
    MaskPredictor,
    MaskRule,
    above_threshold,
    dynamic_layers,
    set_mode,
    ss_loss,
    using,
)
from neuropil.structure.dynamic.counting import used_macs
from neuropil.structure.dynamic.heads import gathered, quantile_for
from neuropil.structure.dynamic.inference import SparseLayer
from neuropil.structure.dynamic.mass import mass_topk
from neuropil.structure.graph import UnitGraph
from neuropil.structure.speed import latency

__all__ = [
    "Course",
    "accuracy",
    "hit_rates",
    "joint",
    "layer_speed",
    "mask_rules",
    "spent",
    "train_",
    "tuned",
]

SHUFFLING, DRAWING = 0x5EED, 0xF12E
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Course:
    """How a net is trained: epochs, learning rate, batch size, seed of the order."""

    epochs: int
    rate: float
    batch_size: int
    seed: int


def train_(net: nn.Module, data: Dataset, course: Course, heads_rate: float | None = None) -> nn.Module:
    """Train in place by Adam; heads stay as they are, or learn at their own rate by their own loss at once."""
    heads = {id(p) for layer in _dynamic(net) for p in layer.predictor.parameters()}
    groups = [{"params": [p for p in net.parameters() if id(p) not in heads], "lr": course.rate}]
    if heads_rate is not None:
        groups.append({"params": [p for p in net.parameters() if id(p) in heads], "lr": heads_rate})
    optimizer = torch.optim.Adam(groups)
    generator = torch.Generator().manual_seed(course.seed ^ SHUFFLING)
    net.train()
    for _ in range(course.epochs):
        for batch in torch.randperm(len(data.x_train), generator=generator).split(course.batch_size):
            optimizer.zero_grad()
            loss = cross_entropy(net(data.x_train[batch]), data.y_train[batch])
            (loss if heads_rate is None else loss + ss_loss(net)).backward()
            optimizer.step()
    return net.eval()


def _dynamic(net: nn.Module) -> list[DynamicChannels]:
    return [module for module in net.modules() if isinstance(module, DynamicChannels)]


def mask_rules(
    arm: str, net: nn.Module, batches: Sequence[Batch], densities: Mapping[str, float], seed: int
) -> dict[str, MaskRule]:
    """Give the rules of an arm; an empty dict lets the heads choose.

    Args:
        arm: "heads", "target", "shuffled", "L1" or "mean activation".
        net: with dynamic layers and trained heads.
        batches: to take mean activations on.
        densities: by layer, what static masks keep.
        seed: of the shuffling.
    """
    layers = dynamic_layers(net)
    if arm == "target":
        return {name: _target(layer.mass) for name, layer in layers.items()}
    if arm == "shuffled":
        generator = torch.Generator().manual_seed(seed ^ DRAWING)
        return {name: _shuffled(float(layer.threshold), generator) for name, layer in layers.items()}
    if arm == "L1":
        scores = {name: layer.layer.get_parameter("weight").abs().flatten(1).sum(1) for name, layer in layers.items()}
    elif arm == "mean activation":
        with using(net, "record"):
            responses = gathered(net, batches, lambda seen: seen.response, "The study")
        scores = {name: response.mean(0) for name, response in responses.items()}
    else:
        return {}
    return {name: _static(score.detach(), densities[name]) for name, score in scores.items()}


def _target(mass: float) -> MaskRule:
    return lambda _, response: mass_topk(response, mass)[0]


def _shuffled(threshold: float, generator: torch.Generator) -> MaskRule:
    """The head's mask with its channels exchanged, anew for every sample: as many are on, but which is chance."""

    def rule(logits: Tensor, _: Tensor) -> Tensor:
        order = torch.rand(logits.shape, generator=generator).argsort(dim=1)
        return above_threshold(logits, threshold).gather(1, order)

    return rule


def _static(score: Tensor, density: float) -> MaskRule:
    kept = torch.zeros(len(score), dtype=torch.bool)
    kept[score.argsort(descending=True, stable=True)[: max(1, round(density * len(score)))]] = True
    return lambda logits, _: kept.expand_as(logits)


def tuned(net: nn.Module, rules: Mapping[str, MaskRule], data: Dataset, course: Course) -> nn.Module:
    """Train a copy under the masks of some rules; its heads stay as they are."""
    made = copy.deepcopy(net)
    with using(made, "train" if rules else "infer", rules):
        train_(made, data, course)
    return made


def accuracy(net: nn.Module, data: Dataset, rules: Mapping[str, MaskRule] | None = None) -> float:
    """Percent right on the test images, under masks if there are dynamic layers."""
    if not _dynamic(net):
        return _right(net, data)
    with using(net, "infer", rules):
        return _right(net, data)


def _right(net: nn.Module, data: Dataset) -> float:
    with torch.no_grad():
        classes = torch.cat([net.eval()(x).argmax(dim=1) for x in data.x_test.split(500)])
    return 100 * float((classes == data.y_test).double().mean())


def spent(
    net: nn.Module, graph: UnitGraph, batches: Sequence[Batch], rules: Mapping[str, MaskRule] | None = None
) -> tuple[float, dict[str, float]]:
    """Multiply-accumulates a sample, heads included where they choose, and the density of every dynamic layer."""
    with using(net, "infer", rules):
        table = used_macs(net, graph, batches)
    layers = dynamic_layers(net)
    names, densities, macs = (table[column].to_numpy() for column in ("layer", "density", "macs"))
    heads = np.array([str(name).endswith(".predictor") for name in names])
    total = float(macs[~heads].sum() if rules else macs.sum())
    return total, {name: float(one) for name, one in zip(names, densities, strict=True) if name in layers}


def hit_rates(net: nn.Module, train: Sequence[Batch], test: Sequence[Batch]) -> tuple[float, float]:
    """Percent of the targets that heads meet on test images, and that each channel's commoner answer meets."""
    with using(net, "record"):
        logits = gathered(net, test, lambda seen: seen.logits, "The study")
        targets = gathered(net, test, lambda seen: seen.target, "The study")
        before = gathered(net, train, lambda seen: seen.target, "The study")
    hits = [((logits[name] > 0) == targets[name]).flatten() for name in targets]
    common = [((before[name].double().mean(0) > 0.5) == targets[name]).flatten() for name in targets]
    rates = (100 * float(torch.cat(part).double().mean()) for part in (hits, common))
    return next(rates), next(rates)


class Gathered(nn.Module):
    """A convolution of given inputs and outputs: their weights are gathered every time, nothing is chosen.

    Args:
        layer: of 3 x 3, with a bias.
        inputs: channels that are read.
        outputs: channels that are computed.
    """

    def __init__(self, layer: nn.Module, inputs: Tensor, outputs: Tensor):
        super().__init__()
        self.weight, self.bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        self.inputs, self.outputs = inputs, outputs

    def forward(self, x: Tensor) -> Tensor:
        """Compute the outputs, no others."""
        weight = self.weight.index_select(0, self.outputs).index_select(1, self.inputs)
        bias = self.bias.index_select(0, self.outputs)
        return conv2d(x.index_select(1, self.inputs), weight, bias, padding=1)


def layer_speed(width: int, density: float, side: int, runs: int, seed: int) -> tuple[float, float]:
    """How many times faster a convolution is for one sample on one thread, its inputs and outputs at some density.

    Returns:
        With the channels given, only gathering counted; and as `infer_sparse` has it: the head, the search for zero
        inputs, the gathering and the laying out of the result are all in it.
    """
    generator = torch.Generator().manual_seed(seed)
    layer = nn.utils.skip_init(nn.Conv2d, width, width, 3, padding=1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3 / width**0.5)
    x = torch.rand(1, width, side, side, generator=generator)
    live, _ = torch.randperm(width, generator=generator)[: round(density * width)].sort()
    x = x * torch.zeros(width).index_fill(0, live, 1.0)[:, None, None]
    head = MaskPredictor(width, width, generator=generator)
    threshold = quantile_for(head(x), density)
    outputs = (head(x)[0] > threshold).nonzero()[:, 0]
    nets = {
        "dense": layer,
        "gathered": Gathered(layer, live, outputs),
        "sparse": SparseLayer(layer, None, head, threshold),
    }
    timings = latency(nets, x, runs=runs, threads=1)
    return timings["dense"].ratio(timings["gathered"]), timings["dense"].ratio(timings["sparse"])


def joint(net: nn.Module, data: Dataset, course: Course, heads_rate: float) -> nn.Module:
    """Train a copy, its heads fresh, on both losses at once under its masks."""
    made = copy.deepcopy(net)
    set_mode(made, "train")
    for layer in dynamic_layers(made).values():
        layer.detached = False
    train_(made, data, course, heads_rate)
    set_mode(made, "infer")
    return made
