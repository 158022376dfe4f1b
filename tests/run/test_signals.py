"""Signals to a process that trains: real ones."""

import contextlib
import os
import signal

import gymnasium as gym
import pytest

from klrl.run.signals import Interrupted, Signals
from klrl.scripts.main import main

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


class Signalled(gym.Env):
    """Sends this process a signal in a step."""

    observation_space = action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        send("SIGTERM")
        return 0, 0.0, False, False, {}


@pytest.mark.parametrize("verb", ["train", "resume"])
def test_after_a_training_that_was_ended_no_second_signal_changes_the_status(verb, tmp_path, capsys):
    run, words = tmp_path / "run", ["train", "ppo", "--env", "Signalled-v0", "--total-timesteps", "64", "--no-try-envs"]
    gym.register("Signalled-v0", Signalled)
    try:
        for argv in [[*words, "--run-dir", str(run)], ["resume", str(run)]][: 1 + (verb == "resume")]:
            for name in ENDING:
                signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)
            with pytest.raises(SystemExit) as stop:
                main(argv)
            assert stop.value.code == 128 + signal.SIGTERM
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN is signal.getsignal(signal.SIGHUP)
    finally:
        del gym.registry["Signalled-v0"]
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped by SIGTERM: ")


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(lambda: None):
            send("SIGHUP")
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
