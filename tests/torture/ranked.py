"""Environments for trainings on several ranks: one of every kind of space, and one that fails on one of them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Walk(gym.Env):
    """Observations follow from the actions, in arithmetic that rounds; episodes end and are cut at random."""

    def __init__(self, observed: str = "box", acts: str = "discrete") -> None:
        self.observed = observed
        spaces: dict[str, gym.Space] = {
            "box": Box(-np.inf, np.inf, (3,)),
            "images": Box(0, 255, (36, 36, 1), np.uint8),
            "dict": Dict({"position": Box(-np.inf, np.inf, (3,)), "phase": Discrete(4)}),
            "masks": Box(-np.inf, np.inf, (3,)),
        }
        self.observation_space = spaces[observed]
        self.action_space = Discrete(4) if acts == "discrete" else Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = self.np_random.normal(size=3), 0
        return self._seen()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.x = 0.9 * self.x + 0.1 * np.cos(np.sum(action) + np.arange(3)) + 0.05 * self.np_random.normal(size=3)
        end = self.np_random.random()
        observation, info = self._seen()
        return observation, float(self.x.sum()), end < 0.03, end > 0.95, info | {"score": float(self.x[0])}

    def _seen(self) -> tuple[Any, dict[str, Any]]:
        x = self.x.astype(np.float32)
        if self.observed == "images":
            return np.clip(128 + 60 * np.outer(np.repeat(x, 12), np.repeat(x, 12)), 0, 255).astype(np.uint8)[
                ..., None
            ], {}
        if self.observed == "dict":
            return {"position": x, "phase": self.t % 4}, {}
        mask = np.ones(4, np.int8)
        mask[self.t % 4] = 0
        return x, ({"action_mask": mask} if self.observed == "masks" else {})


class Failing(Walk):
    """Does something once, ``how``, on one rank, in the ``at``-th step there; then the file ``marker`` is there."""

    steps = 0
    """Of all environments of this process."""

    def __init__(self, how: str = "raise", rank: int = 1, at: int = 200, marker: str = "", pause: float = 0.0) -> None:
        super().__init__()
        self.how, self.at, self.marker, self.pause = how, at, Path(marker), pause
        self.is_there = os.environ.get("RANK", "0") == str(rank)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        answer = super().step(action)
        time.sleep(self.pause)
        Failing.steps += 1
        if not self.is_there or Failing.steps < self.at or self.marker.exists():
            return answer
        self.marker.write_text("done")
        if self.how == "raise":
            raise ValueError("the gear is broken")
        if self.how == "nan":
            return answer[0], np.nan, *answer[2:]
        if self.how == "exit":
            os._exit(7)
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "term": signal.SIGTERM, "stop": signal.SIGSTOP}[self.how])
        return answer


gym.register("Walk-v0", cast("Any", Walk))
gym.register("Failing-v0", cast("Any", Failing))
