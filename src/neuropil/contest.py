"""What `neuropil compare` does: rules by name, on a network and data that are named or the user's own.

--net mlp:128-64          a perceptron of these hidden layers (ReLU)
--net conv                a small convolution net with batch norm, for images
--net package.module:make a function of the user: called with `generator` and `data` where it takes them, returns a
module
--data digits             a data set by name
--data package.module:set a function of the user: called with `seed` where it takes it, returns a Dataset
"""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from neuropil.atlas.files import replacing
from neuropil.atlas.folders import new_folder
from neuropil.atlas.report.numbers import aligned, interval, number
from neuropil.data import Dataset, load
from neuropil.learning import compare, mlp, tune_rates
from neuropil.learning.league import league, plot_league
from neuropil.learning.networks import small_conv
from neuropil.learning.rules import contender, find_rule
from neuropil.learning.training import made
from neuropil.parallel import Track

__all__ = ["Contest", "own_object", "printed_league", "run_contest"]

HIDDEN = (64,)


@dataclass(frozen=True)
class Contest:
    """A comparison between rules.

    Attributes:
        rules: names.
        net: as in the module's docstring.
        data: as in the module's docstring.
        points: where the net is cut, names separated by commas, or "blocks"; empty for the default.
        epochs: passes over the training set.
        batch_size: samples an update.
        seeds: how many, from 0.
        rates: one rate for all rules, or several from which every rule gets its own on validation parts.
        train: size of the training part; None for all.
        test: size of the test part; None for all.
        align: training samples at which the angle to the gradient is measured.
        flat: whether samples are vectors; for "mlp" they always are.
    """

    rules: Sequence[str]
    net: str = "mlp:64"
    data: str = "digits"
    points: str = ""
    epochs: int = 10
    batch_size: int = 100
    seeds: int = 3
    rates: Sequence[float] = (1e-3, 3e-3, 1e-2)
    train: int | None = None
    test: int | None = None
    align: int = 256
    flat: bool = False


def run_contest(
    contest: Contest, output: Path, *, jobs: int = 1, track: Track | None = None
) -> tuple[pd.DataFrame, Path]:
    """Train every rule on every seed, and write table.csv, league.json and league.svg.

    Args:
        contest: what is compared.
        output: folder of all runs; a new one is made in it.
        jobs: processes.
        track: shows progress.

    Returns:
        The league and the folder.

    Raises:
        ValueError: if a name is unknown, or a rule cannot train the net (by name, before anything is trained), or
            diverges at every rate.
    """
    if not contest.rules:
        raise ValueError("Name the rules to compare.")
    if not contest.rates:
        raise ValueError("rates is empty: name at least one.")
    if len({find_rule(name).name for name in contest.rules}) < len(contest.rules):
        raise ValueError(f"A rule is named twice: {', '.join(contest.rules)}.")
    prepared = partial(_data, contest)
    first = prepared(0)
    net, hidden = _net(contest.net, first)
    points: Any = contest.points.split(",") if contest.points not in ("", "blocks") else contest.points or None
    rules = {
        name: contender(name, first, net, hidden=hidden, points=points, rate=contest.rates[0]) for name in contest.rules
    }
    _refuse_before_training(rules, first, contest.batch_size)
    spread = {"epochs": contest.epochs, "batch_size": contest.batch_size, "jobs": jobs, "track": track}
    if len(contest.rates) > 1:
        try:
            rules = tune_rates(rules, first, contest.rates, seeds=(0, 1), **spread)
        except FloatingPointError as error:
            raise ValueError(f"{error} Try smaller ones.") from error
    table = compare(rules, prepared, seeds=contest.seeds, align=contest.align, costs=True, keep_diverged=True, **spread)
    folder = new_folder(output, "compare")
    summary = league(table)
    with replacing(folder / "table.csv") as file:
        table.to_csv(file, index=False)
    with replacing(folder / "league.json") as file:
        summary.to_json(file, orient="records", indent=1)
    with replacing(folder / "league.svg") as file:
        plot_league(table).savefig(file, format="svg")
    return summary, folder


def printed_league(table: pd.DataFrame) -> list[list[str]]:
    """Rows of a league as a terminal shows them: rule, accuracy with its interval, angle, ms, MB, rate."""
    columns = [
        aligned([round(value, 4) if math.isfinite(value) else None for value in table[name].tolist()])
        for name in ("angle", "milliseconds", "megabytes")
    ]
    rows = []
    for index, (rule, mean, low, high, rate, seeds) in enumerate(
        table[["rule", "accuracy", "low", "high", "rate", "seeds"]].to_numpy().tolist()
    ):
        ends = max(low, 0.0), min(high, 100.0)  # a t interval knows of no bounds, an accuracy does
        text, *printed = aligned([mean, *ends], distinct=True)
        accuracy = f"{text} {interval(ends, printed)}" if seeds > 1 else text
        rows.append([rule, accuracy, *(column[index] for column in columns), number(rate)])
    return rows


def own_object(name: str) -> Callable[..., Any]:
    """A function of the user, by "module:function"; modules of the working directory are found.

    Raises:
        ValueError: if there is no such module or function.
    """
    module, colon, function = name.partition(":")
    if not (module and colon and function):
        raise ValueError(f"{name!r} is no module:function.")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{name!r}: {error}.") from error
    if not callable(found):
        raise ValueError(f"{module} has no function {function!r}.")
    return found


def _taken(function: Callable[..., Any], **offers: Any) -> Any:
    """Call a function with those of the offers that it takes."""
    parameters = inspect.signature(function).parameters
    return function(**{name: value for name, value in offers.items() if name in parameters})


def _data(contest: Contest, seed: int) -> Dataset:
    data = _taken(own_object(contest.data), seed=seed) if ":" in contest.data else load(contest.data, seed=seed)
    if not isinstance(data, Dataset):
        raise ValueError(f"{contest.data} returns a {type(data).__name__}, not a neuropil.data.Dataset.")
    data = data.subset(contest.train, contest.test, seed=seed)
    return data.flat() if contest.flat or contest.net.startswith("mlp") else data


def _net(name: str, data: Dataset) -> tuple[Callable[[torch.Generator], nn.Module], Sequence[int] | None]:
    """The net's maker, and its hidden sizes where circuits can have the same."""
    kind, _, sizes = name.partition(":")
    if kind == "mlp":
        try:
            hidden = tuple(int(size) for size in sizes.split("-")) if sizes else HIDDEN
        except ValueError:
            raise ValueError(f"{name!r}: the hidden sizes are whole numbers, as in mlp:128-64.") from None
        return lambda generator: mlp(data.features, *hidden, data.classes, generator=generator), hidden
    if name == "conv":
        return lambda generator: small_conv(data.shape, data.classes, generator=generator), None
    own = own_object(name)

    def make(generator: torch.Generator) -> nn.Module:
        with torch.random.fork_rng(devices=[]):  # user code draws from the global state: a seed for it, and back
            torch.manual_seed(generator.initial_seed())
            made_net = _taken(own, generator=generator, data=data)
        if not isinstance(made_net, nn.Module):
            raise ValueError(f"{name} returns a {type(made_net).__name__}, not a torch.nn.Module.")
        return made_net

    return make, None


def _refuse_before_training(rules: dict[str, Any], data: Dataset, batch_size: int) -> None:
    """Make every rule and show it one batch, so that what it cannot train is said before anything is trained."""
    x, y = data.x_train[:batch_size], data.y_train[:batch_size]
    for name, arm in rules.items():
        net = arm.net(torch.Generator().manual_seed(0)).to(x)
        try:
            made(arm.rule, net, nn.functional.cross_entropy, 0).backward(x, y)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {error}") from error
