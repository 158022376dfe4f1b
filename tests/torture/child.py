"""What the protocol's child processes do: ``python -m torture.child JOB ...``."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from torch import Tensor

from klrl.agents import Agent, load_agent
from klrl.run import checkpoint
from klrl.run.csv_log import CsvLog
from klrl.run.tensorboard_writer import TensorBoardWriter
from klrl.scripts.main import command
from torture import inputs
from torture.states import agent_parts, digest


def klrl(words: list[str]) -> None:
    """``klrl ...`` as the program does it, with its way to say warnings."""
    sys.argv[1:] = words
    command()


def frugal(*words: str) -> None:
    """Another job with two gigabytes of memory at most: what reads without end is not to take the machine's."""
    resource.setrlimit(resource.RLIMIT_DATA, (2**31, 2**31))
    main(list(words))


def load(path: str) -> None:
    """Load an agent and let it act; one line of JSON: its state's digest, or the error, and the warnings."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        said: dict[str, Any] = {}
        try:
            agent = load_agent(path)
            said["digest"] = digest(agent_parts(agent))
            agent.observation_space.seed(0)
            agent.predict(agent.observation_space.sample(), deterministic=True)
        except Exception as error:
            known = type(error) in (ValueError, checkpoint.Damaged, checkpoint.OtherFormat, FileNotFoundError)
            said |= {"error": str(error), "type": type(error).__name__, "known": known}
    print(json.dumps(said | {"warnings": [str(note.message) for note in notes]}))


def save_for_ever(path: str) -> None:
    """Save agent after agent to one place; after each, its number on a line."""
    x = torch.arange(50_000.0) / 50_000.0
    for i in range(10**9):
        checkpoint.write(path, {"x": x + i}, {"agent": "ppo", "number": i})
        print(i, flush=True)


def die_saving(instruction: str, *words: str) -> None:
    """``klrl ...``, killed before the so-manieth time that a checkpoint makes sure of something on the disk."""
    count, sync = int(instruction) + 2, os.fsync  # config.json comes before, in the same way

    def fsync(fd: Any) -> None:
        nonlocal count
        count -= sys._getframe(1).f_globals["__name__"] == checkpoint.__name__
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(fd)

    os.fsync = fsync
    klrl(list(words))


def full_disk(sink: str, writes: str, run_dir: str, *words: str) -> None:
    """``klrl ...``, whose file of a kind (all its files) can grow by some bytes only, once it was written so often."""
    owner, method, files = _SINKS[sink]
    write, left = getattr(owner, method), int(writes)

    def limited(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        if isinstance(arguments[0], CsvLog) and arguments[0]._path.name != files:
            return write(*arguments, **named)
        left -= 1
        largest = max((path.stat().st_size for path in Path(run_dir).glob(files)), default=0)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard if left >= 0 else largest + 20, hard))
        try:
            return write(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))

    setattr(owner, method, limited)
    klrl(list(words))


_SINKS: dict[str, tuple[Any, str, str]] = {
    "checkpoint": (checkpoint, "_write", "no file: these are new ones"),
    "TensorBoard": (TensorBoardWriter, "_write", "events.*"),
    "metrics.csv": (CsvLog, "add", "metrics.csv"),
    "episodes.csv": (CsvLog, "add", "episodes.csv"),
}
"""What writes each kind of file, by which method, and the files that are there before."""


def poison_policy(value: str, steps: str, *words: str) -> None:
    """``klrl ...``, with a parameter (of its last action) that is none in the policy that acts after so many steps."""
    act = Agent.act

    def poisoned(agent: Agent[Any], observations: Tensor) -> Any:
        if agent.num_timesteps >= int(steps):
            biases = [p for name, p in agent.actor.named_parameters() if name.endswith("bias")]
            with torch.no_grad():
                biases[-1][-1] = float(value)
        return act(agent, observations)

    Agent.act = poisoned  # type: ignore[assignment, method-assign]
    klrl(list(words))


def predict(path: str, actions: str) -> None:
    """What an agent does in a thousand states, to a file; no environment is made."""
    agent = load_agent(path)
    checkpoint.write(actions, {"actions": torch.from_numpy(some_actions(agent))}, {})


def some_actions(agent: Agent[Any], n: int = 1_000) -> np.ndarray:
    """Deterministic actions at the same ``n`` samples of the observation space."""
    space = batch_space(agent.observation_space, n)
    space.seed(0)
    return np.ascontiguousarray(agent.predict(space.sample(), deterministic=True)[0])


def jump(seconds: str, looks: str, *words: str) -> None:
    """``klrl ...`` on a machine whose clock jumps, once somebody has looked at it so often."""
    clock, left = time.time, int(looks)

    def now() -> float:
        nonlocal left
        left -= 1
        return clock() + (float(seconds) if left < 0 else 0.0)

    time.time = now
    klrl(list(words))


JOBS: dict[str, Callable[..., None]] = {
    "die-saving": die_saving,
    "frugal": frugal,
    "full-disk": full_disk,
    "inputs": inputs.attempt,
    "jump": jump,
    "klrl": lambda *words: klrl(list(words)),
    "load": load,
    "poison-policy": poison_policy,
    "predict": predict,
    "save-for-ever": save_for_ever,
}


def main(words: list[str]) -> None:
    """Do a job."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored under nohup, and klrl train then leaves it so
    JOBS[words[0]](*words[1:])


def program() -> None:
    """Do the job that the command line names."""
    main(sys.argv[1:])


if __name__ == "__main__":
    program()
