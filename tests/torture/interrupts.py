"""R11: signals at random moments of a run, which ends with everything kept, or saves and goes on."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torture.case import Case, Outcome
from torture.failures import orphans
from torture.processes import Ended, Forks, Watched, patient
from torture.runs import STEPS, Run, Uninterrupted, at_row, moment, resumption, saved, written
from torture.states import difference, run_parts

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_MOMENTS = ("start", "row", "write", "evaluation")
"""Of the trials of one case: as the directory appears, some milliseconds after some update, and so on."""
_ROUNDS = 5
_SECONDS, _LINES = 5.0, 3
_TWICE = {signal.SIGINT: 0.02, signal.SIGHUP: 0.001}
"""Most seconds between two: of somebody's Ctrl-C; of a terminal that closes, from the shell and from the kernel."""
_PROGRESS = re.compile(r" *[\d,]+/[\d,]+  steps/s ")
_SAVED = re.compile(r"SIGUSR1: checkpoint .*?(\d{12})")
_QUICK = "SIGINT sync 0"


@dataclass(frozen=True)
class Trial:
    """A signal to a run."""

    number: signal.Signals
    mode: str
    moment: str
    everyone: bool
    """Whether workers get it, too, as Ctrl-C on a terminal does it."""
    twice: float | None = None
    """Most seconds until it comes once more, if it does."""

    @property
    def at_once(self) -> bool:
        """Whether it may end a run before anything is kept: Ctrl-C does when it comes once more."""
        return self.twice is not None and self.number == signal.SIGINT

    @property
    def plain(self) -> Run:
        """What the run comes to: checkpoints and evaluations decide nothing in it."""
        return Run("ppo", "CartPole-v1", self.mode, updates=12, every=3)

    @property
    def run(self) -> Run:
        """One that has the moment: with a checkpoint after every update, with a long evaluation."""
        if self.moment == "write":
            return replace(self.plain, every=1)
        return replace(self.plain, more=("--eval-episodes", "100")) if self.moment == "evaluation" else self.plain


def cases(seed: int) -> list[Case]:
    """Twenty trials of every signal with every engine, four in a case; and of a terminal that closes."""
    whole = Uninterrupted()
    kinds = [(number, mode, i) for number in _SIGNALS for mode in ("sync", "async") for i in range(_ROUNDS)]
    kinds += [(signal.SIGHUP, mode, _ROUNDS) for mode in ("sync", "async")]
    made = [(_name(kind), _trials(*kind)) for kind in kinds]
    return [Case("R11", name, _case(t, f"{seed} R11 {name}", whole), name == _QUICK, 300.0) for name, t in made]


def _name(kind: tuple[signal.Signals, str, int]) -> str:
    number, mode, i = kind
    how = " to the whole group" * _everyone(number, i) + " twice" * _twice(number, i)
    return f"{number.name} {mode} {i}{how}"


def _trials(number: signal.Signals, mode: str, i: int) -> list[Trial]:
    twice = _TWICE[number] if _twice(number, i) else None
    return [Trial(number, mode, moment, _everyone(number, i), twice) for moment in _MOMENTS]


def _everyone(number: signal.Signals, i: int) -> bool:
    return (number == signal.SIGINT and i % 2 == 1) or i == _ROUNDS


def _twice(number: signal.Signals, i: int) -> bool:
    return (number == signal.SIGINT and i >= 3) or i == _ROUNDS


def _case(trials: Sequence[Trial], seed: str, whole: Uninterrupted) -> Callable[[Path], Outcome]:
    def case(scratch: Path) -> Outcome:
        g, problems, slowest = random.Random(seed), [], 0.0
        forks = Forks(scratch)
        for i, trial in enumerate(trials):
            run_dir = scratch / f"run-{i}"
            seconds, wrong = _attempt(trial, run_dir, g, forks)
            wrong = wrong or _afterwards(trial, run_dir, whole.parts(trial.plain, scratch), forks)
            slowest = max(slowest, seconds)
            problems += [f"{trial.moment}: {', '.join(wrong)}"] if wrong else []
        return Outcome(problems, len(trials), {"largest seconds to the end": slowest})

    return case


def _attempt(trial: Trial, run_dir: Path, g: random.Random, forks: Forks) -> tuple[float, list[str]]:
    """Seconds until the signal had done what it does, and what was wrong."""
    process = forks.start(["klrl", *trial.run.words(run_dir)])
    _await(trial, run_dir, process, g)
    before, rows, sent = process.out, written(run_dir), time.monotonic()
    process.send(trial.number, everyone=trial.everyone)
    if trial.twice is not None:
        time.sleep(g.uniform(0.0, trial.twice))
        process.send(trial.number, everyone=trial.everyone)
    if trial.number == signal.SIGUSR1:
        process.until(lambda: "SIGUSR1:" in process.out[len(before) :])
        seconds, there = time.monotonic() - sent, saved(run_dir)
        ended = process.wait()
        wrong = unsaved(trial, ended, len(before), rows, there)
    else:
        ended = process.wait()
        seconds = time.monotonic() - sent
        wrong = _ending(trial, ended, len(before))
    late = [f"{seconds:.1f} s"] if seconds > patient(_SECONDS) else []
    return seconds, [*wrong, *late, *orphans(process)]


def _await(trial: Trial, run_dir: Path, process: Watched, g: random.Random) -> None:
    if trial.moment == "start":
        process.until(run_dir.exists, every=0.0002)
    elif trial.moment == "evaluation":
        process.until(lambda: "run directory:" in process.out)
    else:
        first = 2 if trial.number == signal.SIGUSR1 else 1  # a row is there shortly before its update can be saved
        process.until(at_row(run_dir, max(first, moment(g, trial.run))))
    if trial.moment == "write":
        process.until(lambda: any(run_dir.glob("checkpoints/*/*.tmp")), every=0.0002)
    else:
        time.sleep(g.uniform(0.0, 0.02))


def _ending(trial: Trial, ended: Ended, before: int) -> list[str]:
    """What is wrong with status and words of a run that a signal was to end."""
    said = [line for line in ended.out[before:].splitlines() if not _PROGRESS.match(line)]
    said += ended.err.splitlines()
    wrong = {
        f"status {ended.code}: {ended.err[-300:]}": ended.code
        not in (128 + trial.number, *([-trial.number] if trial.at_once else [])),
        f"{len(said)} lines: {said[:6]}": len(said) > _LINES,
    }
    return [text for text, so in wrong.items() if so]


def unsaved(trial: Trial, ended: Ended, before: int, rows: int, there: int) -> list[str]:
    """What is wrong with a run that was to save and go on.

    Args:
        trial: what was done.
        ended: the run's end.
        before: length of its output when the signal was sent.
        rows: of the metrics then; the last of them can be of an update that is not done to the last instruction.
        there: steps of the newest checkpoint when it had said something.
    """
    said = [line for line in ended.out[before:].splitlines() if line.startswith("SIGUSR1")]
    match = _SAVED.fullmatch("".join(said))
    steps = int(match[1]) if match else 0
    nothing = trial.moment == "start" and rows < 2 and "".join(said).startswith("SIGUSR1: nothing to save")
    wrong = {
        f"status {ended.code}: {ended.err[-300:]}": ended.code != 0,
        f"{len(said)} lines: {[*said, ended.err][:6]}": len(said) > 1 or bool(ended.err),
        f"nothing saved after {rows} updates: {said}": match is None and not nothing,
        f"{steps} steps saved after {rows} updates": match is not None and steps < (rows - 1) * STEPS,
        f"checkpoint of {steps} steps said, newest of {there}": there < steps,
    }
    return [text for text, so in wrong.items() if so]


def _afterwards(trial: Trial, run_dir: Path, expected: dict[str, str], forks: Forks) -> list[str]:
    """What was lost, and what differs from the uninterrupted run."""
    if trial.number != signal.SIGUSR1:
        lost = written(run_dir) * STEPS - saved(run_dir)
        most = trial.run.every + 1 if trial.at_once else 1  # the signal can come while an update's row is being written
        if lost > most * STEPS:
            return [f"{lost} steps lost"]
        begun = (run_dir / "config.json").exists()
        words = resumption(trial.run, run_dir) if begun else trial.run.words(run_dir)
        ended = forks.run(["klrl", *words], 60.0)
        if ended.code != 0:
            return [f"{words[0]} ended with {ended.code}: {ended.err[-300:]}"]
    differs = difference(run_parts(run_dir), expected)
    return [differs] if differs else []
