"""The process of one environment: it obeys the commands from a pipe, and ends with it."""

from __future__ import annotations

import contextlib
import copyreg
import faulthandler
import io
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection, parent_process
from multiprocessing.reduction import ForkingPickler
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector.utils import read_from_shared_memory, write_to_shared_memory

from klrl.experience.episodes import EpisodeCursor, Playing, SeededEpisodes
from klrl.experience.steps import BadStep
from klrl.output import keep_steady

DEAF = {s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")}
"""Signals that concern the parent, which may get them at the same time."""

Answer = tuple[float, bool, bool, bytes, tuple[Any, bytes] | None]
"""Answer to a step or a reset: reward, terminated, truncated, and the info of the new state; if an episode ended,
also the last observation and info of it. Infos are pickled separately: not everyone reads them."""


def work(
    pipe: connection.Connection,
    last_words: connection.Connection,
    foreign: list[connection.Connection],
    index: int,
    n: int,
    make: Callable[[], gym.Env],
    attributes: dict[str, Any],
    spaces: tuple[gym.Space, gym.Space],
    memory: tuple[Any, Any],
) -> None:
    """Make an environment and obey commands until told None; errors are sent as text, which can always be pickled.

    Args:
        pipe: brings (command, data), takes (True, answer) or (False, what, traceback, whether an episode had ended),
            and before that None now and then, while it steps by itself.
        last_words: pipe to which a crash or SIGUSR2 writes the stack.
        foreign: connections that are not for this process.
        index: number of the environment.
        n: number of environments.
        make: makes it.
        attributes: attributes to set on it.
        spaces: spaces of observations and actions that it must have.
        memory: memory for observations and for actions, shared with the other processes.
    """
    for other in foreign:
        other.close()
    _prepare(last_words)
    env = server = None
    try:
        env = make()
        if (env.observation_space, env.action_space) != spaces:
            raise RuntimeError(f"spaces {env.observation_space}, {env.action_space}; allowed: {spaces}")
        server = _Server(env, index, n, memory)
        for name, value in attributes.items():
            env.set_wrapper_attr(name, value)
        if isinstance(env, Playing):
            env.played = _Signs(pipe)
        while (message := pipe.recv()) is not None:
            pipe.send((True, server.obey(*message)))
    except BaseException as error:
        what = traceback.format_exception_only(error)[0].partition("\n")[0][:500]
        trace = "".join(traceback.format_exception(error))
        with contextlib.suppress(OSError):  # the parent is gone
            pipe.send((False, what, trace, server is not None and server.ended))
    finally:
        if env is not None:
            env.close()


class _Signs:
    """Sends None from time to time, while the environment steps by itself."""

    def __init__(self, pipe: connection.Connection) -> None:
        self._pipe, self._last = pipe, time.monotonic()

    def __call__(self) -> None:
        if (now := time.monotonic()) - self._last > 0.5:
            self._pipe.send(None)
            self._last = now


class _Server:
    """Commands on an environment, one of ``n``."""

    def __init__(self, env: gym.Env, index: int, n: int, memory: tuple[Any, Any]) -> None:
        self.env, self._index, self._memory = env, index, memory[0]
        self._observations = read_from_shared_memory(env.observation_space, memory[0], n)
        self._actions: Any = read_from_shared_memory(env.action_space, memory[1], n)
        self.ended = False
        """True if the current command has ended an episode."""
        self._new = True

    def obey(self, command: str, *data: Any) -> Any:
        self.ended = False
        if command == "step":
            return self._step(*data)
        if command == "reset":
            return self._reset(*data)
        if command == "set":
            return self.env.set_wrapper_attr(*data)
        if command == "call":
            name, args, kwargs = data
            attribute = self.env.get_wrapper_attr(name)
            return attribute(*args, **kwargs) if callable(attribute) else attribute
        if command == "diverged":
            return isinstance(self.env, SeededEpisodes) and self.env.diverged
        return self.env.every if isinstance(self.env, SeededEpisodes) else None

    def _step(self, *given: Any) -> Answer:
        action = given[0] if given else self._actions[self._index].copy()
        observation, reward, terminated, truncated, info = self.env.step(action)
        last = None
        if terminated or truncated:
            self.ended = True
            last = observation, pickled(info)
            observation, info = self.env.reset()
        self._show(observation)
        return float(reward), bool(terminated), bool(truncated), pickled(info), last

    def _reset(self, cursor: EpisodeCursor, seed: int | None, options: dict[str, Any] | None) -> Answer:
        if seed is None and isinstance(self.env, SeededEpisodes):
            self.env.cursor = cursor
        elif seed is None and self._new:
            seed = cursor.seed
        self._new = False
        observation, info = self.env.reset(seed=seed, options=options)
        self._show(observation)
        return 0.0, False, False, pickled(info), None

    def _show(self, observation: Any) -> None:
        if isinstance(self._observations, np.ndarray):
            self._observations[self._index] = observation
        else:
            write_to_shared_memory(self.env.observation_space, self._index, observation, self._memory)


def pickled(info: dict[str, Any]) -> bytes:
    """Pickle an info; entries that cannot be pickled are replaced by a text that says so."""
    if not info:
        return _NOTHING
    try:
        return _dumps(info)
    except Exception:  # pickling can run any object's code
        return _dumps({_sendable(key): _sendable(value) for key, value in info.items()})


def _dumps(x: Any) -> bytes:
    """Pickle by value: torch would put tensors in shared memory, where nobody may ever collect them."""
    file = io.BytesIO()
    pickler = ForkingPickler(file)
    pickler.dispatch_table = copyreg.dispatch_table
    pickler.dump(x)
    return file.getvalue()


_NOTHING = _dumps({})


def unpickled(info: bytes, index: int) -> dict[str, Any]:
    """Restore the info of environment ``index`` from its pickle.

    Raises:
        BadStep: something in it cannot be restored from its pickle.
    """
    try:
        return ForkingPickler.loads(info)
    except Exception as error:
        raise BadStep(f"info of environment {index} cannot be read: {type(error).__name__}: {error}") from error


def _sendable(x: Any) -> Any:
    try:
        _dumps(x)
    except Exception as error:
        return f"{type(x).__name__} that cannot be sent from a worker process: {type(error).__name__}: {error}"
    return x


def _prepare(last_words: connection.Connection) -> None:
    """Leave signals to the parent, report crashes and hangs, make output safe, and end with the parent."""
    for number in DEAF:
        # Programs that the environment starts inherit what is ignored: SIGTERM must still end them.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, DEAF)
    os.set_blocking(last_words.fileno(), False)
    faulthandler.disable()  # what is enabled sets no handlers, and another library, as Ray, may have taken them away
    faulthandler.enable(last_words.fileno(), all_threads=False)
    faulthandler.register(signal.SIGUSR2, last_words.fileno(), all_threads=False)
    keep_steady()
    end_with_parent()


def end_with_parent() -> None:
    """Make this process end a second after its parent is gone, for whatever reason and whatever it is doing."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    """Wait until the parent is gone, give the environment a second to see its pipe close, then exit."""
    process = parent_process()
    assert process is not None
    # Processes forked later hold the other end of the sentinel, too; they do not change the parent's number.
    while os.getppid() == parent and not connection.wait([process.sentinel], 0.5):
        pass
    time.sleep(1.0)
    os._exit(1)
