"""Searches that train most architectures only a little: successive halving, Hyperband, ASHA.

    successive halving   rung i:  n_i = max(1, floor(n eta^-i)) architectures for r_i = r eta^i epochs; the best go on
    Hyperband            s_max = floor(log_eta R);  bracket s = s_max .. 0:  n = ceil((s_max + 1) eta^s / (s + 1)),
                         r = R eta^-s
    ASHA                 one promotion or one new architecture at a time, no rung ever waits

`evaluate(architecture, epochs)` gives the value after so many epochs. An architecture that goes on is trained from the
start again unless the user's function keeps its state: the cost counts full epochs, or with `resume` only the new ones.

Source: Li et al., JMLR 18 (2018), algorithm 1 (Hyperband); Li et al., MLSys 2020, algorithm 2 (ASHA); White et al.
2023, section 5.3.
"""

import math
from collections.abc import Callable

import torch

from neuropil.structure.search.searching import Ledger, SearchResult, summary
from neuropil.structure.search.spaces import Architecture, Space

__all__ = ["EvaluateFor", "asha", "hyperband", "hyperband_brackets", "successive_halving"]

EvaluateFor = Callable[[Architecture, int], float]
"""The value of an architecture after some epochs; bigger is better."""

REDRAWS = 1000  # for an architecture that the bracket does not have yet


def successive_halving(
    space: Space,
    evaluate: EvaluateFor,
    max_epochs: int,
    *,
    configurations: int,
    min_epochs: int = 1,
    eta: int = 3,
    resume: bool = False,
    seed: int = 0,
) -> SearchResult:
    """Train many architectures a little, the best 1/eta of them eta times longer, and so on.

    Args:
        space: where.
        evaluate: value after some epochs, bigger is better.
        max_epochs: no evaluation is longer.
        configurations: in the first rung, drawn at random, different where the space has as many.
        min_epochs: of the first rung.
        eta: factor between rungs.
        resume: whether a longer evaluation costs only the epochs that are new.
        seed: of the draws.

    Returns:
        The trace, with the columns "epochs" and "cost", and the best of the last rung.

    Raises:
        ValueError: if a number is out of range, or `evaluate` returns NaN.
    """
    _check(max_epochs, eta)
    if not 1 <= min_epochs <= max_epochs or configurations < 1:
        raise ValueError(
            f"1 <= min_epochs <= max_epochs and configurations >= 1 wanted, got {min_epochs}, {max_epochs} and "
            f"{configurations}."
        )
    trainings = Trainings(space, evaluate, resume)
    generator = torch.Generator().manual_seed(seed)
    _halve(trainings, _distinct(space, configurations, generator), min_epochs, max_epochs, eta)
    return summary(trainings.ledger)


def hyperband_brackets(max_epochs: int, eta: int = 3) -> list[tuple[int, int]]:
    """Architectures and first epochs of every bracket of Hyperband, the widest first.

    Where R eta^-s is no integer it is rounded down, so that no bracket costs more.

    Raises:
        ValueError: if a number is out of range.
    """
    _check(max_epochs, eta)
    widest = 0
    while eta ** (widest + 1) <= max_epochs:  # the logarithm may be off by a rounding
        widest += 1
    return [(math.ceil((widest + 1) * eta**s / (s + 1)), max(1, max_epochs // eta**s)) for s in range(widest, -1, -1)]


def hyperband(
    space: Space,
    evaluate: EvaluateFor,
    max_epochs: int,
    eta: int = 3,
    *,
    rounds: int = 1,
    resume: bool = False,
    seed: int = 0,
) -> SearchResult:
    """Successive halving from several first budgets, because nobody knows how early the first look may be.

    Args:
        space: where.
        evaluate: value after some epochs, bigger is better.
        max_epochs: R, of the longest evaluation.
        eta: factor between rungs.
        rounds: how often all brackets are run.
        resume: whether a longer evaluation costs only the epochs that are new.
        seed: of the draws.

    Returns:
        The trace, with the columns "epochs" and "cost", and the best of the longest evaluations.

    Raises:
        ValueError: if a number is out of range, or `evaluate` returns NaN.
    """
    brackets = hyperband_brackets(max_epochs, eta)
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    trainings = Trainings(space, evaluate, resume)
    generator = torch.Generator().manual_seed(seed)
    for count, epochs in brackets * rounds:
        _halve(trainings, _distinct(space, count, generator), epochs, max_epochs, eta)
    return summary(trainings.ledger)


def asha(
    space: Space,
    evaluate: EvaluateFor,
    max_epochs: int,
    budget: int,
    eta: int = 3,
    *,
    min_epochs: int = 1,
    resume: bool = False,
    seed: int = 0,
) -> SearchResult:
    """Asynchronous successive halving, one evaluation at a time.

    Every time a worker is free, the best architecture that is among the top 1/eta of a rung and was not promoted is
    trained in the next rung, the highest rung first; where there is none, a new one starts at the bottom.

    Args:
        space: where.
        evaluate: value after some epochs, bigger is better.
        max_epochs: of the longest evaluation.
        budget: evaluations of any length.
        eta: factor between rungs.
        min_epochs: of the lowest rung.
        resume: whether a longer evaluation costs only the epochs that are new.
        seed: of the draws.

    Returns:
        The trace, with the columns "epochs" and "cost", and the best of the longest evaluations.

    Raises:
        ValueError: if a number is out of range, or `evaluate` returns NaN.
    """
    _check(max_epochs, eta)
    if not 1 <= min_epochs <= max_epochs or budget < 1:
        raise ValueError(
            f"1 <= min_epochs <= max_epochs and budget >= 1 wanted, got {min_epochs}, {max_epochs} and {budget}."
        )
    lengths = _lengths(min_epochs, max_epochs, eta)
    rungs: list[dict[Architecture, float]] = [{} for _ in lengths]
    promoted: list[set[Architecture]] = [set() for _ in lengths]
    trainings = Trainings(space, evaluate, resume)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(budget):
        level, chosen = _next_job(rungs, promoted, eta)
        if chosen is None:
            chosen = _unseen(space, rungs[0], generator)
            if chosen is None:
                break
        rungs[level][chosen] = trainings.value(chosen, lengths[level])
    return summary(trainings.ledger, exhausted=len(trainings.ledger.rows) < budget)


class Trainings:
    """Evaluations of some length, with what they cost; an evaluation made before is free."""

    def __init__(self, space: Space, evaluate: EvaluateFor, resume: bool):
        self.ledger = Ledger(space, evaluate)
        self._resume = resume
        self._trained: dict[Architecture, int] = {}
        self._cost = 0

    def value(self, architecture: Architecture, epochs: int) -> float:
        """Value after some epochs; its row in the trace has the length and the cost so far."""
        value, fresh = self.ledger.value(architecture, epochs)
        if fresh:
            canonical = self.ledger.rows[-1]["architecture"]
            done = self._trained.get(canonical, 0)
            self._cost += max(0, epochs - done) if self._resume else epochs
            self._trained[canonical] = max(done, epochs)
            self.ledger.rows[-1] |= {"epochs": epochs, "cost": self._cost}
        return value


def _check(max_epochs: int, eta: int) -> None:
    if max_epochs < 1 or eta < 2:
        raise ValueError(f"max_epochs >= 1 and eta >= 2 wanted, got {max_epochs} and {eta}.")


def _lengths(first: int, longest: int, eta: int) -> list[int]:
    """Epochs of each rung."""
    lengths = [first]
    while lengths[-1] * eta <= longest:
        lengths.append(lengths[-1] * eta)
    return lengths


def _halve(trainings: Trainings, alive: list[Architecture], first: int, longest: int, eta: int) -> None:
    start = len(alive)
    for rung, epochs in enumerate(_lengths(first, longest, eta)):
        # Ties keep their order: the sort is stable.
        alive = alive[: max(1, start // eta**rung)]
        values = {architecture: trainings.value(architecture, epochs) for architecture in alive}
        alive = sorted(values, key=values.__getitem__, reverse=True)


def _distinct(space: Space, count: int, generator: torch.Generator) -> list[Architecture]:
    """Random architectures, different by canonical form; fewer where the space has no more."""
    found: dict[Architecture, None] = {}
    while len(found) < count:
        drawn = _unseen(space, found, generator)
        if drawn is None:
            break
        found[drawn] = None
    return list(found)


def _unseen(space: Space, seen: dict, generator: torch.Generator) -> Architecture | None:
    for _ in range(REDRAWS):
        drawn = space.canonical(space.sample(generator))
        if drawn not in seen:
            return drawn
    return None


def _next_job(
    rungs: list[dict[Architecture, float]], promoted: list[set[Architecture]], eta: int
) -> tuple[int, Architecture | None]:
    """Rung and architecture of the next promotion; the bottom and None where nothing may be promoted."""
    for level in range(len(rungs) - 2, -1, -1):
        rung = rungs[level]
        best = sorted(rung, key=rung.__getitem__, reverse=True)[: len(rung) // eta]
        chosen = next((architecture for architecture in best if architecture not in promoted[level]), None)
        if chosen is not None:
            promoted[level].add(chosen)
            return level + 1, chosen
    return 0, None
