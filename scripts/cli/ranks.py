"""Trainings under torchrun: what all ranks decide alike, and which of them says how the training ended."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym

from klrl.agents import Agent
from klrl.experience import BadStep
from klrl.run import Callback
from klrl.run.beside import CannotBegin
from klrl.run.options import RunOptions
from klrl.run.signals import Interrupted, Signals
from klrl.run.torchrun import RankFailed
from klrl.run.world import Diverged, World
from klrl.scripts.cli.command_line import fail, failed_worker


@contextlib.contextmanager
def together(prog: str) -> Iterator[World]:
    """Join the world, and tell the other ranks if this one ends early; what another one did ends this one, too."""
    try:
        world = World.current()
    except RankFailed as error:
        fail(prog, error, status=1)
    try:
        yield world
    except RankFailed as error:
        if world.rank == 0 or error.seen_here:
            fail(named(prog, world), error, status=1)
        sys.exit(1)
    except SystemExit as error:
        if error.code:
            world.fail(error)
        raise
    except BaseException as error:
        world.fail(error)
        raise


def named(prog: str, world: World) -> str:
    """Return the name of the command for messages of this rank."""
    return prog if world.size == 1 else f"{prog}: rank {world.rank}"


def follow(
    prog: str,
    agent: Agent[Any],
    learn: Callable[[Sequence[Callback]], object],
    options: RunOptions,
    signals: Signals,
) -> None:
    """Train on a rank that writes and shows nothing, but for how it failed.

    Args:
        prog: name of the command and the rank, for messages.
        agent: agent to train.
        learn: trains it with these callbacks.
        options: limits and goals.
        signals: handlers, installed.
    """
    try:
        with failed_worker(prog):
            learn([signals, *options.budgets(), *options.goal()])
        signals.check()
    except Interrupted as signal:
        sys.exit(128 + signal.number)
    except RankFailed as error:
        if error.seen_here:
            fail(prog, error, status=1)
        sys.exit(1)  # rank 0 says it
    except Diverged:
        sys.exit(1)
    except (FloatingPointError, OSError) as error:
        if getattr(error, "__notes__", None):  # from an environment: its traceback says more than a line
            raise
        fail(prog, error, status=1)
    except (BadStep, CannotBegin, gym.error.Error) as error:
        fail(prog, error)
    finally:
        agent.close()
