"""Training on the command line: a run with its files, its signals and its end (``klrl train``, ``klrl resume``)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym

from klrl.agents import Agent, AgentConfig
from klrl.experience import BadStep
from klrl.experience.environments import env_id
from klrl.experience.reproducibility import EnvTrial, costly_seeds
from klrl.experience.wrapped import Named
from klrl.integrations.trackers import Tracker
from klrl.run import Callback, KLBudget, StopAtReturn
from klrl.run.beside import CannotBegin
from klrl.run.directory import RunDirectory
from klrl.run.evaluation import CannotAct
from klrl.run.options import RunOptions
from klrl.run.progress import Progress
from klrl.run.signals import Interrupted, Signals
from klrl.run.torchrun import RankFailed
from klrl.run.world import Diverged
from klrl.scripts.cli.command_line import bad_input, fail, failed_worker
from klrl.scripts.cli.terminal import PlainConsole


class Opening(Callback):
    """Prints the first lines: whether the run can be resumed exactly, what seeds cost, and its preset."""

    def __init__(self, say: Callable[[str], object], env: Named, preset: Sequence[str]) -> None:
        self._say, self._env, self._preset = say, env, preset

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Print the lines."""
        name = env_id(self._env)
        trial = agent.trial or EnvTrial("never")  # a saved agent whose environments cannot return to their episodes
        for note in _notes(trial, agent.config):
            self._say(f"{name}: {note}")
        if self._preset:
            self._say(f"preset for {name}: {', '.join(self._preset)}")


def _notes(trial: EnvTrial, config: AgentConfig) -> Iterator[str]:
    """Yield what to know about a run, from the findings about its environment."""
    if not trial.playable(config.rebuild_envs):
        why = {"new": "a used environment behaves differently: "}.get(trial.reproducibility, "")
        how = " (--rebuild-envs makes a new one for each)" if trial.reproducibility == "new" else ""
        yield f"{why}episodes cannot be played again{how}; if this run is interrupted, klrl resume begins new ones"
    elif trial.reproducibility == "unknown":
        why = "random actions fail in it" if config.try_envs else "it was not tried"
        yield f"{why}, so it is unknown whether its episodes can be played again; klrl resume tries"
    elif config.rebuild_envs:
        yield "every episode gets a new environment, and nothing that one keeps outlives it"
    if (advice := costly_seeds(trial)) is not None:
        yield advice


def run_training(
    prog: str,
    agent: Agent[Any],
    learn: Callable[[Sequence[Callback]], object],
    env: Named,
    keep: RunDirectory,
    options: RunOptions,
    signals: Signals,
    *,
    preset: Sequence[str] = (),
) -> None:
    """Train, report how it ended, and evaluate.

    Args:
        prog: name of the command, for messages.
        agent: agent to train.
        learn: trains it with these callbacks.
        env: environment of the evaluation.
        keep: writer of the run's files.
        options: everything else.
        signals: handlers, installed before the directory exists, because whoever sees it may send signals; and only
            once, because an outer context would restore handlers for a signal that the inner one has answered.
        preset: settings that the environment's preset has changed.
    """
    console, aside = PlainConsole(), PlainConsole()  # a signal may come while the other one prints
    budgets, goal = options.budgets(), options.goal()
    signals.save = partial(_save, keep, aside)
    try:
        with bad_input(prog):
            keep.claim()
        with failed_worker(prog, lambda: _goes_on(agent, keep)):
            evaluation = options.evaluation(env)
            beside = [*options.videos(env, keep.path), *tracking(options, keep.path)]
            opening = Opening(console.print, env, preset)
            learn([*evaluation, keep, *beside, opening, Progress(console), signals, *budgets, *goal])
            _finish(console, agent, env, keep, options, _reasons(options, budgets, goal))
        signals.check()
        agent.close()
    except Interrupted as signal:
        what = f"checkpoint {keep.saved}" if keep.saved else "nothing to keep before the first update was done"
        aside.print(f"stopped by {signal}: {what}{_goes_on(agent, keep)}")
        sys.exit(128 + signal.number)
    except (RankFailed, Diverged) as error:
        fail(prog, f"{error}{_goes_on(agent, keep)}", status=1)
    except (FloatingPointError, OSError) as error:
        if getattr(error, "__notes__", None):  # from an environment: its traceback says more than a line
            raise
        fail(prog, f"{error}{_goes_on(agent, keep) if isinstance(error, OSError) else ''}", status=1)
    except (BadStep, CannotBegin, gym.error.Error) as error:
        fail(prog, error)
    finally:
        keep.release()
        agent.close()


def _save(keep: RunDirectory, aside: PlainConsole) -> None:
    """Write a checkpoint and print where, as a signal asks for it, at any moment."""

    def said(path: Path | None) -> None:
        what = f"checkpoint {path}" if path else "nothing to save before the first update ends"
        aside.print(f"SIGUSR1: {what}")

    try:
        keep.save(said)
    except OSError as error:  # which must not end what is going on
        aside.print(f"SIGUSR1: not saved, {error}")


def tracking(options: RunOptions, run_dir: Path) -> list[Tracker]:
    """Return what sends the run to a tracker.

    Raises:
        ValueError: its package is not installed.
    """
    if options.track is None:
        return []
    return [Tracker(options.track, project=options.track_project, run_dir=run_dir, report=_report)]


def _report(run_dir: Path, file: Path) -> bool:
    """Write a report of the run, if what draws it is installed."""
    from klrl.report import write
    from klrl.report.page import has_extra

    if has_extra():
        write([run_dir], file, command=f"klrl report {shlex.quote(str(run_dir))}")
    return has_extra()


def _finish(
    console: PlainConsole,
    agent: Agent[Any],
    env: Named,
    keep: RunDirectory,
    options: RunOptions,
    reasons: Iterable[str],
) -> None:
    """Print where everything is and why the training ended early, and evaluate."""
    console.print(f"run directory: {keep.path}\nTensorBoard: tensorboard --logdir {keep.path}")
    for reason in reasons:
        console.print(reason)
    if options.final_episodes:
        try:
            result = options.evaluated(agent, env)
        except CannotAct as error:
            raise FloatingPointError(f"evaluation: {error}; the training is finished and saved") from error
        console.print(f"evaluation: {result} over {len(result.returns)} episodes")


def _reasons(options: RunOptions, budgets: Sequence[KLBudget], goal: Sequence[StopAtReturn]) -> Iterator[str]:
    over = "stopped" if options.over_budget == "stop" else "over budget"
    yield from (f"{over}: {budget.reason}" for budget in budgets if budget.reason)
    yield from (f"stopped: {one.reason}" for one in goal if one.reason)


def _goes_on(agent: Agent[Any], keep: RunDirectory) -> str:
    """Return the end of a message: how to continue a run that was ended from outside."""
    if keep.saved is None:
        return ""
    finished = agent.training is not None and int(keep.saved.name) >= agent.training.last
    return "; training was finished" if finished else f"; klrl resume {keep.path} continues it"
