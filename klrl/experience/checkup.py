"""Checks of what training assumes of an environment: measured, and reported in words a user can act on."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from klrl.experience.environments import time_limit
from klrl.experience.reproducibility import (
    EPISODES,
    EnvTrial,
    Recording,
    copied,
    costly_seeds,
    difference,
    equal,
    leaves,
    random_action,
    record,
    reset_seconds,
)
from klrl.experience.steps import BadStep, CheckedSteps
from klrl.policy.spaces import check_spaces
from klrl.policy.units import Units, caution
from klrl.text import plain

_WIDE = 1e6
"""Half-width of a range from which its bounds may be nominal."""

Verdict = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One question, what was found, and whether it stands in the way."""

    question: str
    verdict: Verdict
    answer: str


def check_up(make: Callable[[], gym.Env], *, seed: int = 0, steps: int = 10_000) -> Iterator[Finding]:
    """Run every check on an environment and yield the findings; an exception that it raises is the last finding.

    Args:
        make: makes one environment.
        seed: seed of episodes and random actions.
        steps: number of random steps in which to look for NaN and infinity.
    """
    try:
        yield from _findings(make, seed, steps)
    except BadStep as error:
        yield Finding("runs without errors", "problem", f"no: {error}")
    except Exception as error:
        *_, (file, line, function, _) = traceback.extract_tb(error.__traceback__)
        what = plain(f"{type(error).__name__}: {error}", 500)
        yield Finding("runs without errors", "problem", f"no: {what} ({file}, line {line}, in {function})")


def _findings(make: Callable[[], gym.Env], seed: int, steps: int) -> Iterator[Finding]:
    with make() as env:
        yield (spaces := _spaces(env))
        yield _time_limit(env)
        if spaces.verdict == "problem":
            return
        if isinstance(env.action_space, gym.spaces.Box):
            yield _action_scale(env.action_space)
        promised = env.observation_space, env.action_space
        checked = CheckedSteps(lambda: env, 0, promised)
        recordings = [record(checked, seed + i) for i in range(EPISODES)]
        yield _aliasing(env, seed)
        yield _numbers(checked, seed, steps)
        yield _repeats("the same after other episodes", checked, recordings, "note", _USED)
        yield _seeds(checked)
    with CheckedSteps(make, 0, promised) as fresh:
        yield _repeats("the same in a new environment", fresh, recordings[:1], "problem", _FRESH)


_USED = (
    "an episode depends on those before it, so episodes cannot be played again; if a run is interrupted, klrl resume "
    "begins new ones (--rebuild-envs makes a new environment for each)"
)
_FRESH = "the same seed and actions give other episodes: runs cannot be repeated or resumed exactly"


def _spaces(env: gym.Env) -> Finding:
    try:
        check_spaces(env.observation_space, env.action_space)
    except ValueError as error:
        return Finding("spaces", "problem", str(error))
    return Finding("spaces", "ok", f"{type(env.observation_space).__name__} to {type(env.action_space).__name__}")


def _time_limit(env: gym.Env) -> Finding:
    if (limit := time_limit(env)) is not None:
        return Finding("time limit", "ok", f"episodes are truncated after {limit} steps")
    return Finding("time limit", "note", "none: an episode may never end, and then has no return to report")


def _action_scale(space: gym.spaces.Box) -> Finding:
    """Check that a Gaussian policy starts in the range of useful actions."""
    question = "scale of actions"
    if words := caution(space):
        return Finding(question, "note", f"{words}, in the environment's units; other scales must be set by hand")
    widest = float(Units.of(space).half_range.max())
    if widest > _WIDE:
        return Finding(
            question, "note", f"std {widest:g} at first, half the box: are its bounds those of useful actions?"
        )
    return Finding(question, "ok", "bounded: a Gaussian begins in the middle, and its std is half the box")


def _repeats(question: str, env: gym.Env, recordings: list[Recording], verdict: Verdict, otherwise: str) -> Finding:
    for recording in recordings:
        if (step := difference(env, recording)) is not None:
            where = f"episode with seed {recording.seed}, step {step}"
            return Finding(question, verdict, f"no ({where}): {otherwise}")
    n = sum(len(recording.actions) for recording in recordings)
    return Finding(question, "ok", f"yes, {n} of {n} steps equal to the bit")


def _seeds(env: gym.Env) -> Finding:
    """Compare the cost of resets with and without a seed."""
    seconds = reset_seconds(env)
    if (advice := costly_seeds(EnvTrial("unknown", *seconds))) is not None:
        return Finding("cheap seeds", "note", f"no: {advice}")
    return Finding("cheap seeds", "ok", "yes, a reset with one takes {:.2g} s, one without {:.2g} s".format(*seconds))


def _aliasing(env: gym.Env, seed: int) -> Finding:
    """Check that an observation does not change after it was handed out."""
    observation, info = env.reset(seed=seed)
    before = copied(observation)
    env.step(random_action(env.action_space, observation, info))
    if equal(observation, before):
        return Finding("observations of their own memory", "ok", "yes")
    return Finding("observations of their own memory", "note", "no, a step overwrites the last one; klrl copies them")


def _numbers(env: CheckedSteps, seed: int, steps: int) -> Finding:
    """Check that resets and random steps give what the spaces promise."""
    question, episode, outside = "finite numbers", 0, ""
    for episode, step, observation, reward in _random_steps(env, seed, steps):
        where = f"step {step} of episode {episode}" if step else f"the reset of episode {episode}"
        for what, value in (("observation", observation), ("reward", reward)):
            if not all(np.isfinite(x).all() for x in leaves(value) if x.dtype.kind == "f"):
                return Finding(question, "problem", f"no: the {what} of {where} is not")
        if not outside and not env.observation_space.contains(observation):
            outside = where
    if outside:
        return Finding(question, "note", f"yes, but the observation of {outside} is not in its space")
    return Finding(question, "ok", f"yes, in {steps:,} random steps and {episode + 1:,} episodes")


def _random_steps(env: CheckedSteps, seed: int, steps: int) -> Iterator[tuple[int, int, Any, float]]:
    """Yield episode, step in it (0: the reset), observation and reward."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    yield (episode := 0), (length := 0), observation, 0.0
    for _ in range(steps):
        action = random_action(env.action_space, observation, info)
        observation, reward, terminated, truncated, info = env.step(action)
        length += 1
        yield episode, length, observation, reward
        if terminated or truncated:
            observation, info = env.reset()
            episode, length = episode + 1, 0
            yield episode, length, observation, 0.0
