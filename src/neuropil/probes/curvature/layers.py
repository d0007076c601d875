"""Linear layers and convolutions as products of matrices, and what passed through them in one forward pass.

Both are s = W abar: for a linear layer W = (weight, bias) and abar = (a; 1); for a convolution the weight is laid out
as (channels out, channels in * kernel), and abar are the patches that the kernel meets, one a position.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad, unfold
from torch.utils.hooks import RemovableHandle

__all__ = ["Layer", "Recorder", "find_layers", "from_matrix", "input_rows", "output_rows", "to_matrix"]

Layer = nn.Linear | nn.Conv2d

# Scales and shifts of a normalisation are few, and have no factors.
WITHOUT_FACTORS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.PReLU,
)


def find_layers(net: nn.Module, modules: Sequence[str] | None = None) -> dict[str, Layer]:
    """Look up the linear layers and convolutions of a network by their qualified names.

    Args:
        net: any module.
        modules: names; None: all, where normalisations are passed over.

    Raises:
        ValueError: if a name is unknown; if a layer with parameters is no linear layer, no convolution in 2 dimensions,
            or one of several groups; if two layers share a weight; if there are none.
    """
    known = dict(net.named_modules())
    if modules is None:
        modules = [
            name
            for name, module in known.items()
            if not isinstance(module, WITHOUT_FACTORS) and next(module.parameters(recurse=False), None) is not None
        ]
    found: dict[str, Layer] = {}
    owners: dict[int, str] = {}
    for name in modules:
        if name not in known:
            raise ValueError(f"modules names {name!r}, but the network has {sorted(known)}.")
        module, shown = known[name], name or "net"
        if not isinstance(module, nn.Linear | nn.Conv2d):
            raise ValueError(
                f"{shown} is a {type(module).__name__}: Kronecker factors are there for Linear and Conv2d; "
                "name the layers that count in modules."
            )
        if isinstance(module, nn.Conv2d) and module.groups != 1:
            raise ValueError(
                f"{shown} is a convolution of {module.groups} groups: its curvature is no single Kronecker product; "
                "name the other layers in modules."
            )
        first = owners.setdefault(id(module.weight), shown)
        if first != shown:
            raise ValueError(f"{shown} and {first} share a weight: its curvature is no single Kronecker product.")
        found[name] = module
    if not found:
        raise ValueError("net has no linear layer and no convolution: there is nothing to factor.")
    return found


def input_rows(layer: Layer, a: Tensor) -> Float[Tensor, "rows columns"]:
    """Give abar of every example and position, row by row; the last column is 1 where the layer has a bias."""
    if isinstance(layer, nn.Conv2d):
        # Padding by hand: it may be "same", circular or reflected.
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = pad(a[None] if a.dim() == 3 else a, layer._reversed_padding_repeated_twice, mode=mode)
        patches = unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)
        found = patches.transpose(1, 2).reshape(-1, patches.shape[1])
    else:
        found = a.reshape(-1, a.shape[-1])
    return found if layer.bias is None else torch.cat([found, torch.ones_like(found[:, :1])], 1)


def output_rows(layer: Layer, s: Tensor) -> Float[Tensor, "rows units"]:
    """What belongs to the outputs s (s itself, or a gradient by it), row by row as `input_rows`."""
    if isinstance(layer, nn.Conv2d):
        s = s.movedim(-3, -1)
    return s.reshape(-1, s.shape[-1])


def to_matrix(layer: Layer, weight: Tensor, bias: Tensor | None) -> Float[Tensor, "units columns"]:
    """Lay a weight (or its gradient) and a bias out as W; `layer` says whether there is a bias."""
    matrix = weight.flatten(1)
    if layer.bias is None:
        return matrix
    return torch.cat([matrix, (torch.zeros_like(matrix[:, 0]) if bias is None else bias)[:, None]], 1)


def from_matrix(layer: Layer, matrix: Float[Tensor, "units columns"]) -> tuple[Tensor, Tensor | None]:
    """Cut W into weight and bias; undoes `to_matrix`."""
    if layer.bias is None:
        return matrix.view_as(layer.weight), None
    return matrix[:, :-1].reshape(layer.weight.shape), matrix[:, -1]


class Recorder:
    """Keeps what enters and leaves some layers during a forward pass, in the graph, while it is entered.

    Args:
        net: any module; every call of it starts a new record.
        layers: of the net, by name.

    Attributes:
        inputs: of each layer, one tensor a call.
        outputs: of each layer, one tensor a call; those of which the net's output is a function.
        examples: length of the first axis of the net's first tensor.
    """

    def __init__(self, net: nn.Module, layers: dict[str, Layer]):
        self.net = net
        self.layers = layers
        self.inputs: dict[str, list[Tensor]] = {}
        self.outputs: dict[str, list[Tensor]] = {}
        self.examples = 0
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Recorder":
        if self._handles:
            raise RuntimeError("The recorder is already in use; it cannot be entered twice.")
        self._handles = [self.net.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for name, layer in self.layers.items():

            def keep(_: nn.Module, args: tuple[Any, ...], output: Tensor, name: str = name) -> Tensor | None:
                if not torch.is_grad_enabled() or not output.requires_grad:
                    return None
                self.inputs.setdefault(name, []).append(args[0])
                self.outputs.setdefault(name, []).append(output)
                # A copy goes on: an activation in place would make the output kept here its own.
                return output.clone()

            self._handles.append(layer.register_forward_hook(keep))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.clear()
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self.examples = len(tensors[0]) if tensors and tensors[0].dim() else 0

    def clear(self) -> None:
        """Forget the record, and with it the graph."""
        self.inputs, self.outputs, self.examples = {}, {}, 0

    def check(self) -> None:
        """Check that every layer ran.

        Raises:
            RuntimeError: if one did not, with what may be the reason.
        """
        missing = [name or "net" for name in self.layers if name not in self.outputs]
        if missing:
            raise RuntimeError(
                f"{missing[0]} did not run in the last forward pass inside `with`, or ran without gradients "
                "(some modules use a layer's weight without calling it: leave it out of modules)."
            )
