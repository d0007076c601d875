"""Prune before training, and put the pruned net back where signals neither fade nor explode.

Removing weights takes variance out of every layer: a net that was at the edge of chaos (`chaos`) is in its ordered
phase afterwards. One factor per layer on the weights that stay puts it back; how to choose it:

    "moment"  rho^l = sigma_w / sqrt(fan-in * mean(delta (W^l)^2)), the mean over all entries, removed ones counted as
              0: the second moment that the layer had. The paper's rule, exact if masks know nothing of the signal.
    "data"    layer after layer, what the kept weights pass on of one batch, mean (W^l x^l)^2, is brought to what the
              dense net passes on. Masks by w dL/dw keep weights that work together, for which "moment" overshoots.

Either changes nothing in a layer that is followed by a normalisation.

Source: Hayou, Ton, Doucet & Teh, ICLR 2021 (arXiv 2002.08797), section 3.2; the rule by data is the library's own.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.neurons.ranges import require
from neuropil.structure.allocation import Scope, allocate
from neuropil.structure.collapse import critical_sparsity
from neuropil.structure.criteria import SNIP, Criterion, call, undisturbed
from neuropil.structure.masks import Masks, prunable_parameters

__all__ = ["prune_at_init", "rescale_to_data_", "rescale_to_edge_", "signal_power"]

Loss = Callable[[Tensor, Tensor], Tensor]


def prune_at_init(
    net: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    loss_fn: Loss,
    density: float,
    *,
    criterion: Criterion | None = None,
    rescale: Literal["data", "moment"] | None = "data",
    scope: Scope = "global",
    on_collapse: Literal["raise", "warn"] = "raise",
) -> Masks:
    """Score the weights at their start, set all but the best to 0 and rescale what is left, in place.

    Training then needs `attach(masks, net, optimizer)` to keep the zeros.

    Args:
        net: any module at its random start, at the edge of chaos (`init_edge_of_chaos_`) where it has no normalisation.
        batches: (x, y) to score with; the first is also the one for rescaling by data.
        loss_fn: mean-reduced loss of (net(x), y).
        density: fraction of the weights of `prunable_parameters` that is kept, in (0, 1].
        criterion: gives the scores; None is `SNIP()`.
        rescale: how the kept weights are scaled once, as in the module's docstring; None leaves them.
        scope: of the allocation, as in `allocate`: "global" is one threshold for all layers.
        on_collapse: what to do when a layer keeps no weight, or passes nothing on: raise, or a RuntimeWarning.

    Returns:
        The masks, already applied.

    Raises:
        ValueError: if a layer keeps no weight (naming it, and the critical sparsity), before anything is changed; if
            nothing comes through a layer; if an argument is out of range.
    """
    require("density", density, 0.0, 1.0, ends=(False, True))
    if rescale not in ("data", "moment", None) or on_collapse not in ("raise", "warn"):
        raise ValueError(
            f'rescale is "data", "moment" or None, on_collapse "raise" or "warn"; got {rescale!r} and {on_collapse!r}.'
        )
    batches = list(batches)
    if not batches:
        raise ValueError("batches is empty: scores need at least one.")
    params = prunable_parameters(net)
    scores = (SNIP() if criterion is None else criterion)(net, batches, loss_fn, params)
    masks = allocate(scores, density, scope)
    if empty := [name for name, mask in masks.items() if not bool(mask.any())]:
        text = f"{', '.join(empty)} would keep no weight at density {density:g}"
        if scope == "global":
            text += f"; the first layer is empty from sparsity {critical_sparsity(scores):.4f} on"
        if on_collapse == "raise":
            raise ValueError(f"{text}. Keep more, or allocate by layer.")
        warnings.warn(f"{text}.", RuntimeWarning, stacklevel=2)
    strict = on_collapse == "raise"
    if rescale == "data":
        target = signal_power(net, batches[0][0], params)
        masks.apply_(net)
        rescale_to_data_(net, target, batches[0][0], strict=strict)
    elif rescale == "moment":
        sigmas = {name: _sigma(net.get_parameter(name)) for name in params}
        masks.apply_(net)
        rescale_to_edge_(net, masks, sigmas, strict=strict)
    else:
        masks.apply_(net)
    return masks


@torch.no_grad()
def rescale_to_edge_(
    net: nn.Module, masks: Mapping[str, Tensor], sigma_w: float | Mapping[str, float], *, strict: bool = True
) -> dict[str, float]:
    """Scale every masked weight once, so that fan-in times its mean square, zeros included, is sigma_w^2. In place.

    Args:
        net: any module; entries outside the masks become 0.
        masks: True where a weight stays, by name of the parameter.
        sigma_w: of all layers, e.g. from `edge_of_chaos`, or by name.
        strict: whether a layer without a weight other than 0 is an error; if not, its factor is 1.

    Returns:
        rho by name of the parameter.

    Raises:
        ValueError: if a mask has another shape than its parameter, sigma_w is not positive, or a layer has nothing to
            scale.
        AttributeError: if there is no such parameter.

    Source: Hayou et al., ICLR 2021, section 3.2.
    """
    factors = {}
    for name, mask in masks.items():
        weight = net.get_parameter(name)
        if mask.shape != weight.shape:
            raise ValueError(f"masks[{name!r}] has shape {tuple(mask.shape)}, the parameter {tuple(weight.shape)}.")
        target = sigma_w[name] if isinstance(sigma_w, Mapping) else sigma_w
        require(f"sigma_w of {name}", target, 0.0, math.inf, ends=(False, False))
        weight.mul_(mask)
        factors[name] = _factor(name, target, _sigma(weight), "no weight but 0", strict)
        weight.mul_(factors[name])
    return factors


@torch.no_grad()
def rescale_to_data_(net: nn.Module, target: Mapping[str, float], x: Any, *, strict: bool = True) -> dict[str, float]:
    """Scale weights so that each layer passes on as much of a batch as told, from the first layer called to the last.

    Args:
        net: any module. Its mode stays; dropout is off meanwhile, and running statistics are put back.
        target: mean square of W x by name of the weight, as `signal_power` measured it on the dense net. Each is the
            weight of a module that is called; one called several times is scaled at its first call.
        x: the batch, what the net is called with.
        strict: whether a layer that passes nothing on is an error; if not, its factor is 1.

    Returns:
        The factor by name of the parameter.

    Raises:
        ValueError: if a layer passes nothing on or is never called.
    """
    factors: dict[str, float] = {}

    def scale(name: str, layer: nn.Module, passed: Tensor, output: Tensor) -> Tensor | None:
        if name in factors:
            return None
        factors[name] = _factor(name, math.sqrt(target[name]), _root_mean_square(passed), "nothing to pass on", strict)
        layer.get_parameter("weight").mul_(factors[name])
        return output + (factors[name] - 1) * passed

    _visit(net, x, list(target), scale)
    return {name: factors[name] for name in target}


@torch.no_grad()
def signal_power(net: nn.Module, x: Any, names: Sequence[str]) -> dict[str, float]:
    """Mean square of what each layer's weights make of a batch: W x, without the bias.

    Args:
        net: any module. Its mode stays; dropout is off meanwhile, and running statistics are put back.
        x: the batch, what the net is called with.
        names: of weights, each of a module that is called; the first call counts.

    Returns:
        By name; squared units of the pre-activation.

    Raises:
        ValueError: if a name is no module's "weight", or its module is never called.
    """
    power: dict[str, float] = {}

    def measure(name: str, layer: nn.Module, passed: Tensor, output: Tensor) -> None:
        power.setdefault(name, _root_mean_square(passed) ** 2)

    _visit(net, x, names, measure)
    return {name: power[name] for name in names}


def _visit(
    net: nn.Module,
    x: Any,
    names: Sequence[str],
    see: Callable[[str, nn.Module, Tensor, Tensor], Tensor | None],
) -> None:
    """Call the net and let `see` look at (and replace) the output of each named weight's module."""
    handles, called = [], set[str]()

    def hook(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def look(module: nn.Module, _: Any, output: Tensor) -> Tensor | None:
            called.add(name)
            return see(name, module, output - _bias(module, output), output)

        return look

    try:
        for name in names:
            module, _, last = name.rpartition(".")
            if last != "weight":
                raise ValueError(f"{name} is no layer's weight: its signal cannot be measured. Use rescale='moment'.")
            handles.append(net.get_submodule(module).register_forward_hook(hook(name)))
        with undisturbed(net):
            call(net, x)
    finally:
        for handle in handles:
            handle.remove()
    if missed := [name for name in names if name not in called]:
        raise ValueError(f"{', '.join(missed)}: the layer is never called as a module. Use rescale='moment'.")


def _bias(module: nn.Module, output: Tensor) -> Tensor:
    """The bias as it was added to the output: along the last axis, or along the channels of a convolution."""
    bias = getattr(module, "bias", None)
    if not isinstance(bias, Tensor):
        return output.new_zeros(())
    axes = max(module.get_parameter("weight").dim() - 2, 0)
    return bias.reshape(-1, *(1,) * axes)


def _sigma(weight: Float[Tensor, "units *fan_in"]) -> float:
    """The sigma_w that a weight has: the square root of fan-in times its mean square."""
    return math.sqrt(weight[0].numel()) * _root_mean_square(weight)


def _root_mean_square(values: Tensor) -> float:
    return math.sqrt(float(values.detach().double().square().mean()))


def _factor(name: str, wanted: float, found: float, lacks: str, strict: bool) -> float:
    if found > 0 and math.isfinite(found):
        return wanted / found
    if strict:
        raise ValueError(f"{name} has {lacks if found == 0 else 'a signal that is not finite'}: no factor restores it.")
    return 1.0
