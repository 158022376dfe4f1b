"""Long work: finished parts are kept, however it ends, and its output is written completely or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from klrl.run.disk import read_regular_file
from klrl.studies.kept import keep, kept
from klrl.studies.parallel import in_parallel
from klrl.studies.results import Row, claim, write
from klrl.text import plain

LARGEST = 2**26
"""Largest JSON that is read again, in bytes."""


class Work:
    """Results of long work: a JSON file and, until that is complete, the finished parts in a folder beside it.

    Args:
        output: path of the JSON file.
        command: command line, for the output.
        versions: versions that the results depend on; parts of other versions are not reused.
        say: prints a line about parts taken from an earlier call.
    """

    def __init__(self, output: Path, command: str, versions: Mapping[str, str], say: Callable[[str], object]) -> None:
        self.output, self.command, self.versions, self._say = output, command, {**versions}, say
        self.folder = output.with_name(f"{output.name}.parts")

    def claim(self) -> None:
        """Make sure that everything can be written.

        Raises:
            OSError: something cannot be written.
        """
        self.output.parent.mkdir(parents=True, exist_ok=True)
        claim(self.output)
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise NotADirectoryError(f"{self.folder} is in the way of finished parts; allowed: a directory, or nothing")

    def finished(self) -> Row | None:
        """Return the complete output of an earlier call of the same command, with a line about it, or ``None``."""
        try:
            record = json.loads(read_regular_file(self.output, LARGEST))
            same = record["command"] == self.command and record["versions"] == self.versions
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if same:
            self._say(f"{self.output}: finished already; remove this file to begin anew")
        return record if same else None

    def once(self, name: str, of: Row, do: Callable[[], Row]) -> tuple[Row, bool]:
        """Return a part, computed unless an earlier call has finished it, and True if one has.

        Args:
            name: name of the part in messages.
            of: everything that decides it, as plain JSON.
            do: computes it.
        """
        if (row := self._kept(name, of)) is not None:
            return row, True
        return self._keep(name, of, do()), False

    def forget_unless(self, good: bool, name: str, of: Row) -> None:
        """Forget a finished part if what belongs to it no longer exists."""
        if not good:
            self._file(name, of).unlink(missing_ok=True)

    def all(
        self, function: Callable[..., Row], calls: Sequence[tuple[str, Row, tuple[Any, ...]]], processes: int
    ) -> Generator[Row]:
        """Yield ``function(*call)`` for every (name, what decides it, call): those finished earlier first."""
        parts = {name: of for name, of, _ in calls}
        done = {name: row for name, of in parts.items() if (row := self._kept(name, of)) is not None}
        if done:
            self._say(f"{len(done)} of {len(calls)} parts are finished already ({self.folder})")
        yield from done.values()
        left = [(function, name, call) for name, _, call in calls if name not in done]
        with contextlib.closing(in_parallel(_named, left, processes)) as results:
            for name, row in results:
                yield self._keep(name, parts[name], row)

    def save(self, text: str) -> Row:
        """Write the output, remove the parts, and return the output as JSON is read."""
        write(self.output, text)
        for file in self.folder.glob("*"):
            if re.fullmatch(r".*-[0-9a-f]{16}\.json(\.[0-9a-f]{8}\.tmp)?", file.name):
                file.unlink(missing_ok=True)
        shutil.rmtree(self.folder / SAVED, ignore_errors=True)
        with contextlib.suppress(OSError):  # it is missing, or not empty
            self.folder.rmdir()
        return json.loads(text)

    def _kept(self, name: str, of: Row) -> Row | None:
        """Return a part that :meth:`_keep` wrote, or ``None``, with a line about anything else there."""
        file = self._file(name, of)
        try:
            part = kept(file, {"of": dict, "row": dict})
            if part is None:
                return None
            if part["of"] == self._decided(of):
                return part["row"]
            problem: object = f"{file} is another part"
        except (OSError, ValueError) as error:
            problem = error
        self._say(f"{name}: made again, {plain(problem)}")
        return None

    def _keep(self, name: str, of: Row, row: Row) -> Row:
        part = json.loads(json.dumps({"of": self._decided(of), "row": row}))
        keep(self._file(name, of), part)
        return part["row"]

    def _file(self, name: str, of: Row) -> Path:
        digest = hashlib.sha256(json.dumps(self._decided(of), sort_keys=True).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_.,+=-]', '_', name)[:100]}-{digest[:16]}.json"

    def _decided(self, of: Row) -> Row:
        return json.loads(json.dumps({"versions": self.versions, **of}))


SAVED = "saved"
"""Folder, among the parts, of agents from which later parts start."""


def _named(function: Callable[..., Row], name: str, call: tuple[Any, ...]) -> tuple[str, Row]:
    """Return a result with its name, because processes return in any order."""
    return name, function(*call)
