"""Run a policy for whole episodes and report its returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.policy.observations import MASK
from klrl.run.seeding import evaluation_seed


class CannotAct(ValueError):
    """An agent cannot act on what an environment gave; the message says what and when."""


@dataclass(frozen=True)
class Evaluation:
    """Undiscounted returns and lengths of evaluation episodes."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes."""
        return float(np.std(self.returns))


def evaluate(
    agent: Any, env: gym.Env, n_episodes: int = 20, *, deterministic: bool = True, seed: int = 0
) -> Evaluation:
    """Play ``n_episodes`` in one environment with ``agent.predict``; the agent's training state is untouched.

    Args:
        agent: anything with Stable-Baselines3's ``predict(observation, deterministic=...)``; where it has a true
            attribute ``takes_action_masks``, it is given ``info["action_mask"]`` as ``action_masks``.
        env: a single environment, reset with a seed made from ``seed`` and then left to its own stream.
        n_episodes: whole episodes to play.
        deterministic: take the mode instead of a sample.
        seed: run seed; evaluation seeds never coincide with the training environments'.

    Raises:
        ValueError: no episodes.
        CannotAct: ``predict`` refuses an observation, or ``info`` has no mask for an agent that was trained with them.
    """
    if n_episodes < 1:
        raise ValueError(f"n_episodes = {n_episodes}; allowed: an integer >= 1")
    masked = getattr(agent, "takes_action_masks", False)
    returns: list[float] = []
    lengths: list[int] = []
    observation, info = env.reset(seed=evaluation_seed(seed))
    for _ in range(n_episodes):
        total, length, ended = 0.0, 0, False
        while not ended:
            if masked and MASK not in info:
                raise CannotAct(f"info has no {MASK!r} after {length} steps; allowed: one at every reset and step")
            masks = {"action_masks": info[MASK]} if masked else {}
            try:
                action, _ = agent.predict(observation, deterministic=deterministic, **masks)
            except ValueError as error:
                raise CannotAct(f"episode {len(returns)} after {length} steps: {error}") from error
            if isinstance(action, np.ndarray):
                action = action[()]  # one number as a number, which is what vector environments hand out
            observation, reward, terminated, truncated, info = env.step(action)
            total, length, ended = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
        observation, info = env.reset()
    return Evaluation(tuple(returns), tuple(lengths))
