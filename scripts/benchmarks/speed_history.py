"""Ratios of klrl's speed to other libraries', a line per measurement: ``klrl benchmark speed --quick``."""

from __future__ import annotations

import csv
import io
import os
import subprocess
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import klrl
from klrl.scripts.benchmarks.measure import BOUND

ROOT = Path(__file__).resolve().parents[2]
"""Top of the checkout, if this file is in one."""
NAME = "speed-history.csv"


def file() -> Path:
    """Return the path of the history: among the results of a checkout, elsewhere in the current folder."""
    results = ROOT / "scripts" / "results"
    return results / NAME if results.is_dir() else Path(NAME)


def commit(root: Path) -> str:
    """Return the commit of the checkout at ``root``, ``-dirty`` if files differ from it; klrl's version without git."""
    git = ["git", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
        if Path(top.strip()).resolve() != root.resolve():
            return klrl.__version__
        words = ["describe", "--always", "--exclude=*", "--abbrev=12", "--dirty"]
        return subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return klrl.__version__


def line(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the line of a record of measurements: where it comes from, and how many times as fast klrl is."""
    work, rows = record["workload"], record["summary"]
    origin = {"date": f"{date.today()}", "commit": commit(ROOT), "cpu": record["machine"]["cpu"]}
    origin |= {"repeats": str(max(row["repeats"] for row in rows)), "updates": str(work["updates"])}
    peers = [row for row in rows if row["library"] not in (BOUND, "klrl") and row["klrl_ratio"] is not None]
    return origin | {f"{r['algorithm']} {r['env']} / {r['library']}": f"{r['klrl_ratio']:.3f}" for r in peers}


def append(row: Mapping[str, str], path: Path) -> None:
    """Add a line to a CSV by its columns' names; new columns are added to all lines, in one step.

    Raises:
        OSError: it cannot be written.
        ValueError: the file is no CSV with a header.
    """
    lines = list(csv.reader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []
    columns = list(dict.fromkeys([*(lines[0] if lines else []), *row]))
    if any(len(cells) != len(lines[0]) for cells in lines):
        raise ValueError(f"{path} has lines of different lengths; allowed: those of its header")
    if lines and columns == lines[0]:
        with path.open("ab", buffering=0) as out:  # one write at the end, whoever else writes there
            out.write(_text(columns, [row]).encode())
        return
    from klrl.studies.results import write

    older = [dict(zip(lines[0], cells, strict=True)) for cells in lines[1:]]
    write(path, _text(columns, [dict(zip(columns, columns, strict=True)), *older, row]))


def _text(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, columns, lineterminator=os.linesep).writerows(rows)
    return text.getvalue()
