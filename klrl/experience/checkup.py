"""What an environment does that training relies on: measured, in words a user can act on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym
import numpy as np

from klrl.experience.replay import EPISODES, Recording, copied, difference, equal, leaves, random_action, record
from klrl.experience.steps import BadStep, CheckedSteps
from klrl.policy.spaces import check_spaces

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One question, what was found, and whether it stands in the way."""

    question: str
    verdict: Verdict
    answer: str


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
        recordings = [record(env, seed + i) for i in range(EPISODES)]
        yield _aliasing(env, seed)
        yield _numbers(env, seed, steps)
        yield _replay("the same after other episodes", env, recordings, "note", _USED)
    with make() as fresh:
        yield _replay("the same in a new environment", fresh, recordings[:1], "problem", _FRESH)


_USED = "an episode depends on those before it, so klrl makes a new environment for each"
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


def _replay(question: str, env: gym.Env, recordings: list[Recording], verdict: Verdict, otherwise: str) -> Finding:
    for recording in recordings:
        if (step := difference(env, recording)) is not None:
            where = f"episode with seed {recording.seed}, step {step}"
            return Finding(question, verdict, f"no ({where}): {otherwise}")
    n = sum(len(recording.actions) for recording in recordings)
    return Finding(question, "ok", f"yes, {n} of {n} steps equal to the bit")


def _aliasing(env: gym.Env, seed: int) -> Finding:
    """Whether an observation changes after it was handed out."""
    observation, info = env.reset(seed=seed)
    before = copied(observation)
    env.step(random_action(env.action_space, observation, info))
    if equal(observation, before):
        return Finding("observations of their own memory", "ok", "yes")
    return Finding("observations of their own memory", "note", "no, a step overwrites the last one; klrl copies them")


def _numbers(env: gym.Env, seed: int, steps: int) -> Finding:
    """Whether random steps give what the spaces promise, with the words that training would use."""
    question, episode, length = "finite numbers", 0, 0
    checked = CheckedSteps(lambda: env, 0, (env.observation_space, env.action_space))
    env.action_space.seed(seed)
    try:
        observation, info = checked.reset(seed=seed)
        for _ in range(steps):
            action = random_action(env.action_space, observation, info)
            observation, reward, terminated, truncated, info = checked.step(action)
            length += 1
            where = f"step {length} of episode {episode}"
            for what, value in (("observation", observation), ("reward", reward)):
                if not all(np.isfinite(x).all() for x in leaves(value) if x.dtype.kind == "f"):
                    return Finding(question, "problem", f"no: the {what} of {where} is not")
            if not env.observation_space.contains(observation):
                return Finding(question, "note", f"yes, but the observation of {where} is not in its space")
            if terminated or truncated:
                observation, info = checked.reset()
                episode, length = episode + 1, 0
    except BadStep as error:
        return Finding(question, "problem", f"no: {error}")
    return Finding(question, "ok", f"yes, in {steps:,} random steps and {episode + 1:,} episodes")
