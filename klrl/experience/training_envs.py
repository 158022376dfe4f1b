"""Environments that an agent learns from, with their collector and their cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from torch import Tensor

from klrl.experience.batch import Batch
from klrl.experience.collector import Act, Collector, OnArrays, ReplayMismatch
from klrl.experience.cursors import EnvCursor
from klrl.experience.environments import EnvLike, is_seeded, spawn_env_seeds
from klrl.experience.footprints import Footprints
from klrl.experience.reproducibility import EnvTrial
from klrl.experience.split import Split
from klrl.experience.told import Told
from klrl.policy.observations import Encoding
from klrl.text import warn_user


class TrainingEnvs:
    """Environments to learn from: as the user gave them, and as a vector once that has been made.

    Args:
        env: what they are made from; ``None`` if unknown.
        envs: the vector environment, if it has been made.
        cursor: position of other copies of them, at which these continue.
        trial: findings about one of them, if one has been tried.
        split: the environments of all processes, if ``envs`` are this process's share of them.
    """

    def __init__(
        self,
        env: EnvLike | None,
        envs: VectorEnv | None = None,
        cursor: EnvCursor | None = None,
        trial: EnvTrial | None = None,
        split: Split | None = None,
    ) -> None:
        self.env, self.envs, self.trial, self.split = env, envs, trial, split
        self.collector: Collector | None = None
        self._cursor = cursor
        self._footprints: Footprints | None = None

    @property
    def cursor(self) -> EnvCursor | None:
        """Cursor at which the environments are, or at which they are to continue."""
        if self.collector is None:
            return self._cursor
        return self.collector.cursor if self.split is None else self.split.cursor

    @property
    def restarts(self) -> int:
        """Number of times a worker process was restarted and its episode lost."""
        if self.split is not None:
            return self.split.restarts
        return 0 if self.collector is None else self.collector.restarts

    def begin(
        self,
        encoding: Encoding,
        seeds: np.random.SeedSequence,
        total_timesteps: int,
        rebuilt: bool = False,
        told: Told = Told(),  # noqa: B008
    ) -> bool:
        """Make the collector: at the environments' cursor (True), or at new episodes from these seeds (False).

        Args:
            encoding: encoding of observations.
            seeds: seeds for new episodes.
            total_timesteps: steps taken before.
            rebuilt: whether every episode has an environment of its own.
            told: what batches say of rewards and lives.
        """
        assert self.envs is not None
        self._footprints = Footprints(self.env) if isinstance(self.env, gym.Env) else None
        self.collector = self._where_they_were(self.envs, encoding, total_timesteps, rebuilt, told)
        known = self.collector is not None
        if not known and self.split is None:
            self.collector = Collector(self.envs, seeds, encoding, total_timesteps, told=told)
        elif not known and self.split is not None:
            start = EnvCursor.beginning(spawn_env_seeds(seeds, self.split.n))
            cursor = self.split.begin(start, self.envs)
            self.collector = Collector(self.envs, cursor, encoding, total_timesteps, self.split.first, told)
        self._leave()
        return known

    def _where_they_were(
        self, envs: VectorEnv, encoding: Encoding, total_timesteps: int, rebuilt: bool, told: Told
    ) -> Collector | None:
        split, n = self.split, envs.num_envs if self.split is None else self.split.n
        if self._cursor is None or not is_seeded(envs) or len(self._cursor.lengths) != n:
            return None
        found, first = None, 0 if split is None else split.first
        problem: object = "episodes of these environments cannot be played again"
        if not self._cursor.reachable:
            problem = f"the actions of an episode of {self._cursor.lengths.max():,} steps were not kept"
        elif self.trial is None or self.trial.playable(rebuilt):
            cursor = self._cursor if split is None else split.begin(self._cursor, envs)
            problem = "environments of another process did not come back to where they were"
            try:
                found = Collector(envs, cursor, encoding, total_timesteps, first, told)
            except ReplayMismatch as error:
                problem = error
        failed = found is None if split is None else split.fails(found is None)
        if not failed:
            return found
        text = f"{problem}: new episodes begin, and training differs from an uninterrupted one; "
        text += "what environments kept over resets, and what callbacks set in them, begins anew"
        warn_user(text)
        return None

    def collect(
        self,
        act: Act | OnArrays,
        n_steps: int,
        info_keys: Sequence[str],
        values: Callable[[Batch], Tensor | None] = lambda batch: None,
    ) -> Batch:
        """Collect the next rollout.

        Args:
            act: as for :meth:`Collector.collect`.
            n_steps: T.
            info_keys: as for :meth:`Collector.collect`.
            values: given this process's batch, returns the values ``[T, N]`` that acting computed, if it did.
        """
        assert self.collector is not None
        batch = self.collector.collect(act, n_steps, info_keys)
        batch = batch if (found := values(batch)) is None else replace(batch, values=found)
        if self.split is not None:
            batch = self.split.joined(batch, self.collector)
        self._leave()
        return batch

    def _leave(self) -> None:
        if self._footprints is not None:
            self._footprints.leave()

    def undo_others(self) -> None:
        """Go back to the cursor if others who hold the environment have reset or stepped it since the last rollout."""
        changed = self._footprints.come_back() if self._footprints is not None and self.collector is not None else []
        if changed:
            cursor = self.cursor
            then = "new episodes begin" if cursor is None else "training goes back to where it was"
            text = (
                f"the environment that the agent learns from was reset or stepped by others between two rollouts (its "
                f"{', '.join(changed[:3])} changed): {then}; evaluate in a separate environment"
            )
            warn_user(text)
            self.go_back(cursor)

    def go_back(self, cursor: EnvCursor | None) -> None:
        """Forget what happened after a cursor; the environments continue there, or begin new episodes."""
        self.collector, self._cursor = None, cursor

    def close(self) -> None:
        """Close the environments; worker processes end."""
        if self.envs is not None:
            self.envs.close()
