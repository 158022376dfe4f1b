"""Signals to a process that trains: real ones."""

import contextlib
import os
import signal

import pytest

from klrl.run.signals import Interrupted, Signals

ENDING = ["SIGINT", "SIGTERM", "SIGHUP"]


def send(name):
    os.kill(os.getpid(), getattr(signal, name))


@pytest.fixture(autouse=True)
def _as_before():
    numbers = [getattr(signal, name) for name in ENDING]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ENDING)
def test_a_signal_raises_where_the_process_is_and_a_second_interrupt_would_end_it(name):
    before = signal.getsignal(getattr(signal, name))
    with Signals(lambda: None):
        with pytest.raises(Interrupted, match=name) as caught:
            send(name)
        assert caught.value.number == getattr(signal, name)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL
        send("SIGHUP")  # a terminal that closes sends it twice, and the first one is not done yet
        send("SIGTERM")
    after = signal.getsignal(getattr(signal, name))
    assert after is (before if name == "SIGINT" else signal.SIG_IGN)  # until the process has ended


def test_an_interrupt_is_what_notebooks_and_scripts_know():
    assert issubclass(Interrupted, KeyboardInterrupt)


def test_sigusr1_saves_and_nothing_else():
    saved = []
    with Signals(lambda: saved.append(1)):
        send("SIGUSR1")
        send("SIGUSR1")
    assert saved == [1, 1]


def test_a_signal_that_somebody_swallowed_ends_the_training_after_the_update():
    with Signals(lambda: None) as signals:
        signals.on_update_end(None, None, {})
        with contextlib.suppress(BaseException):
            send("SIGTERM")
        with pytest.raises(Interrupted, match="SIGTERM"):
            signals.on_update_end(None, None, {})


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(lambda: None):
            send("SIGHUP")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
