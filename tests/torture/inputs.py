"""R9 and R10: bad settings, spaces and environments.

A bad setting is refused in one line before any environment is made. Spaces and environments either train one
iteration or are refused in one line that says what is supported. Every one of these trials is a process of its own,
forked once everything is imported; command lines are refused one after the other in one process, as words are read.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

from klrl.agents import PPO, TRPO, AgentConfig
from klrl.scripts import train
from torture.bad_settings import ENV, BadSetting, bad_keywords, bad_settings
from torture.case import Case, Outcome
from torture.faulty import FAULTS, Sampled, action_spaces, observation_spaces
from torture.processes import start_child
from torture.runs import succeed

_MARK = "an-environment-was-made"
_SECONDS = 10.0
Trial = Callable[[], str | None]
"""What went wrong, if anything."""
_IN_ONE_CASE = {"command lines": 60, "keywords": 600, "spaces": 21, "environments": 13}
_POINT = {"command lines": "R9", "keywords": "R9", "spaces": "R10", "environments": "R10"}
_QUICK = {"command lines": 24, "keywords": 0, "spaces": 13, "environments": 1}
"""Kinds with a case that is quick, and which."""


def cases(seed: int) -> list[Case]:
    """All of them whatever the seed, in groups."""
    return [case for kind in _IN_ONE_CASE for case in _cases(kind)]


def _cases(kind: str) -> Iterator[Case]:
    size, n = _IN_ONE_CASE[kind], len(trials(kind))
    for i, first in enumerate(range(0, n, size)):
        count = min(size, n - first)
        yield Case(_POINT[kind], f"{count} {kind} from {first} on", _case(kind, first, count), i == _QUICK.get(kind))


def trials(kind: str) -> Sequence[Trial]:
    """All trials of a kind."""
    every: dict[str, Callable[[], list[Trial]]] = {
        "command lines": lambda: [partial(refuse_setting, case) for case in bad_settings()],
        "keywords": lambda: [partial(refuse_keyword, *case) for case in bad_keywords()],
        "spaces": lambda: [partial(try_spaces, *pair) for pair in space_pairs()],
        "environments": lambda: [partial(try_environment, name) for name in FAULTS],
    }
    return every[kind]()


def _case(kind: str, first: int, count: int) -> Callable[[Path], Outcome]:
    def run(scratch: Path) -> Outcome:
        said = json.loads(succeed(start_child(["inputs", kind, f"{first}", f"{count}"], scratch)).out)
        fact = {"largest seconds of a refusal": said["slowest"]} if kind == "command lines" else {}
        return Outcome(said["problems"], count, fact)

    return run


def attempt(kind: str, first: str, count: str) -> None:
    """Make some trials; one line of JSON: what went wrong, and the most seconds that one of them computed."""
    gym.logger.min_level = gym.logger.ERROR
    problems, slowest = [], 0.0
    for trial in trials(kind)[int(first) : int(first) + int(count)]:
        began = time.process_time()
        problems.append(trial())
        slowest = max(slowest, time.process_time() - began)
    print(json.dumps({"problems": [problem for problem in problems if problem], "slowest": slowest}))


@dataclass(frozen=True)
class Status:
    """How a process ended."""

    status: int
    stderr: str
    seconds: float
    """Of computing: on a busy machine the clock would tell of others."""


def refuse_keyword(cls: type[AgentConfig], name: str, value: Any) -> str | None:
    """What went wrong where ``cls(name=value)`` should have been refused; ``None`` if it was."""
    try:
        cls(**{name: value})
    except ValueError as error:
        line = str(error)
        fine = "\n" not in line and line.startswith((f"{name} = {value!r}", f"{name} = {str(value)[:50]}"))
        return None if fine and "allowed" in line else f"{name} = {str(value)[:50]}: {line[:300]}"
    return f"{name} = {value!r} was accepted"


def refuse_setting(case: BadSetting) -> str | None:
    """What went wrong where ``klrl train`` should have refused; ``None`` if it did."""
    with tempfile.TemporaryDirectory() as folder:
        outcome = _said(case.argv, folder)
        made, written = (Path(folder) / _MARK).exists(), list(Path(folder).iterdir())
    line = outcome.stderr
    silent = [text for text in case.mentions if not any(_squeezed(x) in _squeezed(line) for x in text.split("|"))]
    wrong = {
        f"status {outcome.status}": outcome.status != 2,
        f"{line.count(chr(10))} lines": line.count("\n") != 1,
        "an environment was made": made,
        f"written: {written}": bool(written),
        f"does not name {silent}": bool(silent),
        "does not say what is allowed": "allowed" not in line and "did you mean" not in line,
        f"{outcome.seconds:.1f} s": outcome.seconds > _SECONDS,
        f"{len(line)} characters": len(line) > 800,
    }
    found = [text for text, so in wrong.items() if so]
    return f"klrl train {case.name}: {', '.join(found)}: {line[:600]}" if found else None


def _said(argv: list[str], folder: str) -> Status:
    """What ``klrl train`` does in a folder, in this process."""
    paths, began, status = [*sys.path], time.process_time(), 0
    with contextlib.chdir(folder), contextlib.redirect_stderr(io.StringIO()) as err, warnings.catch_warnings():
        warnings.simplefilter("default")
        with contextlib.redirect_stdout(io.StringIO()):
            gym.register(ENV, _marked)  # type: ignore[arg-type]
            try:
                train.main(argv)
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 70
            except Exception:
                traceback.print_exc()
                status = 70
            finally:
                gym.registry.pop(ENV)
                sys.path[:] = paths
    return Status(status, err.getvalue(), time.process_time() - began)


def _squeezed(text: str) -> str:
    """Names of flags and fields alike."""
    return text.replace("-", "_")


def _marked() -> gym.Env:
    Path(_MARK).touch()
    return gym.make("CartPole-v1")


def space_pairs() -> Iterator[tuple[str, str]]:
    """Names of observation spaces and action spaces, each with each."""
    yield from ((o, a) for o in observation_spaces() for a in action_spaces())


def try_spaces(observations: str, actions: str) -> str | None:
    """What went wrong with a pair of spaces, which PPO and TRPO either learn on or refuse; ``None`` if nothing."""
    pair = observation_spaces()[observations], action_spaces()[actions]
    outcome = in_child(lambda: _learn(lambda: Sampled(*pair)))
    if outcome.status == 0 and not outcome.stderr:
        return None
    named = any(f"{what} space" in outcome.stderr for what in ("observation", "action"))
    kinds = any(type(space).__name__ in outcome.stderr for space in pair)
    if outcome.status == 2 and _is_clear(outcome.stderr) and named and kinds:
        return None
    return f"{observations} -> {actions}: status {outcome.status}: {outcome.stderr[-600:]}"


def try_environment(name: str) -> str | None:
    """What went wrong with a faulty environment, which is learned on or refused; ``None`` if nothing."""
    make, mentions, twin = FAULTS[name]
    outcome = in_child(lambda: _learn(make, twin))
    if mentions is None:
        fine = outcome.status == 0 and not outcome.stderr
    else:
        fine = outcome.status == 2 and _is_clear(outcome.stderr) and all(m in outcome.stderr for m in mentions)
    return None if fine else f"{name}: status {outcome.status}: {outcome.stderr[-600:]}"


def _is_clear(line: str) -> bool:
    return line.count("\n") == 1 and "allowed" in line and len(line) < 1000


def _learn(make: Callable[[], gym.Env], twin: Callable[[], gym.Env] | None = None) -> None:
    """One iteration of PPO and TRPO; a refusal is one line on stderr, status 2. A twin must lead to the same policy."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".* in the environment's units; if its actions have another size")
    for cls in (PPO, TRPO):
        agents = []
        for maker in (make, twin or make)[: 1 if twin is None else 2]:
            config: Any = cls.config_class(n_envs=2, n_steps=16, batch_size=16, actor_hidden_sizes=(4,))
            try:
                agents.append(cls(maker, config, seed=0).learn(32))
            except (ValueError, FloatingPointError) as error:
                print(error, file=sys.stderr)
                sys.exit(2)
        assert all(p.isfinite().all() for p in agents[0].actor.parameters()), "parameters that are not finite"
        assert torch.equal(agents[0].networks.actor_parameters, agents[-1].networks.actor_parameters), (
            "its twin learned something else"
        )


def in_child(call: Callable[[], None], seconds: float = 60.0) -> Status:
    """Run something in a forked process; an exception leaves its traceback on stderr and status 70."""
    with tempfile.TemporaryFile("w+") as err, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on forks beside threads, which sleep here
        if (pid := os.fork()) == 0:
            os._exit(_status(call, err, seconds))
        _, code, used = os.wait4(pid, 0)
        err.seek(0)
        return Status(os.waitstatus_to_exitcode(code), err.read(), used.ru_utime + used.ru_stime)


def _status(call: Callable[[], None], err: Any, seconds: float) -> int:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = null, err
        status = 0
        try:
            call()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 70
        except BaseException:
            traceback.print_exc()
            status = 70
        err.flush()
    return status
