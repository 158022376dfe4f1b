"""Measurement of a training: return, distance that the policy moved, and speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.agents import Agent
from klrl.run import Callback, Evaluation, evaluate
from klrl.run.targets import beyond


def measure(
    agent: Agent[Any], total_timesteps: int, make: Callable[[], gym.Env], callback: Callback | None = None
) -> dict[str, Any]:
    """Train, and return the return of 20 deterministic episodes afterwards, how far the policy moved, and how fast."""
    started = time.perf_counter()
    agent.learn(total_timesteps, callback)
    seconds = time.perf_counter() - started
    with make() as env:
        result = evaluate(agent, env, 20, seed=agent.seed)
    return measured(agent, result) | {"steps_per_second": agent.num_timesteps / seconds}


def measured(agent: Agent[Any], result: Evaluation) -> dict[str, Any]:
    """Return what an evaluation and the history of a training say about it."""
    kl = np.array([row["drift/kl"] for row in agent.history])
    over = [outside for row in agent.history if (outside := beyond(row)) is not None]
    return {
        "mean_return": result.mean,
        "std_return": result.std,
        "updates": len(kl),
        "target_kl": agent.region.target_kl,
        "kl_mean": float(kl.mean()),
        "kl_largest": float(kl.max()),
        "updates_over_target": sum(over) if over else None,
    }
