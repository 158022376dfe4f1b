"""One environment in a process of its own, which may crash or hang without harm to this one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym

from klrl.experience.worker import pickled, unpickled
from klrl.experience.workers import WorkerVectorEnv


class Supervised(gym.Env):
    """An environment in a worker process; resets and steps answer as they would here.

    Args:
        make: makes the environment, in the worker.
        timeout: seconds for making it and for each of its answers, after which it counts as hanging.

    Raises:
        WorkerFailed: the worker died, raised or hung; it has ended.
    """

    def __init__(self, make: Callable[[], gym.Env], timeout: float) -> None:
        self._worker = WorkerVectorEnv([partial(_Served, make)], timeout=timeout, like=_Blank())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self._worker.call("begin", seed, options)[0]
        return observation, unpickled(info, 0)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        *answer, info = self._worker.call("take", action)[0]
        observation, reward, terminated, truncated = answer
        return observation, reward, terminated, truncated, unpickled(info, 0)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()


class _Blank(gym.Env):
    """Stands for an environment of which nothing is known."""

    observation_space = action_space = gym.spaces.Discrete(1)


class _Served(_Blank):
    """The environment in the worker, behind methods whose answers can be sent: infos are pickled one by one."""

    def __init__(self, make: Callable[[], gym.Env]) -> None:
        self._env = make()

    def begin(self, seed: int | None, options: dict[str, Any] | None) -> tuple[Any, bytes]:
        observation, info = self._env.reset(seed=seed, options=options)
        return observation, pickled(info)

    def take(self, action: Any) -> tuple[Any, Any, bool, bool, bytes]:
        observation, reward, terminated, truncated, info = self._env.step(action)
        return observation, reward, terminated, truncated, pickled(info)

    def close(self) -> None:
        self._env.close()
