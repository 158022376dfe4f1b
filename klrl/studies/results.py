"""Results of long work in one file: claimed before, written completely or not at all, with their origin."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from klrl.run.checkpoint import replace
from klrl.run.directory import versions
from klrl.run.disk import reporting_full_disk

Row = dict[str, Any]


def claim(output: Path, name: str = "output") -> None:
    """Make sure before long work that a file can be written; ``name`` is the user's word for it.

    Raises:
        OSError: the path is a directory, or nothing can be written there.
    """
    if output.is_dir():
        raise IsADirectoryError(f"{name} = {output} is a directory; allowed: a file")
    folder = output.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{name} = {output}: no directory {folder}; allowed: a file in one that is there")
    if not os.access(output if output.exists() else folder, os.W_OK):
        raise PermissionError(f"{name} = {output}: nothing can be written there; allowed: a file of your own")


def write(output: Path, data: str | bytes) -> None:
    """Write a file in one step; a pipe or ``/dev/stdout`` is written to directly, a link is followed."""
    data = data.encode() if isinstance(data, str) else data
    if output.exists() and not output.is_file():
        output.write_bytes(data)
        return
    with reporting_full_disk(output, len(data)):
        replace(Path(os.path.realpath(output)), data)


def text(command: str, rows: list[dict[str, Any]], packages: Iterable[str] = ()) -> str:
    """Return all rows as JSON, a line each, with the command and the versions that they come from.

    Args:
        command: command line.
        rows: plain JSON.
        packages: more packages whose versions belong there.
    """
    lines = ",\n".join(map(json.dumps, rows))
    head = f'"command": {json.dumps(command)},\n"versions": {json.dumps(versions(packages))}'
    return f'{{\n{head},\n"rows": [\n{lines}\n]\n}}\n'


def save(command: str, rows: list[dict[str, Any]], output: Path) -> None:
    """Write :func:`text` in one step."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write(output, text(command, rows))
