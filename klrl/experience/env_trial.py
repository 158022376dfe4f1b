"""A trial of an environment, before others like it are made to learn from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from klrl.experience.engines import VectorizationMode
from klrl.experience.environments import EnvLike, factory
from klrl.experience.episodes import Playing
from klrl.experience.reproducibility import EnvTrial, check_reproducibility
from klrl.experience.steps import Transparent
from klrl.experience.workers import WorkerVectorEnv


def try_out(
    env: EnvLike,
    vectorization_mode: VectorizationMode = "sync",
    worker_timeout: float = 60.0,
    *,
    seed_every_episode: bool = True,
    try_envs: bool = True,
) -> EnvTrial:
    """Find out with random actions whether episodes can be played again, and what their seeds cost.

    Two environments are made for it, one after the other, in a worker process if training will use them, and closed.
    A single ``Env`` instance is not tried: that would disturb it.

    Args:
        env: as for :func:`klrl.experience.make_vector_env`.
        vectorization_mode: the engine of training.
        worker_timeout: seconds for a worker process to make, reset and step each environment.
        seed_every_episode: whether training seeds every episode; otherwise they cannot be played again.
        try_envs: whether to make them at all.
    """
    engine = vectorization_mode not in ("sync", "async")
    if engine or isinstance(env, VectorEnv) or not seed_every_episode:
        return EnvTrial("never")
    if isinstance(env, gym.Env) or not try_envs:
        return EnvTrial("unknown")
    try:
        make = factory(env)
        if vectorization_mode == "sync":
            return check_reproducibility(make)
        with contextlib.closing(WorkerVectorEnv([partial(_InWorker, make)], timeout=worker_timeout)) as one:
            return one.call("check")[0]
    except (Exception, SystemExit):  # random actions may break what a policy does not
        return EnvTrial("unknown")


class _InWorker(gym.Env, Playing):
    """Stands in for an environment in a worker that only tries some."""

    observation_space = action_space = gym.spaces.Discrete(1)

    def __init__(self, make: Callable[[], gym.Env]) -> None:
        self._make = make

    def check(self) -> EnvTrial:
        return check_reproducibility(lambda: _Watched(self._make(), self.played))


class _Watched(Transparent):
    """Reports every construction, reset and step."""

    def __init__(self, env: gym.Env, played: Callable[[], object]) -> None:
        super().__init__(env)
        self._played = played
        played()

    def reset(self, **how: Any) -> tuple[Any, dict[str, Any]]:
        answer = self.env.reset(**how)
        self._played()
        return answer

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        answer = self.env.step(action)
        self._played()
        return answer
