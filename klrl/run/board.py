"""TensorBoard: the metrics once more, to look at; nothing depends on them there, so a failure only warns."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from klrl.run.callback import Metrics

STEP = "time/total_timesteps"


class Board:
    """Writes a new event file, one record per row; no file is ever appended to.

    What older files show from the first row on that this one writes no longer counts: their end may be missing, or
    belong to steps that were taken back.

    Args:
        path: the directory of the event files.
        history: the rows up to now; those that older files do not show are written again.
    """

    def __init__(self, path: Path, history: Sequence[Metrics] = ()) -> None:
        self._path = path
        self._records: RecordWriter | None = None
        older, shown = any(path.glob("events.*")), -1
        with self._warning():
            if older and history:
                shown = min(_last_step(path), step(history[-1]))
            self._records = RecordWriter(_new_file(path))
            self._write(file_version="brain.Event:2")
            if older:
                self._write(step=shown + 1, session_log=SessionLog(status=SessionLog.START))
        for row in history:
            if step(row) > shown:
                self.add(row)

    def add(self, metrics: Metrics) -> None:
        """A point for every number that is one."""
        points = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in metrics.items()
            if isinstance(value, float) and value == value
        ]
        with self._warning():
            self._write(step=step(metrics), summary=Summary(value=points))

    def close(self) -> None:
        """Close the file."""
        if self._records is not None:
            with self._warning():
                self._records.close()

    def _write(self, **what: object) -> None:
        if self._records is not None:
            self._records.write(Event(wall_time=time.time(), **what).SerializeToString())
            self._records.flush()

    @contextlib.contextmanager
    def _warning(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._records is not None:
                with contextlib.suppress(OSError):
                    self._records.close()
            self._records = None
            text = f"{error}: TensorBoard gets no more points from {self._path}; training and metrics.csv go on"
            warnings.warn(text, RuntimeWarning, stacklevel=4)


def step(metrics: Metrics) -> int:
    """The environment steps that a row was written after."""
    return int(float(metrics[STEP]))


def _new_file(path: Path) -> object:
    name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
    return (path / name).open("xb")


def points(path: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a directory: (step, value) by tag; nothing beyond damage in a file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # takes its time to import

    log = logging.getLogger("tensorboard")
    before = log.level
    log.setLevel(logging.ERROR)  # that steps were taken back is no news
    try:
        shown = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
    finally:
        log.setLevel(before)
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def _last_step(path: Path) -> int:
    """The last step that older files show; -1 where they cannot be read, so that every row is written again."""
    if any(file.is_symlink() or not file.is_file() for file in path.glob("*tfevents*")):
        return -1
    try:
        return max((step for step, _ in points(path).get(STEP, [])), default=-1)
    except (OSError, MemoryError):  # a length that is damaged asks for memory
        return -1
