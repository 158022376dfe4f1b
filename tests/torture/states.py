"""Whole states as digests: two runs are the same if these are, and where they are not, the names of what differs."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from klrl.agents import Agent, saving
from klrl.run import checkpoint

Tensors = dict[str, Tensor]
T = TypeVar("T")


def parts(tensors: Tensors, data: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of every tensor (type, shape, bytes) and of every entry of the JSON, by name."""
    digests = {f"tensor {name}": _of(f"{x.dtype} {list(x.shape)}", _bytes(x)) for name, x in tensors.items()}
    return digests | {f"state {name}": _of(json.dumps(value, sort_keys=True)) for name, value in data.items()}


def agent_parts(agent: Agent[Any]) -> dict[str, str]:
    """What determines what an agent in memory does next, and its metrics; how long anything took is left out."""
    now = agent.snapshot()
    where = {} if now.cursor is None else now.cursor.tensors()
    history = [_without_time(row) for row in now.state["history"]]
    return parts(
        now.tensors | {f"whereabouts.{k}": x for k, x in where.items()},
        now.state | {"paths": now.paths(), "history": history},
    )


def saved_parts(path: Path) -> dict[str, str]:
    """The same of a saved agent, or of a run directory's newest good checkpoint, without making an agent of it."""
    tensors, data = checkpoint.read(path)
    history = [_without_time(row) for row in saving.history(data["history"], tensors)]
    others = {name: x for name, x in tensors.items() if not name.startswith("history.")}
    return parts(others, data | {"history": history})


def run_parts(run_dir: Path) -> dict[str, str]:
    """A run's last state, and every row of its metrics and episodes."""
    digests = saved_parts(run_dir)
    for name in ("metrics.csv", "episodes.csv"):
        for i, row in enumerate(rows(run_dir / name)):
            digests[f"{name} row {i}"] = _of(json.dumps(row, sort_keys=True))
    return digests


def rows(path: Path) -> list[dict[str, str]]:
    """Of a CSV file, without the columns ``time/...``."""
    with path.open(newline="") as file:
        return [_without_time(row) for row in csv.DictReader(file)]


def digest(named: dict[str, str]) -> str:
    """One SHA-256 of all parts."""
    return _of(json.dumps(named, sort_keys=True))


def difference(one: dict[str, str], other: dict[str, str]) -> str | None:
    """``None`` if they are the same, else a sentence with the names of the first parts that differ."""
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return f"{len(names)} of {len({**one, **other})} parts differ: {', '.join(names[:5])}" if names else None


def _without_time(row: dict[str, T]) -> dict[str, T]:
    return {name: x for name, x in row.items() if not name.startswith("time/")}


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().contiguous().numpy().tobytes()


def _of(text: str, data: bytes = b"") -> str:
    return hashlib.sha256(text.encode() + b"\0" + data).hexdigest()
