"""Kronecker factors of the curvature of each layer (K-FAC).

A layer s = W abar has d log p/dW = g abar^T with g = d log p/ds, so its block of the Fisher information is
E[abar abar^T (x) g g^T]; taken as independent (Martens & Grosse 2015),

    F = A (x) G,      A = E[abar abar^T],   G = E[g g^T]

where E is over the data and, for g, over targets of the model. A layer that is used at several positions (a
convolution; a linear layer along a sequence) has A summed over positions and G averaged over them (Grosse & Martens
2016, who take derivatives at different positions as uncorrelated). Factors are running averages. Damped (Martens &
Grosse 2015, section 6.3):

    (A + pi sqrt(damping) I) (x) (G + sqrt(damping)/pi I),      pi^2 = (tr A / dim A) / (tr G / dim G)

and F^-1 applied to a gradient D = dL/dW is G^-1 D A^-1.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd import grad

from neuropil.neurons.ranges import require
from neuropil.probes.curvature.examples import Fisher
from neuropil.probes.curvature.inputs import drawing
from neuropil.probes.curvature.lanczos import top_eigenvalues
from neuropil.probes.curvature.layers import (
    Layer,
    Recorder,
    find_layers,
    from_matrix,
    input_rows,
    output_rows,
    to_matrix,
)
from neuropil.probes.curvature.likelihood import Likelihood, output_gradients, output_roots, sample_targets

__all__ = ["KroneckerFactors", "Units"]

Units = Bool[Tensor, " units"] | Int[Tensor, " kept"]
DENSE = 512  # rows up to which all eigenvalues are quicker than Lanczos


class KroneckerFactors:
    """Running averages of the Kronecker factors of a network's layers.

    A forward pass inside `with` is recorded; `update` then takes the factors from it. Neither touches a gradient, and
    the loss can be passed back as ever::

        with factors:
            logits = net(x)
        factors.update(logits)

    Args:
        net: any module that returns one tensor.
        modules: names of its layers; None: all linear layers and convolutions, and nothing else but normalisations may
            have parameters.
        decay: rho of F <- rho F + (1 - rho) F_batch; the first batch counts in full. None: the mean over all examples.
        fisher: "sampled" draws a target per example from the model, "exact" weighs all (a pass back per output),
            "empirical" takes the data's, and vanishes with the loss.
        likelihood: how the net's output is read as a distribution: "categorical" (logits, for cross-entropy),
            "normal" (for half squared error) or "bernoulli"; not for "empirical".
        damping: what is added, see the head of the module; not negative.
        generator: of the draws; None is seed 0.

    Attributes:
        A: by layer, (columns, columns): inputs times kernel, then 1 where there is a bias.
        G: by layer, (units, units).
        layers: the layers by name.

    Raises:
        ValueError: if a layer is unsupported, by its name; if decay or damping is out of range.

    Source: Martens & Grosse, ICML 2015, eq. 1 and section 6; Grosse & Martens, ICML 2016, section 3.
    """

    def __init__(
        self,
        net: nn.Module,
        modules: Sequence[str] | None = None,
        *,
        decay: float | None = 0.95,
        fisher: Fisher = "sampled",
        likelihood: Likelihood = "categorical",
        damping: float = 1e-2,
        generator: torch.Generator | None = None,
    ):
        if decay is not None:
            require("decay", decay, 0.0, 1.0, ends=(True, False))
        require("damping", damping, 0.0, float("inf"), ends=(True, False))
        if fisher not in ("sampled", "empirical", "exact"):
            raise ValueError(f'fisher must be "sampled", "empirical" or "exact", got {fisher!r}.')
        self.layers = find_layers(net, modules)
        self.decay = decay
        self.fisher: Fisher = fisher
        self.likelihood: Likelihood = likelihood
        self.damping = damping
        self.A: dict[str, Tensor] = {}
        self.G: dict[str, Tensor] = {}
        self._generator = drawing(generator)
        self._recorder = Recorder(net, self.layers)
        self._seen = 0  # examples

    def __enter__(self) -> "KroneckerFactors":
        self._recorder.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._recorder.__exit__(*error)

    def update(self, output: Tensor, *, examples: int | None = None) -> None:
        """Take the factors from the last forward pass inside `with`.

        Args:
            output: what the net returned, (examples, units); for the empirical Fisher the loss, a mean over examples.
            examples: in the batch; None: the length of the output's first axis, or for a loss that of the net's input.

        Raises:
            ValueError: if a loss is given where an output is needed or the reverse.
            RuntimeError: if a layer did not run.
            FloatingPointError: if a factor is not finite.
        """
        scalar = output.dim() == 0
        if scalar != (self.fisher == "empirical"):
            wanted = "the mean loss, one number" if self.fisher == "empirical" else "the output, (examples, units)"
            raise ValueError(f'fisher "{self.fisher}" needs {wanted}, got shape {tuple(output.shape)}.')
        record = self._recorder
        record.check()
        count = (record.examples if scalar else len(output)) if examples is None else examples
        if count < 1:
            raise ValueError(f"examples must be at least 1, got {count}.")
        new_g = self._gradient_factors(output, count)
        for name, layer in self.layers.items():
            rows = torch.cat([input_rows(layer, a.detach()) for a in record.inputs[name]])
            new_a = rows.T @ rows / count
            for factors, new in ((self.A, new_a), (self.G, new_g[name])):
                if not bool(torch.isfinite(new).all()):
                    raise FloatingPointError(f"A Kronecker factor of {name or 'net'} is not finite.")
                old = factors.get(name)
                weight = self._seen / (self._seen + count) if self.decay is None else self.decay
                factors[name] = new if old is None else weight * old + (1 - weight) * new
        self._seen += count
        record.clear()

    def _directions(self, output: Tensor, count: int) -> Iterator[Tensor]:
        """Gradients by the net's output of what each example adds, one for each pass back."""
        if self.fisher == "empirical":
            yield torch.full_like(output, count)  # the loss is a mean: each example's own gradient is wanted
        elif self.fisher == "exact":
            yield from output_roots(output.detach(), self.likelihood)
        else:
            target = sample_targets(output, self.likelihood, self._generator)
            yield output_gradients(output.detach(), target, self.likelihood)

    def _gradient_factors(self, output: Tensor, count: int) -> dict[str, Tensor]:
        outputs = self._recorder.outputs
        flat = [s for name in self.layers for s in outputs[name]]
        found: dict[str, Tensor] = {}
        for direction in self._directions(output, count):
            slopes = iter(grad(output, flat, direction, retain_graph=True, allow_unused=True))
            for name, layer in self.layers.items():
                pieces = [(next(slopes), s) for s in outputs[name]]
                filled = [torch.zeros_like(s) if slope is None else slope for slope, s in pieces]
                rows = torch.cat([output_rows(layer, slope) for slope in filled])
                factor = rows.T @ rows / len(rows)
                found[name] = found[name] + factor if name in found else factor
        return found

    def _check(self, name: str) -> Layer:
        if name not in self.layers:
            raise ValueError(f"name is {name!r}, but there are factors for {sorted(self.layers)}.")
        if name not in self.A:
            raise ValueError(f"There are no factors of {name!r} yet: call update after a forward pass inside `with`.")
        return self.layers[name]

    def damped(self, name: str, damping: float | None = None) -> tuple[Tensor, Tensor]:
        """A and G of a layer with damping added; None: the factors' own."""
        self._check(name)
        amount = self.damping if damping is None else damping
        require("damping", amount, 0.0, float("inf"), ends=(True, False))
        a, g = self.A[name], self.G[name]
        means = float(a.diagonal().mean()), float(g.diagonal().mean())
        pi = (means[0] / means[1]) ** 0.5 if min(means) > 0 else 1.0
        root = amount**0.5
        return a + pi * root * _eye(a), g + root / pi * _eye(g)

    def inverse(self, name: str, damping: float | None = None) -> tuple[Tensor, Tensor]:
        """Inverses of a layer's damped factors.

        Args:
            name: of the layer.
            damping: None: the factors' own.

        Raises:
            ValueError: if the layer is unknown or has no factors yet, or a factor is not positive definite.
        """
        inverses = []
        for kind, matrix in zip("AG", self.damped(name, damping), strict=True):
            # float64: the condition number of a factor is the square of its data's.
            lower, info = torch.linalg.cholesky_ex(matrix.double())
            if int(info):
                raise ValueError(
                    f"Factor {kind} of {name or 'net'} is not positive definite after damping: raise damping "
                    f"(now {self.damping if damping is None else damping:g})."
                )
            inverses.append(torch.cholesky_inverse(lower).to(matrix))
        return inverses[0], inverses[1]

    @torch.no_grad()
    def precondition_(self, damping: float | None = None) -> None:
        """Turn the gradients of the layers into natural gradients, G^-1 D A^-1, in place.

        A layer without a gradient is passed over.

        Raises:
            ValueError: as `inverse`; if a layer has another shape than its factors (see `keep`).
        """
        for name, layer in self.layers.items():
            if layer.weight.grad is None:
                continue
            bias_grad = None if layer.bias is None else layer.bias.grad
            slope = to_matrix(layer, layer.weight.grad, bias_grad)
            inverse_a, inverse_g = self.inverse(name, damping)
            if slope.shape != (len(inverse_g), len(inverse_a)):
                raise ValueError(
                    f"{name or 'net'} has a gradient of shape {tuple(slope.shape)}, its factors are of "
                    f"{len(inverse_g)} units and {len(inverse_a)} columns: call keep after surgery."
                )
            weight, bias = from_matrix(layer, inverse_g @ slope @ inverse_a)
            layer.weight.grad.copy_(weight)
            if bias is not None and bias_grad is not None:
                bias_grad.copy_(bias)

    def spectral_radius(self) -> dict[str, float]:
        """Largest eigenvalue of each layer's block, lambda_max(A) lambda_max(G), undamped.

        The largest of all is that of the whole curvature without its blocks between layers, so mostly too small.
        """
        return {name: _largest(self.A[name]) * _largest(self.G[name]) for name in self.layers if self._check(name)}

    def keep(self, name: str, rows: Units | None = None, cols: Units | None = None) -> None:
        """Cut the factors after surgery on a layer.

        Args:
            name: of the layer.
            rows: which of its units stay, as truth values or indices; None: all.
            cols: which of its inputs stay (channels of a convolution); the bias stays; None: all.

        Raises:
            ValueError: if the layer has no factors, or a selection fits them not.
        """
        layer = self._check(name)
        if rows is not None:
            index = _indices("rows", rows, len(self.G[name]))
            self.G[name] = self.G[name][index][:, index]
        if cols is not None:
            size, bias = len(self.A[name]), layer.bias is not None
            kernel = layer.weight[0, 0].numel()
            index = _indices("cols", cols, (size - bias) // kernel)
            spread = (index[:, None] * kernel + torch.arange(kernel, device=index.device)).flatten()
            if bias:
                spread = torch.cat([spread, spread.new_tensor([size - 1])])
            self.A[name] = self.A[name][spread][:, spread]


def _eye(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)


def _largest(matrix: Float[Tensor, "size size"]) -> float:
    if len(matrix) <= DENSE:
        return float(torch.linalg.eigvalsh(matrix.double())[-1])
    return float(top_eigenvalues(matrix, tol=1e-4).values[0])


def _indices(argument: str, chosen: Tensor, size: int) -> Tensor:
    if chosen.dtype == torch.bool:
        if chosen.shape != (size,):
            raise ValueError(f"{argument} must have {size} truth values, got shape {tuple(chosen.shape)}.")
        return chosen.nonzero()[:, 0]
    if chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < size):
        raise ValueError(f"{argument} must be indices from 0 to {size - 1}, got {chosen.tolist()}.")
    return chosen
