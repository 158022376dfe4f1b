"""Outcomes of runs: what the table has of a training, and the file beside a run directory that keeps it."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from klrl.agents import Agent
from klrl.run import Evaluation
from klrl.run.callback import Metrics
from klrl.run.csv_log import last_tenth
from klrl.run.targets import asked_for, in_words, judged_by
from klrl.studies.kept import check, keep, kept
from klrl.studies.measure import moved, on_next_states
from klrl.studies.results import Row
from klrl.trust_region import DEFAULT_TARGET_KL
from klrl.validation import NonNegativeInt, PositiveInt

DONE, FAILED = "done", "failed"
_IDENTITY = {"status": Literal["done", "failed"], "config": dict, "versions": dict}
_OUTCOME = dict.fromkeys(("mean_return", "std_return", "kl_mean", "kl_median_second_half", "kl_largest"), float) | {
    **dict.fromkeys(("steps_per_second", "judged_by", "states_over_target", "peak_memory_mib"), float),
    **dict.fromkeys(("target_kl", "last_tenth_return", "last_beta", "last_actor_learning_rate"), float | None),
    **dict.fromkeys(("num_timesteps", "last_tenth_episodes", "updates_over_target"), NonNegativeInt),
    "updates": PositiveInt,
    "curve": list,
}
"""Results of :func:`outcome`, by type."""
_LATER = {
    "counted_against": str | None, "next_counted_against": str, "kl_p95_mean": float, "kl_state_largest": float,
}  # fmt: skip
"""Results that outcomes of earlier studies lack."""


def outcome_file(directory: Path) -> Path:
    """Return the path of a run's outcome: beside its directory."""
    return directory.with_name(f"{directory.name}.json")


def write_outcome(directory: Path, row: Row) -> None:
    """Keep the outcome of a run beside its directory, in one step.

    Raises:
        OSError: it cannot be written.
    """
    keep(outcome_file(directory), row)


def read_outcome(directory: Path) -> Row | None:
    """Return what :func:`write_outcome` wrote, or ``None``.

    Raises:
        ValueError: the file holds something else, said in one line.
        OSError: it cannot be read now.
    """
    path = outcome_file(directory)
    row = kept(path, _IDENTITY)
    if row is not None and row["status"] == DONE:
        check(path.name, row, _OUTCOME | {name: hint for name, hint in _LATER.items() if name in row})
    return row


def outcome(agent: Agent[Any], result: Evaluation, directory: Path) -> Row:
    """Return what the table, the CSV and the figures need of a finished training.

    Args:
        agent: the trained agent.
        result: its evaluation.
        directory: its run directory.
    """
    history, movement = agent.history, movement_of(agent.history)
    last = last_tenth(directory / "episodes.csv", agent.num_timesteps)
    return {
        **movement,
        "mean_return": result.mean,
        "std_return": result.std,
        "target_kl": agent.region.target_kl,
        "steps_per_second": float(history[-1]["time/fps"]),
        "last_tenth_return": float(np.mean(last)) if last else None,
        "last_tenth_episodes": len(last),
        "num_timesteps": agent.num_timesteps,
        **on_next_states(history, agent.region.next_kl),
        "last_beta": history[-1].get("train/kl_penalty"),
        "last_actor_learning_rate": history[-1].get("train/actor_learning_rate"),
        "peak_memory_mib": peak_memory(),
    }


def movement_of(history: Sequence[Metrics]) -> Row:
    """Return how far a policy moved against what it was asked for, klrl's or another library's, and its curve.

    Args:
        history: metrics of the updates.
    """
    kl, bounds, found = np.array([row["drift/kl"] for row in history]), asked_for(history[-1]), moved(history)
    limit, over = judged_by(bounds, DEFAULT_TARGET_KL), found["updates_over_target"]
    return {
        **found,
        "target_kl": bounds.get("drift/kl"),
        "kl_median_second_half": float(np.median(kl[len(kl) // 2 :])),
        "judged_by": limit,
        "counted_against": in_words(asked_for(history[0]), bounds) or None,
        "kl_p95_mean": float(np.mean([row["drift/kl_p95"] for row in history])),
        "kl_state_largest": max(row["drift/kl_max"] for row in history),
        "updates_over_target": int((kl > limit).sum()) if over is None else over,
        "states_over_target": float(np.mean([row["drift/states_over_target"] for row in history])),
        "curve": curve(history),
    }


def curve(history: Sequence[Metrics], points: int = 30) -> list[list[float | None]]:
    """Return steps, mean return of the last 100 episodes and KL(old||new) of about 30 updates and the last one."""
    every = max(1, len(history) // points)
    names = ("time/total_timesteps", "rollout/ep_rew_mean", "drift/kl")
    rows = [[float(row[name]) for name in names] for row in history[::-1][::every][::-1]]
    return [[None if math.isnan(x) else x for x in row] for row in rows]


def peak_memory() -> float:
    """Return the most memory that this process has had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
