"""A penalty on sharpness: the largest eigenvalue of each layer's curvature, as a function of the weights.

    P = strength * sum_l lambda_max(A_l) lambda_max(G_l),     A = X^T X / batch,   G = Y^T Y / rows

where X holds a layer's inputs row by row and Y the gradients by its outputs, for targets of the model. Both depend on
the weights, so the gradients are taken in a way that can be derived again: a step costs five times as much, or ten in
a small network.
An eigenvalue's derivative is that of v^T A v with v held, so v is found without a graph and no factor is formed in it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import grad

from neuropil.neurons.ranges import require
from neuropil.probes.curvature.inputs import drawing
from neuropil.probes.curvature.layers import Recorder, find_layers, input_rows, output_rows
from neuropil.probes.curvature.likelihood import Likelihood, output_gradients, output_roots, sample_targets

__all__ = ["FlatnessPenalty"]


class FlatnessPenalty:
    """Differentiable estimate of the sharpness of a batch's loss, times a strength.

    A forward pass inside `with` is recorded; the call then makes the penalty of it::

        with penalty:
            logits = net(x)
        (loss_fn(logits, y) + penalty(logits)).backward()

    Args:
        net: any module that returns (examples, units).
        strength: factor of the sum; not negative.
        modules: names of layers; None: all linear layers and convolutions, and nothing else but normalisations may have
            parameters.
        fisher: "sampled" draws a target per example from the model; "exact" weighs all, at a pass back per output.
        likelihood: how the output is read as a distribution: "categorical", "normal" or "bernoulli".
        generator: of the draws; None is seed 0.

    Attributes:
        last: lambda_max(A) lambda_max(G) of every layer at the last call.

    Raises:
        ValueError: if strength is negative, or a layer is unsupported, by its name.

    Source: after Ebrahimi & Klabjan 2021, arXiv 2111.08577, who bound the spectral radius of the Hessian; the form of
        the penalty is ours.
    """

    def __init__(
        self,
        net: nn.Module,
        strength: float,
        *,
        modules: Sequence[str] | None = None,
        fisher: Literal["sampled", "exact"] = "sampled",
        likelihood: Likelihood = "categorical",
        generator: torch.Generator | None = None,
    ):
        require("strength", strength, 0.0, float("inf"), ends=(True, False))
        if fisher not in ("sampled", "exact"):
            raise ValueError(f'fisher must be "sampled" or "exact", got {fisher!r}.')
        self.layers = find_layers(net, modules)
        self.strength = strength
        self.fisher = fisher
        self.likelihood: Likelihood = likelihood
        self.last: dict[str, float] = {}
        self._generator = drawing(generator)
        self._recorder = Recorder(net, self.layers)

    def __enter__(self) -> "FlatnessPenalty":
        self._recorder.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._recorder.__exit__(*error)

    def __call__(self, output: Float[Tensor, "examples *units"]) -> Float[Tensor, ""]:
        """Make the penalty of the last forward pass inside `with`.

        Args:
            output: what the net returned.

        Raises:
            RuntimeError: if a layer did not run.
        """
        record = self._recorder
        record.check()
        if self.fisher == "exact":
            directions = list(output_roots(output, self.likelihood))
        else:
            target = sample_targets(output, self.likelihood, self._generator)
            directions = [output_gradients(output, target, self.likelihood)]
        flat = [s for name in self.layers for s in record.outputs[name]]
        passes = [
            grad(output, flat, direction, create_graph=True, retain_graph=True, allow_unused=True)
            for direction in directions
        ]
        total, place = output.new_zeros(()), 0
        for name, layer in self.layers.items():
            outputs = record.outputs[name]
            here = slice(place, place + len(outputs))
            place += len(outputs)
            inputs = torch.cat([input_rows(layer, a) for a in record.inputs[name]])
            slopes = [slope for found in passes for slope in found[here] if slope is not None]
            if not slopes:
                self.last[name] = 0.0
                continue
            gradients = torch.cat([output_rows(layer, slope) for slope in slopes])
            radius = _squared_norm(inputs) / len(output) * _squared_norm(gradients) / len(inputs)
            self.last[name] = float(radius.detach())
            total = total + radius
        record.clear()
        return self.strength * total


def _squared_norm(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, ""]:
    """Largest eigenvalue of X^T X, with its derivative."""
    with torch.no_grad():
        # An error of v changes v^T A v to second order only, so float32 will do; half precision has no eigenvectors.
        held = matrix.float() if matrix.dtype in (torch.float16, torch.bfloat16) else matrix.detach()
        if held.shape[0] < held.shape[1]:
            left = torch.linalg.eigh(held @ held.T)[1][:, -1]
            vector = held.T @ left
        else:
            vector = torch.linalg.eigh(held.T @ held)[1][:, -1]
        norm = vector.norm()
        vector = (vector / norm if float(norm) > 0 else vector).to(matrix)
    return (matrix @ vector).square().sum()
