"""Runs as a report sees them: what stands in run directories, whoever writes or wrote there."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import re
import socket
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from klrl.report.variants import variants
from klrl.run.callback import NEXT_KL
from klrl.run.csv_log import last_tenth
from klrl.run.disk import LARGEST_CONFIG, read_regular_file
from klrl.run.targets import TARGETS
from klrl.text import plain

STEP = "time/total_timesteps"
_REASON = "train/stop_reason"
_LARGEST_LOG = 2**31
"""Largest CSV that is read, in bytes."""
_DEEPEST = 6
"""Levels of folders below a given one in which runs are looked for."""
ENDING = ("eval_every", "stop_at_return", "kl_budget", "kl_budget_length", "initial_kl_budget", "over_budget")
"""Options in ``config.json`` by which a training may end before its last step."""
_OF_A_RUN = {"config.json", "metrics.csv", "non-finite.npz"}
"""Files by which a run directory is known; a run that failed before its first update leaves only the last one."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """One run directory, or the log of a drift monitor.

    ``status`` is "done" (also where a budget of KL or a return was to end it), "running" (another process writes
    there), "waiting" (no update yet), "stopped" (before its last step), "failed", or "log" (without a training of
    klrl's).
    """

    directory: Path
    env: str
    variant: str
    seed: int | None
    status: str
    error: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Content of ``config.json``; empty without one."""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Numbers of ``metrics.csv`` by column, ``[updates]`` each; NaN where a cell is empty."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Number of updates by ``train/stop_reason``."""
    resumed: int = 0
    """Number of times that the run was continued, as its event files tell."""
    last_tenth: float = math.nan
    """Mean return of the episodes that ended in the last tenth of the training."""
    final_return: float = math.nan
    """Mean return of the evaluation that a study makes after the training."""
    notes: tuple[str, ...] = ()
    """Lines about what could not be read."""

    @property
    def agent(self) -> str:
        """Name of the algorithm; empty if unknown."""
        return str(self.config.get("agent", ""))

    @property
    def name(self) -> str:
        """Name in messages and tables: environment, variant and seed."""
        return " ".join([self.env, self.variant, *([] if self.seed is None else [f"seed {self.seed}"])])

    @property
    def updates(self) -> int:
        """Number of updates in ``metrics.csv``."""
        return len(next(iter(self.columns.values()), ()))

    @property
    def steps(self) -> np.ndarray:
        """Environment steps after each update, or its number where steps are not logged, ``[updates]``."""
        return self.columns.get(STEP, np.arange(1.0, self.updates + 1.0))

    @property
    def counts_steps(self) -> bool:
        """True if environment steps are logged."""
        return STEP in self.columns

    def column(self, name: str) -> np.ndarray:
        """Return a column, all NaN if it was not logged, ``[updates]``."""
        found = self.columns.get(name)
        return np.full(self.updates, np.nan) if found is None else found

    @property
    def over(self) -> np.ndarray:
        """Truth values of "beyond a target or bound of the trust region", ``[updates]``."""
        return np.any([self.beyond(metric) for metric in TARGETS], axis=0)

    def beyond(self, metric: str) -> np.ndarray:
        """Return truth values of "this metric is beyond its own target or bound", ``[updates]``."""
        if metric == NEXT_KL:
            return self.over_next
        return self.column(metric) > self.column(TARGETS[metric])

    @property
    def judged(self) -> np.ndarray:
        """Truth values of "has a target or bound", ``[updates]``."""
        return np.any([np.isfinite(self.column(asked)) for asked in TARGETS.values()], axis=0)

    @property
    def over_next(self) -> np.ndarray:
        """Truth values of "beyond the bound for the next states", ``[updates]``."""
        return self.column(NEXT_KL) > self.next_bound

    @property
    def next_bound(self) -> np.ndarray:
        """Bound on the next states, or else the target, of the updates that a rollout has judged; else NaN."""
        own, target, told = map(self.column, ("drift/kl_next_target", "drift/kl_target", NEXT_KL))
        return np.where(np.isnan(told), np.nan, np.where(np.isnan(own), target, own))

    @property
    def spent(self) -> np.ndarray:
        """Sum of the KL of all updates so far, in nats, ``[updates]``."""
        logged = self.columns.get("drift/kl_sum")
        return np.cumsum(np.nan_to_num(self.column("drift/kl"))) if logged is None else logged


def read_runs(paths: Iterable[str | Path]) -> list[LoggedRun]:
    """Read run directories, and those anywhere below other folders, such as a study's; each once.

    Variants have the names of the study, or of what differs between the runs' settings.

    Raises:
        ValueError: a path has no run in it.
        OSError: a path cannot be read.
    """
    runs: dict[Path, LoggedRun] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            what = "is a file" if path.exists() else "is not there"
            raise ValueError(f"path = {path} {what}; allowed: a run directory, or a folder of some, such as a study")
        found = [*_places(path)]
        if not found:
            raise ValueError(
                f"path = {path} has no config.json or metrics.csv in it or below; allowed: a run directory, "
                "or a folder of some, such as a study"
            )
        for place in found:
            runs.setdefault(place.directory.resolve(), read_run(place))
    return _named([*runs.values()])


class Place(NamedTuple):
    """A run directory, and what its study says of it; empty where that says nothing."""

    directory: Path
    env: str = ""
    variant: str = ""
    seed: int | None = None
    status: str = ""
    error: str = ""
    final_return: float = math.nan


def _places(path: Path) -> Iterator[Place]:
    """Yield the runs in a folder and below, in the order of their studies, or of their names."""
    for folder, folders, files in os.walk(path):
        here = Path(folder)
        if "study.toml" in files:
            folders.clear()
            yield from _of_study(here)
        elif _OF_A_RUN & {*files}:
            folders.clear()
            yield Place(here)
        elif len(here.relative_to(path).parts) >= _DEEPEST:
            folders.clear()
        folders.sort(key=_natural)


def _of_study(output: Path) -> list[Place]:
    """Return the runs of a study, those that were not begun included.

    Raises:
        ValueError: its record is damaged.
    """
    from klrl.studies.study import recorded_runs

    return [
        Place(
            run.directory,
            run.env,
            run.variant,
            run.seed,
            run.status,
            run.error or "",
            math.nan if run.final_return is None else run.final_return,
        )
        for run in recorded_runs(output)
    ]


def _natural(name: str) -> list[tuple[int, str]]:
    """Key by which seed-2 comes before seed-10."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", name)]


def read_run(place: Place) -> LoggedRun:
    """Read one run directory; what is damaged, or not written yet, is left out and noted."""
    directory, notes = place.directory, list[str]()
    config = _config(directory, notes)
    columns, reasons = _metrics(directory, notes)
    env = config.get("env")
    env = env.get("id") if isinstance(env, dict) else env
    seed = config.get("seed")
    run = LoggedRun(
        directory=directory,
        env=place.env or (env if isinstance(env, str) and env else "environment without a name"),
        variant=place.variant,
        seed=seed if isinstance(seed, int) else place.seed,
        status="log",
        config=config,
        columns=columns,
        reasons=reasons,
        final_return=place.final_return,
        resumed=max(0, len([*directory.glob("events.out.tfevents.*")]) - 1),
        notes=tuple(notes),
    )
    status, error = _status(run)
    if place.status and (place.status != "waiting" or not run.updates):
        status, error = place.status, place.error or ("no update is complete" if place.status == "waiting" else "")
    return replace(run, status=status, error=error, last_tenth=_last_tenth(directory, run.steps))


def _config(directory: Path, notes: list[str]) -> dict[str, Any]:
    try:
        config = json.loads(read_regular_file(directory / "config.json", LARGEST_CONFIG))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"config.json cannot be read: {plain(error, 200)}")
        return {}
    if not isinstance(config, dict):
        notes.append("config.json is not that of a run")
        return {}
    return config


def _metrics(directory: Path, notes: list[str]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the numbers of ``metrics.csv`` by column, and the stop reasons, up to a damaged row."""
    try:
        data = read_regular_file(directory / "metrics.csv", _LARGEST_LOG)
    except FileNotFoundError:
        return {}, {}
    except (OSError, ValueError) as error:
        notes.append(f"metrics.csv cannot be read: {plain(error, 200)}")
        return {}, {}
    whole = data[: data.rfind(b"\n") + 1]  # the last row may be being written
    rows = csv.reader(io.TextIOWrapper(io.BytesIO(whole), "utf-8", errors="replace", newline=""))
    names = next(rows, [])
    columns = _Columns(names)
    try:
        for row in rows:
            columns.add(row)
    except (ValueError, csv.Error) as error:
        kept = f"the {len(columns)} updates before it are shown" if len(columns) else "nothing of it is shown"
        notes.append(f"metrics.csv, line {rows.line_num}, is not as klrl writes it: {plain(error, 200)}; {kept}")
    return columns.numbers(), {plain(reason, 80): n for reason, n in columns.reasons.items()}


class _Columns:
    """Columns of a CSV, filled row by row; those whose cells are text are left out, but for the stop reason."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._reason = names.index(_REASON) if _REASON in names else None
        self._text = set() if self._reason is None else {self._reason}
        self._cells = array("d")
        self.reasons: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._cells) // max(1, len(self._names))

    def add(self, row: list[str]) -> None:
        """Add a row.

        Raises:
            ValueError: it has another number of cells, or text in a column of numbers.
        """
        if len(row) != len(self._names):
            raise ValueError(f"{len(row)} cells under {len(self._names)} names")
        reason = "" if self._reason is None else row[self._reason]
        for i in self._text:
            row[i] = ""
        try:
            numbers = [float(cell) if cell else math.nan for cell in row]
        except ValueError:
            numbers = [self._number(i, cell) for i, cell in enumerate(row)]
        self._cells.extend(numbers)
        if reason:
            self.reasons[reason] += 1

    def _number(self, i: int, cell: str) -> float:
        """Return a cell's number; a column whose first cell is text is one of text."""
        with contextlib.suppress(ValueError):
            return float(cell) if cell else math.nan
        if any(x == x for x in self._cells[i :: len(self._names)]):
            raise ValueError(f"{self._names[i]} = {plain(cell, 80)!r}; allowed: a number")
        self._text.add(i)
        return math.nan

    def numbers(self) -> dict[str, np.ndarray]:
        """Return the columns of numbers, ``[rows]`` each."""
        table = np.array(self._cells, float).reshape(-1, max(1, len(self._names)))
        return {name: table[:, i] for i, name in enumerate(self._names) if name and i not in self._text}


def _status(run: LoggedRun) -> tuple[str, str]:
    """Return the status of a run by its files, and why it ended early, if they tell."""
    last = run.config.get("total_timesteps")
    if _owned(run.directory / "run.lock"):
        return "running", ""
    whole = run.updates and (not isinstance(last, int) or run.steps[-1] >= last)
    if (run.directory / "non-finite.npz").exists() and not whole:
        return "failed", "a number was not finite: the step is in non-finite.npz"
    if not isinstance(last, int):
        return "log", ""
    if not run.updates:
        return "waiting", "no update is complete"
    if run.steps[-1] < last and not _reached(run):
        return "stopped", f"ended after {run.steps[-1]:,.0f} of {last:,} steps"
    return "done", ""


def _reached(run: LoggedRun) -> bool:
    """Tell whether a training was to end where it did: its budget of KL was spent, or its return reached."""
    _, goal, total, length, initial, over = (run.config.get(name) for name in ENDING)
    returns = "eval/mean_reward" if run.config.get("eval_every") else "rollout/ep_rew_mean"
    limits = {"drift/kl_sum": total, "drift/path_length": length, "drift/kl_initial": initial}
    at_most = limits if over == "stop" else {}
    spent = any(_is_number(most) and run.column(name)[-1] > most for name, most in at_most.items())
    return spent or (_is_number(goal) and bool(run.column(returns)[-1] >= goal))


def _is_number(x: object) -> TypeGuard[float]:
    return isinstance(x, (int, float))


def _owned(lock: Path) -> bool:
    """Tell whether a process holds a run's lock; of another host's it is believed."""
    try:
        said = json.loads(read_regular_file(lock, 1024))
        if said["host"] != socket.gethostname():
            return True
        os.kill(int(said["pid"]), 0)
    except PermissionError:  # another user's process
        return True
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return False
    return True


def _last_tenth(directory: Path, steps: np.ndarray) -> float:
    """Return the mean return of the episodes that ended in the last tenth of the training; NaN if none did."""
    try:
        returns = last_tenth(directory / "episodes.csv", steps[-1]) if len(steps) else []
    except (OSError, ValueError):
        return math.nan
    return float(np.mean(returns)) if returns else math.nan


def _named(runs: Sequence[LoggedRun]) -> list[LoggedRun]:
    """Return the runs with names for their variants; runs that would be told apart by nothing have their folder's."""
    names = variants([(run.env, run.config) for run in runs])
    runs = [
        replace(run, variant=run.variant or name or run.directory.resolve().name)
        for run, name in zip(runs, names, strict=True)
    ]
    count = Counter((run.env, run.variant, run.seed) for run in runs)
    return [
        replace(run, variant=f"{run.variant} ({run.directory.resolve().name})")
        if count[run.env, run.variant, run.seed] > 1
        else run
        for run in runs
    ]
