"""One run of a study, in the process that calls: trained, or gone on with, in its run directory; then evaluated."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import torch

from klrl.agents import Agent
from klrl.agents.names import agent_class
from klrl.run import RunDirectory
from klrl.run.callback import Callback
from klrl.run.directory import versions
from klrl.studies.claims import replaced
from klrl.studies.opening import NOTES, difference, saved_or_new, why_finished
from klrl.studies.outcomes import DONE, FAILED, outcome
from klrl.studies.results import Row
from klrl.studies.trials import Trial
from klrl.text import one_line
from klrl.trust_region import TrustRegion

PATIENCE = 5.0
"""Seconds to wait for a directory that another process has locked."""


def run(trial: Trial, directory: Path, *callbacks: Callback, taken: bool = False) -> Row:
    """Train to the end, from the newest checkpoint if there is one, and return the row of the table.

    A failed run is a result, too: a row with the error.

    Args:
        trial: the run.
        directory: its run directory, as ``klrl train`` makes it.
        callbacks: more callbacks of the training.
        taken: whether a process whose claim has expired may still write to the directory, which a copy then replaces.
    """
    row = trial.identity() | {"versions": versions()}
    torch.set_num_threads(trial.options.torch_threads)
    try:
        return row | {"status": DONE, "error": None, "traceback": None, **_trained(trial, directory, callbacks, taken)}
    except Exception as error:
        said = one_line(f"{type(error).__name__}: {error}")
        return row | {"status": FAILED, "error": said, "traceback": traceback.format_exc()}


def _trained(trial: Trial, directory: Path, callbacks: tuple[Callback, ...], taken: bool) -> Row:
    """Train and evaluate."""
    cls, options = agent_class(trial.agent), trial.options
    if taken:
        replaced(directory)
    keep = _claimed(trial, directory)
    agent: Agent[Any] | None = None
    try:
        if (other := difference(directory, trial.config, trial.env, trial.seed, trial.total_timesteps)) is not None:
            raise ValueError(f"run_dir = {directory} holds another run: {other}; allowed: the directory of this one")
        region = trial.config.trust_region
        own = region if isinstance(region, TrustRegion) else None
        agent, learn = saved_or_new(
            directory, lambda: _new(cls, trial), trial.total_timesteps, trial.env, own, trial.config.network
        )
        evaluation, budgets, goal = options.evaluation(trial.env), options.budgets(), options.goal()
        if any(one.owes(agent) for one in evaluation) or why_finished(agent, budgets, goal) is None:
            learn([*evaluation, keep, *callbacks, *budgets, *goal])
        return outcome(agent, options.evaluated(agent, trial.env), directory)
    finally:
        keep.release()
        if agent is not None:
            agent.close()


def _claimed(trial: Trial, directory: Path) -> RunDirectory:
    """Open the run directory to write, once it is free: a process that was killed may take a moment to be gone.

    Raises:
        BlockingIOError: another process is writing there.
    """
    until = time.monotonic() + PATIENCE
    while True:
        try:
            begun = (directory / "config.json").exists()
            keep = trial.options.directory(directory, NOTES, resume=begun)
            keep.claim()
            return keep
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _new(cls: type[Agent[Any]], trial: Trial) -> Agent[Any]:
    agent = cls(trial.env, trial.config, seed=trial.seed, trial=True)
    agent.preset = trial.preset
    return agent
