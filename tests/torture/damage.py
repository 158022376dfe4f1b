"""R7: checkpoints that are not what was written, each tried alone and as the newest one of a run."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from klrl.agents import AGENTS, Agent
from klrl.run import checkpoint
from torture.case import Case, Outcome
from torture.processes import Forks
from torture.states import agent_parts, digest

_IN_ONE_CASE = 25
_KINDS = ("CartPole-v1, ppo", "Pendulum-v1, trpo")


@dataclass(frozen=True)
class Damage:
    """Something that happens to one file of a saved agent."""

    file: str
    """How its name begins."""
    what: str
    """In words."""
    to: Callable[[bytes, bytes], bytes | None]
    """From what is in it, and what is in the same file of another saved agent; ``None`` for no file at all."""


def cases(seed: int) -> list[Case]:
    """Three hundred damages, in groups of twenty-five."""
    every = list(_damages(random.Random(f"{seed} R7")))
    groups = [every[i : i + _IN_ONE_CASE] for i in range(0, len(every), _IN_ONE_CASE)]
    return [
        Case(
            "R7",
            f"{len(group)} damages from {group[0].what} of {group[0].file} on ({kind})",
            _case(group, kind),
            i == 9,
        )
        for i, group in enumerate(groups)
        for kind in [_KINDS[i % 2]]
    ]


def _damages(g: random.Random) -> Iterator[Damage]:
    files = ("MANIFEST", "agent", "tensors")
    for i in range(50):
        part = g.random()
        yield Damage(files[i % 3], f"cutting at {part:.4f}", _cutting(part))
    for i in range(226):
        part, bits = g.random(), g.randrange(1, 256)
        yield Damage(files[i % 3], f"changing the byte at {part:.4f} by {bits}", _flipping(part, bits))
    for file in files:
        yield Damage(file, "deleting", lambda data, other: None)
        yield Damage(file, "emptying", lambda data, other: b"")
        yield Damage(file, "taking another agent's", lambda data, other: other)
        yield Damage(file, "appending a byte", lambda data, other: data + b" ")
        yield Damage(file, "zeroing", lambda data, other: bytes(len(data)))
        yield Damage(file, "repeating", lambda data, other: 2 * data)
        yield Damage(file, "losing the first block", lambda data, other: bytes(min(512, len(data))) + data[512:])
        yield Damage(
            file, "reading another agent's end", lambda data, other: data[: len(data) // 2] + other[len(data) // 2 :]
        )


def _cutting(part: float) -> Callable[[bytes, bytes], bytes]:
    return lambda data, other: data[: int(part * len(data))]


def _flipping(part: float, bits: int) -> Callable[[bytes, bytes], bytes]:
    def flip(data: bytes, other: bytes) -> bytes:
        place = int(part * len(data))
        return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]

    return flip


def _case(group: Sequence[Damage], kind: str) -> Callable[[Path], Outcome]:
    def run(scratch: Path) -> Outcome:
        env, algorithm = kind.split(", ")
        agent = AGENTS[algorithm](env, AGENTS[algorithm].config_class.for_env(None, n_envs=2, n_steps=64), seed=0)
        original = scratch / "original"
        older, newer = (_learn_and_save(agent, original) for _ in range(2))
        agent.close()
        forks = Forks(scratch)
        tried = [_try(damage, original, scratch / f"run-{i}", older, newer, forks) for i, damage in enumerate(group)]
        return Outcome([problem for problem in tried if problem], trials=len(group))

    return run


def _learn_and_save(agent: Agent, run_dir: Path) -> tuple[str, str]:
    """Name of the checkpoint and the digest of the agent in it."""
    agent.learn(128)
    path = agent.save(checkpoint.step_directory(run_dir, agent.num_timesteps))
    return path.name, digest(agent_parts(agent))


def _try(
    damage: Damage, original: Path, run_dir: Path, older: tuple[str, str], newer: tuple[str, str], forks: Forks
) -> str | None:
    """Damage the newest checkpoint of a copy of a run; load that one, then the run."""
    shutil.copytree(original, run_dir)
    newest = checkpoint.step_directory(run_dir, int(newer[0]))
    (file,) = newest.glob(f"{damage.file}*")
    (other,) = checkpoint.step_directory(run_dir, int(older[0])).glob(f"{damage.file}*")
    after = damage.to(file.read_bytes(), other.read_bytes())
    if after == file.read_bytes():
        return None
    if after is None:
        file.unlink()
    else:
        file.write_bytes(after)
    problem = _alone(forks, newest) or _in_its_run(forks, run_dir, damage, older, newer)
    return problem and f"{damage.what} of {damage.file}: {problem}"


def _alone(forks: Forks, newest: Path) -> str | None:
    """It must be refused in one line that names it."""
    ended = forks.run(["load", newest])
    if ended.code != 0:
        return f"the process ended with {ended.code}: {ended.err[-200:]}"
    said = json.loads(ended.out)
    if "digest" in said:
        return "it was loaded"
    if not said["known"] or "\n" in said["error"] or newest.name not in said["error"]:
        return f"{said['type']}: {said['error'][:200]}"
    return None


def _in_its_run(
    forks: Forks, run_dir: Path, damage: Damage, older: tuple[str, str], newer: tuple[str, str]
) -> str | None:
    """The older one must be loaded instead, and a warning must name the one that was not."""
    ended = forks.run(["load", run_dir])
    if ended.code != 0:
        return f"the process ended with {ended.code}: {ended.err[-200:]}"
    said = json.loads(ended.out)
    if "error" in said:
        return f"no fall-back: {said['error'][:200]}"
    if said["digest"] != older[1]:
        return "the newest one was loaded" if said["digest"] == newer[1] else "something else was loaded"
    if not any(newer[0] in warning for warning in said["warnings"]):
        return "no warning says what was skipped"
    return None
