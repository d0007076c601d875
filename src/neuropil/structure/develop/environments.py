"""Environments of Gymnasium as tasks: a population of policies plays, all its episodes side by side."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.structure.develop.networks import Networks
from neuropil.structure.develop.policy import GraphPolicy

__all__ = ["EnvironmentTask"]


class EnvironmentTask:
    """Score networks by their mean return; called with networks, as a fitness to be maximised.

    The first nodes get the observation (a discrete one as one-hot), the last give the action: the largest of them if
    actions are discrete, else their activity, clipped to the action space. Activity starts from silence in every
    episode and stays from step to step. A network with too few nodes scores `floor` minus the nodes it lacks.

    Args:
        env_id: as `gymnasium.make` takes it.
        episodes: for each network.
        seed: episode e starts from the environment's seed `seed + e`, the same for all networks.
        extra: steps beyond the diameter that activity flows for one action.
        floor: score below which a network falls that cannot play; take less than the worst return where returns are
            negative.
        chunk: networks that play side by side.
        options: for `gymnasium.make`.

    Raises:
        ImportError: if Gymnasium is missing.
        ValueError: if a number is out of range, or the spaces are neither discrete nor boxes.
    """

    def __init__(
        self,
        env_id: str,
        episodes: int = 10,
        seed: int = 0,
        extra: int = 0,
        *,
        floor: float = 0.0,
        chunk: int = 64,
        **options: Any,
    ):
        if episodes < 1 or chunk < 1 or seed < 0 or extra < 0:
            raise ValueError(
                f"episodes and chunk must be at least 1, seed and extra at least 0, "
                f"got {episodes}, {chunk}, {seed} and {extra}."
            )
        self.env_id, self.options = env_id, options
        self.episodes, self.seed, self.extra, self.floor, self.chunk = episodes, seed, extra, float(floor), chunk
        self._made: list[Any] = []
        self._spaces = (_Space(self._environments(1)[0].observation_space), _Space(self._made[0].action_space))

    @property
    def minimum(self) -> int:
        """Nodes that a network needs: inputs and outputs."""
        return self._spaces[0].size + self._spaces[1].size

    def __call__(self, networks: Networks, seed: int | None = None) -> Float[Tensor, " networks"]:
        """The score of each network; `seed` stands in for the task's own."""
        scores = (networks.sizes - self.minimum).double() + self.floor
        able = networks.sizes >= self.minimum
        if not bool(able.any()):
            return scores
        means = self.returns(networks.select(able), seed).mean(1)
        return scores.masked_scatter(able, means.to(scores.device))

    def returns(self, networks: Networks, seed: int | None = None) -> Float[Tensor, "networks episodes"]:
        """Sum of rewards in each episode.

        Raises:
            ValueError: if a network has fewer nodes than inputs and outputs.
        """
        seed = self.seed if seed is None else seed
        parts = []
        for start in range(0, len(networks), self.chunk):
            which = torch.zeros_like(networks.sizes, dtype=torch.bool)
            which[start : start + self.chunk] = True
            policy = networks.select(which).policy(self._spaces[0].size, self._spaces[1].size, self.extra)
            parts.append(self._play(policy, int(which.sum()), seed))
        return torch.cat(parts) if parts else torch.zeros(0, self.episodes, dtype=torch.float64)

    @torch.no_grad()
    def _play(self, policy: GraphPolicy, count: int, seed: int) -> Tensor:
        seen, act = self._spaces
        environments = self._environments(count * self.episodes)
        starts = [env.reset(seed=seed + index % self.episodes)[0] for index, env in enumerate(environments)]
        observations = np.stack([seen.encode(start) for start in starts])
        returns = np.zeros(len(environments))
        running = np.arange(len(environments))
        state = None
        while len(running):
            shown = torch.from_numpy(observations).to(policy.weights).reshape(count, self.episodes, -1)
            values, state = policy(shown, state)
            actions = act.decode(values.reshape(len(environments), -1).cpu().numpy())
            over = np.zeros(len(environments), dtype=bool)
            for index in running:
                observation, reward, terminated, truncated, _ = environments[index].step(actions[index])
                observations[index] = seen.encode(observation)
                returns[index] += reward
                over[index] = terminated or truncated
            running = running[~over[running]]
        return torch.from_numpy(returns).reshape(count, self.episodes)

    def _environments(self, count: int) -> list[Any]:
        gymnasium = _package()
        while len(self._made) < count:
            self._made.append(gymnasium.make(self.env_id, disable_env_checker=True, **self.options))
        return self._made[:count]

    def __getstate__(self) -> dict[str, Any]:
        """Environments stay at home: they are made again where they are needed."""
        return self.__dict__ | {"_made": []}


class _Space:
    """A discrete space or a box, as numbers for nodes."""

    def __init__(self, space: Any):
        gymnasium = _package()
        self.space = space
        self.discrete = isinstance(space, gymnasium.spaces.Discrete)
        if not self.discrete and not isinstance(space, gymnasium.spaces.Box):
            raise ValueError(f"The environment's spaces must be discrete or boxes, got {space}.")
        self.size = int(space.n) if self.discrete else int(np.prod(space.shape))

    def encode(self, value: Any) -> np.ndarray:
        if not self.discrete:
            return np.asarray(value, dtype=np.float64).ravel()
        return np.eye(self.size)[int(value) - int(self.space.start)]

    def decode(self, values: np.ndarray) -> list[Any]:
        if self.discrete:
            return [int(choice) + int(self.space.start) for choice in values.argmax(1)]
        shaped = values.reshape(-1, *self.space.shape)
        return list(np.clip(shaped, self.space.low, self.space.high).astype(self.space.dtype))


def _package() -> Any:
    try:
        import gymnasium  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ImportError("Environments need Gymnasium: pip install 'neuropil[evolution]'.") from error
    return gymnasium
