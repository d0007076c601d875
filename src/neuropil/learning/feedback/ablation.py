"""A grid of conditions, each at its own rate, with accuracy and alignment side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd
from torch.nn.functional import cross_entropy

from neuropil.learning.compare import Data, compare, tune_rates
from neuropil.learning.feedback.signals import signal_cosines
from neuropil.learning.rule import Loss
from neuropil.learning.training import Contender
from neuropil.parallel import Track

__all__ = ["ablate"]


def ablate(
    conditions: Mapping[str, Contender],
    data: Data,
    *,
    rates: Sequence[float] = (),
    epochs: int = 10,
    tuning_epochs: int | None = None,
    batch_size: int = 100,
    loss_fn: Loss = cross_entropy,
    seeds: Sequence[int] = range(5),
    tuning_seeds: Sequence[int] = (0,),
    samples: int = 256,
    jobs: int = 1,
    track: Track | None = None,
) -> pd.DataFrame:
    """Train every condition on every seed, and look at its teaching signals after every epoch.

    A low rate looks like bad alignment, because alignment grows as learning goes on: with `rates`, each condition gets
    the one that is best for its accuracy on validation parts.

    Args:
        conditions: by name, the net and rule of each.
        data: a data set, or a function that makes it from the seed.
        rates: from which each condition's is chosen; empty keeps the rates of the conditions.
        epochs: passes over the training set.
        tuning_epochs: passes while rates are chosen; None for as many.
        batch_size: samples an update.
        loss_fn: mean-reduced loss of (output, target).
        seeds: of the runs.
        tuning_seeds: of the runs that choose rates; the first one's data are used.
        samples: training samples at which signals are compared.
        jobs: processes.
        track: shows progress.

    Returns:
        The table of `compare`, with the columns of `signal_cosines`: one row a condition (column "rule"), seed and
        epoch.

    Raises:
        ValueError: if a number is out of range, or there are no seeds.
        FloatingPointError: if a run diverges.
    """
    spread = {"batch_size": batch_size, "loss_fn": loss_fn, "jobs": jobs, "track": track}
    arms = dict(conditions)
    if len(rates) == 1:
        arms = {name: replace(arm, rate=rates[0]) for name, arm in arms.items()}
    elif rates:
        if not tuning_seeds:
            raise ValueError("tuning_seeds is empty: rates are chosen on at least one.")
        split = data(tuning_seeds[0]) if callable(data) else data
        tuning = epochs if tuning_epochs is None else tuning_epochs
        arms = tune_rates(arms, split, rates, epochs=tuning, seeds=tuning_seeds, **spread)
    measure = partial(signal_cosines, samples=samples)
    return compare(arms, data, epochs=epochs, seeds=seeds, measure=measure, **spread)
