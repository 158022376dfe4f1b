"""Signals: end with everything kept, save now, end at once."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from klrl.interrupts import ENDING
from klrl.run.callback import Callback, Metrics

_SAVING = getattr(signal, "SIGUSR1", None)


class Interrupted(KeyboardInterrupt):
    """A signal has asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


class Signals(Callback):
    """Inside this context SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted` wherever the process is.

    That can be in the middle of an update: what is to be kept must have been copied before, as ``RunDirectory`` does.
    After it a SIGINT ends the process at once, the others do nothing more: a terminal that closes sends two in a row.
    SIGUSR1 saves. As a callback of the training it makes sure
    that no code that swallows exceptions lets a signal get lost. What is ignored (by ``nohup``, for example) stays so,
    but for SIGINT.

    Args:
        save: called on SIGUSR1, between two instructions of whatever is going on; it may be set later.
    """

    def __init__(self, save: Callable[[], object] = lambda: None) -> None:
        self.save = save
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals over."""
        handlers: dict[int, Any] = dict.fromkeys(ENDING, self._end)
        if _SAVING is not None:
            handlers[_SAVING] = lambda number, frame: self.save()
        before = {number: signal.getsignal(number) for number in handlers}
        self._before = {k: v for k, v in before.items() if v is not signal.SIG_IGN or k == signal.SIGINT}
        try:
            for number in self._before:
                signal.signal(number, handlers[number])
        except BaseException as error:  # a signal between two of them
            self.__exit__(type(error), error, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back; after one that asked for the end, nothing but a SIGINT is to change the process's status."""
        for number, handler in reversed(self._before.items()):  # SIGINT's last: it may raise
            over = self._received is not None and number in ENDING and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if over else handler)

    def on_update_end(self, agent: Any, batch: Any, metrics: Metrics) -> None:
        """End now if a signal has not ended the training when it came."""
        self.check()

    def check(self) -> None:
        """End now if a signal came and somebody swallowed its exception.

        Raises:
            Interrupted: so it was.
        """
        if self._received is not None:
            raise Interrupted(self._received)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for ending in self._before.keys() & {*ENDING}:
            signal.signal(ending, signal.SIG_DFL if ending == signal.SIGINT else _ignore)
        raise Interrupted(number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Not by SIG_IGN, which processes that are started now would inherit."""
