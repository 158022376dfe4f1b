"""Saved state: a directory of safetensors, JSON and a manifest of their digests; read without pickle.

The manifest is the commit: the files it names are written and synchronised first, under names of their own, then it
takes the place of the older one in a single rename. Whenever a process dies, the old state is there, or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

MANIFEST = "MANIFEST.json"
FORMAT = 3
_FILES = {"agent": "json", "tensors": "safetensors"}
"""What there is, and the suffix of its file."""


class Damaged(ValueError):
    """What was saved is not what was written."""


def write(path: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a saved agent; an older one at the same path is replaced, anything else there is refused.

    Raises:
        FileExistsError: ``path`` exists and is not a saved agent.
    """
    path = Path(path)
    if path.exists() and not _is_ours(path):
        raise FileExistsError(f"path = {path} exists and is not a saved agent; allowed: a new path, or a saved agent's")
    contents = {
        "agent": json.dumps(state).encode(),
        "tensors": save({name: x.detach().contiguous() for name, x in tensors.items()}),
    }
    path.mkdir(parents=True, exist_ok=True)
    try:
        files = {kind: _write(path, kind, data) for kind, data in contents.items()}
        _replace(path / MANIFEST, _canonical({"format": FORMAT, "files": files}))
    finally:
        _clean(path)
    _sync(path.parent)
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote, or the newest good checkpoint of a run directory.

    Raises:
        FileNotFoundError: nothing saved there.
        ValueError: saved by another version of klrl, or damaged (:class:`Damaged`).
    """
    path = Path(path)
    if (path / MANIFEST).exists():
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


def step_directory(run_dir: Path, timesteps: int) -> Path:
    """Where a run keeps its checkpoint after ``timesteps``."""
    return run_dir / "checkpoints" / f"{timesteps:012d}"


def prune(run_dir: Path, keep: int) -> None:
    """Keep the newest ``keep`` checkpoints and the best one by training return; delete the others.

    Nothing is deleted while the newest one is damaged; what a dead process left unfinished is.
    """
    complete = _complete(run_dir)
    for unfinished in {*(run_dir / "checkpoints").glob("[0-9]*")} - {*complete}:
        shutil.rmtree(unfinished)
    if not complete:
        return
    _read(complete[-1])
    best = max(complete, key=_score)
    for path in complete[:-keep]:
        if path != best:
            shutil.rmtree(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        contents = {kind: _verified(path, file) for kind, file in _manifest(path)["files"].items()}
        return load(contents["tensors"]), json.loads(contents["agent"])
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ValueError) and not isinstance(error, (Damaged, json.JSONDecodeError, UnicodeDecodeError)):
            raise
        raise Damaged(f"path = {path} is damaged: {error}") from error


def _manifest(path: Path) -> dict[str, Any]:
    """What the manifest says, if it is as :func:`write` wrote it."""
    text = (path / MANIFEST).read_bytes()
    manifest = json.loads(text)
    if not isinstance(manifest, dict) or _canonical({k: v for k, v in manifest.items() if k != "sha256"}) != text:
        raise Damaged(f"{MANIFEST} is not as it was written")
    if manifest["format"] != FORMAT:
        raise ValueError(f"path = {path} has format {manifest['format']}; this klrl reads format {FORMAT}")
    if manifest["files"].keys() != _FILES.keys():
        raise Damaged(f"{MANIFEST} names {', '.join(manifest['files'])}")
    return manifest


def _verified(path: Path, file: dict[str, Any]) -> bytes:
    """The bytes of a file inside the directory that has the size and the digest it was written with."""
    name = file["name"]
    if not re.fullmatch(r"[a-z]+-[0-9a-f]{16}\.[a-z]+", name) or (path / name).is_symlink():
        raise Damaged(f"{MANIFEST} names {name!r}")
    if (path / name).stat().st_size != file["size"]:
        raise Damaged(f"{name} does not have its size")
    data = (path / name).read_bytes()
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise Damaged(f"{name} does not have its digest")
    return data


def _canonical(manifest: dict[str, Any]) -> bytes:
    """The one text of a manifest, its own digest included."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return json.dumps(manifest | {"sha256": digest}, indent=1, sort_keys=True).encode()


def _is_ours(path: Path) -> bool:
    """Whether there is nothing but what :func:`write` makes, finished or not."""
    return path.is_dir() and set(path.iterdir()) == set(_ours(path))


def _ours(path: Path) -> list[Path]:
    names = rf"{re.escape(MANIFEST)}|({'|'.join(_FILES)})-[0-9a-f]{{16}}\.({'|'.join(_FILES.values())})"
    return [p for p in path.iterdir() if re.fullmatch(rf"({names})(\.[0-9a-f]{{8}}\.tmp)?", p.name)]


def _complete(run_dir: Path) -> list[Path]:
    return sorted(p.parent for p in (run_dir / "checkpoints").glob(f"[0-9]*/{MANIFEST}"))


def _score(path: Path) -> tuple[float, str]:
    try:
        score = json.loads(_verified(path, _manifest(path)["files"]["agent"])).get("ep_rew_mean")
    except (ValueError, OSError):
        score = None
    return (float("-inf") if score is None else score), path.name


def _write(path: Path, kind: str, data: bytes) -> dict[str, Any]:
    """A file under a name that nothing else has; what the manifest says about it."""
    digest = hashlib.sha256(data).hexdigest()
    name = f"{kind}-{digest[:16]}.{_FILES[kind]}"
    _replace(path / name, data)
    return {"name": name, "size": len(data), "sha256": digest}


def _replace(path: Path, data: bytes) -> None:
    """Aside, to the disk, then under its name in one step."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    _sync(path.parent)


def _clean(path: Path) -> None:
    """Remove what no manifest names: what is old, or what a write that failed has left."""
    named: set[str] = set()
    if (path / MANIFEST).exists():
        try:
            named = {MANIFEST, *(file["name"] for file in _manifest(path)["files"].values())}
        except ValueError:  # damaged: who knows what it named
            return
    for file in _ours(path):
        if file.name not in named:
            file.unlink()
    if not named and not any(path.iterdir()):
        path.rmdir()


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
