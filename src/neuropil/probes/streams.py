"""Run a model over a stream of batches once, and reduce what passes some sites to statistics of bounded size.

    seen = stream(model, loader, {Site("*.mlp.down", io="in"): Moments()}, inputs=lambda batch: batch["input_ids"])
    seen[site].result().kurtosis

What is accumulated is centred and in float64. Reducers of parts of a stream, in other processes perhaps, `merge`.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from neuropil.learning.stages import feed
from neuropil.probes.reducers.activity import Activity, ActivityCounter
from neuropil.probes.reducers.base import Reducer
from neuropil.probes.reducers.correlation import Correlation, CrossCorrelation
from neuropil.probes.reducers.histogram import Counts, Histogram
from neuropil.probes.reducers.moments import Moments, MomentStatistics
from neuropil.probes.reducers.quantile import Quantile, Quantiles
from neuropil.probes.reducers.record import Record, Recorded
from neuropil.probes.reducers.topk import Exemplars, TopK
from neuropil.probes.sites import Context, Site, Where, expand
from neuropil.probes.taps import tap

__all__ = [
    "Activity",
    "ActivityCounter",
    "Correlation",
    "Counts",
    "CrossCorrelation",
    "Exemplars",
    "Histogram",
    "MomentStatistics",
    "Moments",
    "Quantile",
    "Quantiles",
    "Record",
    "Recorded",
    "Reducer",
    "TopK",
    "stream",
]

Place = Site | tuple[Site, ...]


def stream(
    model: nn.Module,
    data: Iterable[Any],
    reducers: Mapping[Any, Reducer],
    *,
    inputs: Callable[[Any], Any] | None = None,
    context: Callable[[Any], Mapping[str, Any]] | None = None,
) -> dict[Any, Reducer]:
    """Feed reducers with what passes some sites while the model runs over the data, without gradients, in eval mode.

    Args:
        model: any module; it is left in the mode in which it came.
        data: batches, read once.
        reducers: by site, name of a module or pattern of names. A reducer at a pattern of several sites is copied for
            each. One that takes several tensors stands at a tuple of as many single sites: {(a, b): ...}.
        inputs: makes of a batch what the model is called with: a tensor, a tuple of arguments, or a mapping of named
            ones. None takes the batch itself: of a loader of (x, y), pass lambda batch: batch[0].
        context: makes of a batch what reducers are told beside the tensor: `mask`, true for rows that count (padding
            left out), `tokens`, `positions`.

    Returns:
        The reducers by site, or tuple of sites, as resolved: go on with more data, merge them, or ask for results.

    Raises:
        ValueError: if there are no batches, a site is in no module, never met or named twice, one reducer object stands
            at two places, a tuple's length is not what its reducer takes, or a site of a tuple is met more than once in
            a pass; and what the reducers raise.
    """
    placed = _placed(model, reducers)
    told: dict[str, Any] = {}
    held: dict[Site, tuple[Tensor, Context]] = {}
    alone = {place: reducer for place, reducer in placed.items() if isinstance(place, Site)}
    together = {place: reducer for place, reducer in placed.items() if isinstance(place, tuple)}
    members = {site for place in together for site in place}

    def visit(tensor: Tensor, where: Context) -> None:
        if where.site in members:
            if where.site in held:
                raise ValueError(f"{where.site} is met more than once in a pass: it cannot stand in a tuple of sites.")
            held[where.site] = (tensor, where)
        if where.site in alone:
            alone[where.site].update(tensor, grid=where.grid, **told)

    batches = 0
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), tap(model, dict.fromkeys([*alone, *(members - alone.keys())], visit)):
            for batch in data:
                batches += 1
                told.clear()
                told.update(context(batch) if context is not None else {})
                feed(model, batch if inputs is None else inputs(batch))
                for place, reducer in together.items():
                    _update(reducer, place, held, told)
                held.clear()
            if not batches:
                raise ValueError("data has no batches.")
    finally:
        for module, mode in modes:
            module.training = mode
    return placed


def _update(reducer: Reducer, place: tuple[Site, ...], held: dict[Site, tuple[Tensor, Context]], told: dict[str, Any]):
    absent = [str(site) for site in place if site not in held]
    if absent:
        raise ValueError(f"Not met in this batch: {', '.join(absent)}.")
    reducer.update(*(held[site][0] for site in place), grid=held[place[0]][1].grid, **told)


def _placed(model: nn.Module, reducers: Mapping[Any, Reducer]) -> dict[Any, Reducer]:
    if len({id(reducer) for reducer in reducers.values()}) < len(reducers):
        raise ValueError("One reducer stands at two places and would mix them: make one for each.")
    placed: dict[Any, Reducer] = {}
    for where, reducer in reducers.items():
        if (len(where) if isinstance(where, tuple) else 1) != reducer.arity:
            raise ValueError(f"{type(reducer).__name__} takes {reducer.arity} sites, got {where!r}.")
        found: list[Place] = [_each(model, where)] if isinstance(where, tuple) else list(*expand(model, [where]))
        for place in found:
            if place in placed:
                raise ValueError(f"{place} is named twice.")
            placed[place] = reducer if len(found) == 1 else deepcopy(reducer)
    return placed


def _each(model: nn.Module, places: tuple[Where, ...]) -> tuple[Site, ...]:
    found = expand(model, places)
    for where, matches in zip(places, found, strict=True):
        if len(matches) != 1:
            raise ValueError(f"{where} stands for {len(matches)} sites, in a tuple for one each.")
    return tuple(matches[0] for matches in found)
