"""One run of a study, in the process that calls: trained, or gone on with, in its run directory; then evaluated."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import torch

from klrl.agents import Agent
from klrl.agents.names import agent_class
from klrl.run import RunDirectory, World, checkpoint
from klrl.run.callback import Callback
from klrl.run.directory import versions
from klrl.run.torchrun import RankFailed
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

    A failed run is a result, too: a row with the error. Of several ranks (:class:`klrl.run.World`) the first one has
    the directory and the outcome.

    Args:
        trial: the run.
        directory: its run directory, as ``klrl train`` makes it.
        callbacks: more callbacks of the training.
        taken: whether a process whose claim has expired may still write to the directory, which a copy then replaces.

    Raises:
        RankFailed: another rank is lost; all of them can be begun again.
    """
    row = trial.identity() | {"versions": versions()}
    torch.set_num_threads(trial.options.torch_threads)
    try:
        return row | {"status": DONE, "error": None, "traceback": None, **_trained(trial, directory, callbacks, taken)}
    except Exception as error:
        if isinstance(error, RankFailed) and error.seen_here:
            raise
        said = one_line(f"{type(error).__name__}: {error}")
        return row | {"status": FAILED, "error": said, "traceback": traceback.format_exc()}


def _trained(trial: Trial, directory: Path, callbacks: tuple[Callback, ...], taken: bool) -> Row:
    """Train and evaluate."""
    cls, options, world = agent_class(trial.agent), trial.options, World.current()
    world.settle(rank_timeout=options.rank_timeout, on_divergence=options.on_divergence)
    agent: Agent[Any] | None = None
    keep: RunDirectory | None = None
    try:
        if world.rank == 0:
            keep = _opened(trial, directory, taken)
        region = trial.config.trust_region
        own = region if isinstance(region, TrustRegion) else None
        agent, learn = saved_or_new(
            directory,
            lambda: _new(cls, trial),
            trial.total_timesteps,
            trial.env,
            own,
            trial.config.network,
            lambda path: world.saved_by_first(lambda: checkpoint.read(path)),
        )
        evaluation, budgets, goal = options.evaluation(trial.env), options.budgets(), options.goal()
        owed = keep is not None and any(one.owes(agent) for one in evaluation)
        finished = world.said_by_first(lambda: why_finished(agent, budgets, goal))
        if world.any(owed) or finished is None:
            learn([*evaluation, *([] if keep is None else [keep]), *callbacks, *budgets, *goal])
        return {} if keep is None else outcome(agent, options.evaluated(agent, trial.env), directory)
    except BaseException as error:
        world.fail(error)
        raise
    finally:
        if keep is not None:
            keep.release()
        if agent is not None:
            agent.close()


def _opened(trial: Trial, directory: Path, taken: bool) -> RunDirectory:
    """Open the run directory, in which nothing but this run may be.

    Raises:
        ValueError: there is another one.
        BlockingIOError: another process is writing there.
    """
    if taken:
        replaced(directory)
    keep = _claimed(trial, directory)
    if (other := difference(directory, trial.config, trial.env, trial.seed, trial.total_timesteps)) is not None:
        keep.release()
        raise ValueError(f"run_dir = {directory} holds another run: {other}; allowed: the directory of this one")
    return keep


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
