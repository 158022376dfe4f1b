"""Reproducibility of episodes: a seed and the actions after it give the same bits again, or they do not."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from klrl.experience.steps import own
from klrl.policy.choices import MASK
from klrl.policy.observations import flat_mask

Repeatable = Literal["used", "new", "never", "unknown"]
"""Environments in which an episode can be played again: any, only a new one, none; or it is unknown."""

EPISODES, STEPS = 8, 50
"""Number of episodes tried, and most steps of each."""
RESETS = 3
"""Resets of each kind that are timed."""


@dataclass(frozen=True)
class EnvTrial:
    """Findings about an environment before training in others like it."""

    reproducibility: Repeatable
    seeded: float = 0.0
    """Seconds of a reset with a seed."""
    unseeded: float = 0.0
    """Seconds of a reset without a seed."""

    def playable(self, rebuilt: bool) -> bool:
        """Return True if it is worth trying to play episodes again, in used environments or in rebuilt ones."""
        return self.reproducibility != "never" and (self.reproducibility != "new" or rebuilt)


def costly_seeds(trial: EnvTrial) -> str | None:
    """Return advice if seeds cost far more than resets: five times as much, and at least a hundredth of a second."""
    if trial.seeded < 5.0 * trial.unseeded or trial.seeded - trial.unseeded < 0.01:
        return None
    return (
        f"a reset with a seed takes {trial.seeded:.3f} s, one without {trial.unseeded:.3f} s; seed_every_episode = "
        "False seeds only an environment's first (episodes then cannot be played again)"
    )


@dataclass(frozen=True, eq=False)
class Recording:
    """Seed and actions of an episode, and the environment's answers."""

    seed: int
    actions: list[Any]
    said: list[tuple[list[np.ndarray], float, bool, bool]]
    """Observation, reward, terminated and truncated, of the reset and then of every step."""


def check_reproducibility(make: Callable[[], gym.Env]) -> EnvTrial:
    """Record some episodes with random actions and play them again, in the same environment and in a new one.

    Args:
        make: makes one environment; called twice, one after the other.
    """
    with make() as one:
        recordings = [record(one, seed) for seed in range(EPISODES)]
        repeats = all(difference(one, recording) is None for recording in recordings)
        seconds = reset_seconds(one)
    with make() as other:  # as a resumed process will
        equal = difference(other, recordings[0]) is None
    return EnvTrial("never" if not equal else "used" if repeats else "new", *seconds)


def reset_seconds(env: gym.Env) -> tuple[float, float]:
    """Return the shortest times of a reset with a seed and without one."""
    fastest = [math.inf, math.inf]
    for seed in range(RESETS):
        for i, given in enumerate((seed, None)):
            began = time.perf_counter()
            env.reset(seed=given)
            fastest[i] = min(fastest[i], time.perf_counter() - began)
    return fastest[0], fastest[1]


def record(env: gym.Env, seed: int) -> Recording:
    """Record random actions until the episode ends, up to a limit."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    actions: list[Any] = []
    said = [(copied(observation), 0.0, False, False)]
    while len(actions) < STEPS and not any(said[-1][2:]):
        actions.append(random_action(env.action_space, observation, info))
        observation, reward, terminated, truncated, info = env.step(own(actions[-1]))
        said.append((copied(observation), float(reward), bool(terminated), bool(truncated)))
    return Recording(seed, actions, said)


def random_action(space: gym.Space, observation: Any, info: dict[str, Any]) -> Any:
    """Sample an action, within the mask if the observation or info has one."""
    mask = observation.get(MASK) if isinstance(observation, dict) else info.get(MASK)
    if mask is None:
        return space.sample()
    flat = flat_mask(mask).astype(np.int8)
    if isinstance(space, gym.spaces.MultiDiscrete):
        ends = np.cumsum(space.nvec.ravel())[:-1]
        return space.sample(mask=tuple(np.split(flat, ends)))
    return space.sample(mask=flat)


def difference(env: gym.Env, recording: Recording) -> int | None:
    """Return the first step at which the episode differs (0: the reset), or ``None``."""
    for step, said in enumerate(_played(env, recording)):
        if said[1:] != recording.said[step][1:] or not equal(said[0], recording.said[step][0]):
            return step
    return None


def _played(env: gym.Env, recording: Recording) -> Iterator[tuple[Any, float, bool, bool]]:
    observation, _ = env.reset(seed=recording.seed)
    yield observation, 0.0, False, False
    for action in recording.actions:
        observation, reward, terminated, truncated, _ = env.step(own(action))
        yield observation, float(reward), bool(terminated), bool(truncated)


def leaves(observation: Any) -> Iterator[np.ndarray]:
    """Yield the arrays of a nested observation."""
    if isinstance(observation, dict):
        observation = tuple(observation.values())
    if isinstance(observation, (tuple, list)):
        for part in observation:
            yield from leaves(part)
    else:
        yield np.asarray(observation)


def copied(observation: Any) -> list[np.ndarray]:
    """Copy the arrays of a nested observation."""
    return [leaf.copy() for leaf in leaves(observation)]


def equal(observation: Any, others: list[np.ndarray]) -> bool:
    """Return True for an observation with the same bits as one that was :func:`copied`."""
    pairs = zip(leaves(observation), others, strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)
