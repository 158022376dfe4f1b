"""Experiment trackers: settings, metrics and files of a run in Weights & Biases or Trackio (``klrl train --track``).

Both have W&B's interface. Others listen to TensorBoard's writer, as W&B does with ``sync_tensorboard=True``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from klrl.run.beside import CannotBegin, described, unchanged_generators
from klrl.run.callback import STEP, Metrics, Recorder
from klrl.run.checkpoint import replace
from klrl.run.disk import read_regular_file
from klrl.run.flat_settings import settings_of
from klrl.run.options import VIDEOS, TrackerName
from klrl.text import one_line, warn_user

if TYPE_CHECKING:
    from klrl.experience import Batch

TRACKED = "tracker.json"
"""File in the run directory that says which run of the tracker goes on when it is resumed."""


def check_tracker(name: str) -> None:
    """Refuse to begin without the tracker's package.

    Raises:
        ValueError: it is not installed, or klrl knows no such tracker.
    """
    if name not in get_args(TrackerName):
        raise ValueError(f"track = {name!r}; allowed: {', '.join(get_args(TrackerName))}")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"track = {name!r}: {name} is not installed; allowed: pip install 'klrl[{name}]'")


class Tracker(Recorder):
    """Sends settings, every update's metrics, new videos and, at the end, files to an experiment tracker.

    A tracker that cannot begin is refused before the first update of a new run. Whatever fails later costs the training
    nothing: one warning, and nothing more is sent. No bit of the training depends on it.

    Args:
        tracker: ``"wandb"`` or ``"trackio"``, whose environment variables (``WANDB_MODE``, ``TRACKIO_SPACE_ID``, ...)
            hold.
        project: project there, by default that of the variable ``WANDB_PROJECT`` or ``TRACKIO_PROJECT``, else klrl.
        name: name of the run there, by default that of its directory.
        run_dir: the run directory, whose files are sent; give it to ``learn`` as well, or place a ``RunDirectory``
            before this among the callbacks.
        report: writes a report of a run directory to a file, which is then sent and shown; ``False`` if it could not.

    Raises:
        ValueError: another tracker, or one that is not installed.
    """

    def __init__(
        self,
        tracker: TrackerName,
        *,
        project: str | None = None,
        name: str | None = None,
        run_dir: str | Path | None = None,
        report: Callable[[Path, Path], bool] | None = None,
    ) -> None:
        check_tracker(tracker)
        self.tracker, self.run_dir = tracker, None if run_dir is None else Path(run_dir)
        self.project = project or os.environ.get(f"{tracker.upper()}_PROJECT", "klrl")
        self.name = name or (None if self.run_dir is None else self.run_dir.absolute().name)
        self.run: Any = None
        """Run of the tracker's own, during a training."""
        self._id, self._report = secrets.token_hex(4), report
        self._resumed = self._sent = False
        self._module: Any = None
        self._seen: set[Path] = set()

    def on_training_start(self, agent: Any, total_timesteps: int) -> None:
        """Begin the tracker's run, or go on with it.

        Raises:
            CannotBegin: the tracker refuses a training that has nothing to lose yet.
        """
        self._resumed, self._sent = self._find(agent), False
        self._seen = set(self._videos())
        config = settings_of(agent.describe()) | {"total_timesteps": total_timesteps}
        try:
            with unchanged_generators(agent):
                self._module = import_module(self.tracker)
                self.run = self._begin(config)
        except (Exception, SystemExit) as error:
            what = f"track = {self.tracker!r}: {type(error).__name__}: {one_line(error)}"
            if agent.num_timesteps == agent.training.first:
                raise CannotBegin(f"{what}; allowed: a tracker that can begin, or none") from error
            warn_user(f"{what}; the training goes on without it")

    def _begin(self, config: dict[str, Any]) -> Any:
        of_both = {"project": self.project, "name": self.name, "config": config}
        if self.tracker == "trackio":  # it finds a run by its name
            return self._module.init(**of_both, resume="allow" if self._resumed else "never", embed=False)
        settings = self._module.Settings(console="off")  # what klrl prints stays klrl's
        return self._module.init(**of_both, id=self._id, resume="allow", settings=settings)

    def on_update_end(self, agent: Any, batch: Batch, metrics: Metrics) -> None:
        """Send the update's numbers, and videos that are new."""
        self._try(agent, lambda: self._send(metrics))

    def on_training_end(self, agent: Any) -> None:
        """Send the files, and end the tracker's run."""
        self._try(agent, self._finish)
        self.run = None

    def _send(self, metrics: Metrics) -> None:
        self._remember()
        sent: dict[str, Any] = {k: x for k, x in metrics.items() if isinstance(x, float) and x == x}
        for video in (path for path in self._videos() if path not in self._seen):
            self._seen.add(video)
            sent["video"] = self._module.Video(str(video), format="mp4")
        self.run.log(sent, step=int(float(metrics[STEP])))

    def _finish(self) -> None:
        if self.run_dir is not None and self._sent:
            self._send_files(self.run_dir)
        self._module.finish()

    def _send_files(self, run_dir: Path) -> None:
        files = [run_dir / name for name in ("config.json", "metrics.csv", "episodes.csv")]
        report = run_dir / "report.html"
        if self._report is not None and self._report(run_dir, report):
            files.append(report)
            self.run.log({"report": self._module.Html(str(report))})
        checkpoints = [path for path in (run_dir / "checkpoints").glob("*") if path.name.isdecimal()]
        newest = max(checkpoints, key=lambda path: int(path.name), default=None)
        for folder in filter(None, (newest, run_dir / "checkpoints/best")):
            files += sorted(path for path in folder.rglob("*") if path.is_file())
        artifact = self._module.Artifact(f"run-{self._id}", type="run")
        for file in (file for file in files if file.is_file()):
            artifact.add_file(str(file), name=file.relative_to(run_dir).as_posix())
        self.run.log_artifact(artifact)

    def _try(self, agent: Any, send: Callable[[], None]) -> None:
        """Turn every failure into a warning, after which nothing more is sent."""
        if self.run is None:
            return
        try:
            with unchanged_generators(agent):
                send()
        except (Exception, SystemExit) as error:
            self.run = None
            warn_user(f"{self.tracker} gets nothing more: {described(error)}; the training goes on")

    def _find(self, agent: Any) -> bool:
        """Tell whether a run of the tracker goes on, and take its id."""
        if self.run_dir is None or agent.num_timesteps == agent.training.first:
            return False
        try:
            said = json.loads(read_regular_file(self.run_dir / TRACKED, 1024))
            found = said["tracker"] == self.tracker and isinstance(said["id"], str) and said["id"].isalnum()
        except (OSError, ValueError, TypeError, KeyError):
            return False
        if found:
            self._id = said["id"]
        return bool(found)

    def _remember(self) -> None:
        """Write the id, once there is something to go on with."""
        if not self._sent and self.run_dir is not None and self.run_dir.is_dir():
            text = json.dumps({"tracker": self.tracker, "id": self._id})
            replace(self.run_dir / TRACKED, f"{text}\n".encode())
        self._sent = True

    def _videos(self) -> Iterator[Path]:
        if self.run_dir is not None and (self.run_dir / VIDEOS).is_dir():
            yield from sorted((self.run_dir / VIDEOS).glob("step-*.mp4"))
