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
from klrl.run.targets import asked_for, beyond, from_to, judged_by
from klrl.trust_region import DEFAULT_TARGET_KL


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


def on_next_states(history: Sequence[Metrics], next_kl: float | None) -> dict[str, Any]:
    """Return how far the updates moved on the states that their policies visited, as far as a rollout has told.

    Args:
        history: metrics of the updates.
        next_kl: the region's bound for that, nats; without one, updates are counted against the target of each.
    """
    limits = np.array([next_kl or judged_by(asked_for(row), DEFAULT_TARGET_KL) for row in history])
    kl = np.array([float(row.get(NEXT_KL, math.nan)) for row in history])
    over, kl = int((kl > limits).sum()), kl[~np.isnan(kl)]
    return {
        "next_kl_mean": float(kl.mean()) if len(kl) else None,
        "next_kl_largest": float(kl.max()) if len(kl) else None,
        "next_judged_by": float(limits[-1]),
        "next_counted_against": from_to(limits[0], limits[-1]),
        "next_judged": len(kl),
        "next_over": over,
    }
