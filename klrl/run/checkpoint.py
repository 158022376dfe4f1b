"""Saved state: a directory of safetensors and JSON, written aside and renamed, read without pickle."""

from __future__ import annotations

import json
import os
import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

STATE, TENSORS = "agent.json", "tensors.safetensors"
FORMAT = 1


def write(path: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a saved agent; an older one at the same path is replaced, anything else there is refused.

    Raises:
        FileExistsError: ``path`` exists and is not a saved agent.
    """
    path = Path(path)
    if path.exists() and not (path / STATE).exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"path = {path} exists and is not a saved agent; allowed: a new path, or a saved agent's")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.mkdir()
    try:
        save_file({name: x.detach().contiguous() for name, x in tensors.items()}, aside / TENSORS)
        (aside / STATE).write_text(json.dumps({"format": FORMAT, **state}, indent=1) + "\n")
        for file in aside.iterdir():
            _sync(file)
    except BaseException:
        shutil.rmtree(aside)
        raise
    if path.exists():
        old = aside.with_name(aside.name + ".old")
        path.rename(old)
        aside.rename(path)
        shutil.rmtree(old)
    else:
        aside.rename(path)
    _sync(path.parent)
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote, or the newest good checkpoint of a run directory.

    Raises:
        FileNotFoundError: nothing saved there.
        ValueError: saved by a newer klrl, or damaged.
    """
    path = Path(path)
    if (path / STATE).exists():
        return _read(path)
    candidates = _complete(path)
    while candidates:
        try:
            return _read(candidates.pop())
        except ValueError as error:
            if not candidates:
                raise
            warnings.warn(f"{error}; going back to {candidates[-1]}", RuntimeWarning, stacklevel=2)
    raise FileNotFoundError(f"path = {path}: no saved agent there; allowed: a saved agent or a run directory")


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not (path / TENSORS).exists():
        raise ValueError(f"path = {path} is damaged: {TENSORS} is missing")
    try:
        state = json.loads((path / STATE).read_text())
        tensors = load_file(path / TENSORS)
    except (ValueError, SafetensorError, OSError) as error:
        raise ValueError(f"path = {path} is damaged: {error}") from error
    if state.get("format") != FORMAT:
        raise ValueError(f"path = {path} has format {state.get('format')}; this klrl reads format {FORMAT}")
    return tensors, state


def step_directory(run_dir: Path, timesteps: int) -> Path:
    """Where a run keeps its checkpoint after ``timesteps``."""
    return run_dir / "checkpoints" / f"{timesteps:012d}"


def prune(run_dir: Path, keep: int) -> None:
    """Keep the newest ``keep`` checkpoints and the best one by training return; delete the others."""
    complete = _complete(run_dir)
    best = max(complete, key=_score, default=None)
    for path in complete[:-keep]:
        if path != best:
            shutil.rmtree(path)


def _complete(run_dir: Path) -> list[Path]:
    return sorted(p.parent for p in (run_dir / "checkpoints").glob(f"[0-9]*/{STATE}"))


def _score(path: Path) -> tuple[float, str]:
    score = json.loads((path / STATE).read_text()).get("ep_rew_mean")
    return (float("-inf") if score is None else score), path.name


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
