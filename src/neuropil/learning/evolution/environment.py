"""Cognitive tasks step by step, as reinforcement learning knows them (gymnasium's calls, without gymnasium)."""

from typing import Any

import numpy as np
import torch

from neuropil.learning.evolution.tasks import CognitiveTasks, truth_table

__all__ = ["CognitiveTaskEnv"]


class CognitiveTaskEnv:
    """An episode is a block of trials of one task, which the agent is not told.

    Observation, float32 of 3: two stimulus channels (+-1, mirrored, 0 between stimuli) and 1 while an answer is asked
    for. Action: 0 or 1, an answer; it counts in the response period, where the majority decides, and a tie is 0.
    Reward: 1 for a right answer, -1 for a wrong one, at the first step of the reward period; else 0.

    Args:
        tasks: the set.
        task: of every episode; None draws one from the set at each reset.
        trials: in an episode.
        seed: of tasks and stimuli.

    Attributes:
        observation_size: 3.
        actions: 2.

    Raises:
        ValueError: if the task is unknown or there are no trials.
    """

    observation_size = 3
    actions = 2

    def __init__(self, tasks: CognitiveTasks, task: str | None = None, trials: int = 100, seed: int = 0):
        if trials < 1:
            raise ValueError(f"trials must be at least 1, got {trials}.")
        if task is not None:
            truth_table(task)
        self.tasks, self.trials = tasks, trials
        self._fixed = task
        self._generator = torch.Generator().manual_seed(seed)
        self._task: str | None = None
        self._trial = self._step = self._votes = 0

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: restarts the draws; None goes on.

        Returns:
            The first observation, and {"task": its name}, which is for the experimenter.
        """
        if seed is not None:
            self._generator.manual_seed(seed)
        names = self.tasks.names
        drawn = names[int(torch.randint(len(names), (), generator=self._generator))]
        self._task = drawn if self._fixed is None else self._fixed
        self._trial = self._step = 0
        self._begin_trial()
        return self._observe(), {"task": self._task}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Answer, and go one step on.

        Args:
            action: 0 or 1.

        Returns:
            Observation, reward, whether the episode is over, False (nothing is cut short), and where a reward was given
            {"correct": whether the answer was right, "trial": its number}.

        Raises:
            ValueError: if the action is neither 0 nor 1, or there is no episode: reset first.
        """
        if self._task is None:
            raise ValueError("There is no episode: call reset first.")
        if action not in (0, 1):
            raise ValueError(f"action must be 0 or 1, got {action!r}.")
        schedule = self.tasks.schedule
        if schedule.response[0] <= self._step < schedule.response[1]:
            self._votes += 2 * int(action) - 1
        self._step += 1
        reward, info = 0.0, {}
        if self._step == schedule.reward[0]:
            correct = int(self._votes > 0) == self._target
            reward, info = (1.0 if correct else -1.0), {"correct": correct, "trial": self._trial}
        if self._step == schedule.steps:
            self._trial, self._step = self._trial + 1, 0
            if self._trial == self.trials:
                self._task = None
                return np.zeros(self.observation_size, np.float32), reward, True, False, info
            self._begin_trial()
        return self._observe(), reward, False, False, info

    def _begin_trial(self) -> None:
        trial = self.tasks.sample(1, self._generator, self._task)
        self._shown, self._target, self._votes = trial.inputs[:, 0].numpy(), int(trial.targets), 0

    def _observe(self) -> np.ndarray:
        start, end = self.tasks.schedule.response
        return np.append(self._shown[self._step], np.float32(start <= self._step < end)).astype(np.float32)
