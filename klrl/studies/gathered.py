"""Records of studies: the runs that have ended, of one directory or of several machines', in one small file.

Such a file keeps what tables and figures need, numbers to a few digits, and every configuration once. A study that is
still on its way has one, too, and seeds that another machine adds later join it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from klrl.run.disk import read_regular_file
from klrl.studies.outcomes import DONE, FAILED, read_outcome
from klrl.studies.results import Row
from klrl.studies.study import JSON, RECORD, recorded_runs
from klrl.text import plain

LARGEST = 2**26
"""Largest record that is read, in bytes."""
SETTINGS = ("agent", "total_timesteps", "config")
"""Entries that all runs of a variant on an environment share."""
_OF_THE_MACHINE = {"steps_per_second", "peak_memory_mib", "versions"}
"""Entries in which the same run may differ from machine to machine."""
_LEFT_OUT = {"traceback", "versions", *SETTINGS}


def gather(sources: Sequence[Path]) -> list[Row]:
    """Return the rows of all runs that have ended, each once, by variant and seed.

    A run that failed gives way to one of its name that did not.

    Args:
        sources: directories of studies, their ``results.json``, and files that :func:`text` made.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a file is damaged, a variant was made with other settings elsewhere, or a run came out differently.
    """
    settings: dict[tuple[str, str], tuple[Path, Row]] = {}
    runs: dict[tuple[str, str], dict[int, Row]] = {}
    for source in sources:
        for row in read(source):
            cell = row["env"], row["variant"]
            first, known = settings.setdefault(cell, (source, row))
            if (other := _differences(_settings(known), _settings(row))) is not None:
                raise ValueError(
                    f"{source}: {' '.join(cell)} is not as in {first}: {other}; allowed: the same settings"
                )
            of_cell = runs.setdefault(cell, {})
            of_cell[row["seed"]] = _one(source, of_cell.get(row["seed"], row), row)
    return [of_cell[seed] for of_cell in runs.values() for seed in sorted(of_cell)]


def read(source: Path) -> list[Row]:
    """Return the rows of the runs in one source that have ended, as :func:`text` rounds them, with their settings.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged.
    """
    if source.is_dir():
        ended = [read_outcome(run.directory) for run in recorded_runs(source) if run.status in (DONE, FAILED)]
        return [compact(row) for row in ended if row is not None]
    try:
        record = json.loads(read_regular_file(source, LARGEST))
        rows = (
            _expanded(record)
            if "variants" in record
            else [{"versions": record["versions"]} | r for r in record["rows"]]
        )
        return [compact(row) for row in rows if row["status"] in (DONE, FAILED)]
    except FileNotFoundError:
        allowed = f"the directory of a study ({RECORD}), its {JSON}, or a file that klrl benchmark gather wrote"
        raise FileNotFoundError(f"{source}: no such file; allowed: {allowed}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        said = plain(f"{type(error).__name__}: {error}", 200)
        raise ValueError(
            f"{source} is no record of a study: {said}; allowed: as klrl benchmark gather writes it"
        ) from error


def text(command: str, rows: Sequence[Row]) -> str:
    """Return rows as JSON from which :func:`read` makes the same, a line for each variant and run.

    Args:
        command: command line.
        rows: as :func:`gather` returns them.
    """
    versions: list[Any] = []
    variants: dict[tuple[str, str], Row] = {}
    short = []
    for row in rows:
        if row["versions"] not in versions:
            versions.append(row["versions"])
        cell = {"env": row["env"], "variant": row["variant"]}
        variants.setdefault((row["env"], row["variant"]), cell | _settings(row))
        short.append(
            {k: v for k, v in row.items() if k not in _LEFT_OUT} | {"versions": versions.index(row["versions"])}
        )
    head = f'"command": {json.dumps(command)},\n"versions": {_lines(versions)}'
    return f'{{\n{head},\n"variants": {_lines(variants.values())},\n"rows": {_lines(short)}\n}}\n'


def _lines(values: Iterable[Any]) -> str:
    return "[\n" + ",\n".join(json.dumps(value, separators=(",", ":")) for value in values) + "\n]"


def _expanded(record: Row) -> list[Row]:
    of = {(cell["env"], cell["variant"]): cell for cell in record["variants"]}
    return [
        of[row["env"], row["variant"]] | row | {"versions": record["versions"][row["versions"]]}
        for row in record["rows"]
    ]


def _settings(row: Row) -> Row:
    return {name: row[name] for name in SETTINGS}


def compact(row: Row) -> Row:
    """Return a row as records keep it: without traceback, numbers to six digits, those of its curve to four."""
    named = {name: _rounded(value, 6) for name, value in row.items() if name not in (*_LEFT_OUT, "curve")}
    if "curve" in row:
        named["curve"] = [[int(steps), *(_rounded(x, 4) for x in others)] for steps, *others in row["curve"]]
    return named | _settings(row) | {"versions": row["versions"]}


def _rounded(value: Any, digits: int) -> Any:
    return float(f"{value:.{digits}g}") if isinstance(value, float) and math.isfinite(value) else value


def _one(source: Path, known: Row, row: Row) -> Row:
    """Return which of two outcomes of a run is kept.

    Raises:
        ValueError: both are results, and they differ.
    """
    if FAILED in (known["status"], row["status"]):
        return row if known["status"] == FAILED else known
    same = [{name: x for name, x in r.items() if name not in _OF_THE_MACHINE | {*SETTINGS}} for r in (known, row)]
    if (other := _differences(*same)) is not None:
        name = f"{row['env']} {row['variant']} seed {row['seed']}"
        raise ValueError(f"{source}: {name} came out differently elsewhere: {other}; allowed: every run once")
    return known


def _differences(known: Row, row: Row) -> str | None:
    """Return in what two rows differ, or ``None``; settings that only one klrl has are no difference."""
    there, here = ({**row, **row.get("config", {}), "config": None} for row in (known, row))
    changed = [name for name in there if name in here and there[name] != here[name]]
    return ", ".join(f"{x} = {plain(here[x], 80)} and not {plain(there[x], 80)}" for x in changed[:5]) or None
