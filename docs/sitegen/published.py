"""Returns that others have published, from ``scripts/benchmarks/published.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from typing import Any

from sitegen.markdown import table
from sitegen.results import ROOT

FILE = ROOT / "scripts" / "benchmarks" / "published.toml"
METRICS = ("M1", "M2", "M3", "M4", "unstated")
SAME_IN_EVERY_VERSION = ("HalfCheetah", "Swimmer")
"""MuJoCo tasks whose rewards and dynamics did not change with v5 (Gymnasium's version history)."""
MANY = 3
"""Seeds from which on a published number is set beside those of many seeds."""
_VERSIONS = ("v1", "v2", "v3", "v4", "v5")
Record = dict[str, Any]


@cache
def records() -> dict[str, list[Record]]:
    """Everything in the file: ``published`` numbers, ``thresholds``."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))


def of_env(env: str) -> tuple[str, str]:
    """Return task and version of an environment's id.

    >>> of_env("Ant-v4")
    ('Ant', 'v4')
    """
    task, _, version = env.rpartition("-v")
    return task, f"v{version}"


def comparable(record: Record, env: str) -> bool:
    """Tell whether a number was measured in what is the same task: v5 changed most of MuJoCo's."""
    task, version = of_env(env)
    return task in SAME_IN_EVERY_VERSION or ((record["version"] == "v5") == (version == "v5"))


def best(env: str, algorithm: str, metric: str, steps: int | None) -> Record | None:
    """Return the record with the largest number of a metric for so many steps, of several seeds if there is one."""
    task, _ = of_env(env)
    found = [
        record
        for record in records()["published"]
        if record["algorithm"] == algorithm and record["metric"] == metric and record.get("steps") == steps
        if task in record["returns"] and record["version"] != "unstated" and comparable(record, env)
    ]
    found = [record for record in found if record.get("seeds", 0) >= MANY] or found
    return max(found, key=lambda record: record["returns"][task][0], default=None)


def short(record: Record, env: str) -> str:
    """Show a record's number for a task, whose it is, of how many seeds, and in which version of the environment."""
    seeds, version, mujoco = (record.get(name) for name in ("seeds", "version", "mujoco"))
    said = [
        record["source"].partition(",")[0],
        f"{seeds} seed{'s' * (seeds > 1)}" if seeds else "",
        f"{version}" * (version in _VERSIONS),
        f"MuJoCo {mujoco}" if mujoco else "",
    ]
    return f"{number(record['returns'][of_env(env)[0]][0])} ({', '.join(filter(None, said))})"


def number(value: float) -> str:
    """Show a return: with a decimal where it is small.

    >>> number(5733.4), number(-4.5)
    ('5,733', '-4.5')
    """
    return f"{value:{digits(value)}}"


def digits(value: float) -> str:
    """Return the format of a return."""
    return ",.0f" if abs(value) >= 100.0 else ".1f"


def threshold(env: str) -> Record | None:
    """Return the return that counts as reached."""
    return next((record for record in records()["thresholds"] if record["task"] == of_env(env)[0]), None)


def published() -> str:
    """Every published number, a table for MuJoCo and one for the other tasks."""
    mujoco = [record for record in records()["published"] if "HalfCheetah" in record["returns"]]
    others = [record for record in records()["published"] if "HalfCheetah" not in record["returns"]]
    return "\n\n".join(map(_table, (mujoco, others)))


def _table(found: list[Record]) -> str:
    tasks = list(dict.fromkeys(task for record in found for task in record["returns"]))
    head = ["source", "algorithm", "metric", "seeds", "steps", "version", "MuJoCo", *tasks, "remarks"]
    return table(head, [[*_origin(record), *_numbers(record, tasks), _remarks(record)] for record in found])


def _origin(record: Record) -> list[str]:
    steps = f"{record['steps']:,}" if "steps" in record else ""
    known = [str(record.get(name, "")) for name in ("version", "mujoco")]
    return [record["source"], record["algorithm"], record["metric"], str(record.get("seeds", "")), steps, *known]


def _numbers(record: Record, tasks: list[str]) -> list[str]:
    of = record["returns"]
    return [" ± ".join(map(number, of[task])) if task in of else "" for task in tasks]


def _remarks(record: Record) -> str:
    spread = f"±: {record['spread']}" if "spread" in record else ""
    how = "" if record["how"] == "stated" else record["how"]
    return "; ".join(filter(None, [how, spread, record.get("note", "")]))


BLOCKS: dict[str, Callable[[], str]] = {"published": published}
