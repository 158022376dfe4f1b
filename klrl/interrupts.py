"""Signals held back while a resource is acquired, so that it has an owner before a signal handler raises."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

ENDING = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
"""Signals that ask for the end; their handlers raise at any point of the program."""


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold signals back while a resource is acquired and assigned to its owner, or released.

    At the end the previous handlers get them; a signal that arrives a second time is handled at once, because somebody
    insists. Contexts may be nested. Signals are not blocked, since other threads of the process would still get them;
    their handlers are replaced, except for those of the system, which raise nothing.
    """
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    before: dict[int, Any] = {number: signal.getsignal(number) for number in ENDING}
    waiting: list[int] = []
    over = False

    def wait(number: int, frame: FrameType | None) -> None:
        if over or number in waiting:
            waiting.clear()
            before[number](number, frame)
        else:
            waiting.append(number)

    try:
        for number in filter(lambda number: callable(before[number]), before):
            signal.signal(number, wait)
        yield
    finally:
        try:
            for number in before:
                if signal.getsignal(number) is wait:
                    signal.signal(number, before[number])
        finally:
            over = True  # if a handler raised early, the others keep this one
            for number in waiting:
                before[number](number, None)
