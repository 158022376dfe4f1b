"""Interrupts at a moment when nothing gets lost: what is acquired has an owner before a signal is heard."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

ENDING = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
"""Signals that ask for the end; their handlers raise wherever the process is."""


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Around the acquisition of something and the assignment to its owner, or its release: signals wait until the end.

    Then the handler there was hears them; it hears at once whatever comes for the second time, for somebody insists.
    Contexts may be nested. Not the signals are blocked, which other threads of the process would get all the same, but
    their handlers replaced; those of the system, which raise nothing, stay.
    """
    if threading.current_thread() is not threading.main_thread():  # nothing is raised there
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
            over = True  # where one of them was heard before the others' turn, this handler stays there
            for number in waiting:
                before[number](number, None)
