"""One training on several ranks, measured: what ``klrl benchmark ranks`` starts under torchrun."""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from klrl.agents import PPO, PPOConfig
from klrl.run import Callback, World


class Slow(gym.Wrapper):
    """An environment whose step takes some time more, without a processor."""

    def __init__(self, env: gym.Env, pause: float) -> None:
        super().__init__(env)
        self._pause = pause

    def step(self, action: Any) -> Any:
        """Wait, and step."""
        time.sleep(self._pause)
        return self.env.step(action)


def make(env: str, pause: float) -> gym.Env:
    """Make one."""
    return Slow(gym.make(env), pause)


class Clock(Callback):
    """Times of every update: stepping, waiting for the slowest rank, gathering, learning."""

    def __init__(self, world: World) -> None:
        self.rows: list[dict[str, float]] = []
        self._world, self._exchange, self._now = world, world.exchange, time.perf_counter()
        world.exchange = self._timed  # type: ignore[method-assign]

    def _lap(self) -> float:
        then, self._now = self._now, time.perf_counter()
        return self._now - then

    def _timed(self, tensors: Any) -> Any:
        row = {"step": self._lap()}
        self._world.any(False)
        row["wait"] = self._lap()
        parts = self._exchange(tensors)
        row["gather"] = self._lap()
        row["bytes"] = float(sum(x.nbytes for part in parts for x in part.values()))
        self.rows.append(row)
        return parts

    def on_update_start(self, agent: Any, batch: Any) -> None:
        """Gathering is over, joining included."""
        if self._world.size == 1:
            self.rows.append({"step": self._lap(), "wait": 0.0, "gather": 0.0, "bytes": 0.0})
        else:
            self.rows[-1]["gather"] += self._lap()

    def on_update_end(self, agent: Any, batch: Any, metrics: Any) -> None:
        """The update is over."""
        self.rows[-1]["update"] = self._lap()


def main(argv: list[str]) -> None:
    """Train, and let rank 0 write the medians."""
    began = time.time()
    output, started, env, pause, n_envs, n_steps, updates = argv
    torch.set_num_threads(1)
    world = World.current()
    clock = Clock(world)
    config = PPOConfig.for_env(env, n_envs=int(n_envs), n_steps=int(n_steps))
    agent = PPO(partial(make, env, float(pause)), config, seed=0)
    ready = time.time()
    agent.learn(int(updates) * config.n_envs * config.n_steps, clock)
    agent.close()
    if world.rank == 0:
        rows = clock.rows[1:]  # the first one makes everything
        row = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        row |= {"start": ready - float(started), "import": began - float(started)}
        row["kib"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        Path(output).write_text(json.dumps(row))


if __name__ == "__main__":
    main(sys.argv[1:])
