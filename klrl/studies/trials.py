"""One run of a comparison: trained, measured, kept in a file of its own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from klrl.agents import AgentConfig
from klrl.agents.names import agent_class
from klrl.experience import Batch, Episode
from klrl.experience.environments import factory
from klrl.run import Callback
from klrl.run.callback import Metrics
from klrl.run.directory import versions
from klrl.studies.kept import check, keep, kept
from klrl.studies.measure import measure
from klrl.studies.results import Row
from klrl.text import one_line
from klrl.trust_region import DEFAULT_TARGET_KL
from klrl.validation import NonNegativeInt, PositiveInt

FINISHED, FAILED = "finished", "failed"
_NAMED = ("env", "variant", "agent", "seed", "total_timesteps")
_IDENTITY = {"status": Literal["finished", "failed"], "config": dict, "versions": dict}
_OUTCOME = dict.fromkeys(("mean_return", "std_return", "kl_mean", "kl_median_second_half", "kl_largest"), float) | {
    **dict.fromkeys(("steps_per_second", "judged_by", "states_over_target"), float),
    **dict.fromkeys(("target_kl", "last_tenth_return", "last_beta", "last_actor_learning_rate"), float | None),
    **dict.fromkeys(("num_timesteps", "last_tenth_episodes", "updates_over_target"), NonNegativeInt),
    "updates": PositiveInt,
    "curve": list,
}
"""Results of :func:`outcome`, by type."""


class Episodes(Callback):
    """Records every episode of the training."""

    def __init__(self) -> None:
        self.all: list[Episode] = []

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> None:
        """Record the episodes that ended in this rollout."""
        self.all.extend(batch.episodes)

    def last_tenth(self, total_timesteps: int) -> list[float]:
        """Return the returns of episodes that ended in the last tenth of the training."""
        return [e.episode_return for e in self.all if e.total_timesteps > 0.9 * total_timesteps]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A variant on an environment with a seed, with everything that decides its result."""

    env: str
    variant: str
    agent: str
    seed: int
    total_timesteps: int
    config: AgentConfig

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        return f"{self.env} {self.variant} seed {self.seed}"

    def path(self, folder: Path) -> Path:
        """Return the path of its file."""
        name = "__".join([self.env, self.variant, str(self.seed)])
        return folder / f"{re.sub(r'[^A-Za-z0-9_.,+=-]', '_', name)}.json"

    def identity(self) -> Row:
        """Return everything that decides its result, as plain JSON."""
        named = {key: getattr(self, key) for key in _NAMED}
        return json.loads(json.dumps({**named, "versions": versions(), "config": self.config.to_json()}))

    def kept(self, folder: Path) -> Row | None:
        """Return the row that an earlier call finished, or ``None``.

        Raises:
            ValueError: the file holds something else, said in one line.
            OSError: the file cannot be read now.
        """
        path = self.path(folder)
        row = kept(path, _IDENTITY)
        if row is None or row["status"] != FINISHED:
            return None
        check(path.name, row, _OUTCOME)
        return row

    def differences(self, row: Row) -> list[str]:
        """Return the names of settings and packages in which a kept run differs."""
        mine, theirs = _flat(self.identity()), _flat(row)
        return [name for name in mine | theirs if mine.get(name) != theirs.get(name)]


def _flat(row: Row) -> Row:
    return {key: row[key] for key in _NAMED} | row["config"] | row["versions"]


def run(trial: Trial, folder: Path) -> Row:
    """Train and measure, or record the error; either way, the file is written in one step."""
    row = trial.identity()
    try:
        row |= {"status": FINISHED, "error": None, **outcome(trial)}
    except Exception as error:  # a failed run is a result of the comparison and does not end it
        row |= {"status": FAILED, "error": one_line(f"{type(error).__name__}: {error}")}
    keep(trial.path(folder), row)
    return row


def outcome(trial: Trial) -> Row:
    """Train, and return what the table, the CSV and the figures need."""
    torch.set_num_threads(1)
    agent = agent_class(trial.agent)(trial.env, trial.config, seed=trial.seed)
    episodes = Episodes()
    try:
        measured = measure(agent, trial.total_timesteps, factory(trial.env), episodes)
    finally:
        agent.close()
    history, kl = agent.history, np.array([row["drift/kl"] for row in agent.history])
    judged_by = measured["target_kl"] or DEFAULT_TARGET_KL
    last = episodes.last_tenth(agent.num_timesteps)
    return {
        **measured,
        "last_tenth_return": float(np.mean(last)) if last else None,
        "last_tenth_episodes": len(last),
        "num_timesteps": agent.num_timesteps,
        "kl_median_second_half": float(np.median(kl[len(kl) // 2 :])),
        "judged_by": judged_by,
        "updates_over_target": int((kl > judged_by).sum()),
        "states_over_target": float(np.mean([row["drift/states_over_target"] for row in history])),
        "last_beta": history[-1].get("train/kl_penalty"),
        "last_actor_learning_rate": history[-1].get("train/actor_learning_rate"),
        "curve": curve(history),
    }


def curve(history: Sequence[Metrics], points: int = 30) -> list[list[float | None]]:
    """Return steps, mean return of the last 100 episodes and KL(old||new) of about 30 updates and the last one."""
    every = max(1, len(history) // points)
    names = ("time/total_timesteps", "rollout/ep_rew_mean", "drift/kl")
    rows = [[float(row[name]) for name in names] for row in history[::-1][::every][::-1]]
    return [[None if math.isnan(x) else x for x in row] for row in rows]
