"""One run of a search: trained, or gone on with, in its run directory, and what it was worth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from klrl.agents import Agent, AgentConfig
from klrl.agents.names import agent_class
from klrl.experience.environments import factory
from klrl.run import Callback, evaluate
from klrl.run.callback import Metrics
from klrl.run.csv_log import episodes_until, last_tenth
from klrl.run.options import RunOptions
from klrl.run.presets import preset
from klrl.studies.kept import keep, kept
from klrl.studies.opening import NOTES, difference, saved_or_new, why_finished
from klrl.studies.tuning import Tuning

POINTS = 10
"""Number of points along a run at which its return is reported."""
EPISODES = 20
"""Number of episodes of an evaluation."""


@dataclass(frozen=True)
class Score:
    """Return and KL of a finished run."""

    mean_return: float
    """NaN if no episode ended."""
    kl_sum: float
    """KL(old||new) of all updates, in nats."""
    curve: tuple[float, ...]
    """Mean return of the last 100 episodes at :data:`POINTS` points, NaN before the first one ended."""


class Curve:
    """Values at equal parts of a training: each that of the first update after it."""

    def __init__(self, total_timesteps: int, rows: Iterable[Metrics] = ()) -> None:
        self._total, self.values = total_timesteps, list[float]()
        for row in rows:
            self.add(row)

    def add(self, row: Metrics) -> None:
        """Continue with an update's metrics."""
        part = POINTS * float(row["time/total_timesteps"]) / self._total
        while len(self.values) < min(POINTS, int(part)):
            self.values.append(float(row["rollout/ep_rew_mean"]))


def scored_run(
    design: Tuning, config: AgentConfig, seed: int, directory: Path, checkpoint_every: int | None,
    callbacks: Sequence[Callback],
) -> Score | None:  # fmt: skip
    """Train to the end, from the newest checkpoint if there is one; ``None`` if a callback ended the training.

    Args:
        design: environment, steps and measure.
        config: settings of the agent.
        seed: seed of the run.
        directory: its run directory, as ``klrl train`` makes it; its score is kept beside it.
        checkpoint_every: environment steps between checkpoints.
        callbacks: callbacks of the training.

    Raises:
        ValueError: the directory holds another run, or what it holds is damaged.
        OSError: a file cannot be read or written.
    """
    file = directory.with_name(f"{directory.name}.json")
    row = kept(file, {"config": dict, "mean_return": float, "kl_sum": float, "curve": list})
    settings = json.loads(json.dumps(config.to_json()))
    if row is not None:
        if row["config"] != settings:
            raise ValueError(f"{file} is of a run with other settings; allowed: the directory of this search")
        return Score(row["mean_return"], row["kl_sum"], tuple(math.nan if x is None else x for x in row["curve"]))
    score = _trained(design, config, seed, directory, checkpoint_every, callbacks)
    if score is not None and math.isfinite(score.mean_return) and math.isfinite(score.kl_sum):
        curve = [None if math.isnan(x) else x for x in score.curve]
        keep(file, asdict(score) | {"config": settings, "curve": curve})
    return score


def _trained(
    design: Tuning, config: AgentConfig, seed: int, directory: Path, checkpoint_every: int | None,
    callbacks: Sequence[Callback],
) -> Score | None:  # fmt: skip
    if (other := difference(directory, config, design.env, seed, design.total_timesteps)) is not None:
        raise ValueError(f"{directory} holds another run: {other}; allowed: the directory of this search")
    begun = (directory / "config.json").exists()
    files = RunOptions(checkpoint_every=checkpoint_every).directory(directory, NOTES, resume=begun)
    files.claim()
    agent: Agent[Any] | None = None

    def new() -> Agent[Any]:
        agent = agent_class(design.agent)(design.env, config, seed=seed, trial=True)
        agent.preset = design.env if design.presets and preset(design.agent, design.env) else None
        return agent

    try:
        agent, learn = saved_or_new(directory, new, design.total_timesteps, design.env, None)
        if why_finished(agent) is None:
            learn([files, *callbacks])
        if why_finished(agent) is None:
            return None
        curve = Curve(design.total_timesteps, agent.history)
        return Score(_return(design, agent, directory), float(agent.history[-1]["drift/kl_sum"]), tuple(curve.values))
    finally:
        files.release()
        if agent is not None:
            agent.close()


def _return(design: Tuning, agent: Agent[Any], directory: Path) -> float:
    """Return the mean return that the design asks for."""
    if design.measure == "evaluation":
        with factory(design.env)() as env:
            return evaluate(agent, env, EPISODES, seed=agent.seed).mean
    file, steps = directory / "episodes.csv", agent.num_timesteps
    last = last_tenth(file, steps) or [float(row["return"]) for row in episodes_until(file, steps)[-100:]]
    return float(np.mean(last)) if last else math.nan
