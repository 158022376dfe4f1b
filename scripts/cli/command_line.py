"""Command lines of the verbs: flags from dataclasses (tyro), and bad input as one line with exit status 2."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import gymnasium as gym
import tyro

from klrl.experience import WorkerFailed
from klrl.run.disk import DiskFull
from klrl.scripts.cli.flags import has_empty_value, objection, with_decisions, with_whole_numbers
from klrl.scripts.cli.own_modules import find_in_this_folder
from klrl.text import plain, printable
from klrl.validation import validate

T = TypeVar("T")


def fail(prog: str, message: object, status: int = 2) -> NoReturn:
    """Print one line and exit; status 2 is the user's input."""
    print(f"{prog}: {plain(message, 2000)}", file=sys.stderr)
    sys.exit(status)


@contextlib.contextmanager
def bad_input(prog: str) -> Iterator[None]:
    """Report errors raised inside as bad input, or as a full disk: one line, no traceback, no warnings before it."""
    with warnings.catch_warnings(record=True) as notes:
        try:
            yield
        except DiskFull as error:
            fail(prog, error, status=1)
        except (ValueError, OSError, gym.error.Error) as error:
            fail(prog, error)
    for note in notes:
        warnings.showwarning(note.message, note.category, note.filename, note.lineno)


@contextlib.contextmanager
def failed_worker(prog: str, more: Callable[[], str] = str) -> Iterator[None]:
    """Report a failed worker process as the environment's fault: its traceback, one line, and exit status 1.

    Args:
        prog: name of the command.
        more: end of the line.
    """
    try:
        yield
    except WorkerFailed as error:
        print(printable(error.traceback), end="", file=sys.stderr)
        fail(prog, f"{error.reason}{more()}", status=1)


@contextlib.contextmanager
def ended_early(prog: str, more: Callable[[], str] = str) -> Iterator[None]:
    """Report the early end of long work in one line: a signal (status 130, 143), or an error of the disk (status 1).

    Args:
        prog: name of the command.
        more: end of the line.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        fail(prog, f"interrupted{more()}", status=128 + getattr(error, "number", signal.SIGINT))
    except OSError as error:
        if getattr(error, "__notes__", None):  # from an environment: its traceback says more than a line
            raise
        fail(prog, f"{error}{more()}", status=1)


@contextlib.contextmanager
def going_on(prog: str, folder: Path, what: str = "parts") -> Iterator[None]:
    """Report the early end of long work in one line, which says that the same command continues it."""
    goes_on = f"; finished {what} are in {folder}, and the same command continues"
    try:
        with ended_early(prog, lambda: goes_on):
            yield
    except BrokenProcessPool:
        fail(prog, f"a process was killed{goes_on}", status=1)


def parse(cls: type[T], argv: list[str], prog: str, default: T | None = None) -> T:
    """Read flags into a checked dataclass; what tyro objects to becomes one line.

    Modules of the current folder that they name can be imported from then on.
    """
    find_in_this_folder(argv)
    if has_empty_value(argv) and (empty := objection(cls, argv, default)) is not None:
        fail(prog, empty)
    argv = with_decisions(cls, with_whole_numbers(cls, argv, default), default)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages), warnings.catch_warnings():
            # of a default that may be a number, a schedule or None: tyro does not look into a union within a union
            warnings.filterwarnings("ignore", ".* does not match any type in Union")
            parsed = cast("T", tyro.cli(cls, args=argv, prog=prog, default=default))
    except ValueError as error:  # of the class itself; older releases of tyro let it through
        fail(prog, error)
    except SystemExit as stop:
        if not stop.code:
            raise
        said = unboxed(messages.getvalue())
        fail(prog, objection(cls, argv, default) or _missing(cls, said) or said)
    with bad_input(prog):
        validate(parsed)
    return parsed


def _missing(cls: Any, said: str) -> str | None:
    """Return a line about missing arguments, with the example in the docstring of the verb's module."""
    if (found := re.search(r"Missing from [^:]*: (.*)", said)) is None:
        return None
    words = found[1].split()
    missing = [] if words[0].startswith("--") else [fields(cls)[0].name]
    missing += [word for word in words if word.startswith("--")]
    example = re.search(r"``(klrl .+?)``", sys.modules[cls.__module__].__doc__ or "")
    return f"{', '.join(missing)} missing{f'; for example: {example[1]}' if example else ''}"


def unboxed(box: str) -> str:
    """Return the message of one of tyro's error boxes, with the help of its flag."""
    rows = [line.strip("│| ") for line in box.splitlines() if line[:1] not in "╭╰+"]
    sections = [" ".join(part.split()) for part in re.split("[─-]{9,}", "\n".join(rows))]
    text = "; ".join(s for s in sections if s and not s.startswith("For full helptext"))
    text = re.sub(r"^(Value error; (\w+: )?)?(Error parsing (?!--)\S+: )?", "", text)
    text = re.sub(r"^(Unrecognized options[;:] )+(.*)", r"\2 belongs to no option; allowed: --option value", text)
    return text.replace("Error parsing ", "").replace("Argument helptext:", "allowed:")
