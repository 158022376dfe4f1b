"""Real processes for the cases of the protocol: started, watched, killed; and many of them cheaply, by forking."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import klrl

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
SOCKET = "KLRL_TORTURE_SOCKET"
"""Environment variable with the socket of :mod:`torture.warm` for this process's forks, once there is one."""
_hasty = False
_STARTING = threading.Lock()
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
        scratch: where the files of its output are.
    """

    pid: int
    """Of the first process of the session."""

    def __init__(self, scratch: Path) -> None:
        self._out, self._err = (scratch / f"{time.monotonic_ns()}.{name}.txt" for name in ("out", "err"))

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it has not ended."""

    @abstractmethod
    def wait(self, timeout: float = 600.0) -> Ended:
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

    def until(self, condition: Callable[[], object], timeout: float = 600.0, every: float = 0.002) -> None:
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
        super().__init__(scratch)
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

    def wait(self, timeout: float = 600.0) -> Ended:
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


def start_klrl(words: Sequence[str | Path], scratch: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """``klrl VERB ...`` in a process of its own, with this Python and this klrl."""
    return start_python(["-m", "klrl.scripts.main", *words], scratch, environment)


def start_child(words: Sequence[str | Path], scratch: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """One of the jobs of :mod:`torture.child` in a process of its own."""
    return start_python(["-m", "torture.child", *words], scratch, environment)


def start_python(words: Sequence[str | Path], scratch: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """Start ``python WORDS ...`` in a process of its own: ``-m MODULE`` or ``-c PROGRAM``, and arguments."""
    if _hasty and set(environment or ()) <= {"PYTHONPATH"}:
        return Fork(words, scratch, environment)
    return Process([sys.executable, *words], scratch, environment)


@contextlib.contextmanager
def haste(quick: bool) -> Iterator[None]:
    """Inside, a new program is a :class:`Fork`, which starts at once, unless its environment acts on Python's start."""
    global _hasty
    before, _hasty = _hasty, quick
    try:
        yield
    finally:
        _hasty = before


def patient(seconds: float) -> float:
    """Return when something is too late: after so many seconds, and after 50 times as many inside :func:`haste`.

    The quick subset runs beside other tests, on machines that do other things.
    """
    return 50.0 * seconds if _hasty else seconds


class Forks:
    """Jobs of :mod:`torture.child` in processes that need no time to start.

    Args:
        scratch: working directory of all of them.
        environment: changes to the environment's variables; a PYTHONPATH is searched before klrl's own.
    """

    def __init__(self, scratch: Path, environment: Mapping[str, str] | None = None) -> None:
        self._scratch, self._environment = scratch, environment or {}

    def start(self, words: Sequence[str | Path]) -> Fork:
        """Begin a job (``["klrl", VERB, ...]`` is one)."""
        return Fork(["-m", "torture.child", *words], self._scratch, self._environment)

    def run(self, words: Sequence[str | Path], timeout: float = 30.0) -> Ended:
        """Do a job and wait for its end; killed after the timeout, it ended by -9."""
        fork = self.start(words)
        try:
            return fork.wait(patient(timeout))
        except Unexpected:
            return fork.wait()


class Fork(Watched):
    """A fork of a Python that has imported klrl and read its flags, and done nothing else, in the program's place.

    Args:
        words: what follows ``python``.
        scratch: its working directory, which must exist; the files of its output are there, too.
        environment: changes to the environment's variables; a PYTHONPATH is searched before klrl's own.
        cwd: its working directory, if another one.
    """

    def __init__(
        self,
        words: Sequence[str | Path],
        scratch: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        super().__init__(scratch)
        changes = environment or {}
        request = {
            "words": list(map(str, words)),
            "cwd": str((cwd or scratch).absolute()),
            "environment": {**os.environ, **_ONE_THREAD, **changes},
            "path": list(filter(None, changes.get("PYTHONPATH", "").split(os.pathsep))),
        }
        self._server = _connected()
        self._end: dict[str, Any] | None = None
        with open(os.devnull) as nothing, self._out.open("wb") as out, self._err.open("wb") as err:
            files = [nothing.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(self._server, [json.dumps(request).encode()], files)
        self.pid = json.loads(self._server.recv(1_000))["pid"]
        self._belong()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._end is None and not select.select([self._server], [], [], 0.0)[0]

    def wait(self, timeout: float = 600.0) -> Ended:
        """Wait until it has ended, or kill it."""
        if self._end is None and not select.select([self._server], [], [], timeout)[0]:
            self.kill()
            raise Unexpected(f"process still running after {timeout:g} s: {self.err[-300:]}")
        if self._end is None:
            with self._server:
                self._end = json.loads(self._server.recv(1_000))
        end = self._end
        return Ended(end["code"], self.out, self.err, end["seconds"], end["peak"])


def _connected() -> socket.socket:
    """A connection to the server whose fork this process is, or to its own, begun when first needed."""
    with _STARTING:
        if SOCKET not in os.environ:
            folder = Path(tempfile.mkdtemp(prefix="klrl-torture-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            with owned([]):  # it serves the cases that follow, too
                server = Process([sys.executable, "-m", "torture.warm", folder / "socket"], folder)
            server.until(lambda: server.out == "ready\n", every=0.02)
            atexit.register(server.kill)
            os.environ[SOCKET] = str(folder / "socket")
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(os.environ[SOCKET])
    return connection
