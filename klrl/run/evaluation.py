"""Evaluation of a policy by the returns of whole episodes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from klrl.policy.choices import MASK
from klrl.run.seeding import evaluation_seed
from klrl.text import warn_user

if TYPE_CHECKING:
    from klrl.run.callback import Metrics

SUCCESS = "is_success"
"""Key of robotics environments' infos: 1 in an episode that did what it was to do."""
MEAN_REWARD, MEAN_LENGTH, SUCCESS_RATE = "eval/mean_reward", "eval/mean_ep_length", "eval/success_rate"
CUT, FAILURES = "eval/cut", "eval/failures"
"""Metrics of evaluations during training."""
ENOUGH = 30_000
"""Default limit of an evaluation episode, in steps: an Atari game is ended after 27,000."""


class CannotAct(ValueError):
    """The agent cannot act on an environment's answer; the message says which, and when."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of evaluation episodes, as far as they were played."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    cut: tuple[int, ...] = ()
    """Indices of the episodes that were cut at the limit in steps."""
    infos: tuple[Mapping[str, float], ...] = ()
    """Numbers in the infos of the episodes' last steps, under the keys that were asked for and ``is_success``."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes."""
        return float(np.std(self.returns))

    @property
    def mean_length(self) -> float:
        """Mean length, in steps."""
        return float(np.mean(self.lengths))

    @property
    def success_rate(self) -> float | None:
        """Mean of ``is_success`` over the episodes whose last info has it; ``None`` if none has."""
        return self.info_means.get(SUCCESS)

    @property
    def info_means(self) -> dict[str, float]:
        """Mean of every number in the last infos, over the episodes where it was there."""
        keys = dict.fromkeys(key for info in self.infos for key in info)
        return {key: float(np.mean([info[key] for info in self.infos if key in info])) for key in keys}

    def __str__(self) -> str:
        means = self.info_means
        rate = [f"success rate {means.pop(SUCCESS):.2f}"] if SUCCESS in means else []
        said = [f"mean return {self.mean:.1f} ± {self.std:.1f}", *rate, *(f"{k} {x:.3g}" for k, x in means.items())]
        return ", ".join(said)


def best_of(rows: Iterable[Metrics]) -> float:
    """Return the best evaluation of these updates; -inf if there is none."""
    scores = (float(row[MEAN_REWARD]) for row in rows if MEAN_REWARD in row)
    return max((score for score in scores if not math.isnan(score)), default=-math.inf)


def evaluate(
    agent: Any,
    env: gym.Env,
    n_episodes: int = 20,
    *,
    deterministic: bool = True,
    seed: int = 0,
    max_steps: int = ENOUGH,
    info_keys: Sequence[str] = (),
) -> Evaluation:
    """Play ``n_episodes`` in one environment with ``agent.predict``; the agent's training state is untouched.

    The environment needs no time limit: an episode is cut after ``max_steps``, and once the episodes that were cut have
    taken 30,000 steps together, no more are played. A warning says so.

    Args:
        agent: anything with Stable-Baselines3's ``predict(observation, deterministic=...)``; with a true attribute
            ``takes_action_masks``, it is given ``info["action_mask"]`` as ``action_masks``.
        env: a single environment, reset with a seed made from ``seed`` and then left to its own random numbers.
        n_episodes: number of episodes to play.
        deterministic: take the mode instead of a sample.
        seed: run seed; evaluation seeds never coincide with the training environments'.
        max_steps: most steps of an episode.
        info_keys: keys whose numbers in the info of an episode's last step are averaged; ``is_success`` is always.

    Raises:
        ValueError: the number of episodes or steps is below 1.
        BadStep: a value under one of ``info_keys`` is not a number.
        CannotAct: ``predict`` refuses an observation, or ``info`` has no mask for an agent that was trained with them.
    """
    for name, value in (("n_episodes", n_episodes), ("max_steps", max_steps)):
        if value < 1:
            raise ValueError(f"{name} = {value}; allowed: an integer >= 1")
    from klrl.experience.infos import numbers  # torch, which the limits above do without

    returns: list[float] = []
    lengths: list[int] = []
    cut: list[int] = []
    infos: list[dict[str, float]] = []
    while len(returns) < n_episodes and len(cut) * max_steps < ENOUGH:
        start = env.reset() if returns else env.reset(seed=evaluation_seed(seed))
        total, length, ended, last = _episode(agent, env, start, deterministic, max_steps, len(returns))
        if not ended:
            cut.append(len(returns))
        returns.append(total)
        lengths.append(length)
        infos.append(_success(last) | numbers(last, info_keys, f"the environment at the end of episode {len(infos)}"))
    if cut:
        warn_user(_said(len(cut), len(returns), n_episodes, max_steps))
    return Evaluation(tuple(returns), tuple(lengths), tuple(cut), tuple(infos))


def _episode(
    agent: Any, env: gym.Env, start: tuple[Any, dict[str, Any]], deterministic: bool, max_steps: int, index: int
) -> tuple[float, int, bool, dict[str, Any]]:
    """Play one episode; return its return, its length, True if it ended by itself, and its last info."""
    masked = getattr(agent, "takes_action_masks", False)
    observation, info = start
    total = 0.0
    for length in range(max_steps):
        if masked and MASK not in info:
            raise CannotAct(f"info has no {MASK!r} after {length} steps; allowed: one at every reset and step")
        masks = {"action_masks": info[MASK]} if masked else {}
        try:
            action, _ = agent.predict(observation, deterministic=deterministic, **masks)
        except ValueError as error:
            raise CannotAct(f"episode {index} after {length} steps: {error}") from error
        if isinstance(action, np.ndarray):
            action = action[()]  # a scalar action as a number, as vector environments pass it
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        if terminated or truncated:
            return total, length + 1, True, info
    return total, max_steps, False, info


def _success(info: Mapping[str, Any]) -> dict[str, float]:
    """Return ``is_success`` if it is there as a number; nobody has asked for it, so anything else is left out."""
    from klrl.experience.infos import numbers, numeric_keys

    return numbers(info, [key for key in numeric_keys(info) if key == SUCCESS], "the environment")


def _said(cut: int, played: int, wanted: int, max_steps: int) -> str:
    what = "1 episode was" if cut == 1 else f"{cut} episodes were"
    more = "" if played == wanted else f", so that only {played} of {wanted} were played"
    return f"evaluation: {what} cut after max_steps = {max_steps:,}{more}; their returns are those of the steps played"
