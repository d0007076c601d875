"""Leave masked channels out of the computation, one sample at a time: weights are gathered, zeros are never touched.

For a sample the head is asked, the rows of its channels are gathered from the weight together with the columns of the
input channels that are not all zero, and a small dense layer is computed. Norms are folded into the weights before. A
batch has no common set of channels: it is computed whole and masked, which saves nothing.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from neuropil.structure.dynamic.channels import DynamicChannels, MaskPredictor, above_threshold, dynamic_layers, through
from neuropil.structure.dynamic.mass import pooled, space
from neuropil.structure.dynamic.wrapping import LAYERS, NORMS
from neuropil.structure.graph import UnitGraph

__all__ = ["SparseLayer", "infer_sparse"]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ELEMENTWISE = (
    nn.Identity, nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.Tanh, nn.ELU, nn.Mish
)  # fmt: skip


class SparseLayer(nn.Module):
    """A layer in evaluation mode that computes, for one sample, only what is not zero.

    Args:
        layer: a convolution without groups, or a linear layer.
        norm_act: what follows: batch norms, which are folded into the weight, then elementwise activations.
        predictor: head that says which channels are computed; None: all.
        threshold: what its logits must exceed.
        skip: whether input channels that are all zero are left out.
        axis: of the channels.

    Raises:
        TypeError: if the layer is something else, or something else follows.
    """

    threshold: Tensor
    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        layer: nn.Module,
        norm_act: nn.Module | None = None,
        predictor: nn.Module | None = None,
        threshold: float | Tensor = 0.0,
        *,
        skip: bool = True,
        axis: int = 1,
    ):
        super().__init__()
        if not isinstance(layer, LAYERS) or getattr(layer, "groups", 1) != 1:
            raise TypeError(f"layer must be linear or a convolution without groups, got {type(layer).__name__}.")
        weight, bias, rest = _folded(layer, norm_act)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.register_buffer("threshold", torch.as_tensor(threshold).detach().clone().to(weight))
        self.layer, self.rest, self.predictor, self.skip, self.axis = _shell(layer), rest, predictor, skip, axis
        # What is left of a head whose input is pooled already: at one sample, calls are a good part of the time.
        head = predictor.readout if isinstance(predictor, MaskPredictor) else predictor
        self._heads = [head[0] if isinstance(head, nn.Sequential) and len(head) == 1 else head]

    def __getattr__(self, name: str) -> Any:
        return through(self, name, super().__getattr__)

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Compute one sample sparsely; a batch of another size is computed whole and masked."""
        if len(x) != 1:
            return self._whole(x)
        weight, bias, on = self.weight, self.bias, None
        largest = pooled(x, self.axis)
        if (head := self._heads[0]) is not None:
            logits = head(largest)[0]
            on = _found(logits > self.threshold, logits)
            weight, bias = weight.index_select(0, on), None if bias is None else bias.index_select(0, on)
        if self.skip:
            live = largest[0] != 0
            if x.ndim > 2:
                live |= x.amin(dim=space(x, self.axis))[0] != 0
            live = _found(live, largest[0])
            weight, x = weight.index_select(1, live), x.index_select(self.axis, live)
        y = self.rest(self._product(x, weight, bias))
        if on is None:
            return y
        shape = list(y.shape)
        shape[self.axis] = len(self.weight)
        return y.new_zeros(shape).index_copy_(self.axis, on, y)

    def _whole(self, x: Tensor) -> Tensor:
        y = self.rest(self._product(x, self.weight, self.bias))
        if self.predictor is None:
            return y
        mask = above_threshold(self.predictor(pooled(x, self.axis)), self.threshold)
        shape = [1] * y.ndim
        shape[0], shape[self.axis] = mask.shape
        return y * mask.reshape(shape)

    def _product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(self.layer, CONVOLUTIONS):
            return self.layer._conv_forward(x, weight, bias)
        return linear(x, weight, bias)


def _found(chosen: Bool[Tensor, " channels"], scores: Float[Tensor, " channels"]) -> Int[Tensor, " found"]:
    """Give the numbers of the chosen channels; of the best one, should none be chosen."""
    found = chosen.nonzero()[:, 0]
    return found if len(found) else scores.argmax()[None]


def _shell(layer: nn.Module) -> nn.Module:
    """Give the layer's settings (stride, padding) without its weights."""
    shell = copy.copy(layer)
    shell._parameters = dict.fromkeys(layer._parameters)
    return shell


def _folded(layer: nn.Module, norm_act: nn.Module | None) -> tuple[Tensor, Tensor | None, nn.Sequential]:
    """Fold batch norms into weight and bias, and give what is left to do."""
    parts = list(norm_act) if isinstance(norm_act, nn.Sequential) else [norm_act] if norm_act is not None else []
    weight = layer.get_parameter("weight").detach().clone()
    bias = None if getattr(layer, "bias", None) is None else layer.get_parameter("bias").detach().clone()
    rest: list[nn.Module] = []
    fold = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    for part in parts:
        if isinstance(part, NORMS) and not rest and part.running_mean is not None and part.running_var is not None:
            statistics: tuple[Any, ...] = (part.running_mean, part.running_var, part.eps, part.weight, part.bias)
            fused = fold(nn.Parameter(weight), None if bias is None else nn.Parameter(bias), *statistics)
            weight, bias = (parameter.detach() for parameter in fused)
        elif isinstance(part, ELEMENTWISE):
            rest.append(part)
        else:
            raise TypeError(
                f"A {type(part).__name__} after the layer can be neither folded into it nor done channel by channel."
            )
    return weight, bias, nn.Sequential(*rest)


def infer_sparse(net: nn.Module, graph: UnitGraph | None = None) -> nn.Module:
    """Give a copy of a dynamic network, in evaluation mode, that leaves masked channels out, one sample at a time.

    Args:
        net: with dynamic layers; their heads choose, whatever their mode and rule.
        graph: units of the network as it was: convolutions without heads that read dynamic channels then skip zeros
            too; None: they do not.

    Returns:
        The copy; its outputs are those of the network in the mode "infer".

    Raises:
        ValueError: if there are no dynamic layers.
        TypeError: if a dynamic layer is not one layer with norms and activations (see `SparseLayer`).
    """
    layers = dynamic_layers(net)
    made = copy.deepcopy(net).eval()
    readers = {} if graph is None else _readers(net, graph, layers)
    for name, layer in dynamic_layers(made).items():
        skips = graph is None or readers.pop(name, False)
        sparse = SparseLayer(layer.layer, layer.norm_act, layer.predictor, layer.threshold, skip=skips, axis=layer.axis)
        _put(made, name, sparse.eval())
    for name in readers:
        _put(made, name, SparseLayer(made.get_submodule(name)).eval())
    return made


def _readers(net: nn.Module, graph: UnitGraph, layers: Mapping[str, DynamicChannels]) -> dict[str, bool]:
    """Find the layers all of whose input channels are dynamic: convolutions without heads, and dynamic layers."""
    found: dict[str, bool] = {}
    for layer in layers.values():
        for member in graph[layer.group].reading():
            name = member.parameter.rpartition(".")[0]
            module = net.get_submodule(name)
            plain = isinstance(module, CONVOLUTIONS) and module.groups == 1
            if (plain or name in layers) and member.axis == 1 and member.index.shape[1] == 1:
                found[name] = True
    return found


def _put(net: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    setattr(net.get_submodule(parent), last, module)
