"""TensorBoard: the metrics again, for viewing, with charts and settings; a failure only warns, nothing depends on it.

They go through PyTorch's ``SummaryWriter``, number by number, because experiment trackers listen there.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from klrl.run.callback import EVAL, NEXT_KL, STEP, Metrics, is_complete
from klrl.run.tensorboard_layout import layout, session
from klrl.text import one_line, warn_user

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardWriter:
    """Writes a new event file; files are never appended to, and TensorBoard reads this one after older ones.

    It replaces what older files show from its first row on: their end may be missing, or belong to undone steps.

    Args:
        path: directory of the event files.
        history: rows so far; those that older files do not show are written again.
        settings: of the run, to be compared under HParams.
    """

    def __init__(
        self, path: Path, history: Sequence[Metrics] = (), settings: Mapping[str, bool | float | str] | None = None
    ) -> None:
        self._path = path
        self._writer: SummaryWriter | None = None
        older, shown = any(path.glob("events.*")), -1
        with self._warning():
            if older and history:
                shown = _last_step(path, history[-1])
            self._writer = _open(path, purge_step=shown + 1 if older else None)
            self._describe(self._writer, settings or {})
        for row in history:
            if step(row) > shown:
                self.add(row)

    @staticmethod
    def _describe(writer: SummaryWriter, settings: Mapping[str, bool | float | str]) -> None:
        """Write what is known before the first row, in every file: older ones may be damaged."""
        assert writer.file_writer is not None
        writer.file_writer.add_summary(layout())
        if settings:
            writer.file_writer.add_summary(session(settings))
        writer.flush()

    def add(self, metrics: Metrics) -> None:
        """Add a point for every finite or infinite number; NaN and text are left out."""
        if self._writer is not None:
            with self._warning():
                self._write(self._writer, metrics)

    def add_late(self, metrics: Metrics, name: str) -> None:
        """Add the point of a metric that was NaN when its row was added."""
        if self._writer is not None:
            with self._warning():
                self._writer.add_scalar(name, metrics[name], step(metrics), time.time())
                self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            with self._warning():
                self._writer.close()

    def _write(self, writer: SummaryWriter, metrics: Metrics) -> None:
        """Write one row, its step last: a row that was cut short is written again after an interruption."""
        at, now = step(metrics), time.time()
        for name in (*(name for name in metrics if name != STEP), STEP):
            value = metrics[name]
            if isinstance(value, float) and value == value:
                writer.add_scalar(name, value, at, now)
        writer.flush()

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        """Turn every failure into a warning, also that of a tracker that listens."""
        try:
            yield
        except Exception as error:
            if self._writer is not None:
                with contextlib.suppress(Exception):
                    self._writer.close()
            self._writer = None
            what = f"{error}" if isinstance(error, OSError) else f"{type(error).__name__}: {one_line(error)}"
            text = f"{what}: TensorBoard gets no more points from {self._path}; training and metrics.csv go on"
            warn_user(text)


class _Records:
    """An event file without the writer's own queue and thread, so that a failed write is known at once.

    Args:
        file: file that the writer has begun.
    """

    def __init__(self, file: Path) -> None:
        self._records = RecordWriter(file.open("ab", buffering=2**20))

    def add_event(self, event: Event) -> None:
        """Add an event to those that :meth:`flush` writes."""
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Write everything through to the operating system; if that fails, close the file."""
        try:
            self._records.flush()
        except OSError:
            with contextlib.suppress(OSError):
                self._records.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._records.close()


def _open(path: Path, purge_step: int | None) -> SummaryWriter:
    """Open a file that sorts after the others: TensorBoard orders them by name, and names begin with a time."""
    from torch.utils.tensorboard import SummaryWriter  # imports slowly

    with tempfile.TemporaryFile(dir=path) as file:  # on a full disk, the writer's thread would print a traceback
        file.write(bytes(2**12))
    older = {*path.glob("*tfevents*")}
    writer = SummaryWriter(str(path), purge_step=purge_step)
    assert writer.file_writer is not None
    writer.file_writer.event_writer.close()
    (file,) = {*path.glob("*tfevents*")} - older
    stamps = [int(found[1]) for other in older if (found := re.search(_STAMP, other.name))]
    if older and file.name <= max(other.name for other in older):
        file = file.rename(path / re.sub(_STAMP, f"tfevents.{max(stamps) + 1:010d}", file.name))
    writer.file_writer.event_writer = _Records(file)
    return writer


_STAMP = r"tfevents\.(\d+)"


def step(metrics: Metrics) -> int:
    """Return the environment steps after which a row was written."""
    return int(float(metrics[STEP]))


def points(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard shows of a directory: (step, value) by tag, up to any damage in a file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # imports slowly

    log = logging.getLogger("tensorboard")
    before = log.level
    log.setLevel(logging.ERROR)  # undone steps are expected here
    try:
        shown = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    finally:
        log.setLevel(before)
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def _last_step(path: Path, newest: Metrics) -> int:
    """Return the step up to which older files show all rows; -1 if they cannot be read, so that all are written again.

    The newest row is written again if it is not complete, because older files may show how it was completed before, or
    if an evaluation that had been interrupted has come to it since.
    """
    if any(file.is_symlink() or not file.is_file() for file in path.glob("*tfevents*")):
        return -1
    try:
        found, at = points(path), step(newest)
        last = min(max((x for x, _ in found.get(STEP, [])), default=-1), at)
        numbers = {name: x for name, x in newest.items() if isinstance(x, float) and x == x}
        evaluated = (name for name in numbers if name.startswith(EVAL))
        anew = any(found.get(name, [(-1, 0.0)])[-1][0] < at for name in evaluated)
        return at - 1 if last == at and (anew or (NEXT_KL in newest and not is_complete(newest))) else last
    except (OSError, MemoryError):  # a damaged length asks for memory
        return -1
