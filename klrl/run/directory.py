"""The run directory: config.json, metrics.csv, episodes.csv, TensorBoard events and checkpoints."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from torch.utils.tensorboard import SummaryWriter

from klrl.experience import Batch
from klrl.run import checkpoint
from klrl.run.callback import Callback, Metrics

_PACKAGES = ("klrl", "torch", "gymnasium", "numpy", "mujoco", "box2d", "ale-py", "envpool")


def check_new(path: str | Path, name: str = "run_dir") -> Path:
    """Refuse a directory that holds something already; ``name`` is what the user calls it.

    Raises:
        FileExistsError: naming the directory.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{name} = {path} is not empty; allowed: a new or empty directory")
    return path


def versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Python and the packages that results depend on, and ``more`` distributions, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class RunDirectory(Callback):
    """Writes a run's files as training goes on.

    Args:
        path: a new or empty directory.
        checkpoint_every: environment steps between checkpoints; one more is written at the end.
        keep: how many of the newest checkpoints stay (the best one stays too).
        notes: what else ``config.json`` is to say, as plain JSON.

    Raises:
        FileExistsError: the directory is not empty.
        ValueError: ``keep`` or ``checkpoint_every`` below 1.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        checkpoint_every: int = 100_000,
        keep: int = 3,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = check_new(path)
        self.notes = dict(notes or {})
        self.checkpoint_every = checkpoint_every
        self.keep = keep
        if keep < 1 or checkpoint_every < 1:
            raise ValueError(f"keep = {keep}, checkpoint_every = {checkpoint_every}; allowed: integers >= 1")
        self._saved_at = 0
        self._between_updates = True
        self._files: list[IO[str]] = []
        self._board: SummaryWriter | None = None
        self._metrics: csv.DictWriter[str] | None = None

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Create the directory and write ``config.json``."""
        config = agent.describe() | {"total_timesteps": total_timesteps, **self.notes, "versions": versions()}
        text = json.dumps(config, indent=2) + "\n"
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.json").write_text(text)
        self._board = SummaryWriter(str(self.path))
        self._episodes = csv.writer(self._open("episodes.csv"))
        self._episodes.writerow(["total_timesteps", "return", "length", "env_index"])
        self._saved_at = agent.num_timesteps

    def on_update_start(self, agent: Any, batch: Batch) -> None:
        """From here to the update's end the agent is not in a state worth keeping."""
        self._between_updates = False

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> None:
        """One row and one point per metric; a checkpoint when it is time."""
        self._between_updates = True
        if self._metrics is None:
            self._metrics = csv.DictWriter(self._open("metrics.csv"), list(metrics))
            self._metrics.writeheader()
        self._metrics.writerow(metrics)
        self._episodes.writerows((e.total_timesteps, e.episode_return, e.length, e.env_index) for e in batch.episodes)
        assert self._board is not None
        for name, value in metrics.items():
            if isinstance(value, float) and value == value:
                self._board.add_scalar(name, value, agent.num_timesteps)
        for file in self._files:
            file.flush()
        if agent.num_timesteps - self._saved_at >= self.checkpoint_every:
            self._save(agent)

    def on_training_end(self, agent: Any) -> None:
        """The last checkpoint; close the files."""
        if self._board is None:
            return
        if self._between_updates and agent.num_timesteps > self._saved_at:
            self._save(agent)
        self._board.close()
        for file in self._files:
            file.close()

    def _save(self, agent: Any) -> None:
        agent.save(checkpoint.step_directory(self.path, agent.num_timesteps))
        checkpoint.prune(self.path, self.keep)
        self._saved_at = agent.num_timesteps

    def _open(self, name: str) -> IO[str]:
        file = (self.path / name).open("w", newline="")
        self._files.append(file)
        return file
