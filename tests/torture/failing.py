"""Environments whose workers fail in every way there is: ``--env torture.failing:Exit-v0``.

In a run with seed 0 and two environments the second one fails in one step of one of its episodes, unless the working
directory has a file ``mended``; the file ``failed`` says when it did.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from klrl.experience.environments import spawn_env_seeds
from klrl.experience.episodes import EpisodeCursor
from klrl.run.seeding import environment_seeds

MODULE = "torture.failing"
LENGTH, STEP = 16, 5
"""Steps of an episode, and which of them fails."""
FAILING = EpisodeCursor(spawn_env_seeds(environment_seeds(0), 2)[1], 10)
"""The episode that fails."""
MENDED, FAILED, AGAIN = Path("mended"), Path("failed"), Path("made-again")


class Unpicklable(Exception):
    """Holds what cannot be sent to another process."""

    def __init__(self) -> None:
        super().__init__("it holds a function")
        self.function = lambda: None


class TwoArguments(Exception):
    """Cannot be made from its message alone."""

    def __init__(self, sensor: str, number: int) -> None:
        super().__init__(f"{sensor} {number}")


def _raise(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def _crash() -> None:
    ctypes.string_at(0)


def _hang() -> None:
    time.sleep(600.0)


class Way(NamedTuple):
    """How to fail, and what must be said about it."""

    fail: Callable[[], object]
    reason: str
    """How the line that names the environment ends."""
    trace: str = ""
    """Part of the original traceback, where there is one."""


WAYS = {
    "Kill": Way(lambda: os.kill(os.getpid(), signal.SIGKILL), "worker was killed by SIGKILL"),
    "Exit": Way(lambda: os._exit(3), "worker exited with status 3"),
    "Crash": Way(_crash, "worker was killed by SIGSEGV", "in _crash"),
    "SystemExit": Way(_raise(SystemExit(4)), "RuntimeError: SystemExit: 4", "raise error"),
    "Exception": Way(_raise(ValueError("sensor fault")), "ValueError: sensor fault", "raise error"),
    "Unpicklable": Way(_raise(Unpicklable()), f"{MODULE}.Unpicklable: it holds a function", "raise error"),
    "TwoArguments": Way(_raise(TwoArguments("sensor", 7)), f"{MODULE}.TwoArguments: sensor 7", "raise error"),
    "Hang": Way(_hang, "worker hangs: no answer for 2 s", "in _hang"),
    "Megabyte": Way(_raise(ValueError("first line\n" + "x" * 2**20)), "ValueError: first line", "x" * 2**20),
    "Constructor": Way(lambda: None, "RuntimeError: no licence", "in __init__"),
    "MadeAgain": Way(lambda: os._exit(3), "RuntimeError: no licence", "in __init__"),
    "MadeAgainOnce": Way(lambda: os._exit(3), "worker exited with status 3"),
}
"""By the name of the environment; the constructors of the last three fail, too: always, made anew, made anew once."""


class Failing(gym.Env):
    """Observations and rewards are random numbers.

    Args:
        way: how it fails; a key of ``WAYS``.
    """

    observation_space = gym.spaces.Box(-10.0, 10.0, (3,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, way: str) -> None:
        self._way, self._steps = way, 0
        self._seed: int | None = None
        if parent_process() is not None and not MENDED.exists() and self._made_in_vain():
            FAILED.write_text(f"{time.monotonic()}")
            raise RuntimeError("no licence")

    def _made_in_vain(self) -> bool:
        if self._way == "MadeAgainOnce" and FAILED.exists() and not AGAIN.exists():
            AGAIN.touch()
            return True
        return self._way == "Constructor" or (self._way == "MadeAgain" and FAILED.exists())

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self._seed, self._steps = seed, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One step, if it is not the one."""
        self._steps += 1
        if (self._seed, self._steps) == (FAILING.seed, STEP) and not MENDED.exists():
            FAILED.write_text(f"{time.monotonic()}")
            WAYS[self._way].fail()
        return self._observation(), float(action), self._steps == LENGTH, False, {}

    def _observation(self) -> np.ndarray:
        return self.np_random.uniform(-1.0, 1.0, 3).astype(np.float32)


for _name in WAYS:
    gym.register(f"{_name}-v0", f"{MODULE}:Failing", kwargs={"way": _name})
