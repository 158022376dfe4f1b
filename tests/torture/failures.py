"""R5: workers that die, hang or raise; a run that is to stop, and one that is to go on."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from torture.case import Case, Outcome
from torture.failing import FAILED, FAILING, MENDED, MODULE, WAYS
from torture.processes import Ended, Watched, patient, start_klrl
from torture.runs import STEPS, Run, resumption, saved, written

_WORDS = {
    "Kill": "SIGKILL", "Exit": "os._exit(3)", "Crash": "SIGSEGV", "SystemExit": "SystemExit",
    "Exception": "an exception", "Unpicklable": "an exception that cannot be pickled",
    "TwoArguments": "an exception made from two arguments", "Hang": "no answer", "Megabyte": "a traceback of 1 MB",
    "Constructor": "a constructor that fails at the start",
    "MadeAgain": "a constructor that fails whenever it is made anew: the third failure in a row is the end",
    "MadeAgainOnce": "a constructor that fails once when it is made anew",
}  # fmt: skip
_ENDING = ("Constructor", "MadeAgain")
"""What is the end for a run that restarts workers, too."""
_QUICK = ("Exception, stop", "Kill, restart")
_SECONDS, _TIMEOUT = 5.0, 2.0
_UPDATES = 8


def cases(seed: int) -> list[Case]:
    """The same whatever the seed: the failure is in one step of one episode."""
    pairs = [(way, policy) for way in WAYS for policy in ("stop", "restart")]
    pairs = [pair for pair in pairs if not (pair[0].startswith("MadeAgain") and pair[1] == "stop")]  # nothing is
    names = [(f"{_WORDS[way]}, {policy}", f"{way}, {policy}" in _QUICK) for way, policy in pairs]
    return [Case("R5", name, _case(*pair), quick) for (name, quick), pair in zip(names, pairs, strict=True)]


def _case(way: str, policy: str) -> Callable[[Path], Outcome]:
    more = ("--on-worker-failure", policy, *(("--worker-timeout", f"{_TIMEOUT:g}") if way == "Hang" else ()))
    run = Run("ppo", f"{MODULE}:{way}-v0", "async", updates=_UPDATES, every=2, more=more)

    def case(scratch: Path) -> Outcome:
        run_dir = scratch / "run"
        process = run.start(scratch, run_dir)
        ended = process.wait()
        took = time.monotonic() - float((scratch / FAILED).read_text())
        problems = orphans(process)
        if policy == "restart" and way not in _ENDING:
            return Outcome([*problems, *_went_on(ended, way, run_dir)])
        problems += _stopped(ended, way, took, run_dir)
        (scratch / MENDED).touch()
        return Outcome([*problems, *_goes_on(run, run_dir, way, scratch)], 1, {"largest seconds to the end": took})

    return case


def orphans(process: Watched) -> list[str]:
    """Who is still there five seconds after the end of a process, in words."""
    end = time.monotonic() + patient(_SECONDS)
    while (alive := process.survivors()) and time.monotonic() < end:
        time.sleep(0.05)
    return [f"{len(alive)} orphans"] if alive else []


def _stopped(ended: Ended, way: str, took: float, run_dir: Path) -> list[str]:
    """What is wrong with the end of a run by a failure."""
    limit = patient(_SECONDS) + _TIMEOUT * (way == "Hang")
    last = (ended.err.splitlines() or [""])[-1]
    wrong = {
        f"status {ended.code}": ended.code != 1,
        f"the end came {took:.1f} s after the failure": took > limit,
        f"the last line is {last[:300]!r}": not _names(last, way, run_dir),
        "no original traceback": WAYS[way].trace not in ended.err,
        f"{len(ended.err.splitlines())} lines about nothing": not WAYS[way].trace and ended.err.count("\n") > 2,
    }
    return [text for text, so in wrong.items() if so]


def _names(line: str, way: str, run_dir: Path) -> bool:
    episode = FAILING.following.following if way == "MadeAgain" else FAILING  # it has failed in two others before
    where = f"environment 1 (episode {episode.episode}, seed {episode.seed})"
    ways, hint = [where], f"; klrl resume {run_dir} continues it"
    if way == "Constructor":
        ways, hint = [f"environment {i} (before its first reset)" for i in (0, 1)], ""
    return any(line == f"klrl train ppo: {where}: {WAYS[way].reason}{hint}" for where in ways)


def _goes_on(run: Run, run_dir: Path, way: str, scratch: Path) -> Sequence[str]:
    """What is wrong with what the failure left, once its reason is mended."""
    if way == "Constructor":
        words = run.words(run_dir)  # no run has begun, so the same command begins it
    else:
        words = resumption(run, run_dir)
        lost = written(run_dir) * STEPS - saved(run_dir)
        if lost or saved(run_dir) == 0:
            return [f"saved: {saved(run_dir)} steps, lost: {lost}"]
    ended = start_klrl(words, scratch).wait()
    if ended.code != 0 or written(run_dir) != run.updates:
        return [f"afterwards {words[0]} ended with {ended.code} and {written(run_dir)} updates: {ended.err[-300:]}"]
    return []


def _went_on(ended: Ended, way: str, run_dir: Path) -> Sequence[str]:
    """What is wrong with a run that was to mend the failure."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        counts = [float(row["rollout/worker_restarts"]) for row in csv.DictReader(file)]
    where = f"environment 1 (episode {FAILING.episode}, seed {FAILING.seed}): {WAYS[way].reason}; restarted"
    wrong = {
        f"status {ended.code}: {ended.err[-300:]}": ended.code != 0,
        f"restarts by update: {counts}": len(counts) < _UPDATES or counts[0] != 0 or counts[-1] != 1,
        f"no warning of it: {ended.err[-300:]}": where not in ended.err,
    }
    return [text for text, so in wrong.items() if so]
