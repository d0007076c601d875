"""Simple cognitive tasks: two binary stimuli in succession, a delay, a binary answer (after Yang et al. 2019).

A task is one of the 14 truth tables of two bits that are not constant. The answer depends on stimuli that are gone by
the time it is asked for, so it takes working memory; which table holds must be found out from reward.

    step     0-7         10-17       25-34       36-45        of 50 steps of 20 ms
             stimulus 1  stimulus 2  response    reward
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from neuropil.learning.evolution.environment import CognitiveTaskEnv

__all__ = ["TASKS", "Block", "CognitiveTasks", "TrialSchedule", "Trials", "complement", "truth_table"]

TASKS = {
    "and": (0, 0, 0, 1),
    "nand": (1, 1, 1, 0),
    "or": (0, 1, 1, 1),
    "nor": (1, 0, 0, 0),
    "01": (0, 1, 0, 0),
    "anti01": (1, 0, 1, 1),
    "10": (0, 0, 1, 0),
    "anti10": (1, 1, 0, 1),
    "watchstim1": (0, 0, 1, 1),
    "antiwatchstim1": (1, 1, 0, 0),
    "watchstim2": (0, 1, 0, 1),
    "antiwatchstim2": (1, 0, 1, 0),
    "dms": (1, 0, 0, 1),
    "dnms": (0, 1, 1, 0),
}
"""Answers by name of the task, for the stimuli 00, 01, 10, 11. dms: delayed match to sample; dnms: non-match."""

KINDS = 4  # types of trials: pairs of stimuli


def _known(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"No task named {name!r}; there are {', '.join(TASKS)}.")
    return name


def truth_table(name: str) -> Int[Tensor, "4"]:
    """Answers of a task for the stimuli 00, 01, 10, 11.

    Raises:
        ValueError: if there is no such task.
    """
    return torch.tensor(TASKS[_known(name)])


def complement(name: str) -> str:
    """The task whose answers are all the opposite: a fixed policy is right in exactly half of the trials of both.

    Raises:
        ValueError: if there is no such task.
    """
    opposite = tuple(1 - answer for answer in TASKS[_known(name)])
    return next(other for other, table in TASKS.items() if table == opposite)


@dataclass(frozen=True)
class TrialSchedule:
    """When what happens in a trial, in steps: [start, end) of each period.

    Raises:
        ValueError: if a period is empty or the periods are not in order.
    """

    stimulus_1: tuple[int, int] = (0, 8)
    stimulus_2: tuple[int, int] = (10, 18)
    response: tuple[int, int] = (25, 35)
    reward: tuple[int, int] = (36, 46)
    steps: int = 50

    def __post_init__(self):
        bounds = [0, *self.stimulus_1, *self.stimulus_2, *self.response, *self.reward, self.steps]
        periods = zip(bounds[1:-1:2], bounds[2:-1:2], strict=True)
        if sorted(bounds) != bounds or any(start == end for start, end in periods):
            raise ValueError(f"Periods must be in order and none empty, got {self}.")


class Trials(NamedTuple):
    """Trials as a world gives them.

    Attributes:
        inputs: what the two stimulus channels show, +-1 and mirrored, 0 between stimuli, (time, trials, 2).
        targets: right answers, 0 or 1.
        kind: 2 stimulus_1 + stimulus_2, the type of each trial.
    """

    inputs: Float[Tensor, "time trials 2"]
    targets: Int[Tensor, " trials"]
    kind: Int[Tensor, " trials"]


class Block(NamedTuple):
    """What a population meets in its life: one task a life, trial after trial.

    Attributes:
        stimuli: 0 or 1, (lives, trials, 2).
        targets: right answers, 0 or 1, (lives, trials).
    """

    stimuli: Int[Tensor, "lives trials 2"]
    targets: Int[Tensor, "lives trials"]

    @property
    def kind(self) -> Int[Tensor, "lives trials"]:
        """Types of the trials."""
        return 2 * self.stimuli[..., 0] + self.stimuli[..., 1]


class CognitiveTasks:
    """A set of tasks to draw trials and lives from, and those that are kept for the test.

    Args:
        names: tasks to learn from, of `TASKS`.
        withheld: tasks that must not be among them.
        schedule: of a trial.

    Raises:
        ValueError: if there are no names, one is unknown or double, or a withheld task is among them.
    """

    def __init__(self, names: Sequence[str], withheld: Sequence[str] = (), schedule: TrialSchedule | None = None):
        if not names or isinstance(names, str):
            raise ValueError(f"names must be a sequence of at least one task, got {names!r}.")
        self.names = tuple(_known(name) for name in names)
        self.withheld = tuple(_known(name) for name in withheld)
        leaked = [name for name in self.names if name in self.withheld]
        if leaked:
            raise ValueError(f"Withheld tasks are in the training set: {', '.join(leaked)}.")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"A task is named twice: {self.names}.")
        self.schedule = TrialSchedule() if schedule is None else schedule

    def sample(self, n: int, generator: torch.Generator | None = None, task: str | None = None) -> Trials:
        """Draw trials, each of a random task of the set, or all of one.

        Raises:
            ValueError: if n is less than 1, or there is no such task.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}.")
        tables = torch.stack([truth_table(name) for name in (self.names if task is None else (task,))])
        chosen = torch.randint(len(tables), (n,), generator=generator)
        stimuli = torch.randint(2, (n, 2), generator=generator)
        kind = 2 * stimuli[:, 0] + stimuli[:, 1]
        return Trials(self.show(stimuli), tables[chosen, kind], kind)

    def show(self, stimuli: Int[Tensor, "trials 2"]) -> Float[Tensor, "time trials 2"]:
        """What the two stimulus channels show in the course of a trial."""
        inputs = torch.zeros(self.schedule.steps, len(stimuli), 2, device=stimuli.device)
        for index, (start, end) in enumerate((self.schedule.stimulus_1, self.schedule.stimulus_2)):
            sign = 2.0 * stimuli[:, index] - 1
            inputs[start:end] = torch.stack([sign, -sign], dim=1)
        return inputs

    def block(
        self,
        tasks: Sequence[str],
        trials: int,
        generator: torch.Generator | None = None,
        stimuli: Int[Tensor, "lives trials 2"] | None = None,
    ) -> Block:
        """Draw what a population meets, one task a life.

        Args:
            tasks: of each life; any task, withheld ones too.
            trials: in a life.
            generator: source of the stimuli; None is torch's default generator.
            stimuli: instead of fresh draws, 0 or 1; how lives meet the same stimuli.

        Raises:
            ValueError: if a task is unknown, there are no trials or lives, or the stimuli have another shape.
        """
        if trials < 1 or not tasks:
            raise ValueError(f"A block needs lives and trials, got {len(tasks)} tasks and {trials} trials.")
        tables = torch.stack([truth_table(name) for name in tasks])
        if stimuli is None:
            stimuli = torch.randint(2, (len(tasks), trials, 2), generator=generator)
        if stimuli.shape != (len(tasks), trials, 2):
            raise ValueError(f"stimuli have shape {tuple(stimuli.shape)}, wanted {(len(tasks), trials, 2)}.")
        kind = 2 * stimuli[..., 0] + stimuli[..., 1]
        return Block(stimuli, tables.to(stimuli.device).gather(1, kind))

    def as_env(self, task: str | None = None, trials: int = 100, seed: int = 0) -> "CognitiveTaskEnv":
        """The set as an environment for reinforcement learning; see `CognitiveTaskEnv`."""
        from neuropil.learning.evolution.environment import CognitiveTaskEnv  # noqa: PLC0415 - it builds on this module

        return CognitiveTaskEnv(self, task, trials, seed)
