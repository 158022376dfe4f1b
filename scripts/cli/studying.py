"""A study on the command line: its runs, how far it is, and its end (``klrl study``, ``klrl compare``)."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from klrl.run.signals import Signals
from klrl.scripts.cli.command_line import bad_input, going_on
from klrl.scripts.cli.study_options import EngineOptions
from klrl.scripts.cli.terminal import PlainConsole
from klrl.studies.outcomes import FAILED
from klrl.studies.running import time_left
from klrl.studies.study import CSV, RUNS, Say, Study
from klrl.studies.watching import Progress
from klrl.text import printable

MOST_SHOWN = 16
"""Largest number of runs that are shown at once."""


def run_study(prog: str, words: Sequence[str], options: EngineOptions, make: Callable[[Say], Study]) -> None:
    """Make the runs of a study and print its table; exit status 1 if a run failed, 130 and 143 after signals.

    Args:
        prog: name of the command, for messages.
        words: the command line after it.
        options: what makes the runs.
        make: makes the study, which must not write anything.
    """
    console = PlainConsole()
    with Signals():
        with bad_input(prog):
            part = options.part()
            study = make(console.print)
            for trial in study.trials:
                trial.check_ranks(options.ranks_per_run)
            engine = options.make()
        with going_on(prog, study.output / RUNS, "runs"), Panel(console) as panel:
            rows = study.run(
                engine,
                retries=options.retries,
                task=part,
                command=f"{prog} {shlex.join(words)}",
                say=console.print,
                watch=panel.show if console.is_terminal else None,
            )
    console.print(study.table())
    report = f"klrl report {shlex.quote(str(study.output))}"
    console.print(f"\n{study.output / CSV} has a line for every run; {report} draws them")
    if any(row["status"] == FAILED for row in rows):
        sys.exit(1)


class Panel:
    """Picture of how far a study is, redrawn every second on a terminal."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, progress: Progress) -> None:
        """Redraw."""
        if self._live is not None:
            self._live.update(drawn(progress), refresh=True)


def drawn(progress: Progress) -> Table:
    """Return the picture: runs by what they are, steps/s over all, time left, and a bar for each that is made."""
    counts = f"{progress.done} done, {len(progress.running)} running, {progress.failed} failed of {progress.total} runs"
    speed = f"{progress.steps_per_second:,.0f} steps/s"
    grid = Table.grid(padding=(0, 2))
    grid.add_row(f"{counts}   {speed}   {time_left(progress.seconds_left)}")
    bars = Table.grid(padding=(0, 2))
    bars.add_row("all", ProgressBar(progress.total_timesteps, progress.steps, width=40), f"{progress.steps:,} steps")
    for name, steps, total in progress.running[:MOST_SHOWN]:
        bars.add_row(printable(name), ProgressBar(total, steps, width=40), f"{steps:,}")
    if (more := len(progress.running) - MOST_SHOWN) > 0:
        bars.add_row(f"and {more} more", "", "")
    grid.add_row(bars)
    return grid
