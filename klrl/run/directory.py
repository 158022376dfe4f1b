"""The run directory: config.json, metrics.csv, episodes.csv, TensorBoard events and checkpoints."""

from __future__ import annotations

import functools
import importlib.metadata
import io
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from klrl.experience import Batch
from klrl.experience.rollout import NonFinite
from klrl.interrupts import held
from klrl.run import checkpoint
from klrl.run.callback import NEXT_KL, STEP, Metrics, Recorder, is_complete
from klrl.run.csv_log import EPISODES, CsvLog, episodes_until
from klrl.run.disk import LARGEST_CONFIG, read_regular_file, reporting_full_disk
from klrl.run.evaluation import MEAN_REWARD, best_of
from klrl.run.flat_settings import settings_of
from klrl.run.lock import LOCK, Lock, check_free
from klrl.run.tensorboard_writer import TensorBoardWriter, step
from klrl.text import plain, warn_user

NON_FINITE = "non-finite.npz"
"""Dump of the step that produced a non-finite number. It is the only file if the run failed before its first update."""
_UNFINISHED = re.compile(r"config\.json\.[0-9a-f]{8}\.tmp")
"""Name of a config.json that its process did not live to put in its place."""
_LONGEST = 255
"""Most bytes of a file name."""
_PACKAGES = ("klrl", "torch", "gymnasium", "numpy", "mujoco", "box2d", "ale-py", "envpool")


def check_new(path: str | Path, name: str = "run_dir") -> Path:
    """Refuse a directory that is not empty or cannot be made; ``name`` is the user's word for it.

    Raises:
        BlockingIOError: a run is writing there; the message names the process.
        OSError: the directory cannot be used; the message names it.
    """
    path = Path(path)
    for part in (part for part in path.parts if len(os.fsencode(part)) > _LONGEST or "\0" in part):
        said = f"{name} = {plain(path, 120)} has a name of {len(os.fsencode(part))} bytes"
        raise OSError(f"{said}; allowed: at most {_LONGEST}, none of them zero")
    check_free(path)
    _check_empty(path, name)
    above = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise PermissionError(f"{name} = {path}: nothing can be written to {above}; allowed: a directory of your own")
    return path


def only_leftovers(path: Path) -> bool:
    """Tell whether a directory holds at most what a run leaves that died before its first update: nothing to keep."""
    if not path.is_dir():
        return False
    names = {p.name for p in path.iterdir() if not _UNFINISHED.fullmatch(p.name)} - {LOCK, NON_FINITE}
    if not names:
        return True
    others = {name for name in names - {"config.json", "episodes.csv"} if not name.startswith("events.out.tfevents.")}
    episodes = path / "episodes.csv"
    if others or not {"config.json", "episodes.csv"} <= names or not episodes.is_file():
        return False
    return episodes.stat().st_size < 100 and episodes.read_bytes().split() == [",".join(EPISODES).encode()]


def _check_empty(path: Path, name: str = "run_dir") -> None:
    if path.exists() and not only_leftovers(path):
        resumable = (path / "config.json").exists() and not checkpoint.is_log(path)
        more = " (klrl resume continues the run there)" if resumable else ""
        raise FileExistsError(f"{name} = {path} is not empty; allowed: a new or empty directory{more}")


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of Python, of packages that results depend on, and of ``more``, as far as installed."""
    found = {name: version for name in (*_PACKAGES, *more) if (version := _version(name)) is not None}
    return {"python": platform.python_version(), **found}


@functools.cache
def _version(package: str) -> str | None:
    """Return a package's version, if it is installed; reading it parses the package's whole description."""
    with suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


_NEVER = -1
"""Step of the last save, if a run's checkpoints are gone."""


class RunDirectory(Recorder):
    """Writes a run's files during training.

    State is copied after every complete update and saved at checkpoints and at the end, however training ends.

    Args:
        path: a new or empty directory; with ``resume`` the one that the agent was loaded from.
        checkpoint_every: environment steps between checkpoints, by default a tenth of the training and 100,000 at most;
            one more is written at the end.
        keep: number of newest checkpoints to keep (the best one is kept, too).
        notes: further entries of ``config.json``, as plain JSON.
        resume: continue the existing files; rows after the agent's last update are dropped.

    Raises:
        BlockingIOError: another process writes there.
        FileExistsError: the directory is not empty.
        ValueError: ``keep`` or ``checkpoint_every`` below 1.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        checkpoint_every: int | None = None,
        keep: int = 3,
        notes: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.path = (Path(path) if resume else check_new(path)).absolute()
        self.checkpoint_every = checkpoint_every
        self.keep = keep
        self.notes = {"checkpoint_every": checkpoint_every, "keep": keep, **(notes or {})}
        if keep < 1 or (checkpoint_every is not None and checkpoint_every < 1):
            raise ValueError(f"keep = {keep}, checkpoint_every = {checkpoint_every}; allowed: integers >= 1")
        self._resume = resume
        self._lock: Lock | None = None
        self._files = ExitStack()
        """Closes the open files."""
        self._tensorboard: TensorBoardWriter | None = None
        self.saved: Path | None = None
        """The newest checkpoint."""
        self._best = float("-inf")
        self._done: Any = None
        self._saving = False
        self._then: list[Callable[[Path | None], object]] = []

    def claim(self) -> None:
        """Make the directory and keep other processes out of it, from now until the training ends.

        Raises:
            BlockingIOError: another process writes there.
        """
        with held():
            if self._lock is None:
                self.path.mkdir(parents=True, exist_ok=True)
                self._lock = Lock(self.path)

    def release(self) -> None:
        """Release the directory to other processes."""
        with held():
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Write ``config.json``, or bring the files of an interrupted training back to the agent's last update."""
        self.claim()
        history: list[Metrics] = []
        episodes: list[dict[str, str]] = []
        if self._resume:
            self.check_run(agent)
            history = _rows(agent)
            episodes = episodes_until(self.path / "episodes.csv", agent.num_timesteps)
        else:
            _check_empty(self.path)
            self._describe(agent, total_timesteps)
        with held():
            self._open(agent, history, episodes)
        here = checkpoint.step_directory(self.path, agent.num_timesteps)
        self.saved = here if here.exists() else None
        self._begun_at = agent.num_timesteps
        tenth = (agent.training.last - agent.training.first) // 10
        self._every = self.checkpoint_every or min(100_000, tenth)
        self._best = best_of(history[:-1])
        self._take_evaluation(agent, history[-1:])

    def _describe(self, agent: Any, total_timesteps: int) -> None:
        """Write ``config.json``."""
        config = agent.describe() | {"total_timesteps": total_timesteps, **self.notes, "versions": versions()}
        text = f"{json.dumps(config, indent=2)}\n".encode()
        with reporting_full_disk(self.path / "config.json", len(text)):
            checkpoint.replace(self.path / "config.json", text)
        for file in self.path.iterdir():
            if _UNFINISHED.fullmatch(file.name):
                file.unlink()

    def _open(self, agent: Any, history: list[Metrics], episodes: list[dict[str, str]]) -> None:
        """Begin the growing files, with the rows so far."""
        self._metrics = self._files.enter_context(closing(CsvLog(self.path / "metrics.csv", rows=history)))
        self._episodes = self._files.enter_context(closing(CsvLog(self.path / "episodes.csv", EPISODES, episodes)))
        board = TensorBoardWriter(self.path, history, settings_of(agent.describe()))
        self._tensorboard = self._files.enter_context(closing(board))

    def _close(self) -> None:
        """Close the growing files, if they are open."""
        self._tensorboard = None
        self._files.close()

    def check_run(self, agent: Any) -> None:
        """Refuse to continue another run's files.

        Raises:
            ValueError: a setting differs; the message names it.
        """
        file = self.path / "config.json"
        if not file.exists():
            raise FileNotFoundError(f"run_dir = {self.path}: no config.json there; allowed: the directory of this run")
        then = json.loads(read_regular_file(file, LARGEST_CONFIG))
        now = json.loads(json.dumps(agent.describe()))
        if agent.training is not None:
            now |= {"total_timesteps": agent.training.last}
        for data in (then, now):  # a run may continue on another device
            data |= {k: v for k, v in data["config"].items() if k != "device"}
        known = [name for name in now["config"] if name in then["config"]]  # others were added after the run
        for name in (*known, "agent", "env", "seed", "total_timesteps"):
            unknown = name == "env" and then.get(name) is None  # names and plain settings did not describe it
            if name in now and then.get(name) != now[name] and not unknown:
                said = plain(f"config.json says {name} = {then.get(name)}, the saved agent {now[name]}")
                raise ValueError(f"run_dir = {self.path}: {said}; allowed: the directory of the agent's own run")

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> None:
        """Write a row and a point per metric; and a checkpoint if one is due, or if all are gone.

        The row before is completed only now, so that what an update was interrupted in says no more than what is saved.
        """
        if not self._look_after(agent):
            assert self._tensorboard is not None
            for row in agent.history[-2:-1]:
                if is_complete(row) and step(row) > agent.training.first:
                    self._metrics.amend(row)
                    self._tensorboard.add_late(row, NEXT_KL)
            self._metrics.add([metrics])
            self._tensorboard.add(metrics)
        episodes = ((e.total_timesteps, e.episode_return, e.length, e.env_index) for e in batch.episodes)
        self._episodes.add(dict(zip(EPISODES, episode, strict=True)) for episode in episodes)
        self._keep_best(agent, [metrics])
        self._done = agent.last_update
        if self._saved_at == _NEVER or agent.num_timesteps - self._saved_at >= self._every:
            self.save()

    def _keep_best(self, agent: Any, newest: list[Metrics]) -> None:
        """Save the agent as the best one if the evaluation after its newest update is better than all before."""
        if (score := best_of(newest)) > self._best:
            self._best = score
            self._put(agent.last_update, checkpoint.best_directory)

    def _take_evaluation(self, agent: Any, newest: list[Metrics]) -> None:
        """Keep an evaluation that was interrupted with the training, and has been made up for when that is resumed."""
        self._keep_best(agent, newest)
        if self.saved is not None and any(MEAN_REWARD in row for row in newest):
            name = self.saved.name
            self._put(agent.last_update, lambda run: checkpoint.step_directory(run, int(name)))

    def _look_after(self, agent: Any) -> bool:
        """Report a renamed or removed directory, and return True if a new one was begun."""
        assert self._lock is not None
        what = self._lock.lost()
        if what is not None:
            self._begin_anew(agent, f"run_dir = {self.path} {what} while the run was writing there")
        elif self.saved is not None and not self.saved.is_dir():
            text = f"checkpoint {self.saved} was removed during the run; a new one replaces it"
            warn_user(text)
            self.saved, self._begun_at = None, _NEVER
        return what is not None

    def _begin_anew(self, agent: Any, happened: str) -> None:
        """Write everything that the agent knows of the run to a new directory of the same name.

        Raises:
            OSError: something else is in its place now.
        """
        self._close()
        self.release()
        self.saved, self._begun_at = None, _NEVER
        try:
            check_new(self.path)
            self.claim()
            self._describe(agent, agent.training.last)
            self._open(agent, _rows(agent), [])
        except OSError as error:
            raise OSError(f"{happened}, and the run cannot continue: {error}") from error
        new = "the run continues in a new directory of that name, whose episodes.csv begins here"
        warn_user(f"{happened}; {new}")

    @property
    def _saved_at(self) -> int:
        """Step of the last save, or of the beginning."""
        return int(self.saved.name) if self.saved is not None else self._begun_at

    def on_error(self, agent: Any, error: Exception) -> None:
        """Dump the step that produced a non-finite number, for inspection."""
        if isinstance(error, NonFinite) and error.transition:
            path = self.path / NON_FINITE
            try:
                file = io.BytesIO()
                np.savez(file, **error.transition)  # type: ignore[arg-type]
                if self._tensorboard is not None:
                    self._look_after(agent)
                self.path.mkdir(parents=True, exist_ok=True)
                checkpoint.replace(path, file.getvalue())
            except OSError as problem:  # the first error matters more
                error.args = (f"{error}; the step could not be written: {problem}",)
            else:
                error.args = (f"{error}; the step is in {path}",)

    def on_training_end(self, agent: Any) -> None:
        """Write the last checkpoint and close the files."""
        with held():
            try:
                if self._tensorboard is not None:
                    self._look_after(agent)
                    self.save()
            finally:
                self._done = None
                self._close()
                self.release()

    def save(self, then: Callable[[Path | None], object] = lambda path: None) -> None:
        """Make sure that the last complete update is in a checkpoint.

        Args:
            then: called with the path of the newest checkpoint, once it is written: after the current one, if a
                signal asks for one while one is being written.
        """
        self._then.append(then)
        if self._saving:
            return
        with held():
            self._saving = True
            try:
                self._write()
            finally:
                self._saving = False
                waiting, self._then = self._then, []
        for tell in waiting:
            tell(self.saved)

    def _write(self) -> None:
        done = self._done
        if done is None or self._tensorboard is None or done.num_timesteps <= self._saved_at:
            return
        if self._lock is not None and (what := self._lock.lost()) is not None:  # a signal came before that was noticed
            raise FileNotFoundError(f"run_dir = {self.path} {what}")
        for log in (self._metrics, self._episodes):
            log.sync()
        self._put(done, lambda run: checkpoint.step_directory(run, done.num_timesteps))
        self.saved = checkpoint.step_directory(self.path, done.num_timesteps)
        assert self._lock is not None
        with self._lock.inside() as here:
            checkpoint.prune(here, self.keep, checkpoint.step_directory(here, done.num_timesteps))

    def _put(self, snapshot: Any, directory: Callable[[Path], Path]) -> None:
        """Write a checkpoint to a directory of the run: of the locked one itself, whatever has its name by now."""
        assert self._lock is not None
        with self._lock.inside() as here:
            path = directory(here)
            if path.is_symlink():  # its target is not this run's
                path.unlink()
            snapshot.write(path, checkpoint.lender(here, self.keep))


def _rows(agent: Any) -> list[Metrics]:
    """Return the rows of the agent's history that belong to its training."""
    learned = (row for row in agent.history if STEP in row)  # not from distillation, for example
    return [row for row in learned if step(row) > agent.training.first]
