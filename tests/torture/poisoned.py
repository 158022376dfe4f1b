"""Environments in which one number is none, once; what they did is on record.

``klrl train ppo --env torture.poisoned:Poisoned-reward-nan-v0 --n-envs 2 --seed 0``
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.experience.environments import spawn_env_seeds
from klrl.experience.episodes import EpisodeCursor
from klrl.run.seeding import environment_seeds

RECORD = Path("record.txt")
"""In the working directory: a line on every reset and step of every environment (process and object, seed, step)."""
FIELDS = ("observation", "reward", "final observation")
VALUES = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf, "huge": 1e30, "largest": 3e38}
N_ENVS, INDEX, EPISODE, ELEMENT = 2, 1, 17, 1
"""How many environments there are; the one that is poisoned, in which episode and element. The run's seed is 0."""
STEPS = {"nan": 3, "inf": 0, "minus-inf": 5, "huge": 2, "largest": 2}
"""In which step of the episode, by value; a reward comes after the reset."""
PLACES = {
    EpisodeCursor(stream, episode).seed: (index, episode)
    for index, stream in enumerate(spawn_env_seeds(environment_seeds(0), N_ENVS))
    for episode in range(200)
}
"""Environment and episode that a seed is for."""


class Poisoned(gym.Env):
    """Noise, with a reward for an action that is near to what is seen; episodes are truncated after 8 to 16 steps.

    Args:
        field: what is poisoned, one of :data:`FIELDS`; nothing by default.
        value: what is there then, a name of :data:`VALUES`.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,))
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, field: str | None = None, value: str = "nan") -> None:
        self._field, self._value, self._step = field, VALUES[value], STEPS[value]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._seed, self._steps = seed, 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step."""
        reward = 1.0 - float(np.abs(action - self._seen[:2]).sum())
        self._steps += 1
        assert self._seed is not None
        over = self._steps == 8 + self._seed % 9
        now = self._steps == max(self._step, 1)
        return self._observe(over), self._or_poison("reward", reward, now), False, over, {}

    def _observe(self, over: bool = False) -> np.ndarray:
        with RECORD.open("a") as file:
            file.write(f"{os.getpid()}-{id(self)} {self._seed} {self._steps}\n")
        self._seen = seen = self.np_random.normal(size=3).astype(np.float32)
        field, now = ("final observation", True) if over else ("observation", self._steps == self._step)
        seen[ELEMENT] = self._or_poison(field, seen[ELEMENT], now)
        return seen

    def _or_poison(self, field: str, x: float, now: bool) -> float:
        here = field == self._field and now and PLACES.get(self._seed or 0) == (INDEX, EPISODE)
        return self._value if here else x


def name(field: str | None = None, value: str = "nan") -> str:
    """What ``--env`` takes."""
    what = "Nothing" if field is None else f"{field.replace(' ', '-')}-{value}"
    return f"{__name__}:Poisoned-{what}-v0"


gym.register(name().rpartition(":")[2], f"{__name__}:Poisoned")
for _field in FIELDS:
    for _value in VALUES:
        _what = {"field": _field, "value": _value}
        gym.register(name(**_what).rpartition(":")[2], f"{__name__}:Poisoned", kwargs=_what)
