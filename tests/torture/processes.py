"""Real processes for the cases of the protocol: started, watched, killed; and many of them cheaply, by forking."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import klrl

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_OWNER: ContextVar[list[Watched] | None] = ContextVar("processes of the case that runs", default=None)


class Unexpected(Exception):
    """A process did not do in time what a case waited for."""


@dataclass(frozen=True)
class Ended:
    """How a process ended, and what it said."""

    code: int
    """Exit status; of a signal, its number with a minus sign."""
    out: str
    err: str
    seconds: float
    """Since its start."""
    peak: int = 0
    """Most memory it had, bytes; only known of a :class:`Forks`' processes."""


@contextlib.contextmanager
def owned(processes: list[Watched]) -> Iterator[None]:
    """Everything that is started inside is put on the list, for whoever has to end it."""
    token = _OWNER.set(processes)
    try:
        yield
    finally:
        _OWNER.reset(token)


class Watched(ABC):
    """A process in a session of its own (its signals reach its workers, too), with its output in files.

    Args:
        out: where its standard output goes.
        err: where its standard error goes.
    """

    pid: int
    """Of the first process of the session."""

    def __init__(self, out: Path, err: Path) -> None:
        self._out, self._err = out, err

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it has not ended."""

    @abstractmethod
    def wait(self, timeout: float = 100.0) -> Ended:
        """Wait until it has ended.

        Raises:
            Unexpected: it is still there after the timeout, and killed.
        """

    def _belong(self) -> None:
        if (owner := _OWNER.get()) is not None:
            owner.append(self)

    @property
    def out(self) -> str:
        """What it has printed so far."""
        return self._out.read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it has printed on its standard error so far."""
        return self._err.read_text(errors="replace")

    def send(self, number: int, *, everyone: bool = False) -> None:
        """A signal to it, or to its whole session, as Ctrl-C on a terminal would."""
        if everyone:
            try:
                os.killpg(self.pid, number)
                return
            except ProcessLookupError:  # it has ended, or has not begun its session yet
                pass
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> Ended:
        """End it and everything in its session by SIGKILL."""
        self.send(signal.SIGKILL, everyone=True)
        return self.wait()

    def until(self, condition: Callable[[], bool], timeout: float = 60.0, every: float = 0.002) -> None:
        """Wait until something is true while the process runs.

        Raises:
            Unexpected: it did not become true in time, or before the process ended.
        """
        end = time.monotonic() + timeout
        while not condition():
            if not self.running:
                if condition():
                    return
                raise Unexpected(f"process ended with {self.wait().code} too early: {self.err[-300:]}")
            if time.monotonic() > end:
                raise Unexpected(f"waited {timeout:g} s in vain: {self.err[-300:]}")
            time.sleep(every)

    def survivors(self) -> list[int]:
        """Processes of its session that are still alive (Linux): after its end, orphans."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                state, _, _, session, *_ = stat.read_text().rpartition(")")[2].split()
                if int(session) == self.pid and state != "Z":
                    found.append(int(stat.parent.name))
        return found


class Process(Watched):
    """A new program.

    Args:
        words: the command line.
        scratch: its working directory, which must exist; the files of its output are there, too.
        environment: changes to the environment's variables; a PYTHONPATH comes after klrl's own.
    """

    def __init__(
        self, words: Sequence[str | Path], scratch: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(*(scratch / f"{time.monotonic_ns()}.{name}.txt" for name in ("out", "err")))
        self._began = time.monotonic()
        paths = [str(Path(klrl.__file__).parents[1]), str(Path(__file__).parents[1])]
        paths += filter(None, [(environment or os.environ).get("PYTHONPATH")])
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self._popen = subprocess.Popen(
                list(map(str, words)),
                cwd=scratch,
                env={**os.environ, **_ONE_THREAD, **(environment or {}), "PYTHONPATH": os.pathsep.join(paths)},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self._popen.pid
        self._belong()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def say(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n".encode())
        self._popen.stdin.flush()

    def wait(self, timeout: float = 100.0) -> Ended:
        """Wait until it has ended, or kill it."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired as error:
            self.send(signal.SIGKILL, everyone=True)
            self._popen.wait()
            raise Unexpected(f"process still running after {timeout:g} s: {self.err[-300:]}") from error
        if self._popen.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.close()
        return Ended(code, self.out, self.err, time.monotonic() - self._began)


def start_klrl(words: Sequence[str | Path], scratch: Path, environment: Mapping[str, str] | None = None) -> Process:
    """``klrl VERB ...`` in a process of its own, with this Python and this klrl."""
    return Process([sys.executable, "-m", "klrl.scripts.main", *words], scratch, environment)


def start_child(words: Sequence[str | Path], scratch: Path, environment: Mapping[str, str] | None = None) -> Process:
    """One of the jobs of :mod:`torture.child` in a process of its own."""
    return Process([sys.executable, "-m", "torture.child", *words], scratch, environment)


class Forks:
    """Processes that need no time to start: forks of one that has imported klrl and done nothing else.

    Each gets a job of :mod:`torture.child`, its own output and its own peak of memory. Close it (or use
    it in ``with``) when no more are needed.

    Args:
        scratch: working directory of all of them.
        environment: changes to the environment's variables.
    """

    def __init__(self, scratch: Path, environment: Mapping[str, str] | None = None) -> None:
        self._server = start_child(["serve"], scratch, environment)
        self._scratch, self._count = scratch, 0

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.kill()

    def start(self, words: Sequence[str | Path], timeout: float = 60.0) -> Fork:
        """Begin a job (``["klrl", VERB, ...]`` is one), which is killed after the timeout; one at a time."""
        self._count += 1
        out, err = (self._scratch / f"fork-{self._count}.{name}.txt" for name in ("out", "err"))
        out.touch()  # nobody knows when the fork does it
        err.touch()
        request = {"words": list(map(str, words)), "out": str(out), "err": str(err), "timeout": timeout}
        self._server.say(json.dumps(request))
        return Fork(self._server, 2 * self._count - 2, out, err)

    def run(self, words: Sequence[str | Path], timeout: float = 30.0) -> Ended:
        """Do a job and wait for its end; killed after the timeout, it ended by -9."""
        return self.start(words, timeout).wait(timeout + 30.0)


class Fork(Watched):
    """One of a :class:`Forks`' processes.

    Args:
        server: who forked it.
        line: of the server's output, in which it tells of it.
        out: where its standard output goes.
        err: where its standard error goes.
    """

    def __init__(self, server: Process, line: int, out: Path, err: Path) -> None:
        super().__init__(out, err)
        self._server, self._line = server, line
        self.pid = self._told(line, 60.0)["pid"]
        self._belong()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._server.out.count("\n") <= self._line + 1

    def wait(self, timeout: float = 100.0) -> Ended:
        """Wait until it has ended, or kill it."""
        try:
            end = self._told(self._line + 1, timeout)
        except Unexpected:
            self.send(signal.SIGKILL, everyone=True)
            raise
        return Ended(end["code"], self.out, self.err, end["seconds"], end["peak"])

    def _told(self, line: int, timeout: float) -> dict[str, Any]:
        self._server.until(lambda: self._server.out.count("\n") > line, timeout)
        told: dict[str, Any] = json.loads(self._server.out.splitlines()[line])
        return told
