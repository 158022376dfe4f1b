"""R19: directories of every kind, and what becomes of them while a run is in them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from torture.case import Case
from torture.processes import Ended, Process, start_klrl
from torture.runs import Run, at_row, saved, succeed

_RUN = Run("ppo", "CartPole-v1", updates=6, every=2)
_LONG = Run("ppo", "CartPole-v1", updates=200, every=20)
_NAMES = {"spaces": "a b  c", "Unicode": "ü→漢", "200 characters": "x" * 200, "a leading dash": "-run", "%": "%s{}*[0]"}
# A directory that belongs to the kernel takes nobody's files, not even the administrator's.
_REFUSED = {"256 characters": "x" * 256, "a directory of the kernel's": "/proc/klrl", "below a file": "/dev/null/run"}
_CHANGING = """
import os, sys, tempfile
from klrl.agents import PPO, PPOConfig
from klrl.run import Callback

class Go(Callback):
    def on_update_end(self, agent, batch, metrics):
        os.chdir(elsewhere)

elsewhere = os.path.abspath(tempfile.mkdtemp(dir="."))
PPO("CartPole-v1", PPOConfig(n_envs=2, n_steps=32, batch_size=32)).learn(256, Go(), run_dir="run")
"""


def cases(seed: int) -> list[Case]:
    """Names, links, directories that nobody can write to, and those that go away."""
    away: dict[str, Callable[[Path], object]] = {
        "removed during the run": shutil.rmtree,
        "renamed during the run": lambda path: path.rename(path.with_name("renamed")),
    }
    return [
        *(
            Case("R19", f"name with {name}", _named(text), quick=text == _NAMES["Unicode"])
            for name, text in _NAMES.items()
        ),
        *(
            Case("R19", f"refused: {name}", _refused(text), quick=name == "256 characters")
            for name, text in _REFUSED.items()
        ),
        Case("R19", "a link to a directory", _linked),
        Case("R19", "a relative path, and another working directory from then on", _changed),
        *(Case("R19", name, _gone(how)) for name, how in away.items()),
    ]


def _named(name: str) -> Callable[[Path], str | None]:
    def case(scratch: Path) -> str | None:
        return _train_and_load(scratch, scratch / name)

    return case


def _linked(scratch: Path) -> str | None:
    (scratch / "real").mkdir()
    (scratch / "link").symlink_to(scratch / "real")
    return _train_and_load(scratch, scratch / "link")


def _train_and_load(scratch: Path, run_dir: Path) -> str | None:
    succeed(_RUN.start(scratch, run_dir))
    succeed(start_klrl(["evaluate", run_dir, "--episodes", "1"], scratch))
    steps = _RUN.updates * 128
    return None if saved(run_dir) == steps else f"{saved(run_dir)} of {steps} steps saved"


def _refused(name: str) -> Callable[[Path], str | None]:
    def case(scratch: Path) -> str | None:
        return _told(_RUN.start(scratch, scratch / name).wait(), name, 2)

    return case


def _changed(scratch: Path) -> str | None:
    succeed(Process([sys.executable, "-c", _CHANGING], scratch))
    return None if saved(scratch / "run") == 256 else f"{saved(scratch / 'run')} steps saved in the first directory"


def _gone(how: Callable[[Path], object]) -> Callable[[Path], str | None]:
    def case(scratch: Path) -> str | None:
        run_dir = scratch / "run"
        process = _LONG.start(scratch, run_dir)
        process.until(at_row(run_dir, 3))
        how(run_dir)
        ended = process.wait()
        if ended.code != 0 or ended.err.count("RuntimeWarning: run_dir = ") != 1 or str(run_dir) not in ended.err:
            return f"ended with {ended.code}, not with one warning that names it: {ended.err[-300:]}"
        steps = _LONG.updates * 128
        return None if saved(run_dir) == steps else f"{saved(run_dir)} of {steps} steps saved under its name"

    return case


def _told(ended: Ended, name: str, status: int) -> str | None:
    """What is wrong with an end that one line should have explained, with the directory's name in it."""
    lines = ended.err.splitlines()
    if ended.code == status and len(lines) == 1 and name[:40] in lines[0]:
        return None
    return f"ended with {ended.code} and {len(lines)} lines: {ended.err[-300:]}"
