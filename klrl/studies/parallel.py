"""Processes that make calls: one that is killed is replaced, and none is left behind.

By hand because the pools of concurrent.futures and loky give up all their work when one of their processes is killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from types import FrameType
from typing import Any, Self, TypeVar

from klrl.experience.worker import end_with_parent
from klrl.interrupts import held
from klrl.output import keep_steady, plain_warnings

T = TypeVar("T")

RETRIES = 3
"""Times that a call whose process was killed is made again, by default."""
GRACE = 30.0
"""Seconds that a process has to end once it was asked to."""


@dataclass(frozen=True)
class Ended:
    """A call that has ended, or whose process has."""

    key: Any
    """Key that the call was started under."""
    result: Any = None
    error: Exception | None = None
    """Exception that the call raised."""
    death: str | None = None
    """End of the process during the call, in words."""

    def value(self) -> Any:
        """Return the result.

        Raises:
            Exception: what the call raised.
        """
        if self.error is not None:
            raise self.error
        return self.result


def _context() -> Any:
    """Return the way to start processes: forks of one that has imported klrl, where the system has them.

    A process that starts at once makes little of a kill, and shares the memory of what was imported.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["klrl.studies.training"])
    return context


class _Worker:
    """A process that waits for calls."""

    def __init__(self) -> None:
        context = _context()
        self.pipe, theirs = context.Pipe()
        try:
            self.process = context.Process(target=_serve, args=(theirs,))
            self.process.start()
        finally:
            theirs.close()
        self.key: Any = None
        self.busy = False

    def send(self, key: Any, call: tuple[Any, ...]) -> None:
        """Begin a call."""
        self.key, self.busy = key, True
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # killed meanwhile, which shows at once
            self.pipe.send(call)

    def ended(self) -> Ended | None:
        """Return how the current call ended, if it did."""
        try:
            if self.pipe.poll():
                result, error, said = self.pipe.recv()
                self.busy = False
                if error is not None:
                    error.__cause__ = RuntimeError(f"in another process:\n{said}")
                return Ended(self.key, result, error)
        except (EOFError, OSError):  # killed, perhaps in the middle of its answer
            self.process.join(GRACE)
        if self.process.is_alive():
            return None
        return Ended(self.key, death=self._death())

    def _death(self) -> str:
        code = self.process.exitcode or 0
        with contextlib.suppress(ValueError):
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with status {code}"

    def close(self) -> None:
        """Close the pipe, at which the process ends."""
        self.pipe.close()


class Pool:
    """Processes for calls, each started when it is needed and replaced when it was killed.

    As a context it ends all of them, also those in the middle of a call: by SIGTERM, and after :data:`GRACE` seconds by
    SIGKILL. They end with this process, too, however that ends.

    Args:
        processes: number of calls at a time.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with held():
            for worker in self._workers:
                worker.close()
                if worker.busy:
                    worker.process.terminate()
            end = time.monotonic() + GRACE
            for worker in self._workers:
                worker.process.join(max(0.0, end - time.monotonic()))
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()
            self._workers.clear()

    @property
    def busy(self) -> int:
        """Number of calls that have not ended."""
        return sum(worker.busy for worker in self._workers)

    @property
    def free(self) -> int:
        """Number of calls that can begin now."""
        return self._processes - self.busy

    def start(self, key: Any, function: Callable[..., Any], *call: Any) -> None:
        """Begin ``function(*call)`` in a free process; ``key`` comes back with its result."""
        worker = next((w for w in self._workers if not w.busy and w.process.is_alive()), None)
        if worker is None:
            with held():
                worker = _Worker()
                self._workers.append(worker)
        worker.send(key, (function, call))

    def wait(self, timeout: float | None = None) -> list[Ended]:
        """Return the calls that have ended, after waiting for the first of them or for so many seconds."""
        busy = [worker for worker in self._workers if worker.busy]
        wait([x for worker in busy for x in (worker.pipe, worker.process.sentinel)], timeout)
        ended = [(worker, end) for worker in busy if (end := worker.ended()) is not None]
        with held():
            for worker, end in ended:
                if end.death is not None:
                    worker.close()
                    self._workers.remove(worker)
        return [end for _, end in ended]


def in_parallel(
    function: Callable[..., T], calls: Sequence[tuple[Any, ...]], processes: int, retries: int = RETRIES
) -> Generator[T]:
    """Yield ``function(*call)`` of every call, ``processes`` at a time, in the order in which they end.

    A single process is the current one. A call whose process was killed is made again. Closing the iterator ends the
    calls that still run, as do Ctrl-C, SIGTERM (then with status 143) and kill -9; use :func:`contextlib.closing` to
    make sure that it happens at once.

    Raises:
        BrokenProcessPool: the processes of one call were killed ``retries + 1`` times.
    """
    if processes == 1:
        for call in calls:
            yield function(*call)
        return
    deaths: Counter[int] = Counter()
    left = deque(range(len(calls)))
    with ending_by_sigterm(), Pool(min(processes, max(1, len(calls)))) as pool:
        while left or pool.busy:
            while left and pool.free:
                i = left.popleft()
                pool.start(i, function, *calls[i])
            for ended in pool.wait():
                if ended.death is None:
                    yield ended.value()
                    continue
                deaths[ended.key] += 1
                if deaths[ended.key] > retries:
                    raise BrokenProcessPool(f"{ended.death}, {deaths[ended.key]} times")
                left.appendleft(ended.key)


@contextlib.contextmanager
def ending_by_sigterm() -> Generator[None]:
    """Let SIGTERM raise :class:`SystemExit` (status 143) inside, unless the program has a handler of its own."""
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return
    try:
        signal.signal(signal.SIGTERM, _exit)
        yield
    finally:
        with held():
            signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _serve(pipe: Connection) -> None:
    """Make the calls that come, until the pipe is closed."""
    _prepare()
    while True:
        try:
            function, call = pipe.recv()
        except (EOFError, OSError):
            return
        answer: tuple[Any, Exception | None, str | None]
        try:
            answer = function(*call), None, None
            ForkingPickler.dumps(answer)
        except Exception as error:
            answer = None, _sendable(error), traceback.format_exc()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """Return the error, or one that says the same and that the other process can make again."""
    try:
        again = ForkingPickler.loads(ForkingPickler.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if isinstance(again, type(error)) else RuntimeError(f"{type(error).__name__}: {error}")


def _prepare() -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal, and end with the first process, which decides."""
    keep_steady()
    plain_warnings()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
