"""Saved state: a directory of safetensors, JSON and a manifest of their digests; read without pickle.

The manifest is the commit: the files it names are written and synchronised first, under names of their own, then it
takes the place of the older one in a single rename. Whenever a process dies, the old state is there, or the new one.

Data that grows with a training is split into parts that never change. A part's file is written once or twice, and later
checkpoints of the run link to it: every directory is complete, and can be copied or deleted on its own.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from klrl.interrupts import held
from klrl.run.disk import read_regular_file, reporting_full_disk
from klrl.run.sealed import sealed, unsealed
from klrl.text import plain, warn_user

MANIFEST = "MANIFEST.json"
BEST = "best"
"""Name, beside the numbered checkpoints, of the agent whose evaluation was the run's best."""
EXPORT = "export"
"""Name of the folder, in a run or saved agent, of its policy as a graph."""
FORMAT = 5
_READ = (3, 4, FORMAT)
"""Formats that are read; format 3 has no parts."""
_FILES = {"agent": "json", "tensors": "safetensors"}
"""Files of a saved agent, and their suffixes."""
_PART = "history"
"""Name of a part, followed by its number."""
_GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO}
"""Errors that say what is there, or that nothing is; others may be temporary."""
_MOST = {"manifest": 2**16, "agent": 2**21, "header": 2**20}
"""Most bytes of JSON: it needs many times its size in memory, so larger ones are neither written nor read."""


class Damaged(ValueError):
    """A saved file does not hold what was written."""


class OtherFormat(ValueError):
    """A saved file is for another version of klrl."""


@dataclass(eq=False)
class Part:
    """Tensors that no longer change, in a file of their own."""

    tensors: dict[str, Tensor]
    file: dict[str, Any] | None = None
    """Entry in manifests, once the file has been written."""


def write(
    path: str | Path,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    parts: Sequence[Part] = (),
    lender: Path | None = None,
) -> Path:
    """Write a saved agent; an older one at the same path is replaced, anything else there is refused.

    Args:
        path: directory of the saved agent.
        tensors: tensors by name.
        state: plain JSON.
        parts: more tensors; those of the i-th part are read under the prefix ``history.i.``.
        lender: a saved agent to link to for parts that it has already.

    Raises:
        DiskFull: no room; an older agent there is unchanged.
        FileExistsError: ``path`` exists and is not a saved agent.
        ValueError: the state is larger than :func:`read` accepts.
    """
    path = Path(path)
    if path.exists() and not _is_ours(path):
        raise FileExistsError(f"path = {path} exists and is not a saved agent; allowed: a new path, or a saved agent's")
    data = {
        "agent": json.dumps(state).encode(),
        "tensors": save({name: x.detach().contiguous() for name, x in tensors.items()}),
    }
    _check_sizes(data["agent"], data["tensors"][:8])
    size = sum(map(len, data.values())) + sum(x.nbytes for part in parts for x in part.tensors.values())
    with held(), reporting_full_disk(path, size):
        path.mkdir(parents=True, exist_ok=True)
        try:
            files = {f"{_PART}.{i}": _write_part(path, part, lender) for i, part in enumerate(parts)}
            files |= {kind: _write(path, kind, text) for kind, text in data.items()}
            replace(path / MANIFEST, sealed({"format": FORMAT, "files": files}))
        finally:
            _clean(path)
    _sync(path.parent)
    return path


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write` wrote, or the newest good checkpoint of a run directory.

    Raises:
        FileNotFoundError: nothing is saved there.
        ValueError: saved by another version of klrl, too large for the memory, or damaged (:class:`Damaged`).
        OSError: a file exists but cannot be read now; this is not damage.
    """
    path = Path(path)
    if (path / MANIFEST).exists():
        return _read(path)
    candidates = _steps(path)
    if not _finished(candidates):
        raise FileNotFoundError(f"path = {path}: no saved agent there; {_why_not(path)}")
    while True:
        newest = candidates.pop()
        try:
            return _read(newest)
        except Damaged as error:
            if not _finished(candidates):
                raise
            if any(newest.iterdir()):  # an empty one: the run was killed before writing to it
                warn_user(f"{error}; going back to {candidates[-1]}")


def is_log(path: Path) -> bool:
    """Tell whether a directory is the log of a monitor, which has no episodes and no policy."""
    return (path / "metrics.csv").exists() and not (path / "episodes.csv").exists()


def _why_not(path: Path) -> str:
    if is_log(path):
        return "a monitor's log has no policy; allowed: a saved agent or a run directory"
    if (path / "config.json").exists():
        return f"its run has saved nothing yet; allowed: klrl resume {path}, which begins it anew if it has ended"
    more = f" (klrl import-sb3 {path} -o NEW makes one of a zip)" if path.suffix == ".zip" and path.is_file() else ""
    return f"allowed: a saved agent or a run directory{more}"


def replace(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, synchronise it, and rename it in one step."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with held():
        try:
            with aside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
        _sync(path.parent)


@contextlib.contextmanager
def as_damage(path: str | Path) -> Iterator[None]:
    """Raise errors of code that interprets a saved file as damage; its digests were right, but its author may differ.

    Raises:
        ValueError: one line that names the path.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"path = {path}: {plain(error)}") from error
    except Exception as error:
        said = plain(f"{type(error).__name__}: {error}")
        raise ValueError(f"path = {path} is intact, but cannot be used here: {said}") from error


def step_directory(run_dir: Path, timesteps: int) -> Path:
    """Return the directory of a run's checkpoint after ``timesteps``."""
    return run_dir / "checkpoints" / f"{timesteps:012d}"


def best(run_dir: Path) -> Path:
    """Return a run's best checkpoint by evaluations during training; where there were none, by training return.

    Raises:
        FileNotFoundError: the run has no checkpoint.
    """
    if (evaluated := best_directory(run_dir)).is_dir():
        return evaluated
    if not (finished := _finished(_steps(run_dir))):
        raise FileNotFoundError(f"path = {run_dir} has no checkpoint; allowed: a run directory with one")
    return max(finished, key=_score)


def best_directory(run_dir: Path) -> Path:
    """Return the directory of the agent whose evaluation was the run's best."""
    return run_dir / "checkpoints" / BEST


def prune(run_dir: Path, keep: int, newest: Path) -> None:
    """Keep the ``keep`` checkpoints up to ``newest`` and the best one by training return; delete the others.

    Later ones belong to steps that were undone, or are damaged: a run continues from the newest good one. Of its parts
    only the sizes are checked, because reading them would take longer with every update.

    Args:
        run_dir: directory of the run.
        keep: number of checkpoints to keep.
        newest: checkpoint just written; nothing is deleted if it is damaged.

    Raises:
        ValueError: ``newest`` is damaged.
    """
    _read(newest, parts=False)
    steps = _steps(run_dir)
    complete = [path for path in _finished(steps) if int(path.name) <= int(newest.name)]
    for other in {*steps} - {*complete}:
        shutil.rmtree(other)
    best = max(complete, key=_score)
    for path in complete[:-keep]:
        if path != best:
            (path / MANIFEST).unlink()  # first, so that no rest of it is taken for a checkpoint
            shutil.rmtree(path)


def lender(run_dir: Path, keep: int) -> Path | None:
    """Return the checkpoint whose parts the next one may link to, in a run that keeps ``keep`` checkpoints.

    This is the last but one, so that a damaged file is never in both of the newest two.
    """
    finished = _finished(_steps(run_dir))
    among = min(keep, 2)
    return finished[-among] if len(finished) >= among else None


def _read(path: Path, *, parts: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all that is saved there; without ``parts``, only check that these exist."""
    if not (path / MANIFEST).exists():
        raise Damaged(f"path = {path} has no {MANIFEST}: it was not finished, or the manifest was deleted")
    try:
        files = _manifest(path)["files"]
        state = json.loads(_verified(path, "agent", files["agent"]))
        if not isinstance(state, dict):
            raise Damaged("its JSON is not an object")
        tensors = load(_verified(path, "tensors", files["tensors"]))
        for name in files.keys() - _FILES.keys():
            if parts:
                tensors |= {f"{name}.{k}": x for k, x in load(_verified(path, _PART, files[name])).items()}
            elif not _is_there(path / files[name]["name"], files[name]["size"]):
                raise Damaged(f"{files[name]['name']} does not have its size")
        return tensors, state
    except OtherFormat:
        raise
    except OSError as error:
        if error.errno not in _GONE:
            raise
        raise Damaged(f"path = {path} is damaged: {plain(error)}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Damaged(f"path = {path} is damaged: {plain(error)}") from error
    except MemoryError as error:
        raise ValueError(f"path = {path} is larger than this machine's memory") from error


def _manifest(path: Path) -> dict[str, Any]:
    """Return the manifest, if it is as :func:`write` wrote it."""
    try:
        manifest = unsealed(read_regular_file(path / MANIFEST, _MOST["manifest"]))
    except ValueError as error:
        raise Damaged(f"{MANIFEST}: {error}") from error
    if manifest["format"] not in _READ:
        formats = " and ".join(map(str, _READ))
        raise OtherFormat(f"path = {path} has format {plain(manifest['format'])}; this klrl reads formats {formats}")
    files = manifest["files"]
    if files.keys() != {*_FILES, *(f"{_PART}.{i}" for i in range(len(files) - len(_FILES)))}:
        raise Damaged(f"{MANIFEST} names {[*files]}")
    return manifest


def _verified(path: Path, kind: str, file: dict[str, Any]) -> bytes:
    """Return the bytes of a file in the directory, after checking size and digest."""
    name = file["name"]
    if not re.fullmatch(rf"{kind}-[0-9a-f]{{16}}\.{_FILES.get(kind, 'safetensors')}", name):
        raise Damaged(f"{MANIFEST} names {name!r}")
    data = read_regular_file(path / name, _MOST.get(kind), file["size"])
    if hashlib.sha256(data).hexdigest() != file["sha256"]:
        raise Damaged(f"{name} does not have its digest")
    if kind != "agent":
        _check_sizes(b"", data[:8])
    return data


def _check_sizes(agent: bytes, length_of_header: bytes) -> None:
    sizes = {"agent": len(agent), "header": int.from_bytes(length_of_header, "little")}
    for name, size in sizes.items():
        if size > _MOST[name]:
            what = "the state's JSON" if name == "agent" else "the header of the tensors"
            raise ValueError(f"{what} has {size:,} bytes; allowed: at most {_MOST[name]:,}")


def _is_ours(path: Path) -> bool:
    """Return True for a directory that holds only what :func:`write` makes, finished or not, and its policy's graph."""
    return path.is_dir() and set(path.iterdir()) - {path / EXPORT} == set(_ours(path))


def _ours(path: Path) -> list[Path]:
    names = rf"{re.escape(MANIFEST)}|({'|'.join([*_FILES, _PART])})-[0-9a-f]{{16}}\.({'|'.join(_FILES.values())})"
    return [p for p in path.iterdir() if re.fullmatch(rf"({names})(\.[0-9a-f]{{8}}\.tmp)?", p.name)]


def _steps(run_dir: Path) -> list[Path]:
    """Return a run's checkpoints in order, finished or not; links to other places are left out.

    Raises:
        Damaged: the folder of all checkpoints is a link.
    """
    folder = run_dir / "checkpoints"
    if folder.is_symlink():
        raise Damaged(f"path = {folder} is a link; allowed: a directory (a link to the whole run directory is fine)")
    found = (p for p in folder.glob("[0-9]*") if re.fullmatch(r"[0-9]{12,}", p.name))
    return sorted((p for p in found if p.is_dir() and not p.is_symlink()), key=lambda p: int(p.name))


def _finished(steps: list[Path]) -> list[Path]:
    return [p for p in steps if (p / MANIFEST).exists()]


def _score(path: Path) -> tuple[float, str]:
    try:
        score = json.loads(_verified(path, "agent", _manifest(path)["files"]["agent"])).get("ep_rew_mean")
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError):
        score = None
    known = isinstance(score, (int, float)) and not math.isnan(score)
    return (score if known else float("-inf")), path.name


def _write(path: Path, kind: str, data: bytes) -> dict[str, Any]:
    """Write a file under a new, unique name, and return its entry in the manifest."""
    digest = hashlib.sha256(data).hexdigest()
    name = f"{kind}-{digest[:16]}.{_FILES.get(kind, 'safetensors')}"
    replace(path / name, data)
    return {"name": name, "size": len(data), "sha256": digest}


def _write_part(path: Path, part: Part, lender: Path | None) -> dict[str, Any]:
    if part.file is None or lender is None or not _link(lender / part.file["name"], path, part.file["size"]):
        part.file = _write(path, _PART, save(part.tensors))
    return part.file


def _link(file: Path, path: Path, size: int) -> bool:
    """Give a file a second name in a directory, and return True if that was possible."""
    try:
        if _is_there(file, size):
            os.link(file, path / file.name)
            return True
    except OSError:  # the disk has no links or no more of them, or something has this name already
        pass
    return False


def _is_there(file: Path, size: int) -> bool:
    """Return True for a regular file of this size."""
    status = file.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _clean(path: Path) -> None:
    """Remove files that no manifest names: old ones, and those of failed writes."""
    named: set[str] = set()
    if (path / MANIFEST).exists():
        try:
            named = {MANIFEST, *(file["name"] for file in _manifest(path)["files"].values())}
        except (ValueError, OSError):  # damaged: its names are unknown
            return
    for file in _ours(path):
        if file.name not in named:
            file.unlink()
    if not named and not any(path.iterdir()):
        path.rmdir()


def _sync(directory: Path) -> None:
    with held():
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
