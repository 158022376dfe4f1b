"""Files of runs on machines that do not see the study's disk: sent, at every checkpoint, to who writes them there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from klrl.agents import Agent
from klrl.experience import Batch
from klrl.run import Callback
from klrl.run.callback import Metrics
from klrl.run.checkpoint import MANIFEST, replace
from klrl.run.lock import LOCK


class Keeper:
    """Writes the files of runs whose tasks do not see the study's disk; an actor beside it."""

    def get(self, directory: Path) -> dict[str, bytes]:
        """Return all files of a run directory by their names within it."""
        return {name: path.read_bytes() for name, path in _files(directory).items()}

    def put(self, directory: Path, files: dict[str, bytes], names: list[str]) -> None:
        """Bring a run directory to the state of a task's own: changed files, manifests last, then what it has not.

        Args:
            directory: the run directory.
            files: the changed ones, by their names within it.
            names: of all files that are there now.
        """
        for name in sorted(files, key=lambda name: (name.endswith(MANIFEST), name)):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            replace(directory / name, files[name])
        gone = {*_files(directory)} - {*names}
        for name in sorted(gone, key=lambda name: not name.endswith(MANIFEST)):
            (directory / name).unlink(missing_ok=True)
        for folder in directory.glob("checkpoints/*"):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def _files(directory: Path) -> dict[str, Path]:
    """Return the files of a run directory, which its lock is not one of, by their names within it."""
    paths = (path for path in directory.rglob("*") if path.is_file() and path.name != LOCK)
    return {str(path.relative_to(directory)): path for path in paths}


class Sending(Callback):
    """Sends the files of a run to the keeper whenever there is a new checkpoint.

    Args:
        keeper: handle of the actor.
        here: the task's own directory.
        there: the run directory on the study's disk.
    """

    def __init__(self, keeper: Any, here: Path, there: Path) -> None:
        self._keeper, self._here, self._there = keeper, here, there
        self._sent: dict[str, tuple[int, int]] = {}
        self._newest = ""
        self._on_its_way: Any = None

    def on_update_end(self, agent: Agent[Any], batch: Batch, metrics: Metrics) -> None:  # type: ignore[override]
        """Send what the checkpoint of the last update has changed, if there is one."""
        newest = max((path.parent.name for path in self._here.glob(f"checkpoints/[0-9]*/{MANIFEST}")), default="")
        if newest != self._newest:
            self._newest = newest
            self.send()

    def send(self, *, wait: bool = False) -> None:
        """Send what has changed since the last time; after ``wait`` it is there."""
        import ray

        if self._on_its_way is not None:
            ray.get(self._on_its_way)  # in order, and an error of its disk ends the training
        files = _files(self._here)
        now = {name: ((at := path.stat()).st_mtime_ns, at.st_size) for name, path in files.items()}
        changed = {name: files[name].read_bytes() for name in now if now[name] != self._sent.get(name)}
        self._on_its_way = self._keeper.put.remote(self._there, changed, [*now])
        self._sent = now
        if wait:
            ray.get(self._on_its_way)
