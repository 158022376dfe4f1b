"""A run directory without an agent: config.json, metrics.csv and TensorBoard events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from weakref import finalize

from klrl.interrupts import held
from klrl.run import checkpoint
from klrl.run.callback import NEXT_KL, Metrics
from klrl.run.csv_log import CsvLog
from klrl.run.directory import check_new, versions
from klrl.run.disk import reporting_full_disk
from klrl.run.lock import Lock
from klrl.run.tensorboard_writer import TensorBoardWriter
from klrl.text import warn_user

UNKNOWN: dict[str, Any] = {"agent": "monitored", "env": None, "seed": None, "config": {}}
"""Entries of every run's ``config.json``, where a monitored training says nothing else."""


class MetricsDirectory:
    """Keeps the metrics of a training that klrl does not run; what cannot be written gets a warning, no error.

    Args:
        path: a new or empty directory.
        notes: entries of ``config.json``, as plain JSON, until the first row.

    Raises:
        BlockingIOError: another process writes there.
        OSError: the directory is not empty, or cannot be used.
    """

    def __init__(self, path: str | Path, notes: Mapping[str, Any]) -> None:
        self.path = check_new(path).absolute()
        self.notes: dict[str, Any] = {**UNKNOWN, **notes}
        self._close: finalize | None = None
        """Closes the files, by itself at the latest when the process ends."""
        self._lost = False

    def add(self, row: Metrics) -> None:
        """Write one update."""
        if self._lost:
            return
        try:
            if self._close is None:
                self._begin()
            self._csv.add([row])
        except OSError as error:
            self._give_up(error)
        else:
            self._tensorboard.add(row)

    def amend(self, row: Metrics) -> None:
        """Complete the last row by what the rollout after its update told of it."""
        if self._lost or self._close is None:
            return
        try:
            self._csv.amend(row)
        except OSError as error:
            self._give_up(error)
        else:
            self._tensorboard.add_late(row, NEXT_KL)

    def _give_up(self, error: OSError) -> None:
        self.close()
        warn_user(f"{error}: nothing more is written to {self.path}; training and monitor.history go on")

    def _begin(self) -> None:
        check_new(self.path)
        with held(), ExitStack() as files:
            self.path.mkdir(parents=True, exist_ok=True)
            files.callback(Lock(self.path).release)
            library = self.notes.get("library")
            config = self.notes | {"versions": versions([library] if isinstance(library, str) else ())}
            text = f"{json.dumps(config, indent=2)}\n".encode()
            with reporting_full_disk(self.path / "config.json", len(text)):
                checkpoint.replace(self.path / "config.json", text)
            self._csv = files.enter_context(closing(CsvLog(self.path / "metrics.csv")))
            self._tensorboard = files.enter_context(closing(TensorBoardWriter(self.path)))
            self._close = finalize(self, files.pop_all().close)

    def close(self) -> None:
        """Close the files and release the directory; rows are written through as they come, so none is lost without."""
        with held():
            self._lost = True
            if self._close is not None:
                self._close()
