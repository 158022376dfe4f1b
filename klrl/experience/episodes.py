"""Episodes determined by a seed and actions, so that each can be begun again and played up to the present."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.experience.steps import Transparent


@dataclass(frozen=True, eq=False)
class EpisodeCursor:
    """Position of an environment: which of its episodes, and the actions taken in it."""

    env_seed: int
    """Seed of the environment, from which the seeds of its episodes derive."""
    episode: int = 0
    """Number of episodes before this one."""
    actions: Sequence[Any] = ()
    """Actions executed since its reset."""
    total: float | None = None
    """Sum of the rewards since its reset; ``None`` if unknown."""

    @property
    def seed(self) -> int:
        """Seed of the episode's reset; 31 bits, because some simulators take an int32."""
        return int(np.random.SeedSequence(self.env_seed, spawn_key=(self.episode,)).generate_state(1)[0] >> 1)

    @property
    def following(self) -> EpisodeCursor:
        """Cursor at the beginning of the next episode."""
        return EpisodeCursor(self.env_seed, self.episode + 1)


class Playing:
    """Base of environments that step by themselves, so that one command to them may take as long as many steps."""

    played: Callable[[], object] = staticmethod(lambda: None)
    """Called after each of those steps."""


class SeededEpisodes(Transparent, Playing):
    """Seeds every episode on its own: an episode does not depend on the length of those before it.

    A reset with a seed sets the environment's seed and begins its first episode; a reset without one begins the next
    episode. If ``cursor`` is set, the next reset goes there and returns the observation and info after its last action.

    Args:
        make: makes the environment.
        index: number of the environment, for messages.
        every: seed every episode; or only an environment's first one, and those that a reset with a seed begins.
        rebuild: make a new environment for every episode.
    """

    def __init__(
        self, make: Callable[[], gym.Env], index: int = 0, *, every: bool = True, rebuild: bool = False
    ) -> None:
        super().__init__(make())
        self.cursor: EpisodeCursor | None = None
        self.diverged = False
        """True if the last cursor could not be reached, and the episode after it has begun instead."""
        self.every = every
        self._make, self._index, self._rebuild = make, index, rebuild
        self._now: EpisodeCursor | None = None
        self._seed: int | None = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, or go to ``cursor``; if that can no longer be reached, to the episode after it."""
        begins = self._now is None or seed is not None
        if self._now is not None and self._rebuild:
            self.env.close()
            self.env, begins = self._make(), True
        cursor = self._next(seed)
        self._now, self._steps, self.cursor, self.diverged = cursor, 0, None, False
        self._seed = cursor.seed if self.every or begins else None
        try:
            observation, info = self.env.reset(seed=self._seed, options=options)
        except SystemExit as error:
            raise self._stopped(error, "reset") from error
        except Exception as error:
            self._locate(error, "reset")
            raise
        if len(cursor.actions) == 0:
            return observation, info
        try:
            return self._played(cursor)
        except Exception:  # the environment no longer repeats its episode
            self.cursor = cursor.following
            answer = self.reset(options=options)
            self.diverged = True
            return answer

    def _next(self, seed: int | None) -> EpisodeCursor:
        if seed is not None:
            return EpisodeCursor(seed)
        if self.cursor is not None:
            return self.cursor
        return (
            EpisodeCursor(np.random.SeedSequence().generate_state(1)[0]) if self._now is None else self._now.following
        )

    def _played(self, cursor: EpisodeCursor) -> tuple[Any, dict[str, Any]]:
        """Play a cursor's actions; an error if the episode ends early or earns other rewards than before."""
        total = 0.0
        for action in cursor.actions:
            observation, reward, terminated, truncated, info = self.step(action)
            total += float(reward)
            self.played()
            if terminated or truncated:
                raise RuntimeError("the episode ended early")
        if cursor.total not in (None, total):
            raise RuntimeError("the rewards are others")
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step the environment; an exception gets a note that says where it happened."""
        self._steps += 1
        try:
            return self.env.step(action)
        except SystemExit as error:
            raise self._stopped(error, f"step {self._steps}") from error
        except Exception as error:
            self._locate(error, f"step {self._steps}")
            raise

    def _stopped(self, error: SystemExit, what: str) -> RuntimeError:
        """Return the error for an environment that tried to exit the program: training was not finished."""
        failure = RuntimeError(f"SystemExit: {error}")
        self._locate(failure, what)
        return failure

    def _locate(self, error: Exception, what: str) -> None:
        assert self._now is not None
        seed = "" if self._seed is None else f" (seed {self._seed})"
        error.add_note(f"in {what} of environment {self._index}, episode {self._now.episode}{seed}")
