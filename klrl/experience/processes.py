"""A worker process from its parent's side: started, asked, found dead or silent, ended."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any

from gymnasium.vector.utils import clear_mpi_env_vars

from klrl.experience.worker import DEAF, work

GRACE = 2.0
"""Seconds that workers get to close their environments."""
FILES = 4
"""Open files of this process for each worker: two of pipes, and two by which ``multiprocessing`` sees its end."""
OTHER_FILES = 16
"""Files left for everything else: shared memory, the start of one more worker, checkpoints."""


def check_open_files(n: int) -> None:
    """Refuse more workers than the limit of open files allows.

    Raises:
        ValueError: the message says how many are allowed now, and which limit is needed.
    """
    import resource  # POSIX only, as workers are

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = len(os.listdir("/dev/fd")) + OTHER_FILES
    if limit != resource.RLIM_INFINITY and (needed := others + FILES * n) > limit:
        most = max(0, (limit - others) // FILES)
        raise ValueError(
            f"n_envs = {n} with vectorization_mode = 'async'; allowed: at most {most} "
            f"with `ulimit -n {limit}`, {n} with `ulimit -n {needed}`"
        )


def packed(command: str, *data: Any) -> Any:
    """Pickle what a worker receives as (command, data)."""
    # Bytes of their own: while a traceback keeps a view of a file in memory, Python 3.13 complains when that is closed.
    return bytes(ForkingPickler.dumps((command, *data)))


class WorkerProcess:
    """A process that obeys one environment's commands.

    Args:
        context: context of ``multiprocessing``.
        arguments: arguments of :func:`klrl.experience.worker.work` after the pipes.
        others: ends of other workers' pipes, which a forked process must not keep open.
    """

    def __init__(self, context: Any, arguments: tuple[Any, ...], others: list[Any]) -> None:
        self.pipe, theirs = context.Pipe()
        self.last_words, say = context.Pipe(duplex=False)
        method = context.get_start_method()
        foreign = [*others, self.pipe, self.last_words] if method == "fork" else []
        self.process = context.Process(target=work, args=(theirs, say, foreign, *arguments), daemon=True)
        # A signal must not meet a process that still has this one's handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            signal.pthread_sigmask(signal.SIG_BLOCK, () if method == "forkserver" else DEAF)
            with clear_mpi_env_vars():
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        say.close()
        self._poll = select.poll()
        self._poll.register(self.pipe, select.POLLIN)

    @property
    def gone(self) -> bool:
        """True once the process has ended."""
        return self.process.exitcode is not None

    def readable(self, seconds: float = 0.0) -> bool:
        """True if an answer, or the end of the process, can be read within some seconds."""
        return bool(self._poll.poll(1000 * max(0.0, seconds)))

    def answer(self) -> tuple[Any, ...] | None:
        """Receive (True, answer), or (False, what happened, traceback, whether that is in the next episode).

        None means that it is still stepping.
        """
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(4.0)
            return self.autopsy(0.0)
        except Exception as error:  # an object that only its worker can restore
            return False, f"its answer cannot be read: {type(error).__name__}: {error}", ""

    def autopsy(self, timeout: float) -> tuple[Any, ...]:
        """Report what became of a worker that does not answer, and where it was, if it can tell."""
        code = self.process.exitcode
        if code is None:
            what = f"worker hangs: no answer for {timeout:g} s" if timeout else "worker closed its pipe"
            os.kill(self.process.pid, signal.SIGUSR2)
        elif code < 0:
            names = {number.value: number.name for number in signal.Signals}
            what = f"worker was killed by {names.get(-code, f'signal {-code}')}"
        else:
            what = f"worker exited with status {code}"
        said = b""
        while self.last_words.poll(0.2 if said else 2.0) and (more := os.read(self.last_words.fileno(), 1 << 16)):
            said += more  # it writes line by line
        if code is None:
            self.process.kill()
        return False, what, said.decode(errors="replace")


def end(workers: list[WorkerProcess]) -> None:
    """Ask workers to close their environments, and kill those that do not."""
    try:
        for worker in workers:
            with contextlib.suppress(OSError):  # the pipe is closed, broken, or full of what it never read
                os.set_blocking(worker.pipe.fileno(), False)
                worker.pipe.send(None)
            worker.pipe.close()
        deadline = time.monotonic() + GRACE
        for worker in workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.last_words.close()
