"""How many entries each parameter keeps, and which: scores and a density become masks.

Counts are exact, not thresholds: round(density N) entries are kept in all, and of equal scores the first, in the order
of names and then of positions. Shares between parameters:

    global    the highest scores wherever they are
    layer     the same density everywhere
    erk       d_l proportional to sum(shape_l) / prod(shape_l), at most 1 (Evci et al. 2020): thin layers stay denser
    by name   densities given for every parameter
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from neuropil.neurons.ranges import require
from neuropil.structure.masks import Masks

__all__ = ["Scope", "allocate", "erk_densities", "highest"]

Scope = str | Mapping[str, float]
""" "global", "layer", "erk", or densities by parameter name."""


def allocate(
    scores: Mapping[str, Tensor],
    density: float | None,
    scope: Scope = "global",
    min_per_layer: int = 0,
    within: Mapping[str, Tensor] | None = None,
) -> Masks:
    """Keep the entries of highest score.

    Args:
        scores: bigger is kept, by parameter name, of any shape; infinite scores are ordered as any.
        density: fraction of all entries that is kept, in (0, 1]. With densities by name it may be None; if both are
            given, those are scaled by one factor, up to 1 each, so that the whole has this density.
        scope: how the kept are shared between parameters.
        min_per_layer: of each parameter at least so many are kept, or all where it has fewer.
        within: boolean, by name: only these can be kept. Where they are fewer than asked for, all of them are.

    Returns:
        Masks in the order of the scores, fill 0.

    Raises:
        ValueError: if a score is NaN (naming its parameter), the density lies outside (0, 1] or keeps nothing, the
            scope is unknown or lacks a name, shapes differ, or `min_per_layer` asks for more than the density keeps.
    """
    _check(scores, min_per_layer, within)
    sizes = {name: score.numel() for name, score in scores.items()}
    high = sizes if within is None else {name: int(within[name].count_nonzero()) for name in scores}
    low = {name: min(min_per_layer, high[name]) for name in scores}
    total = _total(sizes, density, scope)
    if total < 1:
        raise ValueError(f"A density of {density} keeps none of {sum(sizes.values())} entries.")
    if sum(low.values()) > total:
        raise ValueError(f"min_per_layer {min_per_layer} keeps {sum(low.values())} entries, the density only {total}.")
    total = min(total, sum(high.values()))
    inside = {name: None if within is None else within[name].to(score.device) for name, score in scores.items()}
    if scope == "global":
        return _everywhere(scores, total, low, inside)
    shares = _shares(scores, density, scope)
    counts = _apportioned({name: shares[name] * sizes[name] for name in scores}, low, high, total)
    return Masks({name: highest(score, counts[name], inside[name]) for name, score in scores.items()})


def erk_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Densities of an Erdos-Renyi graph between units and kernels.

    Args:
        shapes: of the weights, by name.
        density: of all together, in (0, 1].

    Returns:
        d_l = min(1, e * sum(shape_l) / prod(shape_l)), with the one e for which sum(d_l prod(shape_l)) is
        density * sum(prod(shape_l)).

    Raises:
        ValueError: if the density lies outside (0, 1], or a shape has no entries.

    Source: Mocanu et al., Nature Communications 9 (2018); Evci et al., ICML 2020, section 3.
    """
    require("density", density, 0.0, 1.0, ends=(False, True))
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if empty := [name for name, size in sizes.items() if size == 0]:
        raise ValueError(f"{empty[0]!r} has no entries.")
    ideal = {name: float(sum(shape)) for name, shape in shapes.items()}
    zero = dict.fromkeys(sizes, 0)
    filled = _filled(ideal, zero, sizes, density * sum(sizes.values()))
    return {name: filled[name] / sizes[name] for name in sizes}


def _check(scores: Mapping[str, Tensor], min_per_layer: int, within: Mapping[str, Tensor] | None) -> None:
    if not scores:
        raise ValueError("There are no scores: nothing to allocate.")
    if min_per_layer < 0:
        raise ValueError(f"min_per_layer must be at least 0, got {min_per_layer}.")
    for name, score in scores.items():
        if unknown := int(score.isnan().sum()):
            raise ValueError(f"{unknown} of {score.numel()} scores of {name!r} are NaN.")
        if within is not None:
            if name not in within:
                raise ValueError(f"within lacks {name!r}.")
            if within[name].shape != score.shape or within[name].dtype != torch.bool:
                raise ValueError(f"within must be boolean and of shape {(*score.shape,)} for {name!r}.")


def _total(sizes: dict[str, int], density: float | None, scope: Scope) -> int:
    """Number of entries kept in all."""
    if isinstance(scope, Mapping):
        if lacking := [name for name in sizes if name not in scope]:
            raise ValueError(f"scope lacks a density for {lacking[0]!r}.")
        for name in sizes:
            require(f"the density of {name!r}", scope[name], 0.0, 1.0)
    elif scope not in ("global", "layer", "erk"):
        raise ValueError(f'scope must be "global", "layer", "erk" or densities by name, got {scope!r}.')
    if density is not None:
        require("density", density, 0.0, 1.0, ends=(False, True))
        return round(density * sum(sizes.values()))
    if not isinstance(scope, Mapping):
        raise ValueError(f"density must lie in (0, 1], got None; only densities by name can do without, not {scope!r}.")
    return round(sum(scope[name] * size for name, size in sizes.items()))


def _shares(scores: Mapping[str, Tensor], density: float | None, scope: Scope) -> dict[str, float]:
    """Densities by name, up to one common factor."""
    if isinstance(scope, Mapping):
        return {name: float(scope[name]) for name in scores}
    if scope == "erk" and density is not None:
        return erk_densities({name: score.shape for name, score in scores.items()}, density)
    return dict.fromkeys(scores, 1.0)


def _filled(ideal: dict[str, float], low: dict[str, int], high: dict[str, int], total: float) -> dict[str, float]:
    """Numbers min(max(e * ideal, low), high) with the one e for which they sum to `total`, found by bisection."""

    def at(factor: float) -> dict[str, float]:
        return {name: min(max(factor * ideal[name], low[name]), high[name]) for name in ideal}

    small, large = 0.0, 1.0
    while sum(at(large).values()) < total and large < 1e300:
        large *= 2
    for _ in range(200):
        middle = (small + large) / 2
        if middle in (small, large):
            break
        small, large = (middle, large) if sum(at(middle).values()) < total else (small, middle)
    return at(large)


def _apportioned(ideal: dict[str, float], low: dict[str, int], high: dict[str, int], total: int) -> dict[str, int]:
    """Whole numbers near shares of one total: rounded down, then up again where most was lost."""
    filled = _filled(ideal, low, high, total)
    # What bisection leaves below a whole number by rounding is that number.
    counts = {name: math.floor(number + 1e-6) for name, number in filled.items()}
    by_loss = sorted(counts, key=lambda name: counts[name] - filled[name])  # sorted keeps the order of equals
    for name in by_loss:
        if sum(counts.values()) < total and counts[name] < high[name]:
            counts[name] += 1
    return counts


def _everywhere(
    scores: Mapping[str, Tensor], total: int, low: dict[str, int], inside: dict[str, Tensor | None]
) -> Masks:
    """The highest scores of all parameters together, each parameter's share of `low` first."""
    sure = {name: highest(score, low[name], inside[name]) for name, score in scores.items()}
    device = next(iter(scores.values())).device
    dtype = torch.float64 if any(score.dtype == torch.float64 for score in scores.values()) else torch.float32
    line = torch.cat([score.detach().flatten().to(device, dtype) for score in scores.values()])
    free = torch.cat(
        [
            (~sure[name] if within is None else within & ~sure[name]).flatten().to(device)
            for name, within in inside.items()
        ]
    )
    chosen = highest(line, total - sum(low.values()), free)
    masks, start = {}, 0
    for name, score in scores.items():
        part = chosen[start : start + score.numel()].view(score.shape).to(score.device)
        masks[name] = part | sure[name]
        start += score.numel()
    return Masks(masks)


def highest(score: Tensor, count: int, inside: Tensor | None = None) -> Tensor:
    """True at the `count` highest scores, of equals at the first.

    Args:
        score: any shape, none of them NaN.
        count: how many; all of them where there are fewer.
        inside: boolean, of the same shape: only these are chosen; None is all.
    """
    flat = score.detach().flatten()
    places = None if inside is None else inside.flatten().nonzero().squeeze(1)
    candidates = flat if places is None else flat[places]
    kept = torch.zeros(len(candidates), dtype=torch.bool, device=flat.device)
    if count >= len(candidates):
        kept[:] = True
    elif count > 0:
        threshold = candidates.kthvalue(len(candidates) - count + 1).values
        kept = candidates > threshold
        equal = (candidates == threshold).nonzero().squeeze(1)
        kept[equal[: count - int(kept.count_nonzero())]] = True
    if places is None:
        return kept.view(score.shape)
    mask = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    mask[places[kept]] = True
    return mask.view(score.shape)
