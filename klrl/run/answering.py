"""Calls that may never return, such as those to a server whose machine is gone, with a limit of time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any


class Answering:
    """An object whose methods are called in a thread of their own, one after the other, and waited for only so long.

    After a call that did not return in time nothing can be called any more.

    Args:
        target: the object.
        error: makes the exception for a call that does not return.
    """

    def __init__(self, target: Any, error: Callable[[float], Exception]) -> None:
        self._target, self._error = target, error
        self._calls: queue.SimpleQueue[tuple[int, str, tuple[Any, ...]]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[int, Any, Exception | None]] = queue.SimpleQueue()
        self._number, self._is_lost = 0, False
        threading.Thread(target=self._serve, name="klrl-store", daemon=True).start()

    def _serve(self) -> None:
        while True:
            number, name, arguments = self._calls.get()
            try:
                answer: tuple[int, Any, Exception | None] = number, getattr(self._target, name)(*arguments), None
            except Exception as error:  # for the caller
                answer = number, None, error
            self._answers.put(answer)

    def call(self, seconds: float, name: str, *arguments: Any) -> Any:
        """Return what a method returns, or raise what it raises.

        Args:
            seconds: most time for it.
            name: name of the method.
            arguments: its arguments.
        """
        if self._is_lost:
            raise self._error(seconds)
        self._number += 1
        self._calls.put((self._number, name, arguments))
        number = 0
        try:
            while number != self._number:  # that of a call which a signal's exception has left is dropped
                number, answer, error = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._is_lost = True
            raise self._error(seconds) from None
        if error is not None:
            raise error
        return answer
