"""Attacks on a run that goes on: by what its files are, where it writes, and what its ``config.json`` says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from klrl.run import checkpoint
from torture.forgery import Victim
from torture.malicious_files import links_and_pipes
from torture.malicious_settings import texts

Attack = tuple[str, Callable[[Victim], None]]
NEXT = 256
"""Steps of the checkpoint that the run writes next."""
_FILES = ("config.json", "metrics.csv", "metrics.csv.tmp", "episodes.csv", "episodes.csv.tmp", "events.*", "run.lock")
_ESCAPES = "\x1b]0;owned\x07\x1b[2J\n"


def of_files() -> Iterator[Attack]:
    """Every file that a resumed run reads or writes is something else."""
    for name in _FILES:
        yield from _of(name)
    for what, make in _FOLDERS.items():
        yield f"the next checkpoint is {what}", partial(_next_checkpoint, make=make)
        yield f"the folder of checkpoints is {what}", partial(_all_checkpoints, make=make)
    yield "the next checkpoint's manifest is a link to the outside", _next_manifest
    yield from links_and_pipes()


def of_the_last_step() -> Iterator[Attack]:
    """The same of the file that a run writes when a number is none."""
    yield from _of("non-finite.npz")


def of_settings() -> Iterator[Attack]:
    """``config.json``, for a run with a checkpoint and for one that begins anew."""
    for anew in (False, True):
        where = ", no checkpoint" if anew else ""
        for name, text in texts().items():
            yield f"config.json {name}{where}", partial(_with_text, text=text, anew=anew)
        for key, values in _VALUES.items():
            for value in values:
                what = f"config.json with {key} {json.dumps(value)[:60]}{where}"
                yield what, partial(_with_entry, key=key, value=value, anew=anew)
        for key in ("id", "kwargs", "max_episode_steps"):
            yield f"config.json with an env without {key}{where}", partial(_without, key=key, anew=anew)
    what = "config.json with total_timesteps of 400 digits"  # which only a run with a checkpoint contradicts
    yield what, partial(_with_entry, key="total_timesteps", value=10**400, anew=False)


def links(run_dir: Path) -> list[str]:
    """What is a link, although the run writes there."""
    files = [run_dir / name for name in ("metrics.csv", "episodes.csv")]
    return [p.name for p in (*files, *run_dir.glob("checkpoints/*")) if p.is_symlink()]


def _of(name: str) -> Iterator[Attack]:
    for what, make in _KINDS.items():
        yield f"{name} is {what}", partial(_in_place, name=name, make=make)


def _in_place(v: Victim, name: str, make: Callable[[Path, Path], object]) -> None:
    """Something instead of a file; where that was, is what a link to the outside finds there."""
    place, outside = next(v.run_dir.glob(name), v.run_dir / name), v.outside / "theirs"
    if place.exists():
        place.rename(outside)
    else:
        outside.write_text("more years of work")
    make(place, outside)


_KINDS: dict[str, Callable[[Path, Path], object]] = {
    "a link to the outside": lambda place, outside: place.symlink_to(Path("..") / outside.parent.name / outside.name),
    "a second name of a file outside": lambda place, outside: place.hardlink_to(outside),
    "a link to nothing outside": lambda place, outside: place.symlink_to(outside.with_name("nothing")),
    "a link to zeros without end": lambda place, outside: place.symlink_to("/dev/zero"),
    "a link to itself": lambda place, outside: place.symlink_to(place),
    "a pipe": lambda place, outside: os.mkfifo(place),
    "a folder": lambda place, outside: place.mkdir(),
}
"""What is at a place in the run directory; beside it a file outside."""


def _to_agent(v: Victim, place: Path) -> None:
    shutil.copytree(v.saved, v.outside / "agent")
    place.symlink_to(v.outside / "agent")


def _to_empty(v: Victim, place: Path) -> None:
    (v.outside / "empty").mkdir()
    place.symlink_to(v.outside / "empty")


_FOLDERS: dict[str, Callable[[Victim, Path], object]] = {
    "a link to a folder outside": lambda v, place: place.symlink_to(v.outside),
    "a link to an empty folder outside": _to_empty,
    "a link to a saved agent outside": _to_agent,
    "a link to nowhere outside": lambda v, place: place.symlink_to(v.outside / "nothing"),
    "a link to a file outside": lambda v, place: place.symlink_to(v.outside / "precious.txt"),
    "a pipe instead of a folder": lambda v, place: os.mkfifo(place),
    "a file instead of a folder": lambda v, place: place.write_text("a file"),
}
"""What is where a folder ought to be."""


def _next_checkpoint(v: Victim, make: Callable[[Victim, Path], object]) -> None:
    make(v, checkpoint.step_directory(v.run_dir, NEXT))


def _all_checkpoints(v: Victim, make: Callable[[Victim, Path], object]) -> None:
    folder, made = v.run_dir / "checkpoints", v.run_dir / "made"
    make(v, made)
    shutil.rmtree(folder)
    made.rename(folder)


def _next_manifest(v: Victim) -> None:
    place = checkpoint.step_directory(v.run_dir, NEXT)
    place.mkdir()
    (place / checkpoint.MANIFEST).symlink_to(v.outside / "precious.txt")


_VALUES: dict[str, tuple[Any, ...]] = {
    "total_timesteps": ("x", [], {}, None, -1, 1.5, float("nan")),
    "versions": ([1], "x", None, 7, {"python": _ESCAPES}, {_ESCAPES: "1"}, {"python": [_ESCAPES]}, {"python": None}),
    "env": (
        "evil:Evil-v0", [], 7, None, {}, {"id": ["CartPole-v1"], "kwargs": {}, "max_episode_steps": 500},
        {"id": "evil:Evil-v0", "kwargs": {}, "max_episode_steps": None},
        {"id": _ESCAPES, "kwargs": {}, "max_episode_steps": None},
        {"id": "CartPole-v1", "kwargs": {_ESCAPES: 1}, "max_episode_steps": 500},
        {"id": "CartPole-v1", "kwargs": {}, "max_episode_steps": 10**400},
    ),
    "seed": ({}, "x", None, -1, 1.5, 10**400, float("nan")),
    "agent": (["ppo"], {}, None, 7, "os.system", _ESCAPES),
    "config": ([], "x", None, {_ESCAPES: 1}, {"n_envs": 10**9}, {"n_envs": 10**400}, {"learning_rate": "x"},
               {"actor_hidden_sizes": [50_000, 50_000]}, {"trust_region": {"class": _ESCAPES}}),
    "checkpoint_every": ("x", [], -1, 10**400, float("nan")),
    "keep_checkpoints": ("x", {}, 0, 10**400),
    "eval_episodes": ("x", [], -1, 10**400),
    "torch_threads": ("x", {}, 10**9, 10**400),
    "kl_budget": ("x", [], -1, 10**400, float("nan")),
    "over_budget": (_ESCAPES, ["stop"], 7),
    "start_from": (_ESCAPES, ["x"], {}, 7, "/dev/zero"),
    "preset": (_ESCAPES, [_ESCAPES], {}, 7),
}  # fmt: skip
"""What an entry of ``config.json`` never is."""


def _with_text(v: Victim, text: Callable[[], bytes], anew: bool) -> None:
    _forget(v, anew)
    (v.run_dir / "config.json").write_bytes(text())


def _with_entry(v: Victim, key: str, value: Any, anew: bool) -> None:
    _forget(v, anew)
    _change(v, lambda run: run | {key: value})


def _without(v: Victim, key: str, anew: bool) -> None:
    _forget(v, anew)
    _change(v, lambda run: run | {"env": {k: x for k, x in run["env"].items() if k != key}})


def _change(v: Victim, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = v.run_dir / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))


def _forget(v: Victim, anew: bool) -> None:
    if anew:
        shutil.rmtree(v.run_dir / "checkpoints")
