"""Episodes played beside a training, in environments of their own, at no cost to any bit of it."""

from __future__ import annotations

import abc
import contextlib
import random
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv

from klrl.experience.environments import EnvLike, factory
from klrl.experience.supervised import Supervised
from klrl.experience.workers import WorkerFailed
from klrl.run.callback import STEP, Callback, Metrics
from klrl.run.seeding import evaluation_seed
from klrl.text import one_line

if TYPE_CHECKING:
    from klrl.experience import Batch


class CannotBegin(ValueError):
    """Refusal of something that was asked for beside a training; the message says why."""


class Beside(Callback, abc.ABC):
    """Plays episodes after the update that reaches each multiple of ``every`` steps, and after the last one.

    No bit of the training depends on them: the agent's random generators and the global ones are left as they were
    found. Where training has worker processes (``vectorization_mode="async"``), the environment is in one too.

    Args:
        env: what makes the environment, or an ``Env``, which is kept.
        every: environment steps, over all environments.

    Raises:
        ValueError: an environment that cannot be one.
    """

    first_rank_only = True

    def __init__(self, env: EnvLike, every: int) -> None:
        if isinstance(env, VectorEnv):
            kind = type(env).__name__
            raise ValueError(f"env = {kind}; allowed: an id, an EnvSpec, a function that makes an Env, or an Env")
        self._kept, self._every = isinstance(env, gym.Env), every
        self.make: Callable[[], gym.Env] = partial(_Kept, env) if isinstance(env, gym.Env) else factory(env)

    @abc.abstractmethod
    def play(self, agent: Any, metrics: Metrics) -> None:
        """Play the episodes that belong to the agent's last update, whose metrics these are."""

    @abc.abstractmethod
    def is_done(self, agent: Any) -> bool:
        """Tell whether the episodes after the agent's last update were played before the training was interrupted."""

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Check the spaces, and make up for the episodes in which the training was interrupted.

        Raises:
            ValueError: other spaces than the agent's.
        """
        self._check_spaces(agent)
        if self.owes(agent):
            self.play(agent, agent.history[-1])

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> None:
        """Play, if it is time."""
        if self._is_due(agent, agent.num_timesteps - batch.n_samples):
            self.play(agent, metrics)

    def owes(self, agent: Any) -> bool:
        """Tell whether the training was interrupted in the episodes after the agent's last update."""
        if not newest(agent) or self.is_done(agent):
            return False
        earlier = agent.history[-2].get(STEP, 0.0) if len(agent.history) > 1 else 0.0
        return self._is_due(agent, max(int(float(earlier)), agent.training.first))

    def _is_due(self, agent: Any, before: int) -> bool:
        """Tell whether episodes belong to the agent's last update, which began at the step ``before``."""
        now = agent.num_timesteps
        return now >= agent.training.last or now // self._every > before // self._every

    def _check_spaces(self, agent: Any) -> None:
        env = self.make()
        try:
            if (env.observation_space, env.action_space) != (agent.observation_space, agent.action_space):
                have, allowed = (f"{x.observation_space} and {x.action_space}" for x in (env, agent))
                raise ValueError(f"{type(self).__name__}: env has {one_line(have)}; allowed: {one_line(allowed)}")
        finally:
            env.close()

    def _environment(self, agent: Any, make: Callable[[], gym.Env]) -> gym.Env:
        """Return an environment to play in: in a process where training has some, but for a kept one."""
        if agent.config.vectorization_mode == "async" and not self._kept:
            return Supervised(make, agent.config.worker_timeout)
        return make()


class _Kept(gym.Wrapper):
    """A user's own environment, which stays open."""

    def close(self) -> None:
        """Leave it open."""


def newest(agent: Any) -> bool:
    """Tell whether the agent's newest metrics are those of the training it is in, which it then resumes."""
    history: Sequence[Mapping[str, Any]] = agent.history
    return len(history) > 0 and STEP in history[-1] and float(history[-1][STEP]) > agent.training.first


@contextlib.contextmanager
def unchanged_generators(agent: Any) -> Iterator[None]:
    """Give predictions a fixed seed; leave their generator, and the global ones of environments, as found."""
    predictions = agent.streams.predictions
    before = predictions.get_state(), torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    restore = (predictions.set_state, torch.set_rng_state, np.random.set_state, random.setstate)
    predictions.manual_seed(evaluation_seed(agent.seed))
    try:
        yield
    finally:
        for put_back, state in zip(restore, before, strict=True):
            put_back(state)


def described(error: BaseException) -> str:
    """Describe an error in a line, with the place in the user's code that raised it."""
    if isinstance(error, WorkerFailed):
        return error.what
    where = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-1:]]
    return f"{type(error).__name__}: {one_line(error)} ({', '.join(where)})"
