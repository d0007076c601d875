"""What all rules share that replace W^T on the way back by other weights.

    error of h  =  B^T * delta      in every weight layer;   everything else is the chain rule

A rule of this family says what B is for a layer (`back_weight`) and, where B is plastic, how it learns.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn

from neuropil.learning.feedback.maps import WeightLayer, pull_back, weight_layers
from neuropil.learning.feedback.rerouting import rerouted
from neuropil.learning.rule import LearningRule, Loss, Packet
from neuropil.learning.stages import Inputs, feed

__all__ = ["FeedbackRule", "xavier_uniform"]


def xavier_uniform(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Uniform draws of variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010), on the device and dtype of `like`."""
    return nn.init.xavier_uniform_(torch.empty(*shape), generator=generator).to(like)


class FeedbackRule(LearningRule):
    """Base of the rules whose errors travel back through weights of their own.

    Args:
        net: any module of Linear and Conv layers, norms, activations, pools, embeddings, skip connections.
        loss_fn: mean-reduced loss of (output, target).
        layers: names of the weight layers that send errors back through other weights; None for all of them, the
            others keep their own transpose.

    Raises:
        TypeError: if the net has no such layer, or one that uses its weights without calling it
            (nn.MultiheadAttention, nn.LSTM), by name.
        ValueError: if a name is no weight layer's, or a convolution's padding cannot be undone.
    """

    def __init__(self, net: nn.Module, loss_fn: Loss | None = None, *, layers: Sequence[str] | None = None):
        super().__init__(net, loss_fn)
        # Past nn.Module's registration: the layers are the net's.
        object.__setattr__(self, "layers", weight_layers(net, layers))

    layers: dict[str, WeightLayer]

    @abstractmethod
    def back_weight(self, name: str) -> Tensor:
        """The weights, of the shape of the layer's own, whose transpose carries its error."""

    def send_back(
        self, name: str, delta: Tensor, h: Tensor, wanted: bool
    ) -> tuple[Tensor | None, Sequence[Tensor | None]]:
        """Error of a layer's input, and gradients of the rule's own parameters there.

        Args:
            name: of the layer.
            delta: error at its output.
            h: its input.
            wanted: whether the input wants an error; the first layer's does not.
        """
        return (pull_back(self.layers[name], self.back_weight(name), delta, h) if wanted else None), ()

    def own(self) -> dict[str, list[Tensor]]:
        """The rule's plastic weights, by layer: none unless the rule says so."""
        return {}

    def packets(self, x: Inputs, y: Tensor | None = None) -> Iterator[Packet]:
        """One packet: the loss, with the graph of the whole net, in which weight layers send back as the rule says."""
        target = self.required_target(y)
        self.start_batch()
        with rerouted(self.layers, self.send_back, self.own()):
            output = feed(self.net, x)
        loss = self.required_loss()(output, target)
        yield Packet([loss], [torch.ones_like(loss)], loss.detach())

    def start_batch(self) -> None:
        """Called before every forward pass; rules whose feedback changes with the batch draw it here."""

    def feedback_parameters(self) -> list[nn.Parameter]:
        """The rule's plastic weights, for an optimizer with the same settings as the net's (same as `parameters()`)."""
        return list(self.parameters())

    @torch.no_grad()
    def weight_alignment(self) -> pd.DataFrame:
        """How far the weights that errors travel through are from the forward weights.

        Returns:
            One row a layer, in the order of the net: layer, angle (degrees between the flattened matrices, NaN if one
            is zero), norm_ratio (norm of the feedback over the norm of the forward weights).
        """
        rows = []
        for name, layer in self.layers.items():
            back, forward = self.back_weight(name).flatten().double(), layer.weight.flatten().double()
            norms = float(back.norm()), float(forward.norm())
            cosine = float(back @ forward) / (norms[0] * norms[1]) if all(norms) else math.nan
            angle = math.degrees(math.acos(min(max(cosine, -1.0), 1.0))) if all(norms) else math.nan
            rows.append({"layer": name, "angle": angle, "norm_ratio": norms[0] / norms[1] if norms[1] else math.nan})
        return pd.DataFrame(rows)


def own_name(layer: str) -> str:
    """A layer's name as torch allows it for a parameter or buffer."""
    return layer.replace(".", "/") or "net"
