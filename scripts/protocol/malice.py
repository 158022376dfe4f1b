"""R8: checkpoints made to do harm; none may run code, change files elsewhere, fill the memory or the terminal."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from klrl.agents import PPO, PPOConfig
from klrl.run import checkpoint
from klrl.scripts.protocol import malicious_files, malicious_settings
from klrl.scripts.protocol.case import Case, Outcome
from klrl.scripts.protocol.forgery import WRONG, Victim, paths_of, put
from klrl.scripts.protocol.processes import Ended, Forks

_MEBIBYTE = 2**20
_SPARE = 64 * _MEBIBYTE
"""Memory that a process may take beside twice the size of the files it reads."""
_SECONDS = 20.0
_IN_ONE_CASE = 10
_VALUES = 40
_QUICK = {
    "a sealed pickle instead of the tensors",
    "the manifest names '../../../outside/precious.txt'",
    "tensors is a pipe",
    "hidden layers of 50,000 x 50,000",
    "the environment evil:Evil-v0",
    "escapes in an environment's name",
}


def cases(seed: int) -> list[Case]:
    """Every attack once, and every value of a saved agent's JSON replaced by others."""
    attacks = [*malicious_files.attacks(), *malicious_settings.attacks()]
    quick, slow = ([one for one in attacks if (one[0] in _QUICK) is wanted] for wanted in (True, False))
    groups = [quick, *(slow[i : i + _IN_ONE_CASE] for i in range(0, len(slow), _IN_ONE_CASE))]
    one_by_one = [
        Case("R8", f"{len(group)} attacks from: {group[0][0]}", _case(group), quick=group is quick, timeout=400.0)
        for group in groups
    ]
    g = random.Random(f"{seed} R8")
    values = [
        Case("R8", f"{_VALUES} values replaced by others, part {i}", _case_of_values(g.random()), timeout=400.0)
        for i in range(10)
    ]
    return [*one_by_one, *values]


def _case(attacks: list[tuple[str, Callable[[Victim], None]]]) -> Callable[[Path], Outcome]:
    def run(scratch: Path) -> Outcome:
        return _tried(scratch, _good(scratch), attacks)

    return run


def _case_of_values(seed: float) -> Callable[[Path], Outcome]:
    def run(scratch: Path) -> Outcome:
        good, g = _good(scratch), random.Random(seed)
        _, state = checkpoint.read(good)
        drawn = [(g.choice(paths_of(state)[1:]), g.choice([*WRONG, KeyError])) for _ in range(_VALUES)]
        return _tried(
            scratch, good, [(f"{path} replaced by {str(new)[:20]!r}", _replacing(path, new)) for path, new in drawn]
        )

    return run


def _replacing(path: tuple[str | int, ...], new: object) -> Callable[[Victim], None]:
    def attack(v: Victim) -> None:
        v.forge(lambda tensors, state: _remove(state, path) if new is KeyError else put(state, path, new))

    return attack


def _remove(state: object, path: tuple[str | int, ...]) -> None:
    for key in path[:-1]:
        state = state[key]  # type: ignore[index]
    del state[path[-1]]  # type: ignore[attr-defined]


def _good(scratch: Path) -> Path:
    """A small agent's run."""
    agent = PPO("CartPole-v1", PPOConfig(n_envs=2, n_steps=64), seed=0).learn(128)
    run_dir = scratch / "good"
    agent.save(checkpoint.step_directory(run_dir, agent.num_timesteps))
    agent.close()
    return run_dir


def _tried(scratch: Path, good: Path, attacks: list[tuple[str, Callable[[Victim], None]]]) -> Outcome:
    modules = scratch / "modules"
    modules.mkdir()
    marker = scratch / "marker"
    (modules / "evil.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    problems, largest = [], 0.0
    with Forks(scratch, {"PYTHONPATH": str(modules)}) as forks:
        usual = max(ended.peak for ended in _readings(forks, good))
        for i, (name, attack) in enumerate(attacks):
            victim = Victim(scratch / f"run-{i}", scratch / f"outside-{i}", marker)
            shutil.copytree(good, victim.run_dir)
            victim.outside.mkdir()
            (victim.outside / "precious.txt").write_text("years of work")
            attack(victim)
            size = sum(p.lstat().st_size for p in victim.run_dir.rglob("*"))
            before = _contents(victim.outside)
            for ended in _readings(forks, victim.run_dir):
                largest = max(largest, ended.peak - usual)
                problem = _problem(ended) or _excess(ended, usual + max(2 * size, _SPARE))
                problems += [f"{name}: {problem}"] if problem else []
            if marker.exists():
                problems.append(f"{name}: its code ran")
            if before != _contents(victim.outside):
                problems.append(f"{name}: files outside of the run were changed")
            shutil.rmtree(victim.run_dir)
    return Outcome(problems, len(attacks), {"largest memory beside the usual, MiB": round(largest / _MEBIBYTE, 1)})


def _readings(forks: Forks, run_dir: Path) -> Iterator[Ended]:
    """As a library, and by the command line."""
    yield forks.run(["load", run_dir])
    yield forks.run(["klrl", "evaluate", run_dir, "--episodes", "1"])


def _problem(ended: Ended) -> str | None:
    """Whether it ended well, or said in one printable line what is wrong."""
    lines = ended.err.splitlines()
    said = json.loads(ended.out) if ended.out.startswith("{") else {}
    if not all(c.isprintable() or c == "\n" for c in ended.out + ended.err):
        return f"not printable: {ended.out + ended.err!r}"[:200]
    if ended.code not in (0, 2) or any("Traceback" in line for line in lines):
        return f"status {ended.code}: {' '.join(lines[-1:])}"[:200]
    if ended.code == 2 and (len(lines) != 1 or not lines[0].startswith("klrl evaluate: ")):
        return f"{len(lines)} lines: {ended.err[:200]!r}"
    if "error" in said and not (said["known"] and _is_plain(said["error"])):
        return f"{said['type']}: {said['error']!r}"[:200]
    return None


def _is_plain(text: str) -> bool:
    return text.isprintable() and len(text) < 2000


def _excess(ended: Ended, most: float) -> str | None:
    if ended.seconds > _SECONDS:
        return f"it took {ended.seconds:.0f} s"
    if ended.peak > most:
        return f"{ended.peak / _MEBIBYTE:.0f} MiB of memory, more than {most / _MEBIBYTE:.0f}"
    return None


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
