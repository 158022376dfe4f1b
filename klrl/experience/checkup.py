"""What an environment does that training relies on: measured, in words a user can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from klrl.policy.spaces import check_spaces

Verdict = Literal["ok", "note", "problem"]
_EPISODES, _STEPS = 3, 200


@dataclass(frozen=True)
class Finding:
    """One question, what was found, and whether it stands in the way."""

    question: str
    verdict: Verdict
    answer: str


@dataclass(frozen=True, eq=False)
class Recording:
    """What an environment said to a seed and the actions after it."""

    seed: int
    actions: list[Any]
    said: list[tuple[Any, float, bool, bool]]
    """Observation, reward, terminated, truncated: of the reset, then of every step."""


def check_up(make: Callable[[], gym.Env], *, seed: int = 0, steps: int = 10_000) -> Iterator[Finding]:
    """Ask an environment everything, one finding after the other.

    Args:
        make: makes one environment.
        seed: of episodes and random actions.
        steps: random steps in which to look for numbers that are none.
    """
    with make() as env:
        yield (spaces := _spaces(env))
        yield _time_limit(env)
        if spaces.verdict == "problem":
            return
        recordings = [_record(env, seed + i, _STEPS) for i in range(_EPISODES)]
        yield _aliasing(env, seed)
        yield _numbers(env, seed, steps)
        yield _replay("the same after other episodes", env, recordings, _USED)
    with make() as fresh:
        yield _replay("the same in a new environment", fresh, recordings[:1], _FRESH)


_USED = "an episode depends on those before it: only new environments replay a run exactly"
_FRESH = "the same seed and actions give other episodes: runs cannot be repeated or resumed exactly"


def _spaces(env: gym.Env) -> Finding:
    try:
        check_spaces(env.observation_space, env.action_space)
    except ValueError as error:
        return Finding("spaces", "problem", str(error))
    return Finding("spaces", "ok", f"{type(env.observation_space).__name__} to {type(env.action_space).__name__}")


def _time_limit(env: gym.Env) -> Finding:
    limit = env.spec.max_episode_steps if env.spec is not None else None
    if limit is not None:
        return Finding("time limit", "ok", f"episodes are truncated after {limit} steps")
    return Finding("time limit", "note", "none: an episode may never end, and then has no return to report")


def _record(env: gym.Env, seed: int, steps: int) -> Recording:
    """Random actions until the episode ends, ``steps`` at most."""
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    actions: list[Any] = []
    said = [(_copied(observation), 0.0, False, False)]
    while len(actions) < steps and not any(said[-1][2:]):
        actions.append(env.action_space.sample())
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        said.append((_copied(observation), float(reward), bool(terminated), bool(truncated)))
    return Recording(seed, actions, said)


def _replay(question: str, env: gym.Env, recordings: list[Recording], otherwise: str) -> Finding:
    for recording in recordings:
        observation, _ = env.reset(seed=recording.seed)
        said = [(observation, 0.0, False, False)]
        for step, action in enumerate([*recording.actions, None]):
            if not _same(said[-1], recording.said[step]):
                where = f"episode with seed {recording.seed}, step {step}"
                return Finding(question, "problem", f"no ({where}): {otherwise}")
            if action is not None:
                observation, reward, terminated, truncated, _ = env.step(action)
                said.append((observation, float(reward), bool(terminated), bool(truncated)))
    n = sum(len(recording.actions) for recording in recordings)
    return Finding(question, "ok", f"yes, {n} of {n} steps equal to the bit")


def _aliasing(env: gym.Env, seed: int) -> Finding:
    """Whether an observation changes after it was handed out."""
    observation, _ = env.reset(seed=seed)
    before = _copied(observation)
    env.step(env.action_space.sample())
    if _same_observation(observation, before):
        return Finding("observations of their own memory", "ok", "yes")
    return Finding("observations of their own memory", "note", "no, a step overwrites the last one; klrl copies them")


def _numbers(env: gym.Env, seed: int, steps: int) -> Finding:
    env.action_space.seed(seed)
    observation, _ = env.reset(seed=seed)
    episode = 0
    for step in range(steps):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        for what, value in (("observation", observation), ("reward", reward)):
            if not all(np.isfinite(x).all() for x in _leaves(value) if x.dtype.kind == "f"):
                return Finding("finite numbers", "problem", f"no: the {what} of step {step} (episode {episode}) is not")
        if not env.observation_space.contains(observation):
            return Finding("finite numbers", "note", f"yes, but the observation of step {step} is not in its space")
        if terminated or truncated:
            observation, _ = env.reset()
            episode += 1
    return Finding("finite numbers", "ok", f"yes, in {steps:,} random steps and {episode + 1:,} episodes")


def _leaves(observation: Any) -> list[np.ndarray]:
    if isinstance(observation, dict):
        return [leaf for value in observation.values() for leaf in _leaves(value)]
    if isinstance(observation, tuple):
        return [leaf for value in observation for leaf in _leaves(value)]
    return [np.asarray(observation)]


def _copied(observation: Any) -> list[np.ndarray]:
    return [leaf.copy() for leaf in _leaves(observation)]


def _same_observation(one: Any, other: Any) -> bool:
    pairs = zip(_leaves(one), _leaves(tuple(other)), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def _same(one: tuple[Any, float, bool, bool], other: tuple[Any, float, bool, bool]) -> bool:
    return one[1:] == other[1:] and _same_observation(one[0], other[0])
