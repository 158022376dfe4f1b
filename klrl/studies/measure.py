"""Measurement of a training: return, distance that the policy moved, and speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from klrl.agents import Agent
from klrl.run import Callback, evaluate
from klrl.run.callback import NEXT_KL, Metrics
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
    return {
        "mean_return": result.mean,
        "std_return": result.std,
        "target_kl": agent.region.target_kl,
        **moved(agent.history),
        "steps_per_second": agent.num_timesteps / seconds,
    }


def moved(history: Sequence[Metrics]) -> dict[str, Any]:
    """Return how far a policy moved, by the metrics of its updates."""
    kl = np.array([row["drift/kl"] for row in history])
    over = [outside for row in history if (outside := beyond(row)) is not None]
    return {
        "updates": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_largest": float(kl.max()),
        "updates_over_target": sum(over) if over else None,
    }


def on_next_states(history: Sequence[Metrics], judged_by: float) -> dict[str, Any]:
    """Return how far the updates moved on the states that their policies visited, as far as a rollout has told.

    Args:
        history: metrics of the updates.
        judged_by: KL that they are counted against, nats.
    """
    kl = np.array([x for row in history if (x := float(row.get(NEXT_KL, math.nan))) == x])
    return {
        "next_kl_mean": float(kl.mean()) if len(kl) else None,
        "next_kl_largest": float(kl.max()) if len(kl) else None,
        "next_judged_by": judged_by,
        "next_judged": len(kl),
        "next_over": int((kl > judged_by).sum()),
    }
