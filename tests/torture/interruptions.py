"""R1 and R3: runs that are killed, and resumed, are the runs that were not."""

from __future__ import annotations

import contextlib
import importlib.util
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torture.case import Case, Outcome
from torture.processes import Unexpected, start_klrl
from torture.runs import Run, Uninterrupted, at_row, finish, moment, resumption, succeed
from torture.states import run_parts

_KINDS = (("ppo", "CartPole-v1", "sync", 8), ("ppo", "CartPole-v1", "async", 5), ("ppo", "Pendulum-v1", "sync", 7),
          ("ppo", "Pendulum-v1", "async", 5), ("trpo", "CartPole-v1", "sync", 7), ("trpo", "CartPole-v1", "async", 5),
          ("trpo", "Pendulum-v1", "sync", 8), ("trpo", "Pendulum-v1", "async", 5))  # fmt: skip
"""Agent, environment, engine, kills: 50 altogether, 25 for each agent."""
_ENVIRONMENTS = {
    "CartPole-v1": None, "Acrobot-v1": None, "MountainCarContinuous-v0": None, "Pendulum-v1": None,
    "LunarLander-v3": "Box2D", "LunarLanderContinuous-v3": "Box2D", "BipedalWalker-v3": "Box2D",
    "Hopper-v5": "mujoco", "HalfCheetah-v5": "mujoco", "Walker2d-v5": "mujoco", "Ant-v5": "mujoco",
    "Swimmer-v5": "mujoco", "Humanoid-v5": "mujoco", "FrozenLake-v1": None, "Taxi-v4": None,
    "ale_py:ALE/Pong-v5": "ale_py",
}  # fmt: skip
"""Each with the package it needs."""
_REBUILT = {"BipedalWalker-v3"}
"""Those whose episodes repeat in new environments only."""
_IN_A_WRITE = 3
"""One kill of so many falls inside the writing of a checkpoint."""
_OF_A_WRITE = 7
"""Instructions of a checkpoint that reach the disk."""
_QUICK = ("ppo CartPole-v1 sync 0", "trpo Pendulum-v1 sync 0", "ppo BipedalWalker-v3 sync")


def cases(seed: int) -> list[Case]:
    """Every kill of R1 and every environment of R3 is a case."""
    whole = Uninterrupted()
    kills = [(_run(agent, env, mode, i), i) for agent, env, mode, n in _KINDS for i in range(n)]
    r1 = [
        Case(
            "R1", _name(run, f"kill {i}"), _killed(run, f"{seed} R1 {run} {i}", i, whole), _name(run, f"{i}") in _QUICK
        )
        for run, i in kills
    ]
    more = dict.fromkeys(_REBUILT, ("--rebuild-envs",))
    runs = [
        Run("ppo", env, mode, updates=6, every=2, more=more.get(env, ()))
        for env in _installed()
        for mode in ("sync", "async")
    ]
    r3 = [Case("R3", _name(run), _of_many(run, f"{seed} R3 {run}"), _name(run) in _QUICK, 300.0) for run in runs]
    return [*r1, *r3]


def _run(agent: str, env: str, mode: str, i: int) -> Run:
    """Return what the i-th kill interrupts: in a quick case a shorter run, with four checkpoints."""
    run = Run(agent, env, mode)
    return replace(run, updates=16, every=4) if _name(run, f"{i}") in _QUICK else run


def _name(run: Run, *more: str) -> str:
    return " ".join([run.agent, run.env, run.mode, *more])


def _installed() -> list[str]:
    return [env for env, needs in _ENVIRONMENTS.items() if needs is None or importlib.util.find_spec(needs) is not None]


def _killed(run: Run, seed: str, i: int, whole: Uninterrupted) -> Callable[[Path], Outcome]:
    """Once or twice, then resumed to the end."""

    def case(scratch: Path) -> Outcome:
        g, run_dir = random.Random(seed), scratch / "run"
        inside = i % _IN_A_WRITE == 0
        if inside:
            _die_saving(run, run_dir, scratch, g.randrange(1, run.updates // run.every * _OF_A_WRITE))
        else:
            process = run.start(scratch, run_dir)
            process.until(at_row(run_dir, moment(g, run)))
            time.sleep(g.uniform(0.0, 0.02))
            process.kill()
        twice = g.random() < 1 / 3
        if twice:  # while it goes on
            again = start_klrl(resumption(run, run_dir), scratch)
            with contextlib.suppress(Unexpected):  # it may be done before
                again.until(at_row(run_dir, moment(g, run)))
            again.kill()
        problems = finish(run, run_dir, whole.parts(run, scratch), scratch)
        return Outcome(problems, 1, {"kills": 1 + twice, "inside a write": int(inside)})

    return case


def _die_saving(run: Run, run_dir: Path, scratch: Path, instruction: int) -> None:
    ended = run.start_dying(scratch, run_dir, instruction).wait()
    assert ended.code == -signal.SIGKILL, f"not killed inside a write: {ended.code} {ended.err[-300:]}"


def _of_many(run: Run, seed: str) -> Callable[[Path], Outcome]:
    """Killed in the midst of its episodes; done in the end, in the same way unless its first line says otherwise."""

    def case(scratch: Path) -> Outcome:
        g, run_dir = random.Random(seed), scratch / "run"
        _die_saving(run, run_dir, scratch, _OF_A_WRITE + g.randrange(1, _OF_A_WRITE))
        whole = succeed(run.start(scratch, scratch / "whole"))
        named = "cannot be played again" in whole.out.partition("\n")[0]
        problems = finish(run, run_dir, None if named else run_parts(scratch / "whole"), scratch)
        facts = {
            "named as not replayable": int(named),
            "a new environment every episode": int("every episode gets a new environment" in whole.out),
        }
        return Outcome(problems, 1, facts)

    return case
