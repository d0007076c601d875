"""Train the heads of dynamic layers alone, and set their thresholds so that they spend what was promised.

A head cut at a probability of one half does not fire as often as its target: it favours the more frequent answer. So
each threshold c is set to the quantile of the logits that leaves the target's density, layer by layer, with the masks
of earlier layers applied: they change what a later head sees.

Source: Elkerdawy et al. 2022, arXiv 2110.08232, for the training; the calibration is added here.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from neuropil.neurons.ranges import require_positive
from neuropil.structure.criterion import Batches, as_batches, call, undisturbed
from neuropil.structure.dynamic.channels import DynamicChannels, Seen, dynamic_layers, using

__all__ = ["calibrate_heads", "gathered", "quantile_for", "train_heads"]


def gathered(
    net: nn.Module,
    batches: Batches,
    take: Callable[[Seen], Tensor | None],
    reader: str,
    names: Iterable[str] | None = None,
) -> dict[str, Tensor]:
    """Run a network in evaluation mode, as its dynamic layers are set, and lay what they saw end to end.

    Args:
        net: with dynamic layers; left as it was.
        batches: of (x, y).
        take: which part of what was seen.
        reader: who asks, for messages.
        names: of the dynamic layers; None: all.

    Returns:
        By name of the layer, in the order they ran, (samples, ...).

    Raises:
        ValueError: if there are no batches.
    """
    layers = dynamic_layers(net)
    chosen = set(layers) if names is None else set(names)
    parts: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, _inputs: Any, _output: Any) -> None:
            taken = take(module.seen) if isinstance(module, DynamicChannels) else None
            if taken is not None:
                parts.setdefault(name, []).append(taken.detach())

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items() if name in chosen]
    try:
        with undisturbed(net, evaluate=True), torch.no_grad():
            for x, _ in as_batches(batches):
                call(net, x)
    finally:
        for handle in handles:
            handle.remove()
    if not parts:
        raise ValueError(f"{reader} needs batches of (x, y): there were none.")
    return {name: torch.cat(part) for name, part in parts.items()}


def train_heads(
    net: nn.Module,
    batches: Batches,
    *,
    epochs: int = 6,
    lr: float = 1e-2,
    batch_size: int = 64,
    generator: torch.Generator | None = None,
) -> pd.DataFrame:
    """Train the heads alone, by Adam, on the unmasked network: the first stage of the decoupled training.

    The network does not move meanwhile, so it is run once: the heads' inputs and targets are kept, which takes a number
    and a bit for every sample and channel.

    Args:
        net: with dynamic layers; only their heads are changed.
        batches: of (x, y); y is not looked at.
        epochs: over all samples.
        lr: learning rate.
        batch_size: of the heads' training.
        generator: source of the order of samples.

    Returns:
        A row an epoch and layer: epoch, layer, loss (mean over the epoch), hits (share of the target met, after it).

    Raises:
        ValueError: if there are no batches, or a number is not positive.
    """
    require_positive(epochs=epochs, lr=lr, batch_size=batch_size)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    with using(net, "record"):
        inputs = gathered(net, batches, lambda seen: seen.pooled, "train_heads")
        targets = gathered(net, batches, lambda seen: seen.target, "train_heads")
    rows: list[dict[str, Any]] = []
    for name, layer in dynamic_layers(net).items():
        if name in inputs:
            losses = _fit(layer.predictor, inputs[name], targets[name], epochs, lr, batch_size, generator)
            rows += [{"epoch": epoch, "layer": name, "loss": loss, "hits": hits} for epoch, loss, hits in losses]
    return pd.DataFrame(rows)


def _fit(
    head: nn.Module,
    inputs: Float[Tensor, "samples inputs"],
    targets: Bool[Tensor, "samples channels"],
    epochs: int,
    lr: float,
    batch_size: int,
    generator: torch.Generator,
) -> list[tuple[int, float, float]]:
    optimizer = torch.optim.Adam(head.parameters(), lr)
    rows = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for chosen in torch.randperm(len(inputs), generator=generator).to(inputs.device).split(batch_size):
            with torch.enable_grad():
                loss = binary_cross_entropy_with_logits(head(inputs[chosen]), targets[chosen].to(inputs))
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        with torch.no_grad():
            hits = float(((head(inputs) > 0) == targets).double().mean())
        rows.append((epoch, total / len(inputs), hits))
    optimizer.zero_grad()
    return rows


def quantile_for(logits: Float[Tensor, "samples channels"], density: float) -> float:
    """Give the threshold above which a share of all logits lies, halfway between the two at its ends."""
    ordered, _ = logits.detach().double().flatten().sort(descending=True)
    kept = round(density * len(ordered))
    if kept >= len(ordered):
        return -float("inf")
    if kept == 0:
        return float(ordered[0])
    return float((ordered[kept - 1] + ordered[kept]) / 2)


def calibrate_heads(net: nn.Module, batches: Batches, densities: Mapping[str, float] | None = None) -> dict[str, float]:
    """Set the thresholds of the heads, layer by layer, so that they fire as often as wanted.

    Args:
        net: with dynamic layers whose heads are trained; only their thresholds are changed.
        batches: of (x, y), a few; y is not looked at.
        densities: share of the channels by name of the dynamic layer; None: those of the targets on these batches, in
            the network without masks, which is what `estimate_macs` counts with.

    Returns:
        The thresholds by layer.

    Raises:
        ValueError: if there are no batches, or a density is not in (0, 1].
        KeyError: if a layer has no density.
    """
    given = list(as_batches(batches))
    layers = dynamic_layers(net)
    with using(net, "record"):
        targets = gathered(net, given, lambda seen: seen.target, "calibrate_heads")
    wanted = {name: float(target.double().mean()) for name, target in targets.items()}
    for name in wanted if densities is not None else ():
        if name not in (densities or {}):
            raise KeyError(f"densities has no entry for the dynamic layer {name!r}.")
        wanted[name] = (densities or {})[name]
        if not 0 < wanted[name] <= 1:
            raise ValueError(f"The density of {name} must be in (0, 1], got {wanted[name]}.")
    found: dict[str, float] = {}
    with using(net, "record"):
        for name in targets:  # in the order they ran
            logits = gathered(net, given, lambda seen: seen.logits, "calibrate_heads", [name])[name]
            found[name] = quantile_for(logits, wanted[name])
            layers[name].threshold.fill_(found[name])
            layers[name].mode = "infer"
    return found
