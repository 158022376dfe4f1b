"""Signals: SIGINT, SIGTERM and SIGHUP stop after saving; SIGUSR1 saves and continues."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from klrl.interrupts import ENDING
from klrl.run.callback import Callback, Metrics

_SAVING = getattr(signal, "SIGUSR1", None)


class Interrupted(KeyboardInterrupt):
    """A signal asked for the end of the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


class Signals(Callback):
    """Context in which SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted`, at any point of the program.

    This can be in the middle of an update, so what is to be kept must have been copied before, as ``RunDirectory``
    does. Afterwards a SIGINT ends the process at once and the others do nothing: a closing terminal sends two in a row.
    SIGUSR1 saves. As a callback of the training, it makes sure that code that swallows exceptions does not lose a
    signal. Signals that are ignored (under ``nohup``, for example) stay so, except for SIGINT.

    Args:
        save: called on SIGUSR1, between any two instructions; it may be set later.
    """

    def __init__(self, save: Callable[[], object] = lambda: None) -> None:
        self.save = save
        self._received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
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
        """Restore the handlers; after a signal that asked for the end, only a SIGINT may change the exit status."""
        for number, handler in reversed(self._before.items()):  # SIGINT's last: it may raise
            over = self._received is not None and number in ENDING and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if over else handler)

    def on_update_end(self, agent: Any, batch: Any, metrics: Metrics) -> None:
        """Stop now if a signal arrived and did not stop the training."""
        self.check()

    def check(self) -> None:
        """Stop now if a signal arrived and its exception was swallowed.

        Raises:
            Interrupted: a signal arrived.
        """
        if self._received is not None:
            raise Interrupted(self._received)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for ending in self._before.keys() & {*ENDING}:
            signal.signal(ending, signal.SIG_DFL if ending == signal.SIGINT else _ignore)
        raise Interrupted(number)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing: unlike SIG_IGN, a handler is not inherited by processes that are started now."""
