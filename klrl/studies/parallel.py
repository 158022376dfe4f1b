"""Parallel calls in a few processes: results as they come, and no process left behind."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from types import FrameType
from typing import Any, TypeVar

from klrl.experience.worker import end_with_parent
from klrl.interrupts import held
from klrl.output import keep_steady, plain_warnings

T = TypeVar("T")


def in_parallel(function: Callable[..., T], calls: Sequence[tuple[Any, ...]], processes: int) -> Generator[T]:
    """Yield ``function(*call)`` of every call, ``processes`` at a time, in the order in which they end.

    A single process is the current one. Closing the iterator ends the calls that still run, as do Ctrl-C, SIGTERM (then
    with status 143) and kill -9; use :func:`contextlib.closing` to make sure that it happens at once.
    """
    if processes == 1:
        for call in calls:
            yield function(*call)
        return
    before, others = signal.getsignal(signal.SIGTERM), multiprocessing.active_children()
    in_main_thread = threading.current_thread() is threading.main_thread()
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=_prepare)
    try:
        if in_main_thread:
            signal.signal(signal.SIGTERM, _exit)
        with held():  # starts the processes
            results = [pool.submit(function, *call) for call in calls]
        for done in as_completed(results):
            yield done.result()
    except BaseException:
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.terminate()
        raise
    finally:
        with held():
            pool.shutdown(cancel_futures=True)
            if in_main_thread:
                signal.signal(signal.SIGTERM, before)


def _exit(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _prepare() -> None:
    """Ignore Ctrl-C, which reaches every process of a terminal, and end with the first process, which decides."""
    keep_steady()
    plain_warnings()
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
