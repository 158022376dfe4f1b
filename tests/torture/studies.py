"""R20: studies whose processes are killed again and again come to the same as studies to which nothing happens."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from torture.case import Case, Outcome
from torture.processes import Watched, start_klrl
from torture.states import difference, run_parts

_DESIGN = """
seeds = "0-{last}"
steps = {steps}
environments = ["CartPole-v1", "Pendulum-v1"]
presets = false
[base]
n_envs = 2
n_steps = 64
actor_hidden_sizes = [16]
critic_hidden_sizes = [16]
[run]
eval_episodes = 1
checkpoint_every = 512
[[variants]]
name = "clip"
[[variants]]
agent = "trpo"
"""
_UPDATE = 128
"""Steps of an update."""
_ONE_AT_A_TIME = threading.Lock()


def cases(seed: int) -> list[Case]:
    """Twelve runs with a kill every few seconds, of every engine; four, soon over, for the quick subset."""
    slow = [
        Case(
            "R20", f"{engine}, 12 runs, {i}", _killed(f"{seed} R20 {engine} {i}", engine, 2, 120, 10.0), False, 1_800.0
        )
        for engine in _engines()
        for i in range(20 if engine == "processes" else 5)
    ]
    return [Case("R20", "processes, 4 runs", _killed(f"{seed} R20", "processes", 0, 8, 1.0, most=2), True), *slow]


def _engines() -> Iterator[str]:
    yield "processes"
    if importlib.util.find_spec("ray") is not None:
        yield "ray"


def _killed(
    seed: str, engine: str, last: int = 2, updates: int = 120, every: float = 10.0, most: int = 10**6
) -> Callable[[Path], Outcome]:
    """Kill a process that makes a run, chosen at random, every so many seconds on average, and at most so often."""

    def case(scratch: Path) -> Outcome:
        g, output = random.Random(seed), scratch / "killed"
        with _ONE_AT_A_TIME:
            whole = _undisturbed(last, updates)
        design = _design(scratch, last, updates)
        words: list[str | Path] = ["study", design, "--output", output, "--engine", engine, "--retries", "50"]
        kills = _kill_until_its_end(start_klrl(words, scratch), output, g, every, most)
        runs = [run.relative_to(whole) for run in whole.glob("runs/*/*/seed-*") if run.is_dir()]
        problems = [f"{run}: {said}" for run in runs if (said := _differs(whole / run, output / run)) is not None]
        return Outcome(problems, len(runs), {"kills": kills})

    return case


def _design(scratch: Path, last: int, updates: int) -> Path:
    design = scratch / "design.toml"
    design.write_text(_DESIGN.format(last=last, steps=updates * _UPDATE))
    return design


@cache
def _undisturbed(last: int, updates: int) -> Path:
    """Run a study to which nothing happens, once for all cases that are compared with it."""
    kept = tempfile.TemporaryDirectory(prefix="klrl-R20-")
    atexit.register(kept.cleanup)
    scratch = Path(kept.name)
    words: list[str | Path] = [
        "study",
        _design(scratch, last, updates),
        "--output",
        scratch / "whole",
        "--processes",
        "1",
    ]
    ended = start_klrl(words, scratch).wait()
    assert ended.code == 0, f"nothing happened, and it ended with {ended.code}: {ended.err[-300:]}"
    return scratch / "whole"


def _kill_until_its_end(study: Watched, output: Path, g: random.Random, every: float, most: int) -> int:
    kills, due = 0, time.monotonic() + g.uniform(0.0, 2.0 * every)
    while study.running:
        time.sleep(0.02)
        if time.monotonic() < due or kills == most:
            continue
        due = time.monotonic() + g.uniform(0.0, 2.0 * every)
        for lock in g.sample(found := sorted(output.glob("runs/*/*/seed-*/run.lock")), min(1, len(found))):
            with contextlib.suppress(OSError, ValueError):  # its run is over
                os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
                kills += 1
    ended = study.wait()
    assert ended.code == 0, f"ended with {ended.code}: {ended.out[-300:]} {ended.err[-300:]}"
    return kills


def _differs(one: Path, other: Path) -> str | None:
    try:
        return difference(run_parts(one), run_parts(other))
    except OSError as error:
        return str(error)
