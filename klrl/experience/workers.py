"""One process per environment, supervised: failures are reported at once, or the worker is replaced.

By hand because Gymnasium's AsyncVectorEnv ends with the first worker that fails, and cannot say in which episode.
"""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import multiprocessing.util
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import (
    CloudpickleWrapper,
    batch_space,
    create_shared_memory,
    iterate,
    read_from_shared_memory,
)

from klrl.experience.episodes import EpisodeCursor
from klrl.experience.processes import WorkerProcess, end, packed
from klrl.experience.steps import BadStep
from klrl.experience.worker import Answer, unpickled
from klrl.interrupts import held
from klrl.text import warn_user

OnFailure = Literal["stop", "restart"]
FAILURES = 3
"""Number of failures in a row, without an episode that ended, that ends training."""
STEP = packed("step")
"""A step whose actions are in shared memory."""


_BAD_STEP = f"{BadStep.__module__}.{BadStep.__name__}: "
"""Prefix of the last line of a BadStep's traceback."""


class WorkerFailed(RuntimeError):
    """An environment's process died, raised or hung; the first line says which one, where and why.

    Args:
        index: number of the environment.
        cursor: its episode; None before its first reset.
        seed: seed of the episode's reset; None before the first reset, or if it had no seed.
        what: short description of what happened.
        traceback: the worker's own, if there is one.
    """

    def __init__(
        self, index: int, cursor: EpisodeCursor | None, seed: int | None, what: str, traceback: str = ""
    ) -> None:
        began = "" if seed is None else f", seed {seed}"
        where = "before its first reset" if cursor is None else f"episode {cursor.episode}{began}"
        self.index, self.seed, self.episode = index, seed, cursor.episode if cursor is not None else None
        self.what = what
        self.reason = f"environment {index} ({where}): {what}"
        self.traceback = traceback
        super().__init__(index, cursor, seed, what, traceback)  # for pickle: another process makes it from these

    def __str__(self) -> str:
        return f"{self.reason}\n\n{self.traceback}".strip()


class WorkerVectorEnv(VectorEnv):
    """Environments in processes of their own, in SAME_STEP autoreset mode; gives what ``SyncVectorEnv`` gives.

    The next command after an interrupted one restarts the workers; a reset must come before a step.
    Needs POSIX.

    Args:
        makes: one function per environment, called in its process.
        timeout: seconds for a command, and for a step that a reset has to play again, after which a worker hangs.
        on_failure: raise ("stop"), or make the worker anew and begin the next episode ("restart"): then its step is
            not counted: its reward is 0, ``infos["worker_restarted"]`` is True, and ``infos["worker_episode"]`` is the
            number of episodes before the one that begins. The third failure in a row without an episode that ended is
            raised, and so is one before the first reset.
        context: start method of ``multiprocessing``; the platform's default by default.
        like: an environment that shows the spaces; by default the first function is called once more, here.

    Raises:
        BadStep: an environment broke Gymnasium's promises, in any command; all workers have ended.
        WorkerFailed: a worker failed in another way; all workers have ended.
    """

    closed = True
    """True before there is something to close, and once it has been."""

    def __init__(
        self,
        makes: Sequence[Callable[[], gym.Env]],
        *,
        timeout: float = 60.0,
        on_failure: OnFailure = "stop",
        context: str | None = None,
        like: gym.Env | None = None,
    ) -> None:
        self.num_envs, self.timeout, self.on_failure = len(makes), timeout, on_failure
        self.env_fns = makes
        self._makes = [CloudpickleWrapper(make) for make in makes]
        self._context = cast("Any", multiprocessing.get_context(context))
        one = like or makes[0]()
        self.metadata = dict(one.metadata) | {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.render_mode = one.render_mode
        self.single_observation_space, self.single_action_space = one.observation_space, one.action_space
        if like is None:
            one.close()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        spaces = self.single_observation_space, self.single_action_space
        with held():
            self._memory = [create_shared_memory(space, self.num_envs, self._context) for space in spaces]
        self._actions: Any = read_from_shared_memory(spaces[1], self._memory[1], self.num_envs)
        self._cursors: list[EpisodeCursor | None] = [None] * self.num_envs
        self._next: list[EpisodeCursor | None] = [None] * self.num_envs
        self._attributes: list[dict[str, Any]] = [{} for _ in makes]
        self._failures = [0] * self.num_envs
        self._begun: dict[int, Answer] = {}
        """First steps of workers that were replaced when there was no step to report them in."""
        self._workers: list[WorkerProcess] = []
        # Before anything that multiprocessing does at exit: it would wait for processes that do not listen to it.
        self._finalize = multiprocessing.util.Finalize(self, end, (self._workers,), exitpriority=100)
        self.closed = False
        self._busy, self._playing = True, False
        try:
            self._seeded: tuple[bool | None, ...] = self._ask("seeded")
            """True if every episode has a seed; ``None`` if only resets with a seed have one."""
        except BaseException:  # the caller has no object to close yet
            self.close()
            raise

    @property
    def seeded(self) -> bool:
        """True if every episode has a seed of its own."""
        return all(self._seeded)

    # -- the interface of VectorEnv -------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes: by seed, at :meth:`go_to`'s cursors, or the next ones; all, or ``options["reset_mask"]``."""
        n, mask = self.num_envs, None
        given = [None] * n if seed is None else seed
        seeds = [given + i for i in range(n)] if isinstance(given, (int, np.integer)) else list(given)
        if len(seeds) != n:
            raise ValueError(f"seed has {len(seeds)} elements; allowed: {n}")
        if options is not None and "reset_mask" in options:
            options = dict(options)
            mask = self._checked_mask(options.pop("reset_mask"))
        self._enter()
        messages = {}
        for i in range(n) if mask is None else np.flatnonzero(mask).tolist():
            self._cursors[i], self._next[i] = cursor, _ = self._begin(i, seeds[i]), None
            self._begun.pop(i, None)
            messages[i] = packed("reset", cursor, seeds[i], options)
        observations, _, _, _, infos = self._results(*self._exchange(messages))
        self._busy, self._playing = False, True
        return observations, infos

    def _checked_mask(self, mask: Any) -> np.ndarray:
        what = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
        allowed = f"allowed: an array of bool and shape ({self.num_envs},), True somewhere"
        if not isinstance(mask, np.ndarray) or mask.dtype != bool:
            raise TypeError(f"options['reset_mask'] is {what}; {allowed}")
        if mask.shape != (self.num_envs,) or not mask.any():
            raise ValueError(f"options['reset_mask'] is {what if mask.any() else 'all False'}; {allowed}")
        if (self._busy or not self._playing) and not mask.all():
            raise gym.error.ResetNeeded("options['reset_mask'] before a reset of all; allowed: reset")
        return mask

    def _begin(self, i: int, seed: int | None) -> EpisodeCursor:
        if seed is not None:
            return EpisodeCursor(seed)
        if (chosen := self._next[i]) is not None:
            return chosen
        cursor = self._cursors[i]
        return (
            cursor.following
            if cursor is not None
            else EpisodeCursor(int(np.random.SeedSequence().generate_state(1)[0]))
        )

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment, and reset those whose episodes ended."""
        if not self.closed and (self._busy or not self._playing):
            raise gym.error.ResetNeeded("step before a reset, or after a command that was interrupted; allowed: reset")
        messages = self._messages(actions)
        self._enter()
        answers, begun = self._exchange({i: m for i, m in enumerate(messages) if i not in self._begun})
        begun, self._begun = self._begun | begun, {}
        for i, (_, terminated, truncated, *_) in answers.items():
            cursor = self._cursors[i]
            if (terminated or truncated) and cursor is not None:
                self._cursors[i], self._failures[i] = cursor.following, 0
        result = self._results(answers, begun)
        self._busy = False
        return result

    def _messages(self, actions: Any) -> list[Any]:
        """Pack one message per worker: actions of the space's type are in shared memory, others in the message.

        Raises:
            ValueError: there are more or fewer actions than environments.
        """
        mine, n = self._actions, self.num_envs
        arrays = isinstance(mine, np.ndarray) and isinstance(actions, np.ndarray)
        if arrays and (mine.shape, mine.dtype) == (actions.shape, actions.dtype):
            mine[...] = actions
            return [STEP] * n
        each = list(iterate(self.action_space, actions))
        if len(each) != n:
            raise ValueError(f"{len(each)} actions; allowed: {n}, one for each environment")
        return [packed("step", action) for action in each]

    def _results(
        self, answers: dict[int, Answer], begun: dict[int, Answer]
    ) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        rewards = np.zeros(self.num_envs)
        terminated, truncated = np.zeros((2, self.num_envs), dtype=bool)
        infos: dict[str, Any] = {}
        answers = answers | begun
        for i in sorted(answers):  # Gymnasium's arrays have the type of the first environment's value
            rewards[i], terminated[i], truncated[i], info, last = answers[i]
            cursor = self._cursors[i]
            if last is not None:
                infos = self._add_info(infos, {"final_obs": last[0], "final_info": self._opened(last[1], i)}, i)
            if i in begun and cursor is not None:
                infos = self._add_info(infos, {"worker_restarted": True, "worker_episode": cursor.episode}, i)
            infos = self._add_info(infos, self._opened(info, i), i)
        observations = read_from_shared_memory(self.single_observation_space, self._memory[0], self.num_envs)
        return copy.deepcopy(observations), rewards, terminated, truncated, infos

    def _opened(self, info: bytes, i: int) -> Any:
        """Return the info to pass to ``_add_info``."""
        return unpickled(info, i)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """Seeds of all environments."""
        return self.get_attr("np_random_seed")

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """Copies of every environment's generator of random numbers."""
        return self.get_attr("np_random")

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every environment, or read an attribute."""
        return self._ask("call", name, args, kwargs)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return an attribute of every environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute, to one value each if ``values`` is a list or tuple; restarted workers get it, too."""
        values = list(values) if isinstance(values, (list, tuple)) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"values of {name!r} has {len(values)} elements; allowed: {self.num_envs}")
        for attributes, value in zip(self._attributes, values, strict=True):
            attributes[name] = value
        self._ask("set", name, each=values)

    def go_to(self, cursors: Sequence[EpisodeCursor]) -> None:
        """Make the next reset of seeded episodes go to these cursors."""
        self._next = list(cursors)

    def diverged(self) -> tuple[bool, ...]:
        """Return for each environment whether the last reset failed to reach its cursor."""
        return self._ask("diverged")

    def render(self) -> tuple[Any, ...]:
        """Return a picture of every environment."""
        return self.call("render")

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers."""
        end(self._workers)
        self._finalize.cancel()

    # -- talking to workers ---------------------------------------------------------------------

    def _ask(self, command: str, *data: Any, each: Sequence[Any] | None = None) -> tuple[Any, ...]:
        """Ask every worker, and again those that were replaced meanwhile."""
        one = [()] * self.num_envs if each is None else [(value,) for value in each]
        messages = {i: packed(command, *data, *one[i]) for i in range(self.num_envs)}
        self._enter()
        answers: dict[int, Any] = {}
        while messages:
            new, begun = self._exchange(messages)
            answers |= new
            self._begun |= begun
            messages = {i: message for i, message in messages.items() if i not in answers}
        self._busy = False
        return tuple(answers[i] for i in range(self.num_envs))

    def _enter(self) -> None:
        """Begin a command; it has ended when ``_busy`` is False again, unless it was interrupted."""
        if self.closed:
            raise gym.error.ClosedEnvironmentError("the environments are closed; allowed: new ones")
        if self._busy:
            self._start_all()
        self._busy = True

    def _exchange(self, messages: dict[int, Any]) -> tuple[dict[int, Any], dict[int, Answer]]:
        """Return the answers to messages, and the first steps of the workers that replaced failed ones."""
        answers, failed = self._converse(messages)
        begun: dict[int, Answer] = {}
        while failed:
            messages = {i: self._replace(failure) for i, failure in failed.items()}
            first, failed = self._converse(messages)
            begun |= first
        return answers, begun

    def _converse(self, messages: dict[int, Any]) -> tuple[dict[int, Any], dict[int, WorkerFailed]]:
        """Send every worker its message, and return answers and failures (only the first one, if that is the end)."""
        left, waiting = self.timeout, list(messages)
        for i in waiting:
            with contextlib.suppress(OSError):  # it is gone, but what it said can still be read
                self._workers[i].pipe.send_bytes(messages[i])
        answers: dict[int, Any] = {}
        failed: dict[int, WorkerFailed] = {}
        while waiting and not (failed and self.on_failure == "stop"):
            # One after the other wakes this process least often; now and then, look at everybody.
            before = time.monotonic()
            first = self._workers[waiting[0]].readable(min(left, 0.5))
            left -= min(time.monotonic() - before, 0.5)  # time beyond it was spent stopped, by Ctrl-Z for example
            ready = waiting[:1] if first else [i for i in waiting if self._workers[i].readable()]
            # A process that the environment started can hold the pipe of a worker that is gone.
            silent = [] if ready else [i for i in waiting if left <= 0 or self._workers[i].gone]
            for i in (*ready, *silent):
                said = self._workers[i].answer() if ready else self._workers[i].autopsy(self.timeout)
                if said is None:
                    left = self.timeout
                    continue
                waiting.remove(i)
                good, *answer = said
                if good:
                    answers[i] = answer[0]
                else:
                    failed[i] = self._failure(i, *answer)
        return answers, failed

    def _failure(self, i: int, what: str, traceback: str, ended: bool = False) -> WorkerFailed:
        cursor = self._cursors[i]
        if cursor is None:
            return WorkerFailed(i, None, None, what, traceback)
        if ended:
            cursor = self._cursors[i] = cursor.following
        seed = cursor.env_seed if self._seeded[i] is None else cursor.seed
        begun = None if self._seeded[i] is False and cursor.episode > 0 else seed
        return WorkerFailed(i, cursor, begun, what, traceback)

    def _replace(self, failure: WorkerFailed) -> Any:
        """Replace a failed worker, unless that ends training, and return the first message to the new one."""
        i = failure.index
        self._failures[i] += 1
        cursor = self._cursors[i]
        broken = failure.what.partition(_BAD_STEP)  # no accident, and its message says everything
        if broken[1]:
            self.close()
            raise BadStep(broken[2]) from failure
        if self.on_failure == "stop" or self._failures[i] == FAILURES or cursor is None:
            self.close()
            raise failure
        warn_user(f"{failure.reason}; restarted")
        end([self._workers[i]])
        with held():
            self._workers[i] = self._start(i)
        self._cursors[i] = cursor = cursor.following
        return packed("reset", cursor, None, None)

    def _start(self, i: int) -> WorkerProcess:
        spaces = self.single_observation_space, self.single_action_space
        arguments = (i, self.num_envs, self._makes[i], self._attributes[i], spaces, self._memory)
        return WorkerProcess(self._context, arguments, [worker.pipe for worker in self._workers])

    def _start_all(self) -> None:
        """Start all workers; old ones, whose last command was interrupted, are ended."""
        end(self._workers)
        self._workers.clear()
        self._begun, self._playing = {}, False
        for i in range(self.num_envs):
            with held():
                self._workers.append(self._start(i))
